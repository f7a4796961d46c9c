"""Which applications may use an owner's keys, and which of them the owner has blocked.

An operator decides which services an application may ask for, and whose users it serves. The owner of the keys can only
say no: a blocked application gets none of the owner's keys, whichever way it asks, and the answer is that for a key
that does not exist.

The management plane cannot read whom an application serves. The view `permitted_applications` says it, by the same rule
as `request.is_served`.

A block needs the exclusive lock of the account, and a release the shared one (see `identity.standing`). So once a block
is committed, no release begins.
"""

from __future__ import annotations

from collections.abc import Set
from datetime import datetime
from typing import NamedTuple

import msgspec
from sqlalchemy import bindparam, delete, exists, func, insert, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Entry
from keyman.audit.log import record
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.errors import NotFound
from keyman.identity.principals import Application, Principal
from keyman.identity.standing import listed_in_array, listed_in_json
from keyman.identity.tables import application_blocks, applications, permitted_applications, users
from keyman.ids import ApplicationId, UserId
from keyman.keys.finding import Found
from keyman.keys.tables import api_keys
from keyman.keys.uses import RELEASES
from keyman.storage.arrays import as_list
from keyman.storage.statements import Command, Query, scalar
from keyman.storage.transactions import Database


class PermittedApplication(msgspec.Struct):
    """An application that may use the caller's keys. `last_used_at` is the last time that it got or used one of the
    keys that the caller has now. A blocked one gets none.
    """

    id: int
    name: str
    services: list[str]
    last_used_at: datetime | None
    blocked: bool


async def list_own(db: Database, caller: Principal) -> list[PermittedApplication]:
    """Return the applications that may use the caller's keys, by name. Raises Forbidden for a portal session."""
    caller.require_no_portal()
    latest: dict[str, datetime] = {}
    async with db.read() as connection:
        permitted = await _EVERY.all(connection, of_user=caller.user_id)
        for action in RELEASES:
            for use in await _LAST_USES.all(connection, of_user=caller.user_id, action=action):
                latest[use.application] = max(use.last_at, latest.get(use.application, use.last_at))
    return [
        PermittedApplication(row.id, row.name, row.services.split(), latest.get(row.name), row.is_blocked)
        for row in permitted
    ]


async def block(db: Database, caller: Principal, application_id: ApplicationId) -> None:
    """Block an application for the caller's keys, if it is not blocked yet.

    Raises NotFound for one that may not use them, and Forbidden for a portal session.
    """
    caller.require_no_portal()
    async with db.write(caller.exclusive()) as connection:
        row = await _require(connection, caller, application_id)
        if row.is_blocked:
            return
        await _INSERT.execute(connection, user_id=caller.user_id, application_id=application_id, created_at=now())
        await _FLAG.execute(connection, of_user=caller.user_id)
        await record(connection, _entry(Action.APPLICATION_BLOCK, caller, row))


async def unblock(db: Database, caller: Principal, application_id: ApplicationId) -> None:
    """Take back a block, if there is one. Raises what `block` raises."""
    caller.require_no_portal()
    async with db.write(caller.exclusive()) as connection:
        row = await _require(connection, caller, application_id)
        if not row.is_blocked:
            return
        await _DELETE.execute(connection, of_user=caller.user_id, of_application=application_id)
        await record(connection, _entry(Action.APPLICATION_UNBLOCK, caller, row))


async def is_blocked(connection: AsyncConnection, application: Application | None, row: Found | None) -> bool:
    """Return True if the owner of a key has blocked the application. Users, who ask for own keys, are not applications.

    The account of the owner is locked by now, so no block can be committed until the transaction ends.
    """
    if application is None or row is None or not row.user_has_blocks:
        return False
    found = await _BLOCK.first(connection, of_user=row.user_id, of_application=application.id)
    return found is not None


async def find_blocks(db: Database, user_ids: Set[UserId]) -> frozenset[Block]:
    """Return the blocks of these users, by one query."""
    async with db.read() as connection:
        dialect, ids = connection.dialect.name, sorted(user_ids)
        return frozenset(await _BLOCKS_OF[dialect].all(connection, ids=as_list(ids, dialect)))


