"""Inserts new keys. Those of requests that wait at the same moment share statements: see `storage.group`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TypedDict
from uuid import UUID

import msgspec
from sqlalchemy import BigInteger, Column, Select, any_, bindparam, func, insert, literal_column, or_, select
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


class Insertion(NamedTuple):
    """A key that is to be inserted, and the most keys that its owner can have; 0 if there is no limit."""

    values: NewRow
    most: int = 0


class Inserted(NamedTuple):
    """A new key, and the oldest other key of its owner that has the same value, or UNSET."""

    shown: Shown
    duplicate_of: KeyId | msgspec.UnsetType


async def insert_all(connection: AsyncConnection, keys: Sequence[Insertion]) -> list[Inserted | RateLimited]:
    """Insert keys. One that its owner cannot have any more gets RateLimited. Each one counts for those after it.

    It locks the owners who have a limit, so that no other request counts their keys until the transaction ends.
    """
    if connection.dialect.name == "sqlite":
        return await _insert_each(connection, keys)
    most = max((key.most for key in keys), default=0)
    found = {row.value_uuid: row for row in await _insert_together(connection, keys, most)}
    new = defaultdict[object, list[KeyId]](list)  # the ids, by owner and value
    for values, _ in keys:
        if row := found.get(values["value_uuid"]):
            new[_value_of(values)].append(row.shown.id)
    return [
        _with_other(row, new[_value_of(values)]) if (row := found.get(values["value_uuid"])) else _too_many(most)
        for values, _ in keys
    ]


async def _insert_together(connection: AsyncConnection, keys: Sequence[Insertion], most: int) -> list[_Row]:
    """Insert keys on PostgreSQL, except those that an owner cannot have any more."""
    limited = sorted({values["owner_id"] for values, most in keys if most})
    if not limited:
        return await _INSERT_ALL.all(connection, **as_arrays(WRITTEN, [values for values, _ in keys]))
    await _LOCK_OWNERS.all(connection, owner_ids=limited)
    given = as_arrays(_PLACED.c.keys(), _placed(keys))
    return await _INSERT_FITTING.all(connection, owner_ids=limited, most=most, **given)


def _placed(keys: Sequence[Insertion]) -> list[Mapping[str, object]]:
    """Return the rows, each with the number of keys of its owner that come before it."""
    before = Counter[OwnerId]()
    placed = list[Mapping[str, object]]()
    for values, _ in keys:
        placed.append({**values, "place": before[values["owner_id"]]})
        before[values["owner_id"]] += 1
    return placed


async def _insert_each(connection: AsyncConnection, keys: Sequence[Insertion]) -> list[Inserted | RateLimited]:
    """Insert keys on SQLite, where only one transaction writes at a time."""
    numbers = dict[OwnerId, int]()
    outcomes = list[Shown | RateLimited]()
    for values, most in keys:
        owner_id = values["owner_id"]
        if most and owner_id not in numbers:
            numbers[owner_id] = await _COUNT.one(connection, owner_id=owner_id, most=most)
        if most and numbers[owner_id] >= most:
            outcomes.append(_too_many(most))
            continue
        outcomes.append(await _INSERT.one(connection, **values))
        numbers[owner_id] = numbers.get(owner_id, 0) + 1
    stored = [
        Stored(values["owner_id"], row.id, values["fingerprint"])
        for (values, _), row in zip(keys, outcomes, strict=True)
        if isinstance(row, Shown)
    ]
    others = iter(await duplicates.find(connection, stored))
    return [Inserted(row, next(others)) if isinstance(row, Shown) else row for row in outcomes]


def _too_many(most: int) -> RateLimited:
    return RateLimited(
        Sentence(
            "This account has as many API keys as it can have: {count}. Delete one that you no longer use.",
            count=most,
        ),
        retry_after=FULL_RETRY_AFTER,
    )


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


# For a transaction on SQLite.
_SOME = select(api_keys.c.id).where(api_keys.c.owner_id == bindparam("owner_id")).limit(bindparam("most")).subquery()
_COUNT = scalar(select(func.count()).select_from(_SOME), int)
_INSERT = Query(insert(api_keys).returning(*SHOWN), Shown)

# For PostgreSQL. The lock is weak enough that other rows that refer to the owner can still be inserted.
_ARE_OWNERS = owners.c.id == any_(bindparam("owner_ids", type_=ARRAY(BigInteger)))
_LOCK_OWNERS = scalar(
    select(owners.c.id).where(_ARE_OWNERS).order_by(owners.c.id).with_for_update(key_share=True), OwnerId
)
# How many keys each owner has, up to `most`. It is a statement after the lock, and so it sees what was stored before.
_MOST = bindparam("most", type_=BigInteger)
_SOME_OF_EACH = select(api_keys.c.id).where(api_keys.c.owner_id == owners.c.id).limit(_MOST).correlate(owners)
_NUMBERS = (
    select(owners.c.id, select(func.count()).select_from(_SOME_OF_EACH.subquery()).scalar_subquery().label("number"))
    .where(_ARE_OWNERS)
    .cte("numbers")
    .prefix_with("MATERIALIZED")  # once for each owner, and not for each key
)
_PLACED = given_rows([*(api_keys.c[name] for name in WRITTEN), Column("place", BigInteger)])
_FITTING = (
    select(*(_PLACED.c[name] for name in WRITTEN))
    .select_from(_PLACED.outerjoin(_NUMBERS, _NUMBERS.c.id == _PLACED.c.owner_id))
    .where(or_(_NUMBERS.c.id.is_(None), _NUMBERS.c.number + _PLACED.c.place < _MOST))
)


# The subquery sees the rows that were there before. With columns of the table, SQLAlchemy would add it to its FROM.
_OLDER = duplicates.oldest_other(
    literal_column("api_keys.owner_id", Id), literal_column("api_keys.id", Id), literal_column("api_keys.fingerprint")
)


def _insertion(found: Select[*tuple[object, ...]]) -> Query[_Row]:
    statement = insert(api_keys).from_select(WRITTEN, found)
    older = _OLDER.scalar_subquery().label("older")
    return Query(statement.returning(api_keys.c.value_uuid, older, *SHOWN), _row)


_INSERT_ALL = _insertion(select(given_rows([api_keys.c[name] for name in WRITTEN])))
_INSERT_FITTING = _insertion(_FITTING)
