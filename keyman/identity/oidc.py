"""Sign-in with OpenID Connect: what comes back from the provider, and what it does here.

An identity is never linked to an account because the addresses are equal. Where the provider has verified the address
of another account, the person chooses: to link, which needs that account's password, or to continue as a new account.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import msgspec
from sqlalchemy import String, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Actor, Entry, Origin
from keyman.audit.log import record
from keyman.config.oidc import OidcSettings
from keyman.errors import Conflict, Forbidden, InvalidRequest
from keyman.identity import first_proof, identities, login, presence, sessions, visits
from keyman.identity.id_tokens import Person
from keyman.identity.identities import Identity
from keyman.identity.login import Link, LogIn, SignedIn
from keyman.identity.passwords import Passwords
from keyman.identity.presence import Presence
from keyman.identity.principals import Principal
from keyman.identity.sessions import OfProvider
from keyman.identity.standing import lock_accounts
from keyman.identity.tables import identities as identities_table
from keyman.identity.tables import users as users_table
from keyman.identity.users import Account
from keyman.identity.visits import ENDED, Begun, Proven, Purpose, Visit
from keyman.ids import UserId
from keyman.storage.statements import Command, Query, scalar
from keyman.storage.transactions import Database, Unchecked
from keyman.values import EmailAddress, GivenPassword, Subject

NOT_ADMITTED = "The provider knows you, but you may not use keyman. Ask the operator."
DISABLED = "This account is disabled. Ask the operator."
UNKNOWN = "There is no account for you, and new ones are closed. Ask the operator."
OF_ANOTHER = "This sign-in belongs to another account of keyman. Unlink it there first."


def require_admitted(settings: OidcSettings, person: Person) -> None:
    """Raise Forbidden unless the provider says of this person what the operator demands."""
    if settings.domains:
        domain = (person.proven.email or "").rpartition("@")[2].lower()
        if domain not in settings.domains:
            raise Forbidden(NOT_ADMITTED)
    if settings.claim is not None:
        said = person.claims.get(settings.claim.name)
        if settings.claim.value not in (said if isinstance(said, list) else [said]):
            raise Forbidden(NOT_ADMITTED)


async def sign_in(
    db: Database, settings: OidcSettings, proven: Proven, origin: Origin, *, previous_cookie: str | None, next_page: str
) -> SignedIn | Begun:
    """Open a session for the user of an identity, who is created if there is none.

    Returns a visit for the choice instead, if another account has the verified address of a new identity. Raises
    Forbidden for a disabled account, and for an unknown user where new accounts are closed.
    """
    identity = Identity(settings.issuer, Subject.parse(proven.subject))
    async with db.write(Unchecked.SIGN_IN) as connection:
        previous = await sessions.user_by_cookie(connection, previous_cookie)
        known = await identities.find(connection, identity)
        # Without the lock of the other account, its deletion could overlook a visit for the choice.
        other = await _account_of(connection, proven.email) if known is None else None
        await lock_accounts(connection, known, previous, other)
        found = await identities.find(connection, identity)  # its account may have been deleted before the lock
        if found is None:
            if not settings.signup_open:
                raise Forbidden(UNKNOWN)
            if await _account_of(connection, proven.email) is not None:
                return await visits.start(connection, Purpose.CHOICE, next_page=next_page, proven=proven)
        return await _enter(connection, identity, proven, origin, previous_cookie)


async def continue_as_new(
    db: Database, settings: OidcSettings, choice: Choice, origin: Origin, *, previous_cookie: str | None
) -> tuple[SignedIn, Visit]:
    """Create an account for the identity of a choice, and sign it in. Raises InvalidRequest for an ended choice."""
    async with db.write(Unchecked.SIGN_IN) as connection:
        await lock_accounts(connection, await sessions.user_by_cookie(connection, previous_cookie))
        visit = await _take(connection, choice)
        if not settings.signup_open:
            raise Forbidden(UNKNOWN)
        identity = Identity(settings.issuer, Subject.parse(visit.proven.subject))
        return await _enter(connection, identity, visit.proven, origin, previous_cookie), visit


async def link_and_sign_in(
    db: Database,
    settings: OidcSettings,
    choice: Choice,
    password: GivenPassword,
    passwords: Passwords,
    origin: Origin,
    *,
    previous_cookie: str | None,
) -> tuple[SignedIn, Visit]:
    """Link the identity of a choice to the account with its address, whose password this is, and sign it in.

    Raises Unauthenticated for a wrong password, RateLimited after repeated failures, and InvalidRequest for a choice
    that has ended.
    """
    visit = await find_choice(db, choice)
    identity = Identity(settings.issuer, Subject.parse(visit.proven.subject))

    async def link(connection: AsyncConnection, user_id: UserId) -> OfProvider:
        await _take(connection, choice)
        await _add(connection, identity, user_id)
        return await _of_provider(connection, identity, user_id, visit.proven)

    given = LogIn(EmailAddress.parse(visit.proven.email or ""), password)
    also = Link(link, identities.issuer_detail(identity.issuer))
    return await login.log_in(db, passwords, given, origin, previous_cookie=previous_cookie, also=also), visit


class Password(msgspec.Struct):
    """The password of the account to which an identity is linked."""

    password: GivenPassword


class Choice(NamedTuple):
    """What shows that a request is of the browser that has a choice: the state in the form, and the cookie."""

    state: str
    cookie: str


async def find_choice(db: Database, choice: Choice) -> Visit:
    """Return the visit of a choice that is still open. Raises InvalidRequest."""
    async with db.read() as connection:
        visit = await visits.find(connection, *choice)
    if visit is None or visit.purpose is not Purpose.CHOICE:
        raise InvalidRequest(ENDED)
    return visit


async def start_for(db: Database, caller: Principal, purpose: Purpose, next_page: str, proof: Presence | None) -> Begun:
    """Start a visit that is bound to the caller's session: to link an identity, which needs a proof, or as a proof."""
    async with db.write(caller.exclusive()) as connection:
        if proof is not None:
            await proof.confirm(connection)
        begun = await visits.start(connection, purpose, next_page=next_page, session_id=caller.require_session())
        if proof is not None:
            await proof.settle(connection)
    return begun


