"""Sessions: a sign-in opens one, a cookie proves it, and its user can list and end it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec
import ua_parser
from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Actor, Entry, Origin
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import NotFound, Unauthenticated
from keyman.identity.lookups import Lookup
from keyman.identity.principals import FOUND_USER, Credentials, FoundUser, Portal, Principal
from keyman.identity.standing import Grounds, HolderLock, Standing
from keyman.identity.tables import applications, identities, sessions, users
from keyman.identity.tokens import ALL_SCOPES, Scope
from keyman.ids import MAX_ID, ApplicationId, SessionId, UserId
from keyman.secret import Secret
from keyman.storage import last_use
from keyman.storage.statements import Command, Query, scalar
from keyman.storage.transactions import Database
from keyman.storage.types import UtcTime

SESSION_LIFETIME = timedelta(days=14)
"""A session always ends after this time, so that a stolen cookie does not work forever."""

SESSION_IDLE = timedelta(days=3)
"""A session ends when it is not used for this time, which is longer than a weekend."""

MAX_USER_AGENT = 512
"""The number of characters of a User-Agent header that are parsed. A browser sends about 120, and a longer header would
take longer to parse.
"""

MAX_SHOWN = 100
"""The maximum number of sessions in the list: more than a user has devices. A script may sign in every minute."""

MAX_SESSIONS = 100
"""The maximum number of sessions of an account. Opening another one ends the oldest."""

PORTAL_LIFETIME = timedelta(hours=2)
"""A session by a portal link always ends after this time. The application can open another one at any time."""

PORTAL_IDLE = timedelta(minutes=30)
"""A session by a portal link ends when it is not used for this time."""

PORTAL_SCOPES = frozenset({Scope.KEYS_READ, Scope.KEYS_WRITE, Scope.AUDIT_READ})

_ENDED = "The session has ended. Sign in again."
_PORTAL_ENDED = (
    "This visit has ended. Go back to the application that sent you here, and open the page from there again."
)
_STANDING = Standing(sessions, users, ended=_ENDED, idle=SESSION_IDLE)
_PORTAL_STANDING = Standing(sessions, users, ended=_PORTAL_ENDED, idle=PORTAL_IDLE, is_sponsored=True)


class SessionInfo(msgspec.Struct):
    """A session, as its user sees it. `device` comes from the client, and is None if it is unknown."""

    id: int
    device: str | None
    created_at: datetime
    last_seen_at: datetime
    is_current: bool


class SessionProof:
    """A Proof that identifies a signed-in user by the session cookie."""

    def find(self, credentials: Credentials) -> str | None:
        return credentials.cookie

    async def verify(self, db: Database, credential: str, credentials: Credentials) -> Principal:
        """Return the user. Raises Unauthenticated for a session that is unknown, ended or idle for too long."""
        moment = now()
        row = await _BY_COOKIE.find(db, session_digest(credential))
        if row is None:
            raise Unauthenticated(_ENDED)
        portal = row.portal()
        idle = SESSION_IDLE if portal is None else PORTAL_IDLE
        if row.application_disabled_at is not None or row.expires_at <= moment or moment - row.last_seen_at >= idle:
            raise Unauthenticated(_ENDED if portal is None else _PORTAL_ENDED)
        if last_use.is_due(row.last_seen_at, moment):
            lock = HolderLock(users, row.user_id)
            await db.note(lock, _NOTE_USE, session_id=row.id, moment=moment, **last_use.bounds(moment))
        return Principal(
            origin=Origin(Actor.SESSION, None, credentials.request_id, credentials.address),
            scopes=ALL_SCOPES if portal is None else PORTAL_SCOPES,
            user=row.user(),
            session_id=row.id,
            grounds=Grounds(_STANDING if portal is None else _PORTAL_STANDING, row.id, row.user_id),
            portal=portal,
        )


class _Found(FoundUser, frozen=True):
    id: SessionId
    last_seen_at: datetime
    expires_at: datetime
    id_hash: bytes
    application: str | None
    application_disabled_at: datetime | None
    person: str | None
    return_url: str | None
    services: str | None

    def portal(self) -> Portal | None:
        if self.application is None:
            return None
        services = None if self.services is None else frozenset(self.services.split())
        return Portal(self.application, self.person or "", self.return_url or "", services)


_BY_COOKIE = Lookup(
    select(
        *FOUND_USER,
        sessions.c.id,
        sessions.c.last_seen_at,
        sessions.c.expires_at,
        sessions.c.id_hash,
        applications.c.name.label("application"),
        applications.c.disabled_at.label("application_disabled_at"),
        sessions.c.person,
        sessions.c.return_url,
        sessions.c.services,
    )
    .join_from(sessions, users)
    .outerjoin(applications, sessions.c.application_id == applications.c.id)
    .where(users.c.disabled_at.is_(None)),
    sessions.c.id_hash,
    _Found,
    lambda row: row.id_hash,
)
_NOTE_USE = Command(
    update(sessions)
    .where(sessions.c.id == bindparam("session_id"), last_use.is_stale(sessions.c.last_seen_at))
    .values(last_seen_at=bindparam("moment"))
)


class OfProvider(NamedTuple):
    """What a session keeps of a sign-in at the identity provider: the identity, and the provider's id of its session.

    With them, the provider can end the session.
    """

    identity_id: int
    provider_session: str | None


class OfPortal(NamedTuple):
    """What a session keeps of a portal link. `services` are separated by a space. None: the link did not say."""

    application_id: ApplicationId
    person: str
    return_url: str
    services: str | None = None


async def open_session(
    connection: AsyncConnection, user_id: UserId, device: str | None = None, of_provider: OfProvider | None = None
) -> Secret:
    """Open a session under a new id, and return its cookie. The database stores only the cookie's hash.

    Ends the oldest sessions of the user beyond MAX_SESSIONS.
    """
    given = {} if of_provider is None else of_provider._asdict()
    return await _open(connection, user_id, device, SESSION_LIFETIME, given)


async def open_portal_session(
    connection: AsyncConnection,
    user_id: UserId,
    device: str | None,
    of_portal: OfPortal,
) -> Secret:
    """Do the same for a user whom an application sent by a portal link."""
    return await _open(connection, user_id, device, PORTAL_LIFETIME, of_portal._asdict())


async def _open(
    connection: AsyncConnection, user_id: UserId, device: str | None, lifetime: timedelta, given: Mapping[str, object]
) -> Secret:
    cookie = Secret(secrets.token_urlsafe(32))
    moment = now()
    values = {**dict.fromkeys(_HOW_IT_BEGAN), **given}
    await _INSERT.execute(
        connection,
        user_id=user_id,
        id_hash=session_digest(cookie.reveal()),
        created_at=moment,
        last_seen_at=moment,
        expires_at=moment + lifetime,
        device=device,
        **values,
    )
    await _END_OLDEST.execute(connection, user_id=user_id)
    return cookie


_HOW_IT_BEGAN = ("identity_id", "provider_session", "application_id", "person", "return_url", "services")
"""The columns of a session that did not begin with a password. Those of another beginning are null."""

_INSERT = Command(insert(sessions))


def session_digest(cookie: str) -> bytes:
    """Return the stored form of a cookie: SHA-256, 32 bytes."""
    return hashlib.sha256(cookie.encode("utf-8", "surrogateescape")).digest()


def device_name(user_agent: str) -> str | None:
    """Return the browser and the operating system of a User-Agent header, such as `Firefox · Linux`.

    The text has at most 100 characters. It is None if neither is known.
    """
    found = ua_parser.parse(user_agent[:MAX_USER_AGENT])
    names = [part.family for part in (found.user_agent, found.os) if part is not None]
    return " · ".join(name for name in names if name.isprintable())[:100] or None


async def list_own(db: Database, caller: Principal) -> list[SessionInfo]:
    """Return the caller's valid sessions, most recently used first. Raises Forbidden for a token."""
    current = caller.require_session()
    moment = now()
    async with db.read() as connection:
        rows = await _OWN.all(connection, user_id=caller.user_id, moment=moment, idle_since=moment - SESSION_IDLE)
    return [SessionInfo(*row, is_current=row.id == current) for row in rows]


