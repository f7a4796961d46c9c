"""Identifies the caller of a request.

`Principal` is the type of every authenticated caller. A `Proof` recognises one kind of credential. A plane has an
ordered list of proofs, and the first one that recognises a credential of the request decides. For example, if a request
has an access token, its cookie is ignored.

Nothing is cached, so a revoked token, an ended session or a disabled account is refused at once on every replica. A
request that is already open is checked again: in each transaction that writes, of which the Principal is the authority,
and after its body has arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Actor, Origin
from keyman.errors import Forbidden, Unauthenticated
from keyman.identity.standing import Grounds, Lock
from keyman.identity.tables import users
from keyman.identity.tokens import Scope
from keyman.ids import ApplicationId, OwnerId, SessionId, UserId, owner_of
from keyman.storage.transactions import Authority, Database


@dataclass(frozen=True)
class User:
    """The user of a session or of a personal access token."""

    id: UserId
    email: str
    created_at: datetime


class FoundUser(msgspec.Struct, frozen=True):
    """The user's part of a row by which a credential was found: the columns FOUND_USER, which come first."""

    user_id: UserId
    email: str
    user_created_at: datetime

    def user(self) -> User:
        return User(self.user_id, self.email, self.user_created_at)


FOUND_USER = (users.c.id.label("user_id"), users.c.email, users.c.created_at.label("user_created_at"))


@dataclass(frozen=True)
class Application:
    """A registered application, and the services whose keys it may get."""

    id: ApplicationId
    name: str
    services: frozenset[str]


@dataclass(frozen=True)
class Principal:
    """An authenticated caller.

    `origin` contains the kind of caller, its token and its address, as the audit log records them. A user has a `user`,
    and an application has an `application`. A signed-in user also has a `session_id`. `expires_at` is the expiry of a
    personal access token. It is None for a token that does not expire, a session and an application. Without `grounds`
    the caller can write nothing.
    """

    origin: Origin
    scopes: frozenset[Scope] = frozenset()
    user: User | None = None
    application: Application | None = None
    session_id: SessionId | None = None
    expires_at: datetime | None = None
    grounds: Grounds | None = None

    async def confirm(self, connection: AsyncConnection, lock: Lock = Lock.SHARED) -> None:
        """Raise Unauthenticated unless the caller may still act. See `storage.transactions.Authority`."""
        if self.grounds is None:
            raise Unauthenticated("Sign in again.")
        await self.grounds.confirm(connection, lock)

    def exclusive(self) -> Authority:
        """Return the authority for a transaction that changes the account, a session or a token of the caller."""
        return _Exclusive(self)

    async def confirm_for_reading(self, db: Database) -> None:
        """Raise Unauthenticated unless the caller may still act, at this moment."""
        if self.grounds is None:
            raise Unauthenticated("Sign in again.")
        await self.grounds.confirm_now(db)

    @property
    def kind(self) -> Actor:
        """The kind of caller, as the audit log names it."""
        return self.origin.actor

    @property
    def owner_id(self) -> OwnerId:
        """The owner whose keys the caller works with. Raises Forbidden for a caller that acts for no owner."""
        return owner_of(self.user_id)

    @property
    def user_id(self) -> UserId:
        """The user's id. Raises Forbidden for an application."""
        return self.require_user().id

    def require(self, scope: Scope) -> None:
        """Raise Forbidden if the principal lacks this scope."""
        if scope not in self.scopes:
            raise Forbidden(f"This access token lacks the scope {scope}.")

    def require_session(self) -> SessionId:
        """Return the session's id. Raises Forbidden for a token: it cannot change the account itself."""
        if self.session_id is None:
            raise Forbidden("You cannot do this with an access token. Sign in with e-mail and password.")
        return self.session_id

    def require_user(self) -> User:
        """Return the user. Raises Forbidden for an application."""
        if self.user is None:
            raise Forbidden("An application cannot do this.")
        return self.user

    def require_application(self) -> Application:
        """Return the application. Raises Forbidden for a user."""
        if self.application is None:
            raise Forbidden("Only an application can do this.")
        return self.application


@dataclass(frozen=True)
class _Exclusive:
    caller: Principal

    async def confirm(self, connection: AsyncConnection) -> None:
        await self.caller.confirm(connection, Lock.EXCLUSIVE)


@dataclass(frozen=True)
class Credentials:
    """The credentials of a request: the bearer token of its Authorization header, and its session cookie. Each is None
    if the request has none. `request_id` and `address` are for the audit log.
    """

    bearer: str | None
    cookie: str | None
    request_id: str
    address: str | None

    def __repr__(self) -> str:
        return "Credentials(***)"


class Proof(Protocol):
    """Recognises one kind of credential.

    An implementation fails closed: `verify` returns a principal only if the database confirms for this request that the
    credential is valid and that its account or application is not disabled. Otherwise it raises Unauthenticated, or
    DatabaseUnavailable if the database does not answer. Nothing that it raises or logs contains the credential.
    """

    def find(self, credentials: Credentials) -> str | None:
        """Return the request's credential of this kind, or None if it has none."""
        ...

    async def verify(self, db: Database, credential: str, credentials: Credentials) -> Principal:
        """Return the principal to whom the credential belongs."""
        ...


async def identify(db: Database, proofs: Sequence[Proof], credentials: Credentials, advice: str) -> Principal:
    """Return the caller, from the first proof that recognises a credential of the request.

    Raises Unauthenticated. If no proof recognises a credential, its text is `advice`.
    """
    for proof in proofs:
        credential = proof.find(credentials)
        if credential is not None:
            return await proof.verify(db, credential, credentials)
    raise Unauthenticated(advice)
