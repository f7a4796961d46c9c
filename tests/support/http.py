"""HTTP for tests: clients of a plane, ports, a server that fails by script, proxies in front of a real server.

FaultyServer speaks just enough HTTP/1.1 to fail in ways that a healthy Vault cannot show. RecordingProxy passes calls
on to the real Vault and records them. Test with the real server what the real server can do.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from typing import Any, Literal

import aiohttp
import httpx
from aiohttp import web
from yarl import URL

from tests.support.planes import PASSWORD
from tests.support.waiting import PATIENCE

NO_TLS = httpx.create_ssl_context(verify=False)
"""For clients of an `http://` address, as `verify=NO_TLS`. Without it every client reads the machine's certificate
authorities, which takes 18 ms of a processor.
"""


def free_port() -> int:
    """A free port on loopback. The next two are free, too, for the other planes of `keyman dev`.

    It is below the ports that the kernel gives to outgoing connections (32768 and up, ip(7)), because one of these
    could take it before it is used, and below those of an embedded Vault. Each process of a run has its own ports, and
    uses each of them once before it begins again.
    """
    return next(port for port in _ports() if all(is_free(port + number) for number in range(3)))


@cache
def _ports() -> Iterator[int]:
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
    own = range(12_000 + 3 * process, 21_990, 12)
    return itertools.cycle(random.sample(own, len(own)))


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def sign_up(url: str, email: str) -> httpx.Client:
    """A browser with the session of a new account."""
    client = client_of(url)
    answer = client.post("/api/auth/signup", json={"email": email, "password": PASSWORD})
    assert answer.status_code == 201, answer.text
    return client


def script(url: str, token: str) -> httpx.Client:
    """A client with an access token."""
    return client_of(url, Authorization=f"Bearer {token}")


def client_of(url: str, **headers: str) -> httpx.Client:
    # A connection a request: a test ends without connections that somebody would have to close.
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=url, timeout=PATIENCE, limits=limits, headers=headers, verify=NO_TLS)


@asynccontextmanager
async def slow_proxy(port: int, seconds: float) -> AsyncIterator[int]:
    """A port on loopback in front of another one. Every answer through it comes `seconds` late."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await asyncio.sleep(delay)
                writer.write(data)
                await writer.drain()
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        with suppress(asyncio.CancelledError):  # the block ends: so does this
            await asyncio.gather(carry(reader, back, 0), carry(there, writer, seconds))
        back.close()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@dataclass(frozen=True)
class Request:
    """What a client sent; header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What a client gets. `raw` is sent as it is, instead of the other fields."""

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


class FaultyServer:
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
        """Send a reply. Return True if the connection stays open."""
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
    """Let asyncio finish accepting a connection or closing an aborted one, which takes several steps.

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
async def faulty_server(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[FaultyServer]:
    """Run a FaultyServer on loopback."""
    server = FaultyServer(script)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    server.address = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield server
    finally:
        await turns_of_the_loop()
        listener.close()
        await server.end()


@dataclass
class Call:
    """One request as it arrived, and the status of its answer once there is one."""

    method: str
    path: str
    token: str | None
    namespace: str | None
    body: bytes
    status: int | None = None
    request_id: str | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Rewrite = Callable[[Call, int, bytes], tuple[int, bytes]]


class RecordingProxy:
    """Only `recording_proxy` makes one. Name a path by any part of it."""

    def __init__(self, target: str, session: aiohttp.ClientSession) -> None:
        self.address = ""
        self.calls: list[Call] = []
        self._target = target
        self._session = session
        self._gates: dict[str, asyncio.Event] = {}
        self._rewrites: dict[str, Rewrite] = {}
        self._delays: dict[str, float] = {}
        self._news = asyncio.Condition()
        self._transports: set[asyncio.BaseTransport] = set()

    def to(self, part: str) -> list[Call]:
        """The calls so far to paths that hold `part`."""
        return [call for call in self.calls if part in call.path]

    async def arrived(self, part: str, count: int) -> None:
        """Return when at least `count` calls to `part` have come."""
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(lambda: len(self.to(part)) >= count)

    async def answered(self, part: str, count: int) -> None:
        """Return when at least `count` calls to `part` have got their answer."""
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(lambda: sum(call.status is not None for call in self.to(part)) >= count)

    @contextmanager
    def holding(self, part: str) -> Iterator[None]:
        """Calls to `part` that come inside the block reach Vault when it ends."""
        gate = self._gates[part] = asyncio.Event()
        try:
            yield
        finally:
            del self._gates[part]
            gate.set()

    @contextmanager
    def slowing(self, part: str, seconds: float) -> Iterator[None]:
        """Each call to `part` takes that much longer inside the block."""
        self._delays[part] = seconds
        try:
            yield
        finally:
            del self._delays[part]

    @contextmanager
    def changing(self, part: str, rewrite: Rewrite) -> Iterator[None]:
        """Answers of calls to `part` pass through `rewrite` inside the block."""
        self._rewrites[part] = rewrite
        try:
            yield
        finally:
            del self._rewrites[part]

    async def handle(self, request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        self._transports.add(request.transport)
        body = await request.read()
        headers = request.headers
        call = Call(request.method, request.path, headers.get("X-Vault-Token"), headers.get("X-Vault-Namespace"), body)
        call.request_id = headers.get("X-Request-ID")
        self.calls.append(call)
        await self._tell()
        for part, gate in list(self._gates.items()):
            if part in call.path:
                await gate.wait()
        await asyncio.sleep(sum(delay for part, delay in self._delays.items() if part in call.path))
        passed_on = {name: value for name, value in headers.items() if name.startswith("X-Vault-")}
        url = URL(self._target + request.raw_path, encoded=True)
        try:
            async with self._session.request(request.method, url, data=body, headers=passed_on) as answer:
                status, content = answer.status, await answer.read()
                kept = {name: answer.headers[name] for name in ("Retry-After",) if name in answer.headers}
        except aiohttp.ClientError:
            if request.transport is not None:
                request.transport.abort()  # Vault is gone: its client sees just that
            raise
        for part, rewrite in list(self._rewrites.items()):
            if part in call.path:
                status, content = rewrite(call, status, content)
        call.status = status
        await self._tell()
        return web.Response(status=status, body=content, headers=kept, content_type="application/json")

    async def end(self) -> None:
        """Close what clients that gave up have left open."""
        for transport in self._transports:
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()
        await turns_of_the_loop()

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


@asynccontextmanager
async def recording_proxy(target: str) -> AsyncIterator[RecordingProxy]:
    """Run a RecordingProxy on loopback to the Vault at `target`."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        running = RecordingProxy(target, session)
        runner = web.ServerRunner(web.Server(running.handle, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        running.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield running
        finally:
            await turns_of_the_loop()
            await runner.cleanup()
            await running.end()
