"""The gateway as `keyman serve` runs it, with clients that are connections: what they notice when an answer ends."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import make_url

from keyman import migrations
from keyman.http.connections import AT_ONCE
from keyman.http.worker import READ_TIMEOUT
from keyman.identity import applications
from keyman.processes import raise_file_limit
from keyman.values import ApplicationName
from tests.planes.gateway.provider import Incoming, good
from tests.planes.gateway.scene import CHAT, VALUE, Scene, scene_at
from tests.planes.gateway.talk import PATIENCE
from tests.support.cli import Service, serve, variables
from tests.support.planes import Vault

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

EVENT = b"data: {}\n\n"
CHUNK = b"A\r\ndata: {}\n\n\r\n"
END = b"0\r\n\r\n"

MEGABYTE = 1024 * 1024


@pytest.fixture
async def own_gateway(tmp_path: Path, provisioned: Vault, quick_passwords: PasswordHasher) -> AsyncIterator[Scene]:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    await migrations.upgrade(url)
    async with scene_at(url, provisioned, quick_passwords, tmp_path) as made:
        yield made


@contextmanager
def served(scene: Scene, vault: Vault, directory: Path, **more: str) -> Iterator[Service]:
    """The gateway of the scene, as a process of its own."""
    url = make_url(f"sqlite+aiosqlite:///{directory}/keyman.db")
    env = {**variables(vault.gateway, url), "KEYMAN_SERVICES_FILE": str(scene.services), **more}
    with serve(env, directory / "gateway", "--plane", "gateway") as service:
        yield service


class Client:
    """A connection to the gateway, with one request on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def head(self) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE)

    async def exactly(self, count: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), PATIENCE)

    async def rest(self) -> bytes:
        """What comes until the gateway closes the connection."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE)


@asynccontextmanager
async def client_of(service: Service, scene: Scene, limit: int = 65536) -> AsyncIterator[Client]:
    port = int(service.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    fields = "".join(f"{name}: {value}\r\n" for name, value in scene.headers.items())
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n{fields}\r\n{{}}".encode())
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


class Steps:
    """A provider that sends an event each time that `go` is released, and ends the answer once `is_last` is set."""

    def __init__(self, scene: Scene) -> None:
        self.go, self.gone, self.is_last = asyncio.Semaphore(0), asyncio.Event(), False
        scene.provider.handler = self

    async def __call__(self, incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.begin("content-type: text/event-stream")
        watching = asyncio.create_task(incoming.closed())
        watching.add_done_callback(lambda _: self.gone.set())
        try:
            while not self.is_last:
                await self.go.acquire()
                await incoming.event(EVENT)
            await incoming.send(END)
        finally:
            watching.cancel()
            await asyncio.wait({watching})  # only one reads at a time


async def test_a_connection_is_kept_after_a_streamed_answer_which_has_its_end(
    own_gateway: Scene, provisioned: Vault, tmp_path: Path
) -> None:
    """300 times, because the end was missing once in 200, and the connection was closed after 2 of 5."""

    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.begin("content-type: text/event-stream")
        await incoming.event(EVENT)
        await incoming.send(END)

    own_gateway.provider.handler = handler
    with served(own_gateway, provisioned, tmp_path, KEYMAN_GATEWAY_RATE="100000") as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(service.url.rpartition(":")[2]))
        client = Client(reader, writer)
        fields = "".join(f"{name}: {value}\r\n" for name, value in own_gateway.headers.items())
        for _ in range(300):
            writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n{fields}\r\n{{}}".encode())
            head = await client.head()
            assert b" 200 " in head
            assert b"\r\nconnection:" not in head.lower()
            assert await asyncio.wait_for(reader.readuntil(END), PATIENCE) == CHUNK + END
        writer.transport.abort()


async def test_a_client_that_leaves_closes_the_connection_to_the_provider(
    own_gateway: Scene, provisioned: Vault, tmp_path: Path
) -> None:
    steps = Steps(own_gateway)
    with served(own_gateway, provisioned, tmp_path) as service:
        async with client_of(service, own_gateway) as client:
            assert b" 200 " in await client.head()
            steps.go.release()
            assert await client.exactly(len(CHUNK)) == CHUNK
        await asyncio.wait_for(steps.gone.wait(), PATIENCE)


async def test_a_revoked_caller_notices_that_its_answer_is_cut_and_the_log_says_why(
    own_gateway: Scene, provisioned: Vault, tmp_path: Path
) -> None:
    steps = Steps(own_gateway)
    with served(own_gateway, provisioned, tmp_path) as service:
        async with client_of(service, own_gateway) as client:
            assert b" 200 " in await client.head()
            steps.go.release()
            assert await client.exactly(len(CHUNK)) == CHUNK
            await applications.revoke(
                own_gateway.pair.management.database, ApplicationName(own_gateway.application.name)
            )
            assert END not in await client.rest()
        await asyncio.wait_for(steps.gone.wait(), PATIENCE)
        assert _line_of_the_request(service) == (401, "unauthenticated")


async def test_answers_go_on_after_sigterm_and_are_cut_once_the_time_is_over(
    own_gateway: Scene, provisioned: Vault, tmp_path: Path
) -> None:
    steps = Steps(own_gateway)
    with served(own_gateway, provisioned, tmp_path, KEYMAN_GATEWAY_DRAIN="3") as service:
        async with client_of(service, own_gateway) as client:
            assert b" 200 " in await client.head()
            service.live.send(signal.SIGTERM)
            for _ in range(3):
                steps.go.release()
                assert await client.exactly(len(CHUNK)) == CHUNK
            assert await client.rest() == b""
        await asyncio.wait_for(steps.gone.wait(), PATIENCE)
        finished = await asyncio.to_thread(service.live.wait)
    assert finished.code == 0
    assert _line_of_the_request(service) == (503, "overloaded")


async def test_an_answer_that_ends_in_time_after_sigterm_is_whole(
    own_gateway: Scene, provisioned: Vault, tmp_path: Path
) -> None:
    steps = Steps(own_gateway)
    with served(own_gateway, provisioned, tmp_path, KEYMAN_GATEWAY_DRAIN="60") as service:
        async with client_of(service, own_gateway) as client:
            assert b" 200 " in await client.head()
            service.live.send(signal.SIGTERM)
            steps.is_last = True
            steps.go.release()
            assert await client.rest() == CHUNK + END
        finished = await asyncio.to_thread(service.live.wait)  # which is less patient than the 60 seconds
    assert finished.code == 0
    assert _line_of_the_request(service) == (200, None)


def _line_of_the_request(service: Service) -> tuple[int, str | None]:
    """The status of the only request to a provider, that of the problem if its answer was cut, and which one this was.

    All lines are JSON: there is no traceback.
    """
    (line,) = [line for line in service.log() if line.get("service") == "OPENAI"]
    return line["status"], line.get("cut")


async def test_the_host_of_a_request_line_counts_for_nothing(
    own_gateway: Scene, provisioned: Vault, tmp_path: Path
) -> None:
    """The server passes on only the path, so the gateway cannot refuse it: the proxies in front of it do
    (tests/docker/test_gateway_proxy.py). The base URL of the service decides.
    """
    with served(own_gateway, provisioned, tmp_path) as service:
        fields = "".join(f"{name}: {value}\r\n" for name, value in own_gateway.headers.items())
        for target, host in ((f"http://evil.example{CHAT}", "127.0.0.1"), (f"http://127.0.0.1{CHAT}", "evil.example")):
            port = int(service.url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n{fields}\r\n{{}}".encode())
            head = await Client(reader, writer).head()
            writer.transport.abort()
            assert b"200 OK" in head.partition(b"\r\n")[0]
            sent = own_gateway.provider.requests.pop()
            assert sent.target == CHAT.removeprefix("/openai")
            assert sent.all_of("host") == [own_gateway.provider.address.removeprefix("http://")]


class Endless:
    """A provider whose answer never ends. `gone` is set when the gateway has closed the connection."""

    def __init__(self, scene: Scene) -> None:
        self.gone = asyncio.Event()
        scene.provider.handler = self

    async def __call__(self, incoming: Incoming) -> None:
        await incoming.rest()
        try:
            await incoming.begin()
            while True:
                await incoming.event(b"x" * 65536)
        finally:
            self.gone.set()


@asynccontextmanager
async def _connected(service: Service) -> AsyncIterator[socket.socket]:
    """A connection whose client keeps little of the answer for later."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", int(service.url.rpartition(":")[2])))
        yield client