class _Own(NamedTuple):
    id: SessionId
    device: str | None
    created_at: datetime
    last_seen_at: datetime


_OWN = Query(
    select(sessions.c.id, sessions.c.device, sessions.c.created_at, sessions.c.last_seen_at)
    .where(
        sessions.c.user_id == bindparam("user_id"),
        sessions.c.expires_at > bindparam("moment", type_=UtcTime),
        sessions.c.last_seen_at > bindparam("idle_since", type_=UtcTime),
    )
    .order_by(sessions.c.last_seen_at.desc(), sessions.c.id.desc())
    .limit(MAX_SHOWN),
    _Own,
)


async def end(db: Database, caller: Principal, session_id: SessionId) -> None:
    """End one of the caller's sessions. Raises NotFound for any other session, and Forbidden for a token."""
    caller.require_session()
    if not 0 < session_id <= MAX_ID or not await _end(db, caller, _END_ONE, session_id):
        raise NotFound("There is nothing with this id.")


async def end_others(db: Database, caller: Principal) -> None:
    """End all sessions of the caller except the current one. Raises Forbidden for a token."""
    await _end(db, caller, _END_OTHERS, caller.require_session())


_OF_USER = delete(sessions).where(sessions.c.user_id == bindparam("user_id"))
_END_ONE = Command(_OF_USER.where(sessions.c.id == bindparam("session_id")))
_END_OTHERS = Command(_OF_USER.where(sessions.c.id != bindparam("session_id")))
_END_ALL = Command(_OF_USER)
_of_same = sessions.alias()
_END_OLDEST = Command(
    _OF_USER.where(
        sessions.c.id
        <= select(_of_same.c.id)
        .where(_of_same.c.user_id == bindparam("user_id"))
        .order_by(_of_same.c.id.desc())
        .offset(MAX_SESSIONS)
        .limit(1)
        .scalar_subquery()
    )
)
_END_BY_COOKIE = Command(delete(sessions).where(sessions.c.id_hash == bindparam("id_hash")))
_USER_BY_COOKIE = scalar(select(sessions.c.user_id).where(sessions.c.id_hash == bindparam("id_hash")), UserId)


