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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import NamedTuple, TypeVar

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Integer,
    Select,
    String,
    Table,
    any_,
    bindparam,
    cast,
    func,
    null,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import Function

from keyman.clock import now
from keyman.errors import InvalidToken, Unauthenticated
from keyman.identity.lookups import Lookup
from keyman.identity.tables import applications, users
from keyman.ids import ApplicationId, UserId
from keyman.storage.arrays import as_arrays, as_list, given_rows
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


_GIVEN = given_rows([Column("id", BigInteger), Column("holder_id", BigInteger)])
"""The ids of credentials and of their accounts or applications."""


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
    The two can be the same table.

    `ended` makes the exception for a caller whose credential is no longer valid. `idle` is the time after which an
    unused credential ends, for tables with a `last_seen_at`. `is_sponsored` is for credentials that an application
    gave, which must not be disabled either: the one that their `application_id` names.

    A table without an `expires_at`, such as that of identities, has rows that only somebody changes who has the
    exclusive lock of the holder. So they are not locked.
    """

    def __init__(
        self,
        credential: Table,
        holder: Table,
        *,
        ended: str | Unauthenticated,
        idle: timedelta | None = None,
        is_sponsored: bool = False,
    ) -> None:
        self._credential, self._holder = credential, holder
        self._kind = Unauthenticated if isinstance(ended, str) else type(ended)
        self._ended, self._idle = str(ended), idle
        self._locked = (holder, credential) if "expires_at" in credential.c else (holder,)
        self._is_sponsored = is_sponsored
        self._sponsor = self._lock_of_sponsor() if is_sponsored else None
        self._sponsors = self._of_sponsors() if is_sponsored else None
        self._queries = {lock: Query(self._statement(lock), _Times) for lock in Lock}
        self._now = Lookup(
            self._columns(credential.c.id, holder.c.id.label("holder_id")),
            credential.c.id,
            _Current,
            lambda row: row.id,
        )
        listed = Query(self._of_all(listed_in_json()), _Current)
        self._all = {"sqlite": listed, "postgresql": self._locking_all()}
        self._all_now = {"sqlite": listed, "postgresql": Query(self._of_all(listed_in_array), _Current)}

    async def confirm(self, connection: AsyncConnection, credential_id: int, holder_id: int, lock: Lock) -> None:
        """Raise Unauthenticated unless the credential is valid now. The locks are held until the transaction ends."""
        row = await self._lock(connection, credential_id, holder_id, lock)
        moment = now()  # after the locks, for which the check may have waited
        if row is None or self._has_ended(row, moment):
            raise self._kind(self._ended)

    async def _lock(self, connection: AsyncConnection, credential_id: int, holder_id: int, lock: Lock) -> _Times | None:
        """Lock a credential with its holder, and return its times, or None if it is not valid."""
        is_locking = connection.dialect.name != "sqlite"
        if self._sponsor is not None and is_locking:  # an application is locked before an account
            await self._sponsor.first(connection, credential_id=credential_id)
        query = self._queries[lock if is_locking else Lock.NONE]
        return await query.first(connection, credential_id=credential_id, holder_id=holder_id)

    async def confirm_now(self, db: Database, credential_id: int, holder_id: int) -> None:
        """Raise Unauthenticated unless the credential is valid now. It locks nothing, and is for requests that read."""
        row = await self._now.find(db, credential_id)
        if row is None or row.holder_id != holder_id or self._has_ended(row, now()):
            raise self._kind(self._ended)

    async def confirm_all(self, connection: AsyncConnection, all_of: Sequence[Grounds]) -> list[Unauthenticated | None]:
        """Return, for each of these grounds of this kind, None if it is valid now, or what `confirm` would raise.

        On PostgreSQL it takes the same shared locks as `confirm`, in ascending order of the accounts or applications.
        """
        dialect, ids = connection.dialect.name, sorted({grounds.credential_id for grounds in all_of})
        callers = {(grounds.credential_id, grounds.holder_id) for grounds in all_of}
        if len(callers) == 1:  # such as an application that asks for many keys: one statement less
            ((credential_id, holder_id),) = callers
            row = await self._lock(connection, credential_id, holder_id, Lock.SHARED)
            rows = [] if row is None else [_Current(credential_id, holder_id, *row)]
        elif dialect == "sqlite":
            rows = await self._all[dialect].all(connection, ids=as_list(ids, dialect))
        else:
            if self._sponsors is not None:  # applications are locked before accounts
                sponsors = await self._sponsors.all(connection, ids=ids)
                await _SHARED[applications.name].all(connection, halves=sorted({one % _MAX_HALF for one in sponsors}))
            in_order = sorted(callers, key=lambda caller: (caller[1] % _MAX_HALF, caller))
            given = [{"id": credential_id, "holder_id": holder_id} for credential_id, holder_id in in_order]
            rows = await self._all[dialect].all(connection, **as_arrays(_GIVEN.c.keys(), given))
        return self._verdicts(rows, all_of)

    async def confirm_all_now(self, db: Database, all_of: Sequence[Grounds]) -> list[Unauthenticated | None]:
        """Return the same at this moment, by one query that locks nothing."""
        ids = sorted({grounds.credential_id for grounds in all_of})
        dialect = "sqlite" if db.is_sqlite else "postgresql"
        query, listed = self._all_now[dialect], as_list(ids, dialect)
        rows = await db.fetch(lambda connection: query.all(connection, ids=listed))
        return self._verdicts(rows, all_of)

    def _verdicts(self, rows: Sequence[_Current], all_of: Sequence[Grounds]) -> list[Unauthenticated | None]:
        moment = now()  # after the locks, for which the check may have waited
        valid = {(row.id, row.holder_id) for row in rows if not self._has_ended(row, moment)}
        return [
            grounds.past(moment)
            or (None if (grounds.credential_id, grounds.holder_id) in valid else self._kind(self._ended))
            for grounds in all_of
        ]

    def _has_ended(self, row: _Times | _Current, moment: datetime) -> bool:
        if row.expires_at is not None and row.expires_at <= moment:
            return True
        return self._idle is not None and row.last_seen_at is not None and moment - row.last_seen_at >= self._idle

    def _statement(self, lock: Lock) -> Select[*tuple[object, ...]]:
        credential, holder = self._credential, self._holder
        found = self._columns().where(
            credential.c.id == bindparam("credential_id"), holder.c.id == bindparam("holder_id")
        )
        return found if lock is Lock.NONE else _locking(found, lock, *self._locked)

    def _columns(self, *more: ColumnElement[int]) -> Select[*tuple[object, ...]]:
        """Return a select of `more` and of the times, of credentials whose account or application is not disabled."""
        credential, holder = self._credential, self._holder
        last_seen = null().label("last_seen_at") if self._idle is None else credential.c.last_seen_at
        expires = credential.c.expires_at if "expires_at" in credential.c else null().label("expires_at")
        found = select(*more, expires, last_seen)
        found = found.select_from(holder) if credential is holder else found.join_from(credential, holder)
        if self._is_sponsored:
            found = found.join(applications, credential.c.application_id == applications.c.id)
            found = found.where(applications.c.disabled_at.is_(None))
        return found.where(holder.c.disabled_at.is_(None))

    def _lock_of_sponsor(self) -> Query[int]:
        credential = self._credential
        found = select(applications.c.id).join_from(
            credential, applications, credential.c.application_id == applications.c.id
        )
        return scalar(
            _locking(found.where(credential.c.id == bindparam("credential_id")), Lock.SHARED, applications), int
        )

    def _of_sponsors(self) -> Query[ApplicationId]:
        credential = self._credential
        asked = credential.c.id == any_(bindparam("ids", type_=ARRAY(BigInteger)))
        found = select(applications.c.id).join_from(
            credential, applications, credential.c.application_id == applications.c.id
        )
        return scalar(found.where(asked), ApplicationId)

    def _of_all(self, is_asked_for: Callable[[ColumnElement[int]], ColumnElement[bool]]) -> Select[*tuple[object, ...]]:
        credential, holder = self._credential, self._holder
        return self._columns(credential.c.id, holder.c.id.label("holder_id")).where(is_asked_for(credential.c.id))

    def _locking_all(self) -> Query[_Current]:
        """Return a query that finds and locks, for each of the given callers in turn, what the one of `confirm` does.

        The subquery locks, so PostgreSQL never joins it in another way, whatever it knows about the tables.
        """
        credential, holder = self._credential, self._holder
        found = self._columns(credential.c.id, holder.c.id.label("holder_id")).where(
            credential.c.id == _GIVEN.c.id, holder.c.id == _GIVEN.c.holder_id
        )
        locked = [*self._locked[1:], *([applications] if self._is_sponsored else [])]
        each = _locking(found, Lock.SHARED, self._holder, *locked).lateral("found")
        return Query(select(each).select_from(_GIVEN).join(each, true()), _Current)


class Grounds(msgspec.Struct, frozen=True):
    """What one caller's right to act rests on: the ids of its credential and of its account or application.

    `ends_at` is when a JWT ends, which no table knows. It includes the leeway.
    """

    standing: Standing
    credential_id: int
    holder_id: int
    ends_at: datetime | None = None

    def past(self, moment: datetime) -> InvalidToken | None:
        """Return the refusal of a JWT that has ended, or None."""
        if self.ends_at is None or moment < self.ends_at:
            return None
        return InvalidToken("The JWT is refused: exp is in the past.")

    async def confirm(self, connection: AsyncConnection, lock: Lock = Lock.SHARED) -> None:
        """Raise Unauthenticated unless the caller may still act."""
        await self.standing.confirm(connection, self.credential_id, self.holder_id, lock)
        self._check_end()  # after the locks, for which the check may have waited

    async def confirm_now(self, db: Database) -> None:
        """Raise Unauthenticated unless the caller may still act, at this moment."""
        await self.standing.confirm_now(db, self.credential_id, self.holder_id)
        self._check_end()

    def _check_end(self) -> None:
        refusal = self.past(now())
        if refusal is not None:
            raise refusal


@dataclass(frozen=True)
class HolderLock:
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
        await HolderLock(users, user_id).confirm(connection)


async def lock_accounts_shared(connection: AsyncConnection, user_ids: Sequence[UserId]) -> None:
    """Let nobody change these accounts until the transaction ends, as if their users acted. For PostgreSQL."""
    await _SHARED[users.name].all(connection, halves=sorted({user_id % _MAX_HALF for user_id in user_ids}))


async def lock_application(connection: AsyncConnection, application_id: ApplicationId) -> None:
    """Let this application do nothing until the transaction ends: before its row or a token of it is changed."""
    await HolderLock(applications, application_id).confirm(connection)


async def share_application(connection: AsyncConnection, application_id: ApplicationId) -> None:
    """Let nobody change this application until the transaction ends, as if it acted."""
    if connection.dialect.name != "sqlite":
        await _SHARED_APPLICATION.first(connection, of_id=application_id)


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


def listed_in_array(column: ColumnElement[int]) -> ColumnElement[bool]:
    """Return a condition for ids in an array of PostgreSQL."""
    return column == any_(bindparam("ids", type_=ARRAY(BigInteger)))


def listed_in_json() -> Callable[[ColumnElement[int]], ColumnElement[bool]]:
    """Return a condition for ids in a JSON array. So a statement for SQLite has one text for any number of them."""
    listed = func.json_each(bindparam("ids", type_=String)).table_valued("value")
    return lambda column: column.in_(select(listed.c.value))


def _shared(holder: Table) -> Query[object]:
    """Return a query that takes several shared locks, in the order of the array."""
    halves = func.unnest(bindparam("halves", type_=ARRAY(Integer))).column_valued("half")
    return scalar(select(func.pg_advisory_xact_lock_shared(_QUEUES[holder.name], halves)), object)


_EXCLUSIVE = {
    holder.name: scalar(select(_queue(holder, bindparam("of_id", type_=Id), Lock.EXCLUSIVE)), object)
    for holder in (users, applications)
}
_SHARED = {holder.name: _shared(holder) for holder in (users, applications)}
_SHARED_APPLICATION = scalar(
    _locking(select(applications.c.id).where(applications.c.id == bindparam("of_id")), Lock.SHARED, applications), int
)
