"""Creates SQLAlchemy engines with the settings that keyman needs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
from functools import partial
from time import monotonic
from typing import Any, Protocol, TypedDict, Unpack
from urllib.parse import quote

import aiosqlite
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, Pool
from sqlalchemy.util import await_only

from keyman.errors import ConfigurationError, raise_alone
from keyman.storage.connecting import OURS, Connector
from keyman.storage.faults import wrap_bare_faults

BUSY_TIMEOUT = 5.0
"""Seconds that keyman waits for another write on SQLite, for a lock on PostgreSQL, or for a pooled connection.

A client waits for Vault for the same time.
"""

STATEMENT_TIMEOUT = 10.0
"""The time limit for one statement on PostgreSQL, in seconds. Only a migration has none."""

POOL_SIZE = 10
"""Connections per process. PostgreSQL's default of 100 is then enough for eight workers and an operator."""


class PoolOptions(TypedDict, total=False):
    """SQLAlchemy's options for a pool of connections."""

    poolclass: type[Pool]
    pool_size: int
    max_overflow: int
    pool_timeout: float
    pool_reset_on_return: str | None


class _Cursor(Protocol):
    """A cursor of a driver, as SQLAlchemy adapts it."""

    def execute(self, statement: str) -> object: ...
    def close(self) -> None: ...


class _DriverConnection(Protocol):
    """A connection of a driver, as SQLAlchemy adapts it."""

    def cursor(self) -> _Cursor: ...

    @property
    def driver_connection(self) -> Any: ...


def create_engine(
    url: URL,
    *,
    statement_timeout: float | None,
    busy_timeout: float | None = None,
    read_only: bool = False,
    foreign_keys: bool = True,
    pooled: bool = False,
    **options: Unpack[PoolOptions],
) -> AsyncEngine:
    """Return an engine with the settings that keyman needs. `options` are passed to SQLAlchemy.

    `statement_timeout` is in seconds; None means no limit. It has no effect on SQLite, where a statement waits only for
    a lock. `busy_timeout` is how long SQLite waits for a lock, in seconds; None means BUSY_TIMEOUT. With `read_only`, a
    SQLite file is not changed, not even its journal mode. Without `foreign_keys`, SQLite does not enforce them. An
    upgrade needs that, because it replaces tables: dropping the old table would delete the rows that refer to it. With
    `pooled`, PostgreSQL is behind a pooler such as PgBouncer. Without it, opening a connection raises PoolerFound if
    there is one, unless the URL says that there is none.
    """
    if url.get_backend_name() == "sqlite":
        # mode=rw: only `create_private_file` creates the file. SQLite would create one that everybody can read.
        address = url.set(database=f"file:{quote(url.database or '')}").update_query_dict({"mode": "rw", "uri": "true"})
        patience = BUSY_TIMEOUT if busy_timeout is None else busy_timeout
        arguments: dict[str, object] = {
            "timeout": patience,
            "isolation_level": None,
            "async_creator_fn": _open_sqlite,
            "factory": _Connection,
        }
        engine = create_async_engine(address, hide_parameters=True, connect_args=arguments, **options)
        prepare = _leave_sqlite if read_only else partial(_prepare_sqlite, patience, foreign_keys)
        event.listen(engine.sync_engine, "connect", prepare)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        event.listen(engine.sync_engine, "handle_error", wrap_bare_faults)
        return autocommitting(engine) if read_only else engine
    settings = {
        "application_name": "keyman",
        "timezone": "UTC",
        "statement_timeout": str(int((statement_timeout or 0) * 1000)),
        "lock_timeout": str(int(BUSY_TIMEOUT * 1000)),
        "idle_in_transaction_session_timeout": "30000",
    }
    arguments = {
        "timeout": BUSY_TIMEOUT,
        # The server's own limit is shorter. This limit is for a server that no longer answers.
        "command_timeout": None if statement_timeout is None else statement_timeout + 1,
        "async_creator_fn": Connector(url, settings, pooled=pooled),
    }
    url = url.difference_update_query(OURS)
    if pooled:
        return _pooled_engine(url, arguments, options)
    # The pool asks nothing before it gives a connection out: `Database` notices a lost one by its first statement.
    # And with autocommit, SQLAlchemy begins no transactions: `Database.write` does.
    engine = create_async_engine(
        url, hide_parameters=True, isolation_level="AUTOCOMMIT", connect_args=arguments, **options
    )
    event.listen(engine.sync_engine, "handle_error", wrap_bare_faults)
    return engine


