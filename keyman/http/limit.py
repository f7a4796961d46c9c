"""Rate limits: a token bucket for each caller, in the memory of one process.

Workers and replicas do not share it: with a count in the database, every request of a caller would wait for the one
before. N processes allow N times the rate, which is still a limit.
"""

from __future__ import annotations

from math import ceil
from time import monotonic

from litestar.handlers import BaseRouteHandler

from keyman.errors import RateLimited
from keyman.http.exchange import exchange_of
from keyman.http.guards import is_public
from keyman.http.requests import AnyConnection
from keyman.http.sites import SAFE_METHODS
from keyman.identity.principals import Principal

BURST = 2.0
"""How many seconds of the rate of an application may come at once."""

REMEMBERED = 10_000
"""The number of buckets from which on full ones are forgotten. A bucket takes about 200 bytes."""

APPLICATION = "This application sends too many requests. Wait before the next one."
ACCOUNT = "This account has made too many changes within a minute. Wait a little before the next one."

_NEVER_REFUSED = "keyman_never_refused"

ENDS_ACCESS: dict[str, object] = {_NEVER_REFUSED: True}
"""The `opt` of a route that takes access away: it signs out, ends sessions, revokes a token or sets another password.

`limit_writes` counts such a request and does not refuse it. Otherwise, somebody with a stolen session could keep its
owner from ending it.
"""


class RateLimit:
    """Allows each caller `rate` requests per second, and `at_once` at once: by default, BURST times the rate."""

    def __init__(self, rate: float, at_once: float | None = None, detail: str = APPLICATION) -> None:
        self._rate = rate
        self._most = max(1.0, rate * BURST if at_once is None else at_once)
        self._detail = detail
        self._buckets: dict[int, tuple[float, float]] = {}  # per caller: what was left, and when
        self._forget_at = REMEMBERED

    def take(self, caller_id: int) -> None:
        """Count one request. Raises RateLimited when it is one too many; such a request is not counted."""
        moment = monotonic()
        left = self._left(caller_id, moment)
        if left < 1:
            raise RateLimited(self._detail, retry_after=ceil((1 - left) / self._rate))
        self._keep(caller_id, left - 1, moment)

    def count(self, caller_id: int) -> None:
        """Count one request, even if it is one too many."""
        moment = monotonic()
        self._keep(caller_id, max(0.0, self._left(caller_id, moment) - 1), moment)

    def _left(self, caller_id: int, moment: float) -> float:
        left, since = self._buckets.get(caller_id, (self._most, moment))
        return min(self._most, left + (moment - since) * self._rate)

    def _keep(self, caller_id: int, left: float, moment: float) -> None:
        self._buckets[caller_id] = (left, moment)
        if len(self._buckets) > self._forget_at:
            self._buckets = {
                known: bucket for known, bucket in self._buckets.items() if self._left(known, moment) < self._most
            }
            # After a round that forgot little, the next one waits for twice as many: it reads every bucket.
            self._forget_at = max(REMEMBERED, 2 * len(self._buckets))


def writes_per_minute(most: int) -> RateLimit | None:
    """Return the limit of the writes of an account, or None for no limit."""
    return RateLimit(most / 60, most, ACCOUNT) if most else None


async def limit_writes(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Count a request that can change something, for its account. Raises RateLimited.

    This guard runs after `authenticate` and before the body is read. It counts requests that are invalid, too.
    """
    limit: RateLimit | None = connection.app.state.write_limit
    if limit is None or is_public(handler) or exchange_of(connection.scope).method in SAFE_METHODS:
        return
    caller: Principal = connection.user
    if handler.opt.get(_NEVER_REFUSED):
        limit.count(caller.user_id)
    else:
        limit.take(caller.user_id)


def count_writes(connection: AnyConnection, number: int) -> list[RateLimited | None]:
    """Count the writes of a request that makes several, the first of which `limit_writes` has counted.

    Return RateLimited for each write that is one too many. Such a write is not counted.
    """
    limit: RateLimit | None = connection.app.state.write_limit
    caller: Principal = connection.user
    return [None] + [_refusal(limit, caller.user_id) for _ in range(number - 1)]


def _refusal(limit: RateLimit | None, caller_id: int) -> RateLimited | None:
    try:
        if limit is not None:
            limit.take(caller_id)
    except RateLimited as refusal:
        return refusal
    return None
