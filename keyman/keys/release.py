"""Releases a key to an application, in this order: find it, write the audit entry, open it, return it.

The entry is committed before the call to Vault, so no application gets a key without an entry. A later failure gets a
second entry. So the audit log can contain a release that did not happen, but never misses one.

A value is opened only if the audit log names it as the current value of the key, with the settings that the row has.
If somebody restores an older value in its row, Vault would open it, because its context is right. And settings decide
where a value is sent. This check refuses both.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import NamedTuple, Protocol, TypeVar
from uuid import UUID

import msgspec
from sqlalchemy import and_, bindparam, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Entry, Reason
from keyman.audit.log import current_settings, current_value, record
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
from keyman.identity.principals import Principal
from keyman.identity.standing import locking_account
from keyman.identity.tables import users
from keyman.ids import KeyId, OwnerId, UserId
from keyman.keys.schemas import Status, status_of
from keyman.keys.settings import from_text, is_current
from keyman.keys.tables import api_keys
from keyman.providers.catalogue import ServiceSlug
from keyman.secret import Secret
from keyman.storage import last_use
from keyman.storage.statements import Command, scalar
from keyman.storage.transactions import Database, Unchecked
from keyman.storage.types import UtcTime
from keyman.values import Purpose, RowNumber
from keyman.vault.cipher import Context

T = TypeVar("T")


class Opener(Protocol):
    """Opens values that a Cipher sealed.

    An implementation fails closed. It raises Undecryptable only if Vault refuses this ciphertext with exactly this
    context, and if Vault's key is proven to be the one that sealed this database. For any other failure it raises
    VaultUnavailable, within a limited time. Nothing that it raises or logs contains the ciphertext or the plaintext.
    """

    async def open(self, ciphertext: str, context: Context) -> Secret: ...


class Request(msgspec.Struct):
    """The key that an application asks for: one key by its id, or the newest active key of a user for a service."""

    key_id: RowNumber | msgspec.UnsetType = msgspec.UNSET
    user_id: RowNumber | msgspec.UnsetType = msgspec.UNSET
    service: ServiceSlug | msgspec.UnsetType = msgspec.UNSET
    purpose: Purpose | None = None

    def check(self) -> None:
        """Raise InvalidRequest unless the request names a key in exactly one of the two ways."""
        by_key = self.key_id is not msgspec.UNSET
        by_user = [self.user_id is not msgspec.UNSET, self.service is not msgspec.UNSET]
        if any(by_user) if by_key else not all(by_user):
            raise InvalidRequest.at(FieldError("", "The body must have either key_id, or user_id and service."))


class Resolved(NamedTuple):
    """A key for an application. `is_noted` is True if the stored last use is so recent that it need not change."""

    key_id: KeyId
    user_id: UserId
    service: str
    value: Secret
    expires_at: datetime | None
    settings: dict[str, str]
    is_noted: bool


async def resolve(db: Database, opener: Opener, deployment: UUID, application: Principal, asked: Request) -> Resolved:
    """Return the value of one key, for an application that is registered for its service.

    Raises the same NotFound for a key that does not exist and for one that the application may not have. Raises
    Undecryptable, VaultUnavailable, and DatabaseUnavailable, also when the audit entry could not be written.
    """
    row = await _released(db, application, asked)
    try:
        try:
            value = await _open(opener, deployment, row)
        except Undecryptable:
            if await _record_failure(db, application, asked, row, Reason.UNDECRYPTABLE):
                raise
            # The row has changed: its owner replaced the key, or a rewrap changed it and Vault retired the old version.
            row = await _released(db, application, asked)
            value = await _open(opener, deployment, row)
    except VaultUnavailable as fault:
        await _record_failure(db, application, asked, row, fault.reason)
        raise VaultUnavailable(
            fault.reason, "{why} No key was given out.", retry_after=fault.retry_after or 5
        ) from None
    is_noted = not last_use.is_due(row.last_used_at, now())
    settings = from_text(row.settings) or {}  # `is_current` refuses damaged ones
    return Resolved(row.key_id, row.user_id, row.service, value, row.expires_at, settings, is_noted)


async def note_use(db: Database, application: Principal, key_id: KeyId) -> None:
    """Store the last use of a key, unless the database is busy or unavailable. Raises no fault of the database."""
    moment = now()
    await db.note(
        Unchecked.LAST_USE,
        _NOTE_USE,
        of_id=key_id,
        moment=moment,
        stale_at=last_use.stale_at(moment),
        used_by=application.require_application().name,
    )


async def _released(db: Database, application: Principal, asked: Request) -> _Found:
    """Find the requested key, commit an audit entry about its release, and return its row.

    Raises NotFound and Undecryptable, after it has committed an audit entry with the reason.
    """
    moment = now()
    known = application.require_application()
    async with db.write(application) as connection:
        user_id, row = await _find(connection, asked, moment)
        service = row.service if row is not None else _or_none(asked.service)
        reason = _refusal(row, service, known.services, moment)
        if row is not None and reason is Reason.NOT_CURRENT:
            await _mark(connection, row)
        await record(
            connection,
            Entry(
                Action.KEY_RESOLVE if reason is None else Action.KEY_RESOLVE_REFUSED,
                application.origin,
                user_id,
                key_id=row.key_id if row is not None else _key_id(asked),
                service=service,
                application=known.name,
                purpose=asked.purpose,
                reason=reason,
            ),
        )
    if reason is Reason.UNDECRYPTABLE:
        raise Undecryptable("Vault can no longer open this key. Its owner must store it again.")
    if reason is Reason.NOT_CURRENT:
        raise Undecryptable(
            "The stored value, or its settings, are not this key's current ones. Its owner must store it again."
        )
    if row is None or reason is not None:
        raise NotFound("There is no such key for this application.")
    return row


def _refusal(row: _Found | None, service: str | None, services: frozenset[str], moment: datetime) -> Reason | None:
    """Return the reason for which this application does not get this key, or None if it does."""
    if service is not None and service not in services:
        return Reason.NOT_GRANTED
    if row is None:
        return Reason.UNKNOWN
    if row.user_disabled_at is not None:
        return Reason.ACCOUNT_DISABLED
    status = status_of(row, moment)
    if status is not Status.ACTIVE:
        return Reason(status)
    return None if is_current(row) else Reason.NOT_CURRENT


async def _open(opener: Opener, deployment: UUID, row: _Found) -> Secret:
    return await opener.open(row.encrypted_key, Context(deployment, row.owner_id, row.service, row.value_uuid))


async def _record_failure(
    db: Database, application: Principal, asked: Request, row: _Found, reason: Reason | VaultReason
) -> bool:
    """Write the second entry, and mark a row that does not open.

    Return False when the row has changed since it was read.
    """
    is_as_it_was = True
    with contextlib.suppress(DatabaseUnavailable):  # the storage has logged it, and no key is returned
        async with db.write(Unchecked.OUTCOME) as connection:
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
                    application=application.require_application().name,
                    purpose=asked.purpose,
                    reason=reason,
                ),
            )
    return is_as_it_was


async def _mark(connection: AsyncConnection, row: _Found) -> bool:
    """Mark a row as undecryptable. Return False when it has changed since it was read."""
    return await _MARK.execute(connection, of_id=row.key_id, of_ciphertext=row.encrypted_key) == 1


async def _find(connection: AsyncConnection, asked: Request, moment: datetime) -> tuple[UserId | None, _Found | None]:
    """Return the user and the row of the requested key, in any state.

    The row is None if the user has no key for the service. Both are None if the key or the user does not exist.
    """
    dialect = connection.dialect.name
    if not isinstance(asked.key_id, msgspec.UnsetType):
        row = await _BY_KEY[dialect].first(connection, key_id=asked.key_id)
        return (None, None) if row is None else (row.user_id, row)
    whose = {"user_id": asked.user_id, "service": asked.service}
    # If no key is active, the newest one determines the reason of the refusal.
    row = await _NEWEST_ACTIVE[dialect].first(connection, **whose, moment=moment)
    row = row or await _NEWEST[dialect].first(connection, **whose)
    if row is not None:
        return row.user_id, row
    return await _USER.first(connection, user_id=asked.user_id), None


class _Found(NamedTuple):
    user_id: UserId
    user_disabled_at: datetime | None
    key_id: KeyId
    owner_id: OwnerId
    service: str
    encrypted_key: str
    value_uuid: UUID
    disabled: bool
    undecryptable: bool
    expires_at: datetime | None
    last_used_at: datetime | None
    settings: str
    current_value: UUID | None
    current_settings: str | None


_FOUND = select(
    users.c.id.label("user_id"),
    users.c.disabled_at.label("user_disabled_at"),
    api_keys.c.id.label("key_id"),
    api_keys.c.owner_id,
    api_keys.c.service,
    api_keys.c.encrypted_key,
    api_keys.c.value_uuid,
    api_keys.c.disabled,
    api_keys.c.undecryptable,
    api_keys.c.expires_at,
    api_keys.c.last_used_at,
    api_keys.c.settings,
    current_value(api_keys.c.id).label("current_value"),
    current_settings(api_keys.c.id).label("current_settings"),
).join_from(api_keys, users, api_keys.c.owner_id == users.c.id)
_NEWEST_OF = (
    _FOUND.where(api_keys.c.owner_id == bindparam("user_id"), api_keys.c.service == bindparam("service"))
    .order_by(api_keys.c.id.desc())
    .limit(1)
)
_IS_ACTIVE = and_(
    ~api_keys.c.disabled,
    ~api_keys.c.undecryptable,
    or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > bindparam("moment", type_=UtcTime)),
)
# The account is locked like that of a caller, so that no key of an account is given out after it was disabled.
_BY_KEY = locking_account(_FOUND.where(api_keys.c.id == bindparam("key_id")), _Found)
_NEWEST_ACTIVE = locking_account(_NEWEST_OF.where(_IS_ACTIVE), _Found)
_NEWEST = locking_account(_NEWEST_OF, _Found)
_USER = scalar(select(users.c.id).where(users.c.id == bindparam("user_id")), UserId)
_MARK = Command(
    update(api_keys)
    .where(api_keys.c.id == bindparam("of_id"), api_keys.c.encrypted_key == bindparam("of_ciphertext"))
    .values(undecryptable=True)
)
_NOTE_USE = Command(
    update(api_keys)
    .where(api_keys.c.id == bindparam("of_id"), last_use.is_stale(api_keys.c.last_used_at))
    .values(last_used_at=bindparam("moment"), last_used_by=bindparam("used_by"))
)


def _key_id(asked: Request) -> KeyId | None:
    """Return the id of the requested key, for the audit log."""
    return None if isinstance(asked.key_id, msgspec.UnsetType) else KeyId(asked.key_id)


def _or_none(value: T | msgspec.UnsetType) -> T | None:
    return None if isinstance(value, msgspec.UnsetType) else value
