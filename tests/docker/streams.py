"""Streams through the stack's HAProxy and a gateway behind it, to a provider in the process of the test.

Each function here is one property. It asserts the order of what happens, not the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from tests.planes.gateway.provider import Incoming, Provider

PATH = "/openai/v1/chat/completions"
EVENT = b"data: %d\n\n"

PATIENCE = 60.0
"""Seconds for one step. The slowest is the end of a stream that goes on after SIGTERM, for 15 s in these tests."""


@dataclass(frozen=True)
class Scene:
    """Where the proxy is, where the gateway looks for the provider, and the headers of somebody with a key."""

    port: int
    headers: Mapping[str, str]
    provider_port: int
    provider_host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    provider_tls: ssl.SSLContext | None = None

    @asynccontextmanager
    async def provider(self) -> AsyncIterator[Provider]:
        provider = Provider()
        listener = await asyncio.start_server(
            provider.serve, self.provider_host, self.provider_port, limit=1 << 20, ssl=self.provider_tls
        )
        try:
            yield provider
        finally:
            listener.close()
            for task in list(provider.tasks):
                task.cancel()
            await asyncio.gather(*provider.tasks, return_exceptions=True)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        name = "localhost" if self.tls else None
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls, server_hostname=name)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()  # without waiting until the other side ends TLS

    @asynccontextmanager
    async def request(self, *fields: str) -> AsyncIterator[Request]:
        """Send the head of a request. Leave at the end."""
        async with self.connection() as (reader, writer):
            own = [f"{name}: {value}" for name, value in self.headers.items()]
            writer.write("\r\n".join([f"POST {PATH} HTTP/1.1", "host: localhost", *own, *fields, "", ""]).encode())
            yield Request(reader, writer)


class Cut(Exception):
    """The connection ended in the middle of an answer."""


@dataclass
class Request:
    """One request over a connection of its own."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def give(self, part: bytes) -> None:
        """Send one chunk of the body; an empty one ends it."""
        self.writer.write(b"%x\r\n%s\r\n" % (len(part), part))
        await self.writer.drain()

    async def begun(self) -> int:
        """Return the status, once the answer has begun."""
        async with asyncio.timeout(PATIENCE):
            head = await self.reader.readuntil(b"\r\n\r\n")
        assert b"\r\ntransfer-encoding: chunked\r\n" in head.lower(), head
        return int(head.split()[1])

    async def part(self) -> bytes:
        """Return the next part of the answer, empty at its end. Raises Cut."""
        async with asyncio.timeout(PATIENCE):
            try:
                size = int(await self.reader.readuntil(b"\n"), 16)
                return (await self.reader.readexactly(size + 2))[:-2]
            except (ConnectionError, asyncio.IncompleteReadError):
                raise Cut from None


