"""Inserts new keys. Those of requests that wait at the same moment share statements: see `storage.group`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, any_, bindparam, func, insert, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Entry
from keyman.errors import RateLimited, Sentence
from keyman.identity.principals import Principal
from keyman.identity.tables import owners
from keyman.ids import OwnerId
from keyman.keys.rows import SHOWN, Shown, label_columns
from keyman.keys.schemas import KeyInfo, NewKey
from keyman.keys.sealing import SealedValue
from keyman.keys.settings import settings_hash, to_text
from keyman.keys.tables import api_keys
from keyman.storage.arrays import as_arrays, given_rows
from keyman.storage.statements import Query, scalar

FULL_RETRY_AFTER = 3600
"""Seconds, for an owner who has as many keys as they can have. Waiting does not help, but a client that waits does not
ask again and again.
"""

WRITTEN = (
    "user_id",
    "owner_id",
    "service",
    "name",
    "name_folded",
    "encrypted_key",
    "key_version",
    "value_uuid",
    "last_4_chars",
    "disabled",
    "undecryptable",
    "created_at",
    "updated_at",
    "expires_at",
    "settings",
    "fingerprint",
)
"""The columns of a new key."""


def columns_of(caller: Principal, new: NewKey, sealed: SealedValue, moment: datetime) -> dict[str, object]:
    """Return the columns WRITTEN of a key that is stored at this moment."""
    return {
        "user_id": caller.user_id,
        "owner_id": caller.owner_id,
        "service": str(new.service),
        **label_columns(new.name),
        **sealed.stored._asdict(),
        "disabled": False,
        "undecryptable": False,
        "created_at": moment,
        "updated_at": moment,
        "expires_at": new.expires_at,
        "settings": to_text(new.settings),
    }


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


async def insert_all(connection: AsyncConnection, keys: Sequence[Mapping[str, object]]) -> list[Shown]:
    """Insert keys, given by the columns WRITTEN, and return their rows."""
    if len(keys) == 1 or connection.dialect.name == "sqlite":
        return [await _INSERT.one(connection, **values) for values in keys]
    rows: dict[object, Shown] = {}
    for row in await _INSERT_ALL.all(connection, **as_arrays(WRITTEN, keys)):
        rows[row.value_uuid] = row.shown  # PostgreSQL does not promise to keep the order
    return [rows[values["value_uuid"]] for values in keys]


class _Inserted(NamedTuple):
    value_uuid: UUID
    shown: Shown


def _inserted(value_uuid: UUID, *shown: object) -> _Inserted:
    return _Inserted(value_uuid, Shown._make(shown))


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


_INSERT_ALL = Query(
    insert(api_keys)
    .from_select(WRITTEN, select(given_rows([api_keys.c[name] for name in WRITTEN])))
    .returning(api_keys.c.value_uuid, *SHOWN),
    _inserted,
)
