"""Finds the other keys of an owner that have the same value, by their fingerprints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from sqlalchemy import BigInteger, LargeBinary, any_, bindparam, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.ids import KeyId, OwnerId
from keyman.keys.tables import api_keys
from keyman.storage.statements import Query


class Stored(NamedTuple):
    """A key whose value was stored. Without a fingerprint, it is compared with no other."""

    owner_id: OwnerId
    key_id: KeyId
    fingerprint: bytes | None


async def find(connection: AsyncConnection, stored: Sequence[Stored]) -> list[KeyId | msgspec.UnsetType]:
    """Return, for each key, the oldest other key of its owner that has the same value, or UNSET."""
    known = [one for one in stored if one.fingerprint is not None]
    found: dict[tuple[OwnerId, bytes | None], list[KeyId]] = {}
    for row in await _with_the_same(connection, known):
        found.setdefault((row.owner_id, row.fingerprint), []).append(row.id)
    return [_oldest_other(one, found) for one in stored]


def _oldest_other(one: Stored, found: dict[tuple[OwnerId, bytes | None], list[KeyId]]) -> KeyId | msgspec.UnsetType:
    if one.fingerprint is None:
        return msgspec.UNSET
    others = [key_id for key_id in found.get((one.owner_id, one.fingerprint), ()) if key_id != one.key_id]
    return min(others, default=msgspec.UNSET)


class _Row(NamedTuple):
    owner_id: OwnerId
    id: KeyId
    fingerprint: bytes | None


async def _with_the_same(connection: AsyncConnection, known: Sequence[Stored]) -> list[_Row]:
    if not known:
        return []
    if len(known) > 1 and connection.dialect.name == "postgresql":
        owner_ids = sorted({one.owner_id for one in known})
        fingerprints = [*{one.fingerprint for one in known}]
        return [*await _FIND_ALL.all(connection, owner_ids=owner_ids, fingerprints=fingerprints)]
    pairs = dict.fromkeys((one.owner_id, one.fingerprint) for one in known)
    rows = [await _FIND.all(connection, owner_id=owner, of_fingerprint=fingerprint) for owner, fingerprint in pairs]
    return [row for each in rows for row in each]


_COLUMNS = (api_keys.c.owner_id, api_keys.c.id, api_keys.c.fingerprint)

_FIND = Query(
    select(*_COLUMNS).where(
        api_keys.c.owner_id == bindparam("owner_id"), api_keys.c.fingerprint == bindparam("of_fingerprint")
    ),
    _Row,
)
# The same for several keys, on PostgreSQL.
_FIND_ALL = Query(
    select(*_COLUMNS).where(
        api_keys.c.owner_id == any_(bindparam("owner_ids", type_=ARRAY(BigInteger))),
        api_keys.c.fingerprint == any_(bindparam("fingerprints", type_=ARRAY(LargeBinary))),
    ),
    _Row,
)
