"""Readiness proves that a key could be stored: on both databases, read-only, full, failed over, without its files."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import bindparam, func, select, text, update
from sqlalchemy.engine import URL, make_url

from keyman import migrations
from keyman.clock import now
from keyman.errors import DatabaseUnavailable
from keyman.keys import probe as probing
from keyman.keys.probe import Probe, probes
from keyman.storage import engine, files
from keyman.storage.statements import optional, scalar
from keyman.storage.transactions import Authority, Database, Unchecked
from tests.support.database import PostgresServer, postgres_server
from tests.support.relay import relay_to
from tests.support.rows import add, count, write_one
from tests.support.waiting import becomes

pytestmark = pytest.mark.anyio

_PROVED = scalar(select(func.count()).select_from(probes).where(probes.c.proved_at.is_not(None)), int)
_PROVED_AT = optional(select(probes.c.proved_at).where(probes.c.plane == bindparam("name")), datetime)
_WRITER = scalar(text("SELECT pg_backend_pid()"), int)


async def is_ready(probe: Probe) -> bool:
    try:
        await probe.verify()
    except DatabaseUnavailable:
        return False
    return True


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question is a new probe."""
    monkeypatch.setattr(probing, "INTERVAL", 0.0)


@pytest.fixture
async def sqlite_db(sqlite: URL) -> AsyncIterator[Database]:
    opened = Database(sqlite)
    yield opened
    await opened.close()


@pytest.fixture
async def postgresql_db(postgresql: URL) -> AsyncIterator[Database]:
    opened = Database(postgresql)
    yield opened
    await opened.close()


@pytest.mark.parametrize("plane", ["management", "resolver", "gateway"])
async def test_a_probe_writes_and_commits_the_row_of_its_plane(db: Database, plane: str) -> None:
    await Probe(db, plane).verify()
    async with db.read() as connection:
        assert await _PROVED.one(connection) == 1


async def test_a_result_is_shared_by_all_who_ask(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    probe, writes = Probe(db, "management"), 0
    write = db.write

    def counted(authority: Authority) -> object:
        nonlocal writes
        writes += 1
        return write(authority)

    monkeypatch.setattr(db, "write", counted)
    await asyncio.gather(*(probe.verify() for _ in range(50)))
    assert writes == 1
    monkeypatch.setattr(probing, "INTERVAL", 0.0)
    await Probe(db, "management").verify()
    assert writes == 2


async def proved_at(db: Database, plane: str = "management") -> datetime | None:
    async with db.read() as connection:
        return await _PROVED_AT.one(connection, name=plane)


async def _set_proved_at(db: Database, moment: datetime) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(probes).values(proved_at=moment))


async def test_processes_of_a_plane_share_a_proof_until_it_is_stale(database: URL, db: Database) -> None:
    other = Database(database)
    try:
        await Probe(db, "management").verify()
        first = await proved_at(db)
        await asyncio.gather(*(Probe(one, "management").verify() for one in (db, other, db, other)))
        assert await proved_at(db) == first
        assert await proved_at(db, "resolver") is None
        # Neither an old proof counts, nor one by a clock that ran ahead.
        for moment in (now() - timedelta(seconds=probing.INTERVAL), now() + timedelta(days=1)):
            await _set_proved_at(db, moment)
            await Probe(other, "management").verify()
            proof = await proved_at(db)
            assert proof is not None
            assert proof != moment
            assert abs(now() - proof) < timedelta(minutes=1)
    finally:
        await other.close()


async def test_the_proof_of_another_process_makes_no_standby_ready(
    postgres: PostgresServer, postgresql: URL, postgresql_db: Database
) -> None:
    await Probe(postgresql_db, "management").verify()
    postgres.execute(f"ALTER DATABASE {postgresql.database} SET default_transaction_read_only = on")
    on_standby = Database(postgresql)
    try:
        assert not await is_ready(Probe(on_standby, "management"))
    finally:
        await on_standby.close()


async def test_a_caller_that_gives_up_does_not_make_the_plane_unready(database: URL, db: Database) -> None:
    other = Database(database)
    try:
        probe = Probe(db, "management")
        await probe.verify()
        probe._next = 0.0  # as if INTERVAL had passed
        await _set_proved_at(other, now() - timedelta(hours=1))
        async with other.write(Unchecked.OPERATOR) as connection:
            await connection.execute(update(probes).values(proved_at=None))
            asking = asyncio.create_task(probe.verify())
            await asyncio.sleep(0.1)  # it waits for the row
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        assert await is_ready(probe)
    finally:
        await other.close()


async def test_a_plane_without_its_row_is_not_ready(db: Database, logged: StringIO) -> None:
    assert not await is_ready(Probe(db, "unknown"))
    assert "run keyman db upgrade" in logged.getvalue()


