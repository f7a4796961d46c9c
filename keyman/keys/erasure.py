"""Deletes an account, with everything that is about its user, in one transaction.

The row of `users` stays, with its number and times only, so that the number is never given to anybody else. It is
disabled, so every check of the account fails. Entries of the audit log stay: they hold numbers, client addresses and
purposes, and no name. Each deleted key gets an entry, so that the resolver refuses its row if somebody restores it.

Requests that are under way commit before, or find neither the account nor their session or token: see
`identity.standing`. A later sign-in with the same address or identity makes a new user.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Table, bindparam, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import NO_VALUE, OPERATOR, Action, Entry, Origin
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import Conflict, NotFound
from keyman.identity import presence, throttle
from keyman.identity.passwords import Passwords
from keyman.identity.principals import Principal
from keyman.identity.selection import Whom, lock_chosen
from keyman.identity.tables import (
    api_tokens,
    application_blocks,
    application_identities,
    identities,
    portal_links,
    provider_visits,
    sessions,
    token_labels,
    users,
)
from keyman.ids import KeyId, UserId
from keyman.keys.tables import api_keys, idempotency, key_labels
from keyman.storage.statements import Command, Query, optional, scalar
from keyman.storage.transactions import Database, Unchecked
from keyman.storage.types import UtcTime
from keyman.values import EmailAddress, GivenPassword

BANNED = (
    "This account is disabled. If you delete it, its user can come back as a new one. To delete it anyway, add "
    "--forget-ban."
)


class DeleteAccount(msgspec.Struct):
    """The request to delete the account, with the current password as proof if the account has one."""

    current_password: GivenPassword | msgspec.UnsetType = msgspec.UNSET


async def delete_own(db: Database, passwords: Passwords, caller: Principal, asked: DeleteAccount) -> None:
    """Delete the caller's account. Raises what `presence.prove` and `Presence.confirm` raise."""
    password = asked.current_password
    proof = await presence.prove(db, passwords, caller, None if password is msgspec.UNSET else password)
    async with db.write(caller.exclusive()) as connection:
        await proof.confirm(connection)
        await _erase(connection, caller.user_id, caller.origin)
    await db.truncate_log()


async def delete_any(db: Database, whom: Whom, *, forget_ban: bool = False) -> UserId:
    """Delete an account, as an operator, and return its number. Raises NotFound.

    Raises Conflict for a disabled account, unless `forget_ban` is set: with its identities, keyman would also forget
    whom to keep out.
    """
    async with db.write(Unchecked.OPERATOR) as connection:
        user_id = await lock_chosen(connection, whom)
        if not forget_ban and await _DISABLED.first(connection, user_id=user_id) is not None:
            raise Conflict(BANNED)
        await _erase(connection, user_id, OPERATOR)
    await db.truncate_log()
    return user_id


async def _erase(connection: AsyncConnection, user_id: UserId, origin: Origin) -> None:
    """Erase an account, whose lock the transaction has. Raises NotFound if it is erased already."""
    email_key = await _ADDRESS.one(connection, user_id=user_id)
    if not await _EMPTY.execute(connection, user_id=user_id, moment=now()):
        raise NotFound("There is no such account.")
    await _end_choices(connection, email_key)
    for command in _BEFORE_KEYS:
        await command.execute(connection, user_id=user_id)
    keys = await _KEYS.all(connection, user_id=user_id)
    await _DELETE_KEYS.execute(connection, user_id=user_id)
    for command in _AFTER_KEYS:
        await command.execute(connection, user_id=user_id)
    await throttle.forget(connection, user_id, email_key)
    await record(
        connection,
        *(
            Entry(Action.KEY_DELETE, origin, user_id, key_id=key.id, service=key.service, value_uuid=NO_VALUE)
            for key in keys
        ),
        Entry(Action.ACCOUNT_DELETE, origin, user_id),
    )


async def _end_choices(connection: AsyncConnection, email_key: str | None) -> None:
    """End the visits of people who were asked whether this account, with the address of their identity, is theirs.

    The addresses are compared here, because SQLite folds the case of ASCII letters only. Visits last ten minutes, so
    there are few.
    """
    if email_key is None:
        return
    for visit in await _CHOICES.all(connection):
        if EmailAddress.parse(visit.email).key == email_key:
            await _END_CHOICE.execute(connection, of_state=visit.state_hash)


class _Choice(NamedTuple):
    state_hash: bytes
    email: str


class _Key(NamedTuple):
    id: KeyId
    service: str


def _of_user(table: Table) -> Command:
    return Command(delete(table).where(table.c.user_id == bindparam("user_id")))


_ADDRESS = optional(select(users.c.email_key).where(users.c.id == bindparam("user_id")), str)
_DISABLED = scalar(
    select(users.c.id).where(users.c.id == bindparam("user_id"), users.c.disabled_at.is_not(None)), UserId
)
_EMPTY = Command(
    update(users)
    .where(users.c.id == bindparam("user_id"), users.c.erased_at.is_(None))
    .values(
        email=None,
        email_key=None,
        password_hash=None,
        shown_email=None,
        shown_name=None,
        has_blocks=False,
        disabled_at=bindparam("moment", type_=UtcTime),
        erased_at=bindparam("moment", type_=UtcTime),
    )
)
_OF_SESSION = provider_visits.c.session_id.in_(select(sessions.c.id).where(sessions.c.user_id == bindparam("user_id")))
_CHOICES = Query(
    select(provider_visits.c.state_hash, func.coalesce(provider_visits.c.email, "").label("email")).where(
        provider_visits.c.email.is_not(None)
    ),
    _Choice,
)
_END_CHOICE = Command(delete(provider_visits).where(provider_visits.c.state_hash == bindparam("of_state")))
# Sessions before identities, to which they refer. In the order of the locks that architecture.md describes.
_BEFORE_KEYS = (Command(delete(provider_visits).where(_OF_SESSION)), _of_user(sessions), _of_user(api_tokens))
_OTHERS = (
    idempotency,
    identities,
    application_identities,
    portal_links,
    application_blocks,
    key_labels,
    token_labels,
)
_AFTER_KEYS = tuple(_of_user(table) for table in _OTHERS)
_IS_OWN: ColumnElement[bool] = or_(
    api_keys.c.owner_id == bindparam("user_id"), api_keys.c.user_id == bindparam("user_id")
)
# Locked in the order in which a rewrap locks them.
_KEYS = Query(select(api_keys.c.id, api_keys.c.service).where(_IS_OWN).order_by(api_keys.c.id).with_for_update(), _Key)
_DELETE_KEYS = Command(delete(api_keys).where(_IS_OWN))
