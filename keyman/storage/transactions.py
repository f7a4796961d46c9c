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
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from time import monotonic
from typing import Protocol, TypeVar

from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keyman.errors import DatabaseUnavailable, MissingRight, RefusedStatement, raise_alone
from keyman.logs import log
from keyman.metrics import Metrics
from keyman.storage import driver, engine
from keyman.storage.connecting import PoolerFound, is_pooled
from keyman.storage.faults import (
    DRIVER_FAULTS,
    FAULTS,
    INSUFFICIENT_PRIVILEGE,
    READ_ONLY,
    CommitLost,
    DriverFault,
    is_lost,
    is_of_pooler,
    is_outage,
    is_unwritable,
    kind,
    report,
)
from keyman.storage.files import Files
from keyman.storage.group import Work
from keyman.storage.notes import Notes
from keyman.storage.statements import Command
from keyman.storage.together import GROUP_PATIENCE, SharedAuthority, Together

R = TypeVar("R")

Reading = Callable[[AsyncConnection], Awaitable[R]]

TRUNCATE_PATIENCE = 2.0
"""Seconds that `Database.truncate_log` waits for readers and writers. Those that come meanwhile wait, too."""


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

    @property
    def kind_of_check(self) -> Hashable:
        """Nothing is checked, so only what is written for the same reason shares a transaction."""
        return self

    @property
    def rank(self) -> int:
        return 0

    async def confirm_together(self, _connection: AsyncConnection, all_of: Sequence[Unchecked]) -> list[None]:
        """Check nothing."""
        return [None for _ in all_of]


