"""`/metrics` of `keyman serve`: by its parent process, on an address of its own, and not on the public port."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from keyman.cli.serve import _counting
from keyman.config.metrics import DEFAULTS
from keyman.errors import ConfigurationError
from keyman.http.metrics import MAX_CONNECTIONS
from keyman.storage.engine import POOL_SIZE
from tests.support.cli import Service, run_keyman, serve, variables
from tests.support.database import copied
from tests.support.floods import flood
from tests.support.http import NO_TLS, free_port, sign_up
from tests.support.needs import quick
from tests.support.planes import Vault
from tests.support.waiting import freeze, until


def get(url: str) -> httpx.Response:
    return httpx.get(url, verify=NO_TLS)


@pytest.fixture(scope="module")
def metered_env(provisioned: Vault, migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a management plane over a migrated database."""
    file = copied(migrated_sqlite, tmp_path_factory.mktemp("metered") / "keyman.db")
    return variables(provisioned.settings, file)


@pytest.fixture(scope="module")
def metered(metered_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of two workers, shared by tests that do not stop it."""
    with serve(metered_env, tmp_path_factory.mktemp("service"), "--workers", "2") as service:
        until(lambda: len(service.workers) == 2, "both workers")
        yield service


def with_metrics(env: dict[str, str], address: str) -> dict[str, str]:
    return {**env, "KEYMAN_METRICS_LISTEN": address}


# --- where they are


def test_port_0_is_one_that_is_free_and_the_log_has_it(metered: Service) -> None:
    assert metered.metrics_url.startswith("http://127.0.0.1:")
    assert not metered.metrics_url.startswith("http://127.0.0.1:0")
    assert "keyman_http_request_seconds" in metered.metrics()


def test_the_limit_of_database_connections_is_that_of_both_workers(metered: Service) -> None:
    until(lambda: f"keyman_database_connections_limit {2 * POOL_SIZE}.0" in metered.metrics(), "both workers")


def test_the_public_port_has_no_metrics(metered: Service) -> None:
    for path in ("/metrics", "/%6detrics", "//metrics", "/metrics/", "/metrics?a=b"):
        answer = get(f"{metered.url}{path}")
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found"), path
    assert "/metrics" not in get(f"{metered.url}/docs/openapi.json").json()["paths"]


@pytest.mark.parametrize("plane", quick(["resolver"], ["gateway"]))
def test_the_ports_of_the_other_planes_have_none(
    provisioned: Vault, metered_env: dict[str, str], tmp_path: Path, plane: str
) -> None:
    login = provisioned.resolver if plane == "resolver" else provisioned.gateway
    assert login.role_id is not None
    assert login.secret_id is not None
    env = {
        **metered_env,
        "KEYMAN_VAULT_ROLE_ID": login.role_id,
        "KEYMAN_VAULT_SECRET_ID": login.secret_id.reveal(),
    }
    with serve(env, tmp_path, "--plane", plane) as service:
        assert get(f"{service.url}/metrics").status_code == 404
        assert 'route="/readyz"' in service.metrics()


@pytest.mark.slow
def test_an_address_of_ipv6_works(metered_env: dict[str, str], tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serve(with_metrics(metered_env, "[::1]:0"), tmp_path) as service:
        assert service.metrics_url.startswith("http://[::1]:")
        assert "keyman_http_request_seconds" in service.metrics()


def test_an_address_that_is_not_loopback_works_and_is_warned_of(metered_env: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    with serve(with_metrics(metered_env, f"0.0.0.0:{port}"), tmp_path) as service:
        assert "keyman_http_request_seconds" in get(f"http://127.0.0.1:{port}/metrics").text
        (warning,) = (line for line in service.log() if line.get("check") == "metrics")
        assert warning["level"] == "warning"
        assert "KEYMAN_METRICS_LISTEN" in warning["remedy"]


@pytest.mark.slow
def test_metrics_can_be_off(metered_env: dict[str, str], tmp_path: Path) -> None:
    with serve(with_metrics(metered_env, "off"), tmp_path, "--workers", "2") as service:
        assert get(f"{service.url}/metrics").status_code == 404
        assert not list(tmp_path.glob("keyman-metrics-*"))
        assert not [line for line in service.log() if "metrics" in line["event"]]


def test_a_default_address_that_is_taken_is_warned_of_and_the_plane_runs(
    metered_env: dict[str, str], tmp_path: Path
) -> None:
    address = DEFAULTS["management"]
    with ExitStack() as stack:
        with suppress(OSError):  # another program may have it, which is as good
            stack.enter_context(socket.create_server((address.host, address.port)))
        with serve(with_metrics(metered_env, ""), tmp_path) as service:
            (warning,) = (line for line in service.log() if line.get("address") == str(address))
            assert warning["level"] == "warning"
            assert sign_up(service.url, "default@example.com").get("/api/keys").json() == []
            assert get(f"{service.url}/metrics").status_code == 404


# --- what stops the start


def refused(env: dict[str, str], address: str, port: int | None = None) -> str:
    """The one line that a start with this address ends with."""
    done = run_keyman("serve", "--port", str(port or free_port()), env=with_metrics(env, address))
    assert (done.code, done.out) == (1, "")
    assert [line for line in done.err.splitlines() if line.startswith("keyman: ")]
    assert "KEYMAN_METRICS_LISTEN" in done.err
    assert address not in done.err
    assert "Traceback" not in done.err
    return done.err


def test_an_address_that_was_set_and_is_in_use_stops_the_start(metered_env: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert "in use" in refused(metered_env, f"127.0.0.1:{other.getsockname()[1]}")
    port = free_port()
    assert "in use" in refused(metered_env, f"127.0.0.1:{port}", port)


def test_an_address_that_is_none_of_this_machine_stops_the_start(metered_env: dict[str, str]) -> None:
    assert "not an address of this machine" in refused(metered_env, "203.0.113.7:9464")


def test_an_address_that_is_none_stops_the_start(metered_env: dict[str, str]) -> None:
    assert "must be off, or an address with a port" in refused(metered_env, "c4n4ry")


def test_a_directory_that_cannot_be_written_to_stops_the_start_of_a_plane_with_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile._get_default_tempdir", lambda: "/nonexistent")
    monkeypatch.setattr("tempfile.tempdir", None)
    off = "set TMPDIR to another, or KEYMAN_METRICS_LISTEN to off"
    with socket.socket() as listener, pytest.raises(ConfigurationError, match=off), _counting(listener):
        pass


# --- what a client can do


@pytest.mark.parametrize("kind", quick(["silent", "never reading"], ["half a header", "idle keep-alive"]))
def test_a_flood_stops_neither_scrapes_nor_the_plane(metered: Service, kind: str) -> None:
    port = int(metered.metrics_url.split(":")[2].partition("/")[0])
    with flood(port, kind, count=20 * MAX_CONNECTIONS):
        for _ in range(3):
            assert "keyman_http_request_seconds" in metered.metrics()
            assert metered.is_ready()


def test_metrics_are_served_while_no_worker_runs(metered_env: dict[str, str], tmp_path: Path) -> None:
    with serve(metered_env, tmp_path) as service:
        until(lambda: heartbeat(service) > 0, "a heartbeat")
        (worker,) = service.workers
        freeze(worker)
        last = heartbeat(service)
        os.kill(worker, signal.SIGKILL)
        until(lambda: service.workers not in ([], [worker]), "a new worker")
        until(lambda: heartbeat(service) > last, "its heartbeat")
        until(service.is_ready, "readiness")
        assert service.live.end().code == 0


def heartbeat(service: Service) -> float:
    """When the worker that is the longest silent said that it runs; 0 before it does, or if there is none."""
    name = "keyman_worker_heartbeat_seconds "
    return sum(float(line.removeprefix(name)) for line in service.metrics().splitlines() if line.startswith(name))


def test_a_stop_does_not_wait_for_a_client_of_the_metrics(metered_env: dict[str, str], tmp_path: Path) -> None:
    with serve(metered_env, tmp_path) as service:
        port = int(service.metrics_url.split(":")[2].partition("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(b"GET /metrics")
            ended = service.live.end()
        assert ended.code == 0
        assert "Traceback" not in ended.err
        assert not list(tmp_path.glob("keyman-metrics-*"))
