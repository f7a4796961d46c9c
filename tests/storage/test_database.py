"""The database layer, on a real SQLite and a real PostgreSQL: what is stored, what is refused, what a fault shows."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sqlite3
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime, timedelta, timezone
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    CheckConstraint,
    UniqueConstraint,
    delete,
    false,
    func,
    insert,
    literal,
    select,
    text,
    true,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman import migrations
from keyman.clock import now
from keyman.errors import ConfigurationError, DatabaseUnavailable, RefusedStatement
from keyman.identity.tables import sessions, throttle, users
from keyman.ids import MAX_ID
from keyman.metrics import Metrics
from keyman.storage import engine, notes
from keyman.storage.engine import POOL_SIZE
from keyman.storage.faults import kind
from keyman.storage.statements import Command, scalar
from keyman.storage.transactions import Database, Unchecked
from tests.support.database import PostgresServer, postgres_server
from tests.support.exceptions import everything_in, stands_alone
from tests.support.fast import examples
from tests.support.rows import add, add_owner, count, foreign_keys, row, table

pytestmark = pytest.mark.anyio

Step = Callable[..., Awaitable[object]]
"""What is done with the connection of a transaction."""

PATIENCE = 60.0
"""Seconds that a test grants where it is not about a time limit: the machine is shared."""

TABLES = [each.name for each in migrations.tables().sorted_tables]
CHECKS: dict[str, dict[str, Any]] = {
    "ck_owners_kind_present": {"kind": ""},
    "ck_users_email_present": {"email": "x"},
    "ck_users_share_lock_unused": {"share_lock": 1},
    "ck_applications_share_lock_unused": {"share_lock": 1},
    "ck_sessions_id_hash_is_sha256": {"id_hash": b"short"},
    "ck_api_tokens_token_hash_is_sha256": {"token_hash": b"x" * 33},
    "ck_api_tokens_scopes_present": {"scopes": ""},
    "ck_applications_name_present": {"name": ""},
    "ck_applications_services_present": {"services": ""},
    "ck_application_tokens_token_hash_is_sha256": {"token_hash": b""},
    "ck_throttle_attempts_not_negative": {"attempts": -1},
    "ck_api_keys_service_present": {"service": ""},
    "ck_api_keys_encrypted_key_is_sealed": {"encrypted_key": "sk-not-sealed-at-all"},
    "ck_api_keys_key_version_positive": {"key_version": 0},
    "ck_api_keys_updated_after_created": {"created_at": datetime.max.replace(tzinfo=UTC)},
    "ck_audit_log_actor_known": {"actor": "nobody"},
    "ck_audit_log_hash_is_sha256": {"hash": b"short"},
    "ck_audit_chains_ends_in_order": {"base_sequence": 2},
    "ck_audit_chains_hashes_are_sha256": {"base_hash": b"short"},
    "ck_deployment_one_row": {"id": 2},
    "ck_identities_issuer_is_outside": {"issuer": "keyman:app:app-1"},
    "ck_identities_subject_present": {"subject": ""},
    "ck_application_identities_subject_present": {"subject": ""},
    "ck_portal_links_code_hash_is_sha256": {"code_hash": b"short"},
    "ck_provider_visits_hashes_are_sha256": {"browser_hash": b"short"},
    "ck_logout_tokens_token_hash_is_sha256": {"token_hash": b"short"},
}


# aiosqlite closes by itself, and complains of it, what SQLAlchemy was opening for somebody who was cancelled.
abandoned = pytest.mark.filterwarnings("ignore:.*was deleted before being closed:ResourceWarning")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def measured_db(database: URL, metrics: Metrics) -> AsyncIterator[Database]:
    made = Database(database, metrics)
    yield made
    await made.close()


def in_use(metrics: Metrics) -> float:
    value = metrics.registry.get_sample_value("keyman_database_connections_in_use")
    assert value is not None
    return value


def checked_out(db: Database) -> int:
    taken: int = db._engine.pool.checkedout()  # type: ignore[attr-defined]  # of a queue pool, which both have
    return taken


async def unavailable(doing: Callable[[], Awaitable[object]]) -> DatabaseUnavailable:
    """What a call raises, which must be this and must carry nothing along."""
    with pytest.raises(DatabaseUnavailable) as caught:
        await doing()
    assert stands_alone(caught.value)
    assert caught.value.retry_after
    return caught.value


async def read_one(db: Database) -> object:
    async with db.read() as connection:
        return (await connection.execute(select(func.count()).select_from(users))).scalar_one()


async def write(db: Database, *steps: Step) -> None:
    """One transaction of these steps."""
    async with db.write(Unchecked.OPERATOR) as connection:
        for step in steps:
            await step(connection)


async def write_one(db: Database) -> None:
    await write(db, lambda c: add(c, "throttle"))


def make_room(name: str) -> Step:
    """For one more row of a table that may hold only one."""
    return lambda c: c.execute(delete(table(name)).where(true() if name == "deployment" else false()))


async def new_row(db: Database, name: str) -> dict[str, Any]:
    """A valid row; a user's has the number of a new owner."""
    if name != "users":
        return row(name)
    async with db.write(Unchecked.OPERATOR) as connection:
        return row(name, id=await add(connection, "owners"))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def content_of(url: URL) -> bytes:
    return Path(url.database or "").read_bytes()


