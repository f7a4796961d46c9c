"""The end of a plane: SIGTERM makes it drain, so that no request of a load balancer is lost."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import URL

from tests.support.cli import Service, serve, variables
from tests.support.database import copied
from tests.support.http import NO_TLS
from tests.support.planes import Vault
from tests.support.waiting import PATIENCE, until


@pytest.fixture
def draining_env(provisioned: Vault, migrated_sqlite: Path, tmp_path: Path) -> dict[str, str]:
    database = URL.create("sqlite+aiosqlite", database=str(tmp_path / "keyman.db"))
    copied(migrated_sqlite, Path(str(database.database)))
    return {**variables(provisioned.settings, database), "KEYMAN_DRAIN": "3"}


def drains(service: Service) -> bool:
    return httpx.get(f"{service.url}/readyz", verify=NO_TLS).status_code == 503


def test_a_plane_that_stops_is_not_ready_and_ends_connections_and_still_accepts(
    draining_env: dict[str, str], tmp_path: Path
) -> None:
    # Long enough for a slow machine to ask everything below before the end.
    with serve({**draining_env, "KEYMAN_DRAIN": "10"}, tmp_path, "--workers", "2") as service:
        with httpx.Client(base_url=service.url, verify=NO_TLS) as kept:
            assert "connection" not in kept.get("/livez").headers
            # A worker without a handler yet ends at the signal, and has nothing to drain.
            until(lambda: "keyman_open_connections_limit 8192.0" in service.metrics(), "both workers")
            service.live.send(signal.SIGTERM)
            until(lambda: _drained(service) == [10.0, 10.0], "the drain of both workers")
            for target, status in (("/livez", 200), ("/readyz", 503), ("/nothing", 404), ("/api/keys", 401)):
                answer = httpx.get(f"{service.url}{target}", verify=NO_TLS)
                assert (answer.status_code, answer.headers["connection"]) == (status, "close")
            assert httpx.get(f"{service.url}/readyz", verify=NO_TLS).json() == {
                "status": "degraded",
                "checks": {"database": "ok", "vault": "ok"},
            }
            # A connection from before the signal ends with its next answer.
            assert kept.get("/livez").headers["connection"] == "close"
        ended = service.live.wait()
        assert ended.code == 0
        assert "refused to gracefully stop" not in ended.err
        assert _drained(service) == [10.0, 10.0]


@pytest.mark.slow
def test_a_request_that_began_before_the_end_is_finished(draining_env: dict[str, str], tmp_path: Path) -> None:
    with serve(draining_env, tmp_path) as service, socket.socket() as client:
        client.connect(("127.0.0.1", int(service.url.rpartition(":")[2])))
        client.sendall(b"POST /api/auth/login HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{")
        service.live.send(signal.SIGTERM)
        until(lambda: _refuses(service), "the end of the drain")
        client.sendall(b"}")
        assert client.recv(65536).startswith(b"HTTP/1.1 415 ")
        assert service.live.wait().code == 0


CONNECTIONS = 150


async def _visit(port: int, answered: list[int], broken: list[str]) -> None:
    """Ask again and again over one connection, until an answer ends it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b""
    try:
        while not re.search(rb"(?i)\r\nconnection: close", head):
            writer.write(b"GET /api/auth/me HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
            answered.append(port)
            await asyncio.sleep(0.5)
    except (OSError, EOFError) as fault:
        broken.append(repr(fault))
    writer.close()


@pytest.mark.slow
def test_a_plane_that_stops_breaks_none_of_many_connections(draining_env: dict[str, str], tmp_path: Path) -> None:
    """Each of them hears with an answer that it ends. One that is closed between two answers loses a request."""
    answered: list[int] = []
    broken: list[str] = []

    async def stop_under_load(service: Service) -> None:
        port = int(service.url.rpartition(":")[2])
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(_visit(port, answered, broken))
            while len(answered) < 2 * CONNECTIONS:
                await asyncio.sleep(0.05)
            service.live.send(signal.SIGTERM)

    with serve({**draining_env, "KEYMAN_DRAIN": "5"}, tmp_path) as service:
        asyncio.run(stop_under_load(service))
        assert service.live.wait().code == 0
    assert broken == []


@pytest.mark.slow
def test_a_signal_to_the_whole_group_drains_too(draining_env: dict[str, str], tmp_path: Path) -> None:
    """A service manager signals every process of a service, so a worker hears it twice."""
    with serve(draining_env, tmp_path) as service:
        service.live.send_group(signal.SIGTERM)
        until(lambda: drains(service), "the drain")
        assert httpx.get(f"{service.url}/livez", verify=NO_TLS).status_code == 200
        assert service.live.wait().code == 0


def test_ctrl_c_ends_a_plane_without_a_drain(draining_env: dict[str, str], tmp_path: Path) -> None:
    with serve({**draining_env, "KEYMAN_DRAIN": "300"}, tmp_path) as service:
        service.live.send_group(signal.SIGINT)
        assert service.live.wait().code == 0


@pytest.mark.slow
def test_without_a_drain_a_plane_stops_at_once(draining_env: dict[str, str], tmp_path: Path) -> None:
    with serve({**draining_env, "KEYMAN_DRAIN": "0"}, tmp_path) as service:
        assert service.live.end().code == 0
        assert "draining" not in service.live.err


def _drained(service: Service) -> list[float]:
    """The seconds of each drain that has begun."""
    return [line["seconds"] for line in service.log() if line["event"] == "draining"]


def _refuses(service: Service) -> bool:
    try:
        httpx.get(f"{service.url}/livez", verify=NO_TLS)
    except httpx.TransportError:
        return True
    return False
