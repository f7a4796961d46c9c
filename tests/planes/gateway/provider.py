"""A provider on loopback whose answers a test writes by hand, byte by byte if need be."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from tests.support.http import turns_of_the_loop

GOOD = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{"ok":true}'


@dataclass
class Incoming:
    """One request, as far as it has arrived: its head. The body is still to be read."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    reader: asyncio.StreamReader = field(repr=False)
    writer: asyncio.StreamWriter = field(repr=False)
    body: bytes = b""

    def all_of(self, name: str) -> list[str]:
        return [value for given, value in self.fields if given.lower() == name]

    async def chunk(self) -> bytes:
        """The next chunk of a body in chunks, empty at the end."""
        size = int(await self.reader.readline(), 16)
        found = await self.reader.readexactly(size + 2)
        return found[:-2]

    async def rest(self) -> bytes:
        """The whole body."""
        if "chunked" in self.all_of("transfer-encoding"):
            while part := await self.chunk():
                self.body += part
        else:
            self.body = await self.reader.readexactly(int((self.all_of("content-length") or ["0"])[0]))
        return self.body

    async def send(self, content: bytes) -> None:
        self.writer.write(content)
        await self.writer.drain()

    async def begin(self, *fields: str) -> None:
        """Begin an answer in chunks."""
        await self.send("\r\n".join(["HTTP/1.1 200 OK", "transfer-encoding: chunked", *fields, "", ""]).encode())

    async def event(self, content: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(content), content))

    async def closed(self) -> None:
        """Return when the other side has closed or reset the connection."""
        with suppress(OSError):
            while await self.reader.read(65536):
                pass

    def takes_nothing(self) -> None:
        """Read nothing more of what arrives."""
        transport = self.writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()

    async def reset(self) -> None:
        """Return when the connection has ended, while nothing of what arrives is read."""
        connection = self.writer.get_extra_info("socket")
        while connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\1":
            await asyncio.sleep(0.05)


Handler = Callable[[Incoming], Awaitable[None]]


async def good(incoming: Incoming) -> None:
    await incoming.rest()
    await incoming.send(GOOD)


@dataclass
class Provider:
    """Answers each request with `handler`, and keeps all requests."""

    address: str = ""
    handler: Handler = good
    requests: list[Incoming] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            while head := await _head(reader):
                first, *lines = head.decode("latin-1").split("\r\n")[:-2]
                method, target, _ = first.split(" ")
                pairs = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
                incoming = Incoming(method, target, pairs, reader, writer)
                self.requests.append(incoming)
                await self.handler(incoming)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, ValueError):
            pass  # the gateway has left, or the test is over
        finally:
            writer.transport.abort()
            self.tasks.discard(task)

    def answers(self, content: bytes) -> None:
        """Answer with these bytes from now on, and close the connection."""

        async def handler(incoming: Incoming) -> None:
            await incoming.rest()
            await incoming.send(content)
            incoming.writer.close()

        self.handler = handler


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


@asynccontextmanager
async def provider_running(tls: ssl.SSLContext | None = None) -> AsyncIterator[Provider]:
    provider = Provider()
    listener = await asyncio.start_server(provider.serve, "127.0.0.1", 0, limit=1 << 20, ssl=tls)
    provider.address = f"http{'' if tls is None else 's'}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield provider
    finally:
        await turns_of_the_loop()
        listener.close()
        for task in list(provider.tasks):
            task.cancel()
        await asyncio.gather(*provider.tasks, return_exceptions=True)
        await turns_of_the_loop()