def move(sources: Path, pattern: str, target: Path) -> None:
    for path in sources.glob(pattern):
        path.replace(target / path.name)


# --- times

ZONES = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))
LATEST, EARLIEST = datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)


@settings(max_examples=examples(40))
@given(
    st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=ZONES)  # noqa: DTZ001  # hypothesis adds the zone
)
@example(LATEST)
@example(EARLIEST)
@example(datetime(1969, 12, 31, 23, 59, 59, 999999, UTC))
@example(datetime(2026, 3, 29, 2, 30, fold=1, tzinfo=timezone(timedelta(hours=2))))
async def test_an_instant_comes_back_as_the_same_instant_in_utc(measured_db: Database, instant: datetime) -> None:
    bucket = uuid4().bytes
    async with measured_db.write(Unchecked.OPERATOR) as connection:
        await add(connection, "throttle", bucket=bucket, ends_at=instant)
    async with measured_db.read() as connection:
        found = (await connection.execute(select(throttle.c.ends_at).where(throttle.c.bucket == bucket))).scalar_one()
        same = select(func.count()).where(throttle.c.bucket == bucket, throttle.c.ends_at == instant)
        assert (await connection.execute(same)).scalar_one() == 1
    assert found == instant
    assert found.tzinfo is UTC
    assert found.utcoffset() == timedelta(0)


async def test_instants_are_ordered_as_instants_whatever_zone_they_came_in(measured_db: Database) -> None:
    noon = datetime(2026, 6, 1, 12, tzinfo=UTC)
    zones = [timezone(timedelta(hours=hours)) for hours in range(-12, 14)]
    moments = [(noon + timedelta(microseconds=i)).astimezone(zone) for i, zone in enumerate(zones)]
    async with measured_db.write(Unchecked.OPERATOR) as connection:
        for moment in random.sample(moments, len(moments)):
            await add(connection, "throttle", ends_at=moment)
    async with measured_db.read() as connection:
        found = (await connection.execute(select(throttle.c.ends_at).order_by(throttle.c.ends_at))).scalars().all()
    assert found == moments


async def test_a_whole_second_is_ordered_among_its_microseconds(measured_db: Database) -> None:
    second = datetime(2026, 6, 1, 12, tzinfo=UTC)
    moments = [second - timedelta(microseconds=1), second, second + timedelta(microseconds=1)]
    async with measured_db.write(Unchecked.OPERATOR) as connection:
        for moment in moments:
            await add(connection, "throttle", ends_at=moment)
    async with measured_db.read() as connection:
        before = select(throttle.c.ends_at).where(throttle.c.ends_at <= second).order_by(throttle.c.ends_at)
        assert (await connection.execute(before)).scalars().all() == moments[:2]


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 1, 1),  # noqa: DTZ001  # what must be refused
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=5))),
    ],
    ids=["without a zone", "after the last one in UTC", "before the first one in UTC"],
)
async def test_a_time_that_is_no_instant_is_refused_and_nothing_stored(measured_db: Database, moment: datetime) -> None:
    with pytest.raises(RefusedStatement) as caught:
        await write(measured_db, lambda c: add(c, "throttle"), lambda c: add(c, "throttle", ends_at=moment))
    assert stands_alone(caught.value)
    assert await count(measured_db, "throttle") == 0


# --- constraints


async def test_a_row_as_it_must_be_is_stored(measured_db: Database) -> None:
    await add_owner(measured_db)
    for name in TABLES:
        await write(measured_db, make_room(name), lambda c, n=name: add(c, n))


async def test_every_foreign_key_refuses_a_row_without_its_parent(measured_db: Database) -> None:
    assert len(foreign_keys()) == 19
    for key in foreign_keys():
        orphan = row(key.table.name, **dict.fromkeys(key.column_keys, 4711))
        with pytest.raises(IntegrityError):
            await write(measured_db, lambda c, o=orphan, t=key.table: c.execute(insert(t).values(o)))


async def test_what_proves_who_an_account_is_goes_with_it(measured_db: Database) -> None:
    await add_owner(measured_db)
    async with measured_db.write(Unchecked.OPERATOR) as connection:
        for name in ("sessions", "api_tokens", "idempotency"):
            await add(connection, name)
        await connection.execute(delete(users))
    assert [await count(measured_db, name) for name in ("sessions", "api_tokens", "idempotency")] == [0, 0, 0]


