"""Servers that these tests may harm. The rest of the suite does not share them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy import func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from keyman import migrations
from keyman.audit.entries import Action
from keyman.audit.tables import audit_log
from keyman.config.vault import VaultSettings
from keyman.identity.passwords import Passwords
from keyman.keys.tables import api_keys, idempotency
from keyman.storage import engine
from tests.support.database import PostgresServer, postgres_absence, postgres_server
from tests.support.needs import require
from tests.support.planes import Plane, plane_at
from tests.support.vault import DisposableVault, disposable_vault_at


@pytest.fixture(scope="session")
def disposable_vault_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DisposableVault]:
    with disposable_vault_at(tmp_path_factory.mktemp("victim")) as vault:
        yield vault


@pytest.fixture
def disposable_vault(disposable_vault_server: DisposableVault) -> Iterator[DisposableVault]:
    """A Vault to harm; the next test finds it repaired."""
    yield disposable_vault_server
    disposable_vault_server.repair()


@pytest.fixture(scope="session")
def disposable_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL to harm, which waits for the disk as in production."""
    require("postgres", postgres_absence())
    with postgres_server(durable=True, log_statements=False) as server:
        yield server


@pytest.fixture(scope="session")
def disposable_template(disposable_postgres: PostgresServer) -> str:
    """A migrated database, whose copies the tests have."""
    asyncio.run(migrations.upgrade(make_url(disposable_postgres.create_database("migrated"))))
    return "migrated"


@pytest.fixture
def disposable_postgresql(disposable_postgres: PostgresServer, disposable_template: str) -> Iterator[URL]:
    """A migrated database on the server to harm; the next test finds the server running."""
    name = f"victim_{uuid4().hex}"
    yield make_url(disposable_postgres.create_database(name, disposable_template))
    if not disposable_postgres.is_running:
        disposable_postgres.stop()
        disposable_postgres.start()
    disposable_postgres.drop_database(name)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits for a database, shortened: what happens at their end is what is tested."""
    monkeypatch.setattr(engine, "BUSY_TIMEOUT", 1.0)
    monkeypatch.setattr(engine, "STATEMENT_TIMEOUT", 1.5)


@dataclass(frozen=True)
class Counts:
    """How much of what a database holds."""

    keys: int
    answers: int
    entries: int


async def counts(url: URL) -> Counts:
    engine = create_async_engine(url, poolclass=NullPool)
    changed = [Action.KEY_CREATE, Action.KEY_REPLACE, Action.KEY_CHANGE, Action.KEY_DELETE]
    async with engine.connect() as connection:

        async def count(statement: object) -> int:
            return int((await connection.execute(statement)).scalar_one())  # type: ignore[call-overload]  # a SELECT

        found = Counts(
            await count(select(func.count()).select_from(api_keys)),
            await count(select(func.count()).select_from(idempotency)),
            await count(select(func.count()).select_from(audit_log).where(audit_log.c.action.in_(changed))),
        )
    await engine.dispose()
    return found


@asynccontextmanager
async def plane_of(database: URL, vault: VaultSettings, quick: PasswordHasher) -> AsyncIterator[Plane]:
    async with plane_at(database, vault, Passwords(quick)) as plane:
        yield plane


async def checks(client: httpx.AsyncClient) -> dict[str, str]:
    """What `/readyz` says of the parts."""
    answer = await client.get("/readyz")
    body = answer.json()
    found: dict[str, str] = body["checks"]
    is_ready = set(found.values()) == {"ok"}
    assert (answer.status_code, body["status"]) == ((200, "ok") if is_ready else (503, "degraded"))
    return found


def unavailable(answer: httpx.Response, part: str, reason: str) -> None:
    """The answer says that a part is away, which and why, and that nothing was stored."""
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"/problems/{part}-unavailable"
    assert reason in problem["detail"]
    assert problem["detail"].endswith("Nothing was stored.")
    assert int(answer.headers["retry-after"]) > 0
