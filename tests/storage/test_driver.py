"""Statements on the driver's own connection: the same rows as SQLAlchemy's, faults, cancellation, hand-overs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import random
import tomllib
from pathlib import Path
from typing import Any
from unittest import mock

import aiosqlite
import pytest
from sqlalchemy import Column, Integer, MetaData, Table, bindparam, delete, func, insert, literal, select, text, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.compiler import SQLCompiler

from keyman import migrations
from keyman.errors import DatabaseUnavailable
from keyman.identity.tables import throttle, users
from keyman.storage import driver
from keyman.storage.compiling import Compiler, columns_of
from keyman.storage.engine import POOL_SIZE
from keyman.storage.faults import DriverFault, RolledBack
from keyman.storage.statements import Command, Query, UnfitParameter, UnreadableRow, scalar
from keyman.storage.transactions import Database, Unchecked
from tests.storage.test_statements import BUILT, DIALECTS, OTHER
from tests.support.exceptions import everything_in
from tests.support.rows import add, add_owner, count, row, table

pytestmark = pytest.mark.anyio

TABLES = [each.name for each in migrations.tables().sorted_tables if each.name not in ("owners", "deployment")]

CANARY = "canary-of-a-parameter"

_EVERY = scalar(select(func.count()).select_from(throttle), int)
_ADD = Command(insert(throttle))
_RENAME = Command(update(users).where(users.c.id == bindparam("of_id")).values(email=bindparam("new")))
_OF_IDS = scalar(select(users.c.id).where(users.c.id.in_(bindparam("ids", expanding=True))).order_by(users.c.id), int)


def as_tuple(*values: object) -> tuple[object, ...]:
    return values


# --- compiling


@pytest.mark.parametrize("name", TABLES)
async def test_rows_are_those_that_sqlalchemy_stores_and_reads(db: Database, name: str) -> None:
    await add_owner(db)
    columns = table(name)
    async with db.write(Unchecked.OPERATOR) as connection:
        ids = [await add(connection, "owners") for _ in range(2)] if name == "users" else []
        ours, theirs = [row(name, **({"id": ids[at]} if ids else {})) for at in range(2)]
        if name == "application_blocks":  # a user has one for each application
            theirs["application_id"] = await add(connection, "applications")
        assert await Command(insert(columns)).execute(connection, **ours) == 1
        await connection.execute(insert(columns), theirs)
        found = await Query(select(columns), as_tuple).all(connection)
        expected = [tuple(each) for each in await connection.execute(select(columns))]
    assert found == expected
    assert [[*map(type, each)] for each in found] == [[*map(type, each)] for each in expected]


@pytest.mark.parametrize("where", BUILT)
def test_every_column_of_a_row_has_its_type(where: str) -> None:
    for name, dialect in DIALECTS.items():
        if OTHER[name] not in where:
            compiled = BUILT[where].statement.compile(dialect=dialect)  # type: ignore[attr-defined]  # of every statement
            assert isinstance(compiled, SQLCompiler)
            types = [entry.type for entry in compiled._result_columns]
            # A Command returns no rows; SQLAlchemy asks some of them for the id of the new row.
            assert isinstance(BUILT[where], Command) or types == [
                column.type for column in columns_of(BUILT[where].statement)
            ]


async def test_a_statement_is_compiled_once_for_each_set_of_parameters(db: Database) -> None:
    compiler = Compiler(insert(throttle))
    async with db.read() as connection:
        first = compiler.compiled(connection.dialect, row("throttle"))
        assert compiler.compiled(connection.dialect, row("throttle")) is first
        assert compiler.compiled(connection.dialect, {"bucket": b"x", "attempts": 1}) is not first


async def test_a_list_has_any_length(db: Database) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        ids = [await add(connection, "users") for _ in range(4)]
        for some in ([], ids[:1], ids[1:], ids):
            assert await _OF_IDS.all(connection, ids=some) == some


async def test_a_constant_of_a_statement_is_kept(db: Database) -> None:
    async with db.read() as connection:
        assert await scalar(select(literal("one") + literal(" two")), str).one(connection) == "one two"
        assert await scalar(select(literal(3)).limit(1), int).all(connection) == [3]


async def test_a_missing_parameter_and_a_default_in_python_are_bugs(db: Database) -> None:
    made_up = Table("made_up", MetaData(), Column("id", Integer, primary_key=True), Column("n", Integer, default=7))
    async with db.read() as connection:
        with pytest.raises(TypeError):
            await _RENAME.execute(connection, of_id=1)
        with pytest.raises(TypeError):
            await Command(insert(made_up)).execute(connection, id=1)


async def test_a_value_that_does_not_fit_is_refused_and_not_shown(db: Database) -> None:
    async def store() -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await _ADD.execute(connection, **{**row("throttle"), "ends_at": CANARY})

    with pytest.raises(UnfitParameter) as caught:
        await store()
    assert CANARY not in everything_in(caught.value)
    assert await count(db, "throttle") == 0


async def test_a_damaged_value_on_sqlite_is_an_unreadable_row(sqlite: URL) -> None:
    db = Database(sqlite)
    async with db.write(Unchecked.OPERATOR) as connection:
        await add(connection, "throttle")
        await connection.execute(text("UPDATE throttle SET ends_at = :canary"), {"canary": CANARY})
        with pytest.raises(UnreadableRow) as caught:
            await Query(select(throttle), as_tuple).all(connection)
    assert CANARY not in everything_in(caught.value)
    await db.close()


# --- executing


def test_what_is_used_of_aiosqlite_is_there_in_the_versions_that_are_allowed() -> None:
    assert [*inspect.signature(aiosqlite.Connection._execute).parameters] == ["self", "fn", "args", "kwargs"]
    assert inspect.iscoroutinefunction(aiosqlite.Connection._execute)
    assert "_conn" in vars(aiosqlite.Connection)
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert "aiosqlite>=0.22,<0.23" in extras["server"]


async def test_a_statement_is_handed_to_the_thread_of_sqlite_once(sqlite: URL) -> None:
    db, handed = Database(sqlite), list[object]()
    execute = aiosqlite.Connection._execute

    async def counting(self: aiosqlite.Connection, function: Any, *arguments: Any, **named: Any) -> Any:
        handed.append(function)
        return await execute(self, function, *arguments, **named)  # type: ignore[no-untyped-call]  # aiosqlite does not type it

    async with db.write(Unchecked.OPERATOR) as connection:
        await _ADD.execute(connection, **row("throttle"))
    with mock.patch.object(aiosqlite.Connection, "_execute", counting):
        async with db.read() as connection:
            assert await _EVERY.one(connection) == 1
        assert len(handed) == 1
        async with db.write(Unchecked.OPERATOR) as connection:
            await _ADD.execute(connection, **row("throttle"))
        assert len(handed) == 4  # with BEGIN and COMMIT
    await db.close()


async def test_changed_rows_are_counted(db: Database) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        await _ADD.execute_many(connection, [row("throttle") for _ in range(3)])
        await _ADD.execute_many(connection, [])
        assert await Command(update(throttle).values(attempts=5)).execute(connection) == 3
        assert (
            await Command(delete(throttle).where(throttle.c.attempts == bindparam("n"))).execute(connection, n=4) == 0
        )
        assert await Command(delete(throttle)).execute(connection) == 3


async def test_a_broken_constraint_is_the_same_exception_on_both_databases(db: Database) -> None:
    same = row("throttle")

    async def store(times: int) -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            for _ in range(times):
                await _ADD.execute(connection, **same)

    for _ in range(POOL_SIZE + 1):
        with pytest.raises(IntegrityError):
            await store(2)
    assert await count(db, "throttle") == 0
    await store(1)
    with pytest.raises(IntegrityError):
        async with db.write(Unchecked.OPERATOR) as connection:
            await _ADD.execute_many(connection, [row("throttle"), same])
    assert await count(db, "throttle") == 1


async def test_a_transaction_that_postgresql_rolls_back_is_not_taken_for_committed(postgresql: URL) -> None:
    """It answers COMMIT with ROLLBACK, and without an error, if a statement had failed."""
    db, same = Database(postgresql), row("throttle")

    async def store() -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await _ADD.execute(connection, **same)
            with pytest.raises(IntegrityError):
                await _ADD.execute(connection, **same)

    with pytest.raises(RolledBack):
        await store()
    assert await count(db, "throttle") == 0
    await db.close()


@pytest.mark.parametrize("is_sent_before", [True, False])
async def test_a_connection_that_was_given_up_is_not_replaced_in_the_middle_of_a_transaction(
    db: Database, is_sent_before: bool
) -> None:
    """Another one would store what follows by itself, and take COMMIT although nothing had begun on it."""
    async with db.read() as one, db.read() as another:  # the pool has another one at hand
        await _EVERY.one(one)
        await _EVERY.one(another)

    async def store() -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            if is_sent_before:
                await _ADD.execute(connection, **row("throttle"))
            await connection.invalidate()
            with contextlib.suppress(DriverFault):
                await _ADD.execute(connection, **row("throttle"))

    with pytest.raises(DatabaseUnavailable):
        await store()
    assert await count(db, "throttle") == 0


@pytest.mark.filterwarnings("ignore:.*was deleted before being closed:ResourceWarning")
async def test_cancelled_statements_leave_every_connection_free_and_no_transaction_open(db: Database) -> None:
    async def work(number: int) -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await _ADD.execute(connection, **row("throttle"))
            await _EVERY.one(connection)
        async with db.read() as connection:
            await _EVERY.all(connection)

    tasks = [asyncio.create_task(work(number)) for number in range(60)]
    dice = random.Random(3)  # noqa: S311  # a storm, not a secret
    for task in tasks:
        asyncio.get_running_loop().call_later(dice.random() * 0.3, task.cancel)
    await asyncio.gather(*tasks, return_exceptions=True)
    before = await count(db, "throttle")
    for _ in range(POOL_SIZE + 1):
        async with db.write(Unchecked.OPERATOR) as connection:
            await _ADD.execute(connection, **row("throttle"))
    assert await count(db, "throttle") == before + POOL_SIZE + 1
    gc.collect()


async def test_a_connection_that_is_lost_is_replaced(postgresql: URL) -> None:
    db = Database(postgresql)
    end = scalar(select(func.pg_terminate_backend(func.pg_backend_pid())), bool)

    async def lose(*, writing: bool) -> None:
        async with db.write(Unchecked.OPERATOR) if writing else db.read() as connection:
            await end.one(connection)

    for writing in (True, False, True):
        with pytest.raises(DatabaseUnavailable):
            await lose(writing=writing)
        async with db.read() as connection:
            assert await _EVERY.one(connection) == 0
    await db.close()


async def test_a_connection_goes_back_without_a_transaction(db: Database) -> None:
    async with db.read() as connection:
        await driver.begin(connection, None, 5)  # by mistake
        await _ADD.execute(connection, **row("throttle"))
    assert await count(db, "throttle") == 0
    async with db.write(Unchecked.OPERATOR) as connection:
        await _ADD.execute(connection, **row("throttle"))
    assert await count(db, "throttle") == 1
