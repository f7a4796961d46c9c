"""Finds the keys that applications ask for. Requests that wait at the same moment share statements (`storage.group`).

The account of a key is locked like that of a caller, so that no key of an account is given out after it was disabled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, Select, Text, and_, any_, bindparam, column, func, or_, select, true
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.log import current_settings, current_value
from keyman.identity.standing import lock_accounts_shared, locking_account
from keyman.identity.tables import users
from keyman.ids import KeyId, OwnerId, UserId
from keyman.keys.tables import api_keys
from keyman.storage.group import gathered
from keyman.storage.statements import Query, scalar
from keyman.storage.types import UtcTime


class Found(NamedTuple):
    """A key in any state with its user, and what the audit log says that value and settings are."""

    user_id: UserId
    user_disabled_at: datetime | None
    user_has_blocks: bool
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
    check_verdict: str | None
    checked_at: datetime | None
    checked_by: str | None
    current_value: UUID | None
    current_settings: str | None


class Wanted(NamedTuple):
    """The key that applications get of a user for a service: the default if it is active at this moment, or else the
    newest that is.
    """

    user_id: UserId
    service: str
    moment: datetime


async def by_id(connection: AsyncConnection, key_id: KeyId) -> Found | None:
    """Return the row of a key, in any state, or None if it does not exist."""
    return await gathered(connection, _by_ids, key_id)


async def in_use(connection: AsyncConnection, wanted: Wanted) -> Found | None:
    """Return the row of a wanted key. If no key is active, return the newest one, or None if the user has none.

    The state of the newest one determines the reason of the refusal.
    """
    return await gathered(connection, _all_in_use, wanted)


async def _by_ids(connection: AsyncConnection, key_ids: Sequence[KeyId]) -> list[Found | None]:
    dialect, ids = connection.dialect.name, [*{*key_ids}]
    if len(ids) == 1 or dialect == "sqlite":
        rows = {key_id: await _BY_KEY[dialect].first(connection, key_id=key_id) for key_id in ids}
    else:
        await lock_accounts_shared(connection, await _OWNERS_OF.all(connection, key_ids=ids))
        rows = {row.key_id: row for row in await _BY_KEYS.all(connection, key_ids=ids)}
    return [rows.get(key_id) for key_id in key_ids]


async def _all_in_use(connection: AsyncConnection, all_of: Sequence[Wanted]) -> list[Found | None]:
    latest = max(wanted.moment for wanted in all_of)
    missing = sorted({(user_id, service) for user_id, service, _ in all_of})
    if len(missing) == 1 or connection.dialect.name == "sqlite":
        rows = {each: await _in_use(connection, Wanted(*each, latest)) for each in missing}
        return [rows[user_id, service] for user_id, service, _ in all_of]
    await lock_accounts_shared(connection, [wanted.user_id for wanted in all_of])
    found = await _each(connection, _IN_USE_OF_EACH, missing, moment=latest)
    if missing := [each for each in missing if each not in found]:
        found |= await _each(connection, _NEWEST_OF_EACH, missing)
    return [found.get((user_id, service)) for user_id, service, _ in all_of]


async def _in_use(connection: AsyncConnection, wanted: Wanted) -> Found | None:
    dialect, (user_id, service, moment) = connection.dialect.name, wanted
    row = await _IN_USE[dialect].first(connection, user_id=user_id, service=service, moment=moment)
    return row or await _NEWEST[dialect].first(connection, user_id=user_id, service=service)


async def _each(
    connection: AsyncConnection, query: Query[Found], asked: Sequence[tuple[UserId, str]], **more: object
) -> dict[tuple[UserId, str], Found]:
    """Return the rows of a query for several users and services."""
    user_ids, services = [user_id for user_id, _ in asked], [service for _, service in asked]
    rows = await query.all(connection, asked_user_ids=user_ids, asked_services=services, **more)
    return {(row.user_id, row.service): row for row in rows}


_FOUND = select(
    users.c.id.label("user_id"),
    users.c.disabled_at.label("user_disabled_at"),
    users.c.has_blocks.label("user_has_blocks"),
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
    api_keys.c.check_verdict,
    api_keys.c.checked_at,
    api_keys.c.checked_by,
    current_value(api_keys.c.id).label("current_value"),
    current_settings(api_keys.c.id).label("current_settings"),
).join_from(api_keys, users, api_keys.c.owner_id == users.c.id)
_BY_KEY = locking_account(_FOUND.where(api_keys.c.id == bindparam("key_id")), Found)

_ASKED = (
    func.unnest(bindparam("asked_user_ids", type_=ARRAY(BigInteger)), bindparam("asked_services", type_=ARRAY(Text)))
    .table_valued(column("user_id", BigInteger), column("service", Text), name="asked")
    .render_derived()
)

# A key of a user for a service is found by its id, which comes from one of these for the columns or parameters given.
_Operand = ColumnElement[int] | ColumnElement[str]
_CANDIDATES = api_keys.alias("candidates")
_IS_ACTIVE = and_(
    ~_CANDIDATES.c.disabled,
    ~_CANDIDATES.c.undecryptable,
    or_(_CANDIDATES.c.expires_at.is_(None), _CANDIDATES.c.expires_at > bindparam("moment", type_=UtcTime)),
)


def _newest_of(user_id: _Operand, service: _Operand) -> Select[tuple[int]]:
    theirs = select(_CANDIDATES.c.id).where(_CANDIDATES.c.owner_id == user_id, _CANDIDATES.c.service == service)
    return theirs.order_by(_CANDIDATES.c.id.desc()).limit(1).correlate(_ASKED)


def _id_of_newest(user_id: _Operand, service: _Operand) -> ColumnElement[int]:
    return _newest_of(user_id, service).scalar_subquery()


def _id_in_use(user_id: _Operand, service: _Operand) -> ColumnElement[int]:
    """Each has an index of its own, and the second one is read only if the first one finds nothing."""
    active = _newest_of(user_id, service).where(_IS_ACTIVE)
    return func.coalesce(active.where(_CANDIDATES.c.is_default).scalar_subquery(), active.scalar_subquery())


_USER_AND_SERVICE = (bindparam("user_id", type_=BigInteger), bindparam("service", type_=Text))
_IN_USE = locking_account(_FOUND.where(api_keys.c.id == _id_in_use(*_USER_AND_SERVICE)), Found)
_NEWEST = locking_account(_FOUND.where(api_keys.c.id == _id_of_newest(*_USER_AND_SERVICE)), Found)

# The same for several keys, on PostgreSQL.
_ARE_ASKED_FOR = api_keys.c.id == any_(bindparam("key_ids", type_=ARRAY(BigInteger)))
_OWNERS_OF = scalar(select(api_keys.c.owner_id).where(_ARE_ASKED_FOR), UserId)
_BY_KEYS = Query(
    _FOUND.where(_ARE_ASKED_FOR).order_by(users.c.id, api_keys.c.id).with_for_update(read=True, of=users), Found
)


def _of_each(id_of: Callable[[_Operand, _Operand], ColumnElement[int]]) -> Query[Found]:
    """Return a query for such a key of each user and service. Only a LATERAL finds each in the index."""
    asked = _FOUND.where(api_keys.c.id == id_of(_ASKED.c.user_id, _ASKED.c.service))
    each = asked.with_for_update(read=True, of=users).lateral("each")
    return Query(select(each).select_from(_ASKED).join(each, true()), Found)


_IN_USE_OF_EACH = _of_each(_id_in_use)
_NEWEST_OF_EACH = _of_each(_id_of_newest)
