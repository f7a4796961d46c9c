"""The stack's own HAProxy configurations, with addresses of this machine, in front of planes of `keyman serve`."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy.engine import URL

from tests.support.cli import Service, serve, variables
from tests.support.database import copied
from tests.support.floods import FLOODS, flood
from tests.support.http import NO_TLS, free_port
from tests.support.planes import Vault
from tests.support.proxies import Proxy, haproxy_with, require_proxies
from tests.support.waiting import until

pytestmark = pytest.mark.slow

PROXY = Path(__file__).parents[2] / "docker" / "proxy"
CONFIGURATIONS = {"management": PROXY / "haproxy.cfg", "resolver": PROXY / "resolver.cfg"}
ANSWER_SECONDS = 15.0
CONNECTIONS = 150


def configuration(plane: str, port: int, replicas: list[str]) -> str:
    """The stack's configuration without TLS and Docker's name server, with these replicas."""
    text = CONFIGURATIONS[plane].read_text()
    text, bound = re.subn(r"bind :8\d+.*", f"bind 127.0.0.1:{port}", text)
    text = text.replace("bind 127.0.0.1:8404", f"bind 127.0.0.1:{port + 1}")
    text = re.sub(r"^resolvers docker\n(  .*\n)*", "", text, flags=re.MULTILINE)
    text = text.replace(" resolvers docker init-addr none", "")
    servers = "\n".join(f"  server {number} {urlsplit(url).netloc}" for number, url in enumerate(replicas))
    text, used = re.subn(r"  server-template .*", servers, text)
    assert (bound, used) == (1, 2)
    return text


@pytest.fixture(scope="module")
def replicated_env(
    provisioned: Vault, migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    require_proxies("haproxy")
    database = URL.create("sqlite+aiosqlite", database=str(tmp_path_factory.mktemp("replicated") / "keyman.db"))
    copied(migrated_sqlite, Path(str(database.database)))
    return {**variables(provisioned.settings, database), "KEYMAN_TRUSTED_PROXIES": "127.0.0.0/8"}


@pytest.fixture(scope="module")
def replica(replicated_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve(replicated_env, tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture(scope="module", params=list(CONFIGURATIONS))
def front(
    request: pytest.FixtureRequest, replica: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    port = free_port()
    text = configuration(request.param, port, [replica.url])
    with haproxy_with(tmp_path_factory.mktemp("haproxy"), text, port) as proxy:
        until(lambda: httpx.get(f"{proxy.url}/livez", verify=NO_TLS).status_code == 200, "the replica")
        yield proxy


@pytest.mark.parametrize("kind", FLOODS)
def test_livez_answers_through_the_proxy_under_a_flood(front: Proxy, kind: str) -> None:
    with flood(front.port, kind, source="127.0.0.2") as running:
        until(lambda: running.left <= 256, "the bound of connections of an address")
        for _ in range(3):
            assert httpx.get(f"{front.url}/livez", timeout=ANSWER_SECONDS, verify=NO_TLS).status_code == 200
        if kind not in ("never reading", "slow reading"):  # these end after the 30 s of `timeout client`
            until(lambda: running.left == 0, "the end of each connection")


def test_half_of_a_body_does_not_reach_a_plane(front: Proxy, replica: Service) -> None:
    with flood(front.port, "half a body", count=20, source="127.0.0.3") as running:
        until(lambda: running.left == 0, "the end of each connection")
    assert "/api/auth/login" not in replica.live.err


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "//metrics", "/%6detrics", "/%2Fmetric%73", "/metrics?a=b"])
def test_metrics_do_not_go_through_the_proxy(front: Proxy, path: str) -> None:
    with socket.create_connection(("127.0.0.1", front.port)) as client:
        client.settimeout(ANSWER_SECONDS)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 404 ")


class Visitors:
    """Clients that ask again and again, each over one connection for as long as it lasts. `broken` has what failed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.answered = 0
        self.broken: list[str] = []
        self.stopped = False

    async def run(self) -> None:
        await asyncio.gather(*(self._visit() for _ in range(CONNECTIONS)))

    async def _visit(self) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self.stopped:
            try:
                connection = connection or await asyncio.open_connection("127.0.0.1", self._port)
                reader, writer = connection
                writer.write(b"GET /api/auth/me HTTP/1.1\r\nHost: localhost\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
            except (OSError, EOFError) as fault:
                self.broken.append(repr(fault))
                connection = None
                continue
            self.answered += 1
            if not head.startswith(b"HTTP/1.1 401 "):
                self.broken.append(head[:40].decode())
            if re.search(rb"(?i)\r\nconnection: close", head):
                writer.close()
                connection = None
            await asyncio.sleep(0.5)
        if connection is not None:
            connection[1].close()
            with suppress(OSError):
                await connection[1].wait_closed()


def test_a_replica_that_stops_breaks_no_connection_through_the_proxy(
    replicated_env: dict[str, str], tmp_path: Path
) -> None:
    """The proxy tries nothing again here, so a request is saved only if the replica drains."""
    env = {**replicated_env, "KEYMAN_DRAIN": "15"}
    with ExitStack() as stack:
        replicas = [stack.enter_context(serve(env, tmp_path / f"replica-{number}")) for number in range(2)]
        port = free_port()
        text = configuration("management", port, [service.url for service in replicas])
        text, changed = re.subn(r"  retries 3\n  option redispatch 1\n", "  retries 0\n", text)
        assert changed == 1
        proxy = stack.enter_context(haproxy_with(tmp_path / "haproxy", text, port))
        until(lambda: httpx.get(f"{proxy.url}/readyz", verify=NO_TLS).status_code == 200, "the replicas")
        visitors = Visitors(port)

        async def stop_one_under_load() -> None:
            load = asyncio.create_task(visitors.run())
            while visitors.answered < 2 * CONNECTIONS:
                await asyncio.sleep(0.1)
            replicas[0].live.send(signal.SIGTERM)
            ended = await asyncio.to_thread(replicas[0].live.wait)
            assert ended.code == 0
            since = visitors.answered
            while visitors.answered < since + 2 * CONNECTIONS:
                await asyncio.sleep(0.1)
            visitors.stopped = True
            await load

        asyncio.run(stop_one_under_load())
        assert visitors.broken == []