@pytest.mark.parametrize("name", ["api_keys", "audit_log"])
async def test_an_account_with_keys_or_audit_entries_is_not_deleted(measured_db: Database, name: str) -> None:
    await add_owner(measured_db)
    async with measured_db.write(Unchecked.OPERATOR) as connection:
        await add(connection, name)
    with pytest.raises(IntegrityError):
        await write(measured_db, lambda c: c.execute(delete(users)))
    assert await count(measured_db, name) == 1


async def test_every_unique_column_refuses_a_second_of_the_same(measured_db: Database) -> None:
    await add_owner(measured_db)
    tried = []
    for name in TABLES:
        one, first, second = table(name), await new_row(measured_db, name), await new_row(measured_db, name)
        groups = [c.columns.keys() for c in table(name).constraints if isinstance(c, UniqueConstraint)]
        for columns in [*groups, table(name).primary_key.columns.keys()]:
            same = {column: first.get(column, 17) for column in columns}
            await write(
                measured_db, make_room(name), lambda c, t=one, v={**first, **same}: c.execute(insert(t).values(v))
            )
            with pytest.raises(IntegrityError):
                await write(measured_db, lambda c, t=one, v={**second, **same}: c.execute(insert(t).values(v)))
            others = table(name).c.id != 1 if name in ("owners", "users", "applications") else true()
            await write(measured_db, lambda c, t=one, which=others: c.execute(delete(t).where(which)))
            tried.append((name, *columns))
    assert {("users", "email_key"), ("sessions", "id_hash"), ("api_tokens", "token_hash")} < set(tried)
    assert {("api_keys", "value_uuid"), ("idempotency", "user_id", "key_hash"), ("throttle", "bucket")} < set(tried)


async def test_every_check_refuses_what_it_is_there_for(measured_db: Database) -> None:
    await add_owner(measured_db)
    found = {
        str(constraint.name): name
        for name in TABLES
        for constraint in table(name).constraints
        # Those without a name are of column types and not rendered.
        if isinstance(constraint, CheckConstraint) and constraint.name
    }
    assert found.keys() == CHECKS.keys()
    for constraint, name in found.items():
        with pytest.raises(IntegrityError) as caught:
            await write(measured_db, make_room(name), lambda c, n=name, wrong=CHECKS[constraint]: add(c, n, **wrong))
        assert constraint in str(caught.value.orig), "refused, but by something else"


async def test_every_column_that_must_be_said_refuses_null(measured_db: Database) -> None:
    await add_owner(measured_db)
    for name in TABLES:
        for column in table(name).columns:
            if column.nullable or (
                column.primary_key and ("id" in table(name).c or name in ("audit_chains", "token_labels"))
            ):
                continue  # SQLite numbers a primary key by itself
            with pytest.raises(IntegrityError):
                await write(measured_db, lambda c, n=name, missing=column.name: add(c, n, **{missing: None}))


async def test_the_id_of_a_deleted_row_is_not_given_to_another(database: URL, measured_db: Database) -> None:
    await add_owner(measured_db)
    numbered = [table(name) for name in TABLES if "id" in table(name).c and name != "deployment"]
    assert len(numbered) == 12
    for each in numbered:
        async with measured_db.write(Unchecked.OPERATOR) as connection:
            ids = [await add(connection, each.name) for _ in range(3)]
        for _ in range(2):
            await write(measured_db, lambda c, t=each, newest=ids[-1]: c.execute(delete(t).where(t.c.id == newest)))
            anew = Database(database)  # another process
            async with anew.write(Unchecked.OPERATOR) as connection:
                ids.append(await add(connection, each.name))
            await anew.close()
        numbers = [number for number in ids if number is not None]
        assert len(numbers) == 5
        assert numbers == sorted(set(numbers))


async def test_the_largest_id_fits(measured_db: Database) -> None:
    async with measured_db.write(Unchecked.OPERATOR) as connection:
        await add(connection, "users", id=await add(connection, "owners", id=MAX_ID))
    async with measured_db.read() as connection:
        assert (await connection.execute(select(users.c.id))).scalar_one() == MAX_ID


# --- connections


async def test_every_pooled_sqlite_connection_is_set_up(sqlite: URL) -> None:
    db = Database(sqlite)
    wanted = {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 5000, "synchronous": 2, "secure_delete": 1}
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(db.read()) for _ in range(POOL_SIZE - 1)]
        connections.append(await stack.enter_async_context(db.write(Unchecked.OPERATOR)))
        raw = [(await connection.get_raw_connection()).driver_connection for connection in connections]
        assert len({id(one) for one in raw}) == POOL_SIZE
        for connection in connections:
            found = {pragma: (await connection.execute(text(f"PRAGMA {pragma}"))).scalar_one() for pragma in wanted}
            assert found == wanted
    await db.close()


