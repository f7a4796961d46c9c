"""Arrivals by a portal link: the link is found for the page that asks, and consumed in the transaction that opens the
session.

A link counts until it is used or has expired, while it is among the newest MAX_UNUSED of its user, and while neither
its user nor its application is disabled. All links that do not count are alike.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import String, bindparam, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Actor, Entry, Origin
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import NotFound
from keyman.identity import sessions
from keyman.identity.portal import MAX_UNUSED, code_digest
from keyman.identity.sessions import OfPortal
from keyman.identity.standing import lock_accounts, share_application
from keyman.identity.tables import applications, portal_links, users
from keyman.ids import ApplicationId, UserId
from keyman.secret import Secret
from keyman.storage.statements import Command, Query
from keyman.storage.transactions import Database, Unchecked
from keyman.storage.types import UtcTime

MAX_DELETED = 1000
"""How many links one transaction deletes at most. On SQLite, all writers wait for it."""


class Arrival(NamedTuple):
    """A link that counts. `application` is the name of the application."""

    id: int
    application_id: ApplicationId
    application: str
    user_id: UserId
    subject: str
    email: str | None
    name: str | None
    return_url: str
    expires_at: datetime
    services: str | None

    @property
    def person(self) -> str:
        """Whom the application named, as the pages show it."""
        return self.name or self.email or self.subject


async def find(db: Database, code: str) -> Arrival:
    """Return the link with this code. Raises NotFound for one that does not count. Nothing is consumed."""
    async with db.read() as connection:
        return await _find(connection, code)


async def enter(db: Database, code: str, origin: Origin, *, previous_cookie: str | None) -> Secret:
    """Consume the link with this code, and return the cookie of a new session of its user.

    It ends the session of `previous_cookie`. Raises NotFound for a link that does not count. If a link is used twice at
    the same time, one of them gets a session.
    """
    asked = await find(db, code)
    async with db.write(Unchecked.SIGN_IN) as connection:
        await share_application(connection, asked.application_id)
        await lock_accounts(connection, asked.user_id, await sessions.user_by_cookie(connection, previous_cookie))
        arrival = await _find(connection, code)  # again, behind the locks
        if await _CONSUME.execute(connection, of_id=arrival.id) != 1:
            raise NotFound(_UNKNOWN)
        await _SHOW.execute(connection, of_id=arrival.user_id, given_email=arrival.email, given_name=arrival.name)
        # A session id that somebody planted in the browser must not become signed in.
        await sessions.end_by_cookie(connection, previous_cookie)
        cookie = await sessions.open_portal_session(
            connection,
            arrival.user_id,
            origin.device,
            OfPortal(arrival.application_id, arrival.person, arrival.return_url, arrival.services),
        )
        entry = Entry(
            Action.LOGIN, origin._replace(actor=Actor.SESSION), arrival.user_id, application=arrival.application
        )
        await record(connection, entry)
    return cookie


async def delete_expired(db: Database) -> None:
    """Delete the links that have expired, MAX_DELETED in a transaction. Raises DatabaseUnavailable."""
    deleted = MAX_DELETED
    while deleted >= MAX_DELETED:
        async with db.write(Unchecked.KEYMAN) as connection:
            deleted = await _DELETE_EXPIRED.execute(connection, moment=now())


async def _find(connection: AsyncConnection, code: str) -> Arrival:
    arrival = await _BY_CODE.first(connection, code_hash=code_digest(code), moment=now())
    if arrival is None:
        raise NotFound(_UNKNOWN)
    return arrival


_UNKNOWN = "This link has been used, has expired or was never valid."

_newer = portal_links.alias()
_BY_CODE = Query(
    select(
        portal_links.c.id,
        portal_links.c.application_id,
        applications.c.name.label("application"),
        portal_links.c.user_id,
        portal_links.c.subject,
        portal_links.c.email,
        portal_links.c.name,
        portal_links.c.return_url,
        portal_links.c.expires_at,
        portal_links.c.services,
    )
    .join_from(portal_links, applications)
    .join(users, portal_links.c.user_id == users.c.id)
    .where(
        portal_links.c.code_hash == bindparam("code_hash"),
        portal_links.c.expires_at > bindparam("moment", type_=UtcTime),
        applications.c.disabled_at.is_(None),
        users.c.disabled_at.is_(None),
        users.c.erased_at.is_(None),
        select(func.count())
        .where(_newer.c.user_id == portal_links.c.user_id, _newer.c.id > portal_links.c.id)
        .scalar_subquery()
        < MAX_UNUSED,
    ),
    Arrival,
)
_SOME_EXPIRED = (
    select(portal_links.c.id).where(portal_links.c.expires_at <= bindparam("moment", type_=UtcTime)).limit(MAX_DELETED)
)
_DELETE_EXPIRED = Command(delete(portal_links).where(portal_links.c.id.in_(_SOME_EXPIRED)))
_CONSUME = Command(delete(portal_links).where(portal_links.c.id == bindparam("of_id")))
_SHOW = Command(
    update(users)
    .where(users.c.id == bindparam("of_id"))
    .values(
        shown_email=func.coalesce(bindparam("given_email", type_=String), users.c.shown_email),
        shown_name=func.coalesce(bindparam("given_name", type_=String), users.c.shown_name),
    )
)