class Block(NamedTuple):
    """A user, and an application that gets none of the user's keys."""

    user_id: UserId
    application_id: ApplicationId


class _Permitted(NamedTuple):
    id: ApplicationId
    name: str
    services: str
    is_blocked: bool


class _Registered(NamedTuple):
    """An application that is not revoked. The one for live checks, which gets no keys, is never permitted."""

    name: str
    is_permitted: bool
    is_blocked: bool


class _Use(NamedTuple):
    application: str
    last_at: datetime


async def _require(connection: AsyncConnection, caller: Principal, application_id: ApplicationId) -> _Registered:
    """Return an application that may use the caller's keys, or would if it were not blocked. Raises NotFound."""
    row = await _BY_ID.first(connection, of_user=caller.user_id, of_application=application_id)
    if row is None or not (row.is_blocked or row.is_permitted):
        raise NotFound("No application with this id may use your keys.")
    return row


def _entry(action: Action, caller: Principal, row: _Registered) -> Entry:
    return Entry(action, caller.origin, caller.user_id, application=row.name)


_IS_BLOCKED = exists().where(
    application_blocks.c.user_id == bindparam("of_user"), application_blocks.c.application_id == applications.c.id
)
_IS_PERMITTED = exists().where(
    permitted_applications.c.user_id == bindparam("of_user"),
    permitted_applications.c.application_id == applications.c.id,
)
_EVERY = Query(
    select(
        applications.c.id,
        applications.c.name,
        permitted_applications.c.services,
        _IS_BLOCKED.label("is_blocked"),
    )
    .join_from(permitted_applications, applications, permitted_applications.c.application_id == applications.c.id)
    .where(permitted_applications.c.user_id == bindparam("of_user"))
    .order_by(applications.c.name),
    _Permitted,
)
_BY_ID = Query(
    select(applications.c.name, _IS_PERMITTED.label("is_permitted"), _IS_BLOCKED.label("is_blocked")).where(
        applications.c.id == bindparam("of_application"), applications.c.disabled_at.is_(None)
    ),
    _Registered,
)

# One entry for each application and key, which the index finds, instead of all entries about a key.
_LAST_OF_KEY = (
    select(audit_log.c.at)
    .where(
        audit_log.c.key_id == api_keys.c.id,
        audit_log.c.action == bindparam("action"),
        audit_log.c.application == applications.c.name,
    )
    .order_by(audit_log.c.at.desc())
    .limit(1)
    .correlate(api_keys, applications)
    .scalar_subquery()
)
_USES = (
    select(applications.c.name.label("application"), _LAST_OF_KEY.label("at"))
    .join_from(api_keys, applications, true())
    .where(api_keys.c.owner_id == bindparam("of_user"), applications.c.disabled_at.is_(None))
    .subquery("uses")
)
_LAST_USES = Query(
    select(_USES.c.application, func.max(_USES.c.at).label("last_at"))
    .where(_USES.c.at.is_not(None))
    .group_by(_USES.c.application),
    _Use,
)

_OF_PAIR = (
    application_blocks.c.user_id == bindparam("of_user"),
    application_blocks.c.application_id == bindparam("of_application"),
)
_BLOCK = scalar(select(application_blocks.c.application_id).where(*_OF_PAIR), ApplicationId)
_INSERT = Command(insert(application_blocks))
_DELETE = Command(delete(application_blocks).where(*_OF_PAIR))
_FLAG = Command(update(users).where(users.c.id == bindparam("of_user"), ~users.c.has_blocks).values(has_blocks=True))
_BLOCKS = select(application_blocks.c.user_id, application_blocks.c.application_id)
_BLOCKS_OF = {
    "sqlite": Query(_BLOCKS.where(listed_in_json()(application_blocks.c.user_id)), Block),
    "postgresql": Query(_BLOCKS.where(listed_in_array(application_blocks.c.user_id)), Block),
}
