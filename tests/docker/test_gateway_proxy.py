"""Streams through HAProxy with the stack's own configuration, and through nginx with that of docs/guide/proxy.md."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.engine import URL

from tests.docker import streams
from tests.docker.fronts import configuration
from tests.support.cli import Service, run_keyman, serve, variables
from tests.support.database import copied
from tests.support.http import NO_TLS, free_port
from tests.support.planes import Vault
from tests.support.proxies import haproxy_with, nginx, require_proxies
from tests.support.waiting import until

pytestmark = pytest.mark.slow

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "proxy.md"
OWN = ("proxy_pass", "proxy_http_version", "proxy_set_header Connection")
"""What `nginx` of tests.support.proxies says itself."""


class Owner(NamedTuple):
    """Somebody with a key for OPENAI, and an application that may use it."""

    management: dict[str, str]
    services: Path
    provider_port: int
    id: int

    def application(self, name: str) -> str:
        """Register an application and return its token."""
        created = run_keyman("app", "create", name, "--service", "OPENAI", env=self.management)
        assert created.code == 0, created.err
        return created.out.strip()


@pytest.fixture(scope="module")
def registered_owner(provisioned: Vault, migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Owner:
    require_proxies("haproxy")
    directory = tmp_path_factory.mktemp("owner")
    database = URL.create("sqlite+aiosqlite", database=str(directory / "keyman.db"))
    copied(migrated_sqlite, directory / "keyman.db")
    env = variables(provisioned.settings, database)
    with serve(env, directory) as management, httpx.Client(base_url=management.url, verify=NO_TLS) as client:
        account = {"email": f"ada-{uuid4().hex}@example.com", "password": uuid4().hex}
        signed_up = client.post("/api/auth/signup", json=account)
        stored = client.post("/api/keys", json={"service": "OPENAI", "api_key": f"sk-{uuid4().hex}"})
        assert (signed_up.status_code, stored.status_code) == (201, 201), stored.text
    provider_port = free_port()
    services = directory / "services.json"
    services.write_text(json.dumps([{"service": "OPENAI", "base_url": f"http://127.0.0.1:{provider_port}"}]))
    return Owner(env, services, provider_port, signed_up.json()["id"])


class Running(NamedTuple):
    """A gateway behind HAProxy."""

    gateway: Service
    scene: streams.Scene


@contextmanager
def running(owner: Owner, vault: Vault, directory: Path, token: str, **more: str) -> Iterator[Running]:
    database = owner.management["KEYMAN_DATABASE_URL"]
    settings = {"KEYMAN_SERVICES_FILE": str(owner.services), "KEYMAN_TRUSTED_PROXIES": "127.0.0.0/8", **more}
    env = {**variables(vault.gateway, URL.create("sqlite")), "KEYMAN_DATABASE_URL": database, **settings}
    port = free_port()
    headers = {"authorization": f"Bearer {token}", "keyman-user": str(owner.id)}
    with serve(env, directory / "gateway", "--plane", "gateway") as gateway:
        text = configuration("gateway", port, [gateway.url])
        with haproxy_with(directory / "haproxy", text, port) as proxy:
            until(lambda: httpx.get(f"{proxy.url}/readyz", verify=NO_TLS).status_code == 200, "the gateway")
            yield Running(gateway, streams.Scene(port, headers, owner.provider_port))


@pytest.fixture(scope="module")
def fronted(registered_owner: Owner, provisioned: Vault, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(
        registered_owner, provisioned, tmp_path_factory.mktemp("fronted"), registered_owner.application("fronted")
    ) as found:
        yield found


SCENES: list[Callable[[streams.Scene], Awaitable[None]]] = [
    streams.events_arrive_in_order,
    streams.a_body_arrives_while_it_is_sent,
    streams.a_client_that_leaves_closes_the_connection_to_the_provider,
    streams.a_client_that_leaves_before_the_answer_closes_it_too,
]


@pytest.mark.parametrize("property_", SCENES, ids=lambda found: found.__name__)
def test_through_haproxy(fronted: Running, property_: Callable[[streams.Scene], Awaitable[None]]) -> None:
    asyncio.run(_awaited(property_(fronted.scene)))


@pytest.mark.parametrize("property_", SCENES, ids=lambda found: found.__name__)
def test_through_nginx(fronted: Running, property_: Callable[[streams.Scene], Awaitable[None]], tmp_path: Path) -> None:
    with nginx(tmp_path, fronted.gateway.url, location=recommended_nginx()) as front:
        asyncio.run(_awaited(property_(dataclasses.replace(fronted.scene, port=front.port))))


def recommended_nginx() -> str:
    """The lines that the guide puts into a location of nginx in front of the gateway."""
    block = re.search(r"### In front of the gateway\n.*?location / \{\n(.*?)\n\}\n```", GUIDE.read_text(), re.DOTALL)
    assert block is not None
    return "\n".join(line for line in block[1].splitlines() if not line.strip().startswith(OWN))


def test_nginx_limits_the_connections_of_one_address(fronted: Running, tmp_path: Path) -> None:
    """With the lines of the guide, and a lower limit. Others have theirs, and one that has ended makes room."""
    block = re.search(r"#### Connections of one address\n.*?server \{\n(.*?)# and", GUIDE.read_text(), re.DOTALL)
    zone = re.search(r"^ *(limit_conn_zone .*)$", GUIDE.read_text(), re.MULTILINE)
    assert block is not None
    assert zone is not None
    lines = block[1].replace("addresses 256;", "addresses 2;")
    assert lines != block[1]
    head = f"POST {streams.PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in fronted.scene.headers.items())
    ask = "GET /livez HTTP/1.1\r\nHost: localhost"
    with (
        nginx(tmp_path, fronted.gateway.url, location=recommended_nginx(), server=lines, http=zone[1]) as front,
        ExitStack() as stack,
    ):
        for _ in range(2):
            held = stack.enter_context(socket.create_connection(("127.0.0.1", front.port)))
            held.sendall(f"{head}\r\n".encode())  # and nothing of the body, for which the gateway waits 30 seconds
        until(lambda: _status_of(front.port, ask) == 429, "both to be counted")
        assert _status_of(front.port, ask, source="127.0.0.2") == 200
        held.close()
        until(lambda: _status_of(front.port, ask) == 200, "room")


async def _awaited(found: Awaitable[None]) -> None:
    await found


MODELS = "/openai/v1/models"

WITH_A_HOST = [
    f"GET http://evil.example{MODELS} HTTP/1.1\r\nHost: evil.example",
    f"GET http://evil.example{MODELS} HTTP/1.1\r\nHost: localhost",
    f"GET http://localhost{MODELS} HTTP/1.1\r\nHost: localhost",
    f"GET HTTPS://localhost:443{MODELS}?a=b HTTP/1.1\r\nHost: localhost:443",
    f"GET http://evil.example{MODELS} HTTP/1.1",
    f"GET http://evil.example{MODELS} HTTP/1.0",
    f"GET http://user:word@evil.example{MODELS} HTTP/1.1\r\nHost: evil.example",  # pragma: allowlist secret
    f"GET urn://evil.example{MODELS} HTTP/1.1\r\nHost: evil.example",
    f"GET http://evil.example{MODELS} HTTP/2.0\r\nHost: evil.example",
    f"GET\thttp://evil.example{MODELS} HTTP/1.1\r\nHost: evil.example",
    "GET http://evil.example HTTP/1.1\r\nHost: evil.example",
    "OPTIONS * HTTP/1.1\r\nHost: localhost",
    "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443",
]
"""Request lines that do not begin with a path. The gateway, which gets only the path, would answer 401 to most of them,
because they have no token.
"""


def test_a_request_line_with_a_whole_address_is_refused_by_both_proxies(fronted: Running, tmp_path: Path) -> None:
    with nginx(tmp_path, fronted.gateway.url, location=recommended_nginx()) as front:
        for port in (fronted.scene.port, front.port):
            for target in (MODELS, f"{MODELS}?to=http://evil.example/"):
                assert _status_of(port, f"GET {target} HTTP/1.1\r\nHost: localhost") == 401, target
            for lines in WITH_A_HOST:
                assert _status_of(port, lines) in (400, 405, 505), (port, lines)


def _status_of(port: int, lines: str, source: str = "127.0.0.1") -> int:
    with socket.create_connection(("127.0.0.1", port), source_address=(source, 0)) as client:
        client.settimeout(streams.PATIENCE)
        client.sendall(f"{lines}\r\nConnection: close\r\n\r\n".encode())
        return int(client.recv(65536).split()[1])


def test_haproxy_passes_http_2_on(fronted: Running) -> None:
    """It has no request line: HAProxy could show a whole address, made from its parts."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not on the PATH")
    asked = [curl, "-sS", "--http2-prior-knowledge", "-w", "%{http_version} %{http_code}", "-o", os.devnull]
    answer = subprocess.run(
        [*asked, f"http://127.0.0.1:{fronted.scene.port}{MODELS}"], capture_output=True, check=True, timeout=60
    )
    assert answer.stdout == b"2 401"


