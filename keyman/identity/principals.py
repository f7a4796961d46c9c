"""Who calls, and how a request proves it.

`Principal` is the one type for everyone who calls. A `Proof` recognises one kind of credential. A plane has an ordered
list of proofs, and the first that recognises a credential of the request decides: where a request shows an access
token, its cookie does not count.

Nothing is cached, so a revoked token, an ended session or a disabled account is refused at once on every replica.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from keyman.audit.entries import Actor, Origin
from keyman.errors import Forbidden, Unauthenticated
from keyman.identity.tokens import Scope
from keyman.ids import ApplicationId, OwnerId, SessionId, UserId, owner_of
from keyman.storage.transactions import Database


@dataclass(frozen=True)
class User:
    """The person behind a session or a personal token."""

    id: UserId
    email: str
    created_at: datetime


@dataclass(frozen=True)
class Application:
    """A registered application, and the services whose keys it may get."""

    id: ApplicationId
    name: str
    services: frozenset[str]


@dataclass(frozen=True)
class Principal:
    """An authenticated caller.

    `origin` says what it is, by which token, and from where; the audit log repeats it. A person has a `user`, and an
    application an `application`; a signed-in person has a `session_id`, too. `expires_at` is when a token ends, None
    for one that does not, and for anything else.
    """

    origin: Origin
    scopes: frozenset[Scope] = frozenset()
    user: User | None = None
    application: Application | None = None
    session_id: SessionId | None = None
    expires_at: datetime | None = None

    @property
    def kind(self) -> Actor:
        """What it is, as the audit log names it."""
        return self.origin.actor

    @property
    def owner_id(self) -> OwnerId:
        """The owner whose keys it works with. Raises Forbidden for a principal that acts for no owner."""
        return owner_of(self.user_id)

    @property
    def user_id(self) -> UserId:
        """The person's id. Raises Forbidden for an application."""
        return self.require_user().id

    def require(self, scope: Scope) -> None:
        """Raises Forbidden for a principal that lacks this scope."""
        if scope not in self.scopes:
            raise Forbidden(f"This access token lacks the scope {scope}.")

    def require_session(self) -> SessionId:
        """Return the session's id. Raises Forbidden for a token: only a person changes the account itself."""
        if self.session_id is None:
            raise Forbidden("You cannot do this with an access token. Sign in with e-mail and password.")
        return self.session_id

    def require_user(self) -> User:
        """Return the person. Raises Forbidden for an application."""
        if self.user is None:
            raise Forbidden("An application cannot do this.")
        return self.user

    def require_application(self) -> Application:
        """Return the application. Raises Forbidden for a person."""
        if self.application is None:
            raise Forbidden("Only an application can do this.")
        return self.application


@dataclass(frozen=True)
class Credentials:
    """What a request shows: the bearer token of its Authorization header, and the session cookie; None for each that it
    lacks. `request_id` and `address` are for the audit log.
    """

    bearer: str | None
    cookie: str | None
    request_id: str
    address: str | None

    def __repr__(self) -> str:
        return "Credentials(***)"


class Proof(Protocol):
    """Recognises one kind of credential.

    An implementation fails closed: `verify` returns a principal only when the database says now that the credential is
    good, and its account or application is not disabled. It raises Unauthenticated for anything else, and
    DatabaseUnavailable. Nothing that it raises or logs holds the credential.
    """

    def find(self, credentials: Credentials) -> str | None:
        """Return the credential of this kind that the request shows, None where it shows none."""
        ...

    async def verify(self, db: Database, credential: str, credentials: Credentials) -> Principal:
        """Return whose credential it is."""
        ...


async def identify(db: Database, proofs: Sequence[Proof], credentials: Credentials, advice: str) -> Principal:
    """Return who calls, by the first of the proofs that recognises a credential.

    Raises Unauthenticated, in the words of `advice` where none does.
    """
    for proof in proofs:
        credential = proof.find(credentials)
        if credential is not None:
            return await proof.verify(db, credential, credentials)
    raise Unauthenticated(advice)
