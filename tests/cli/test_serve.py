"""`keyman serve`: one plane as an operator runs it, from its start to its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.engine import URL, make_url

from keyman.config.settings import METRICS_ON_PLANE
from tests.cli.transcript import keyman
from tests.support.cli import (
    ANOTHER_KEYMAN,
    Service,
    another_keyman,
    environment,
    environments_below,
    processes,
    run_keyman,
    serve,
    variables,
)
from tests.support.database import copied
from tests.support.http import NO_TLS, free_port, is_free, sign_up
from tests.support.needs import quick
from tests.support.planes import PASSWORD, Vault
from tests.support.vault import DisposableVault, RootClient, disposable_vault_at
from tests.support.waiting import until

VALUE = "sk-hq2v9mXbT0c7eUKwN4Rd1234"
CANARY = "cAnArY0987"


@pytest.fixture(scope="module")
def service_vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DisposableVault]:
    with disposable_vault_at(tmp_path_factory.mktemp("victim")) as made:
        yield made


@pytest.fixture
def service_database(tmp_path: Path) -> URL:
    return URL.create("sqlite+aiosqlite", database=str(tmp_path / "keyman.db"))


@pytest.fixture
def service_env(provisioned: Vault, service_database: URL, migrated_sqlite: Path) -> dict[str, str]:
    """A service over the worker's Vault and a migrated database of the test's own."""
    copied(migrated_sqlite, Path(str(service_database.database)))
    return variables(provisioned.settings, service_database)


@pytest.fixture(scope="module")
def two_workers(
    provisioned: Vault, migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service of two workers, shared by tests that harm no more than a worker. Its environment has secrets, and its
    directory another package of the same name.
    """
    directory = tmp_path_factory.mktemp("two")
    database = copied(migrated_sqlite, directory / "keyman.db")
    env = {
        **variables(provisioned.settings, database),
        "PGPASSWORD": CANARY,
        "KEYMAN_VAULT_NAMESPACE": "",
        "VAULT_TOKEN": CANARY,
    }
    with serve(env, directory, "--workers", "2", cwd=another_keyman(directory)) as service:
        until(lambda: len(service.workers) == 2, "both workers")
        yield service


def _replace_a_worker(service: Service) -> None:
    before = service.workers
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(set(service.workers) - set(before)) == 1, "a new worker")
    until(service.is_ready, "readiness")


@pytest.fixture(scope="module")
def two_workers_after_a_kill(two_workers: Service) -> Service:
    """The same after one of its workers was replaced."""
    _replace_a_worker(two_workers)
    return two_workers


# --- what stops the start


def test_every_bad_setting_is_named_at_once_and_no_value_is_repeated(tmp_path: Path) -> None:
    bad = {
        "KEYMAN_DATABASE_URL": f"mysql://{CANARY}@db/{CANARY}",
        "KEYMAN_VAULT_ADDR": f"ftp://{CANARY}",
        "KEYMAN_VAULT_AUTH": CANARY,
        "KEYMAN_VAULT_TIMEOUT": CANARY,
        "KEYMAN_VAULT_MOUNT": f"../{CANARY}",
        "KEYMAN_VAULT_CACERT": f"/{CANARY}",
        "KEYMAN_PUBLIC_URL": f"{CANARY}://",
        "KEYMAN_SIGNUP": CANARY,
        "KEYMAN_SERVICES_FILE": f"/{CANARY}",
        "KEYMAN_GATEWAY_URL_CACERT": f"/{CANARY}",
        "KEYMAN_LOG_FORMAT": CANARY,
        "KEYMAN_LOG_LEVEL": CANARY,
    }
    refused = run_keyman("serve", "--port", str(free_port()), env=environment(**bad), cwd=tmp_path)
    assert (refused.code, refused.out) == (1, "")
    for name in bad:
        assert refused.err.count(f"  {name} ") == 1, name
    assert "KEYMAN_VAULT_ROLE_ID is not set" in refused.err
    assert "KEYMAN_VAULT_SECRET_ID is not set" in refused.err
    assert CANARY not in refused.err
    assert "Traceback" not in refused.err


