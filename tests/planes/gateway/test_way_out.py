"""How the gateway reaches a provider: over TLS that is verified, directly or through the proxy of its settings."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import make_url
from stack.certificates import Pair, authority, issue

from keyman import migrations
from keyman.config.gateway import GatewaySettings
from keyman.planes.gateway import upstream
from keyman.planes.gateway.faults import UNREACHABLE
from keyman.planes.gateway.upstream import Upstreams
from tests.planes.gateway.provider import Incoming, Provider, provider_running
from tests.planes.gateway.scene import Scene, scene_at
from tests.planes.gateway.talk import Answer, Talk
from tests.support.http import free_port
from tests.support.logs import capture_logs
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio


@pytest.fixture
def provider_ca(tmp_path: Path) -> Pair:
    """The CA of the provider's certificate. Its own certificate is in `ca.crt`."""
    return authority(tmp_path)


@asynccontextmanager
async def tls_provider(tmp_path: Path, provider_ca: Pair, name: str) -> AsyncIterator[Provider]:
    """A provider whose certificate is for this name."""
    pair = issue(provider_ca, [name])
    (tmp_path / "server.pem").write_bytes(pair.certificate_pem() + pair.key_pem())
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(tmp_path / "server.pem")
    async with provider_running(serving) as provider:
        yield provider


@asynccontextmanager
async def scene_with(
    tmp_path: Path, vault: Vault, quick: PasswordHasher, base_url: str, **gateway: Any
) -> AsyncIterator[Scene]:
    """A gateway, and an owner with a key for a provider at this address."""
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    await migrations.upgrade(url)
    entry = {"service": "REMOTE", "name": "Remote", "base_url": base_url, "allow_private": True, "paths": ["POST /v1"]}
    async with scene_at(url, vault, quick, tmp_path, [entry], **gateway) as scene:
        await scene.owner.key("REMOTE", "remote-key-0123456789")
        yield scene


async def ask_remote(scene: Scene) -> Answer:
    application = await scene.pair.app("REMOTE")
    headers = {"authorization": f"Bearer {application.token}", "keyman-user": str(scene.owner.id)}
    return await scene.ask("POST", "/remote/v1", headers, b"{}")


def is_unreachable(answer: Answer) -> bool:
    return (answer.status, answer.header("keyman-error")) == (502, "provider-unreachable")


async def faults_of(asking: Awaitable[Answer]) -> list[str]:
    """What the log says of a provider that cannot be reached."""
    with capture_logs() as lines:
        answer = await asking
    assert is_unreachable(answer)
    assert answer.json["detail"] == UNREACHABLE
    return [line["fault"] for line in lines if line["event"] == "a provider cannot be reached"]


@pytest.mark.parametrize(
    ("base_url", "fault"),
    [("http://127.0.0.1:9", "ConnectionRefusedError"), ("https://nowhere.invalid", "ClientConnectorDNSError")],
)
async def test_the_log_says_why_a_provider_cannot_be_reached(
    tmp_path: Path, provisioned: Vault, quick_passwords: PasswordHasher, base_url: str, fault: str
) -> None:
    """The answer does not: it would help to look around in the network of the gateway."""
    async with scene_with(tmp_path, provisioned, quick_passwords, base_url) as scene:
        assert await faults_of(ask_remote(scene)) == [fault]


INWARDS = (
    ("127.0.0.1",),
    ("169.254.169.254",),
    ("10.0.0.1", "192.168.0.1"),
    ("::ffff:10.0.0.1",),
    ("::ffff:169.254.169.254",),
    ("64:ff9b::a9fe:a9fe",),
    ("::1", "127.0.0.1"),
    ("fe80::1",),
)


