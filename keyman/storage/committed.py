"""Finds out what came of a transaction whose COMMIT was not answered: PostgreSQL is asked on another connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import NamedTuple, cast

from sqlalchemy import String, bindparam, func, literal, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import UserDefinedType

from keyman.errors import DatabaseUnavailable, RefusedStatement, raise_alone
from keyman.storage import driver
from keyman.storage.faults import FAULTS, CommitLost, kind
from keyman.storage.statements import Query

ASKING_TIME = 2.0
"""Seconds for which keyman asks what came of a transaction."""

ASKING_PAUSE = 0.05
"""Seconds between two of these questions."""

STORED_NOTHING = "The connection to the database was lost during the commit. Nothing was stored."

COMMITTED, ABORTED = "committed", "aborted"

_TELLS_TIMELINE, _TRANSACTION = "keyman_tells_timeline", "keyman_transaction"
"""The names of two answers in the notes of a connection."""


class Transaction(NamedTuple):
    """PostgreSQL's id of a transaction, and what distinguishes the server.

    After a failover, the ids of transactions that the old server lost are given to others. A failover changes the
    timeline. Some managed servers do not tell it. For those it is the time of the server's start, so that nobody knows
    what came of a transaction if the server was restarted.
    """

    id: str
    server: str
    has_timeline: bool


async def identify(connection: AsyncConnection) -> Transaction | None:
    """Return the open transaction of a connection, or None on SQLite, which cannot be asked later."""
    if connection.dialect.name == "sqlite":
        return None
    return await _IDENTIFY[await tells_timeline(connection)].one(connection)


def note(connection: AsyncConnection, own: Transaction) -> None:
    """Note the open transaction of a connection, which one of its statements returned. See `OWN`."""
    driver.notes_of(connection)[_TRANSACTION] = own


def take_noted(connection: AsyncConnection) -> Transaction | None:
    """Return the transaction that was noted since this was last asked, if one was. It saves the call of `identify`.

    Ask as the first thing of a transaction too: what was noted then is of the one before.
    """
    return cast("Transaction | None", driver.notes_of(connection).pop(_TRANSACTION, None))


async def tells_timeline(connection: AsyncConnection) -> bool:
    """Return whether the server tells its timeline. It is asked once for each connection, in an open transaction."""
    notes = driver.notes_of(connection)
    if _TELLS_TIMELINE not in notes:
        notes[_TELLS_TIMELINE] = await _ask_for_timeline(connection)
    return bool(notes[_TELLS_TIMELINE])


async def _ask_for_timeline(connection: AsyncConnection) -> bool:
    """Ask. A savepoint keeps the transaction if the server does not tell."""
    await driver.savepoint(connection)
    try:
        await _IDENTIFY[True].one(connection)
    except FAULTS:
        if connection.invalidated:
            raise
        await driver.roll_back_to_savepoint(connection)
        return False
    await driver.release_savepoint(connection)
    return True


async def require_committed(
    read: Callable[[], AbstractAsyncContextManager[AsyncConnection]], own: Transaction | None, fault: Exception
) -> None:
    """Return if a transaction was committed, although its end raised `fault`. `read` opens another connection.

    Raises DatabaseUnavailable if it was not, and CommitLost if that cannot be found out in ASKING_TIME.
    """
    status, until = None, monotonic() + ASKING_TIME
    while own is not None and status is None and monotonic() < until:
        await asyncio.sleep(ASKING_PAUSE)
        status = await ask(read, own, until - monotonic())
    if status is None:
        raise_alone(CommitLost(kind=fault.kind if isinstance(fault, CommitLost) else kind(fault)))
    if status != COMMITTED:
        raise_alone(DatabaseUnavailable(STORED_NOTHING))


async def ask(
    read: Callable[[], AbstractAsyncContextManager[AsyncConnection]], own: Transaction, patience: float
) -> str | None:
    """Return COMMITTED, ABORTED, or None if the server does not answer, does not know it, or is another one now."""
    try:
        async with asyncio.timeout(patience), read() as connection:
            found = await _STATUS[own.has_timeline].one(connection, of_id=own.id)
    except (DatabaseUnavailable, RefusedStatement, TimeoutError):
        return None
    return found.status if found.server == own.server and found.status in (COMMITTED, ABORTED) else None


class _Xid8(UserDefinedType[str]):
    """PostgreSQL's type for the id of a transaction."""

    cache_ok = True

    def get_col_spec(self, **_options: object) -> str:
        return "xid8"


class _Status(NamedTuple):
    status: str | None
    server: str


# The name of a WAL file begins with the timeline, in eight digits.
_TIMELINE = func.left(func.pg_walfile_name(func.pg_current_wal_lsn()), 8, type_=String)
_START = sql_cast(func.pg_postmaster_start_time(), String)
_SERVER = {True: _TIMELINE, False: _START}
"""What distinguishes the server, by whether it tells its timeline."""

OWN = {
    has_timeline: (
        sql_cast(func.pg_current_xact_id(), String).label("id"),
        server.label("server"),
        literal(has_timeline).label("has_timeline"),
    )
    for has_timeline, server in _SERVER.items()
}
"""The columns of a Transaction, by whether the server tells its timeline. A RETURNING with them can be noted."""

_IDENTIFY = {has_timeline: Query(select(*own), Transaction) for has_timeline, own in OWN.items()}
_ID = sql_cast(bindparam("of_id", type_=String), _Xid8)
_STATUS = {
    has_timeline: Query(select(func.pg_xact_status(_ID, type_=String).label("status"), server.label("server")), _Status)
    for has_timeline, server in _SERVER.items()
}