class Steps:
    """A provider that sends an event when `event_reaches` is called, and ends its answer after `end`."""

    def __init__(self, provider: Provider) -> None:
        self.gone = asyncio.Event()
        self._wanted: asyncio.Queue[bytes] = asyncio.Queue()
        self._number = 0
        provider.handler = self

    async def event_reaches(self, request: Request) -> None:
        """Let the provider send an event, and return once it was read."""
        self._number += 1
        self._wanted.put_nowait(EVENT % self._number)
        assert await request.part() == EVENT % self._number

    def end(self) -> None:
        self._wanted.put_nowait(b"")

    async def __call__(self, incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.begin("content-type: text/event-stream", "connection: close")
        leaving = asyncio.create_task(incoming.closed())
        leaving.add_done_callback(lambda _: self.gone.set())
        try:
            while event := await self._wanted.get():
                await incoming.event(event)
            await incoming.event(b"")
        finally:
            leaving.cancel()
            await asyncio.wait({leaving})


EMPTY = ("content-length: 0",)


async def events_arrive_in_order(scene: Scene) -> None:
    """The provider sends an event only after the client has read the one before."""
    async with scene.provider() as provider, scene.request(*EMPTY) as request:
        steps = Steps(provider)
        assert await request.begun() == 200
        for _ in range(20):
            await steps.event_reaches(request)
        steps.end()
        assert await request.part() == b""


async def a_body_arrives_while_it_is_sent(scene: Scene) -> None:
    """The client sends a part of its body only after the provider has read the one before."""
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(incoming: Incoming) -> None:
        while part := await incoming.chunk():
            arrived.put_nowait(part)
        await incoming.begin("connection: close")
        await incoming.event(b"all of it")

    async with scene.provider() as provider, scene.request("transfer-encoding: chunked") as request:
        provider.handler = handler
        for number in range(10):
            await request.give(b"part %d" % number)
            async with asyncio.timeout(PATIENCE):
                assert await arrived.get() == b"part %d" % number
        await request.give(b"")
        assert await request.begun() == 200
        assert await request.part() == b"all of it"


async def a_client_that_leaves_closes_the_connection_to_the_provider(scene: Scene) -> None:
    """Nothing is sent after that, so nobody notices because of a failed write."""
    async with scene.provider() as provider:
        steps = Steps(provider)
        async with scene.request(*EMPTY) as request:
            assert await request.begun() == 200
            await steps.event_reaches(request)
        async with asyncio.timeout(PATIENCE):
            await steps.gone.wait()


async def a_client_that_leaves_before_the_answer_closes_it_too(scene: Scene) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        asked.set()
        await incoming.closed()
        gone.set()

    async with scene.provider() as provider:
        provider.handler = handler
        async with asyncio.timeout(PATIENCE):
            async with scene.request(*EMPTY):
                await asked.wait()
            await gone.wait()


async def a_revoked_caller_loses_its_stream(scene: Scene, revoke: Callable[[], object]) -> None:
    async with scene.provider() as provider, scene.request(*EMPTY) as request:
        steps = Steps(provider)
        assert await request.begun() == 200
        await steps.event_reaches(request)
        await asyncio.to_thread(revoke)
        await _is_cut(request)
        async with asyncio.timeout(PATIENCE):
            await steps.gone.wait()


async def a_gateway_that_stops_lets_streams_end(scene: Scene, stop: Callable[[], object]) -> None:
    """After SIGTERM, one stream goes on and ends by itself. Another one goes on for longer than it may, and is cut."""
    async with AsyncExitStack() as opened:
        provider = await opened.enter_async_context(scene.provider())
        short, first = await _begun(opened, scene, provider)
        long, second = await _begun(opened, scene, provider)
        await asyncio.to_thread(stop)
        await ready(scene, 503)  # it goes on answering this for KEYMAN_DRAIN seconds
        await short.event_reaches(first)
        await long.event_reaches(second)
        short.end()
        assert await first.part() == b""
        await _is_cut(second)
        async with asyncio.timeout(PATIENCE):
            await long.gone.wait()


async def _begun(opened: AsyncExitStack, scene: Scene, provider: Provider) -> tuple[Steps, Request]:
    """Return what the provider does for a request, and the request, whose answer has begun."""
    steps = Steps(provider)
    request = await opened.enter_async_context(scene.request(*EMPTY))
    assert await request.begun() == 200
    return steps, request


async def ready(scene: Scene, status: int = 200) -> None:
    """Return when the gateway says that it is ready; with the status 503, when it says that it is not."""
    async with asyncio.timeout(2 * PATIENCE):
        while True:
            with contextlib.suppress(OSError):  # also what takes too long, from a process that is not there yet
                async with asyncio.timeout(5), scene.connection() as (reader, writer):
                    writer.write(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                    if (await reader.readline()).split()[1:2] == [str(status).encode()]:
                        return
            await asyncio.sleep(0.1)


async def _is_cut(request: Request) -> None:
    try:
        part = await request.part()
    except Cut:
        return
    raise AssertionError(f"the answer went on with {part!r}")
