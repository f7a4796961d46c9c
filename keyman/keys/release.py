"""How an application gets a key back: found, put into the trail, opened, given out; in this order.

The entry is committed before Vault is asked: no entry, no key. What goes wrong after that gets a second entry, so the
trail may say of a key that it left when it did not, and never the other way round.

A value is opened only if it is the one that the trail says the key holds. An older value that somebody puts back into
its row opens in Vault, for it belongs there; here it does not.
"""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import UUID

import msgspec
from sqlalchemy import FromClause, Select, and_, bindparam, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Entry, Reason
from keyman.audit.log import current_value, record
from keyman.clock import now
from keyman.errors import (
    DatabaseUnavailable,
    FieldError,
    InvalidRequest,
    NotFound,
    Undecryptable,
    VaultReason,
    VaultUnavailable,
)
from keyman.identity.applications import Application
from keyman.identity.tables import users
from keyman.keys.schemas import Status, status_of
from keyman.keys.tables import api_keys
from keyman.providers.catalogue import ServiceSlug
from keyman.secret import Secret
from keyman.storage.transactions import Database
from keyman.storage.types import AnyRow, UtcTime
from keyman.values import Purpose, RowNumber
from keyman.vault.cipher import Context

T = TypeVar("T")

LAST_USE_PRECISION = timedelta(minutes=1)
"""How old a key's stored last use may be before it is written again: one write a minute, not one a request."""


class Opener(Protocol):
    """Opens what a Cipher sealed.

    An implementation fails closed: it raises Undecryptable only when Vault refuses this ciphertext under exactly this
    context while its key is proven to be the one of this database; VaultUnavailable, within a bound of time, for
    whatever else goes wrong. Nothing that it raises or logs holds the ciphertext or the plaintext.
    """

    async def open(self, ciphertext: str, context: Context) -> Secret: ...


class Request(msgspec.Struct):
    """Which key an application asks for: one key, or the newest active one of a user for a service."""

    key_id: RowNumber | msgspec.UnsetType = msgspec.UNSET
    user_id: RowNumber | msgspec.UnsetType = msgspec.UNSET
    service: ServiceSlug | msgspec.UnsetType = msgspec.UNSET
    purpose: Purpose | None = None

    def check(self) -> None:
        """Raises InvalidRequest unless it names a key in exactly one of the two ways."""
        by_key = self.key_id is not msgspec.UNSET
        by_user = [self.user_id is not msgspec.UNSET, self.service is not msgspec.UNSET]
        if any(by_user) if by_key else not all(by_user):
            raise InvalidRequest.at(FieldError("", "The body must hold either key_id, or user_id and service."))


class Resolved(NamedTuple):
    """A key on its way to an application. `is_noted`: the row says already that it is used about now."""

    key_id: int
    user_id: int
    service: str
    value: Secret
    expires_at: datetime | None
    is_noted: bool


async def resolve(db: Database, opener: Opener, deployment: UUID, application: Application, asked: Request) -> Resolved:
    """The value of one key, for an application that is registered for its service.

    Raises NotFound for whatever the application may not have, the same whether it exists or not; Undecryptable;
    VaultUnavailable; DatabaseUnavailable, also when the entry in the trail could not be written.
    """
    row = await _released(db, application, asked)
    try:
        try:
            value = await _open(opener, deployment, row)
        except Undecryptable:
            if await _record_failure(db, application, asked, row, Reason.UNDECRYPTABLE):
                raise
            # The row is another one by now: replaced by its owner, or rewrapped while Vault gave up an old version.
            row = await _released(db, application, asked)
            value = await _open(opener, deployment, row)
    except VaultUnavailable as fault:
        await _record_failure(db, application, asked, row, fault.reason)
        raise VaultUnavailable(
            fault.reason, "{why} No key was given out.", retry_after=fault.retry_after or 5
        ) from None
    is_noted = row.last_used_at is not None and now() - row.last_used_at < LAST_USE_PRECISION
    return Resolved(row.key_id, row.user_id, row.service, value, row.expires_at, is_noted)


async def note_use(db: Database, application: Application, key_id: int) -> None:
    """Write the last use of a key, if that can be done at once. Raises nothing that a database can cause."""
    moment = now()
    stale = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at <= moment - LAST_USE_PRECISION)
    statement = update(api_keys).where(api_keys.c.id == key_id, stale)
    await db.note(statement.values(last_used_at=moment, last_used_by=application.name))