async def test_a_plane_without_the_right_to_write_is_not_ready(
    postgres: PostgresServer, postgresql: URL, logged: StringIO
) -> None:
    user = f"reader_{uuid4().hex}"
    postgres.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'word'")
    postgres.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user}", str(postgresql.database))
    db = Database(postgresql.set(username=user, password="word"))
    try:
        assert not await is_ready(Probe(db, "management"))
    finally:
        await db.close()
    assert "(42501)" in logged.getvalue()


# --- read-only and full


async def test_a_read_only_server_is_not_ready_until_it_takes_writes_again(
    postgres: PostgresServer, postgresql: URL, postgresql_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = Probe(postgresql_db, "management")
    assert await is_ready(probe)
    name = str(postgresql.database)
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608  # the test's
    postgres.execute(end)
    with pytest.raises(DatabaseUnavailable) as raised:
        await write_one(postgresql_db)
    assert "(25006)" in raised.value.kind
    # The last probe was a moment ago, and succeeded. A write that was refused counts more.
    assert not await is_ready(probe)
    monkeypatch.setattr(probing, "INTERVAL", 0.0)
    assert not await is_ready(Probe(postgresql_db, "resolver"))
    postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    # The connections that were opened in the meantime are read-only for good, and are dropped.
    await becomes(lambda: is_ready(Probe(postgresql_db, "management")), "a new connection")
    await write_one(postgresql_db)


async def test_after_a_refused_write_the_proof_of_another_process_does_not_count(
    postgres: PostgresServer, postgresql: URL, postgresql_db: Database
) -> None:
    probe, name = Probe(postgresql_db, "management"), str(postgresql.database)
    assert await is_ready(probe)
    await _set_proved_at(postgresql_db, now())
    postgres.execute(FULL, name)
    postgres.execute("CREATE TRIGGER fill BEFORE INSERT ON throttle EXECUTE FUNCTION fill()", name)
    postgres.execute("CREATE TRIGGER fill BEFORE UPDATE ON probes EXECUTE FUNCTION fill()", name)
    assert not await _try_write(postgresql_db)
    probe._next = 0.0  # as if INTERVAL had passed
    assert not await is_ready(probe)


FULL = """
CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$
"""


async def test_a_write_that_finds_the_disk_full_counts_until_a_probe_succeeds(
    postgres: PostgresServer, postgresql: URL, postgresql_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, name = Probe(postgresql_db, "management"), str(postgresql.database)
    assert await is_ready(probe)
    postgres.execute(FULL, name)
    postgres.execute("CREATE TRIGGER fill BEFORE INSERT ON throttle EXECUTE FUNCTION fill()", name)
    with pytest.raises(DatabaseUnavailable):
        await write_one(postgresql_db)
    for _ in range(3):
        assert not await is_ready(probe)
    probe._next = 0.0  # as if INTERVAL had passed
    assert await is_ready(probe)
    postgres.execute("CREATE TRIGGER fill BEFORE UPDATE ON probes EXECUTE FUNCTION fill()", name)
    monkeypatch.setattr(probing, "INTERVAL", 0.0)
    assert not await is_ready(Probe(postgresql_db, "management"))


async def test_a_full_sqlite_is_not_ready_until_a_probe_succeeds(sqlite_db: Database) -> None:
    probe = Probe(sqlite_db, "management")
    assert await is_ready(probe)
    with pytest.raises(DatabaseUnavailable) as raised:
        await _fill(sqlite_db)
    assert "SQLITE_FULL" in raised.value.kind
    assert not await is_ready(probe)


async def _fill(db: Database) -> None:
    async with db.write(Unchecked.KEYMAN) as connection:
        await connection.exec_driver_sql("PRAGMA max_page_count = 1")  # SQLite rounds it up to the present size
        await connection.exec_driver_sql("CREATE TABLE more AS SELECT randomblob(100000) AS blob")


@pytest.mark.usefixtures("quick_probes")
async def test_sqlite_needs_space_on_its_disk(
    sqlite_db: Database, monkeypatch: pytest.MonkeyPatch, logged: StringIO
) -> None:
    assert await is_ready(Probe(sqlite_db, "management"))
    monkeypatch.setattr(files, "MIN_FREE_BYTES", 1 << 60)
    assert not await is_ready(Probe(sqlite_db, "management"))
    assert "DiskFull" in logged.getvalue()


@pytest.mark.usefixtures("quick_probes")
@pytest.mark.parametrize(("blocks", "ready"), [(64 * 256, True), (64 * 256 - 1, False)])
async def test_that_space_is_64_mib_for_others_than_root(
    sqlite_db: Database, monkeypatch: pytest.MonkeyPatch, blocks: int, ready: bool
) -> None:
    found = os.statvfs("/")
    # Blocks of 4 KiB that are free for others than root; more are free for root.
    fields = (4096, 4096, found.f_blocks, found.f_blocks, blocks, *tuple(found)[5:])
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    assert await is_ready(Probe(sqlite_db, "management")) is ready


# --- failover


@pytest.fixture
async def two_servers(postgres: PostgresServer) -> AsyncIterator[tuple[PostgresServer, URL]]:
    """A server that becomes read-only, and the URL of a database with the same name and user on both."""
    name, word = f"moved_{uuid4().hex}", uuid4().hex
    with postgres_server(log_statements=False) as old:
        for server in (old, postgres):
            server.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{word}'")
            url = make_url(server.create_database(name)).set(username=name, password=word)
            server.execute(f"GRANT ALL ON SCHEMA public TO {name}", name)
            await migrations.upgrade(url)
        yield old, url
    postgres.drop_database(name)


@pytest.mark.usefixtures("quick_probes")
async def test_after_a_failover_no_connection_stays_with_the_old_primary(
    postgres: PostgresServer, two_servers: tuple[PostgresServer, URL]
) -> None:
    old, url = two_servers
    async with relay_to(old.port) as relay:
        db = Database(url.set(port=relay.port))
        try:
            # Every connection of the pool is open, and leads to the old primary.
            all_open = asyncio.Barrier(engine.POOL_SIZE)
            await asyncio.gather(*(_use(db, all_open) for _ in range(engine.POOL_SIZE)))
            assert relay.opened == engine.POOL_SIZE
            probe = Probe(db, "management")
            assert await is_ready(probe)
            old.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            old.execute("SELECT pg_reload_conf()")
            relay.target = postgres.port
            await becomes(lambda: _refuses(db), "a write that finds out")
            # From now on, each connection is a new one, and leads to the new primary.
            assert await asyncio.gather(*(_try_write(db) for _ in range(20))) == [True] * 20
            assert await is_ready(probe)
            assert await count(db, "throttle") >= 20
        finally:
            await db.close()


async def _use(db: Database, all_open: asyncio.Barrier) -> None:
    async with db.write(Unchecked.KEYMAN) as connection:
        await _WRITER.one(connection)
        await all_open.wait()


async def _try_write(db: Database) -> bool:
    try:
        await write_one(db)
    except DatabaseUnavailable:
        return False
    return True


async def _refuses(db: Database) -> bool:
    """Write until a connection notices that its server is read-only. A reload takes a moment."""
    return not await _try_write(db)


async def test_writes_on_a_standby_do_not_open_a_connection_each(postgres: PostgresServer, postgresql: URL) -> None:
    async with relay_to(postgres.port) as relay:
        db = Database(postgresql.set(port=relay.port))
        try:
            postgres.execute(f"ALTER DATABASE {postgresql.database} SET default_transaction_read_only = on")
            for _ in range(100):
                assert not await _try_write(db)
            assert relay.opened < 20
        finally:
            await db.close()


# --- the files of SQLite


def _wal(url: URL) -> Path:
    return Path(f"{url.database}-wal")


def _lose_wal(url: URL, *, is_replaced: bool) -> None:
    if is_replaced:
        copy = f"{url.database}-copy"
        shutil.copy(_wal(url), copy)
        Path(copy).replace(_wal(url))
    else:
        _wal(url).unlink()


@pytest.mark.usefixtures("quick_probes")
@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_without_its_wal_file_nothing_is_written_and_nothing_acknowledged_is_lost(
    sqlite: URL, how: str, logged: StringIO
) -> None:
    db = Database(sqlite)
    probe = Probe(db, "management")
    for _ in range(5):
        await write_one(db)
    assert await is_ready(probe)
    _lose_wal(sqlite, is_replaced=how == "replaced")
    assert not await _try_write(db)
    assert not await is_ready(probe)
    assert not await is_ready(Probe(db, "resolver"))
    assert "FilesReplaced" in logged.getvalue()
    # A process that stops by itself leaves a whole database.
    await db.close()
    again = Database(sqlite)
    try:
        assert await count(again, "throttle") == 5
        await write_one(again)
        assert await is_ready(Probe(again, "management"))
    finally:
        await again.close()


async def test_a_change_whose_wal_file_was_removed_before_the_commit_is_not_acknowledged(
    sqlite: URL, sqlite_db: Database
) -> None:
    await write_one(sqlite_db)
    with pytest.raises(DatabaseUnavailable, match="may or may not be stored"):
        await _write_and_lose_wal(sqlite_db, sqlite)


async def _write_and_lose_wal(db: Database, url: URL) -> None:
    async with db.write(Unchecked.KEYMAN) as connection:
        await add(connection, "throttle")
        _lose_wal(url, is_replaced=False)


async def test_the_wal_file_stays_the_same_while_others_come_and_go(sqlite: URL) -> None:
    """SQLite removes it when the last connection closes: keyman holds one, whatever happens to its pool."""
    db = Database(sqlite)
    try:
        await write_one(db)
        for _ in range(3):
            other = Database(sqlite)
            await write_one(other)
            await other.close()
            plain = sqlite3.connect(str(sqlite.database))
            plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            plain.close()
            await db._engine.dispose()  # as if every connection of the pool had broken
            await write_one(db)
        assert await is_ready(Probe(db, "management"))
        assert await count(db, "throttle") == 7
    finally:
        await db.close()
