"""The database: one engine, transactions that fail closed, and column types that read alike on both databases.

`Database.write()` and `Database.read()` are the only ways in. Both turn a fault of the driver into
DatabaseUnavailable without chaining it: a driver's message can hold the parameters of the statement.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote

import aiosqlite
import asyncpg
from sqlalchemy import BigInteger, DateTime, Dialect, Integer, MetaData, Row, event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.types import TypeDecorator
from sqlalchemy.util import await_only

from keyman.errors import ConfigurationError, DatabaseUnavailable, MissingRight, RefusedStatement, raise_alone
from keyman.telemetry import Metrics, log

SCHEMA_REVISION = "0004"
"""The migration that this code was written for; a test holds it against the newest file in `migrations/`."""

BUSY_TIMEOUT = 5.0
"""Seconds that a write waits for another one on SQLite, or for a pooled connection, before it gives up: as long as a
client waits for Vault."""

NOTE_PATIENCE = 0.05
"""Seconds that a note waits for a lock before it is left out: no reader would notice them."""

NOTE_PAUSE = 1.0
"""Seconds without another note after one that was left out: of many requests one waits, not each."""

STATEMENT_TIMEOUT = 10.0
"""Seconds for one statement on PostgreSQL; a migration alone has no bound."""

POOL_SIZE = 10
"""Connections per process. PostgreSQL's default of 100 then carries eight workers with room for an operator."""

# Names that migrations can refer to, the same on both databases.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only in a column that is spelt INTEGER.
Id = BigInteger().with_variant(Integer, "sqlite")

MAX_ID = 2**63 - 1
"""The largest id that a column can hold; a larger one in a request is an id that does not exist."""


AnyRow = Row[*tuple[Any, ...]]
"""A row of any columns: SQLAlchemy types them by position, keyman reads them by name."""


