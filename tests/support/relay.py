"""A TCP relay whose target can be changed: new connections lead to the new target, open ones stay where they are.

So does the address of a database that fails over: a DNS name, a virtual address, or a proxy. A relay can also end a
connection at a COMMIT of PostgreSQL, so that the client gets no answer to it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum

_CHUNK = 64 * 1024
_BEGIN, _COMMIT = b"BEGIN ISOLATION", b"COMMIT\0"
"""In simple queries of PostgreSQL's protocol, whose text ends with a null."""


class Cut(Enum):
    """Where a relay ends a connection at a COMMIT."""

    BEFORE = "before the server gets it"
    AFTER = "after the server has answered"
    FOR_GOOD = "after the server has answered, and no other connection is open or opened from then on"


class _Over(OSError):
    """The relay ends this connection."""


class Relay:
    """A relay on `port` of loopback, to `target`, another port of it."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.opened = 0
        self.was_cut = asyncio.Event()
        self._cut: Cut | None = None
        self._least = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self, where: Cut, *, least: int) -> None:
        """End a connection at the first COMMIT of a transaction whose statements are so many bytes."""
        self._cut, self._least = where, least

    def mend(self) -> None:
        """Accept connections again."""
        self._cut = None

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        is_withheld = asyncio.Event()
        try:
            if self._cut is Cut.FOR_GOOD and self.was_cut.is_set():
                raise _Over
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._ask(reader, back, is_withheld))
                    group.create_task(self._answer(there, writer, is_withheld))
            finally:
                back.close()
        except* OSError:
            pass  # the target is away, or the connection was cut: the client's connection ends
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_withheld: asyncio.Event
    ) -> None:
        size = 0
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(_CHUNK):
                size = len(chunk) + (0 if _BEGIN in chunk else size)
                if self._cut is not None and not self.was_cut.is_set() and _COMMIT in chunk and size >= self._least:
                    self.was_cut.set()
                    if self._cut is Cut.BEFORE:
                        raise _Over
                    is_withheld.set()
                writer.write(chunk)
                await writer.drain()
        _end(writer)

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_withheld: asyncio.Event
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(_CHUNK):
                if is_withheld.is_set():
                    if self._cut is Cut.FOR_GOOD:
                        self._end_others()
                    raise _Over
                writer.write(chunk)
                await writer.drain()
        _end(writer)

    def _end_others(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        """End every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def relay_to(target: int) -> AsyncIterator[Relay]:
    relay = Relay(target)
    server = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        await relay.close()


def _end(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()
