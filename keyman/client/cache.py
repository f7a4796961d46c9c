"""A cache of values in the memory of an application. It is off by default, and limited in time and in number.

The cost: an application can use a key for up to the TTL after its owner paused, replaced or deleted it, and the owner's
audit log shows one use where there were many. The limit: the cache never returns a value after its expiry, after the
server refused the token, or after an answer that said that the key is gone.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from time import monotonic
from typing import NamedTuple

from keyman.client.errors import ClientError
from keyman.client.shapes import Resolved

MAX_TTL = 300.0
"""Seconds. An owner who pauses a leaked key waits at most this long until every application stops using it."""

MAX_ENTRIES = 100_000


class Wanted(NamedTuple):
    """The key that a call asks for: one key by its id, or the one that applications get of a user for a service.

    The user is named by its id, or by a subject of an issuer. Without an issuer, it is the application's default one.
    """

    key_id: int | None
    user_id: int | None
    service: str | None
    subject: str | None = None
    issuer: str | None = None

    def is_answered_by(self, resolved: Resolved) -> bool:
        if self.key_id is not None:
            return resolved.key_id == self.key_id
        if self.subject is not None:
            return (resolved.subject, resolved.service) == (self.subject, self.service)
        return (resolved.user_id, resolved.service) == (self.user_id, self.service)


class Epoch(NamedTuple):
    """When a value was requested: the moment, and how often the cache had been cleared by then."""

    moment: float
    forgotten: int


class _Entry(NamedTuple):
    resolved: Resolved
    until: float


class Cache:
    """Evicts the least recently used entry first. It is not thread-safe: callers with threads need a lock around it."""

    def __init__(self, ttl: float, entries: int) -> None:
        if not 0 < ttl <= MAX_TTL:
            raise ValueError(f"cache_ttl must be from 0 to {MAX_TTL:g} seconds; 0 turns the cache off")
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
        """Store a value. Its TTL runs from the request, because the answer may miss what happened to the key since.

        A value that was requested before the cache was cleared is not stored.
        """
        if asked.forgotten != self._forgotten or _has_expired(resolved):
            return
        self._entries[wanted] = _Entry(resolved, asked.moment + self._ttl)
        self._entries.move_to_end(wanted)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)

    def learn(self, wanted: Wanted, refused: ClientError) -> None:
        """Drop what a refusal makes invalid.

        A 401 drops everything, because the token may have been revoked. A 404 or a 409 drops this key.
        """
        if refused.status == 401:
            self.forget_all()
        elif refused.status in (404, 409):
            self.forget(wanted)

    def forget(self, wanted: Wanted) -> None:
        """Drop the entry, and every other entry that holds the same key."""
        held = self._entries.pop(wanted, None)
        key_id = held.resolved.key_id if held is not None else wanted.key_id
        for other in [other for other, entry in self._entries.items() if entry.resolved.key_id == key_id]:
            del self._entries[other]

    def forget_all(self) -> None:
        self._entries.clear()
        self._forgotten += 1


def _has_expired(resolved: Resolved) -> bool:
    """Return whether the key has expired by wall-clock time. The monotonic clock stops while a machine sleeps."""
    return resolved.expires_at is not None and resolved.expires_at <= datetime.now(UTC)
