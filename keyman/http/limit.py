"""How fast one application may resolve: a token bucket for each, in the memory of one process.

It keeps a stolen token, or an application in a loop, from emptying the database in one go and from wearing Vault out.
Not shared between workers and replicas: a count in the database would have every request of an application wait for
the one before, and the sum over N processes is a bound all the same.
"""

from __future__ import annotations

from math import ceil
from time import monotonic

from keyman.errors import RateLimited

BURST = 2.0
"""Seconds' worth of requests that may come at once."""


class RateLimit:
    """Lets through `rate` requests a second of each application, and at most BURST seconds' worth at once."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate * BURST)
        self._buckets: dict[int, tuple[float, float]] = {}  # what was left, and when; as many as there are applications

    def take(self, application_id: int) -> None:
        """Raises RateLimited for a request too many; it does not count."""
        moment = monotonic()
        left, since = self._buckets.get(application_id, (self._most, moment))
        left = min(self._most, left + (moment - since) * self._rate)
        if left < 1:
            wait = ceil((1 - left) / self._rate)
            raise RateLimited("This application asks for more keys than it may.", retry_after=wait)
        self._buckets[application_id] = (left - 1, moment)
