"""The helpers for outside parts: PostgreSQL, Vault in a container, Chromium, what is required."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.support import fast, long, needs, scratch
from tests.support.browser import chromium_absence, chromium_path
from tests.support.cli import has_ended
from tests.support.containers import docker_absence, vault_container
from tests.support.database import PostgresServer, postgres_absence, postgres_server
from tests.support.needs import quick, require
from tests.support.waiting import PATIENCE, until

ROOT = Path(__file__).parent.parent
# A process of its own for what ends the process: it tells its server's process ID and directory, and waits. In short
# sleeps: a signal that comes in the moment before a sleep is heard after it.
HOLD_A_SERVER = """
import time
from tests.support.database import postgres_server
with postgres_server() as server:
    print(server.pid, server.log.parent, flush=True)
    while True:
        time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    require("postgres", postgres_absence())
    with postgres_server() as running:
        yield running


def ask(url: str, query: str) -> object:
    """What the database at a SQLAlchemy URL answers to a query for one value."""

    async def run() -> object:
        connection = await asyncpg.connect(url.replace("+asyncpg", "").partition("?")[0], timeout=10)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(run())


def get(address: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, object]]:
    """Status and JSON of an HTTP GET."""
    with closing(HTTPConnection(urlsplit(address).netloc, timeout=10)) as connection:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


# --- Vault in a container


def test_a_container_answers_as_vault_and_is_removed() -> None:
    require("docker", docker_absence())
    with vault_container() as vault:
        status, seal = get(vault.address, "/v1/sys/seal-status", {})
        assert (status, seal["initialized"], seal["sealed"]) == (200, True, False)
        status, _ = get(vault.address, "/v1/auth/token/lookup-self", {"X-Vault-Token": vault.root_token})
        assert status == 200
        assert vault.root_token not in repr(vault)
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the platform has it
        get(vault.address, "/v1/sys/seal-status", {})


@pytest.mark.parametrize("host", ["unix:///nobody/listens.sock", "tcp://127.0.0.1:1"])
def test_a_docker_engine_that_does_not_answer_is_an_absence(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    reason = docker_absence.__wrapped__()
    assert reason is not None
    assert reason.startswith(f"no Docker engine answers at {host}: ")
    assert "\n" not in reason


def test_an_image_that_nobody_has_is_an_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    require("docker", docker_absence())
    monkeypatch.setenv("KEYMAN_TEST_VAULT_IMAGE", "localhost:1/nobody/has-this:1")
    reason = docker_absence.__wrapped__()
    assert reason is not None
    assert "localhost:1/nobody/has-this:1" in reason


# --- PostgreSQL


def test_postgres_goes_away_and_comes_back_on_its_port(own_postgres: PostgresServer) -> None:
    url = own_postgres.create_database("comes_back")
    ask(url, "CREATE TABLE t AS SELECT 7 AS n")
    port, first = own_postgres.port, own_postgres.pid
    own_postgres.stop()
    own_postgres.stop()
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        ask(url, "SELECT 1")
    with pytest.raises(RuntimeError):
        _ = own_postgres.pid
    own_postgres.start()
    assert own_postgres.port == port
    assert own_postgres.pid != first
    assert ask(url, "SELECT n FROM t") == 7
    own_postgres.stop(crash=True)
    own_postgres.start()
    assert ask(url, "SELECT n FROM t") == 7
    own_postgres.drop_database("comes_back")
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        ask(url, "SELECT 1")


def test_postgres_users_are_as_in_production(own_postgres: PostgresServer) -> None:
    url = own_postgres.create_database("users")
    assert ask(url, "SELECT current_setting('is_superuser')") == "off"
    assert ask(url, "SELECT current_setting('max_connections')") == "200"
    assert ask(url, "SELECT current_setting('fsync')") == "off"
    secret = urlsplit(url).password or ""
    with pytest.raises(asyncpg.InvalidPasswordError):
        ask(url.replace(secret, "wrong"), "SELECT 1")
    assert os.stat(own_postgres.log.parent / "data").st_uid != 0
    with pytest.raises(ValueError, match="SQL name"):
        own_postgres.create_database("users; DROP DATABASE users")


def test_postgres_log_has_the_statements_and_not_the_password(own_postgres: PostgresServer) -> None:
    url = own_postgres.create_database("logged")
    ask(url, "SELECT 'canary-in-a-statement'")
    ask(url, "CREATE TABLE t (v text PRIMARY KEY)")
    with pytest.raises(asyncpg.UniqueViolationError):
        ask(url, "INSERT INTO t VALUES ('canary-in-a-row'), ('canary-in-a-row')")
    log = own_postgres.log.read_text()
    assert "canary-in-a-statement" in log
    assert "canary-in-a-row" in log
    assert (urlsplit(url).password or "") not in log


def test_several_postgres_servers_run_at_once(own_postgres: PostgresServer) -> None:
    with postgres_server(durable=True, log_statements=False) as other:
        assert other.port != own_postgres.port
        url = other.create_database("other")
        assert ask(url, "SELECT current_setting('fsync') || current_setting('log_statement')") == "onnone"
        assert own_postgres.execute("SELECT count(*) FROM pg_database WHERE datname = 'other'") == "0"
        pid, directory = other.pid, other.log.parent
    assert has_ended(pid)
    assert not directory.exists()


@pytest.mark.parametrize("how", quick([signal.SIGKILL], [signal.SIGINT, signal.SIGTERM]))
def test_postgres_goes_with_the_process_that_asked_for_it(how: signal.Signals) -> None:
    require("postgres", postgres_absence())
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_A_SERVER], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as holder:
        assert holder.stdout is not None
        pid, directory = holder.stdout.readline().split()
        holder.send_signal(how)
        holder.wait(PATIENCE)
    until(lambda: has_ended(int(pid)) and not Path(os.fsdecode(directory)).exists(), "the end of the server")


