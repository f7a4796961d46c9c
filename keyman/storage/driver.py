"""Executes texts of SQL on the driver's connection, asyncpg's or sqlite3's, without SQLAlchemy in between.

SQLAlchemy still opens the connections and keeps them in its pool. The transactions are of this module: SQLAlchemy does
not know of them, and takes every statement as one of its own (`AUTOCOMMIT`).

A driver's fault is raised as it is, with two exceptions. A broken constraint is SQLAlchemy's IntegrityError on both
databases. A bare exception, which other code could have raised too, is a DriverFault. The connection is given up if the
fault leaves its state unknown.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import aiosqlite
import asyncpg
from sqlalchemy import PoolProxiedConnection
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.errors import raise_alone
from keyman.storage.compiling import Bound, Row
from keyman.storage.faults import BARE_FAULTS, DriverFault, RolledBack

P = ParamSpec("P")
R = TypeVar("R")


async def fetch(connection: AsyncConnection, bound: Bound) -> Sequence[Row]:
    """Execute a statement, and return its rows."""
    async with _Driver(connection) as raw:
        if isinstance(raw, aiosqlite.Connection):
            return await _on_its_thread(raw, _fetch, bound)
        return cast("list[Row]", await raw.fetch(bound.text, *bound.arguments))


async def execute(connection: AsyncConnection, bound: Bound) -> int:
    """Execute a statement, and return how many rows it changed."""
    note_change(connection)
    async with _Driver(connection) as raw:
        if isinstance(raw, aiosqlite.Connection):
            return await _on_its_thread(raw, _change, bound)
        return _number_in(await raw.execute(bound.text, *bound.arguments))


async def execute_many(connection: AsyncConnection, text: str, rows: Sequence[Sequence[object]]) -> None:
    """Execute a statement once for each row of arguments."""
    note_change(connection)
    async with _Driver(connection) as raw:
        if isinstance(raw, aiosqlite.Connection):
            await _on_its_thread(raw, sqlite3.Connection.executemany, text, rows)
        else:
            await raw.executemany(text, rows)


async def at_once(connection: AsyncConnection, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
    """Carry out a coroutine that waits for nothing but statements of this connection.

    On SQLite it runs on the thread of the connection, to which it is handed over once. Raises RuntimeError there if it
    waits for anything else.
    """
    async with _Driver(connection) as raw:
        if isinstance(raw, aiosqlite.Connection):
            return await _on_its_thread(raw, _run_through, work)
    return await work()


async def ping(connection: AsyncConnection) -> None:
    """Ask whether the server answers, by a statement without columns. A file is not asked."""
    async with _Driver(connection) as raw:
        if not isinstance(raw, aiosqlite.Connection):
            await raw.execute("SELECT")


async def begin(connection: AsyncConnection, patience: float | None, usual_patience: float) -> None:
    """Begin a transaction that writes. It waits for locks for `patience` seconds, or as usual if that is None."""
    async with _Driver(connection) as raw:
        if isinstance(raw, aiosqlite.Connection):
            await _on_its_thread(raw, _begin, patience, usual_patience)
            return
        limit = "" if patience is None else _lock_timeout(patience)
        await raw.execute(f"BEGIN ISOLATION LEVEL READ COMMITTED; {limit}")


async def wait_for_locks(connection: AsyncConnection, patience: float) -> None:
    """Wait for locks for so many seconds from now on, until the transaction ends. On SQLite it has its only lock."""
    async with _Driver(connection) as raw:
        if not isinstance(raw, aiosqlite.Connection):
            await raw.execute(_lock_timeout(patience))


def _lock_timeout(patience: float) -> str:
    return f"SET LOCAL lock_timeout = {int(patience * 1000)}"


async def begin_reading(connection: AsyncConnection) -> None:
    """Begin a transaction for statements of which each has its own snapshot. Only poolers need it."""
    await execute(connection, Bound("BEGIN ISOLATION LEVEL READ COMMITTED;", ()))


async def commit(connection: AsyncConnection) -> None:
    """Commit the transaction. Raises RolledBack if the database rolls it back, since a statement had failed."""
    async with _Driver(connection) as raw:
        if isinstance(raw, aiosqlite.Connection):
            await _on_its_thread(raw, sqlite3.Connection.execute, "COMMIT")
            return
        status = await raw.execute("COMMIT")
    if status != "COMMIT":
        raise RolledBack("the database rolled a transaction back in which a statement had failed")


async def savepoint(connection: AsyncConnection) -> None:
    """Set a savepoint, for `roll_back_to_savepoint` or `release_savepoint`."""
    await execute(connection, Bound("SAVEPOINT member", ()))


async def roll_back_to_savepoint(connection: AsyncConnection) -> None:
    """Undo what the transaction did since the savepoint, and release it."""
    await execute(connection, Bound("ROLLBACK TO SAVEPOINT member", ()))
    await release_savepoint(connection)


async def release_savepoint(connection: AsyncConnection) -> None:
    """Forget the savepoint, and keep what the transaction did since."""
    await execute(connection, Bound("RELEASE SAVEPOINT member", ()))


async def end(connection: AsyncConnection) -> None:
    """Roll back the transaction of a connection, if it has one, or give the connection up. Raises no fault."""
    if connection.invalidated:
        return
    raw = raw_of(connection)
    is_open = raw.in_transaction if isinstance(raw, aiosqlite.Connection) else raw.is_in_transaction()
    if not is_open:
        return
    try:
        await execute(connection, Bound("ROLLBACK", ()))
    except Exception:  # noqa: BLE001  # the fault that ended the transaction is the one to report
        await connection.invalidate()


class _Driver:
    """The driver's connection, for the calls of a block. It handles what they raise."""

    __slots__ = ("_connection",)

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def __aenter__(self) -> Any:
        return raw_of(self._connection)

    async def __aexit__(self, _kind: object, fault: BaseException | None, _traceback: object) -> None:
        if fault is None:
            return
        if not isinstance(fault, Exception) or self._is_lost():
            # A task that was cancelled leaves a statement behind that may still run.
            await self._connection.invalidate()
        if isinstance(fault, sqlite3.IntegrityError | asyncpg.IntegrityConstraintViolationError):
            raise_alone(IntegrityError(None, None, fault))
        if isinstance(fault, BARE_FAULTS):
            raise_alone(DriverFault(fault))

    def _is_lost(self) -> bool:
        if self._connection.invalidated:
            return False
        raw = raw_of(self._connection)
        return isinstance(raw, asyncpg.Connection) and raw.is_closed()


