"""Inserts new keys. Those of requests that wait at the same moment share statements: see `storage.group`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, TypedDict
from uuid import UUID

import msgspec
from sqlalchemy import BigInteger, any_, bindparam, func, insert, literal_column, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Entry
from keyman.errors import RateLimited, Sentence
from keyman.identity.principals import Principal
from keyman.identity.tables import owners
from keyman.ids import KeyId, OwnerId, UserId
from keyman.keys import duplicates
from keyman.keys.duplicates import Stored
from keyman.keys.rows import SHOWN, Shown, folded
from keyman.keys.schemas import KeyInfo, NewKey
from keyman.keys.sealing import SealedValue
from keyman.keys.settings import settings_hash, to_text
from keyman.keys.tables import api_keys
from keyman.storage.arrays import as_arrays, given_rows
from keyman.storage.statements import Query, scalar
from keyman.storage.types import Id

FULL_RETRY_AFTER = 3600
"""Seconds, for an owner who has as many keys as they can have. Waiting does not help, but a client that waits does not
ask again and again.
"""


class NewRow(TypedDict):
    """The columns of a new key."""

    user_id: UserId
    owner_id: OwnerId
    service: str
    name: str | None
    name_folded: str | None
    encrypted_key: str
    key_version: int
    value_uuid: UUID
    last_4_chars: str
    disabled: bool
    undecryptable: bool
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    settings: str
    fingerprint: bytes | None


WRITTEN = tuple(NewRow.__annotations__)
"""The names of these columns."""


def columns_of(caller: Principal, new: NewKey, sealed: SealedValue, moment: datetime) -> NewRow:
    """Return the columns of a key that is stored at this moment."""
    return NewRow(
        user_id=caller.user_id,
        owner_id=caller.owner_id,
        service=str(new.service),
        name=new.name,
        name_folded=None if new.name is None else folded(new.name),
        encrypted_key=sealed.stored.encrypted_key,
        key_version=sealed.stored.key_version,
        value_uuid=sealed.stored.value_uuid,
        last_4_chars=sealed.stored.last_4_chars,
        disabled=False,
        undecryptable=False,
        created_at=moment,
        updated_at=moment,
        expires_at=new.expires_at,
        settings=to_text(new.settings),
        fingerprint=sealed.stored.fingerprint,
    )


def entry_of(caller: Principal, new: NewKey, sealed: SealedValue, key: KeyInfo) -> Entry:
    """Return the audit entry of a key that was inserted."""
    return Entry(
        Action.KEY_CREATE,
        caller.origin,
        caller.user_id,
        key_id=key.id,
        service=key.service,
        application=caller.sent_by,
        value_uuid=sealed.stored.value_uuid,
        vault_request_id=sealed.vault_request_id,
        settings_hash=settings_hash(to_text(new.settings)),
    )


class Limit(NamedTuple):
    """An owner for whom a key is to be inserted, and how many they can have."""

    owner_id: OwnerId
    most: int


async def check_numbers(connection: AsyncConnection, limits: Sequence[Limit]) -> list[RateLimited | None]:
    """Return RateLimited for each new key whose owner would have too many. Each one counts for those after it.

    It locks the owners, so that no other request counts meanwhile.
    """
    numbers = await _count(connection, sorted({limit.owner_id for limit in limits}), max(most for _, most in limits))
    refusals = list[RateLimited | None]()
    for owner_id, most in limits:
        is_full = numbers[owner_id] >= most
        refusals.append(_too_many(most) if is_full else None)
        numbers[owner_id] += not is_full
    return refusals


def _too_many(most: int) -> RateLimited:
    return RateLimited(
        Sentence(
            "This account has as many API keys as it can have: {count}. Delete one that you no longer use.",
            count=most,
        ),
        retry_after=FULL_RETRY_AFTER,
    )


async def _count(connection: AsyncConnection, owner_ids: Sequence[OwnerId], most: int) -> dict[OwnerId, int]:
    """Lock owners, in the order in which they are given, and return how many keys each has, up to `most`."""
    if len(owner_ids) > 1 and connection.dialect.name == "postgresql":
        await _LOCK_OWNERS.all(connection, owner_ids=owner_ids)
        return {row.owner_id: row.number for row in await _COUNT_EACH.all(connection, owner_ids=owner_ids, most=most)}
    numbers = {}
    for owner_id in owner_ids:
        await _LOCK_OWNER.first(connection, owner_id=owner_id)
        numbers[owner_id] = await _COUNT.one(connection, owner_id=owner_id, most=most)
    return numbers


class Inserted(NamedTuple):
    """A new key, and the oldest other key of its owner that has the same value, or UNSET."""

    shown: Shown
    duplicate_of: KeyId | msgspec.UnsetType


async def insert_all(connection: AsyncConnection, keys: Sequence[NewRow]) -> list[Inserted]:
    """Insert keys."""
    if connection.dialect.name == "sqlite":
        rows = [await _INSERT.one(connection, **values) for values in keys]
        stored = [Stored(one["owner_id"], row.id, one["fingerprint"]) for one, row in zip(keys, rows, strict=True)]
        others = await duplicates.find(connection, stored)
        return [Inserted(row, other) for row, other in zip(rows, others, strict=True)]
    found = {row.value_uuid: row for row in await _INSERT_ALL.all(connection, **as_arrays(WRITTEN, keys))}
    ids = defaultdict[object, list[KeyId]](list)  # of the new keys, by owner and value
    for one in keys:
        ids[_value_of(one)].append(found[one["value_uuid"]].shown.id)
    return [_with_other(found[one["value_uuid"]], ids[_value_of(one)]) for one in keys]


def _value_of(key: NewRow) -> object:
    """Return what only the keys of one owner with the same value have in common."""
    return (key["owner_id"], key["fingerprint"] or key["value_uuid"])


def _with_other(row: _Row, new: Sequence[KeyId]) -> Inserted:
    """Return a key with its oldest duplicate. `new` are the ids of the keys with its value that came with it."""
    others = [row.older] if row.older is not None else [key_id for key_id in new if key_id != row.shown.id]
    return Inserted(row.shown, min(others, default=msgspec.UNSET))


class _Row(NamedTuple):
    """A row that was inserted. `older` is the oldest key with the same value that was there before."""

    value_uuid: UUID
    older: KeyId | None
    shown: Shown


def _row(value_uuid: UUID, older: KeyId | None, *shown: object) -> _Row:
    return _Row(value_uuid, older, Shown._make(shown))


class _Number(NamedTuple):
    owner_id: OwnerId
    number: int


# The lock is weak enough that rows that refer to the owner can be inserted meanwhile.
_LOCK_OWNER = scalar(
    select(owners.c.id).where(owners.c.id == bindparam("owner_id")).with_for_update(key_share=True), OwnerId
)
_SOME = select(api_keys.c.id).where(api_keys.c.owner_id == bindparam("owner_id")).limit(bindparam("most")).subquery()
_COUNT = scalar(select(func.count()).select_from(_SOME), int)
_INSERT = Query(insert(api_keys).returning(*SHOWN), Shown)

# The same for several keys, on PostgreSQL.
_ARE_OWNERS = owners.c.id == any_(bindparam("owner_ids", type_=ARRAY(BigInteger)))
_LOCK_OWNERS = scalar(
    select(owners.c.id).where(_ARE_OWNERS).order_by(owners.c.id).with_for_update(key_share=True), OwnerId
)
_SOME_OF_EACH = (
    select(api_keys.c.id).where(api_keys.c.owner_id == owners.c.id).limit(bindparam("most")).correlate(owners)
)
_NUMBER_OF_EACH = select(func.count()).select_from(_SOME_OF_EACH.subquery()).scalar_subquery()
_COUNT_EACH = Query(select(owners.c.id.label("owner_id"), _NUMBER_OF_EACH.label("number")).where(_ARE_OWNERS), _Number)


# The subquery sees the rows that were there before. With columns of the table, SQLAlchemy would add it to its FROM.
_OLDER = duplicates.oldest_other(
    literal_column("api_keys.owner_id", Id), literal_column("api_keys.id", Id), literal_column("api_keys.fingerprint")
)
_INSERT_ALL = Query(
    insert(api_keys)
    .from_select(WRITTEN, select(given_rows([api_keys.c[name] for name in WRITTEN])))
    .returning(api_keys.c.value_uuid, _OLDER.scalar_subquery().label("older"), *SHOWN),
    _row,
)
