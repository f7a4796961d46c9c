"""Checks that a caller may still act, in the transaction that acts for it.

A caller is recognised when its request begins, but the body may arrive ten seconds later. By then its token may be
revoked. So every transaction that writes checks the caller again, before it changes anything.

On PostgreSQL the check locks the rows that it reads until the transaction ends: FOR SHARE, first the account or
application, then the session or token. A revocation changes the same rows. It comes either before the check, which then
fails, or after the commit. On SQLite a transaction that writes has no other beside it.

Row locks have no queue: a new FOR SHARE overtakes a writer that waits. So a caller with a few dozen requests at a time
could keep its own revocation waiting for as long as it likes. Therefore each account and each application has an
advisory lock too, which has a queue. It is the first lock of a transaction: shared to act, exclusive to change or
delete a row of an account, an application, a session or a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import NamedTuple, TypeVar

from sqlalchemy import Integer, Select, Table, bindparam, cast, func, null, select, true
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import Function

from keyman.clock import now
from keyman.errors import Unauthenticated
from keyman.identity.lookups import Lookup
from keyman.identity.tables import applications, users
from keyman.ids import ApplicationId, UserId
from keyman.storage.statements import Query, scalar
from keyman.storage.transactions import Database
from keyman.storage.types import Id

R = TypeVar("R")

_QUEUES: Mapping[str, int] = {users.name: 27501, applications.name: 27502}
"""The first half of the advisory locks of each table. The second half comes from the id of the row."""

_MAX_HALF = 2**31 - 1
"""The highest number in half of an advisory lock. Two rows that share one wait for each other, and nothing else."""


class Lock(Enum):
    """How a check locks the rows that it reads."""

    NONE = "none"  # for a request that only reads
    SHARED = "shared"  # to act
    EXCLUSIVE = "exclusive"  # to change or delete one of these rows, too


class _Times(NamedTuple):
    expires_at: datetime | None
    last_seen_at: datetime | None


class _Current(NamedTuple):
    id: int
    holder_id: int
    expires_at: datetime | None
    last_seen_at: datetime | None


class Standing:
    """The check of one kind of credential: a row of `credential`, whose account or application is a row of `holder`.

    `ended` is the text for a caller whose credential is no longer valid. `idle` is the time after which an unused
    credential ends, for tables with a `last_seen_at`.
    """

    def __init__(self, credential: Table, holder: Table, *, ended: str, idle: timedelta | None = None) -> None:
        self._credential, self._holder = credential, holder
        self._ended, self._idle = ended, idle
        self._queries = {lock: Query(self._statement(lock), _Times) for lock in Lock}
        self._now = Lookup(
            self._columns(credential.c.id, holder.c.id.label("holder_id")),
            credential.c.id,
            _Current,
            lambda row: row.id,
        )

    async def confirm(self, connection: AsyncConnection, credential_id: int, holder_id: int, lock: Lock) -> None:
        """Raise Unauthenticated unless the credential is valid now. The locks are held until the transaction ends."""
        query = self._queries[Lock.NONE if connection.dialect.name == "sqlite" else lock]
        row = await query.first(connection, credential_id=credential_id, holder_id=holder_id)
        moment = now()  # after the locks, for which the check may have waited
        if row is None or self._has_ended(row, moment):
            raise Unauthenticated(self._ended)

    async def confirm_now(self, db: Database, credential_id: int, holder_id: int) -> None:
        """Raise Unauthenticated unless the credential is valid now. It locks nothing, and is for requests that read."""
        row = await self._now.find(db, credential_id)
        if row is None or row.holder_id != holder_id or self._has_ended(row, now()):
            raise Unauthenticated(self._ended)

    def _has_ended(self, row: _Times | _Current, moment: datetime) -> bool:
        if row.expires_at is not None and row.expires_at <= moment:
            return True
        return self._idle is not None and row.last_seen_at is not None and moment - row.last_seen_at >= self._idle

    def _statement(self, lock: Lock) -> Select[*tuple[object, ...]]:
        credential, holder = self._credential, self._holder
        found = self._columns().where(
            credential.c.id == bindparam("credential_id"), holder.c.id == bindparam("holder_id")
        )
        return found if lock is Lock.NONE else _locking(found, lock, holder, credential)

    def _columns(self, *more: ColumnElement[int]) -> Select[*tuple[object, ...]]:
        """Return a select of `more` and of the times, of credentials whose account or application is not disabled."""
        credential, holder = self._credential, self._holder
        last_seen = null().label("last_seen_at") if self._idle is None else credential.c.last_seen_at
        found = select(*more, credential.c.expires_at, last_seen).join_from(credential, holder)
        return found.where(holder.c.disabled_at.is_(None))


@dataclass(frozen=True)
class Grounds:
    """What one caller's right to act rests on: the ids of its credential and of its account or application."""

    standing: Standing
    credential_id: int
    holder_id: int

    async def confirm(self, connection: AsyncConnection, lock: Lock = Lock.SHARED) -> None:
        """Raise Unauthenticated unless the caller may still act."""
        await self.standing.confirm(connection, self.credential_id, self.holder_id, lock)

    async def confirm_now(self, db: Database) -> None:
        """Raise Unauthenticated unless the caller may still act, at this moment."""
        await self.standing.confirm_now(db, self.credential_id, self.holder_id)