class Database:
    """A database. `metrics`, if given, counts the connections in use. `read_only` is for callers that only read."""

    def __init__(self, url: URL, metrics: Metrics | None = None, *, read_only: bool = False) -> None:
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._files = Files(Path(url.database)) if self.is_sqlite and url.database else None
        self._retired = list[AsyncEngine]()
        self.refused_at = 0.0
        """When a write was refused because the database is full or read-only, in seconds of the monotonic clock."""
        metrics = metrics or Metrics()
        metrics.database_connections_limit.set(engine.POOL_SIZE)
        self._used = metrics.database_connections
        self._url = url
        self._read_only = read_only
        self._finds_pooler = not self.is_sqlite and is_pooled(url) is None
        self._use_engine(pooled=not self.is_sqlite and is_pooled(url) is True)
        # SQLite has one writer at a time. Writers get this lock in order; waiting inside SQLite has no order.
        self._writer = asyncio.Lock() if self.is_sqlite else None
        self._notes = Notes(self.write)
        # A group on SQLite waits in turn, as any writer does: it holds no locks while it waits.
        patience = None if self.is_sqlite else GROUP_PATIENCE
        self._together = Together(self.write, lambda: self._transaction(patience), self.read, is_sqlite=self.is_sqlite)

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
        async with self._transaction(patience) as connection:
            await by.confirm(connection)
            yield connection

    async def together(self, by: SharedAuthority, work: Work[R], *, about: int | None = None) -> R:
        """Carry a work out in a transaction that others may share. See `storage.together`."""
        return await self._together.write(by, work, about=about)

    async def by_itself(self, by: SharedAuthority, work: Work[R]) -> R:
        """Carry a work out as `together` does, but in a transaction of its own."""
        return await self._together.by_itself(by, work)

    @asynccontextmanager
    async def _transaction(self, patience: float | None) -> AsyncIterator[AsyncConnection]:
        with _faults_translated(is_expected=patience is not None, notice=self._notice) as own:
            async with self._turn(patience):
                self._check_file()
                begun = self._connected(lambda one: driver.begin(one, patience, engine.BUSY_TIMEOUT))
                async with begun as (connection, _):
                    if self._files is not None and not self._read_only:
                        self._files.keep_open()
                    with _remembered(own):
                        yield connection
                    await self._commit(connection)

    async def _commit(self, connection: AsyncConnection) -> None:
        """Commit the transaction of a connection. Raises CommitLost."""
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
            raise_alone(CommitLost(kind=kind(fault)))

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection for SELECTs. Each SELECT has its own snapshot. Raises DatabaseUnavailable."""
        with _faults_translated(notice=self._notice_pooler) as own:
            self._check_file()
            async with self._connected(self._begin_reading) as (connection, _):
                with _remembered(own):
                    yield connection

    async def fetch(self, reading: Reading[R]) -> R:
        """Return what `reading` returns. It SELECTs from a connection as `read` opens it, and does nothing else.

        This saves a round trip: if nobody noticed that a connection was lost, `reading` finds out, and is called again
        with another one. Raises DatabaseUnavailable, and what `reading` raises.
        """
        if self._is_pooled:
            async with self.read() as connection:
                return await reading(connection)
        with _faults_translated(notice=self._notice_pooler):
            self._check_file()
            async with self._connected(reading) as (_, found):
                return found

    async def note(self, by: Authority, command: Command, **parameters: object) -> None:
        """Execute a command in its own transaction. It is skipped if it cannot be executed at once. See `notes`."""
        await self._notes.make(by, command, parameters)

    async def note_together(self, by: Unchecked, command: Command, *, about: int, **parameters: object) -> None:
        """Execute a command as `note` does, once for each id that it is `about`, in a transaction that others share."""
        await self._notes.make_together(by, command, about, parameters)

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
    async def _connected(self, first: Reading[R]) -> AsyncIterator[tuple[AsyncConnection, R]]:
        """Take a connection from the pool, and yield it with what `first` returns for it.

        A connection can be lost while nobody uses it. Its first statement shows that, so `first` is called again with
        another one. It must change nothing. When the connection goes back, it has no open transaction.
        """
        for left in reversed(range(engine.POOL_SIZE + 1)):
            connection = await self._take()
            try:
                with self._used.track_inprogress():
                    try:
                        begun = await first(connection)
                    except FAULTS as fault:
                        if not left or not is_lost(fault):
                            raise
                        await connection.invalidate()
                        continue
                    yield connection, begun
                    return
            finally:
                await self._give_back(connection)

    async def _take(self) -> AsyncConnection:
        try:
            return await self._engine.connect()
        except PoolerFound:
            self._use_pooler()
            return await self._engine.connect()

    async def _give_back(self, connection: AsyncConnection) -> None:
        """End the transaction of a connection, if it has one, and give it back to the pool.

        Closing it waits for nothing, so it needs no task of its own, as in SQLAlchemy's `async with`.
        """
        try:
            await driver.end(connection)
        finally:
            await connection.close()

    async def _begin_reading(self, connection: AsyncConnection) -> None:
        if self._is_pooled:
            await driver.begin_reading(connection)
        else:
            await driver.ping(connection)

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

    async def truncate_log(self) -> None:
        """Remove from the `-wal` file of a SQLite database what a transaction has deleted. It raises no fault.

        If others use the database all the time, this does nothing, and housekeeping tries again.
        """
        if self._files is None:
            return
        is_done = False
        with contextlib.suppress(sqlite3.Error, OSError):
            is_done = await asyncio.to_thread(self._files.truncate_log, TRUNCATE_PATIENCE)
        if not is_done:
            log.info("write-ahead log not truncated")

    async def close(self) -> None:
        await self._together.close()
        await self._notes.close()
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

    def _turn(self, patience: float | None) -> AbstractAsyncContextManager[None]:
        """Wait for the only writer of SQLite. On PostgreSQL, several write at once."""
        return nullcontext() if self._writer is None else _held(self._writer, patience)

    def _check_file(self) -> None:
        """Raise OSError if a file of a SQLite database was removed or replaced."""
        if self._files is not None:
            self._files.check()


@asynccontextmanager
async def _held(lock: asyncio.Lock, patience: float | None) -> AsyncIterator[None]:
    async with asyncio.timeout(engine.BUSY_TIMEOUT if patience is None else patience):
        await lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _remembered(own: list[BaseException]) -> Iterator[None]:
    """Add the exception that the caller's block raises to `own`."""
    try:
        yield
    except BaseException as fault:
        own.append(fault)
        raise


@contextmanager
def _faults_translated(
    *, is_expected: bool = False, notice: Callable[[BaseException], None]
) -> Iterator[list[BaseException]]:
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