def test_an_empty_database_is_said_with_the_command_that_helps(provisioned: Vault, service_database: URL) -> None:
    given = variables(provisioned.settings, service_database)
    refused = run_keyman("serve", "--port", str(free_port()), env=given)
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.count("\n") == 1
    assert "keyman db upgrade" in refused.err


def test_a_look_at_a_database_that_is_not_there_leaves_nothing_that_others_can_read(
    provisioned: Vault, service_database: URL, tmp_path: Path
) -> None:
    given = variables(provisioned.settings, service_database)
    run_keyman("serve", "--port", str(free_port()), env=given)
    keyman("db", "check", env=given)
    keyman("user", "list", env=given)
    assert keyman("db", "upgrade", env=given).code == 0
    assert stat.S_IMODE((tmp_path / "keyman.db").stat().st_mode) == 0o600


@pytest.mark.parametrize("revision", ["0000", "9999"])
def test_another_schema_is_said_with_the_command_that_helps(
    service_env: dict[str, str], tmp_path: Path, revision: str
) -> None:
    with sqlite3.connect(tmp_path / "keyman.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()
    refused = run_keyman("serve", "--port", str(free_port()), env=service_env)
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.count("\n") == 1
    assert "keyman db upgrade" in refused.err
    assert revision in refused.err


def test_a_database_that_is_away_is_said_without_its_password_and_does_not_stop_the_start(
    provisioned: Vault, tmp_path: Path
) -> None:
    given = variables(provisioned.settings, make_url(f"postgresql+asyncpg://u:{CANARY}@127.0.0.1:{free_port()}/keyman"))
    with serve(given, tmp_path, ready=False) as service:
        until(lambda: service.readiness() is not None, "an answer")
        assert service.readiness() == {
            "status": "degraded",
            "checks": {"database": "unreachable", "vault": "unreachable"},
        }
        assert httpx.get(f"{service.url}/livez", verify=NO_TLS).json() == {"status": "ok"}
        refused = httpx.get(f"{service.url}/api/keys", verify=NO_TLS)
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/database-unavailable")
        assert int(refused.headers["retry-after"]) > 0
        ended = service.live.end()
    assert (ended.code, ended.out) == (0, "")
    assert "ConnectionRefusedError" in ended.err
    assert CANARY not in ended.err
    assert "Traceback" not in ended.err


def test_a_port_in_use_is_said_in_one_sentence(service_env: dict[str, str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        refused = run_keyman("serve", "--port", str(port), env=service_env)
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.count("\n") == 1
    assert f"Port {port}" in refused.err


def test_the_parent_of_the_workers_does_not_load_litestar() -> None:
    """It is a third of what the parent would load, and each start would wait for it twice."""
    code = "import sys, keyman.cli.serve; sys.exit('litestar' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment())
    assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_that_cannot_start_says_why_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(f"def from_environment():\n    raise RuntimeError('{CANARY}')\n")
    code = (
        "from keyman.cli.serve import load_application\n"
        "from keyman.handover import Handover\n"
        "from keyman.http.worker import Listener\n"
        "load_application('broken', Handover({}), Listener(8000, 1, 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment()
    )
    assert (done.returncode, done.stdout) == (1, "")
    line = json.loads(done.stderr)
    assert (line["event"], line["fault"]) == ("the worker cannot start", "builtins.RuntimeError")
    assert CANARY not in done.stderr


# --- a wrapped secret ID


def wrapped(env: dict[str, str], root: RootClient, role: str = "keyman-management") -> dict[str, str]:
    """The variables with a wrapped secret ID of the role, good for a minute, in the place of the plain one."""
    token = root.wraps(f"auth/approle/role/{role}/secret-id")
    return {**{k: v for k, v in env.items() if k != "KEYMAN_VAULT_SECRET_ID"}, "KEYMAN_VAULT_WRAPPED_SECRET_ID": token}


@pytest.fixture
def root(provisioned: Vault) -> RootClient:
    return RootClient(provisioned.server.address, provisioned.server.root_token.reveal())


@pytest.mark.parametrize("workers", quick([1], [2]))
def test_a_wrapped_secret_id_is_taken_once_for_all_workers_and_for_those_that_follow(
    service_env: dict[str, str], root: RootClient, tmp_path: Path, workers: int
) -> None:
    given = wrapped(service_env, root)
    token = given["KEYMAN_VAULT_WRAPPED_SECRET_ID"]
    with serve(given, tmp_path, "--workers", str(workers)) as service:
        until(lambda: len(_logins(service)) == workers, "the login of each")
        os.kill(service.workers[0], signal.SIGKILL)
        until(lambda: len(_logins(service)) == workers + 1, "the login of the one that follows")
        until(service.is_ready, "readiness")
        ada = sign_up(service.url, "ada@example.com")
        assert ada.post("/api/keys", json={"service": "OPENAI", "api_key": VALUE}).status_code == 201
        running = processes(tmp_path)
        ended = service.live.end()
    assert ended.code == 0
    assert token not in ended.err
    assert not [command for command in running.values() if token in command]
    with serve(given, tmp_path / "again", ready=False) as service:
        refused = service.live.wait()
    assert (refused.code, refused.out) == (1, "")
    said = [line for line in refused.err.splitlines() if line.startswith("keyman: ")]
    assert len(said) == 1
    assert "used up" in said[0]
    assert "stolen" in said[0]
    assert token not in refused.err
    assert "Traceback" not in refused.err


def _logins(service: Service) -> list[object]:
    return [line for line in service.log() if line["event"] == "logged in to vault"]


def test_another_roles_wrapped_secret_id_stops_the_start(service_env: dict[str, str], root: RootClient) -> None:
    given = wrapped(service_env, root, "keyman-resolver")
    refused = run_keyman("serve", "--port", str(free_port()), env=given)
    assert (refused.code, refused.out) == (1, "")
    assert "holds no secret ID of the AppRole keyman-management" in refused.err
    assert given["KEYMAN_VAULT_WRAPPED_SECRET_ID"] not in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.slow
def test_a_start_that_fails_for_another_reason_does_not_use_it_up(
    service_env: dict[str, str], root: RootClient, tmp_path: Path
) -> None:
    given = wrapped(service_env, root)
    file = tmp_path / "wrapped"
    file.write_text(given.pop("KEYMAN_VAULT_WRAPPED_SECRET_ID") + "\n")
    given["KEYMAN_VAULT_WRAPPED_SECRET_ID_FILE"] = str(file)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert run_keyman("serve", "--port", str(listener.getsockname()[1]), env=given).code == 1
    nowhere = {**given, "KEYMAN_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/none.db"}
    assert run_keyman("serve", "--port", str(free_port()), env=nowhere).code == 1
    with serve(given, tmp_path) as service:
        assert service.is_ready()


# --- secrets


def test_no_child_of_a_plane_has_a_secret_in_its_environment(
    two_workers_after_a_kill: Service, provisioned: Vault
) -> None:
    environments = environments_below(two_workers_after_a_kill.live.pid)
    assert len(environments) >= 3  # and the helper of multiprocessing
    assert provisioned.settings.secret_id is not None
    secret = provisioned.settings.secret_id.reveal().encode()
    for environment_of_child in environments.values():
        assert str(two_workers_after_a_kill.live.directory.parent).encode() in environment_of_child
        for hidden in (b"\0KEYMAN_", b"\0VAULT_", b"\0PG", secret):
            assert hidden not in b"\0" + environment_of_child


# --- while it runs


def test_standard_output_is_empty_and_every_line_of_the_log_is_json_one_a_request(two_workers: Service) -> None:
    ada = sign_up(two_workers.url, "ada@example.com")
    stored = ada.post("/api/keys", json={"service": "OPENAI", "api_key": VALUE})
    ada.get("/api/keys", params={"q": CANARY})
    ada.get(f"/api/keys/{CANARY}")

    def requests_of_ada() -> list[dict[str, Any]]:
        return [line for line in two_workers.log() if line["event"] == "request" and line["route"].startswith("/api/")]

    until(lambda: len(requests_of_ada()) == 4, "a line for each request")
    requests = requests_of_ada()
    assert [(line["method"], line["route"], line["status"]) for line in requests] == [
        ("POST", "/api/auth/signup", 201),
        ("POST", "/api/keys", 201),
        ("GET", "/api/keys", 200),
        ("GET", "/api/keys/{key_id}", 404),
    ]
    assert requests[1]["request_id"] == stored.headers["x-request-id"]
    assert requests[1]["user_id"] == 1
    for word in (VALUE, CANARY, PASSWORD, "ada@example.com", str(ada.cookies.get("keyman_session"))):
        assert word not in two_workers.live.err
    assert two_workers.live.out == ""


def _counted(service: Service) -> float:
    lines = service.metrics().splitlines()
    name = 'keyman_http_request_seconds_count{method="GET",route="/livez",status="200"} '
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def _counted_more(service: Service, count: int) -> float:
    """Ask `count` times, and return what is counted then."""
    before = _counted(service)
    for _ in range(count):
        httpx.get(f"{service.url}/livez", verify=NO_TLS)
    # A request is counted after its answer, by a worker that may be slow.
    until(lambda: _counted(service) == before + count, "all counts")
    return before + count


def test_metrics_add_all_workers_up(two_workers: Service) -> None:
    assert len(two_workers.workers) == 2
    _counted_more(two_workers, 30)


def test_metrics_survive_a_worker_that_is_killed(two_workers: Service) -> None:
    counted = _counted_more(two_workers, 10)
    _replace_a_worker(two_workers)
    assert _counted(two_workers) == counted
    assert two_workers.live.process.poll() is None


@pytest.fixture
def hurt(service_vault: DisposableVault, service_database: URL, migrated_sqlite: Path) -> Iterator[dict[str, str]]:
    """A service over a Vault that the test harms."""
    copied(migrated_sqlite, Path(str(service_database.database)))
    yield variables(service_vault.settings, service_database)
    service_vault.repair()


def test_it_starts_with_vault_down_and_is_ready_once_vault_is(
    hurt: dict[str, str], service_vault: DisposableVault, tmp_path: Path
) -> None:
    service_vault.kill()
    with serve(hurt, tmp_path, ready=False) as service:
        until(lambda: service.readiness() is not None, "an answer")
        assert service.readiness() == {"status": "degraded", "checks": {"database": "ok", "vault": "unreachable"}}
        assert httpx.get(f"{service.url}/livez", verify=NO_TLS).status_code == 200
        ada = sign_up(service.url, "ada@example.com")
        refused = ada.post("/api/keys", json={"service": "OPENAI", "api_key": VALUE})
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/vault-unavailable")
        assert "cannot be reached" in refused.json()["detail"]
        assert ada.get("/api/keys").json() == []
        service_vault.start()
        until(lambda: (service.readiness() or {})["checks"]["vault"] == "sealed", "a sealed Vault")
        service_vault.unseal()
        until(service.is_ready, "readiness")
        assert ada.post("/api/keys", json={"service": "OPENAI", "api_key": VALUE}).status_code == 201


def test_what_lies_in_the_current_directory_is_never_run(two_workers: Service) -> None:
    for process in (two_workers.live.pid, *two_workers.workers):
        assert (Path(f"/proc/{process}/cwd") / "keyman" / "__init__.py").read_text() == ANOTHER_KEYMAN
    assert two_workers.is_ready()


# --- its end


def _in_flight(service: Service) -> float:
    """How many requests the plane answers, which it says itself: the parent hears of it once a second."""
    lines = httpx.get(f"{service.url}/metrics", verify=NO_TLS).text.splitlines()
    name = "keyman_http_requests_in_progress "
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def _refuses(service: Service) -> bool:
    try:
        httpx.get(f"{service.url}/livez", verify=NO_TLS)
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        pass  # accepted at the last moment
    return False


def test_a_stop_lets_the_requests_in_flight_finish_and_takes_no_new_ones(
    hurt: dict[str, str], service_vault: DisposableVault, tmp_path: Path
) -> None:
    with serve({**hurt, METRICS_ON_PLANE: "yes"}, tmp_path) as service, ThreadPoolExecutor() as threads:
        ada = sign_up(service.url, "ada@example.com")
        body = {"email": "ada@example.com", "password": PASSWORD}
        service_vault.freeze()
        slow = threads.submit(ada.post, "/api/keys", json={"service": "OPENAI", "api_key": VALUE})
        until(lambda: _in_flight(service) == 2, "a request in flight")  # and the one that asks
        busy = [
            threads.submit(httpx.post, f"{service.url}/api/auth/login", json=body, timeout=30, verify=NO_TLS)
            for _ in range(4)
        ]
        # On a slow machine, all of them may have been answered between two looks.
        until(lambda: _in_flight(service) >= 3 or all(each.done() for each in busy), "sign-ins in flight")
        service.live.send(signal.SIGTERM)
        until(lambda: _refuses(service), "a refusal")
        service_vault.thaw()
        answer = slow.result()
        assert answer.status_code == 201, answer.text
        assert answer.json()["last_4_chars"] == "sk-...1234"
        ended = service.live.wait()
        assert ended.code == 0
        # What was accepted was answered whole; what was not was never begun.
        for attempt in busy:
            fault = attempt.exception()
            assert attempt.result().status_code == 200 if fault is None else isinstance(fault, httpx.TransportError)
        with sqlite3.connect(tmp_path / "keyman.db") as connection:
            assert connection.execute("SELECT id FROM api_keys").fetchall() == [(answer.json()["id"],)]
        connection.close()


@pytest.mark.slow
def test_idle_connections_do_not_keep_it_from_stopping(service_env: dict[str, str], tmp_path: Path) -> None:
    with serve(service_env, tmp_path) as service, httpx.Client(base_url=service.url, verify=NO_TLS) as idle:
        assert idle.get("/livez").status_code == 200
        ended = service.live.end()
        assert ended.code == 0
        assert "refused to gracefully stop" not in ended.err


@pytest.mark.parametrize("number", quick([signal.SIGTERM], [signal.SIGINT]))
def test_a_stop_leaves_nothing_behind(service_env: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    with serve(service_env, tmp_path, "--workers", "2") as service:
        service.live.send_group(number)
        ended = service.live.wait()
        assert ended.code == 0
        assert "Traceback" not in ended.err
        until(lambda: not processes(tmp_path), "the end of every process")
        assert is_free(int(service.url.rpartition(":")[2]))
        assert not list(tmp_path.glob("keyman-metrics-*"))


@pytest.mark.parametrize("pause", quick([0.0], [0.3]))
def test_a_stop_during_the_start_is_heard(service_env: dict[str, str], tmp_path: Path, pause: float) -> None:
    with serve(service_env, tmp_path, ready=False) as service:
        until(lambda: service.workers, "a worker")
        time.sleep(pause)
        ended = service.live.end()
        assert ended.code == 0
        # A worker that has to be killed is one that did not hear.
        assert "refused to gracefully stop" not in ended.err
        # multiprocessing's helper notices the end of its parent a moment later.
        until(lambda: not processes(tmp_path), "the end of every process")


def test_a_stop_before_there_is_a_worker_is_heard(service_env: dict[str, str], tmp_path: Path) -> None:
    with serve(service_env, tmp_path, ready=False) as service:
        time.sleep(0.3)
        service.live.end()
        until(lambda: not processes(tmp_path), "the end of every process")


def _killed_main(service: Service, mark: Path) -> None:
    service.live.send(signal.SIGKILL)
    service.live.wait()
    until(lambda: not processes(mark), f"the end of {processes(mark)}")
    until(lambda: is_free(int(service.url.rpartition(":")[2])), "a free port")


def test_no_worker_outlives_a_main_process_that_is_killed(service_env: dict[str, str], tmp_path: Path) -> None:
    with serve(service_env, tmp_path, "--workers", "2") as service:
        _killed_main(service, tmp_path)


@pytest.mark.parametrize("pause", quick([0.15], [0.0]))
def test_no_worker_outlives_a_main_process_that_is_killed_during_the_start(
    service_env: dict[str, str], tmp_path: Path, pause: float
) -> None:
    with serve(service_env, tmp_path, ready=False) as service:
        until(lambda: service.workers, "a worker")
        time.sleep(pause)
        _killed_main(service, tmp_path)
