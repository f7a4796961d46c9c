"""What all commands have in common: exit codes, output streams, and errors in sentences."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from keyman.cli import COMMANDS as ENTRIES
from keyman.cli import cli
from keyman.dev.home import Home
from keyman.keys.deployment import SCHEMA_REVISION
from tests.cli.transcript import keyman
from tests.support.cli import KEYMAN, Finished, environment, run_keyman, without_privilege
from tests.support.database import PostgresServer
from tests.support.http import free_port
from tests.support.waiting import PATIENCE

COMMANDS: dict[str, tuple[str, ...]] = {
    "db upgrade": ("db", "upgrade"),
    "db check": ("db", "check"),
    "user add": ("user", "add", "ada@example.com"),
    "user list": ("user", "list", "--json"),
    "user disable": ("user", "disable", "ada@example.com"),
    "user enable": ("user", "enable", "ada@example.com"),
    "user passwd": ("user", "passwd", "ada@example.com"),
    "token create": ("token", "create", "--user", "ada@example.com", "--name", "ci"),
    "token list": ("token", "list"),
    "token revoke": ("token", "revoke", "1"),
}
"""A right use of every command that works on a database."""

PASSWORD = "correct horse battery staple\n"

SOME = ["db upgrade", "db check", "user add", "token list"]
"""One of each way to reach the database."""


def failed(done: Finished) -> str:
    """What a command said that failed for a reason of its own: one sentence or more, no traceback, nothing else."""
    assert done.code == 1, done
    assert done.out == ""
    assert done.err.startswith("keyman: ")
    assert "Traceback" not in done.err
    assert done.err.endswith("\n")
    return done.err


def used(*arguments: str | Path) -> Result:
    """A command in this process, for what is decided before it works on anything."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="keyman")


def misused(done: Result) -> None:
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("Usage: keyman")


# --- usage


def test_the_help_shows_every_summary_whole_and_imports_no_command() -> None:
    """The summaries are written twice, so that `keyman --help` does not wait for the libraries of all commands."""
    context = click.Context(cli)
    for name, declared in ENTRIES.items():
        command = cli.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(limit=1_000) == declared.summary
    for arguments in ((), *((name,) for name in ENTRIES)):
        assert "..." not in used(*arguments, "--help").stdout.partition("Commands:")[2]
    seen = "import sys, keyman.cli as c; c.cli(['--help'], standalone_mode=False); print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize(("typed", "meant"), [(("doktor",), "doctor"), (("app", "lst"), "list")])
def test_a_command_that_is_mistyped_is_recognised(typed: tuple[str, ...], meant: str) -> None:
    done = used(*typed)
    misused(done)
    assert f"Did you mean '{meant}'?" in done.stderr


def test_keyman_home_is_the_default_of_home(tmp_path: Path) -> None:
    done = run_keyman("user", "list", env={**environment(), "KEYMAN_HOME": str(tmp_path / "there")})
    assert f"First run: keyman dev --home {tmp_path / 'there'}" in failed(done)


def test_help_is_a_result_and_lists_every_command() -> None:
    done = run_keyman("--help")
    assert (done.code, done.err) == (0, "")
    for name in ("db", "dev", "serve", "token", "user"):
        assert f"\n  {name} " in done.out
    assert used("-h").stdout == used("--help").stdout


@pytest.mark.parametrize("name", [*COMMANDS, "db", "dev", "serve", "token", "user"])
def test_every_command_explains_itself(name: str) -> None:
    done = used(*name.split(), "--help")
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"Usage: keyman {name}" in done.stdout
    assert len(done.stdout.splitlines()[2].strip()) > 10


def test_the_version_is_a_result() -> None:
    done = used("--version")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("keyman ")


