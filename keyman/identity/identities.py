"""Identities: a pair of an issuer and a subject, by which somebody outside keyman names a user.

They are compared byte for byte, so subjects that differ only in case are different users. A user has any number of
identities. Two tables hold them, because two planes store them: see tables.py. Where both have the same pair, the one
of the applications counts, because the management plane cannot write it. An issuer that begins with `keyman:app:` is an
application of keyman's, and only that table can have it.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from sqlalchemy import Select, Table, bindparam, exists, func, insert, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.clock import now
from keyman.identity.tables import application_identities, identities, owners, users
from keyman.ids import OwnerId, UserId
from keyman.storage.statements import Command, Query, scalar
from keyman.values import Subject

APPLICATION_ISSUER = "keyman:app:"
"""The beginning of the issuer of each application's own users. The name of the application follows it."""

OWNER_KIND = "user"
"""The value of `owners.kind` for a user."""


class Identity(NamedTuple):
    """The issuer, and its name for one of its users."""

    issuer: str
    subject: Subject


def issuer_detail(issuer: str) -> str:
    """Return the `detail` of an audit entry: its column has 200 characters, and an issuer has up to 500."""
    return f"issuer {issuer}"[:200]


class Known(NamedTuple):
    """The user of an identity. `is_new` is True if it was created in this transaction."""

    user_id: UserId
    is_new: bool


async def find(connection: AsyncConnection, identity: Identity) -> UserId | None:
    """Return the user of this identity, disabled or not, or None."""
    rows = await _BY_PAIR.all(connection, issuer=identity.issuer, subject=str(identity.subject))
    return rows[0].user_id if rows else None


async def issuers_of(connection: AsyncConnection, user_id: UserId) -> frozenset[str]:
    """Return the issuers of the identities of a user, without those that an application gave to another user."""
    return frozenset(await _ISSUERS_OF.all(connection, of_user=user_id))


async def find_or_create(connection: AsyncConnection, identity: Identity, table: Table) -> Known:
    """Return the user of this identity. If there is none, create one, and add the identity to `table`.

    A hundred first calls for one identity at a time create one user: on PostgreSQL they wait for each other until the
    transaction ends, also if they come to different planes. On SQLite, a transaction that writes has no other beside
    it. The caller records the creation.
    """
    found = await find(connection, identity)
    if found is None and connection.dialect.name != "sqlite":
        await _WAIT.one(connection, number=_lock_number(identity))
        found = await find(connection, identity)
    if found is not None:
        return Known(found, is_new=False)
    user_id = await new_user_id(connection)
    await _INSERT_USER.execute(connection, id=user_id, created_at=now())
    await add(connection, identity, user_id, table)
    return Known(user_id, is_new=True)


async def add(connection: AsyncConnection, identity: Identity, user_id: UserId, table: Table) -> None:
    """Link an identity to a user. An IntegrityError of SQLAlchemy means that a user has it already."""
    await _INSERT[table.name].execute(
        connection, user_id=user_id, issuer=identity.issuer, subject=str(identity.subject), created_at=now()
    )


async def new_user_id(connection: AsyncConnection) -> UserId:
    """Return the number of a new owner, for a row of `users`."""
    return UserId(await _INSERT_OWNER.one(connection))


class _Found(NamedTuple):
    user_id: UserId
    rank: int


def _of_pair(table: Table, rank: int) -> Select[int, int]:
    return select(table.c.user_id, literal(rank).label("rank")).where(
        table.c.issuer == bindparam("issuer"), table.c.subject == bindparam("subject")
    )


_BY_PAIR = Query(union_all(_of_pair(application_identities, 0), _of_pair(identities, 1)).order_by("rank"), _Found)
_ISSUERS_OF = scalar(
    union_all(
        select(application_identities.c.issuer).where(application_identities.c.user_id == bindparam("of_user")),
        select(identities.c.issuer).where(
            identities.c.user_id == bindparam("of_user"),
            ~exists().where(
                application_identities.c.issuer == identities.c.issuer,
                application_identities.c.subject == identities.c.subject,
                application_identities.c.user_id != identities.c.user_id,
            ),
        ),
    ),
    str,
)
_INSERT_OWNER = scalar(insert(owners).values(kind=OWNER_KIND).returning(owners.c.id), OwnerId)
_INSERT_USER = Command(insert(users))
_INSERT = {table.name: Command(insert(table)) for table in (identities, application_identities)}
_WAIT = scalar(select(func.pg_advisory_xact_lock(bindparam("number")).is_(None)), bool)


def _lock_number(identity: Identity) -> int:
    """Return the number of PostgreSQL's lock for this identity: the first 63 bits of its hash."""
    digest = hashlib.sha256(f"{len(identity.issuer)}:{identity.issuer}{identity.subject}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
