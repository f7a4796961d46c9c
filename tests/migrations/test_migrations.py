"""Migrations, on a real SQLite and a real PostgreSQL: what they make, and what they leave behind when they fail."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from alembic import command, op
from sqlalchemy import CheckConstraint, UniqueConstraint, func, insert, inspect, select, text
from sqlalchemy import column as lightweight_column
from sqlalchemy import table as lightweight_table
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman import migrations
from keyman.audit import verification
from keyman.audit.entries import NO_VALUE, OPERATOR, Action, Actor, Entry, Origin
from keyman.audit.log import current_value, record
from keyman.audit.tables import audit_log
from keyman.errors import ConfigurationError, DatabaseUnavailable, KeymanError
from keyman.ids import UserId
from keyman.keys.deployment import SCHEMA_REVISION, Deployment, deployment
from keyman.migrations import ADVISORY_LOCK
from keyman.storage import engine
from keyman.storage.engine import create_engine, create_private_file
from keyman.storage.transactions import Database, Unchecked
from tests.fixtures.revision_0004.restore import restore_sqlite
from tests.support.database import PostgresServer
from tests.support.exceptions import everything_in, stands_alone
from tests.support.needs import quick_on
from tests.support.rows import add, add_owner, count, row, table

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def connected(url: URL) -> AsyncIterator[AsyncConnection]:
    """A connection that commits, around keyman's own rules."""
    create_private_file(url)
    engine = create_engine(url, statement_timeout=None)
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


async def execute(url: URL, *statements: str) -> None:
    async with connected(url) as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def asked(url: URL, question: Callable[[Connection], Any]) -> Any:
    async with connected(url) as connection:
        return await connection.run_sync(question)


async def uuid_of(url: URL) -> object:
    async with connected(url) as connection:
        return (await connection.execute(select(deployment.c.uuid))).scalar_one()


