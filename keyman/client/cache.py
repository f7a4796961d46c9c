"""Values kept for a while in the memory of an application: off unless asked for, and bounded in time and number.

What it costs: a key that its owner pauses, replaces or deletes lives on here for as long as the TTL, and the owner's
trail shows one use where there were many. What it must not cost: a value that outlives its expiry, the token it came
by, or an answer that said it is gone.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from time import monotonic
from typing import NamedTuple

from keyman.client.errors import ClientError
from keyman.client.shapes import Resolved

MAX_TTL = 300.0
"""Seconds: nobody who pauses a leaked key waits longer than this for each application to stop."""

MAX_ENTRIES = 100_000


class Wanted(NamedTuple):
    """Which key is asked for: one key, or the newest active one of a user for a service."""

    key_id: int | None
    user_id: int | None
    service: str | None

    def is_answered_by(self, resolved: Resolved) -> bool:
        if self.key_id is not None:
            return resolved.key_id == self.key_id
        return (resolved.user_id, resolved.service) == (self.user_id, self.service)


class Epoch(NamedTuple):
    """When a value was asked for: the moment, and how often everything had been forgotten by then."""

    moment: float
    forgotten: int


class _Entry(NamedTuple):
    resolved: Resolved
    until: float


class Cache:
    """Least recently used first out. Not for several threads at once: whoever has some holds a lock around it."""

    def __init__(self, ttl: float, entries: int) -> None:
        if not 0 < ttl <= MAX_TTL:
            raise ValueError(f"cache_ttl must be at most {MAX_TTL:g} seconds; 0 is none")
        if not 0 < entries <= MAX_ENTRIES:
            raise ValueError(f"cache_entries must be from 1 to {MAX_ENTRIES}")
        self._ttl = ttl
        self._most = entries
        self._entries: OrderedDict[Wanted, _Entry] = OrderedDict()
        self._forgotten = 0

    def __repr__(self) -> str:
        return f"<Cache of {len(self._entries)}>"

    def __len__(self) -> int:
        return len(self._entries)

    def epoch(self) -> Epoch:
        return Epoch(monotonic(), self._forgotten)

    def get(self, wanted: Wanted) -> Resolved | None:
        entry = self._entries.get(wanted)
        if entry is None:
            return None
        if monotonic() >= entry.until or _has_expired(entry.resolved):
            del self._entries[wanted]
            return None
        self._entries.move_to_end(wanted)
        return entry.resolved

    def keep(self, wanted: Wanted, resolved: Resolved, asked: Epoch) -> None:
        """Its time runs from when it was asked for: what happened to the key since then may not be in the answer.
        What was asked for before everything was forgotten is not kept.
        """
        if asked.forgotten != self._forgotten or _has_expired(resolved):
            return
        self._entries[wanted] = _Entry(resolved, asked.moment + self._ttl)
        self._entries.move_to_end(wanted)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)

    def learn(self, wanted: Wanted, refused: ClientError) -> None:
        """After a 401 nothing is kept: the token may have been taken away. After a 404 or a 409 that key is not."""
        if refused.status == 401:
            self.forget_all()
        elif refused.status in (404, 409):
            self.forget(wanted)

    def forget(self, wanted: Wanted) -> None:
        """The entry, and others that hold the same key."""
        held = self._entries.pop(wanted, None)
        key_id = held.resolved.key_id if held is not None else wanted.key_id
        for other in [other for other, entry in self._entries.items() if entry.resolved.key_id == key_id]:
            del self._entries[other]

    def forget_all(self) -> None:
        self._entries.clear()
        self._forgotten += 1


def _has_expired(resolved: Resolved) -> bool:
    """By the clock on the wall: the monotonic one stands still while a machine sleeps."""
    return resolved.expires_at is not None and resolved.expires_at <= datetime.now(UTC)