async def _end(db: Database, caller: Principal, command: Command, session_id: SessionId) -> int:
    async with db.write(caller.exclusive()) as connection:
        ended = await command.execute(connection, user_id=caller.user_id, session_id=session_id)
        if ended:
            await record(connection, Entry(Action.SESSION_END, caller.origin, caller.user_id))
    return ended


_ISSUER = scalar(
    select(identities.c.issuer).join_from(sessions, identities).where(sessions.c.id == bindparam("session_id")), str
)


async def user_by_cookie(connection: AsyncConnection, cookie: str | None) -> UserId | None:
    """Return the user of the session with this cookie, or None."""
    return None if cookie is None else await _USER_BY_COOKIE.first(connection, id_hash=session_digest(cookie))


async def end_by_cookie(connection: AsyncConnection, cookie: str | None) -> None:
    """End the session of this cookie, if there is one, in the transaction of the caller, who has locked its account."""
    if cookie is not None:
        await _END_BY_COOKIE.execute(connection, id_hash=session_digest(cookie))


async def end_all(connection: AsyncConnection, user_id: UserId, *, but: SessionId | None = None) -> None:
    """End every session of a user except `but`, in the transaction of the caller."""
    if but is None:
        await _END_ALL.execute(connection, user_id=user_id)
    else:
        await _END_OTHERS.execute(connection, user_id=user_id, session_id=but)


async def issuer_of(connection: AsyncConnection, session_id: SessionId) -> str | None:
    """Return the issuer at which the user of a session signed in. None for a session of another kind."""
    return await _ISSUER.first(connection, session_id=session_id)


async def end_one(connection: AsyncConnection, user_id: UserId, session_id: SessionId) -> None:
    """End this session, in the transaction of the caller."""
    await _END_ONE.execute(connection, user_id=user_id, session_id=session_id)