@asynccontextmanager
async def small_client(service: Service, scene: Scene, length: int = 0) -> AsyncIterator[socket.socket]:
    """Such a connection, with the head of one request."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in scene.headers.items())
    async with _connected(service) as client:
        request = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{fields}\r\n"
        await asyncio.get_running_loop().sock_sendall(client, request.encode())
        yield client


async def test_a_client_that_reads_slowly_is_not_cut_off(
    own_gateway: Scene, provisioned: Vault, tmp_path: Path
) -> None:
    """It takes some of the answer now and then, for longer than a client may take nothing."""
    provider = Endless(own_gateway)
    loop = asyncio.get_running_loop()
    with served(own_gateway, provisioned, tmp_path, KEYMAN_GATEWAY_TIMEOUT="4") as service:
        async with small_client(service, own_gateway) as client:
            ends_at = loop.time() + 10
            while loop.time() < ends_at:
                for _ in range(4):
                    assert await asyncio.wait_for(loop.sock_recv(client, 16 * 1024), PATIENCE)
                await asyncio.sleep(1)
            assert not provider.gone.is_set()


async def _head_of_another(service: Service, scene: Scene) -> bytes:
    async with client_of(service, scene) as other:
        return await other.head()


async def test_a_client_that_takes_nothing_is_cut_off_after_the_time_out_of_the_gateway(
    own_gateway: Scene, provisioned: Vault, tmp_path: Path
) -> None:
    """It stays connected. The request counts for its caller no more, and the connection to the provider is closed."""
    provider = Endless(own_gateway)
    limits = {"KEYMAN_GATEWAY_TIMEOUT": "2", "KEYMAN_GATEWAY_CONCURRENCY": "1"}
    with served(own_gateway, provisioned, tmp_path, **limits) as service:
        async with small_client(service, own_gateway):
            await asyncio.wait_for(provider.gone.wait(), PATIENCE)
            own_gateway.provider.handler = good
            async with asyncio.timeout(PATIENCE):  # the last use of the key is stored before the place is free
                while b" 429 " in (head := await _head_of_another(service, own_gateway)):
                    await asyncio.sleep(0.1)
            assert b" 200 " in head
    lines = [line for line in service.log() if line.get("service") == "OPENAI"]
    assert lines[0]["left"] is True


UNKNOWN = b"GET /openai/v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer nobody\r\n\r\n"
DOCUMENT = b"GET /docs/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_a_stranger_that_takes_nothing_is_cut_off_before_a_client_with_a_token(
    own_gateway: Scene, provisioned: Vault, tmp_path: Path
) -> None:
    """A stranger is cut off after 30 seconds, and not after `KEYMAN_GATEWAY_TIMEOUT`, 600 seconds."""
    provider = Endless(own_gateway)
    loop = asyncio.get_running_loop()
    with served(own_gateway, provisioned, tmp_path) as service:
        async with small_client(service, own_gateway) as client, AsyncExitStack() as stack:
            assert b" 200 " in await loop.sock_recv(client, 100)
            strangers = []
            for request in (UNKNOWN, DOCUMENT):
                stranger = await stack.enter_async_context(_connected(service))
                asked = asyncio.create_task(loop.sock_sendall(stranger, request * 4000))  # the server stops reading
                stack.callback(asked.cancel)
                strangers.append(stranger)
            for stranger in strangers:
                await _reset(stranger)
            assert not provider.gone.is_set()
            for _ in range(100):
                assert await asyncio.wait_for(loop.sock_recv(client, 64 * 1024), PATIENCE)


async def _reset(client: socket.socket) -> None:
    """Wait until the server has ended the connection, without reading anything."""
    poll = select.poll()
    poll.register(client, 0)
    async with asyncio.timeout(10 * READ_TIMEOUT):
        while not poll.poll(0):
            await asyncio.sleep(0.1)


async def test_a_client_that_leaves_while_the_provider_takes_nothing_closes_the_connection_to_the_provider(
    own_gateway: Scene, provisioned: Vault, tmp_path: Path
) -> None:
    """The gateway reads nothing of the body then, so the server does not notice it."""
    is_reset = asyncio.Event()

    async def handler(incoming: Incoming) -> None:
        incoming.takes_nothing()
        await incoming.reset()
        is_reset.set()

    own_gateway.provider.handler = handler
    with served(own_gateway, provisioned, tmp_path) as service:
        async with small_client(service, own_gateway, length=60 * MEGABYTE) as client:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):  # it takes no more by then. More would only make the test weaker
                    while True:
                        await asyncio.get_running_loop().sock_sendall(client, b"x" * 65536)
            assert not is_reset.is_set()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        await asyncio.wait_for(is_reset.wait(), PATIENCE)


STREAMS = 200
SIZE = 50 * MEGABYTE
TAKEN = 2 * MEGABYTE
"""What each client reads. 200 answers of 50 MB are 10 GB, of which the gateway holds nothing if it reads only what its
clients take: so it is enough that the provider offers them, and that the clients stop in the middle.
"""

BEGINNING = 20
"""Requests that begin at a time: this is about answers, and a busy machine opens no 200 keys at once."""

MOST = 300
"""MB that the worker may use."""


async def test_slow_readers_of_large_answers_take_no_memory(
    own_gateway: Scene, provisioned: Vault, tmp_path: Path
) -> None:
    raise_file_limit(2048)
    sent = 0

    async def handler(incoming: Incoming) -> None:
        nonlocal sent
        await incoming.rest()
        await incoming.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % SIZE)
        part = b"x" * 65536
        for _ in range(SIZE // len(part)):
            await incoming.send(part)
            sent += len(part)

    own_gateway.provider.handler = handler
    limits = {"KEYMAN_GATEWAY_CONCURRENCY": str(STREAMS), "KEYMAN_GATEWAY_RATE": "10000"}
    with served(own_gateway, provisioned, tmp_path, **limits) as service:
        (worker,) = service.workers
        before = resident(worker)
        async with AsyncExitStack() as stack:
            for _ in range(STREAMS // BEGINNING):
                clients = [await stack.enter_async_context(client_of(service, own_gateway)) for _ in range(BEGINNING)]
                await asyncio.gather(*(_reads(client) for client in clients))
            known = -1
            async with asyncio.timeout(PATIENCE):
                while known != sent:  # until the provider can send no more
                    known = sent
                    await asyncio.sleep(0.5)
            used = resident(worker)
    assert STREAMS * TAKEN <= sent < STREAMS * SIZE / 2
    assert used < MOST, f"{before:.0f} MB before, {used:.0f} MB with {sent / MEGABYTE:.0f} MB sent"


async def _reads(client: Client) -> None:
    """Read a part of an answer, and stop. Each client buffers at most 64 KiB."""
    assert b" 200 " in await client.head()
    await client.exactly(TAKEN)


def resident(pid: int) -> float:
    """The memory of a process in MB."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


