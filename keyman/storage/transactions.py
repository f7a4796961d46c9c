"""Transactions that fail closed.

All access goes through `Database.write()` and `Database.read()`. Both turn a fault of the driver into
DatabaseUnavailable without chaining it, because a driver's message can contain the parameters of the statement.

Every transaction that writes says on whose authority it does so. A caller's authority is checked inside the
transaction, so that nothing that is committed after a revocation was done by the revoked caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from enum import StrEnum
from pathlib import Path
from time import monotonic
from typing import Protocol

from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keyman.errors import DatabaseUnavailable, MissingRight, RefusedStatement, raise_alone
from keyman.storage import driver, engine
from keyman.storage.connecting import PoolerFound, is_pooled
from keyman.storage.faults import (
    DRIVER_FAULTS,
    FAULTS,
    INSUFFICIENT_PRIVILEGE,
    READ_ONLY,
    DriverFault,
    is_of_pooler,
    is_outage,
    is_unwritable,
    kind,
    report,
)
from keyman.storage.files import Files
from keyman.storage.statements import Command
from keyman.telemetry import Metrics, log

NOTE_PATIENCE = 0.05
"""Seconds that `Database.note` waits for a lock before it skips the command: too short to notice."""

NOTE_PAUSE = 1.0
"""Seconds without another note after a skipped one, so that only one of many requests waits for a lock."""


class Authority(Protocol):
    """On whose authority a transaction writes. `identity.principals.Principal` is that of a caller.

    An implementation fails closed: `confirm` returns only if the transaction may be committed, and it keeps this true
    until the transaction ends, by locks. Otherwise it raises a Problem.
    """

    async def confirm(self, connection: AsyncConnection) -> None:
        """Check the authority, as the first statement of the transaction."""
        ...


class Unchecked(StrEnum):
    """An authority that needs no check, because no revocable caller acts. A structure test lists who uses which."""

    SIGN_IN = "sign-in"  # nobody has been authenticated yet
    OPERATOR = "operator"  # anyone who has the password of the database
    KEYMAN = "keyman"  # keyman itself, such as at its start and in its housekeeping
    OUTCOME = "outcome"  # what came of something that was committed before
    LAST_USE = "last use"

    async def confirm(self, connection: AsyncConnection) -> None:
        """Check nothing."""


class Database:
    """A database. `metrics`, if given, counts the connections in use. `read_only` is for callers that only read."""

    def __init__(self, url: URL, metrics: Metrics | None = None, *, read_only: bool = False) -> None:
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._files = Files(Path(url.database)) if self.is_sqlite and url.database else None
        self._retired = list[AsyncEngine]()
        self.refused_at = 0.0
        """When a write was refused because the database is full or read-only, in seconds of the monotonic clock."""
        self._used = (metrics or Metrics()).database_connections
        self._url = url
        self._read_only = read_only
        self._finds_pooler = not self.is_sqlite and is_pooled(url) is None
        self._use_engine(pooled=not self.is_sqlite and is_pooled(url) is True)
        # SQLite has one writer at a time. Writers get this lock in order; waiting inside SQLite has no order.
        self._writer = asyncio.Lock() if self.is_sqlite else None
        self._next_note = 0.0  # in seconds of the monotonic clock

    @property
    def exists(self) -> bool:
        """Return False for a SQLite database whose file does not exist, and True for a server, which is not asked."""
        return self._files is None or self._files.exists

    @asynccontextmanager
    async def write(self, by: Authority, *, patience: float | None = None) -> AsyncIterator[AsyncConnection]:
        """Open a transaction, which is committed when the block ends and rolled back when it raises.

        It begins with the check of `by`, which may raise Unauthenticated. It waits for locks for `patience` seconds, by
        default BUSY_TIMEOUT. Raises DatabaseUnavailable. It does not translate an IntegrityError of the block, because
        the caller knows what it means.
        """
        translated = _faults_translated(is_expected=patience is not None, notice=self._notice)
        async with translated as own, self._turn(patience):
            self._check_file()
            async with self._connected() as connection:
                with self._used.track_inprogress():
                    await driver.begin(connection, patience, engine.BUSY_TIMEOUT)
                    if self._files is not None and not self._read_only:
                        self._files.hold()
                    with _remembered(own):
                        await by.confirm(connection)
                        yield connection
                    try:
                        await driver.commit(connection)
                        # If the -wal file was removed during the transaction, the change is only in a removed file.
                        self._check_file()
                    except FAULTS as fault:
                        report(fault)
                        self._notice(fault)
                        # The connection may still have an open transaction and, on SQLite, the lock.
                        with contextlib.suppress(SQLAlchemyError, sqlite3.Error, DriverFault, OSError):
                            await connection.invalidate()
                        raise_alone(
                            DatabaseUnavailable(
                                "The connection to the database was lost during the commit. The change may or may not "
                                "be stored: check before you send it again."
                            )
                        )

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection for SELECTs. Each SELECT has its own snapshot. Raises DatabaseUnavailable."""
        async with _faults_translated(notice=self._notice_pooler) as own:
            self._check_file()
            async with self._connected() as connection:
                with self._used.track_inprogress():
                    if self._is_pooled:
                        await driver.begin_reading(connection)
                    with _remembered(own):
                        yield connection

    async def note(self, by: Authority, command: Command, **parameters: object) -> None:
        """Execute a command in its own transaction. It is skipped if it cannot be executed at once."""
        if monotonic() < self._next_note:
            return
        try:
            # `patience` limits the wait for a lock, of which there can be two. The timeout around it limits any other
            # wait, as for a connection. It costs the connection, so the waits for locks end before.
            async with asyncio.timeout(4 * NOTE_PATIENCE), self.write(by, patience=NOTE_PATIENCE) as connection:
                await command.execute(connection, **parameters)
        except (DatabaseUnavailable, RefusedStatement, TimeoutError) as fault:
            log.info("note skipped", fault=getattr(fault, "kind", type(fault).__name__))
            self._next_note = monotonic() + NOTE_PAUSE

    def _use_engine(self, *, pooled: bool) -> None:
        bare = engine.create_engine(
            self._url,
            statement_timeout=engine.STATEMENT_TIMEOUT,
            read_only=self._read_only,
            pooled=pooled,
            pool_size=engine.POOL_SIZE,
            max_overflow=0,
            pool_timeout=engine.BUSY_TIMEOUT,
            pool_reset_on_return=None,  # `_connected` ends what is open
        )
        self._drops = engine.Drops(bare)
        # A SELECT needs no BEGIN and COMMIT. Leaving them out saves two round trips, and a lock on SQLite. Only behind
        # a pooler, each statement is in a transaction.
        self._is_pooled = pooled
        self._engine = engine.autocommitting(bare)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        """Take a connection from the pool. When it goes back, it has no open transaction."""
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(self._engine.connect())
            except PoolerFound:
                self._use_pooler()
                connection = await stack.enter_async_context(self._engine.connect())
            try:
                yield connection
            finally:
                await driver.end(connection)

    def _notice_pooler(self, fault: BaseException) -> None:
        if is_of_pooler(fault):
            self._use_pooler()

    def _use_pooler(self) -> None:
        """Use connections as a pooler needs them from now on, unless the URL says that there is none."""
        if not self._finds_pooler:
            return
        self._finds_pooler = False
        log.info("database behind a pooler", setting="KEYMAN_DATABASE_POOLED")
        self._retired.append(self._engine)
        self._use_engine(pooled=True)

    def require_space(self) -> None:
        """Raise DatabaseUnavailable if little space is free beside a SQLite database. A server is not asked."""
        if self._files is None:
            return
        try:
            self._files.require_space()
        except OSError as fault:
            report(fault)
            raise_alone(DatabaseUnavailable(kind=kind(fault)))

    async def close(self) -> None:
        for used in (*self._retired, self._engine):
            await used.dispose()
        if self._files is not None:
            self._files.close()

    def _notice(self, fault: BaseException) -> None:
        self._notice_pooler(fault)
        if not is_unwritable(fault):
            return
        self.refused_at = monotonic()
        if READ_ONLY in kind(fault):
            # The server is a standby now. The other connections lead to it, too: after a failover, only a new one
            # leads to the new primary.
            self._drops.drop()

    @asynccontextmanager
    async def _turn(self, patience: float | None) -> AsyncIterator[None]:
        if self._writer is None:
            yield
            return
        async with asyncio.timeout(engine.BUSY_TIMEOUT if patience is None else patience):
            await self._writer.acquire()
        try:
            yield
        finally:
            self._writer.release()

    def _check_file(self) -> None:
        """Raise OSError if a file of a SQLite database was removed or replaced."""
        if self._files is not None:
            self._files.check()


