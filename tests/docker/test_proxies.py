"""The stack's own HAProxy configurations, with addresses of this machine, in front of planes of `keyman serve`."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import URL

from keyman.cli.serve import MAX_CONNECTIONS
from tests.docker.fronts import CONFIGURATIONS, configuration
from tests.support.cli import Service, serve, variables
from tests.support.database import copied
from tests.support.floods import FLOODS, flood
from tests.support.http import NO_TLS, free_port
from tests.support.planes import Vault
from tests.support.proxies import Proxy, haproxy_with, require_proxies
from tests.support.waiting import until

pytestmark = pytest.mark.slow

BUFFERING = ("management", "resolver")
"""The planes whose proxy waits for a whole body. That of the gateway passes a body on as it arrives."""

ANSWER_SECONDS = 15.0
CONNECTIONS = 150


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


@pytest.fixture(scope="module", params=BUFFERING)
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


TIMEOUTS = {
    "silent": "http-request",
    "half a header": "http-request",
    "half a body": "http-request",
    "idle keep-alive": "http-keep-alive",
}
"""The time-out of the configuration that ends the connections of a flood, whatever the others are."""


@contextmanager
def front_with_only(timeout: str, plane: str, replica: Service, directory: Path) -> Iterator[Proxy]:
    """The proxy of a plane with this time-out shortened to 2 s, and with others for clients that end nothing in a test.

    It logs each request.
    """
    port = free_port()
    text, changed = re.subn("local0 notice", "local0 info", configuration(plane, port, [replica.url]))
    assert changed == 1
    for name in ("client", "http-request", "http-keep-alive"):
        value = "2s" if name == timeout else "600s"
        text, changed = re.subn(rf"(?m)^  timeout {name} \d+s.*$", f"  timeout {name} {value}", text)
        assert changed == 1
    with haproxy_with(directory, text, port) as proxy:
        until(lambda: httpx.get(f"{proxy.url}/livez", verify=NO_TLS).status_code == 200, "the replica")
        yield proxy


@pytest.mark.parametrize(
    ("plane", "kind"),
    [(plane, kind) for plane in CONFIGURATIONS for kind in TIMEOUTS if plane in BUFFERING or kind != "half a body"],
)
def test_each_time_out_ends_its_connections_by_itself(replica: Service, plane: str, kind: str, tmp_path: Path) -> None:
    with (
        front_with_only(TIMEOUTS[kind], plane, replica, tmp_path) as proxy,
        flood(proxy.port, kind, count=20, source="127.0.0.4") as running,
    ):
        until(lambda: running.left == 0, "the end of each connection")


@pytest.mark.parametrize("plane", BUFFERING)
def test_a_client_that_takes_nothing_is_cut_off(replica: Service, plane: str, tmp_path: Path) -> None:
    """It is seen in the proxy's log: `c` for the client's time-out, `D` or `L` for data that it did not take."""
    with front_with_only("client", plane, replica, tmp_path) as proxy, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", proxy.port))
        client.sendall(b"GET /docs/openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 200)
        until(lambda: re.search(r" c[DL]-* ?$", proxy.errors.read_text(), re.MULTILINE) is not None, "its end")


@pytest.mark.parametrize("plane", CONFIGURATIONS)
def test_an_address_has_256_connections_and_others_have_theirs(replica: Service, plane: str, tmp_path: Path) -> None:
    with (
        front_with_only("none", plane, replica, tmp_path) as proxy,
        flood(proxy.port, "silent", count=256, source="127.0.0.5") as first,
        flood(proxy.port, "silent", count=20, source="127.0.0.5") as more,
    ):
        until(lambda: first.left + more.left == 256, "the end of what is beyond the bound")
        assert httpx.get(f"{proxy.url}/livez", timeout=ANSWER_SECONDS, verify=NO_TLS).status_code == 200


@pytest.mark.parametrize("plane", CONFIGURATIONS)
def test_a_proxy_has_no_more_connections_than_a_worker_has_room_for(plane: str) -> None:
    (bound,) = re.findall(r"(?m)^  maxconn (\d+)$", CONFIGURATIONS[plane].read_text())
    assert int(bound) <= MAX_CONNECTIONS


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
