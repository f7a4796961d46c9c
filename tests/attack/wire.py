"""Sends raw requests over a few connections, and measures how long each takes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress

from tests.attack.generator import Attempt
from tests.attack.report import HANG, Report

CONNECTIONS = 12
"""Connections at the same time. That is enough to keep a plane busy, and too few for a queue. There are other tests of
floods.
"""

PATIENT_CONNECTIONS = 16
"""Further connections, for requests that do not end."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_WITHOUT_BODY = (b"204", b"304")


async def attack(port: int, draw: Callable[[], Attempt], count: int, seconds: float) -> Report:
    """Send `count` attempts, or as many as `seconds` allow."""
    loop = asyncio.get_running_loop()
    started, report = loop.time(), Report()
    left = iter(range(count))
    room, waiting = asyncio.Semaphore(PATIENT_CONNECTIONS), set[asyncio.Task[None]]()

    async def send(connection: Connection, attempt: Attempt) -> None:
        begun = loop.time()
        answer = await connection.exchange(attempt)
        report.note(attempt, answer, loop.time() - begun)

    async def send_patiently(attempt: Attempt) -> None:
        connection = Connection(port)
        try:
            await send(connection, attempt)
        finally:
            connection.close()
            room.release()

    async def work() -> None:
        connection = Connection(port)
        for _ in left:
            if loop.time() - started > seconds:
                break
            attempt = draw()
            if attempt.is_endless:
                await room.acquire()
                waiting.add(asyncio.create_task(send_patiently(attempt)))
            else:
                await send(connection, attempt)
        connection.close()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    await asyncio.gather(*waiting)
    report.seconds = loop.time() - started
    return report


class Connection:
    """A connection, which is opened when it is needed, and kept after a whole request that got a whole answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._link: _Link | None = None

    def close(self) -> None:
        if self._link is not None:
            self._link.abort()
        self._link = None

    async def exchange(self, attempt: Attempt) -> bytes | None:
        """Return what came back: empty where the server closes the connection, and None where it does nothing.

        After a request that is not one whole request, that is everything until the server closes the connection.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(HANG):
                was_open = self._link is not None
                answer = await self._exchange(attempt)
                if not answer and was_open:  # the server had closed the idle connection
                    answer = await self._exchange(attempt)
                return answer
        self.close()
        return None

    async def _exchange(self, attempt: Attempt) -> bytes:
        try:
            if self._link is None or self._link.is_closed:
                _, self._link = await asyncio.get_running_loop().create_connection(_Link, "127.0.0.1", self._port)
            answer, is_kept = await self._link.ask(attempt)
        except OSError:
            answer, is_kept = b"", False
        if not is_kept:
            self.close()
        return answer


class _Link(asyncio.Protocol):
    """Collects an answer. `asyncio.StreamReader` would take three times as long."""

    def __init__(self) -> None:
        self.is_closed = False
        self._received = bytearray()
        self._needed: int | None = None  # bytes of the whole answer, once its headers are here
        self._attempt: Attempt | None = None
        self._done: asyncio.Future[bool] | None = None
        self._transport: asyncio.Transport

    async def ask(self, attempt: Attempt) -> tuple[bytes, bool]:
        """Send a request. Return what came back, and whether the connection can be used again."""
        self._attempt, self._needed = attempt, None
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(attempt.raw)
        if not attempt.is_whole and not attempt.is_endless:
            self._transport.write_eof()
        is_kept = await self._done
        answer = bytes(self._received)
        self._received.clear()
        return answer, is_kept

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._attempt is None or not self._attempt.is_whole:
            return
        if self._needed is None:
            self._needed = _length(self._received, is_head=self._attempt.is_head)
        if self._needed is not None and len(self._received) >= self._needed:
            # Anything after the answer would be the answer to a request that nobody sent. The report looks for it.
            head = bytes(self._received[: self._received.find(b"\r\n\r\n")]).lower()
            self._end(is_kept=b"\r\nconnection: close" not in head and len(self._received) == self._needed)

    def eof_received(self) -> None:
        self._end(is_kept=False)

    def connection_lost(self, fault: Exception | None) -> None:
        self.is_closed = True
        self._end(is_kept=False)

    def _end(self, *, is_kept: bool) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(is_kept)


def _length(received: bytearray, *, is_head: bool) -> int | None:
    """Return the bytes of the answer at the beginning of `received`, or None if that is not known yet.

    An interim answer (`100 Continue`) is removed.
    """
    while (end := received.find(b"\r\n\r\n")) >= 0:
        if received[9:10] == b"1":
            del received[: end + 4]
            continue
        if is_head or received[9:12] in _WITHOUT_BODY:
            return end + 4
        length = _LENGTH.search(received, 0, end)
        return None if length is None else end + 4 + int(length[1])
    return None