async def test_every_pooled_postgresql_connection_is_set_up(postgresql: URL) -> None:
    db = Database(postgresql)
    wanted = {
        "statement_timeout": "10s",
        "lock_timeout": "5s",
        "idle_in_transaction_session_timeout": "30s",
        "TimeZone": "UTC",
        "application_name": "keyman",
        "transaction_isolation": "read committed",
    }
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(db.read()) for _ in range(POOL_SIZE // 2)]
        connections += [await stack.enter_async_context(db.write(Unchecked.OPERATOR)) for _ in range(POOL_SIZE // 2)]
        for connection in connections:
            found = {name: (await connection.execute(text(f"SHOW {name}"))).scalar_one() for name in wanted}
            assert found == wanted
    await db.close()


@pytest.mark.parametrize("first", ["upgrade", "file"])
async def test_only_its_owner_can_read_a_sqlite_file_and_the_files_beside_it(tmp_path: Path, first: str) -> None:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/private.db")
    before = os.umask(0)
    try:
        if first == "file":
            engine.create_private_file(url)
        await migrations.upgrade(url)
        db = Database(url)
        await write_one(db)
        files = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)}
        await db.close()
    finally:
        os.umask(before)
    assert files == {"private.db": 0o600, "private.db-wal": 0o600, "private.db-shm": 0o600}


@pytest.mark.parametrize("touch", [read_one, write_one, migrations.differences], ids=["read", "write", "differences"])
async def test_nothing_but_an_upgrade_makes_a_sqlite_file(tmp_path: Path, touch: Callable[..., Awaitable[Any]]) -> None:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/absent.db")
    if touch is migrations.differences:
        assert await migrations.differences(url) == ["the database does not exist"]
    else:
        db = Database(url)
        await unavailable(lambda: touch(db))
        await db.close()
    assert names(tmp_path) == []


async def test_a_path_in_which_no_file_can_be_made_is_said_without_the_path(tmp_path: Path) -> None:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/no-such-directory/keyman.db")
    with pytest.raises(ConfigurationError) as caught:
        await migrations.upgrade(url)
    assert "no-such-directory" not in everything_in(caught.value).replace(str(Path(__file__).parent.parent), "")
    assert stands_alone(caught.value)


@pytest.mark.parametrize("name", ["with space", "per%20cent", "question?mark=1", "hash#tag", "quote'\"", "é漢"])
async def test_any_file_name_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    url = URL.create("sqlite+aiosqlite", database=str(tmp_path / name))
    await migrations.upgrade(url)
    db = Database(url)
    await write_one(db)
    await db.close()
    assert names(tmp_path) == [name]


async def test_what_was_deleted_is_overwritten_on_sqlite(sqlite: URL) -> None:
    canary = f"vault:v1:{uuid4().hex}"
    db = Database(sqlite)
    await add_owner(db)
    async with db.write(Unchecked.OPERATOR) as connection:
        key = await add(connection, "api_keys", encrypted_key=canary)
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(delete(table("api_keys")).where(table("api_keys").c.id == key))
    await db.close()  # the last one to close brings the WAL into the file
    assert canary.encode() not in content_of(sqlite)


# --- transactions


async def test_a_write_is_committed_before_it_returns(database: URL, measured_db: Database) -> None:
    other = Database(database)
    for expected in range(1, 6):
        await write_one(measured_db)
        assert await count(other, "throttle") == expected
    await other.close()


async def test_what_a_write_has_not_committed_is_seen_by_nobody(database: URL, measured_db: Database) -> None:
    other = Database(database)
    async with measured_db.write(Unchecked.OPERATOR) as connection:
        await add(connection, "throttle")
        assert await count(other, "throttle") == 0
        assert await count(measured_db, "throttle") == 0
    assert await count(other, "throttle") == 1
    await other.close()


class Interruption(BaseException):
    """Nobody catches it, as nobody catches KeyboardInterrupt."""


@pytest.mark.parametrize("fault", [ValueError, Interruption, asyncio.CancelledError, GeneratorExit, StopAsyncIteration])
async def test_a_block_that_raises_leaves_nothing(
    measured_db: Database, metrics: Metrics, fault: type[BaseException]
) -> None:
    raised = fault()

    async def fail(_connection: AsyncConnection) -> None:
        assert in_use(metrics) == 1
        raise raised

    with pytest.raises(fault) as caught:
        await write(measured_db, lambda c: add(c, "throttle"), fail)
    assert caught.value is raised
    assert await count(measured_db, "throttle") == 0
    assert in_use(metrics) == checked_out(measured_db) == 0


@abandoned
async def test_cancelled_writes_leave_all_of_it_or_nothing_and_every_connection_free(
    measured_db: Database, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT", PATIENCE)
    acknowledged = set()

    def pair(number: int) -> bytes:
        return b"pair" + number.to_bytes(27, "big")

    async def write_pair(number: int) -> None:
        async with measured_db.write(Unchecked.OPERATOR) as connection:
            for half in (b"a", b"b"):
                await add(connection, "throttle", bucket=pair(number) + half)
        acknowledged.add(number)

    tasks = [asyncio.create_task(write_pair(number)) for number in range(200)]
    loop = asyncio.get_running_loop()
    dice = random.Random(7)  # noqa: S311  # a storm, not a secret
    for task in tasks:
        for _ in range(dice.randint(0, 3)):  # again while the first cancellation is being obeyed
            loop.call_later(dice.random() * 0.5, task.cancel)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {type(None), asyncio.CancelledError}
    assert in_use(metrics) == checked_out(measured_db) == 0
    async with measured_db.read() as connection:
        buckets = (await connection.execute(select(throttle.c.bucket))).scalars().all()
    pairs = {bucket[:31] for bucket in buckets}
    assert len(buckets) == 2 * len(pairs)
    assert {pair(number) for number in acknowledged} <= pairs
    # Nobody holds the right to write, or a connection in the middle of something.
    await asyncio.gather(*(write_one(measured_db) for _ in range(3 * POOL_SIZE)))
    gc.collect()


@abandoned
async def test_cancelled_reads_leave_every_connection_free(measured_db: Database, metrics: Metrics) -> None:
    tasks = [asyncio.create_task(read_one(measured_db)) for _ in range(200)]
    loop = asyncio.get_running_loop()
    dice = random.Random(8)  # noqa: S311  # a storm, not a secret
    for task in tasks:
        loop.call_later(dice.random() * 0.2, task.cancel)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert in_use(metrics) == checked_out(measured_db) == 0
    async with AsyncExitStack() as stack:
        for _ in range(POOL_SIZE):
            connection = await stack.enter_async_context(measured_db.read())
            assert (await connection.execute(select(func.count()).select_from(users))).scalar_one() == 0
    gc.collect()


async def test_a_connection_that_is_closed_before_its_rows_are_read_holds_no_lock_on_sqlite(sqlite: URL) -> None:
    # A note that is cancelled between a PRAGMA and its row closes its connection in this state.
    pool = engine.create_engine(sqlite, statement_timeout=None)
    async with pool.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.execute("BEGIN IMMEDIATE")
        unread = await driver.execute("PRAGMA busy_timeout")
        await connection.invalidate()
    with closing(sqlite3.connect(str(sqlite.database), timeout=0, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
    del unread  # until here it kept the closed connection alive
    await pool.dispose()


async def test_the_gauge_counts_what_is_taken(measured_db: Database, metrics: Metrics) -> None:
    async with AsyncExitStack() as stack:
        for number in range(1, 6):
            await stack.enter_async_context(measured_db.read())
            assert in_use(metrics) == number == checked_out(measured_db)
    assert in_use(metrics) == checked_out(measured_db) == 0


async def test_the_gauge_reaches_its_limit_when_no_connection_is_left(measured_db: Database, metrics: Metrics) -> None:
    limit = metrics.registry.get_sample_value("keyman_database_connections_limit")
    async with AsyncExitStack() as stack:
        while in_use(metrics) != limit:
            await stack.enter_async_context(measured_db.read())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5), measured_db.read():
                pass


async def test_many_writers_at_once_are_all_served_on_sqlite(sqlite: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT", PATIENCE)
    processes = [Database(sqlite), Database(sqlite)]  # each with a writer's turn of its own, as two processes have

    async def read_then_write(number: int) -> None:
        async with processes[number % 2].write(Unchecked.OPERATOR) as connection:
            await connection.execute(select(func.count()).select_from(throttle))
            await add(connection, "throttle")

    await asyncio.gather(*(read_then_write(number) for number in range(300)))
    assert await count(processes[0], "throttle") == 300
    for db in processes:
        await db.close()


async def test_readers_do_not_wait_for_an_open_writer(measured_db: Database) -> None:
    async with measured_db.write(Unchecked.OPERATOR) as connection:
        await add(connection, "throttle")
        counts = await asyncio.gather(*(count(measured_db, "throttle") for _ in range(3 * POOL_SIZE)))
    assert set(counts) == {0}


async def test_a_reader_takes_no_lock_on_sqlite(sqlite: URL) -> None:
    db = Database(sqlite)
    async with db.read() as connection:
        await connection.execute(select(users))
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        assert not raw.in_transaction
        await write_one(db)
    await db.close()


async def test_writers_take_turns_in_the_order_in_which_they_came_on_sqlite(sqlite: URL) -> None:
    db, order = Database(sqlite), []

    async def write(number: int) -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            order.append(number)
            await add(connection, "throttle")

    await asyncio.gather(*(write(number) for number in range(50)))
    assert order == list(range(50))
    await db.close()


# --- faults

CANARY = f"canary{uuid4().hex}"


def _bad_statements() -> dict[str, tuple[Any, dict[str, Any] | None]]:
    user = row("users", email=CANARY, email_key=CANARY, password_hash=CANARY)
    return {
        "no SQL at all": (text("selekt :x"), {"x": CANARY}),
        "no such table": (text("SELECT :x FROM nowhere"), {"x": CANARY}),
        "no such column": (text("SELECT nothing FROM users WHERE email = :x"), {"x": CANARY}),
        "a parameter that is not given": (text("SELECT * FROM users WHERE email = :x AND id = :y"), {"x": CANARY}),
        "half a character": (insert(users).values({**user, "email": f"{CANARY}\ud800"}), None),
        "half a character in a text": (text("SELECT :x"), {"x": f"{CANARY}\udfff"}),
        "an integer of 70 bits": (
            insert(throttle).values(bucket=CANARY.encode(), attempts=2**70, ends_at=now()),
            None,
        ),
        "a naive time": (
            insert(throttle).values(bucket=CANARY.encode(), attempts=1, ends_at=datetime(2026, 1, 1)),  # noqa: DTZ001
            None,
        ),
        "an object of no type": (insert(users).values({**user, "password_hash": {CANARY: object()}}), None),
        "an id that is a text": (select(users.c.id).where(users.c.id == text(":x")), {"x": object()}),
    }


BAD_STATEMENTS = _bad_statements()


async def test_a_refused_statement_shows_nothing_of_its_parameters(
    measured_db: Database, metrics: Metrics, logged: StringIO
) -> None:
    for which, (statement, parameters) in BAD_STATEMENTS.items():
        with pytest.raises(RefusedStatement) as caught:
            await write(measured_db, lambda c: add(c, "throttle"), lambda c, s=statement, p=parameters: c.execute(s, p))
        assert stands_alone(caught.value), which
        assert CANARY not in everything_in(caught.value), which
        assert CANARY not in logged.getvalue(), which
        assert in_use(metrics) == checked_out(measured_db) == 0, which
    assert await count(measured_db, "throttle") == 0
    await write_one(measured_db)


async def test_a_refused_read_shows_nothing_of_its_parameters(measured_db: Database, logged: StringIO) -> None:
    async def read(value: object) -> None:
        async with measured_db.read() as connection:
            await connection.execute(text("SELECT * FROM users WHERE id = :x"), {"x": value})

    for value in (f"{CANARY}\ud800", 2**70):
        with pytest.raises(RefusedStatement) as caught:
            await read(value)
        assert stands_alone(caught.value)
        assert CANARY not in everything_in(caught.value) + logged.getvalue()
        assert str(2**70) not in everything_in(caught.value) + logged.getvalue()


async def test_a_value_too_long_for_its_column_shows_nothing_of_itself(postgresql: URL, logged: StringIO) -> None:
    db = Database(postgresql)
    for value in (CANARY * 100, f"{CANARY}\0"):
        with pytest.raises(RefusedStatement) as caught:
            await write(db, lambda c, v=value: add(c, "users", email=v))
        assert stands_alone(caught.value)
        assert CANARY not in everything_in(caught.value) + logged.getvalue()
    await db.close()


async def test_a_broken_constraint_is_the_callers_to_understand(measured_db: Database, metrics: Metrics) -> None:
    first = row("users")
    async with measured_db.write(Unchecked.OPERATOR) as connection:
        await add(connection, "owners", id=first["id"])
        await connection.execute(insert(users).values(first))
    with pytest.raises(IntegrityError):
        await write(measured_db, lambda c: add(c, "throttle"), lambda c: add(c, "users", email_key=first["email_key"]))
    assert await count(measured_db, "throttle") == 0
    assert in_use(metrics) == checked_out(measured_db) == 0


async def test_a_fault_in_the_callers_own_words_passes_as_it_is(measured_db: Database) -> None:
    for fault in (KeyError("k"), ConfigurationError("c"), DatabaseUnavailable("d")):

        async def fail(_connection: AsyncConnection, fault: Exception = fault) -> None:
            raise fault

        with pytest.raises(type(fault)) as caught:
            await write(measured_db, fail)
        assert caught.value is fault


async def test_a_connection_that_is_lost_during_commit_says_that_nobody_knows(
    postgresql: URL, logged: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = Database(postgresql)
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(
            text(
                "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
            )
        )
        await connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION die()"
            )
        )

    async def lose() -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await add(connection, "users", email=CANARY, email_key=CANARY)

    fault = await unavailable(lose)
    assert "may or may not be stored" in fault.detail
    assert CANARY not in everything_in(fault) + logged.getvalue()
    assert "database unavailable" in logged.getvalue()
    await write_one(db)
    assert checked_out(db) == 0
    await db.close()


async def test_a_commit_that_sqlite_refuses_leaves_nothing_and_a_connection_that_works(sqlite: URL) -> None:
    db = Database(sqlite)

    async def fail_late() -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(text("PRAGMA defer_foreign_keys = ON"))
            await add(connection, "sessions", user_id=4711)

    try:
        for _ in range(POOL_SIZE + 1):
            await unavailable(fail_late)
        assert await count(db, "sessions") == 0
        await write_one(db)
    finally:
        await db.close()


async def test_a_connection_that_is_lost_in_a_block_stores_nothing(postgresql: URL) -> None:
    db = Database(postgresql)

    async def lose() -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await add(connection, "throttle")
            await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    fault = await unavailable(lose)
    assert fault.detail.endswith("Nothing was stored.")
    assert await count(db, "throttle") == 0
    await db.close()


_ONE = scalar(select(func.count()).select_from(users), int)
_USES: dict[str, Callable[[Database], Awaitable[object]]] = {
    "read": read_one,
    "fetch": lambda db: db.fetch(_ONE.one),
    "write": write_one,
    "together": lambda db: db.together(Unchecked.OPERATOR, _ONE.one),
    "by itself": lambda db: db.by_itself(Unchecked.OPERATOR, _ONE.one),
}


@pytest.mark.parametrize("use", _USES)
@pytest.mark.parametrize("is_noticed", [False, True])
async def test_connections_that_the_server_ended_while_nobody_used_them_are_replaced(
    postgresql: URL, postgres: PostgresServer, use: str, is_noticed: bool
) -> None:
    db = Database(postgresql)
    ready = asyncio.Barrier(POOL_SIZE)

    async def hold() -> None:
        async with db.read():
            await ready.wait()

    for _ in range(2):
        await asyncio.gather(*(hold() for _ in range(POOL_SIZE)))
        postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_mine(postgresql)}")  # noqa: S608
        if is_noticed:
            await asyncio.sleep(0.05)  # asyncpg reads what the server said last
        await asyncio.gather(*(_USES[use](db) for _ in range(POOL_SIZE)))
        assert checked_out(db) == 0
    await db.close()


def _mine(url: URL) -> str:
    return f"datname = '{url.database}' AND pid <> pg_backend_pid()"


async def test_a_statement_that_takes_too_long_is_ended(postgresql: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "STATEMENT_TIMEOUT", 0.2)
    db = Database(postgresql)

    async def dawdle(connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT pg_sleep(600)"))

    async def write() -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await add(connection, "throttle")
            await dawdle(connection)

    async def read() -> None:
        async with db.read() as connection:
            await dawdle(connection)

    for _ in range(POOL_SIZE + 1):
        await unavailable(random.choice((read, write)))  # noqa: S311
    assert await count(db, "throttle") == 0
    assert checked_out(db) == 0
    await db.close()


async def test_a_row_that_another_holds_too_long_is_given_up(postgresql: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT", 0.3)
    db = Database(postgresql)
    await add_owner(db)

    async def rename() -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(update(users).values(email="other@example.com"))

    async with db.write(Unchecked.OPERATOR) as holder:
        await holder.execute(update(users).values(email="mine@example.com"))
        await unavailable(rename)
    await rename()
    await db.close()


async def test_a_sqlite_that_another_process_holds_is_unavailable_only_to_writers(
    sqlite: URL, monkeypatch: pytest.MonkeyPatch, logged: StringIO
) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT", 0.3)
    db = Database(sqlite)
    assert sqlite.database
    with closing(sqlite3.connect(sqlite.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        fault = await unavailable(lambda: write_one(db))
        assert "locked" not in everything_in(fault)
        assert await read_one(db) == 0
    await write_one(db)
    assert "SQLITE_BUSY" in logged.getvalue()
    await db.close()


async def test_a_note_waits_for_nobody_and_leaves_the_patience_of_others_as_it_was(
    sqlite: URL, monkeypatch: pytest.MonkeyPatch, logged: StringIO
) -> None:
    monkeypatch.setattr(notes, "NOTE_PAUSE", 0)
    db = Database(sqlite)
    await add_owner(db)
    note = Command(update(users).values(email="noted@example.com"))
    assert sqlite.database
    with closing(sqlite3.connect(sqlite.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(engine.BUSY_TIMEOUT * 4):
            for _ in range(5):
                await db.note(Unchecked.LAST_USE, note)
        writer = asyncio.create_task(write_one(db))
        await asyncio.sleep(5 * notes.NOTE_PATIENCE)
        assert not writer.done()
        other.execute("ROLLBACK")
        await writer
    assert "database unavailable" not in logged.getvalue()
    await db.note(Unchecked.LAST_USE, note)
    async with db.read() as connection:
        assert (await connection.execute(select(users.c.email))).scalar_one() == "noted@example.com"
    await db.close()


async def test_a_full_disk_stores_nothing_and_shows_nothing(sqlite: URL, logged: StringIO) -> None:
    db = Database(sqlite)

    async def fill() -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(text("PRAGMA max_page_count = 1"))  # as many as there are already
            await add(connection, "users", email=CANARY)
            for n in range(100):
                await add(connection, "throttle", bucket=(f"{n}" + CANARY * 100).encode())

    fault = await unavailable(fill)
    assert CANARY not in everything_in(fault) + logged.getvalue()
    assert "SQLITE_FULL" in logged.getvalue()
    assert await count(db, "users") == 0
    await db.close()


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "keyman.db"
    path.write_bytes(CANARY.encode() * 1000)
    url = make_url(f"sqlite+aiosqlite:///{path}")
    db = Database(url)
    for doing in (lambda: read_one(db), lambda: write_one(db), lambda: migrations.upgrade(url)):
        assert CANARY not in everything_in(await unavailable(doing))
    await db.close()


async def test_a_pool_that_is_used_up_is_unavailable_until_one_comes_back(
    database: URL, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT", 0.2)
    db = Database(database, metrics)
    async with AsyncExitStack() as stack:
        for _ in range(POOL_SIZE):
            await stack.enter_async_context(db.read())
        for _ in range(3):
            await unavailable(lambda: read_one(db))
            await unavailable(lambda: write_one(db))
    assert in_use(metrics) == checked_out(db) == 0
    await write_one(db)
    await asyncio.gather(*(read_one(db) for _ in range(POOL_SIZE)))
    await db.close()


async def test_a_writer_that_holds_its_turn_too_long_lets_others_give_up(
    sqlite: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT", 0.2)
    db = Database(sqlite)
    async with db.write(Unchecked.OPERATOR):
        for _ in range(3):
            await unavailable(lambda: write_one(db))
    await write_one(db)
    await db.close()


@pytest.mark.parametrize("way", ["removed", "replaced"])
async def test_a_sqlite_file_that_is_taken_away_is_missed_and_works_again_when_put_back(
    sqlite: URL, tmp_path: Path, way: str
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    db = Database(sqlite)
    await write_one(db)
    move(tmp_path, "keyman.db*", away)  # what is in the WAL belongs to it
    if way == "replaced":
        await migrations.upgrade(sqlite)
    for _ in range(2):
        await unavailable(lambda: read_one(db))
        await unavailable(lambda: write_one(db))
    move(away, "*", tmp_path)
    assert await count(db, "throttle") == 1
    await write_one(db)
    assert await count(db, "throttle") == 2
    await db.close()


async def test_a_server_that_went_away_is_missed_and_found_again() -> None:
    with postgres_server(log_statements=False) as server:
        url = make_url(server.create_database("keyman"))
        await migrations.upgrade(url)
        db = Database(url)
        async with AsyncExitStack() as stack:  # every connection of the pool is open, and dies
            for _ in range(POOL_SIZE):
                await stack.enter_async_context(db.read())
        server.stop()
        for doing in (lambda: read_one(db), lambda: write_one(db), lambda: migrations.upgrade(url)):
            fault = await unavailable(doing)
            assert url.password
            assert url.password not in everything_in(fault)
        server.start()
        await asyncio.gather(*(write_one(db) for _ in range(POOL_SIZE)))
        assert await count(db, "throttle") == POOL_SIZE
        await db.close()


@pytest.mark.parametrize("wrong", [{"password": CANARY}, {"username": CANARY}, {"database": CANARY}, {"port": 1}])
async def test_a_server_that_lets_nobody_in_is_unavailable_and_shows_no_credentials(
    migrated_postgresql: URL, wrong: dict[str, Any], logged: StringIO
) -> None:
    url = migrated_postgresql.set(**wrong)
    db = Database(url)
    assert url.password
    for doing in (lambda: read_one(db), lambda: write_one(db), lambda: migrations.upgrade(url)):
        said = everything_in(await unavailable(doing)) + logged.getvalue()
        assert url.password not in said
        assert CANARY not in said
    await db.close()


async def test_a_closed_database_opens_again(measured_db: Database) -> None:
    await write_one(measured_db)
    await measured_db.close()
    await write_one(measured_db)
    assert await count(measured_db, "throttle") == 2


async def test_sessions_are_the_same_seen_through_any_engine(database: URL, measured_db: Database) -> None:
    await add_owner(measured_db)
    async with measured_db.write(Unchecked.OPERATOR) as connection:
        await add(connection, "sessions", id_hash=bytes(range(32)))
    other = Database(database)
    async with other.read() as connection:
        found = (await connection.execute(select(sessions.c.id_hash))).scalar_one()
    assert found == bytes(range(32))
    await other.close()


async def test_a_wait_that_ran_out_is_named_as_one() -> None:
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0):
            await asyncio.sleep(1)
    assert kind(caught.value) == "TimeoutError"


@pytest.mark.parametrize("way", ["read", "write"])
@pytest.mark.parametrize("fault", [FileNotFoundError("a file"), TimeoutError("a service"), UnicodeError("a text")])
async def test_a_fault_of_the_callers_own_code_is_not_called_the_databases(
    measured_db: Database, way: str, fault: Exception
) -> None:
    with pytest.raises(type(fault)) as caught:
        async with measured_db.read() if way == "read" else measured_db.write(Unchecked.OPERATOR):
            raise fault
    assert caught.value is fault


async def test_what_a_driver_raises_inside_a_block_is_still_the_databases(measured_db: Database) -> None:
    # sqlite3 raises this as it is, with the value in its text; asyncpg raises an error of its own.
    with pytest.raises(RefusedStatement) as caught:
        async with measured_db.read() as connection:
            await connection.execute(select(literal("\ud800CANARY")))
    assert "CANARY" not in everything_in(caught.value)
