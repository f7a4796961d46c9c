"""The management plane behind its real HTTP server, in a process of its own, as `keyman serve` runs it.

Only the parameters of Argon2id differ, unless a test wants production's, with which hundreds of sign-ins would take
minutes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from argon2 import PasswordHasher
from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.log import LogLevels
from sqlalchemy.engine import URL

from keyman.cli.serve import HTTP1
from keyman.config.settings import load
from keyman.config.vault import VaultSettings
from keyman.http.edge import Edge
from keyman.identity.passwords import Passwords
from keyman.logs import configure_logging
from keyman.planes.management.app import create_app
from keyman.processes import die_with_parent
from tests.support.cli import environment
from tests.support.http import NO_TLS, free_port
from tests.support.waiting import PATIENCE

PRODUCTION = "TEST_PRODUCTION_ARGON2"
"""A variable that is set for production's parameters of Argon2id."""


def application() -> Edge:
    """What the server's worker process runs."""
    die_with_parent(os.getppid(), signal.SIGKILL)
    settings = load(os.environ)
    configure_logging("json", "warning")
    quick = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    return create_app(settings, passwords=None if PRODUCTION in os.environ else Passwords(quick))


@contextmanager
def served(database: URL, vault: VaultSettings, log: Path, **more: str) -> Iterator[str]:
    """Run a plane over a migrated database; yields its URL. `log` gets what it says. `more` are further variables."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    assert vault.role_id is not None
    assert vault.secret_id is not None
    variables = environment(
        KEYMAN_DATABASE_URL=database.render_as_string(hide_password=False),
        KEYMAN_VAULT_ADDR=vault.address,
        KEYMAN_VAULT_ROLE_ID=vault.role_id,
        KEYMAN_VAULT_SECRET_ID=vault.secret_id.reveal(),
        KEYMAN_PUBLIC_URL=url,
        KEYMAN_SIGNUP="open",
        **{"KEYMAN_MAX_WRITES": "0", **more},
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.planes.management.api.served", str(port), str(os.getpid())],
            env=variables,
            cwd=Path(__file__).parents[4],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not _is_ready(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=PATIENCE, verify=NO_TLS).status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]), signal.SIGTERM)
    Granian(
        "tests.planes.management.api.served:application",
        factory=True,
        address="127.0.0.1",
        port=int(sys.argv[1]),
        interface=Interfaces.ASGI,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        http1_settings=HTTP1,
        websockets=False,
        log_level=LogLevels.warning,
    ).serve()