@dataclass(frozen=True)
class Turn:
    """An Authority that checks nothing, and waits for the transactions of one account or application to end."""

    holder: Table
    holder_id: int

    async def confirm(self, connection: AsyncConnection) -> None:
        """Take the exclusive lock, until the transaction ends."""
        if connection.dialect.name != "sqlite":
            await _EXCLUSIVE[self.holder.name].one(connection, of_id=self.holder_id)


async def lock_accounts(connection: AsyncConnection, *user_ids: UserId | None) -> None:
    """Let nobody act for these accounts until the transaction ends: before a row of one of them is changed."""
    for user_id in sorted({user_id for user_id in user_ids if user_id is not None}):  # in order: no deadlock
        await Turn(users, user_id).confirm(connection)


async def lock_application(connection: AsyncConnection, application_id: ApplicationId) -> None:
    """Let this application do nothing until the transaction ends: before its row or a token of it is changed."""
    await Turn(applications, application_id).confirm(connection)


def locking_account(found: Select[*tuple[object, ...]], row: Callable[..., R]) -> Mapping[str, Query[R]]:
    """Return, for each dialect, a query that also locks the row of `users` that it reads, as if its user acted."""
    return {"sqlite": Query(found, row), "postgresql": Query(_locking(found, Lock.SHARED, users), row)}


def _locking(
    found: Select[*tuple[object, ...]], lock: Lock, holder: Table, *others: Table
) -> Select[*tuple[object, ...]]:
    """Return a statement that locks, for each row: the advisory lock of `holder`, its row, and those of `others`.

    PostgreSQL calls the function before it locks rows, and locks them in the order of the list.
    """
    queued = found.join(_queue(holder, holder.c.id, lock).table_valued("queued"), true())
    if lock is Lock.SHARED:
        return queued.with_for_update(read=True, of=[holder, *others])
    return queued.with_for_update(key_share=True, of=[holder, *others])


def _queue(holder: Table, of_id: ColumnElement[int], lock: Lock) -> Function[object]:
    take = func.pg_advisory_xact_lock_shared if lock is Lock.SHARED else func.pg_advisory_xact_lock
    return take(_QUEUES[holder.name], cast(of_id % _MAX_HALF, Integer))


_EXCLUSIVE = {
    holder.name: scalar(select(_queue(holder, bindparam("of_id", type_=Id), Lock.EXCLUSIVE)), object)
    for holder in (users, applications)
}
