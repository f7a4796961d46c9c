"""Releases a key to a caller, in this order: find it, write the audit entry, open it, return it.

The resolver releases keys to applications. The gateway releases them to itself, for applications and for the owners.

The entry is committed before the call to Vault, so nobody gets a key without an entry. A later failure gets a
second entry. So the audit log can contain a release that did not happen, but never misses one.

A value is opened only if the audit log names it as the current value of the key, with the settings that the row has.
If somebody restores an older value in its row, Vault would open it, because its context is right. And settings decide
where a value is sent. This check refuses both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from sqlalchemy import bindparam, update
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Entry, Reason
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import (
    Conflict,
    DatabaseUnavailable,
    NotFound,
    Undecryptable,
    VaultReason,
    VaultUnavailable,
)
from keyman.identity.principals import Principal
from keyman.ids import KeyId, UserId
from keyman.keys.consent import is_blocked
from keyman.keys.finding import Found
from keyman.keys.request import Request, find, is_served, or_none
from keyman.keys.schemas import Status, status_of
from keyman.keys.settings import from_text, is_current
from keyman.keys.tables import api_keys
from keyman.secret import Secret
from keyman.storage import last_use
from keyman.storage.statements import Command
from keyman.storage.transactions import Database, Unchecked
from keyman.vault.cipher import Context


class Opener(Protocol):
    """Opens values that a Cipher sealed.

    An implementation fails closed. It raises Undecryptable only if Vault refuses this ciphertext with exactly this
    context, and if Vault's key is proven to be the one that sealed this database. For any other failure it raises
    VaultUnavailable, within a limited time. Nothing that it raises or logs contains the ciphertext or the plaintext.
    """

    async def open(self, ciphertext: str, context: Context) -> Secret: ...


class Acts(NamedTuple):
    """The actions of the audit entries about one way of releasing keys."""

    released: Action
    refused: Action
    failed: Action


RESOLVE = Acts(Action.KEY_RESOLVE, Action.KEY_RESOLVE_REFUSED, Action.KEY_RESOLVE_FAILED)
"""An application gets the value of a key."""

USE = Acts(Action.KEY_USE, Action.KEY_USE_REFUSED, Action.KEY_USE_FAILED)
"""The gateway sends a request with the value of a key."""


class Released(NamedTuple):
    """A key for a caller. `is_noted` is True if the stored last use is so recent that it need not change.
    `subject` is None unless the key was asked for with one. `row` is what was found.
    """

    key_id: KeyId
    user_id: UserId
    service: str
    value: Secret
    expires_at: datetime | None
    settings: dict[str, str]
    is_noted: bool
    subject: str | None
    row: Found


class Releasing(NamedTuple):
    """One way of releasing keys, with the parts of a plane that it needs."""

    db: Database
    opener: Opener
    deployment: UUID
    acts: Acts


Requirement = Callable[[Mapping[str, str]], object]
"""Raises Conflict for settings with which a key cannot be used."""


async def release(
    by: Releasing, caller: Principal, asked: Request, require: Requirement = lambda _settings: None
) -> Released:
    """Return the value of one key: for an application that is registered for its service, or for its owner.

    Raises the same NotFound for a key that does not exist and for one that the caller may not have. Raises
    Undecryptable, VaultUnavailable, DatabaseUnavailable, also when the audit entry could not be written, and what
    `require` raises for the settings of the key, before it is opened.
    """
    row = await _released(by, caller, asked, require)
    try:
        try:
            value = await open_value(by, row)
        except Undecryptable:
            if await _record_failure(by, caller, asked, row, Reason.UNDECRYPTABLE):
                raise
            # The row has changed: its owner replaced the key, or a rewrap changed it and Vault retired the old version.
            row = await _released(by, caller, asked, require)
            value = await open_value(by, row)
    except VaultUnavailable as fault:
        await _record_failure(by, caller, asked, row, fault.reason)
        raise VaultUnavailable(
            fault.reason, "{why} No key was given out.", retry_after=fault.retry_after or 5
        ) from None
    is_noted = not last_use.is_due(row.last_used_at, now())
    about = (row.key_id, row.user_id, row.service, value, row.expires_at, _settings_of(row))
    return Released(*about, is_noted, asked.named_subject, row)


async def note_use(db: Database, caller: Principal, key_id: KeyId) -> None:
    """Store the last use of a key, unless the database is busy or unavailable. Raises no fault of the database."""
    moment = now()
    await db.note_together(
        Unchecked.LAST_USE,
        _NOTE_USE,
        about=key_id,
        of_id=key_id,
        moment=moment,
        **last_use.bounds(moment),
        used_by=caller.name,
    )


async def _released(by: Releasing, caller: Principal, asked: Request, require: Requirement) -> Found:
    """Find the requested key, commit an audit entry about its release, and return its row.

    Raises NotFound, Undecryptable and what `require` raises, after it has committed an audit entry with the reason.
    """
    moment = now()
    known = caller.application
    services = None if known is None else known.services

    async def find_and_record(connection: AsyncConnection) -> tuple[Found | None, Reason | None]:
        user_id, row = await find(connection, known, asked, moment)
        service = row.service if row is not None else or_none(asked.service)
        is_granted = await is_served(connection, known, asked, user_id)
        blocked = await is_blocked(connection, known, row)
        if known is None and row is not None and row.user_id != caller.user_id:
            user_id, row = UserId(caller.user_id), None  # a user gets own keys, whatever was asked for
        reason = (
            _refusal(row, service, services, moment, require, blocked=blocked) if is_granted else Reason.NOT_GRANTED
        )
        if row is not None and reason is Reason.NOT_CURRENT:
            await mark(connection, row)
        await record(
            connection,
            Entry(
                by.acts.released if reason is None else by.acts.refused,
                caller.origin,
                user_id,
                key_id=row.key_id if row is not None else asked.named_key,
                service=service,
                application=None if known is None else known.name,
                purpose=asked.purpose,
                reason=reason,
            ),
        )
        return row, reason

    row, reason = await by.db.together(caller, find_and_record)
    return _require_released(row, reason, require, _NONE_OF_OWN if known is None else MISSING)


def _require_released(row: Found | None, reason: Reason | None, require: Requirement, missing: str) -> Found:
    """Return the row of a key that was not refused. Raises what the caller is to know of the reason."""
    if reason is Reason.UNDECRYPTABLE:
        raise Undecryptable("Vault can no longer open this key. Its owner must store it again.")
    if reason is Reason.NOT_CURRENT:
        raise Undecryptable(
            "The stored value, or its settings, are not this key's current ones. Its owner must store it again."
        )
    if row is not None and reason is Reason.SETTINGS:
        require(_settings_of(row))
    if row is None or reason is not None:
        raise NotFound(missing)
    return row


MISSING = "There is no such key for this application. The audit log says why."
_NONE_OF_OWN = "You have no such active key for this service. Add one, or resume it, on the pages of keyman."


def _refusal(
    row: Found | None,
    service: str | None,
    services: frozenset[str] | None,
    moment: datetime,
    require: Requirement,
    *,
    blocked: bool,
) -> Reason | None:
    """Return the reason for which the caller does not get this key, or None if it does. `services` are those of an
    application, and None for a user. `blocked`: the owner of the key has blocked the application.
    """
    if service is not None and services is not None and service not in services:
        return Reason.NOT_GRANTED
    if row is None:
        return Reason.UNKNOWN
    if row.user_disabled_at is not None:
        return Reason.ACCOUNT_DISABLED
    if blocked:
        return Reason.BLOCKED
    status = status_of(row, moment)
    if status is not Status.ACTIVE:
        return Reason(status)
    return _unfit(row, require)


def _settings_of(row: Found) -> dict[str, str]:
    return from_text(row.settings) or {}  # `is_current` refuses damaged ones


def _unfit(row: Found, require: Requirement) -> Reason | None:
    """Return the reason for which what is stored cannot be used, or None if it can."""
    if not is_current(row):
        return Reason.NOT_CURRENT
    try:
        require(_settings_of(row))
    except Conflict:
        return Reason.SETTINGS
    return None


async def open_value(by: Releasing, row: Found) -> Secret:
    """Open the value of a row. Raises Undecryptable and VaultUnavailable. See `Opener`."""
    return await by.opener.open(row.encrypted_key, Context(by.deployment, row.owner_id, row.service, row.value_uuid))


async def _record_failure(
    by: Releasing, caller: Principal, asked: Request, row: Found, reason: Reason | VaultReason
) -> bool:
    """Write the second entry, and mark a row that does not open.

    Return False when the row has changed since it was read.
    """
    is_about_the_row = reason is Reason.UNDECRYPTABLE

    async def mark_and_record(connection: AsyncConnection) -> bool:
        is_as_it_was = not is_about_the_row or await mark(connection, row)
        await record(
            connection,
            Entry(
                by.acts.failed,
                caller.origin,
                row.user_id,
                key_id=row.key_id,
                service=row.service,
                application=None if caller.application is None else caller.application.name,
                purpose=asked.purpose,
                reason=reason,
            ),
        )
        return is_as_it_was

    with contextlib.suppress(DatabaseUnavailable):  # the storage has logged it, and no key is returned
        about = row.key_id if is_about_the_row else None
        return await by.db.together(Unchecked.OUTCOME, mark_and_record, about=about)
    return True


async def mark(connection: AsyncConnection, row: Found) -> bool:
    """Mark a row as undecryptable. Return False when it has changed since it was read."""
    return await _MARK.execute(connection, of_id=row.key_id, of_ciphertext=row.encrypted_key) == 1


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