@contextmanager
def _remembered(own: list[BaseException]) -> Iterator[None]:
    """Add the exception that the caller's block raises to `own`."""
    try:
        yield
    except BaseException as fault:
        own.append(fault)
        raise


@asynccontextmanager
async def _faults_translated(
    *, is_expected: bool = False, notice: Callable[[BaseException], None]
) -> AsyncIterator[list[BaseException]]:
    """Translate faults of the database to DatabaseUnavailable or RefusedStatement.

    The yielded list is for the exception that the caller's block raises. An OSError or a TimeoutError in it is not
    translated, because it is not of the database but, for example, of a file or of Vault. `notice` is called with each
    fault.
    """
    own: list[BaseException] = []
    try:
        yield own
    except IntegrityError:
        raise
    except FAULTS as fault:
        notice(fault)
        if any(fault is one for one in own) and not isinstance(fault, DRIVER_FAULTS):
            raise
        if not is_outage(fault):
            # The database rejected the statement: keyman has a bug or lacks a right. Its parameters are not repeated.
            refusal = MissingRight if INSUFFICIENT_PRIVILEGE in kind(fault) else RefusedStatement
            raise_alone(refusal(f"the database refused a statement: {kind(fault)}"))
        if not is_expected:  # a caller that does not wait expects that the database can be busy
            report(fault)
        raise_alone(DatabaseUnavailable(kind=kind(fault)))
