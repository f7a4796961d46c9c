"""Statements: each is built once, from SQLAlchemy Core, together with the type of the rows that it returns.

A `Query` returns rows, and a `Command` returns how many rows it changed. Both are created when their module is
imported, because building a statement takes as long as executing it. Statements of the filters of the audit log, which
have many shapes, are created at the first use of each. Only this module executes them.

    class Found(NamedTuple):
        id: KeyId
        service: str

    BY_ID = Query(select(api_keys.c.id, api_keys.c.service).where(api_keys.c.id == bindparam("key_id")), Found)

    async with db.read() as connection:
        found = await BY_ID.first(connection, key_id=7)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from sqlalchemy import Executable
from sqlalchemy.engine import CursorResult
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.selectable import ReturnsRows

from keyman.errors import RefusedStatement, raise_alone

R = TypeVar("R")


class UnreadableRow(RefusedStatement):
    """A stored value is not of its column's type. SQLite stores such a value; PostgreSQL refuses it."""


class Query(Generic[R]):
    """A statement that returns rows: a SELECT, or a change with RETURNING.

    `row` is called with the values of the columns, in their order, and returns a row. It is a function, a NamedTuple or
    a struct. The fields of a NamedTuple or struct must have the names of the columns; otherwise TypeError is raised.
    For a single column, see `scalar`.
    """

    def __init__(self, statement: Executable, row: Callable[..., R]) -> None:
        fields = getattr(row, "_fields", getattr(row, "__struct_fields__", None))
        if fields is not None and fields != _columns(statement):
            raise TypeError(f"{row} does not have the fields {_columns(statement)}")
        self.statement = statement
        self.row = row

    async def all(self, connection: AsyncConnection, **parameters: object) -> list[R]:
        """Return every row. Raises UnreadableRow."""
        rows = _read(await _execute(connection, self.statement, parameters))
        return [self.row(*values) for values in rows]

    async def first(self, connection: AsyncConnection, **parameters: object) -> R | None:
        """Return the only row, or None. Raises RefusedStatement if there is more than one, and UnreadableRow."""
        rows = await self.all(connection, **parameters)
        if len(rows) > 1:
            raise RefusedStatement("a statement that returns one row at most returned more")
        return rows[0] if rows else None

    async def one(self, connection: AsyncConnection, **parameters: object) -> R:
        """Return the only row. Raises RefusedStatement if there is none or more than one, and UnreadableRow."""
        rows = await self.all(connection, **parameters)
        if len(rows) != 1:
            raise RefusedStatement("a statement that returns one row returned none, or more")
        return rows[0]


def scalar(statement: Executable, _kind: Callable[..., R]) -> Query[R]:
    """Return a query of one column whose rows are its values, such as `scalar(select(func.count()), int)`.

    The column's type decodes the values. The second argument is their Python type, and only the type checker uses it.
    """

    def value(only: R) -> R:
        return only

    return Query(statement, value)


def optional(statement: Executable, _kind: Callable[..., R]) -> Query[R | None]:
    """Return a query of one column, like `scalar`, whose values may be null."""

    def value(only: R | None) -> R | None:
        return only

    return Query(statement, value)


class Command:
    """A statement that changes rows and returns none."""

    def __init__(self, statement: Executable) -> None:
        self.statement = statement

    async def execute(self, connection: AsyncConnection, **parameters: object) -> int:
        """Execute the statement, and return how many rows it changed."""
        return (await _execute(connection, self.statement, parameters)).rowcount

    async def execute_many(self, connection: AsyncConnection, rows: Sequence[Mapping[str, object]]) -> None:
        """Execute the statement once for each mapping of parameters, in one round trip if the database can do that."""
        await connection.execute(self.statement, [dict(row) for row in rows])


async def _execute(
    connection: AsyncConnection, statement: Executable, parameters: Mapping[str, object]
) -> CursorResult[*tuple[object, ...]]:
    return await connection.execute(statement, dict(parameters))


def _read(result: CursorResult[*tuple[object, ...]]) -> Sequence[Sequence[object]]:
    """Return all rows of a result. Raises UnreadableRow, whose text contains no stored value.

    Only the column types run inside the `try`. So a TypeError or an AttributeError of other code of keyman is never
    mistaken for a damaged row.
    """
    try:
        return result.all()
    except (ValueError, TypeError, AttributeError):  # the types' own errors contain the value
        raise_alone(UnreadableRow("a stored row contains a value that does not fit its column"))


def _columns(statement: Executable) -> tuple[str, ...]:
    return tuple(column.name for column in statement.exported_columns) if isinstance(statement, ReturnsRows) else ()
