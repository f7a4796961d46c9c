"""Statements: each is built once, from SQLAlchemy Core, together with the type of the rows that it returns.

A `Query` returns rows, and a `Command` returns how many rows it changed. Both are created when their module is
imported. At the first use on a database they are compiled for it (compiling.py), and from then on the driver executes
their text (driver.py). Statements of the filters of the audit log and of lists of keys, which have many shapes, are
created at the first use of each. Only this module executes them.

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

from sqlalchemy import Executable, SelectBase
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.errors import RefusedStatement, raise_alone
from keyman.storage import driver
from keyman.storage.compiling import Bound, Compiled, Compiler, Row, columns_of

R = TypeVar("R")


class UnreadableRow(RefusedStatement):
    """A stored value is not of its column's type. SQLite stores such a value; PostgreSQL refuses it."""


class UnfitParameter(RefusedStatement):
    """A parameter is not of the type of its column."""


class Query(Generic[R]):
    """A statement that returns rows: a SELECT, or a change with RETURNING.

    `row` is called with the values of the columns, in their order, and returns a row. It is a function, a NamedTuple or
    a struct. The fields of a NamedTuple or struct must have the names of the columns; otherwise TypeError is raised.
    For a single column, see `scalar`.
    """

    def __init__(self, statement: Executable, row: Callable[..., R]) -> None:
        fields = getattr(row, "_fields", getattr(row, "__struct_fields__", None))
        if fields is not None and fields != tuple(column.name for column in columns_of(statement)):
            raise TypeError(f"{row} does not have the fields of the statement")
        self.statement = statement
        self.row = row
        self.changes = not isinstance(statement, SelectBase)
        """Whether it may change rows."""
        self._compiler = Compiler(statement)

    async def all(self, connection: AsyncConnection, **parameters: object) -> list[R]:
        """Return every row. Raises UnreadableRow."""
        compiled = self._compiler.compiled(connection.dialect, parameters)
        if self.changes:
            driver.note_change(connection)
        rows = await driver.fetch(connection, _bind(compiled, parameters))
        return [self.row(*values) for values in _decode(compiled, rows)]

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
        self._compiler = Compiler(statement)

    async def execute(self, connection: AsyncConnection, **parameters: object) -> int:
        """Execute the statement, and return how many rows it changed."""
        compiled = self._compiler.compiled(connection.dialect, parameters)
        return await driver.execute(connection, _bind(compiled, parameters))

    async def execute_many(self, connection: AsyncConnection, rows: Sequence[Mapping[str, object]]) -> None:
        """Execute the statement once for each mapping of parameters, in one round trip if the database can do that.

        All mappings have the same names.
        """
        if len(rows) < 2:
            for only in rows:
                await self.execute(connection, **only)
            return
        compiled = self._compiler.compiled(connection.dialect, rows[0])
        bound = [_bind(compiled, row) for row in rows]
        await driver.execute_many(connection, bound[0].text, [one.arguments for one in bound])


def _bind(compiled: Compiled, parameters: Mapping[str, object]) -> Bound:
    """Return what the driver executes. Raises UnfitParameter, whose text contains no parameter.

    Only the column types run inside the `try`, here and in `_decode`. So a TypeError or an AttributeError of other code
    of keyman is never mistaken for a value that does not fit.
    """
    try:
        return compiled.bind(parameters)
    except (ValueError, TypeError, AttributeError):  # the types' own errors contain the value
        raise_alone(UnfitParameter("the database was given a value that does not fit its column"))


def _decode(compiled: Compiled, rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows with the values of their column types. Raises UnreadableRow, whose text contains no value."""
    try:
        return compiled.decode(rows)
    except (ValueError, TypeError, AttributeError):  # the types' own errors contain the value
        raise_alone(UnreadableRow("a stored row contains a value that does not fit its column"))