def test_a_revoked_application_loses_its_stream_through_haproxy(registered_owner: Owner, fronted: Running) -> None:
    def revoke() -> None:
        revoked = run_keyman("app", "revoke", "revoked", env=registered_owner.management)
        assert revoked.code == 0, revoked.err

    headers = {**fronted.scene.headers, "authorization": f"Bearer {registered_owner.application('revoked')}"}
    scene = dataclasses.replace(fronted.scene, headers=headers)
    asyncio.run(streams.a_revoked_caller_loses_its_stream(scene, revoke))


def test_a_gateway_that_stops_lets_streams_end_through_haproxy(
    registered_owner: Owner, provisioned: Vault, tmp_path: Path
) -> None:
    drains = {"KEYMAN_DRAIN": "2", "KEYMAN_GATEWAY_DRAIN": "12"}
    with running(registered_owner, provisioned, tmp_path, registered_owner.application("stopped"), **drains) as found:
        live = found.gateway.live
        asyncio.run(streams.a_gateway_that_stops_lets_streams_end(found.scene, lambda: live.send(signal.SIGTERM)))
        assert live.wait().code == 0


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "//metrics", "/%6detrics", "/%2Fmetric%73", "/metrics?a=b"])
def test_metrics_of_the_gateway_do_not_go_through_the_proxy(fronted: Running, path: str) -> None:
    with socket.create_connection(("127.0.0.1", fronted.scene.port)) as client:
        client.settimeout(streams.PATIENCE)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert client.recv(65536).split()[1] in (b"400", b"404")  # the gateway takes no odd path