async def link(db: Database, settings: OidcSettings, caller: Principal, proven: Proven) -> None:
    """Link an identity to the account of the caller, who has proved their presence. Raises Conflict."""
    identity = Identity(settings.issuer, Subject.parse(proven.subject))
    async with db.write(caller.exclusive()) as connection:
        if await identities.find(connection, identity) == caller.user_id:
            return
        await _add(connection, identity, caller.user_id)
        await _of_provider(connection, identity, caller.user_id, proven)
        await record(connection, _entry(Action.ACCOUNT_LINK, caller.origin, caller.user_id, identity))


async def prove_presence(
    db: Database, settings: OidcSettings, caller: Principal, proven: Proven, signed_in_at: datetime
) -> None:
    """Remember that the caller has just signed in again at the provider. Raises Forbidden for another identity."""
    identity = Identity(settings.issuer, Subject.parse(proven.subject))
    async with db.write(caller.exclusive()) as connection:
        if await identities.find(connection, identity) != caller.user_id:
            raise Forbidden("You signed in as somebody else. Sign in at the provider as the user of this account.")
        await presence.note(connection, caller.user_id, caller.require_session(), signed_in_at)


async def _enter(
    connection: AsyncConnection, identity: Identity, proven: Proven, origin: Origin, previous_cookie: str | None
) -> SignedIn:
    known = await identities.find_or_create(connection, identity, identities_table)
    user = await _USER.one(connection, of_user=known.user_id)
    if user.disabled_at is not None:
        raise Forbidden(DISABLED)
    of_provider = await _of_provider(connection, identity, known.user_id, proven)
    # A session id that somebody planted in the browser must not become signed in.
    await sessions.end_by_cookie(connection, previous_cookie)
    cookie = await sessions.open_session(connection, known.user_id, origin.device, of_provider)
    origin = origin._replace(actor=Actor.SESSION)
    created = [_entry(Action.ACCOUNT_CREATE, origin, known.user_id, identity)] if known.is_new else []
    await record(connection, *created, _entry(Action.LOGIN, origin, known.user_id, identity))
    return SignedIn(Account(known.user_id, user.email or proven.email, user.created_at), cookie)


async def _of_provider(connection: AsyncConnection, identity: Identity, user_id: UserId, proven: Proven) -> OfProvider:
    """Store what the provider says of the user, and return what a session keeps of the sign-in."""
    names = {"new_email": proven.email, "new_name": proven.name}
    pair = {"of_issuer": identity.issuer, "of_subject": str(identity.subject)}
    row = await _DESCRIBE.first(connection, **pair, **names)
    if row is None:  # the identity came with a portal link, and the resolver has stored it
        await first_proof.store(connection, identity, user_id)
        row = await _DESCRIBE.one(connection, **pair, **names)
    await _SHOW.execute(connection, of_user=user_id, **names)
    return OfProvider(row, proven.session)


async def _add(connection: AsyncConnection, identity: Identity, user_id: UserId) -> None:
    """Link an identity. Raises Conflict if a user has it already."""
    known = await identities.find(connection, identity)
    if known is not None and known != user_id:
        raise Conflict(OF_ANOTHER)
    if known is None:
        await identities.add(connection, identity, user_id, identities_table)


async def _take(connection: AsyncConnection, choice: Choice) -> Visit:
    visit = await visits.take(connection, *choice)
    if visit is None or visit.purpose is not Purpose.CHOICE:
        raise InvalidRequest(ENDED)
    return visit


async def _account_of(connection: AsyncConnection, email: str | None) -> UserId | None:
    """Return the account whose sign-in name this verified address is, or None."""
    return None if email is None else await _BY_EMAIL.first(connection, email_key=EmailAddress.parse(email).key)


def _entry(action: Action, origin: Origin, user_id: UserId, identity: Identity) -> Entry:
    return Entry(action, origin, user_id, detail=identities.issuer_detail(identity.issuer))


_PAIR = (
    identities_table.c.issuer == bindparam("of_issuer"),
    identities_table.c.subject == bindparam("of_subject"),
)
_DESCRIBE = scalar(
    update(identities_table)
    .where(*_PAIR)
    .values(email=bindparam("new_email"), name=bindparam("new_name"))
    .returning(identities_table.c.id),
    int,
)
_SHOW = Command(
    update(users_table)
    .where(users_table.c.id == bindparam("of_user"))
    .values(
        shown_email=func.coalesce(bindparam("new_email", type_=String), users_table.c.shown_email),
        shown_name=func.coalesce(bindparam("new_name", type_=String), users_table.c.shown_name),
    )
)


class _User(NamedTuple):
    email: str | None
    created_at: datetime
    disabled_at: datetime | None


_USER = Query(
    select(users_table.c.email, users_table.c.created_at, users_table.c.disabled_at).where(
        users_table.c.id == bindparam("of_user")
    ),
    _User,
)
_BY_EMAIL = scalar(select(users_table.c.id).where(users_table.c.email_key == bindparam("email_key")), UserId)
