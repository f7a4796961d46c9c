"""The audiences of JWTs, which say for whom a token is: for users, or for applications. No token may be for both.

With a token that is for both, anyone who is given it as the one could act as the other: the management plane, which
sees tokens of users, could get keys as an application. Each plane knows the audiences of both kinds from the database,
so it refuses such a token also where `KEYMAN_JWT_AUDIENCE` is not set for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import String, Text, any_, bindparam, exists, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.config.identity import is_audience
from keyman.identity.tables import application_audiences, user_audiences
from keyman.storage.arrays import as_list
from keyman.storage.statements import Command, scalar
from keyman.storage.transactions import Database, Unchecked


async def publish(db: Database, audience: str) -> None:
    """Store the audience of users, for the planes of applications. Raises DatabaseUnavailable.

    The management plane calls it before it verifies the first token of a user. No plane can remove an audience.
    """
    if await is_of_users(db, audience):
        return
    async with db.write(Unchecked.KEYMAN) as connection:
        await _STORE[connection.dialect.name].execute(connection, audience=audience)


async def is_of_users(db: Database, audience: str) -> bool:
    """Return True if a management plane has accepted tokens of users with this audience."""
    async with db.read() as connection:
        return await _OF_USERS.first(connection, audience=audience) is not None


async def any_of_applications(db: Database, audiences: Sequence[str]) -> bool:
    """Return True if an application that is not revoked logs in with tokens of one of the audiences."""
    async with db.read() as connection:
        found = await _OF_APPLICATIONS[connection.dialect.name].first(connection, **listed(connection, audiences))
    return found is not None


def listed(connection: AsyncConnection, audiences: Sequence[object]) -> dict[str, object]:
    """Return the parameter of `ANY_OF_USERS`. What cannot be an audience is left out."""
    wanted = [one for one in audiences if isinstance(one, str) and is_audience(one)]
    return {"audiences": as_list(wanted, connection.dialect.name)}


_GIVEN = func.json_each(bindparam("audiences", type_=String)).table_valued("value")
_IN_ARRAY = any_(bindparam("audiences", type_=ARRAY(Text)))

ANY_OF_USERS = {
    "sqlite": exists().where(_GIVEN.c.value.in_(select(user_audiences.c.audience))),
    "postgresql": exists().where(user_audiences.c.audience == _IN_ARRAY),
}
"""The condition that one of the given audiences is that of users, by dialect."""

_OF_USERS = scalar(select(user_audiences.c.audience).where(user_audiences.c.audience == bindparam("audience")), str)
_SOME_OF_APPLICATIONS = select(application_audiences.c.audience).limit(1)
_OF_APPLICATIONS = {
    "sqlite": scalar(_SOME_OF_APPLICATIONS.where(application_audiences.c.audience.in_(select(_GIVEN.c.value))), str),
    "postgresql": scalar(_SOME_OF_APPLICATIONS.where(application_audiences.c.audience == _IN_ARRAY), str),
}
_STORE = {
    "sqlite": Command(sqlite.insert(user_audiences).on_conflict_do_nothing()),
    "postgresql": Command(postgresql.insert(user_audiences).on_conflict_do_nothing()),
}
