"""Applications get users' keys for the services that an operator registers them for. What operators do with them.

An application has one token, or two during a rotation: `rotate` creates a new one and lets the others expire. Or it has
none, and logs in with a JWT. application_tokens.py and workloads.py verify these.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec
from sqlalchemy import bindparam, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import OPERATOR, Action, Entry
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import Conflict, NotFound
from keyman.identity.issuers import Issuer
from keyman.identity.return_urls import ReturnUrl
from keyman.identity.standing import lock_application
from keyman.identity.tables import application_tokens, applications
from keyman.identity.tokens import Token
from keyman.ids import ApplicationId, ApplicationTokenId
from keyman.storage.statements import Command, Query, scalar
from keyman.storage.transactions import Database, Unchecked
from keyman.storage.types import UtcTime
from keyman.values import ApplicationName, Subject

_NO_SERVICES = " "
"""What the column has for an application that is for live checks: it may not be empty."""

RESERVED_NAMES = frozenset({"keyman", "use"})
"""Names that no application can have. A verdict on a key says by whom it is, and these two are keyman itself and the
gateway (keys/checks.py).
"""


class Registered(NamedTuple):
    """The new token of an application, and its services. keyman cannot show the token again."""

    token: Token
    services: tuple[str, ...]


class ApplicationInfo(msgspec.Struct):
    """An application in an operator's list. `last_used_at` is the last use of any of its tokens."""

    id: int
    name: str
    services: list[str]
    tokens: list[str]
    created_at: datetime
    last_used_at: datetime | None
    disabled_at: datetime | None
    portal: bool
    issuers: list[str]
    return_urls: list[str]
    checks: bool
    jwt_issuer: str | None
    jwt_subject: str | None
    jwt_audience: str | None


class Workload(NamedTuple):
    """The JWT with which an application logs in. Its keys come from `jwks_url` or are `jwks`, or are discovered."""

    issuer: str
    subject: Subject
    audience: str
    jwks_url: str | None = None
    jwks: str | None = None


class Users(NamedTuple):
    """Whose users an application serves. Without issuers it is not bound to any.

    With return URLs it may ask for portal links. The first of each is the default.
    """

    issuers: tuple[Issuer, ...] = ()
    return_urls: tuple[ReturnUrl, ...] = ()


ALL_USERS = Users()


class _Application(NamedTuple):
    id: ApplicationId
    name: str
    services: str
    created_at: datetime
    disabled_at: datetime | None
    portal: bool
    issuers: str | None
    return_urls: str | None
    checks: bool
    jwt_issuer: str | None
    jwt_subject: str | None
    jwt_audience: str | None


class _Token(NamedTuple):
    id: ApplicationTokenId
    application_id: ApplicationId
    hint: str
    expires_at: datetime | None
    last_used_at: datetime | None


_APPLICATION = select(
    applications.c.id,
    applications.c.name,
    applications.c.services,
    applications.c.created_at,
    applications.c.disabled_at,
    applications.c.portal,
    applications.c.issuers,
    applications.c.return_urls,
    applications.c.checks,
    applications.c.jwt_issuer,
    applications.c.jwt_subject,
    applications.c.jwt_audience,
)
_EVERY = Query(_APPLICATION.order_by(applications.c.name), _Application)
_EVERY_TOKEN = Query(
    select(
        application_tokens.c.id,
        application_tokens.c.application_id,
        application_tokens.c.hint,
        application_tokens.c.expires_at,
        application_tokens.c.last_used_at,
    ).order_by(application_tokens.c.id),
    _Token,
)
# Locks the row until the transaction ends. Otherwise two rotations at the same time could expire each other's tokens.
_LOCK_BY_NAME = Query(_APPLICATION.where(applications.c.name == bindparam("name")).with_for_update(), _Application)
_ID_BY_NAME = scalar(select(applications.c.id).where(applications.c.name == bindparam("name")), ApplicationId)
_INSERT = scalar(insert(applications).returning(applications.c.id), ApplicationId)
_INSERT_TOKEN = scalar(insert(application_tokens).returning(application_tokens.c.id), ApplicationTokenId)
_END_TOKENS = Command(
    update(application_tokens)
    .where(
        application_tokens.c.application_id == bindparam("of_id"),
        or_(
            application_tokens.c.expires_at.is_(None),
            application_tokens.c.expires_at > bindparam("until", type_=UtcTime),
        ),
    )
    .values(expires_at=bindparam("until", type_=UtcTime))
)
_DISABLE = Command(
    update(applications)
    .where(applications.c.id == bindparam("of_id"))
    .values(disabled_at=func.coalesce(applications.c.disabled_at, bindparam("moment", type_=UtcTime)))
)


async def create(db: Database, name: ApplicationName, services: Sequence[str], users: Users = ALL_USERS) -> Registered:
    """Register an application for these services and users, with its first token. One without services is for live
    checks.

    Raises Conflict if the name is reserved, is in use or was used before, and NotFound if an issuer is no application.
    """
    try:
        async with db.write(Unchecked.OPERATOR) as connection:
            application_id = await _insert(connection, name, services, users)
            token = await _add_token(connection, application_id, name, Action.APPLICATION_CREATE)
    except IntegrityError:
        raise Conflict(
            "An application with this name already exists, or existed before. Choose another name. "
            "For a new token: keyman app rotate NAME"
        ) from None
    return Registered(token, tuple(dict.fromkeys(services)))