class UtcTime(TypeDecorator[datetime]):
    """An instant with microseconds: aware in, aware and in UTC out. SQLite keeps it as naive text in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone was about to be stored")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    return datetime.now(UTC)


class Database:
    """One engine. `metrics`, where given, counts the connections in use; `read_only` is for who only looks."""

    def __init__(self, url: URL, metrics: Metrics | None = None, *, read_only: bool = False) -> None:
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._file = Path(url.database) if self.is_sqlite and url.database else None
        self._identity: tuple[int, int] | None = None
        self._used = (metrics or Metrics()).database_connections
        self._engine = create_engine(
            url,
            statement_timeout=STATEMENT_TIMEOUT,
            read_only=read_only,
            pool_size=POOL_SIZE,
            max_overflow=0,
            pool_timeout=BUSY_TIMEOUT,
        )
        # A SELECT needs no BEGIN and COMMIT around it: two round trips less, and on SQLite no lock.
        self._reader = self._engine.execution_options(keyman_reads=True)
        self._engine = transactional(self._engine)
        # SQLite has one writer at a time. Waiting here is first come, first served; inside SQLite it is a lottery.
        self._writer = asyncio.Lock() if self.is_sqlite else None
        self._next_note = 0.0  # by the monotonic clock

    @property
    def exists(self) -> bool:
        """False for a SQLite database whose file is not there; a server is asked by connecting."""
        return self._file is None or self._file.exists()

    @asynccontextmanager
    async def write(self, *, patience: float | None = None) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed when the block ends and rolled back when it raises.

        `patience` is how many seconds it waits for others' locks, instead of BUSY_TIMEOUT. Raises DatabaseUnavailable;
        an IntegrityError of the block passes, for the caller knows what it means.
        """
        async with _faults_translated(is_expected=patience is not None), self._turn(patience):
            self._check_file()
            async with self._engine.connect() as connection:
                with self._used.track_inprogress():
                    await connection.execution_options(keyman_patience=patience)
                    transaction = await connection.begin()
                    try:
                        if patience is not None and not self.is_sqlite:
                            await connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(patience * 1000)}")
                        yield connection
                    except BaseException:
                        await transaction.rollback()
                        raise
                    try:
                        await transaction.commit()
                    except (DBAPIError, OSError, TimeoutError) as fault:
                        _report(fault)
                        # It may still hold the transaction, and on SQLite the lock.
                        with contextlib.suppress(SQLAlchemyError, sqlite3.Error, OSError):
                            await connection.invalidate()
                        raise_alone(
                            DatabaseUnavailable(
                                "The database was lost while it was confirming the change, which may or may not be "
                                "stored: look before you send it again."
                            )
                        )

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for SELECTs, each its own snapshot. Raises DatabaseUnavailable."""
        async with _faults_translated():
            self._check_file()
            async with self._reader.connect() as connection:
                with self._used.track_inprogress():
                    yield connection

    async def note(self, statement: UpdateBase) -> None:
        """Execute a statement that may be left out, in a transaction of its own: one that cannot be had at once is."""
        if monotonic() < self._next_note:
            return
        try:
            # The patience ends waiting for a lock; the bound around it everything else, such as a connection.
            async with asyncio.timeout(2 * NOTE_PATIENCE), self.write(patience=NOTE_PATIENCE) as connection:
                await connection.execute(statement)
        except (DatabaseUnavailable, RefusedStatement, TimeoutError) as fault:
            log.info("note left out", fault=getattr(fault, "kind", type(fault).__name__))
            self._next_note = monotonic() + NOTE_PAUSE

    async def close(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def _turn(self, patience: float | None) -> AsyncIterator[None]:
        if self._writer is None:
            yield
            return
        async with asyncio.timeout(BUSY_TIMEOUT if patience is None else patience):
            await self._writer.acquire()
        try:
            yield
        finally:
            self._writer.release()

    def _check_file(self) -> None:
        """An open SQLite connection goes on writing to a file that was removed or replaced, where nobody will find
        it. Raises OSError then; putting the file back mends it.
        """
        if self._file is None:
            return
        found = self._file.stat()
        identity = (found.st_dev, found.st_ino)
        self._identity = self._identity or identity
        if identity != self._identity:
            raise OSError("the database file was replaced")


def create_engine(
    url: URL,
    *,
    statement_timeout: float | None,
    busy_timeout: float | None = None,
    read_only: bool = False,
    **options: Any,
) -> AsyncEngine:
    """An engine that treats a database as keyman needs it treated; `options` are SQLAlchemy's.

    `statement_timeout` is in seconds, None for no bound; SQLite has none, for nothing there waits but for a lock.
    `busy_timeout`, in seconds, is how long SQLite waits for that, BUSY_TIMEOUT unless said. With `read_only` a SQLite
    file is left as it is, its journal mode included.
    """
    if url.get_backend_name() == "sqlite":
        # mode=rw: only `create_private_file` creates the file, for SQLite would leave it readable by everybody.
        address = url.set(database=f"file:{quote(url.database or '')}").update_query_dict({"mode": "rw", "uri": "true"})
        patience = BUSY_TIMEOUT if busy_timeout is None else busy_timeout
        arguments: dict[str, Any] = {
            "timeout": patience,
            "isolation_level": None,
            "async_creator_fn": _open_sqlite,
        }
        engine = create_async_engine(address, hide_parameters=True, connect_args=arguments, **options)
        prepare = _leave_sqlite if read_only else partial(_prepare_sqlite, patience)
        event.listen(engine.sync_engine, "connect", prepare)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine.execution_options(keyman_reads=True) if read_only else engine
    arguments = {
        "timeout": BUSY_TIMEOUT,
        # The server's own bound comes first; this one is for a server that does not answer any more.
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
    return create_async_engine(
        url, hide_parameters=True, pool_pre_ping=True, isolation_level="AUTOCOMMIT", connect_args=arguments, **options
    )


def transactional(engine: AsyncEngine) -> AsyncEngine:
    """The same engine for transactions. SQLite's are begun by `_begin_sqlite`."""
    return engine if engine.dialect.name == "sqlite" else engine.execution_options(isolation_level="READ COMMITTED")