def test_wrong_usage_ends_with_2_and_says_what_is_right() -> None:
    done = run_keyman("user", "add")
    assert (done.code, done.out) == (2, "")
    assert "Usage: keyman user add" in done.err
    assert "EMAIL" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("db",),
        ("db", "nonsense"),
        ("--nonsense",),
        ("user", "list", "--nonsense"),
        ("user", "add"),
        ("user", "add", "ada@example.com", "a password as an argument"),
        ("user", "add", "ada@example.com", "--password", "a password as an argument"),
        ("user", "disable", "not-an-address"),
        ("token", "create"),
        ("token", "create", "--user", "ada@example.com", "--name", " "),
        ("token", "create", "--user", "ada@example.com", "--name", "x", "--scope", "keys:everything"),
        ("token", "create", "--user", "ada@example.com", "--name", "x", "--expires-at", "tomorrow"),
        ("token", "create", "--user", "ada@example.com", "--name", "x", "--expires-at", "2001-01-01T00:00:00Z"),
        ("token", "revoke", "0"),
        ("token", "revoke", "one"),
        ("serve", "--port", "0"),
        ("serve", "--port", "70000"),
        ("serve", "--plane", "nonsense"),
        ("serve", "--workers", "0"),
        ("dev", "--port", "65536"),
    ],
    ids=" ".join,
)
def test_wrong_usage_touches_nothing(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYMAN_DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    monkeypatch.chdir(tmp_path)
    misused(used(*arguments))
    assert not list(tmp_path.iterdir())


# --- which database


@pytest.mark.parametrize("name", ["db upgrade", "token list"])
def test_without_settings_the_variable_and_the_option_are_named(name: str) -> None:
    said = failed(keyman(*COMMANDS[name], stdin=PASSWORD))
    assert "KEYMAN_DATABASE_URL is not set (nor KEYMAN_DATABASE_URL_FILE)" in said
    assert "add --home with its directory, such as --home .keyman" in said


def test_a_database_can_be_named_by_a_file(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "url").write_text(env.pop("KEYMAN_DATABASE_URL") + "\n")
    assert keyman("db", "check", env={**env, "KEYMAN_DATABASE_URL_FILE": str(tmp_path / "url")}).code == 0


def test_a_home_goes_before_the_variables_of_the_shell(env: dict[str, str], tmp_path: Path) -> None:
    home = tmp_path / "höme with spaces"
    home.mkdir()
    Home(home).write_settings({"KEYMAN_DATABASE_URL": env["KEYMAN_DATABASE_URL"]})
    elsewhere = environment(KEYMAN_DATABASE_URL="sqlite+aiosqlite:////nonexistent/keyman.db")
    assert keyman("user", "add", "ada@example.com", "--home", home, env=elsewhere, stdin=PASSWORD).code == 0
    assert "ada@example.com" in keyman("user", "list", "--home", home, env=elsewhere).out
    assert "ada@example.com" in keyman("user", "list", env=env).out
    # Relative to where the command is given, like any path.
    assert run_keyman("db", "check", "--home", home.name, env=elsewhere, cwd=tmp_path).code == 0


@pytest.mark.parametrize("name", ["db upgrade", "token list"])
def test_a_home_that_was_never_used_says_how_to_use_it(name: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    said = failed(keyman(*COMMANDS[name], "--home", home, stdin=PASSWORD))
    assert f"keyman dev --home {home}" in said
    assert not home.exists()


def test_a_home_that_is_a_file_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    misused(used("db", "check", "--home", tmp_path / "home"))


@pytest.mark.parametrize("name", ["user list", "user passwd", "token create"])
def test_a_database_that_is_not_migrated_says_which_command_helps(name: str, tmp_path: Path) -> None:
    env = environment(KEYMAN_DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    said = failed(keyman(*COMMANDS[name], env=env, stdin=PASSWORD))
    assert "keyman db upgrade" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())  # a look makes nothing


@pytest.mark.parametrize("name", ["token create"])
def test_another_schema_says_which_command_helps(name: str, env: dict[str, str], file: Path) -> None:
    connection = sqlite3.connect(file)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '0000'")
    connection.close()
    said = failed(keyman(*COMMANDS[name], env=env))
    assert "keyman db upgrade" in said
    assert "0000" in said


# --- what is wrong with the database


def _corrupted(file: Path) -> None:
    file.write_bytes(b"this is no database, whatever its name says\n" * 100)


def _truncated(file: Path) -> None:
    for sidecar in file.parent.glob(f"{file.name}-*"):
        sidecar.unlink()
    with file.open("r+b") as opened:
        opened.truncate(8192)


def _damaged(file: Path) -> None:
    connection = sqlite3.connect(file)
    with connection:
        for table in ("idempotency", "api_keys", "audit_log", "sessions", "api_tokens", "users"):
            connection.execute(f"DROP TABLE {table}")
    connection.close()


def _directory(file: Path) -> None:
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()
    file.mkdir()


def _unreadable(file: Path) -> None:
    file.chmod(0)


HARMED = [
    *[(_corrupted, name) for name in SOME],
    *[(_truncated, name) for name in ("user add", "token list")],
    *[(_damaged, name) for name in ("db upgrade", "db check", "token list")],
    *[(_directory, name) for name in ("db upgrade", "token list")],
    (_unreadable, "user add"),
]


@pytest.mark.parametrize(("harm", "name"), HARMED)
def test_a_file_that_is_no_database_is_said_in_words(
    name: str, harm: Callable[[Path], None], env: dict[str, str], file: Path
) -> None:
    harm(file)
    if harm is _unreadable:  # by root in this process, it would be read
        done = run_keyman(*COMMANDS[name], env=env, stdin=PASSWORD, preexec_fn=without_privilege)
    else:
        done = keyman(*COMMANDS[name], env=env, stdin=PASSWORD)
    if (name, harm) == ("db check", _damaged):
        assert done.code == 1  # that is its result
        assert "keyman db upgrade" in done.err or "restore" in done.err
        assert "Traceback" not in done.err
    elif (name, harm) == ("db upgrade", _damaged) and done.code == 0:
        assert done.err == f"Already at {SCHEMA_REVISION}.\n"  # `db check` is who finds out
    else:
        said = failed(done)
        assert str(file) not in said or name.startswith("db")
        assert "database" in said


@pytest.mark.parametrize("name", ["db upgrade", "user add", "token list"])
def test_a_directory_that_cannot_be_written_to_is_said_in_words(name: str, env: dict[str, str], file: Path) -> None:
    # In WAL mode SQLite has to write beside the file even to read it.
    for path in file.parent.iterdir():
        if path != file and path.is_file():
            path.unlink()
    file.chmod(0o400)
    file.parent.chmod(0o500)
    try:
        done = run_keyman(*COMMANDS[name], env=env, stdin=PASSWORD, preexec_fn=without_privilege)
    finally:
        file.parent.chmod(0o700)
    if done.code == 0:
        assert name in ("db check", "token list", "db upgrade")  # those that change nothing here may do without
    else:
        assert "database" in failed(done)


@pytest.mark.parametrize("name", ["db upgrade", "db check", "token list"])
def test_a_server_that_is_not_there_is_said_in_words_without_its_password(name: str) -> None:
    url = f"postgresql+asyncpg://keyman:c4n4ry@127.0.0.1:{free_port()}/keyman"
    said = failed(keyman(*COMMANDS[name], env=environment(KEYMAN_DATABASE_URL=url), stdin=PASSWORD))
    assert "c4n4ry" not in said
    assert "ConnectionRefusedError" in said  # what to look for, whichever command it was


@pytest.mark.parametrize("name", ["db upgrade", "user list"])
def test_a_server_that_refuses_is_said_in_words_without_its_password(name: str, postgres: PostgresServer) -> None:
    url = f"postgresql+asyncpg://keyman:c4n4ry@127.0.0.1:{postgres.port}/postgres"
    said = failed(keyman(*COMMANDS[name], env=environment(KEYMAN_DATABASE_URL=url)))
    assert "c4n4ry" not in said
    assert "InvalidPasswordError" in said


# --- where output goes


def _redirected(command: str, env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", command], env={**env, "KEYMAN": str(KEYMAN)}, capture_output=True, timeout=PATIENCE, check=False
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_a_result_is_a_failure_in_words(env: dict[str, str], unbuffered: str) -> None:
    done = _redirected("$KEYMAN user list > /dev/full", env | {"PYTHONUNBUFFERED": unbuffered})
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert done.stderr


def test_a_reader_that_leaves_early_gets_no_traceback(env: dict[str, str]) -> None:
    done = _redirected("set -o pipefail; $KEYMAN user list | true", env)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_traceback(env: dict[str, str], closed: str) -> None:
    done = _redirected(f"$KEYMAN user add ada@example.com {closed}", env)
    assert b"Traceback" not in done.stderr + done.stdout
    assert done.returncode == 1  # no password came


def test_what_is_interrupted_says_nothing_of_its_inside(env: dict[str, str]) -> None:
    reading, writing = os.pipe()
    options: dict[str, Any] = {"stdin": reading, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": env}
    with subprocess.Popen([KEYMAN, "user", "add", "ada@example.com"], **options) as process:
        os.close(reading)
        try:
            # It reads by now, or not yet: both must end well.
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
            os.close(writing)
    assert process.returncode != 0
    assert b"Traceback" not in out + err or b"site.py" in err  # the interpreter itself, before keyman runs
