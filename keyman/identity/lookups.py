"""Finds rows for many requests at once: lookups that wait at the same moment are one query.

Every request looks its caller up. By itself, each would pay for a connection, a round trip and a statement. Nothing
waits for others to come: the first lookup leaves at once, and those that come while two queries are under way leave
together when one of them ends. See `Batcher`.

No lookup is answered from a query that started before it. So a row that was changed before a request came, such as a
token that was revoked on another replica, is never seen as it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Column, Select, bindparam, literal_column, select, true
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from keyman.batching import Batcher, BatchRefused
from keyman.errors import RefusedStatement
from keyman.storage.arrays import given_rows
from keyman.storage.faults import of_one_caller
from keyman.storage.statements import Query
from keyman.storage.transactions import Database

K = TypeVar("K", bytes, int)
R = TypeVar("R")

MAX_LOOKUPS = 128
"""Lookups that wait for the same connection. On PostgreSQL they are one query, and so are those of one key."""

TOGETHER = 32
"""Keys in one query on SQLite, which has no arrays. More save little."""

QUERIES = 2
"""Queries of one kind that are under way at a time in a process, of ten connections."""

PATIENCE = 10.0
"""Seconds that a lookup may take, including the time that it waits for the queries before it.

It is the limit of a statement. Without it, while a database hangs, hundreds of lookups would wait for one query after
the other.
"""

_FAILURE = partial(of_one_caller, what="a credential or an identity")


class Lookup(Generic[K, R]):
    """Finds the row with a given key, a unique column. `key_of` returns the key of a row."""

    def __init__(
        self, found: Select[*tuple[object, ...]], key: ColumnElement[K], row: Callable[..., R], key_of: Callable[[R], K]
    ) -> None:
        self._for_one = Query(found.where(key == bindparam("key_0", type_=key.type)), row)
        # The statements have the same text for any number of keys, so that the database plans them once.
        keys = [bindparam(f"key_{number}", type_=key.type) for number in range(TOGETHER)]
        self._for_many = {"sqlite": Query(found.where(key.in_(keys)), row), "postgresql": Query(_each(found, key), row)}
        self._key_of: Callable[[R], K] = key_of
        self._batchers: WeakKeyDictionary[Database, Batcher[K, R | None]] = WeakKeyDictionary()

    async def find(self, db: Database, key: K) -> R | None:
        """Return the row with this key as it is now, or None. Raises RefusedStatement, and DatabaseUnavailable, after
        PATIENCE at the latest.
        """
        batcher = self._batchers.get(db)
        if batcher is None:
            run = partial(self._find, ref(db))  # a batcher must not keep its database alive
            batcher = self._batchers[db] = Batcher(run, _FAILURE, max_batch=MAX_LOOKUPS, max_batches=QUERIES)
        return await batcher.submit(key, PATIENCE)

    async def _find(self, database: ref[Database], keys: Sequence[K]) -> Sequence[R | None]:
        db = database()
        assert db is not None, "a caller of find() holds it"
        wanted: list[K] = list(dict.fromkeys(keys))
        try:
            rows = await db.fetch(lambda connection: self._read(connection, wanted))
        except RefusedStatement:
            if len(keys) == 1:
                raise
            raise BatchRefused("One of several rows cannot be read.") from None  # the others are asked for again
        by_key = {self._key_of(row): row for row in rows}
        return [by_key.get(key) for key in keys]

    async def _read(self, connection: AsyncConnection, wanted: list[K]) -> list[R]:
        if len(wanted) == 1:
            return await self._for_one.all(connection, key_0=wanted[0])
        query = self._for_many[connection.dialect.name]
        if connection.dialect.name == "postgresql":
            return await query.all(connection, all_key=wanted)
        rows: list[R] = []
        while wanted:
            part, wanted = wanted[:TOGETHER], wanted[TOGETHER:]
            part += part[:1] * (TOGETHER - len(part))
            rows += await query.all(connection, **{f"key_{at}": key for at, key in enumerate(part)})
        return rows


def _each(found: Select[*tuple[object, ...]], key: ColumnElement[Any]) -> Select[*tuple[object, ...]]:
    """Return a select of the rows whose keys are in the array `all_key`.

    PostgreSQL does not join a subquery with an OFFSET in another way than it is written. So it finds each row by its
    indexes, whatever it knows about the tables: just after many accounts were added, it would read all of them.
    """
    given = given_rows([Column("key", key.type)])
    each = found.where(key == given.c.key).offset(literal_column("0")).lateral("found")
    return select(each).select_from(given).join(each, true())
