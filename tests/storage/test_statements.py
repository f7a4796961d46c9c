"""Statements: the rows that they return are of the types that they say, and one place executes them."""

from __future__ import annotations

import importlib
import pkgutil
import re
import typing
from collections.abc import Iterator, Mapping
from datetime import datetime
from types import NoneType
from typing import NamedTuple, NewType

import pytest
from sqlalchemy import Column, bindparam, func, insert, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.sql.elements import ClauseElement, TextClause
from sqlalchemy.sql.selectable import ReturnsRows

import keyman
from keyman.audit import listing
from keyman.errors import DatabaseUnavailable, RefusedStatement
from keyman.identity.tables import users
from keyman.ids import UserId
from keyman.storage.paging import Listing
from keyman.storage.statements import Command, Query, optional, scalar
from keyman.storage.transactions import Database, Unchecked
from tests.support.rows import add, table

Built = Query[object] | Command


def built() -> dict[str, Built]:
    """By where it stands: what a module of keyman builds when it is imported, and filters of the audit log."""
    found: dict[str, Built] = {}
    for module in pkgutil.walk_packages(keyman.__path__, "keyman."):
        if module.name != "keyman.__main__" and ".versions." not in module.name and not module.name.endswith(".env"):
            for name, value in vars(importlib.import_module(module.name)).items():
                found |= {f"{module.name}.{name}{where}": one for where, one in inside(value)}
    shapes = {"own": (listing._own(0, False, False), listing._own(2, True, True)), "all": listing._all(*[True] * 4)}
    return found | {f"{listing.__name__}.{where}": one for where, one in inside(shapes)}


def inside(value: object) -> Iterator[tuple[str, Built]]:
    """The statements of a value: itself, those of a listing, or those that a mapping or a tuple holds."""
    if isinstance(value, Query | Command):
        yield "", value
    elif isinstance(value, Listing):
        yield ".first", value._first
        yield ".following", value._following
    elif isinstance(value, Mapping | tuple):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, each in pairs:
            yield from ((f"[{key}]{where}", one) for where, one in inside(each))


BUILT = built()
QUERIES = {
    where: one
    for where, one in BUILT.items()
    if isinstance(one, Query) and (hasattr(one.row, "_fields") or hasattr(one.row, "__struct_fields__"))
}
DIALECTS = {"sqlite": sqlite.dialect(), "postgresql": postgresql.dialect()}  # type: ignore[no-untyped-call]  # SQLAlchemy does not type it
OTHER = {"sqlite": "postgresql", "postgresql": "sqlite"}


def kinds_of(annotation: object) -> tuple[type, bool]:
    """The Python type of an annotation, and whether it may be None."""
    options = [one for one in typing.get_args(annotation) or [annotation] if one is not NoneType]
    (kind,) = options
    while isinstance(kind, NewType):
        kind = kind.__supertype__
    kind = typing.get_origin(kind) or kind
    assert isinstance(kind, type)
    return kind, NoneType in typing.get_args(annotation)


NEVER_NULL = {("Use", "application"), ("_Left", "application")}
"""Fields whose columns may be null, in rows of statements that leave null out."""


def test_there_are_queries_of_every_kind_to_look_at() -> None:
    places = {where.split(".")[1] for where in QUERIES}
    assert {"audit", "identity", "keys", "doctor"} <= places
    assert len(QUERIES) > 30


@pytest.mark.parametrize("where", BUILT)
def test_every_statement_can_be_spelt_for_each_database_that_it_is_for(where: str) -> None:
    statement = BUILT[where].statement
    assert isinstance(statement, ClauseElement)
    for name, dialect in DIALECTS.items():
        if OTHER[name] not in where:
            assert str(statement.compile(dialect=dialect))


@pytest.mark.parametrize("where", QUERIES)
def test_the_fields_of_a_row_are_of_the_types_of_its_columns(where: str) -> None:
    query = QUERIES[where]
    assert isinstance(query.statement, ReturnsRows)
    annotations = typing.get_type_hints(query.row)
    for column in query.statement.exported_columns:
        kind, may_be_none = kinds_of(annotations[column.name])
        assert issubclass(kind, column.type.python_type), (where, column.name)
        origins = [one for one in column.base_columns if isinstance(one, Column)]
        if (query.row.__name__, column.name) not in NEVER_NULL and origins and all(one.nullable for one in origins):
            assert may_be_none, f"{where}: {column.name} may be null"


class Named(NamedTuple):
    id: UserId
    email: str


