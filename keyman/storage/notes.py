"""Notes: changes that nobody waits for, such as the time of a last use. One that cannot be made at once is skipped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.batching import Batcher
from keyman.errors import DatabaseUnavailable, RefusedStatement
from keyman.logs import log
from keyman.storage.statements import Command

NOTE_PATIENCE = 0.05
"""Seconds that a note waits for a lock before it is skipped: too short to notice."""

NOTE_PAUSE = 1.0
"""Seconds without another note after a skipped one, so that only one of many requests waits for a lock."""

MAX_NOTES = 128
"""The most notes in one transaction."""


class _Note(NamedTuple):
    about: int
    parameters: Mapping[str, object]


class Notes:
    """The notes of one database. `write` is its `Database.write`. A note is made `by` an authority, as it says."""

    def __init__(self, write: Callable[..., AbstractAsyncContextManager[AsyncConnection]]) -> None:
        self._write = write
        self._next = 0.0  # in seconds of the monotonic clock
        self._under_way = set[object]()
        self._batchers: dict[tuple[object, Command], Batcher[_Note, None]] = {}

    async def make(self, by: object, command: Command, parameters: Mapping[str, object]) -> None:
        """Make a note in its own transaction, unless one on the same authority is under way: they would wait for it."""
        if by in self._under_way:
            return
        self._under_way.add(by)
        try:
            await self._make(by, command, [parameters])
        finally:
            self._under_way.discard(by)

    async def make_together(self, by: object, command: Command, about: int, parameters: Mapping[str, object]) -> None:
        """Make a note in a transaction that the notes share which wait at the same moment, one for each `about`."""
        with contextlib.suppress(DatabaseUnavailable):  # keyman stops
            await self._batcher(by, command).submit(_Note(about, parameters))

    async def close(self) -> None:
        """Wait for the notes that are under way."""
        for batcher in self._batchers.values():
            await batcher.close()

    def _batcher(self, by: object, command: Command) -> Batcher[_Note, None]:
        async def run(notes: Sequence[_Note]) -> Sequence[None]:
            by_id = {note.about: note.parameters for note in notes}
            await self._make(by, command, [by_id[about] for about in sorted(by_id)])  # in order: no deadlock
            return [None for _ in notes]

        found = self._batchers.get((by, command))
        if found is None:
            found = Batcher(run, lambda _: DatabaseUnavailable(), max_batch=MAX_NOTES, max_batches=1)
            self._batchers[by, command] = found
        return found

    async def _make(self, by: object, command: Command, rows: Sequence[Mapping[str, object]]) -> None:
        if monotonic() < self._next:
            return
        try:
            # `patience` limits the wait for a lock, of which there can be two. The timeout around it limits any other
            # wait, as for a connection. It costs the connection, so the waits for locks end before.
            async with asyncio.timeout(4 * NOTE_PATIENCE), self._write(by, patience=NOTE_PATIENCE) as connection:
                await command.execute_many(connection, rows)
        except (DatabaseUnavailable, RefusedStatement, TimeoutError) as fault:
            log.info("note skipped", fault=getattr(fault, "kind", type(fault).__name__))
            self._next = monotonic() + NOTE_PAUSE
