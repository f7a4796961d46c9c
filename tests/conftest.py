"""Fixtures for all tests: a Vault and a PostgreSQL for each worker, a database for each test, keyman over them."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator, Iterator
from io import StringIO
from pathlib import Path
from uuid import uuid4

import pytest
from argon2 import PasswordHasher
from hypothesis import HealthCheck, settings
from sqlalchemy.engine import URL, make_url

from keyman import migrations
from keyman.config.vault import VaultSettings
from keyman.dev import embedded
from keyman.dev.embedded import EmbeddedVault
from keyman.identity.passwords import Passwords
from keyman.logs import Repeats, configure_logging
from keyman.planes.management import housekeeping
from keyman.storage import faults
from keyman.storage.transactions import Database
from keyman.vault import provision
from tests.support import fast, long, needs, scratch
from tests.support.database import Copies, PostgresServer, copied, postgres_absence, postgres_server, sqlite_at
from tests.support.interrupts import take_interrupts
from tests.support.logs import own_logging
from tests.support.needs import pytest_terminal_summary, require
from tests.support.planes import Plane, Vault, plane_at

__all__ = ["pytest_terminal_summary"]  # a hook of the run, found here by pytest

# No deadline: machines are shared and noisy. Fixtures are built once for all examples of a test, on purpose.
# The inputs of a property are the same in each run, so that a failure belongs to a change. To look for new ones, set
# KEYMAN_TEST_EXPLORE=1.
settings.register_profile(
    "keyman",
    deadline=None,
    derandomize=os.environ.get("KEYMAN_TEST_EXPLORE") != "1",
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=fast.examples(100),
)
settings.load_profile("keyman")


FIRST = (
    "tests/docker/test_stack.py",
    "tests/dev/test_run.py",
    "tests/cli/test_serve.py",
    "tests/attack/",
    "tests/test_readme.py",
    "tests/faults/",
    "tests/cli/",
    "tests/vault/",
    "tests/test_support.py",
    "tests/planes/management/web/test_looks.py",
    "tests/planes/management/web/test_form.py",
    "tests/planes/management/web/",
    "tests/planes/management/api/test_schemathesis.py",
    "tests/planes/management/api/test_canary.py",
    "tests/planes/resolver/test_schemathesis.py",
)
"""The files that take longest, mostly because they start processes or wait for containers.

Those with a browser come after the stack has made its networks: Chromium ends what it loads when a network appears.
"""


def pytest_configure() -> None:
    take_interrupts()
    needs.pytest_configure()
    scratch.use()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return fast.is_left_out(collection_path) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the slow tests unless they are wanted, and put the long files first, so that the workers end together."""
    fast.narrow(config, items)
    long.mark(items)
    needs.skip_slow(items)
    items.sort(key=lambda item: next((n for n, path in enumerate(FIRST) if item.nodeid.startswith(path)), len(FIRST)))


def pytest_collection_finish() -> None:
    """Take what was imported from the garbage collector, and let it run less often. It would take a tenth of a run."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _bare_environment() -> Iterator[None]:
    """Remove the variables that a developer's shell has for another keyman or Vault."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("KEYMAN_", "VAULT_", "BAO_")) and not name.startswith("KEYMAN_TEST_"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_housekeeping() -> Iterator[None]:
    """Let planes do nothing on their own. One that many tests share would store rows while another test counts them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("INTERVAL", "TOTALS_INTERVAL"):
            patch.setattr(housekeeping, name, 1e9)
        yield


@pytest.fixture(scope="session")
def embedded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedVault]:
    """The worker's Vault; tests that harm one start their own."""
    server = asyncio.run(embedded.start(tmp_path_factory.mktemp("vault")))
    yield server
    server.close()


@pytest.fixture(scope="session")
def provisioned(embedded_server: EmbeddedVault) -> Vault:
    """The worker's Vault, set up for keyman, with the credentials of the planes' roles."""
    return asyncio.run(_provisioned(embedded_server))


async def _provisioned(server: EmbeddedVault) -> Vault:
    admin = server.admin()
    try:
        await provision.provision(admin, VaultSettings(address=server.address))
        roles = [
            await provision.issue_credentials(admin, f"keyman-{plane}")
            for plane in ("management", "resolver", "gateway")
        ]
    finally:
        await admin.close()
    return Vault(server, *(VaultSettings(server.address, role_id=id_, secret_id=secret) for id_, secret in roles))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The worker's PostgreSQL; tests that harm one start their own."""
    require("postgres", postgres_absence())
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    """A database of the test's own, once of each kind, without a schema."""
    if request.param == "sqlite":
        yield make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    name = f"test_{uuid4().hex}"
    yield make_url(server.create_database(name))
    server.drop_database(name)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that migrated databases are copied from. To migrate each would take longer than most tests."""
    file = tmp_path_factory.mktemp("migrated") / "keyman.db"
    asyncio.run(migrations.upgrade(sqlite_at(file)))
    return file


@pytest.fixture(scope="session")
def migrated_postgresql(postgres: PostgresServer) -> URL:
    """The same on the worker's PostgreSQL."""
    url = make_url(postgres.create_database("migrated"))
    asyncio.run(migrations.upgrade(url))
    return url


@pytest.fixture(scope="session")
def postgresql_copies(postgres: PostgresServer, migrated_postgresql: URL) -> Copies:
    return Copies(postgres, str(migrated_postgresql.database))


@pytest.fixture
def sqlite(migrated_sqlite: Path, tmp_path: Path) -> URL:
    """A migrated SQLite database of the test's own."""
    return copied(migrated_sqlite, tmp_path / "keyman.db")


@pytest.fixture
def postgresql(postgres: PostgresServer, postgresql_copies: Copies) -> Iterator[URL]:
    """A migrated PostgreSQL database of the test's own."""
    name = postgresql_copies.take()
    yield make_url(postgres.url_of(name))
    postgresql_copies.put_away(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> URL:
    """A migrated database of the test's own, once of each kind."""
    url: URL = request.getfixturevalue(request.param)
    return url


@pytest.fixture
async def db(database: URL) -> AsyncIterator[Database]:
    """An open Database over `database`."""
    opened = Database(database)
    yield opened
    await opened.close()


@pytest.fixture(autouse=True)
def first_outages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test see the line of an outage that another test of this process has met before it."""
    monkeypatch.setattr(faults, "_repeats", Repeats())


@pytest.fixture
def logged() -> Iterator[StringIO]:
    """All log lines of a test, at DEBUG, as keyman writes them."""
    stream = StringIO()
    with own_logging():
        configure_logging("json", "debug", stream)
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)  # of the test's client, not of keyman
        yield stream


@pytest.fixture(scope="session")
def quick_passwords() -> PasswordHasher:
    """Argon2id with parameters for tests that are not about it."""
    return PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
async def plane(database: URL, provisioned: Vault, quick_passwords: PasswordHasher) -> AsyncIterator[Plane]:
    """The management plane in this process, sign-up open, over a database of the test's own and the worker's Vault."""
    async with plane_at(database, provisioned.settings, Passwords(quick_passwords)) as running:
        yield running