def notes_of(connection: AsyncConnection) -> dict[Any, Any]:
    """Return what keyman notes about the driver's connection. Raises DriverFault if it was given up."""
    return _pooled(connection).info


_CHANGED = "keyman_changed"


def note_change(connection: AsyncConnection) -> None:
    """Note that a statement of the transaction changes rows."""
    notes_of(connection)[_CHANGED] = True


def take_changed(connection: AsyncConnection) -> bool:
    """Return whether a statement changed rows since this was last asked."""
    return bool(notes_of(connection).pop(_CHANGED, False))


def raw_of(connection: AsyncConnection) -> Any:
    """Return the driver's connection: asyncpg's, or aiosqlite's. Raises DriverFault if it was given up.

    SQLAlchemy would replace it by another one from the pool. What follows in the transaction would then be executed,
    and stored, outside it.
    """
    return _pooled(connection).driver_connection


def _pooled(connection: AsyncConnection) -> PoolProxiedConnection:
    inner = connection.sync_connection  # its own attributes pass through fewer layers than those of `connection`
    assert inner is not None
    if inner.invalidated:
        raise DriverFault(ConnectionAbortedError())
    return inner.connection


async def _on_its_thread(
    connection: aiosqlite.Connection,
    function: Callable[Concatenate[sqlite3.Connection, P], R],
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Call a function with the connection of sqlite3, on the thread of aiosqlite. It is handed over once, if at all.

    aiosqlite offers only single calls of a cursor, each with its own hand-over: four for a statement. What this uses
    is private, so a test checks it, and the version of aiosqlite is bounded.
    """
    if threading.current_thread() is connection._thread:  # within `at_once`
        return function(connection._conn, *args, **kwargs)
    found = await connection._execute(function, connection._conn, *args, **kwargs)  # type: ignore[no-untyped-call]  # aiosqlite does not type it
    return cast("R", found)


def _run_through(_connection: sqlite3.Connection, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
    running = work()
    try:
        running.send(None)
    except StopIteration as end:
        return cast("R", end.value)
    running.close()
    raise RuntimeError("a work waits for something else than its statements")


def _fetch(connection: sqlite3.Connection, bound: Bound) -> list[Row]:
    return connection.execute(bound.text, bound.arguments).fetchall()


def _change(connection: sqlite3.Connection, bound: Bound) -> int:
    cursor = connection.execute(bound.text, bound.arguments)
    cursor.fetchall()  # a statement that returns rows has ended only then
    return cursor.rowcount


def _begin(connection: sqlite3.Connection, patience: float | None, usual_patience: float) -> None:
    """Begin a transaction with the lock to write.

    A transaction that reads first and writes later would fail at once, whatever the timeout is, if another transaction
    wrote in between.
    """
    if patience is None:
        connection.execute("BEGIN IMMEDIATE")
        return
    connection.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")
    try:
        connection.execute("BEGIN IMMEDIATE")
    finally:
        connection.execute(f"PRAGMA busy_timeout = {int(usual_patience * 1000)}")


def _number_in(status: str) -> int:
    """Return the number of rows in PostgreSQL's status of a command, such as `UPDATE 3` or `INSERT 0 1`."""
    last = status.rpartition(" ")[2]
    return int(last) if last.isdigit() else -1
