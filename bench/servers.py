"""Starts what is compared: OpenBao with raft, PostgreSQL with fsync, and the planes through their public commands."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
from sqlalchemy.engine import URL, make_url

from bench import wrk
from keyman.dev import embedded
from keyman.dev.embedded import EmbeddedVault
from keyman.processes import spawn, stop
from tests.support.cli import Finished, environment, run_keyman, serve, workers_of
from tests.support.database import PostgresServer, postgres_absence, postgres_server
from tests.support.http import NO_TLS, free_port
from tests.support.waiting import PATIENCE

EMAIL = "bench@example.com"
PASSWORD = "correct horse battery staple"  # noqa: S105  # of the benchmark's account
NEW_KEY = {"service": "OPENAI", "api_key": "sk-" + "x" * 45, "name": "bench"}

UNLIMITED = {"KEYMAN_MAX_KEYS": "0", "KEYMAN_MAX_WRITES": "0", "KEYMAN_RESOLVE_RATE": "100000"}
"""For measurements in which one account sends everything."""

START_TIMEOUT = 120.0
"""Seconds until a server answers. It takes two on an idle machine."""

QUIET = {"KEYMAN_LOG_LEVEL": "warning", "KEYMAN_DRAIN": "0"}


class Machine:
    """The servers of one run. `servers` are the process ids by name, for their processor time."""

    def __init__(self, directory: Path, vault: EmbeddedVault, postgres: PostgresServer, stack: ExitStack) -> None:
        self.directory = directory
        self.vault = vault
        self.postgres = postgres
        self.servers = {"OpenBao": vault.process.pid, "PostgreSQL": postgres.pid}
        self._stack = stack
        self._admin = environment(
            KEYMAN_VAULT_ADDR=vault.address,
            KEYMAN_VAULT_AUTH="token",
            KEYMAN_VAULT_TOKEN=vault.root_token.reveal(),
        )
        _command(["vault", "setup"], self._admin)
        for plane in ("management", "resolver", "gateway"):
            _command(["vault", "secret-id", f"keyman-{plane}", "--directory", directory / plane], self._admin)

    def database(self, name: str) -> URL:
        """Create a migrated database on the PostgreSQL."""
        return self._migrated(make_url(self.postgres.create_database(name)))

    def sqlite(self, name: str) -> URL:
        """Create a migrated SQLite database, which syncs at each commit."""
        return self._migrated(URL.create("sqlite+aiosqlite", database=str(self.directory / f"{name}.db")))

    def account(self, url: URL) -> dict[str, str]:
        """Create an account with all rights, and return the headers of its requests."""
        env = self._of_database(url)
        _command(["user", "add", EMAIL], env, stdin=f"{PASSWORD}\n")
        scopes = [word for scope in ("keys:read", "keys:write", "audit:read") for word in ("--scope", scope)]
        made = _command(["token", "create", "--user", EMAIL, "--name", "bench", *scopes], env)
        return {"Authorization": f"Bearer {made.out.strip()}"}

    def application(self, url: URL, services: Sequence[str] = ("OPENAI",), **variables: str) -> dict[str, str]:
        """Register an application for these services, and return the headers of its requests."""
        named = [word for service in services for word in ("--service", service)]
        made = _command(["app", "create", "bench", *named], {**self._of_database(url), **variables})
        return {"Authorization": f"Bearer {made.out.strip()}"}

    def plane(
        self, name: str, url: URL, *arguments: str, plane: str = "management", settings: Mapping[str, str] = UNLIMITED
    ) -> str:
        """Start a plane and return its address. `name` is that of its processor time."""
        login = {
            f"KEYMAN_VAULT_{part}_FILE": str(self.directory / plane / part.lower()) for part in ("ROLE_ID", "SECRET_ID")
        }
        directory = Path(tempfile.mkdtemp(prefix="plane-", dir=self.directory))
        env = {**self._of_database(url), **login, **QUIET, **settings, "KEYMAN_VAULT_ADDR": self.vault.address}
        running = self._stack.enter_context(serve(env, directory, "--plane", plane, *arguments, ready=False))
        wait(lambda: running.is_ready() or running.live.process.poll() is not None, name)
        if running.live.process.poll() is not None:
            raise click.ClickException(f"{name} did not start: {running.live.err}")
        self.servers[name] = running.live.pid
        return running.url

    def workers(self, name: str) -> list[int]:
        """Return the process ids of the workers of a plane."""
        return workers_of(self.servers[name])

    def application_server(self, name: str, factory: str, **variables: str) -> str:
        """Start granian with an application of this package, as keyman's worker runs, and return its address."""
        command: list[str | Path] = [
            Path(sys.executable).with_name("granian"),
            "--interface",
            "asgi",
            "--loop",
            "uvloop",
            "--no-ws",
        ]
        command += ["--workers", "1", "--log-level", "error", "--factory", factory]
        return self.program(name, command, **variables)

    def module(self, name: str, module: str, **variables: str) -> str:
        """Start a module of this package that takes `--port`, and return its address."""
        return self.program(name, [sys.executable, "-m", module], **variables)

    def program(self, name: str, command: Sequence[str | Path], **variables: str) -> str:
        """Start a server that takes `--port`, wait until it answers, and return its address."""
        port = free_port()
        env = {"PYTHONPATH": str(Path(__file__).parent.parent), **environment(**variables)}
        with (self.directory / f"{port}.log").open("wb") as log:
            process = spawn([*command, "--port", str(port)], env, output=log.fileno())
        self._stack.callback(stop, process)
        self.servers[name] = process.pid
        url = f"http://127.0.0.1:{port}"
        wait(lambda: process.poll() is not None or answers(url), name)
        if process.poll() is not None:
            raise click.ClickException(f"{name} did not start: {(self.directory / f'{port}.log').read_text()}")
        return url

    def root(self) -> dict[str, str]:
        """Return the headers of requests to Vault with the root token."""
        return {"X-Vault-Token": self.vault.root_token.reveal()}

    def ask_vault(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Send a request to Vault with the root token."""
        answer = httpx.request(
            method, f"{self.vault.address}{path}", headers=self.root(), json=body, timeout=PATIENCE, verify=NO_TLS
        )
        answer.raise_for_status()
        return dict(json.loads(answer.content or b"{}"))

    def _migrated(self, url: URL) -> URL:
        _command(["db", "upgrade"], self._of_database(url))
        return url

    def _of_database(self, url: URL) -> dict[str, str]:
        return environment(KEYMAN_DATABASE_URL=url.render_as_string(hide_password=False))


@contextmanager
def machine(*, needs_wrk: bool = True) -> Iterator[Machine]:
    """Start OpenBao and PostgreSQL, and stop all servers at the end. Raises ClickException if a program is missing."""
    if needs_wrk:
        wrk.require()
    if absence := postgres_absence():
        raise click.ClickException(f"PostgreSQL is missing ({absence}). On Debian: apt-get install postgresql")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keyman-bench-")))
        vault = asyncio.run(embedded.start(directory / "vault"))
        stack.callback(vault.close)
        server = stack.enter_context(postgres_server(durable=True, log_statements=False))
        yield Machine(directory, vault, server, stack)


def wait(condition: Callable[[], object], what: str) -> None:
    """Return once `condition()` is true. Raises ClickException after START_TIMEOUT."""
    end = time.monotonic() + START_TIMEOUT
    while not condition():
        if time.monotonic() > end:
            raise click.ClickException(f"{what} did not start within {START_TIMEOUT:.0f} s.")
        time.sleep(0.1)


def answers(url: str) -> bool:
    """Return True if a server answers there, with any status."""
    try:
        httpx.get(url, timeout=PATIENCE, verify=NO_TLS)
    except httpx.TransportError:
        return False
    return True


def load() -> str:
    """Return the load of the machine, which belongs to every figure."""
    return f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"


def _command(arguments: list[str | Path], env: Mapping[str, str], *, stdin: str = "") -> Finished:
    done = run_keyman(*arguments, env=env, stdin=stdin)
    if done.code != 0:
        raise click.ClickException(f"keyman {arguments[0]} failed: {done.err}")
    return done