@pytest.mark.parametrize("addresses", INWARDS, ids=" ".join)
async def test_an_endpoint_whose_name_leads_inwards_is_not_connected_to(
    gateway: Scene, monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    """Its user owns the name, and decides at each moment what it resolves to."""
    host = f"{token_hex(6)}.openai.azure.com"
    resolve = socket.getaddrinfo

    def leads_inwards(name: Any, port: Any, *more: Any, **named: Any) -> Any:
        if name != host:
            return resolve(name, port, *more, **named)
        return [info for address in addresses for info in resolve(address, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", leads_inwards)
    application = await gateway.pair.app("AZURE_OPENAI")
    await gateway.owner.key("AZURE_OPENAI", "0123456789abcdef", settings={"endpoint": f"https://{host}"})
    headers = {"api-key": application.token, "keyman-user": str(gateway.owner.id)}
    asking = gateway.ask("POST", "/azure-openai/openai/v1/chat/completions", headers, b"{}")
    assert await faults_of(asking) == ["AddressRefused"]


async def test_a_certificate_that_nobody_known_signed_is_refused(
    tmp_path: Path, provider_ca: Pair, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with tls_provider(tmp_path, provider_ca, "localhost") as provider:
        base_url = provider.address.replace("127.0.0.1", "localhost")
        async with scene_with(tmp_path, provisioned, quick_passwords, base_url) as scene:
            assert await faults_of(ask_remote(scene)) == ["ClientConnectorCertificateError"]
        assert provider.requests == []


async def test_the_ca_of_the_settings_is_accepted(
    tmp_path: Path, provider_ca: Pair, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with tls_provider(tmp_path, provider_ca, "localhost") as provider:
        base_url = provider.address.replace("127.0.0.1", "localhost")
        own = tmp_path / "ca.crt"
        async with scene_with(tmp_path, provisioned, quick_passwords, base_url, ca_certificate=own) as scene:
            assert (await ask_remote(scene)).status == 200
        (sent,) = provider.requests
        assert sent.all_of("authorization") == ["Bearer remote-key-0123456789"]


@pytest.mark.parametrize("is_whole", [True, False])
async def test_an_answer_without_a_length_is_whole_only_at_the_end_of_tls(
    tmp_path: Path, provider_ca: Pair, provisioned: Vault, quick_passwords: PasswordHasher, is_whole: bool
) -> None:
    """Anyone on the way can end the connection, but not its TLS."""

    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await has_read.wait()
        if is_whole:
            incoming.writer.close()
        else:
            incoming.writer.transport.abort()

    has_read = asyncio.Event()
    own = tmp_path / "ca.crt"
    async with tls_provider(tmp_path, provider_ca, "localhost") as provider:
        provider.handler = handler
        base_url = provider.address.replace("127.0.0.1", "localhost")
        async with scene_with(tmp_path, provisioned, quick_passwords, base_url, ca_certificate=own) as scene:
            application = await scene.pair.app("REMOTE")
            headers = {"authorization": f"Bearer {application.token}", "keyman-user": str(scene.owner.id)}
            talk = Talk(scene.app, "POST", "/remote/v1", headers, 0)
            talk.give(b"")
            assert await talk.begun() == 200
            assert await talk.part() == b"hello"
            has_read.set()
            assert await talk.was_cut() is not is_whole


async def test_a_certificate_for_another_name_is_refused(
    tmp_path: Path, provider_ca: Pair, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with tls_provider(tmp_path, provider_ca, "other.example") as provider:
        base_url = provider.address.replace("127.0.0.1", "localhost")
        own = tmp_path / "ca.crt"
        async with scene_with(tmp_path, provisioned, quick_passwords, base_url, ca_certificate=own) as scene:
            assert is_unreachable(await ask_remote(scene))
        assert provider.requests == []


async def test_a_provider_that_does_not_answer_the_connection_cannot_be_reached(
    tmp_path: Path, provisioned: Vault, quick_passwords: PasswordHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody accepts there, and the queue of connections is full."""
    monkeypatch.setattr(upstream, "CONNECT_TIMEOUT", 0.5)
    with socket.socket() as listener, ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with scene_with(tmp_path, provisioned, quick_passwords, base_url) as scene:
            async with asyncio.timeout(60):  # the system gives up after two minutes
                assert is_unreachable(await ask_remote(scene))


@asynccontextmanager
async def connect_proxy(target: int) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """A proxy in a process of its own. It leads to this port, whatever host it is asked for."""
    port = free_port()
    command = [sys.executable, "-m", "tests.planes.gateway.connect_proxy", str(port), str(target)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 20) == b"ready\n"
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        await process.wait()


async def test_the_proxy_of_the_settings_is_the_way_out(
    tmp_path: Path, provider_ca: Pair, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    """The proxy resolves the name, which nobody else knows, and sees nothing of what is sent."""
    async with (
        tls_provider(tmp_path, provider_ca, "api.provider.test") as provider,
        connect_proxy(int(provider.address.rpartition(":")[2])) as (proxy, process),
        scene_with(
            tmp_path,
            provisioned,
            quick_passwords,
            "https://api.provider.test",
            ca_certificate=tmp_path / "ca.crt",
            proxy=proxy,
        ) as scene,
    ):
        assert (await ask_remote(scene)).status == 200
        assert [sent.all_of("host") for sent in provider.requests] == [["api.provider.test"]]
        assert process.stdout is not None
        assert await process.stdout.readline() == b"CONNECT api.provider.test:443 HTTP/1.1\n"


async def test_a_proxy_that_refuses_is_a_provider_that_cannot_be_reached(
    tmp_path: Path, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with (
        connect_proxy(0) as (proxy, _),
        scene_with(tmp_path, provisioned, quick_passwords, "https://api.provider.test", proxy=proxy) as scene,
    ):
        assert is_unreachable(await ask_remote(scene))


async def test_proxies_in_the_environment_are_ignored(gateway: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert (await gateway.post()).status == 200


async def test_no_limit_of_connections_to_a_provider_is_shared_by_callers() -> None:
    """`KEYMAN_GATEWAY_CONCURRENCY` can be any number. Callers share only the connections that clients open."""
    upstreams = Upstreams(GatewaySettings())
    await upstreams.open()
    try:
        connector = upstreams._session(is_private=False).connector
        assert connector is not None
        assert (connector.limit, connector.limit_per_host) == (0, 0)  # for aiohttp that is no limit
    finally:
        await upstreams.close()
