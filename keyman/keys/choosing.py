"""The default: which of the owner's keys for a service applications get, if it is active. They get the newest active
one otherwise. An owner has at most one for each service. A unique index says so, too.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import and_, bindparam, case, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Entry
from keyman.identity.principals import Principal
from keyman.ids import KeyId
from keyman.keys.rows import OWNED, Shown
from keyman.keys.tables import api_keys
from keyman.storage.statements import Command, Query, scalar
from keyman.storage.transactions import Database
from keyman.storage.types import UtcTime


async def lock_service(connection: AsyncConnection, caller: Principal, key_id: KeyId) -> None:
    """Lock all of the caller's keys for the service of this key, in the order of their ids, as groups of writes do.

    So two changes of the default of a service come one after the other. A work that locks several keys must not be in a
    group: see `Database.by_itself`.
    """
    await _LOCK_ALL.all(connection, owner_id=caller.owner_id, of_id=key_id)


async def clear_default(connection: AsyncConnection, caller: Principal, row: Shown, moment: datetime) -> list[Entry]:
    """Let no other key be the default of the row's service. Return the audit entry of the one that was, if any.

    Call `lock_service` before. This is a statement of its own, so it sees what was committed before the lock.
    """
    before = await _DEFAULT.first(connection, owner_id=caller.owner_id, of_service=row.service)
    if before is None or before.id == row.id:
        return []
    later = max(moment, before.updated_at + timedelta(microseconds=1))
    await _CLEAR.execute(connection, of_id=before.id, cleared_at=later)
    who, sent_by = (caller.origin, caller.user_id), caller.sent_by
    return [Entry(Action.KEY_CHANGE, *who, key_id=before.id, service=row.service, application=sent_by)]


class Choices(NamedTuple):
    """Which of an owner's keys applications get that ask by service.

    `all` has one key for each service with an active key. `among_several` are those of them that have other keys of the
    same service beside them, whatever their status. Nothing here says that an application has asked, or may.
    """

    all: frozenset[KeyId]
    among_several: frozenset[KeyId]


async def choices(db: Database, caller: Principal, moment: datetime) -> Choices:
    """Return which of the caller's keys applications get at this moment if they ask by service."""
    async with db.read() as connection:
        found = await _CHOSEN.all(connection, owner_id=caller.owner_id, moment=moment)
    return Choices(
        frozenset(each.key_id for each in found if each.key_id is not None),
        frozenset(each.key_id for each in found if each.key_id is not None and each.number_of_keys > 1),
    )


class _Chosen(NamedTuple):
    """What applications get of one service. `key_id` is None if no key is active."""

    key_id: KeyId | None
    number_of_keys: int


_SERVICE = select(api_keys.c.service).where(api_keys.c.id == bindparam("of_id")).scalar_subquery()
_LOCK_ALL = scalar(
    select(api_keys.c.id)
    .where(api_keys.c.owner_id == bindparam("owner_id"), api_keys.c.service == _SERVICE)
    .order_by(api_keys.c.id)
    .with_for_update(),
    KeyId,
)
_DEFAULT = Query(OWNED.where(api_keys.c.service == bindparam("of_service"), api_keys.c.is_default), Shown)
_CLEAR = Command(
    update(api_keys)
    .where(api_keys.c.id == bindparam("of_id"))
    .values(is_default=False, updated_at=bindparam("cleared_at"))
)
_IS_ACTIVE = and_(
    ~api_keys.c.disabled,
    ~api_keys.c.undecryptable,
    or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > bindparam("moment", type_=UtcTime)),
)
_CHOSEN = Query(
    select(
        func.coalesce(
            func.max(case((and_(_IS_ACTIVE, api_keys.c.is_default), api_keys.c.id))),
            func.max(case((_IS_ACTIVE, api_keys.c.id))),
        ).label("key_id"),
        func.count().label("number_of_keys"),
    )
    .where(api_keys.c.owner_id == bindparam("owner_id"))
    .group_by(api_keys.c.service),
    _Chosen,
)
