"""The rate limit of applications: a token bucket for each, in the memory of one process.

It keeps a stolen token, or an application in a loop, from reading the whole database at once and from overloading
Vault. Workers and replicas do not share it: with a count in the database, every request of an application would wait
for the one before. N processes allow N times the rate, which is still a limit.
"""

from __future__ import annotations

from math import ceil
from time import monotonic

from keyman.errors import RateLimited

BURST = 2.0
"""How many seconds of the rate may come at once."""


class RateLimit:
    """Allows each application `rate` requests per second, and BURST times that number at once."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate * BURST)
        self._buckets: dict[int, tuple[float, float]] = {}  # per application: what was left, and when

    def take(self, application_id: int) -> None:
        """Count one request. Raises RateLimited when it is one too many; such a request is not counted."""
        moment = monotonic()
        left, since = self._buckets.get(application_id, (self._most, moment))
        left = min(self._most, left + (moment - since) * self._rate)
        if left < 1:
            wait = ceil((1 - left) / self._rate)
            raise RateLimited("This application sends too many requests. Wait before the next one.", retry_after=wait)
        self._buckets[application_id] = (left - 1, moment)
