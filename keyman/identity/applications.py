"""Applications: what gets keys back from the resolver, for the services that an operator has registered it for.

An application has one token, and while it is being exchanged two: `rotate` makes a new one and lets the others end.
Nothing is cached, so a revoked application is refused with its next request, on every replica.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec
from sqlalchemy import and_, bindparam, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import OPERATOR, Action, Actor, Entry, Origin
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import Conflict, NotFound, Unauthenticated
from keyman.identity.principals import LAST_USE_PRECISION, note_use
from keyman.identity.tables import application_tokens, applications
from keyman.identity.tokens import Token
from keyman.storage.transactions import Database
from keyman.storage.types import AnyRow, UtcTime
from keyman.values import ApplicationName


@dataclass(frozen=True)
class Application:
    """An authenticated application."""

    id: int
    name: str
    services: frozenset[str]
    origin: Origin


class Registered(NamedTuple):
    """A token at its making: the one time that it is known."""

    token: Token
    services: tuple[str, ...]


class ApplicationInfo(msgspec.Struct):
    """An application as an operator's list shows it; the last use is that of any token it has."""

    id: int
    name: str
    services: list[str]
    tokens: list[str]
    created_at: datetime
    last_used_at: datetime | None
    disabled_at: datetime | None


async def by_token(db: Database, text: str, request_id: str, address: str | None) -> Application:
    """The application that a token was made for. Raises Unauthenticated, also for a personal access token."""
    token = Token.parse(text)
    moment = now()
    async with db.read() as connection:
        row = (await connection.execute(_BY_TOKEN, {"digest": token.digest(), "moment": moment})).one_or_none()
    if row is None:
        raise Unauthenticated("This is not an application token, or it has expired or been revoked.")
    if row.last_used_at is None or moment - row.last_used_at >= LAST_USE_PRECISION:
        await note_use(db, application_tokens, "last_used_at", row.token_id, moment)
    origin = Origin(Actor.APPLICATION, row.token_id, request_id, address)
    return Application(row.id, row.name, frozenset(row.services.split()), origin)


# Made once: each request executes it.
_BY_TOKEN = (
    select(
        applications.c.id,
        applications.c.name,
        applications.c.services,
        application_tokens.c.id.label("token_id"),
        application_tokens.c.last_used_at,
    )
    .join_from(application_tokens, applications)
    .where(
        application_tokens.c.token_hash == bindparam("digest"),
        or_(
            application_tokens.c.expires_at.is_(None),
            application_tokens.c.expires_at > bindparam("moment", type_=UtcTime),
        ),
        applications.c.disabled_at.is_(None),
    )
)


async def create(db: Database, name: ApplicationName, services: Sequence[str]) -> Registered:
    """Register an application for these services and make its first token. Raises Conflict for a name that is taken."""
    wanted = tuple(dict.fromkeys(services))
    values = {"name": str(name), "services": " ".join(wanted), "created_at": now()}
    try:
        async with db.write() as connection:
            statement = insert(applications).values(values).returning(applications.c.id)
            application_id = (await connection.execute(statement)).scalar_one()
            token = await _add_token(connection, application_id, name, Action.APPLICATION_CREATE)
    except IntegrityError:
        raise Conflict("There is an application with this name already, or there was one.") from None
    return Registered(token, wanted)


async def rotate(db: Database, name: ApplicationName, overlap: timedelta) -> Registered:
    """Make a new token; those that there are end after `overlap`, at the latest.

    Raises NotFound, and Conflict for an application that was revoked.
    """
    ends = application_tokens.c.expires_at
    async with db.write() as connection:
        row = await _by_name(connection, name)
        if row.disabled_at is not None:
            raise Conflict("This application was revoked. Register another one, under a name of its own.")
        until = now() + overlap
        longer = and_(application_tokens.c.application_id == row.id, or_(ends.is_(None), ends > until))
        await connection.execute(update(application_tokens).where(longer).values(expires_at=until))
        token = await _add_token(connection, row.id, name, Action.APPLICATION_ROTATE)
    return Registered(token, tuple(row.services.split()))


async def revoke(db: Database, name: ApplicationName) -> None:
    """Shut an application out at once, with all its tokens, for good. Raises NotFound."""
    async with db.write() as connection:
        row = await _by_name(connection, name)
        await connection.execute(
            update(applications)
            .where(applications.c.id == row.id)
            .values(disabled_at=func.coalesce(applications.c.disabled_at, now()))
        )
        await record(connection, Entry(Action.APPLICATION_REVOKE, OPERATOR, application=row.name))


async def list_all(db: Database) -> list[ApplicationInfo]:
    """Every application, by name, with the hints of the tokens that it can use."""
    moment = now()
    async with db.read() as connection:
        listed = (await connection.execute(select(applications).order_by(applications.c.name))).all()
        tokens = (await connection.execute(select(application_tokens).order_by(application_tokens.c.id))).all()
    return [_shown(row, [token for token in tokens if token.application_id == row.id], moment) for row in listed]


def _shown(row: AnyRow, tokens: Sequence[AnyRow], moment: datetime) -> ApplicationInfo:
    usable = [token.hint for token in tokens if token.expires_at is None or token.expires_at > moment]
    return ApplicationInfo(
        id=row.id,
        name=row.name,
        services=row.services.split(),
        tokens=usable if row.disabled_at is None else [],
        created_at=row.created_at,
        last_used_at=max((token.last_used_at for token in tokens if token.last_used_at is not None), default=None),
        disabled_at=row.disabled_at,
    )


async def _by_name(connection: AsyncConnection, name: ApplicationName) -> AnyRow:
    """The row, held until the transaction ends: two rotations at once end each other's tokens otherwise."""
    statement = select(applications).where(applications.c.name == str(name)).with_for_update()
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise NotFound("There is no application with this name.")
    return row


async def _add_token(connection: AsyncConnection, application_id: int, name: ApplicationName, action: Action) -> Token:
    token = Token.generate()
    values = {
        "application_id": application_id,
        "token_hash": token.digest(),
        "hint": token.hint(),
        "created_at": now(),
    }
    statement = insert(application_tokens).values(values).returning(application_tokens.c.id)
    token_id = (await connection.execute(statement)).scalar_one()
    await record(connection, Entry(action, OPERATOR, token_id=token_id, application=str(name)))
    return token
