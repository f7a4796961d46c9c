"""Portal links: an application sends a user of its own to the pages, without an account with a password.

The resolver makes a link, of which the database holds only the hash of the code. It creates the user at the first use
of a subject. The management plane consumes a link: see arrivals.py. A link can be used once within LIFETIME.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec
from sqlalchemy import bindparam, exists, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Entry
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import Conflict, Forbidden, NotFound
from keyman.identity import identities
from keyman.identity.identities import Identity
from keyman.identity.principals import Application, Principal
from keyman.identity.return_urls import ReturnUrl, choose
from keyman.identity.standing import locking_account
from keyman.identity.tables import application_identities, portal_links, users
from keyman.identity.tables import identities as outside_identities
from keyman.ids import UserId
from keyman.storage.statements import Command
from keyman.storage.transactions import Database
from keyman.values import EmailAddress, Label, Subject

LIFETIME = timedelta(minutes=5)
"""A link is for a browser that is redirected at once. It may stay in a history, so it ends soon."""

MAX_UNUSED = 5
"""The links of a user that can be used at a time: enough for a few tabs. A newer one ends the oldest."""

CODE_BYTES = 32


class NewLink(msgspec.Struct):
    """The request for a portal link. `email` and `name` are only shown."""

    subject: Subject
    return_url: ReturnUrl | None = None
    email: EmailAddress | None = None
    name: Label | None = None


class Link(msgspec.Struct):
    """A portal link. keyman cannot show its URL again."""

    url: str
    expires_at: datetime
    user_id: int

    def __repr__(self) -> str:
        return f"Link(user_id={self.user_id})"


def code_digest(code: str) -> bytes:
    """Return the stored form of a code: SHA-256, 32 bytes."""
    return hashlib.sha256(code.encode("utf-8", "surrogateescape")).digest()


async def create_link(db: Database, caller: Principal, new: NewLink, pages_url: str | None) -> Link:
    """Return a link with which the user of a subject can use the pages, whose address is `pages_url`.

    Creates the user at the first use of the subject. Raises Forbidden for an application without portal links, and for
    a user who can sign in without one; InvalidRequest for a return URL that is not registered; NotFound for a disabled
    user; and Conflict if `pages_url` is None.
    """
    application = caller.require_application()
    if not application.return_urls:
        raise Forbidden("This application may not ask for portal links. Register another one with --portal.")
    return_url = choose([ReturnUrl(url) for url in application.return_urls], new.return_url)
    if pages_url is None:
        raise Conflict("The resolver does not know where the pages are. Ask the operator to set KEYMAN_PUBLIC_URL.")
    code = secrets.token_urlsafe(CODE_BYTES)
    async with db.write(caller) as connection:
        user_id = await _user_of(connection, caller, application, new.subject)
        moment = now()
        expires_at = moment + LIFETIME
        await _INSERT.execute(
            connection,
            code_hash=code_digest(code),
            application_id=application.id,
            user_id=user_id,
            subject=str(new.subject),
            email=new.email,
            name=new.name or None,
            return_url=str(return_url),
            created_at=moment,
            expires_at=expires_at,
            services=" ".join(sorted(application.services)),
        )
        await record(connection, Entry(Action.PORTAL_LINK, caller.origin, user_id, application=application.name))
    return Link(f"{pages_url}/portal/{code}", expires_at, user_id)


async def _user_of(
    connection: AsyncConnection, caller: Principal, application: Application, subject: Subject
) -> UserId:
    """Return the user of a subject, whose account is locked until the transaction ends, and who may get a link."""
    identity = Identity(application.default_issuer, subject)
    known = await identities.find_or_create(connection, identity, application_identities)
    if known.is_new:
        detail = f"portal of {application.name}"
        entry = Entry(Action.ACCOUNT_CREATE, caller.origin, known.user_id, application=application.name, detail=detail)
        await record(connection, entry)
        return known.user_id
    user = await _LOCK_USER[connection.dialect.name].first(connection, user_id=known.user_id)
    if user is None or await identities.find(connection, identity) != known.user_id:
        raise Conflict("The account of this user was deleted at the same time. Send the request again.")
    if user.disabled_at is not None:
        raise NotFound("This user is disabled.")
    if user.has_password or user.is_known_outside:
        raise Forbidden("This user signs in to keyman by another way, and needs no portal link.")
    return known.user_id


class _User(NamedTuple):
    disabled_at: datetime | None
    has_password: bool | None  # null is nobody's: PostgreSQL declares no generated column as not null
    is_known_outside: bool


_LOCK_USER = locking_account(
    select(
        users.c.disabled_at,
        users.c.has_password,
        exists().where(outside_identities.c.user_id == users.c.id).label("is_known_outside"),
    ).where(users.c.id == bindparam("user_id")),
    _User,
)
_INSERT = Command(insert(portal_links))
