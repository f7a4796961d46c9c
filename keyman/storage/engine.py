"""Creates engines with the settings that keyman needs."""

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
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, Pool
from sqlalchemy.util import await_only

from keyman.errors import ConfigurationError, raise_alone
from keyman.storage.faults import wrap_bare_faults

BUSY_TIMEOUT = 5.0
"""Seconds that a write waits for another one on SQLite, or for a pooled connection.

It is the same time that a client waits for Vault.
"""

STATEMENT_TIMEOUT = 10.0
"""Seconds for one statement on PostgreSQL. Only a migration has no limit."""

POOL_SIZE = 10
"""Connections per process. PostgreSQL's default of 100 is then enough for eight workers and an operator."""


class PoolOptions(TypedDict, total=False):
    """What SQLAlchemy takes for a pool of connections."""

    poolclass: type[Pool]
    pool_size: int
    max_overflow: int
    pool_timeout: float


class _Cursor(Protocol):
    """A cursor of a driver, as SQLAlchemy adapts it."""

    def execute(self, statement: str) -> object: ...
    def close(self) -> None: ...


class _DriverConnection(Protocol):
    """A connection of a driver, as SQLAlchemy adapts it."""

    def cursor(self) -> _Cursor: ...


def create_engine(
    url: URL,
    *,
    statement_timeout: float | None,
    busy_timeout: float | None = None,
    read_only: bool = False,
    foreign_keys: bool = True,
    **options: Unpack[PoolOptions],
) -> AsyncEngine:
    """An engine that treats a database as keyman needs it treated; `options` are SQLAlchemy's.

    `statement_timeout` is in seconds; None means no bound. SQLite needs none, because only a lock makes it wait.
    `busy_timeout`, in seconds, is how long SQLite waits for that, BUSY_TIMEOUT unless said. With `read_only` a SQLite
    file is left as it is, its journal mode included. Without `foreign_keys` SQLite does not enforce them. An upgrade
    needs that, because it replaces tables: dropping the old one would delete the rows that refer to it.
    """
    if url.get_backend_name() == "sqlite":
        # mode=rw: only `create_private_file` creates the file, for SQLite would leave it readable by everybody.
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
        return engine.execution_options(keyman_reads=True) if read_only else engine
    arguments = {
        "timeout": BUSY_TIMEOUT,
        # The server's own limit comes first. This one is for a server that no longer answers.
        "command_timeout": None if statement_timeout is None else statement_timeout + 1,
        "server_settings": {
            "application_name": "keyman",
            "timezone": "UTC",
            "statement_timeout": str(int((statement_timeout or 0) * 1000)),
            "lock_timeout": str(int(BUSY_TIMEOUT * 1000)),
            "idle_in_transaction_session_timeout": "30000",
        },
    }
    # In autocommit the ping before each use is one round trip instead of three; `write` asks for a transaction.
    engine = create_async_engine(
        url, hide_parameters=True, pool_pre_ping=True, isolation_level="AUTOCOMMIT", connect_args=arguments, **options
    )
    event.listen(engine.sync_engine, "handle_error", wrap_bare_faults)
    return engine


def transactional(engine: AsyncEngine) -> AsyncEngine:
    """The same engine for transactions. SQLite's are begun by `_begin_sqlite`."""
    return engine if engine.dialect.name == "sqlite" else engine.execution_options(isolation_level="READ COMMITTED")


def create_private_file(url: URL) -> None:
    """Create the file of a SQLite database so that only its owner can read it. Its WAL gets the same mode.

    Raises ConfigurationError where it cannot be created.
    """
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    try:
        os.close(os.open(url.database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError:
        raise_alone(ConfigurationError("The database file cannot be created or written to at the path of its URL."))


class _Connection(sqlite3.Connection):
    """A connection that ends its transaction when it is closed.

    SQLite keeps a closed connection alive, with its transaction and its locks, until its last statement is finalized.
    A task that is cancelled before it has fetched the rows of a statement leaves such a statement, and nobody could
    write until the garbage collector found it.
    """

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # it was closed before, or has lost its file
            self.rollback()
        super().close()


async def _open_sqlite(*arguments: Any, **options: Any) -> aiosqlite.Connection:
    connection = aiosqlite.connect(*arguments, **options)
    connection._thread.daemon = True  # as SQLAlchemy has it: a process does not wait for it to end
    try:
        return await connection
    except BaseException:
        # Its thread is ending and still reports to the loop, which a command may have closed by then.
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
    """SQLite does this for one connection at a time, and for the others it does not wait as it does for a lock."""
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
    # IMMEDIATE: a transaction that reads first and writes later would otherwise fail at once, whatever the timeout,
    # when another one wrote in between. A reader takes no lock at all.
    options = connection.get_execution_options()
    if options.get("keyman_reads"):
        return
    patience = options.get("keyman_patience")
    if patience is None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(patience * 1000)}")
    try:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT * 1000)}")