def _pooled_engine(url: URL, arguments: dict[str, object], options: PoolOptions) -> AsyncEngine:
    """Return an engine without prepared statements, whose every statement is in a transaction.

    The parts of a statement outside one could go to two servers.
    """
    unnamed = {"prepared_statement_cache_size": 0, "prepared_statement_name_func": str}
    engine = create_async_engine(url, hide_parameters=True, connect_args={**arguments, **unnamed}, **options)
    event.listen(engine.sync_engine, "handle_error", wrap_bare_faults)
    return engine


class Drops:
    """Closes pooled connections that lead to a server which has become read-only, before their next use."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._dropped_at = 0.0
        event.listen(engine.sync_engine, "connect", self._note)
        event.listen(engine.sync_engine, "checkout", self._check)

    def drop(self) -> None:
        """Drop every connection that is open now. It does so once a second at most, however many writes fail."""
        if monotonic() >= self._dropped_at + 1.0:
            self._dropped_at = monotonic()

    def _note(self, _connection: _DriverConnection, entry: ConnectionPoolEntry) -> None:
        entry.info["opened_at"] = monotonic()

    def _check(self, _connection: _DriverConnection, entry: ConnectionPoolEntry, _proxy: object) -> None:
        if entry.info["opened_at"] <= self._dropped_at:
            raise DisconnectionError  # the pool closes this connection and opens another one


def transactional(engine: AsyncEngine) -> AsyncEngine:
    """Return the engine with the options for transactions. On SQLite, `_begin_sqlite` begins them."""
    return engine if engine.dialect.name == "sqlite" else engine.execution_options(isolation_level="READ COMMITTED")


def autocommitting(engine: AsyncEngine) -> AsyncEngine:
    """Return the engine with the options for transactions that SQLAlchemy does not know of: those of driver.py."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(keyman_autocommit=True)
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def create_private_file(url: URL) -> None:
    """Create the file of a SQLite database so that only its owner can read it. Its WAL gets the same mode.

    Raises ConfigurationError if it cannot be created.
    """
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    try:
        os.close(os.open(url.database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError:
        raise_alone(ConfigurationError("The database file cannot be created or written to at the path of its URL."))


class _Connection(sqlite3.Connection):
    """A connection that rolls back its transaction when it is closed.

    SQLite keeps a closed connection alive, with its transaction and its locks, until its last statement is finalized.
    If a task is cancelled before it has fetched the rows of a statement, that statement is not finalized. Without the
    rollback, nobody could then write until the garbage collector deletes the statement.
    """

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # the connection is already closed, or its file is missing
            self.rollback()
        super().close()


async def _open_sqlite(*arguments: Any, **options: Any) -> aiosqlite.Connection:
    connection = aiosqlite.connect(*arguments, **options)
    connection._thread.daemon = True  # as SQLAlchemy does: a process does not wait for it to end
    try:
        return await connection
    except BaseException:
        # Wait for its thread, which still reports to the event loop: a command may close the loop right after this.
        connection._thread.join(BUSY_TIMEOUT)
        raise


def _prepare_sqlite(
    patience: float, foreign_keys: bool, connection: _DriverConnection, _entry: ConnectionPoolEntry
) -> None:
    cursor = connection.cursor()
    _turn_wal_on(patience, cursor)  # readers and the writer do not wait for each other
    for pragma in (
        "synchronous = FULL",  # confirmed data survives a power failure, not only a crash
        f"foreign_keys = {'ON' if foreign_keys else 'OFF'}",
        "secure_delete = ON",  # a deleted ciphertext is overwritten, not only unlinked
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _turn_wal_on(patience: float, cursor: _Cursor) -> None:
    """Turn on WAL, and retry for `patience` seconds while another connection does the same.

    SQLite allows this for one connection at a time. The others fail at once, because its busy timeout does not apply.
    """
    deadline = monotonic() + patience
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as fault:
            if getattr(fault, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or monotonic() >= deadline:
                raise
        else:
            return
        await_only(asyncio.sleep(random.uniform(0.005, 0.02)))  # noqa: S311  # spreads load only


def _leave_sqlite(connection: _DriverConnection, _entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA query_only = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE, for the reason that `driver.begin` has. An engine with autocommit begins nothing.
    if not connection.get_execution_options().get("keyman_autocommit"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