@pytest.mark.parametrize("where", [where for where, one in BUILT.items() if isinstance(one, Query)])
def test_a_query_that_changes_rows_is_known_as_one(where: str) -> None:
    """A group undoes the work of a member that fails only if it has changed rows. A text may be anything."""
    query = BUILT[where]
    assert isinstance(query, Query)
    for name, dialect in DIALECTS.items():
        if OTHER[name] not in where:
            spelt = str(query.statement.compile(dialect=dialect))  # type: ignore[attr-defined]  # of every statement
            words = re.sub(r"FOR (NO KEY )?UPDATE", "", spelt)
            changes = bool(re.search(r"\b(INSERT|UPDATE|DELETE)\b", words))
            assert query.changes is (changes or isinstance(query.statement, TextClause))


def test_a_row_with_other_fields_than_the_statement_has_columns_is_not_built() -> None:
    for columns in ((users.c.email, users.c.id), (users.c.id,), (users.c.id, users.c.email, users.c.created_at)):
        with pytest.raises(TypeError):
            Query(select(*columns), Named)
    with pytest.raises(TypeError):
        Query(insert(users), Named)
    assert Query(select(users.c.id, users.c.email), Named)


@pytest.mark.anyio
async def test_rows_come_as_their_types_and_a_command_says_how_many_it_changed(database: URL) -> None:
    of_email = select(users.c.id, users.c.email).where(users.c.email.like(bindparam("pattern")))
    found = Query(of_email.order_by(users.c.id), Named)
    rename = Command(update(users).where(users.c.id > bindparam("after")).values(email=bindparam("new")))
    db = Database(database)
    async with db.write(Unchecked.OPERATOR) as connection:
        ids = [await add(connection, "users", email=f"{name}@example.com") for name in ("ada", "eve", "bob")]
        assert await found.all(connection, pattern="e%") == [(ids[1], "eve@example.com")]
        assert await found.one(connection, pattern="a%") == Named(UserId(int(ids[0] or 0)), "ada@example.com")
        assert await found.first(connection, pattern="x%") is None
        assert await rename.execute(connection, after=ids[0], new="same@example.com") == 2
        for ask in (found.one, found.first):
            with pytest.raises(RefusedStatement):
                await ask(connection, pattern="same%")
        with pytest.raises(RefusedStatement):
            await found.one(connection, pattern="x%")
    await db.close()


@pytest.mark.anyio
async def test_a_single_column_comes_as_its_values(database: URL) -> None:
    db = Database(database)
    async with db.write(Unchecked.OPERATOR) as connection:
        await add(connection, "users")
        assert await scalar(select(func.count()).select_from(users), int).one(connection) == 1
        assert await optional(select(func.max(users.c.disabled_at)), datetime).one(connection) is None
        assert await scalar(select(literal(7)), int).all(connection) == [7]
    await db.close()


_THROTTLE = table("throttle")
_ATTEMPTS = scalar(select(_THROTTLE.c.attempts), int)
_ADD_ONE = scalar(
    update(_THROTTLE).values(attempts=_THROTTLE.c.attempts + 1).returning(_THROTTLE.c.attempts),
    int,
)


async def _change_type(operator: Database, to: str) -> None:
    async with operator.write(Unchecked.OPERATOR) as connection:
        await connection.exec_driver_sql(f"ALTER TABLE throttle ALTER COLUMN attempts TYPE {to}")


@pytest.mark.anyio
async def test_a_statement_that_was_prepared_before_an_upgrade_is_none_that_keyman_got_wrong(postgresql: URL) -> None:
    """A read is repeated. A write answers 503 once, because its transaction is lost."""
    db, operator = Database(postgresql), Database(postgresql)
    try:
        async with operator.write(Unchecked.OPERATOR) as connection:
            await add(connection, "throttle", attempts=3)
        async with db.read() as connection:
            assert await _ATTEMPTS.one(connection) == 3
        await _change_type(operator, "bigint")
        async with db.read() as connection:
            assert await _ATTEMPTS.one(connection) == 3
        async with db.write(Unchecked.KEYMAN) as connection:
            assert await _ADD_ONE.one(connection) == 4
        await _change_type(operator, "integer")
        with pytest.raises(DatabaseUnavailable):
            async with db.write(Unchecked.KEYMAN) as connection:
                await _ADD_ONE.one(connection)
        async with db.write(Unchecked.KEYMAN) as connection:
            assert await _ADD_ONE.one(connection) == 5
    finally:
        await db.close()
        await operator.close()