async def create_workload(
    db: Database, name: ApplicationName, services: Sequence[str], users: Users, workload: Workload
) -> None:
    """Register an application that logs in with a JWT and has no token. See `create`.

    Raises Conflict also if another application has the same issuer, subject and audience.
    """
    try:
        async with db.write(Unchecked.OPERATOR) as connection:
            await _insert(connection, name, services, users, workload)
            await record(connection, Entry(Action.APPLICATION_CREATE, OPERATOR, application=str(name)))
    except IntegrityError:
        raise Conflict(
            "An application with this name, or with this issuer, subject and audience of a JWT, already exists, or "
            "existed before. Choose others."
        ) from None


async def _insert(
    connection: AsyncConnection,
    name: ApplicationName,
    services: Sequence[str],
    users: Users,
    workload: Workload | None = None,
) -> ApplicationId:
    if name in RESERVED_NAMES:
        raise Conflict(f"The names {' and '.join(sorted(RESERVED_NAMES))} are reserved. Choose another name.")
    issuers = tuple(dict.fromkeys(users.issuers)) or ((Issuer.of(name),) if users.return_urls else ())
    await _require_applications(connection, issuers, name)
    return await _INSERT.one(
        connection,
        name=str(name),
        services=" ".join(dict.fromkeys(services)) or _NO_SERVICES,
        checks=not services,
        created_at=now(),
        portal=bool(users.return_urls),
        issuers=" ".join(issuers) or None,
        return_urls=" ".join(dict.fromkeys(users.return_urls)) or None,
        jwt_issuer=workload and workload.issuer,
        jwt_subject=workload and str(workload.subject),
        jwt_audience=workload and workload.audience,
        jwt_jwks_url=workload and workload.jwks_url,
        jwt_jwks=workload and workload.jwks,
    )


async def rotate(db: Database, name: ApplicationName, overlap: timedelta) -> Registered:
    """Create a new token. The existing ones expire after `overlap` at the latest.

    Raises NotFound, and Conflict for a revoked application.
    """
    async with db.write(Unchecked.OPERATOR) as connection:
        row = await _lock(connection, name)
        if row.disabled_at is not None:
            raise Conflict("This application was revoked. Register another one with a new name.")
        if row.jwt_issuer is not None:
            raise Conflict("This application logs in with a JWT, so it has no token.")
        await _END_TOKENS.execute(connection, of_id=row.id, until=now() + overlap)
        token = await _add_token(connection, row.id, name, Action.APPLICATION_ROTATE)
    return Registered(token, tuple(row.services.split()))


async def revoke(db: Database, name: ApplicationName) -> None:
    """Revoke an application and all its tokens, at once and permanently. Raises NotFound."""
    async with db.write(Unchecked.OPERATOR) as connection:
        row = await _lock(connection, name)
        await _DISABLE.execute(connection, of_id=row.id, moment=now())
        await record(connection, Entry(Action.APPLICATION_REVOKE, OPERATOR, application=row.name))


async def list_all(db: Database) -> list[ApplicationInfo]:
    """Return every application, ordered by name, with the hints of its valid tokens."""
    moment = now()
    async with db.read() as connection:
        listed = await _EVERY.all(connection)
        tokens = await _EVERY_TOKEN.all(connection)
    return [_to_info(row, [token for token in tokens if token.application_id == row.id], moment) for row in listed]


def _to_info(row: _Application, tokens: Sequence[_Token], moment: datetime) -> ApplicationInfo:
    usable = [token.hint for token in tokens if token.expires_at is None or token.expires_at > moment]
    return ApplicationInfo(
        id=row.id,
        name=row.name,
        services=row.services.split(),
        tokens=usable if row.disabled_at is None else [],
        created_at=row.created_at,
        last_used_at=max((token.last_used_at for token in tokens if token.last_used_at is not None), default=None),
        disabled_at=row.disabled_at,
        portal=row.portal,
        issuers=(row.issuers or "").split(),
        return_urls=(row.return_urls or "").split(),
        checks=row.checks,
        jwt_issuer=row.jwt_issuer,
        jwt_subject=row.jwt_subject,
        jwt_audience=row.jwt_audience,
    )


async def _require_applications(connection: AsyncConnection, issuers: Sequence[Issuer], own: ApplicationName) -> None:
    """Raise NotFound if one of the issuers is named after an application that does not exist."""
    for name in {issuer.application for issuer in issuers} - {None, own}:
        if await _ID_BY_NAME.first(connection, name=name) is None:
            raise NotFound("An issuer begins with keyman:app: and names no application. Register that one first.")


async def _lock(connection: AsyncConnection, name: ApplicationName) -> _Application:
    """Return the application, locked until the transaction ends. Raises NotFound."""
    application_id = await _ID_BY_NAME.first(connection, name=str(name))
    if application_id is None:
        raise NotFound("There is no application with this name. See all with: keyman app list")
    await lock_application(connection, application_id)
    return await _LOCK_BY_NAME.one(connection, name=str(name))


async def _add_token(
    connection: AsyncConnection, application_id: ApplicationId, name: ApplicationName, action: Action
) -> Token:
    token = Token.generate()
    token_id = await _INSERT_TOKEN.one(
        connection,
        application_id=application_id,
        token_hash=token.digest(),
        hint=token.hint(),
        created_at=now(),
    )
    await record(connection, Entry(action, OPERATOR, token_id=token_id, application=str(name)))
    return token