INNER = b"POST /openai/v1/moderations HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
"""A request in the body of another one. No reader may take it for one of its own."""

SMUGGLED = {
    "two lengths": ("POST", CHAT, b"Content-Length: 0\r\nContent-Length: %d\r\n"),
    "two lengths in one line": ("POST", CHAT, b"Content-Length: 0, %d\r\n"),
    "a length and chunks": ("POST", CHAT, b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n"),
    "chunks and a length": ("POST", CHAT, b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n"),
    "a space before the colon": ("POST", CHAT, b"Content-Length: %d\r\nTransfer-Encoding : chunked\r\n"),
    "two equal lengths": ("POST", CHAT, b"Content-Length: %d\r\nContent-Length: %d\r\n"),
    "another name of chunks": ("POST", CHAT, b"Content-Length: %d\r\nTransfer-Encoding: xchunked\r\n"),
    "an underscore": ("POST", CHAT, b"Content-Length: %d\r\nTransfer_Encoding: chunked\r\n"),
    "a folded line": ("POST", CHAT, b"Content-Length: %d\r\nX: y\r\n Transfer-Encoding: chunked\r\n"),
    "a bare line feed": ("POST", CHAT, b"Content-Length: %d\r\nX: y\nTransfer-Encoding: chunked\r\n"),
    "connection names the length": (
        "POST",
        CHAT,
        b"Connection: content-length, authorization\r\nContent-Length: %d\r\n",
    ),
    "an absolute address": ("POST", f"http://evil.example{CHAT}", b"Content-Length: %d\r\n"),
    "connect": ("CONNECT", "evil.example:443", b"Content-Length: %d\r\n"),
    "trace": ("TRACE", CHAT, b"Content-Length: %d\r\n"),
    "websocket": ("GET", CHAT, b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: %d\r\n"),
    "HTTP/2": ("POST", CHAT, b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: %d\r\n"),
    "dots": ("POST", "/openai/v1/../v1/chat/completions", b"Content-Length: %d\r\n"),
    "escaped dots": ("POST", "/openai/%2e%2e/v1/chat/completions", b"Content-Length: %d\r\n"),
    "an escaped slash": ("POST", "/openai/v1/chat%2fcompletions", b"Content-Length: %d\r\n"),
    "a backslash": ("POST", "/openai\\v1/chat/completions", b"Content-Length: %d\r\n"),
    "two slashes": ("POST", "/openai//v1/chat/completions", b"Content-Length: %d\r\n"),
    "a semicolon": ("POST", "/openai;x/v1/chat/completions", b"Content-Length: %d\r\n"),
}


ONE_READING = ("two equal lengths", "connection names the length", "an absolute address")
"""What is sent. The server passes on one of two equal lengths, and of an absolute address only the path."""


async def test_the_real_server_and_the_gateway_send_nothing_that_could_be_read_in_two_ways(
    own_gateway: Scene, provisioned: Vault, tmp_path: Path
) -> None:
    with served(own_gateway, provisioned, tmp_path) as service:
        for name, (method, path, lengths) in SMUGGLED.items():
            own_gateway.provider.requests.clear()
            fields = "".join(f"{field}: {value}\r\n" for field, value in own_gateway.headers.items()).encode()
            lines = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode() + fields
            answer = await _answer_to(service, lines + lengths.replace(b"%d", b"%d" % len(INNER)) + b"\r\n" + INNER)
            sent = [(one.target, one.all_of("authorization"), one.body) for one in own_gateway.provider.requests]
            if name in ONE_READING:
                assert answer.startswith(b"HTTP/1.1 200 "), name
                assert sent == [(CHAT.removeprefix("/openai"), [f"Bearer {VALUE}"], INNER)], name
                (request,) = own_gateway.provider.requests
                assert request.all_of("content-length") == [str(len(INNER))], name
                assert request.all_of("host") == [own_gateway.provider.address.removeprefix("http://")]
            else:
                assert (answer[:13], sent) == (b"HTTP/1.1 400 ", []), name


async def _answer_to(service: Service, sent: bytes) -> bytes:
    """What comes back until the gateway closes the connection, after the client has ended its side."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(service.url.rpartition(":")[2]))
    try:
        writer.write(sent)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                return await reader.read(65536)
        writer.write_eof()
        return await asyncio.wait_for(reader.read(), PATIENCE)
    finally:
        writer.transport.abort()


async def test_an_expectation_is_answered_by_the_gateway(
    own_gateway: Scene, provisioned: Vault, tmp_path: Path
) -> None:
    with served(own_gateway, provisioned, tmp_path) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(service.url.rpartition(":")[2]))
        client = Client(reader, writer)
        fields = "".join(f"{field}: {value}\r\n" for field, value in own_gateway.headers.items())
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n{fields}\r\n".encode()
        )
        assert b" 100 " in await client.head()
        writer.write(b"{}")
        assert b" 200 " in await client.head()
        writer.transport.abort()
    (asked,) = own_gateway.provider.requests
    assert (asked.all_of("expect"), asked.body) == ([], b"{}")
