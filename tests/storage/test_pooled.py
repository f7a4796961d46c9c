"""keyman behind the real PgBouncer in transaction mode, and as it notices that it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from argon2 import PasswordHasher
from sqlalchemy import func, select, text
from sqlalchemy.engine import URL

from keyman import migrations
from keyman.errors import ConfigurationError, DatabaseUnavailable
from keyman.identity.passwords import Passwords
from keyman.keys import probe as probing
from keyman.keys.probe import Probe
from keyman.storage.statements import scalar
from keyman.storage.transactions import Database, Unchecked
from tests.support.database import PostgresServer
from tests.support.planes import Vault, plane_at
from tests.support.pooler import Pooler, pgbouncer
from tests.support.proxies import require_proxies
from tests.support.rows import table, write_one

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

_BACKEND = scalar(text("SELECT pg_backend_pid()"), int)
_ROWS = scalar(select(func.count()).select_from(table("throttle")), int)
_PREPARED = scalar(text("SELECT count(*) FROM pg_prepared_statements"), int)
_SETTINGS = {
    name: scalar(text(f"SHOW {name}"), str)
    for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "timezone", "search_path")
}
VALUE = "sk-proj-a-value-of-this-test-0123"
WANTED = {
    "statement_timeout": "10s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "30s",
    "timezone": "UTC",
}


@pytest.fixture
def pooled(postgresql: URL) -> Iterator[URL]:
    """A migrated database, through PgBouncer with its default settings, but with two connections to the server."""
    require_proxies("pgbouncer")
    with pgbouncer(postgresql, default_pool_size="2") as (_, url):
        yield url


@asynccontextmanager
async def opened(url: URL, mode: str | None = None) -> AsyncIterator[Database]:
    db = Database(url if mode is None else url.update_query_dict({"pooled": mode}))
    try:
        yield db
    finally:
        await db.close()


async def settings_of(db: Database, *, writes: bool) -> dict[str, str]:
    async with db.write(Unchecked.KEYMAN) if writes else db.read() as connection:
        return {name: await query.one(connection) for name, query in _SETTINGS.items()}


async def rows(db: Database) -> int:
    async with db.read() as connection:
        return await _ROWS.one(connection)


@pytest.mark.parametrize("mode", [None, "on"])
async def test_every_transaction_has_its_settings_and_leaves_none_behind(
    pooled: URL, postgresql: URL, mode: str | None
) -> None:
    async with opened(pooled.update_query_dict({"search_path": "other\"',public"}), mode) as db:
        for writes in (False, True, False):
            found = await settings_of(db, writes=writes)
            assert found == WANTED | {"search_path": "other\"',public"}
    async with opened(pooled, "on") as db:
        assert (await settings_of(db, writes=False))["search_path"] == '"$user", public'
    async with opened(postgresql) as direct:
        assert (await settings_of(direct, writes=False)).items() >= WANTED.items()


async def test_processes_that_share_connections_do_not_disturb_each_other(pooled: URL) -> None:
    """Two pools of keyman over two connections: each statement may go to another server process than the last one."""
    async with opened(pooled) as one, opened(pooled) as other:
        await asyncio.gather(*(write_one(db) for db in (one, other) for _ in range(20)))
        assert await asyncio.gather(*(rows(db) for db in (one, other) for _ in range(20))) == [40] * 40


async def test_a_direct_connection_keeps_its_prepared_statements(postgresql: URL) -> None:
    async with opened(postgresql) as db, db.read() as connection:
        await _BACKEND.one(connection)
        assert await _PREPARED.one(connection) >= 1


async def test_no_prepared_statement_stays_on_the_server(pooled: URL) -> None:
    async with opened(pooled) as db:
        await asyncio.gather(*(write_one(db) for _ in range(20)))
        async with db.read() as connection:
            assert await _PREPARED.one(connection) == 0


async def test_a_plane_does_its_work_through_a_pooler(
    pooled: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with plane_at(pooled, provisioned.settings, Passwords(quick_passwords)) as plane:
        ada = await plane.user()
        assert (await ada.get("/readyz")).json() == {"status": "ok", "checks": {"database": "ok", "vault": "ok"}}
        answers = await asyncio.gather(
            *(ada.post("/api/keys", json={"service": "OPENAI", "api_key": VALUE}) for _ in range(20))
        )
        assert {answer.status_code for answer in answers} == {201}
        assert len((await ada.get("/api/keys")).json()) == 20


async def test_a_pooler_that_ignores_start_up_parameters_is_noticed(postgresql: URL) -> None:
    require_proxies("pgbouncer")
    names = ", ".join(WANTED)
    with pgbouncer(postgresql, default_pool_size="1", ignore_startup_parameters=names) as (_, url):
        async with opened(url) as db:
            assert (await settings_of(db, writes=True)).items() >= WANTED.items()


async def test_a_statement_that_is_lost_is_an_outage_and_then_no_statement_is_prepared(
    postgres: PostgresServer, postgresql: URL
) -> None:
    """A pooler that looks like a direct connection at first."""
    require_proxies("pgbouncer")
    name = str(postgresql.database)
    for setting, value in WANTED.items():
        postgres.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")
    ignored = ", ".join(WANTED)
    with pgbouncer(postgresql, default_pool_size="2", ignore_startup_parameters=ignored) as (_, url):
        async with opened(url) as db:
            rounds = [await asyncio.gather(*(_fault_of_write(db) for _ in range(10))) for _ in range(5)]
            refused = [fault for faults in rounds for fault in faults if fault]
            assert 1 <= len(refused) <= 10, "each connection notices it once at most"
            assert all("(42P05)" in fault or "(26000)" in fault for fault in refused)
            assert rounds[-1] == [""] * 10
            assert await rows(db) == 50 - len(refused)


async def _fault_of_write(db: Database) -> str:
    try:
        await write_one(db)
    except DatabaseUnavailable as fault:
        return fault.kind
    return ""


async def test_where_there_is_said_to_be_no_pooler_it_is_refused(pooled: URL) -> None:
    async with opened(pooled, "off") as db:
        with pytest.raises(DatabaseUnavailable) as raised:
            await write_one(db)
    assert "(08P01)" in raised.value.kind


async def test_migrations_refuse_a_pooler_and_say_so(pooled: URL, postgresql: URL) -> None:
    for url in (pooled, pooled.update_query_dict({"pooled": "on"}), postgresql.update_query_dict({"pooled": "on"})):
        with pytest.raises(ConfigurationError, match="need a direct connection"):
            await migrations.upgrade(url)
    assert await migrations.upgrade(postgresql) is not None
    assert await migrations.differences(pooled) == []


async def test_a_pooler_that_restarts_breaks_nothing(postgresql: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    require_proxies("pgbouncer")
    monkeypatch.setattr(probing, "INTERVAL", 0.0)
    with pgbouncer(postgresql) as (pooler, url):
        async with opened(url) as db:
            await asyncio.gather(*(write_one(db) for _ in range(5)))
            await asyncio.to_thread(_restart, pooler)
            await write_one(db)
            await Probe(db, "management").verify()
            assert await rows(db) == 6


def _restart(pooler: Pooler) -> None:
    pooler.stop()
    pooler.start()
