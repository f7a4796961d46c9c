"""A server that fails in the ways which a healthy Vault cannot be made to show: by script, one reply a request.

It speaks just enough HTTP/1.1. Whatever can be had from the real server is tested with the real one.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal


@dataclass(frozen=True)
class Request:
    """What a client sent; header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What it gets. `raw` goes out as it is, in the place of everything else."""

    status: int = 200
    body: bytes = b'{"data": {}}'
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    delay: float = 0.0
    then: Literal["keep", "close", "reset", "stall", "drip"] = "keep"

    def head_and_body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        headers = {"Content-Type": "application/json", "Content-Length": str(len(self.body)), **self.headers}
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + (b"" if self.status == 204 else self.body)


SILENCE = Reply(raw=b"", then="stall")
HANG_UP = Reply(raw=b"", then="close")
RESET = Reply(raw=b"", then="reset")


def answer(content: object, status: int = 200) -> Reply:
    """A JSON answer."""
    return Reply(status, json.dumps(content).encode())


Script = Sequence[Reply] | Callable[[Request], Reply]


class FakeServer:
    """Replies by script: the last of a sequence is repeated for ever."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._served = 0
        self._handlers: set[asyncio.Task[None]] = set()
        self.requests: list[Request] = []
        self.arrivals: list[float] = []
        self._ended = False
        self.connections = 0
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self.connections += 1
        try:
            while not self._ended and (request := await _read(reader)) is not None:
                self.requests.append(request)
                self.arrivals.append(asyncio.get_running_loop().time())
                if not await self._reply(self._choose(request), writer):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client is gone, or the test is over
        finally:
            writer.transport.abort()
            self._handlers.discard(task)

    def _choose(self, request: Request) -> Reply:
        if callable(self._script):
            return self._script(request)
        reply = self._script[min(self._served, len(self._script) - 1)]
        self._served += 1
        return reply

    async def _reply(self, reply: Reply, writer: asyncio.StreamWriter) -> bool:
        """True when the connection goes on."""
        await asyncio.sleep(reply.delay)
        writer.write(reply.head_and_body())
        await writer.drain()
        if reply.then == "stall":
            await asyncio.Event().wait()
        while reply.then == "drip":
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)
        if reply.then == "close":
            writer.close()
            await writer.wait_closed()
        return reply.then == "keep"

    async def end(self) -> None:
        self._ended = True
        await turns_of_the_loop()
        for handler in list(self._handlers):
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await turns_of_the_loop()


async def turns_of_the_loop() -> None:
    """Let asyncio finish what it does in steps: accept a connection, close an aborted one.

    A listener that is closed while it accepts leaks the connection (python/cpython#109564).
    """
    for _ in range(8):
        await asyncio.sleep(0)


async def _read(reader: asyncio.StreamReader) -> Request | None:
    head = await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b""
    if not head:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}
    return Request(method, target, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


@asynccontextmanager
async def fake(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeServer]:
    """Run a FakeServer on loopback."""
    server = FakeServer(script)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    server.address = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield server
    finally:
        await turns_of_the_loop()
        listener.close()
        await server.end()
