"""A plane without a proxy, under floods of connections from one address."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.engine import URL, make_url

from tests.support.cli import Service, serve, variables
from tests.support.database import copied
from tests.support.floods import FLOODS, flood
from tests.support.http import NO_TLS
from tests.support.planes import Vault
from tests.support.waiting import until

ANSWER_SECONDS = 15.0
"""In which `/livez` answers, whatever a flood does."""


@pytest.fixture(scope="module")
def flooded_env(provisioned: Vault, migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    database = URL.create("sqlite+aiosqlite", database=str(tmp_path_factory.mktemp("flooded") / "keyman.db"))
    copied(migrated_sqlite, Path(str(database.database)))
    return variables(provisioned.settings, database)


@pytest.fixture(scope="module")
def flooded(flooded_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serve(flooded_env, tmp_path_factory.mktemp("service")) as service:
        yield service


def port_of(service: Service) -> int:
    return int(service.url.rpartition(":")[2])


def metric(service: Service, name: str) -> float:
    families = text_string_to_metric_families(service.metrics())
    return next(f.samples[0].value for f in families if f.name == name)


def open_connections(service: Service) -> float:
    """Return how many were open when the plane last counted, once a second."""
    return metric(service, "keyman_open_connections")


@pytest.mark.slow
@pytest.mark.parametrize("kind", FLOODS)
def test_livez_answers_under_a_flood(flooded: Service, kind: str) -> None:
    with flood(port_of(flooded), kind) as running:
        for _ in range(3):
            assert httpx.get(f"{flooded.url}/livez", timeout=ANSWER_SECONDS, verify=NO_TLS).status_code == 200
        if "reading" not in kind:
            until(lambda: running.left == 0, "the end of each connection")
    until(lambda: open_connections(flooded) <= 1, "the end of the flood")


@pytest.mark.slow
def test_more_connections_are_open_at_once_than_a_server_has_room_for_by_default(flooded: Service) -> None:
    with flood(port_of(flooded), "silent"):
        until(lambda: open_connections(flooded) > 1_024, "more than 1,024 connections")
    until(lambda: open_connections(flooded) <= 1, "the end of the flood")


def test_only_http_1_1_is_spoken(flooded: Service) -> None:
    with socket.create_connection(("127.0.0.1", port_of(flooded)), ANSWER_SECONDS) as client:
        client.sendall(FLOODS["the preface of HTTP/2"])
        assert client.recv(65_536)[:12] in (b"", b"HTTP/1.1 400"), "not the settings of HTTP/2"


@pytest.mark.slow
def test_a_client_that_never_reads_is_cut_off(flooded: Service) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port_of(flooded)))
        client.sendall(b"GET /docs/openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
        until(lambda: open_connections(flooded) >= 1, "the connection")
        until(lambda: open_connections(flooded) == 0, "its end, after 30 s")


def test_a_full_plane_says_so_and_that_there_is_room_again(flooded_env: dict[str, str], tmp_path: Path) -> None:
    """With room for 50 connections, because the machine allows few open files: that is said at the start."""
    with serve(flooded_env, tmp_path, ready=False) as service:
        resource.prlimit(service.live.pid, resource.RLIMIT_NOFILE, (306, 306))
        until(service.is_ready, "readiness")
        (warning,) = [line for line in service.log() if line["event"] == "few connections can be open at once"]
        assert (warning["level"], warning["connections"], warning["open_files"]) == ("warning", 50, 306)
        assert metric(service, "keyman_open_connections_limit") == 50
        with flood(port_of(service), "silent", count=60):
            service.live.says("no more connections are accepted")
            service.live.says("connections are accepted again")
        # Each that ends makes room for one that waits, so there may be more of these lines.
        line = next(line for line in service.log() if line["event"] == "no more connections are accepted")
        assert (line["level"], line["open"], line["limit"]) == ("warning", 50, 50)
        assert httpx.get(f"{service.url}/livez", timeout=ANSWER_SECONDS, verify=NO_TLS).status_code == 200


def test_the_gateway_keeps_a_file_for_the_provider_of_each_client(
    provisioned: Vault, flooded_env: dict[str, str], tmp_path: Path
) -> None:
    env = variables(provisioned.gateway, make_url(flooded_env["KEYMAN_DATABASE_URL"]))
    with serve(env, tmp_path, "--plane", "gateway", ready=False) as service:
        resource.prlimit(service.live.pid, resource.RLIMIT_NOFILE, (306, 306))
        until(service.is_ready, "readiness")
        (warning,) = [line for line in service.log() if line["event"] == "few connections can be open at once"]
        assert (warning["connections"], warning["open_files"]) == (25, 306)
        assert "8448" in warning["remedy"]
        assert metric(service, "keyman_open_connections_limit") == 25


def test_a_plane_has_room_for_4096_connections(flooded: Service) -> None:
    soft, _ = resource.prlimit(flooded.workers[0], resource.RLIMIT_NOFILE)
    if soft < 4_352:
        pytest.skip("this machine allows fewer open files")
    assert metric(flooded, "keyman_open_connections_limit") == 4_096
    assert "few connections" not in flooded.live.err