# --- Chromium


def test_chromium_renders_a_page() -> None:
    require("chromium", chromium_absence())
    done = subprocess.run(
        [
            *(str(chromium_path()), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--dump-dom", "data:text/html,<p id=p></p><script>p.textContent = 6 * 7</script>"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert '<p id="p">42</p>' in done.stdout


def test_no_chromium_on_the_path_is_an_absence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert chromium_path() is None
    assert chromium_absence() is not None


# --- Skip or fail, and saying so


def test_an_absent_part_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(needs.VARIABLE, raising=False)
    require("docker", None)
    with pytest.raises(pytest.skip.Exception, match="docker: gone fishing"):
        require("docker", "gone fishing")
    monkeypatch.setenv(needs.VARIABLE, "postgres, docker")
    require("docker", None)
    with pytest.raises(pytest.fail.Exception, match="demands docker, but gone fishing"):
        require("docker", "gone fishing")
    with pytest.raises(pytest.skip.Exception):
        require("chromium", "gone fishing")
    with pytest.raises(ValueError, match="podman"):
        require("podman", None)


SKIPPING = """
    import pytest
    from tests.support.needs import require

    @pytest.fixture(scope="session")
    def browser():
        require("chromium", "no browser")

    @pytest.mark.parametrize("n", [1, 2])
    def test_page(browser, n): ...

    def test_engine():
        require("docker", "no engine")

    def test_runs(): ...
"""
SKIPPING_WHOLE_FILE = """
    import pytest
    pytest.skip("no such platform", allow_module_level=True)
"""
RUNNING = "def test_runs(): ..."


def closing_lines(directory: Path, files: dict[str, str], *options: str, demands: str = "") -> list[str]:
    """The output of a pytest run of its own, from the section "not exercised" on."""
    for name, text in files.items():
        (directory / name).write_text(textwrap.dedent(text))
    (directory / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider"),
            *("-p", "xdist", "-p", "tests.support.needs", *options),
        ],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT), needs.VARIABLE: demands, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line]
    starts = [number for number, line in enumerate(lines) if "- not exercised -" in line]
    return lines[starts[0] + 1 :] if starts else lines


@pytest.mark.parametrize("options", quick([()], [("-n", "2")]), ids=["alone", "xdist"])
def test_the_run_ends_with_what_it_did_not_exercise(tmp_path: Path, options: tuple[str, ...]) -> None:
    files = {"test_one.py": SKIPPING, "test_two.py": SKIPPING_WHOLE_FILE}
    *skipped, last = closing_lines(tmp_path, files, *options)
    assert skipped == ["2 skipped: chromium: no browser", "1 skipped: docker: no engine", "1 skipped: no such platform"]
    assert "1 passed, 4 skipped" in last


@pytest.mark.parametrize("options", quick([("-n", "2")], [()]), ids=["alone", "xdist"])
def test_the_run_ends_with_a_word_that_everything_was_exercised(tmp_path: Path, options: tuple[str, ...]) -> None:
    word, last = closing_lines(tmp_path, {"test_one.py": RUNNING}, *options)
    assert word == "everything was exercised"
    assert "1 passed" in last


@pytest.mark.parametrize("options", [("test_one.py",), ("-k", "runs")])
def test_part_of_the_tests_is_not_everything(tmp_path: Path, options: tuple[str, ...]) -> None:
    word, _ = closing_lines(tmp_path, {"test_one.py": RUNNING}, *options)
    assert word.startswith("nothing was skipped, but")


def test_a_demanded_part_that_is_absent_fails_the_run(tmp_path: Path) -> None:
    *skipped, last = closing_lines(tmp_path, {"test_one.py": SKIPPING}, demands="docker")
    assert skipped == ["2 skipped: chromium: no browser"]
    assert "1 failed, 1 passed, 2 skipped" in last


def test_an_unknown_demand_stops_the_run(tmp_path: Path) -> None:
    output = "\n".join(closing_lines(tmp_path, {"test_one.py": RUNNING}, demands="postgress"))
    assert "KEYMAN_TEST_REQUIRE names ['postgress']" in output
    assert "passed" not in output


# --- scratch


def test_files_lie_in_memory_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "ENOUGH", 1)
    variables: dict[str, str] = {}
    scratch.use(variables, tmp_path)
    assert variables == {"TMPDIR": str(tmp_path)}


def test_files_lie_where_a_developer_wants_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "ENOUGH", 1)
    variables = {"TMPDIR": "/elsewhere"}
    scratch.use(variables, tmp_path)
    assert variables == {"TMPDIR": "/elsewhere"}


def test_memory_without_room_or_that_is_not_there_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables: dict[str, str] = {}
    scratch.use(variables, tmp_path / "missing")
    monkeypatch.setattr(scratch, "ENOUGH", 1 << 60)
    scratch.use(variables, tmp_path)
    assert variables == {}


def test_what_is_left_to_ci_is_there() -> None:
    for path, names in long.LONG.items():
        source = (ROOT / path).read_text()
        assert [name for name in names if f"def {name.partition('[')[0]}(" not in source] == [], path


def test_what_a_fast_run_leaves_out_is_there() -> None:
    """A name that no test has any more would leave out nothing, and the run would be slow for no visible reason."""
    assert [path for path in fast.SLOW if not (ROOT / path).exists()] == []
    for path, names in fast.SLOW_TESTS.items():
        source = (ROOT / path).read_text()
        assert [name for name in names if f"def {name}(" not in source] == [], path
