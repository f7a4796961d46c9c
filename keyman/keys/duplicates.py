"""Finds the other keys of an owner that have the same value, by their fingerprints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Select, bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.ids import KeyId, OwnerId
from keyman.keys.tables import api_keys
from keyman.storage.arrays import as_arrays, given_rows
from keyman.storage.statements import Query, optional


class Stored(NamedTuple):
    """A key whose value was stored. Without a fingerprint, it is compared with no other."""

    owner_id: OwnerId
    key_id: KeyId
    fingerprint: bytes | None


async def find(connection: AsyncConnection, stored: Sequence[Stored]) -> list[KeyId | msgspec.UnsetType]:
    """Return, for each key, the oldest other key of its owner that has the same value, or UNSET."""
    known = [one for one in stored if one.fingerprint is not None]
    if len(known) > 1 and connection.dialect.name == "postgresql":
        rows = [{"owner_id": one.owner_id, "id": one.key_id, "fingerprint": one.fingerprint} for one in known]
        found = {row.id: row.other for row in await _OLDEST_OF_ALL.all(connection, **as_arrays(_GIVEN.c.keys(), rows))}
    else:
        found = {one.key_id: await _oldest(connection, one) for one in known}
    return [found.get(one.key_id) or msgspec.UNSET for one in stored]


async def _oldest(connection: AsyncConnection, one: Stored) -> KeyId | None:
    return await _OLDEST.one(connection, of_owner_id=one.owner_id, of_id=one.key_id, of_fingerprint=one.fingerprint)


class _Found(NamedTuple):
    id: KeyId
    other: KeyId | None


def oldest_other(
    owner_id: ColumnElement[int], key_id: ColumnElement[int], fingerprint: ColumnElement[bytes]
) -> Select[tuple[int]]:
    """Select the oldest key with this value but `key_id`. PostgreSQL reads one row of the index for it."""
    return select(func.min(_OTHERS.c.id)).where(
        _OTHERS.c.owner_id == owner_id, _OTHERS.c.fingerprint == fingerprint, _OTHERS.c.id != key_id
    )


_OTHERS = api_keys.alias("others")


_OLDEST = optional(oldest_other(bindparam("of_owner_id"), bindparam("of_id"), bindparam("of_fingerprint")), KeyId)
# The same for several keys, on PostgreSQL.
_GIVEN = given_rows([api_keys.c.owner_id, api_keys.c.id, api_keys.c.fingerprint])
_OLDEST_OF_ALL = Query(
    select(
        _GIVEN.c.id,
        oldest_other(_GIVEN.c.owner_id, _GIVEN.c.id, _GIVEN.c.fingerprint).scalar_subquery().label("other"),
    ),
    _Found,
)
