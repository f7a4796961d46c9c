"""Says which accounts are not disabled, for the requests of a process that are under way."""

from __future__ import annotations

from collections.abc import Set

from sqlalchemy import select

from keyman.identity.standing import listed_in_array, listed_in_json
from keyman.identity.tables import users
from keyman.ids import UserId
from keyman.storage.arrays import as_list
from keyman.storage.statements import scalar
from keyman.storage.transactions import Database


async def find_active(db: Database, user_ids: Set[UserId]) -> frozenset[UserId]:
    """Return those of these accounts that are neither disabled nor deleted, by one query."""
    ids = sorted(user_ids)
    async with db.read() as connection:
        dialect = connection.dialect.name
        found = await _ACTIVE[dialect].all(connection, ids=as_list(ids, dialect))
    return frozenset(found)


_NOT_DISABLED = select(users.c.id).where(users.c.disabled_at.is_(None))
_ACTIVE = {
    "sqlite": scalar(_NOT_DISABLED.where(listed_in_json()(users.c.id)), UserId),
    "postgresql": scalar(_NOT_DISABLED.where(listed_in_array(users.c.id)), UserId),
}