async def _released(db: Database, application: Application, asked: Request) -> AnyRow:
    """The row of a key that the application may have, once the trail says that it gets it.

    Raises NotFound and Undecryptable, once the trail says that it was refused, and why.
    """
    moment = now()
    async with db.write() as connection:
        row = await _find(connection, asked, moment)
        found = row is not None and row.key_id is not None
        service = row.service if row is not None and found else _given(asked.service)
        reason = _refusal(row, service, application, moment)
        if row is not None and reason is Reason.NOT_CURRENT:
            await _mark(connection, row)
        await record(
            connection,
            Entry(
                Action.KEY_RESOLVE if reason is None else Action.KEY_RESOLVE_REFUSED,
                application.origin,
                None if row is None else row.user_id,
                key_id=row.key_id if row is not None and found else _given(asked.key_id),
                service=service,
                application=application.name,
                purpose=asked.purpose,
                reason=reason,
            ),
        )
    if reason is Reason.UNDECRYPTABLE:
        raise Undecryptable("Vault can no longer open this key. Its owner must store it again.")
    if reason is Reason.NOT_CURRENT:
        raise Undecryptable("What is stored is not this key's current value. Its owner must store it again.")
    if row is None or reason is not None:
        raise NotFound("There is no such key for this application.")
    return row


def _refusal(row: AnyRow | None, service: str | None, application: Application, moment: datetime) -> Reason | None:
    """Why this application does not get this key; None when it does."""
    if service is not None and service not in application.services:
        return Reason.NOT_GRANTED
    if row is None or row.key_id is None:
        return Reason.UNKNOWN
    if row.user_disabled_at is not None:
        return Reason.ACCOUNT_DISABLED
    status = status_of(row, moment)
    if status is not Status.ACTIVE:
        return Reason(status)
    return None if row.value_uuid == row.current_value else Reason.NOT_CURRENT


async def _open(opener: Opener, deployment: UUID, row: AnyRow) -> Secret:
    return await opener.open(row.encrypted_key, Context(deployment, row.user_id, row.service, row.value_uuid))


async def _record_failure(
    db: Database, application: Application, asked: Request, row: AnyRow, reason: Reason | VaultReason
) -> bool:
    """The second entry; and the mark on a row that does not open. False when the row has changed since it was read."""
    is_as_it_was = True
    with contextlib.suppress(DatabaseUnavailable):  # logged where it was seen, and no key leaves
        async with db.write() as connection:
            if reason is Reason.UNDECRYPTABLE:
                is_as_it_was = await _mark(connection, row)
            await record(
                connection,
                Entry(
                    Action.KEY_RESOLVE_FAILED,
                    application.origin,
                    row.user_id,
                    key_id=row.key_id,
                    service=row.service,
                    application=application.name,
                    purpose=asked.purpose,
                    reason=reason,
                ),
            )
    return is_as_it_was


async def _mark(connection: AsyncConnection, row: AnyRow) -> bool:
    """Mark a row as one that does not open; False when it has changed since it was read."""
    same = and_(api_keys.c.id == row.key_id, api_keys.c.encrypted_key == row.encrypted_key)
    marked = await connection.execute(update(api_keys).where(same).values(undecryptable=True))
    return marked.rowcount == 1


async def _find(connection: AsyncConnection, asked: Request, moment: datetime) -> AnyRow | None:
    """The row that is asked for, whatever its state; with a user and no key when the user has none for the service."""
    if asked.key_id is not msgspec.UNSET:
        return (await connection.execute(_BY_KEY, {"key_id": asked.key_id})).one_or_none()
    whose = {"user_id": asked.user_id, "service": asked.service}
    row = (await connection.execute(_NEWEST_ACTIVE, {**whose, "moment": moment})).one_or_none()
    # Where none is active, the newest of any state says why.
    return row if row is not None else (await connection.execute(_NEWEST, whose)).one_or_none()


# Made once, for each request executes them: to put a statement together takes as long as to execute it.

_FOUND = select(
    users.c.id.label("user_id"),
    users.c.disabled_at.label("user_disabled_at"),
    api_keys.c.id.label("key_id"),
    api_keys.c.service,
    api_keys.c.encrypted_key,
    api_keys.c.value_uuid,
    api_keys.c.disabled,
    api_keys.c.undecryptable,
    api_keys.c.expires_at,
    api_keys.c.last_used_at,
    current_value(api_keys.c.id).label("current_value"),
)
_THEIRS = and_(api_keys.c.user_id == users.c.id, api_keys.c.service == bindparam("service"))
_IS_ACTIVE = and_(
    ~api_keys.c.disabled,
    ~api_keys.c.undecryptable,
    or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > bindparam("moment", type_=UtcTime)),
)


def _newest(keys: FromClause) -> Select[*tuple[Any, ...]]:
    whose = _FOUND.select_from(keys).where(users.c.id == bindparam("user_id"))
    return whose.order_by(api_keys.c.id.desc()).limit(1)


_BY_KEY = _FOUND.join_from(api_keys, users).where(api_keys.c.id == bindparam("key_id"))
_NEWEST_ACTIVE = _newest(users.join(api_keys, and_(_THEIRS, _IS_ACTIVE)))
_NEWEST = _newest(users.outerjoin(api_keys, _THEIRS))


def _given(value: T | msgspec.UnsetType) -> T | None:
    return None if isinstance(value, msgspec.UnsetType) else value
