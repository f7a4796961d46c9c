"""Classifies the exceptions of a database driver: as an outage or as a bug."""

from __future__ import annotations

import sqlite3

import asyncpg
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from keyman.errors import DatabaseUnavailable, KeymanError, RefusedStatement
from keyman.logs import Repeats, frames, log

INSUFFICIENT_PRIVILEGE = "(42501)"
"""PostgreSQL's SQLSTATE for a statement that its user may not execute, as it appears in the result of `kind`."""

STATEMENT_LOST = ("42P05", "26000")
"""PostgreSQL's SQLSTATEs of a prepared statement that exists already or not at all: it is of another session."""

READ_ONLY = "(25006)"
"""PostgreSQL's SQLSTATE for a write on a standby, or in a session that only reads."""

UNWRITABLE = ("(53100)", READ_ONLY, "(SQLITE_FULL", "(SQLITE_READONLY", "(SQLITE_IOERR")
"""The codes of a database that takes no writes: its disk is full, or it is read-only. Other writes would fail, too."""


class DriverFault(KeymanError):
    """An OSError, TimeoutError, UnicodeError or OverflowError that a driver raised while it executed a statement.

    Drivers do not wrap these exceptions. keyman wraps them to distinguish them from the same exceptions of other code
    that runs inside a transaction and has nothing to do with the database. `orig` is the exception of the driver. Its
    text is not repeated, because sqlite3 puts values into it.
    """

    def __init__(self, orig: BaseException) -> None:
        super().__init__(type(orig).__name__)
        self.orig = orig


class RolledBack(RefusedStatement):
    """The database answered COMMIT with ROLLBACK: nothing is stored."""


class CommitLost(DatabaseUnavailable):
    """COMMIT was sent, and not answered: the change may or may not be stored."""

    def __init__(self, *, kind: str = "") -> None:
        super().__init__(
            "The connection to the database was lost during the commit. The change may or may not be stored: look "
            "before you send it again, or repeat it with the same Idempotency-Key.",
            kind=kind,
        )


BARE_FAULTS = (OSError, TimeoutError, UnicodeError, OverflowError)
"""Exceptions that a driver raises and that other code can raise, too."""

SESSION_OVER = (asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises for a connection that it has lost. The second one is for a session that the server ended a moment
ago, and whose socket is still open.
"""

DRIVER_FAULTS = (SQLAlchemyError, sqlite3.Error, asyncpg.PostgresError, *SESSION_OVER, DriverFault)
"""Exceptions that can only come from the database."""

FAULTS = (*DRIVER_FAULTS, *BARE_FAULTS)
"""Exceptions that can occur while a connection is opened, a statement is executed or a transaction is committed."""


def wrap_bare_faults(context: ExceptionContext) -> BaseException | None:
    """Return a DriverFault to replace a driver's bare exception, for SQLAlchemy's event `handle_error`."""
    fault = context.original_exception
    return DriverFault(fault) if isinstance(fault, BARE_FAULTS) else None


def is_outage(fault: BaseException) -> bool:
    """Return True if the database is down, busy, full or read-only, so that the same statement may succeed later."""
    fault = fault.orig if isinstance(fault, DriverFault) else fault
    if isinstance(fault, (OSError, TimeoutError, PoolTimeoutError, *SESSION_OVER)):
        return True
    if isinstance(fault, DBAPIError):
        if fault.connection_invalidated:
            return True
        origin = getattr(fault.orig, "driver_exception", None) or fault.orig or fault
        return is_outage(origin.__cause__ or origin) if origin is not fault else False
    if isinstance(fault, asyncpg.PostgresError):
        # Classes of SQLSTATE: connection (08), resources (53), operator intervention (57), system error (58),
        # read-only (25), rollback (40), role (28) or database (3D) that does not exist (yet). 55P03: lock timeout.
        state = str(getattr(fault, "sqlstate", "") or "")
        # 42P05, 26000: the connection goes through a pooler, and the next one will be opened accordingly.
        passing = state[:2] in ("08", "53", "57", "58", "25", "40", "28", "3D") or state in ("55P03", *STATEMENT_LOST)
        # Or an upgrade has changed a column: the next attempt prepares the statement again.
        return passing or isinstance(fault, asyncpg.InvalidCachedStatementError)
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


def is_lost(fault: BaseException) -> bool:
    """Return True if the connection was lost, so that another one may execute the same statement.

    It counts only for the first statement of a connection, which changes nothing.
    """
    fault = fault.orig if isinstance(fault, DriverFault) else fault
    if isinstance(fault, asyncpg.PostgresError):
        state = str(getattr(fault, "sqlstate", "") or "")
        return state[:2] == "08" or state in ("57P01", "57P02")  # the server ended the session, or crashed
    return isinstance(fault, (OSError, *SESSION_OVER)) and not isinstance(fault, TimeoutError)


def kind(fault: BaseException) -> str:
    """Return the class and code of a fault. That is enough to look it up, and repeats nothing of the statement."""
    origin = getattr(fault, "orig", None) or fault
    # The cause of a TimeoutError is only the cancellation by which asyncio ends the wait.
    cause = origin if isinstance(origin, TimeoutError) else origin.__cause__ or origin
    code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
    return f"{type(cause).__name__}{f' ({code})' if code else ''}"


def is_unwritable(fault: BaseException) -> bool:
    """Return True if the database is full or read-only, so that no key can be stored."""
    return any(code in kind(fault) for code in UNWRITABLE)


def is_of_pooler(fault: BaseException) -> bool:
    """Return True if a prepared statement was lost, as behind a pooler in transaction mode."""
    return any(f"({code})" in kind(fault) for code in STATEMENT_LOST)


_repeats = Repeats()


def report(fault: BaseException) -> None:
    """Log an outage. Each request meets it again, so one that stays the same is logged once a minute."""
    if _repeats.is_due(kind(fault)):
        log.warning("database unavailable", fault=kind(fault))


def of_one_caller(fault: BaseException, what: str) -> Exception:
    """Return the exception for one of the callers who shared a read that failed. `what` they wanted is for the log."""
    if isinstance(fault, DatabaseUnavailable):
        return DatabaseUnavailable(fault.detail, kind=fault.kind)
    if isinstance(fault, RefusedStatement):
        return type(fault)(*fault.args)
    if isinstance(fault, TimeoutError):
        log.warning("a shared read took too long", what=what)
        return DatabaseUnavailable(kind="TimeoutError")
    if isinstance(fault, Exception):
        log.error("a shared read failed", what=what, **frames(fault))
        return RefusedStatement("a shared read failed")
    return DatabaseUnavailable()  # it was cancelled, because the process stops
