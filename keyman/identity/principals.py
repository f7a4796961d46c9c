"""Identifies the caller of a request.

`Principal` is the type of every authenticated caller. A `Proof` recognises one kind of credential. A plane has an
ordered list of proofs, and the first one that recognises a credential of the request decides. For example, if a request
has an access token, its cookie is ignored.

Nothing is cached, so a revoked token, an ended session or a disabled account is refused at once on every replica. A
request that is already open is checked again: in each transaction that writes, of which the Principal is the authority,
and after its body has arrived.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import msgspec
from sqlalchemy import func, null
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Actor, Origin
from keyman.errors import Forbidden, Unauthenticated
from keyman.identity.identities import APPLICATION_ISSUER
from keyman.identity.standing import Grounds, Lock
from keyman.identity.tables import users
from keyman.identity.tokens import Scope
from keyman.ids import ApplicationId, OwnerId, SessionId, UserId, owner_of
from keyman.storage.transactions import Authority, Database


class User(msgspec.Struct, frozen=True):
    """The user for whom a caller acts. `email` is the sign-in name, or else what a provider or an application calls the
    user's address. `name` is the name that came with it. Both are for display only, and None if there is none.
    """

    id: UserId
    email: str | None
    created_at: datetime
    name: str | None = None


class FoundUser(msgspec.Struct, frozen=True):
    """The user's part of a row by which a credential was found: the columns FOUND_USER, which come first."""

    user_id: UserId
    email: str | None
    user_created_at: datetime
    shown_name: str | None

    def user(self) -> User:
        return User(self.user_id, self.email, self.user_created_at, self.shown_name)


FOUND_USER = (
    users.c.id.label("user_id"),
    func.coalesce(users.c.email, users.c.shown_email).label("email"),
    users.c.created_at.label("user_created_at"),
    users.c.shown_name,
)


USER_WITHOUT_ADDRESS = (
    users.c.id.label("user_id"),
    null().label("email"),
    users.c.created_at.label("user_created_at"),
    null().label("shown_name"),
)
"""The same for a plane that may not read addresses and names, and needs none."""


class Application(msgspec.Struct, frozen=True):
    """A registered application, and the services whose keys it may get.

    `issuers` are those whose users it serves, the default first. None: it is not bound to issuers. `return_urls` are
    where its portal links may lead back, the default first. Without any, it may not ask for portal links. One for
    `checks` may ask the gateway for live checks, and nothing else.
    """

    id: ApplicationId
    name: str
    services: frozenset[str]
    issuers: tuple[str, ...] | None
    return_urls: tuple[str, ...] = ()
    checks: bool = False

    @property
    def default_issuer(self) -> str:
        """The issuer of a subject that the application names without one."""
        return self.all_issuers[0]

    @property
    def all_issuers(self) -> tuple[str, ...]:
        """The issuers whose subjects the application may name."""
        return self.issuers or (f"{APPLICATION_ISSUER}{self.name}",)


class Portal(msgspec.Struct, frozen=True):
    """What a session by a portal link has from the link: the application that sent the browser, whom it named, where
    "Back to …" leads, and the services that the application could use at that time. None: the link did not say.
    """

    application: str
    person: str
    return_url: str
    services: frozenset[str] | None = None


class Principal(msgspec.Struct, frozen=True):
    """An authenticated caller.

    `origin` contains the kind of caller, its token and its address, as the audit log records them. A user has a `user`,
    and an application has an `application`. A signed-in user also has a `session_id`. `expires_at` is the expiry of a
    personal access token or a JWT. It is None for a token that does not expire, a session and an application. Without
    `grounds` the caller can write nothing. `portal` is None unless an application opened the session by a portal link.
    `token_name` is what the user calls a personal access token.
    """

    origin: Origin
    scopes: frozenset[Scope] = frozenset()
    user: User | None = None
    application: Application | None = None
    session_id: SessionId | None = None
    expires_at: datetime | None = None
    grounds: Grounds | None = None
    portal: Portal | None = None
    token_name: str | None = None

    async def confirm(self, connection: AsyncConnection, lock: Lock = Lock.SHARED) -> None:
        """Raise Unauthenticated unless the caller may still act. See `storage.transactions.Authority`."""
        if self.grounds is None:
            raise Unauthenticated("Sign in again.")
        await self.grounds.confirm(connection, lock)

    @property
    def kind_of_check(self) -> Hashable:
        """The kind of credential. See `storage.together.SharedAuthority`."""
        return None if self.grounds is None else self.grounds.standing

    @property
    def rank(self) -> int:
        """The id of the account or application. See `storage.together.SharedAuthority`."""
        return 0 if self.grounds is None else self.grounds.holder_id

    async def confirm_together(
        self, connection: AsyncConnection, all_of: Sequence[Principal]
    ) -> Sequence[Unauthenticated | None]:
        """Return, for each caller, None if it may still act, or the reason why it may not."""
        grounds = [each.grounds for each in all_of]
        if self.grounds is None:
            return [Unauthenticated("Sign in again.") for _ in grounds]
        return await self.grounds.standing.confirm_all(connection, [each for each in grounds if each is not None])

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
    def name(self) -> str | None:
        """The name of the application or of the personal access token. None for a session and for a JWT of a user."""
        return self.token_name if self.application is None else self.application.name

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
            self.require_no_portal()
            raise Forbidden(f"This access token lacks the scope {scope}. Use one that has it.")

    def require_session(self) -> SessionId:
        """Return the session's id. Raises Forbidden for a token, and for a session by a portal link: neither can change
        the account itself.
        """
        self.require_no_portal()
        if self.session_id is None:
            raise Forbidden("You cannot do this with an access token. Sign in on the pages, or ask your operator.")
        return self.session_id

    @property
    def sent_by(self) -> str | None:
        """The application that opened the session by a portal link, for the audit log. None for every other caller."""
        return None if self.portal is None else self.portal.application

    def require_no_portal(self) -> None:
        """Raise Forbidden for a session that an application opened by a portal link."""
        if self.portal is not None:
            raise Forbidden("You cannot do this here: an application has opened these pages for you.")

    def require_user(self) -> User:
        """Return the user. Raises Forbidden for an application."""
        if self.user is None:
            raise Forbidden("An application cannot do this.")
        return self.user

    def require_application(self) -> Application:
        """Return the application. Raises Forbidden for a user, and for the application of live checks."""
        if self.application is None:
            raise Forbidden("Only an application can do this.")
        self.require_no_checks()
        return self.application

    def require_no_checks(self) -> None:
        """Raise Forbidden for the application that may only ask for live checks."""
        if self.application is not None and self.application.checks:
            raise Forbidden("This token is only for live checks, which the gateway makes.")

    def require_checks(self) -> None:
        """Raise Forbidden for everybody but the application that may only ask for live checks."""
        if self.application is None or not self.application.checks:
            raise Forbidden("Only the application for live checks can do this.")


@dataclass(frozen=True)
class _Exclusive:
    caller: Principal

    async def confirm(self, connection: AsyncConnection) -> None:
        await self.caller.confirm(connection, Lock.EXCLUSIVE)


class Credentials(msgspec.Struct, frozen=True):
    """The credentials of a request: the access token or the JWT of its Authorization header, and its session cookie.
    Each is None if the request has none. `request_id` and `address` are for the audit log.
    """

    bearer: str | None
    cookie: str | None
    request_id: str
    address: str | None
    jwt: str | None = None

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