def table_names(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


def test_the_code_names_the_newest_migration() -> None:
    assert migrations.newest_revision() == SCHEMA_REVISION


async def test_an_upgraded_database_is_what_the_code_describes(empty_database: URL) -> None:
    assert await migrations.upgrade(empty_database) == (None, SCHEMA_REVISION)
    assert await migrations.differences(empty_database) == []

    def described(connection: Connection) -> dict[str, set[Any]]:
        """What Alembic's comparison leaves out."""
        inspector, found = inspect(connection), {}
        for name in migrations.tables().tables:
            checks = {check["name"] for check in inspector.get_check_constraints(name)}
            keys = {
                (key["name"], *key["constrained_columns"], key["referred_table"], key["options"].get("ondelete"))
                for key in inspector.get_foreign_keys(name)
            }
            indexes = {(index["name"], *index["column_names"]) for index in inspector.get_indexes(name)}
            unique = {(one["name"], *one["column_names"]) for one in inspector.get_unique_constraints(name)}
            primary = tuple(inspector.get_pk_constraint(name)["constrained_columns"])  # SQLite does not name it
            # On PostgreSQL a unique constraint shows as an index too.
            found[name] = checks | keys | unique | indexes | {primary}
        return found

    wanted = {}
    for name, one_table in migrations.tables().tables.items():
        checks = {str(one.name) for one in one_table.constraints if isinstance(one, CheckConstraint) and one.name}
        keys = {
            (str(one.name), *one.column_keys, one.referred_table.name, one.ondelete)
            for one in one_table.foreign_key_constraints
        }
        indexes = {(index.name, *index.columns.keys()) for index in one_table.indexes}
        unique = {
            (str(one.name), *one.columns.keys()) for one in one_table.constraints if isinstance(one, UniqueConstraint)
        }
        wanted[name] = checks | keys | indexes | unique | {tuple(one_table.primary_key.columns.keys())}
    assert await asked(empty_database, described) == wanted


async def test_a_second_upgrade_changes_nothing(empty_database: URL) -> None:
    await migrations.upgrade(empty_database)
    uuid = await uuid_of(empty_database)
    db = Database(empty_database)
    await add_owner(db)
    async with db.write(Unchecked.OPERATOR) as connection:
        await add(connection, "api_keys")
    assert await migrations.upgrade(empty_database) == (SCHEMA_REVISION, SCHEMA_REVISION)
    assert await count(db, "api_keys") == 1
    assert await uuid_of(empty_database) == uuid
    assert await migrations.differences(empty_database) == []
    await db.close()


async def test_each_deployment_has_a_uuid_of_its_own(
    empty_database: URL, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = URL.create("sqlite+aiosqlite", database=str(tmp_path_factory.mktemp("other") / "keyman.db"))
    await migrations.upgrade(empty_database)
    await migrations.upgrade(other)
    assert await uuid_of(empty_database) != await uuid_of(other)


@quick_on("postgresql", "empty_database")
async def test_several_processes_that_upgrade_at_once_make_one_schema(empty_database: URL) -> None:
    address = empty_database.render_as_string(hide_password=False)
    program = "import asyncio, sys; from sqlalchemy.engine import make_url; from keyman import migrations; "
    program += "sys.stdin.readline(); print(asyncio.run(migrations.upgrade(make_url(sys.argv[1]))))"
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            program,
            address,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(3)
    ]
    said = await asyncio.gather(*(process.communicate(b"\n") for process in processes))
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert sorted(out.decode().strip() for out, _ in said) == [
        str((SCHEMA_REVISION, SCHEMA_REVISION)),
        str((SCHEMA_REVISION, SCHEMA_REVISION)),
        str((None, SCHEMA_REVISION)),
    ]
    assert await migrations.differences(empty_database) == []


async def test_several_upgrades_in_one_process_make_one_schema(empty_database: URL) -> None:
    results = await asyncio.gather(*(migrations.upgrade(empty_database) for _ in range(4)))
    assert sorted(results, key=str)[:3] == [(SCHEMA_REVISION, SCHEMA_REVISION)] * 3
    assert await migrations.differences(empty_database) == []


async def test_a_migration_that_the_database_refuses_leaves_nothing_behind(empty_database: URL) -> None:
    # One of the last things that the migration makes is there already, and is somebody else's.
    await execute(empty_database, "CREATE TABLE sessions (canary integer)", "INSERT INTO sessions VALUES (7)")
    with pytest.raises(DatabaseUnavailable) as caught:
        await migrations.upgrade(empty_database)
    assert stands_alone(caught.value)
    assert "could not be upgraded" in caught.value.detail
    assert "refused a statement" in caught.value.detail
    assert await asked(empty_database, table_names) == {"sessions"}
    await execute(empty_database, "DROP TABLE sessions")
    assert await migrations.upgrade(empty_database) == (None, SCHEMA_REVISION)
    assert await migrations.differences(empty_database) == []


async def test_a_row_that_breaks_a_new_constraint_is_called_that_and_no_outage(
    empty_database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_index = op.create_index

    def broken(name: str, *arguments: Any, **options: Any) -> None:
        if name == "ix_sessions_user_id":
            op.execute("CREATE TABLE canary (value integer UNIQUE)")
            op.execute("INSERT INTO canary VALUES (7), (7)")
        create_index(name, *arguments, **options)

    monkeypatch.setattr(op, "create_index", broken)
    with pytest.raises(DatabaseUnavailable) as caught:
        await migrations.upgrade(empty_database)
    assert stands_alone(caught.value)
    assert "could not be upgraded. A stored row breaks a constraint of the new schema." in caught.value.detail
    assert "cannot be reached" not in caught.value.detail
    assert await asked(empty_database, table_names) == set()


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt, asyncio.CancelledError])
async def test_a_migration_that_is_interrupted_leaves_nothing_behind(
    empty_database: URL, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    create_index = op.create_index

    def interrupted(name: str, *arguments: Any, **options: Any) -> None:
        if name == "ix_sessions_user_id":
            raise fault
        create_index(name, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(fault):  # noqa: PT012  # the patch ends with the call
        patch.setattr(op, "create_index", interrupted)
        await migrations.upgrade(empty_database)
    assert await asked(empty_database, table_names) == set()
    assert await migrations.upgrade(empty_database) == (None, SCHEMA_REVISION)
    assert await migrations.differences(empty_database) == []


async def test_an_upgrade_may_wait_for_another_one_longer_than_a_statement_may_take(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"waits_{uuid4().hex}"
    url = make_url(postgres.create_database(name))
    holder = create_engine(url, statement_timeout=None)
    monkeypatch.setattr(engine, "STATEMENT_TIMEOUT", 0.2)  # the driver's own limit is a second more
    async with holder.connect() as connection:
        await connection.execute(text(f"SELECT pg_advisory_lock({ADVISORY_LOCK})"))
        upgrade = asyncio.create_task(migrations.upgrade(url))
        await asyncio.wait([upgrade], timeout=2.5)
        await connection.execute(text(f"SELECT pg_advisory_unlock({ADVISORY_LOCK})"))
    await holder.dispose()
    assert await upgrade == (None, SCHEMA_REVISION)
    postgres.drop_database(name)


async def test_what_a_database_lacks_is_said(empty_database: URL) -> None:
    await execute(empty_database, "SELECT 1")
    assert await migrations.differences(empty_database) == ["the database is empty"]
    await migrations.upgrade(empty_database)
    await execute(
        empty_database,
        "DROP INDEX ix_api_keys_owner",
        "ALTER TABLE api_tokens DROP COLUMN hint",
        "DROP VIEW permitted_applications",
    )
    said = await migrations.differences(empty_database)
    assert len(said) == 3
    assert "the view permitted_applications is missing" in said
    assert any("ix_api_keys_owner" in line for line in said)
    assert any("hint" in line for line in said)


async def test_another_revision_is_said(database: URL) -> None:
    await execute(database, "UPDATE alembic_version SET version_num = '0000'")
    assert await migrations.differences(database) == [
        f"the schema is at revision 0000, the newest is {SCHEMA_REVISION}"
    ]


async def test_an_upgrade_refuses_a_schema_that_a_newer_keyman_made(database: URL) -> None:
    await execute(database, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(KeymanError) as caught:
        await migrations.upgrade(database)
    assert stands_alone(caught.value)


async def test_asking_for_differences_changes_nothing(database: URL) -> None:
    before = await asked(database, table_names)
    for _ in range(2):
        assert await migrations.differences(database) == []
    assert await asked(database, table_names) == before


async def test_a_missing_database_is_said_without_its_credentials(postgres: PostgresServer) -> None:
    url = make_url(postgres.create_database("there")).set(database="not_there")
    for doing in (migrations.upgrade, migrations.differences):
        with pytest.raises(DatabaseUnavailable) as caught:
            await doing(url)
        assert stands_alone(caught.value)
        assert url.password
        assert url.password not in everything_in(caught.value)
        assert "not_there" not in caught.value.detail
    postgres.drop_database("there")


async def test_an_upgrade_of_sqlite_waits_for_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = URL.create("sqlite+aiosqlite", database=str(tmp_path / "keyman.db"))
    monkeypatch.setattr(engine, "BUSY_TIMEOUT", 0.1)
    with closing(sqlite3.connect(tmp_path / "keyman.db", isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("BEGIN IMMEDIATE")
        upgrade = asyncio.create_task(migrations.upgrade(url))
        done, _ = await asyncio.wait([upgrade], timeout=0.5)
        assert not done
        writer.execute("COMMIT")
    assert await upgrade == (None, SCHEMA_REVISION)


async def test_an_upgrade_of_sqlite_leaves_no_reference_to_a_row_that_is_gone(tmp_path: Path) -> None:
    # A migration that copies a table with foreign keys switched off can lose the rows that others refer to.
    file = tmp_path / "keyman.db"
    restore_sqlite(file)
    await migrations.upgrade(URL.create("sqlite+aiosqlite", database=str(file)))
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM api_keys").fetchone()[0] > 0
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


# What each table holds before an upgrade from each revision, and an id that was given and whose row is gone.
_BEFORE = {
    "users": "email, email_key, password_hash, created_at",
    "sessions": "user_id, id_hash, created_at, last_seen_at, expires_at",
    "api_tokens": "user_id, token_hash, name, scopes, hint, created_at",
    "api_keys": "user_id, service, encrypted_key, key_version, value_uuid, last_4_chars, disabled, undecryptable, "
    "created_at, updated_at",
    "audit_log": "at, user_id, actor, action",
    "idempotency": "user_id, key_hash, fingerprint, response, created_at",
}


async def fill_at(url: URL, revision: str) -> None:
    """Make a database of this revision with three rows in each table, and delete the newest of those with a number."""
    async with connected(url) as connection:
        await connection.run_sync(lambda sync: command.upgrade(migrations._config(sync), revision))
        for name, spelt in _BEFORE.items():
            columns = spelt.split(", ")
            if revision == "0004" and name == "audit_log":
                columns += ["chain", "sequence", "hash"]
            for _ in range(3):
                values = {column: value for column, value in row(name).items() if column in columns}
                then = lightweight_table(name, *(lightweight_column(one, table(name).c[one].type) for one in columns))
                await connection.execute(insert(then).values(values))
            if "id" in table(name).c:
                await connection.execute(text(f"DELETE FROM {name} WHERE id = 3"))  # noqa: S608  # a table of keyman
        if revision == "0004":
            await connection.execute(text("DELETE FROM audit_log"))  # its rows are not chained


@pytest.mark.parametrize("revision", ["0001", "0002", "0003", "0004"])
async def test_an_upgrade_keeps_sessions_and_tokens_and_gives_no_id_again(empty_database: URL, revision: str) -> None:
    await fill_at(empty_database, revision)
    assert await migrations.upgrade(empty_database) == (revision, SCHEMA_REVISION)
    db = Database(empty_database)
    try:
        kept = {name: await count(db, name) for name in _BEFORE}
        assert kept == {name: 3 if name == "idempotency" else 2 for name in _BEFORE} | {
            "audit_log": 0 if revision == "0004" else 2
        }
        async with db.write(Unchecked.OPERATOR) as connection:
            assert await add(connection, "users") == 4
            for name in ("sessions", "api_tokens", "api_keys"):
                assert await add(connection, name) == 4, name
            await record(connection, Entry(Action.LOGIN, OPERATOR, UserId(1)))
        async with db.read() as connection:
            assert (await connection.execute(select(func.max(audit_log.c.id)))).scalar_one() == 4
    finally:
        await db.close()


async def test_an_upgrade_of_sqlite_stops_where_a_row_refers_to_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keyman.db"
    restore_sqlite(file)
    with closing(sqlite3.connect(file)) as connection:  # by hand, and without foreign keys
        connection.execute("DELETE FROM users WHERE id = (SELECT min(user_id) FROM sessions)")
        connection.commit()
        before = list(connection.iterdump())
    with pytest.raises(ConfigurationError) as caught:
        await migrations.upgrade(URL.create("sqlite+aiosqlite", database=str(file)))
    assert "sessions" in str(caught.value)
    with closing(sqlite3.connect(file)) as connection:
        assert list(connection.iterdump()) == before


async def test_older_audit_entries_are_chained_and_name_the_values_that_are_stored(empty_database: URL) -> None:
    async with connected(empty_database) as connection:
        await connection.run_sync(lambda sync: command.upgrade(migrations._config(sync), "0003"))
        tables = migrations.tables().tables
        values = [uuid4() for _ in range(3)]
        await connection.execute(insert(tables["users"]).values(row("users")))
        for value in values:
            stored = row("api_keys", value_uuid=value)
            del stored["owner_id"]  # no key had one then
            await connection.execute(insert(tables["api_keys"]).values(stored))
    columns = "at, user_id, actor, action, key_id, service, purpose, address"
    actions = ["create"] * 3 + ["replace", "change", "replace", "delete"]
    for n, (action, key) in enumerate(zip(actions, (1, 2, 3, 1, 2, 1, 9), strict=True)):
        at, purpose = f"2026-11-24 10:00:00.00000{n if n != 3 else 0}", "na\u00efve \U0001f511"
        told = f"'{at}', 1, 'session', 'key.{action}', {key}, 'OPENAI', '{purpose}', NULL"
        await execute(empty_database, f"INSERT INTO audit_log ({columns}) VALUES ({told})")  # noqa: S608  # the test's own words
    assert await migrations.upgrade(empty_database) == ("0003", SCHEMA_REVISION)
    assert await migrations.differences(empty_database) == []

    db = Database(empty_database)
    found = await verification.verify(db, (await Deployment.load(db)).uuid)
    assert (found.entries, found.breaks) == (7, [])
    async with db.read() as connection:
        current = [(await connection.execute(select(current_value(key)))).scalar_one() for key in (1, 2, 3, 9)]
    assert current == [*values, NO_VALUE]
    async with db.write(Unchecked.OPERATOR) as connection:
        await record(connection, Entry(Action.DISABLE, OPERATOR, UserId(1)))
    assert (await verification.verify(db, (await Deployment.load(db)).uuid)).breaks == []
    await db.close()


async def test_older_audit_entries_that_cannot_be_read_stop_the_upgrade_and_stay(tmp_path: Path) -> None:
    url = URL.create("sqlite+aiosqlite", database=str(tmp_path / "keyman.db"))
    async with connected(url) as connection:
        await connection.run_sync(lambda sync: command.upgrade(migrations._config(sync), "0003"))
    await execute(url, "INSERT INTO audit_log (at, actor, action) VALUES ('c4n4ry', 'operator', 'account.disable')")
    with pytest.raises(ConfigurationError, match="changed by hand") as caught:
        await migrations.upgrade(url)
    assert stands_alone(caught.value)
    assert "c4n4ry" not in everything_in(caught.value)
    assert await migrations.differences(url) == [f"the schema is at revision 0003, the newest is {SCHEMA_REVISION}"]


async def test_audit_entries_from_before_applications_stay_and_applications_can_be_recorded(
    empty_database: URL,
) -> None:
    async with connected(empty_database) as connection:
        await connection.run_sync(lambda sync: command.upgrade(migrations._config(sync), "0002"))
    columns = "at, user_id, actor, action, key_id, address"
    row = "'2026-11-24 10:00:00.000001', NULL, 'operator', 'account.disable', 7, '2001:db8::1'"
    await execute(
        empty_database,
        *[f"INSERT INTO audit_log ({columns}) VALUES ({row})"] * 3,  # noqa: S608  # the test's own words
        "DELETE FROM audit_log WHERE id = 1",
    )
    assert await migrations.upgrade(empty_database) == ("0002", SCHEMA_REVISION)
    assert await migrations.differences(empty_database) == []
    async with connected(empty_database) as connection:
        told = (await connection.execute(select(audit_log).order_by(audit_log.c.id))).all()
        assert [(entry.id, entry.key_id, entry.application) for entry in told] == [(2, 7, None), (3, 7, None)]
        assert {entry.at for entry in told} == {datetime(2026, 11, 24, 10, 0, 0, 1, UTC)}
    db = Database(empty_database)
    async with db.write(Unchecked.OPERATOR) as connection:
        origin = Origin(Actor.APPLICATION, 1)
        await record(connection, Entry(Action.KEY_RESOLVE, origin, purpose="x" * 200))
    async with db.read() as connection:
        assert (await connection.execute(select(func.max(audit_log.c.id)))).scalar_one() == 4
    await db.close()
    with pytest.raises(IntegrityError):
        await execute(empty_database, "UPDATE audit_log SET actor = 'nobody'")