def create_private_file(url: URL) -> None:
    """Create the file of a SQLite database readable by its owner alone; its WAL inherits the mode. Else do nothing.

    Raises ConfigurationError where it cannot be created.
    """
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    try:
        os.close(os.open(url.database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError:
        raise_alone(ConfigurationError("The database file cannot be created or written to at the path of its URL."))


async def _open_sqlite(*arguments: Any, **options: Any) -> aiosqlite.Connection:
    connection = aiosqlite.connect(*arguments, **options)
    connection._thread.daemon = True  # as SQLAlchemy has it: a process does not wait for it to end
    try:
        return await connection
    except BaseException:
        # Its thread was told to end and still reports that to the loop, which a command would have closed by then.
        connection._thread.join(BUSY_TIMEOUT)
        raise


def _prepare_sqlite(patience: float, connection: Any, _entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    _turn_wal_on(patience, cursor)  # readers and the writer do not wait for each other
    for pragma in (
        "synchronous = FULL",  # what was acknowledged survives a power cut, not only a crash
        "foreign_keys = ON",
        "secure_delete = ON",  # a deleted ciphertext is overwritten, not only unlinked
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _turn_wal_on(patience: float, cursor: Any) -> None:
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


def _leave_sqlite(connection: Any, _entry: ConnectionPoolEntry) -> None:
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


@asynccontextmanager
async def _faults_translated(*, is_expected: bool = False) -> AsyncIterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except _FAULTS as fault:
        if not is_outage(fault):
            # A statement that the database does not accept is our mistake; say so without its parameters.
            refusal = MissingRight if INSUFFICIENT_PRIVILEGE in kind(fault) else RefusedStatement
            raise_alone(refusal(f"the database refused a statement: {kind(fault)}"))
        if not is_expected:  # of who does not wait, one that was busy is no news
            _report(fault)
        raise_alone(DatabaseUnavailable(kind=kind(fault)))


INSUFFICIENT_PRIVILEGE = "(42501)"
"""PostgreSQL's SQLSTATE, as `kind` shows it, of a statement that its user may not execute."""

_FAULTS = (
    SQLAlchemyError,
    sqlite3.Error,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    OSError,
    TimeoutError,
    # sqlite3 raises these two as they are, the first one with the value in it.
    UnicodeError,
    OverflowError,
)


def is_outage(fault: BaseException) -> bool:
    """True when the database is away, busy, full or read-only, and the same statement may succeed later."""
    if isinstance(fault, OSError | TimeoutError | PoolTimeoutError | asyncpg.InterfaceError):
        return True
    if isinstance(fault, DBAPIError):
        if fault.connection_invalidated:
            return True
        origin = getattr(fault.orig, "driver_exception", None) or fault.orig or fault
        return is_outage(origin.__cause__ or origin) if origin is not fault else False
    if isinstance(fault, asyncpg.PostgresError):
        # Classes of SQLSTATE: connection, resources, operator intervention, system error; lock timeout; read-only;
        # the last two of the list: database or role that is not there (yet).
        state = str(getattr(fault, "sqlstate", "") or "")
        return state[:2] in ("08", "53", "57", "58", "25", "40", "28", "3D") or state == "55P03"
    if isinstance(fault, sqlite3.OperationalError):
        code = getattr(fault, "sqlite_errorcode", 0) & 0xFF
        return code in (
            sqlite3.SQLITE_BUSY,
            sqlite3.SQLITE_LOCKED,
            sqlite3.SQLITE_FULL,
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_READONLY,
        )
    return isinstance(fault, sqlite3.DatabaseError) and not isinstance(fault, sqlite3.ProgrammingError)


def kind(fault: BaseException) -> str:
    """A fault by its class and code: enough to look it up, and nothing of the statement."""
    origin = getattr(fault, "orig", None) or fault
    # Of a bound that ran out the cause is only how asyncio ends what waits.
    cause = origin if isinstance(origin, TimeoutError) else origin.__cause__ or origin
    code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
    return f"{type(cause).__name__}{f' ({code})' if code else ''}"


def _report(fault: BaseException) -> None:
    log.warning("database unavailable", fault=kind(fault))
