"""Sign-up, sign-in and sign-out, and the record of failed sign-ins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Actor, Entry, Origin
from keyman.audit.log import record
from keyman.errors import Conflict, Forbidden, RateLimited, Unauthenticated
from keyman.identity import limits, sessions, throttle, users
from keyman.identity.passwords import Passwords, WrongPassword
from keyman.identity.principals import Principal
from keyman.identity.sessions import OfProvider
from keyman.identity.standing import lock_accounts
from keyman.identity.throttle import Total
from keyman.identity.users import Account
from keyman.ids import UserId
from keyman.secret import Secret
from keyman.storage.transactions import Database, Unchecked
from keyman.values import EmailAddress, GivenPassword, NewPassword


class SignUp(msgspec.Struct):
    """The request for a new account."""

    email: EmailAddress
    password: NewPassword


class LogIn(msgspec.Struct):
    """The request to sign in."""

    email: EmailAddress
    password: GivenPassword


def require_passwords(*, are_on: bool) -> None:
    """Raise Forbidden where sign-in by password is switched off."""
    if not are_on:
        raise Forbidden("Passwords are switched off here. Sign in in another way.")


class SignedIn(NamedTuple):
    """An account, and the cookie of its new session."""

    account: Account
    cookie: Secret


class Link(NamedTuple):
    """What a sign-in with a password does besides, in its transaction: it links an identity to the account.

    `detail` says which issuer the identity has, for the audit log.
    """

    add: Callable[[AsyncConnection, UserId], Awaitable[OfProvider]]
    detail: str


async def sign_up(
    db: Database, passwords: Passwords, new: SignUp, origin: Origin, *, is_open: bool, previous_cookie: str | None
) -> SignedIn:
    """Create an account and sign it in. Raises Forbidden when sign-up is closed, Conflict for a known address."""
    if not is_open:
        raise Forbidden("Sign-up is closed. Ask the operator for an account.")
    with passwords.place(new.email.key, origin.address) as place:
        buckets = limits.signup_buckets(origin.address)
        await throttle.count(db, Unchecked.SIGN_IN, buckets, limits.TOO_MANY_SIGNUPS)
        if await users.find(db, new.email) is not None:
            raise Conflict("An account with this address already exists. Sign in instead.")
        try:
            password_hash = await passwords.hash(new.password, place)
        except RateLimited:
            await throttle.take_back(db, buckets)
            raise
        try:
            async with db.write(Unchecked.SIGN_IN) as connection:
                await lock_accounts(connection, await sessions.user_by_cookie(connection, previous_cookie))
                account = await users.insert_account(connection, new.email, password_hash)
                await sessions.end_by_cookie(connection, previous_cookie)
                cookie = await sessions.open_session(connection, UserId(account.id), origin.device)
                await record(connection, Entry(Action.SIGNUP, origin, UserId(account.id)))
        except IntegrityError:
            raise Conflict("An account with this address already exists. Sign in instead.") from None
    return SignedIn(account, cookie)


async def log_in(
    db: Database,
    passwords: Passwords,
    given: LogIn,
    origin: Origin,
    *,
    previous_cookie: str | None,
    also: Link | None = None,
) -> SignedIn:
    """Sign in with a new session.

    Raises Unauthenticated for an unknown address, a disabled account and a wrong password, with the same text and after
    the same time. Raises RateLimited after repeated failures.
    """
    with passwords.place(given.email.key, origin.address) as place:
        buckets = limits.login_buckets(given.email.key, origin.address)
        await throttle.count(db, Unchecked.SIGN_IN, buckets)
        row = await users.find(db, given.email)
        is_usable = row is not None and row.disabled_at is None
        try:
            stored = row.password_hash if row is not None else None
            new_hash = await passwords.verify(stored, given.password, place)
            if row is None or not is_usable:
                raise WrongPassword
            async with db.write(Unchecked.SIGN_IN) as connection:
                await lock_accounts(connection, row.id, await sessions.user_by_cookie(connection, previous_cookie))
                await users.lock_as_proved(connection, row, new_hash)
                # A session id that somebody planted in the browser must not become signed in.
                await sessions.end_by_cookie(connection, previous_cookie)
                of_provider = None if also is None else await also.add(connection, row.id)
                cookie = await sessions.open_session(connection, row.id, origin.device, of_provider)
                await throttle.forgive(connection, buckets)
                await record(connection, *_entries(origin._replace(actor=Actor.SESSION), row.id, also))
        except WrongPassword:
            # Counted for an unknown address too, because without this write the answer would be measurably faster.
            async with db.write(Unchecked.SIGN_IN) as connection:
                await _record_failure(connection, given.email, row.id if row is not None else None, origin)
            raise Unauthenticated("E-mail or password is wrong.") from None
        except RateLimited:
            await throttle.take_back(db, buckets)
            raise
    return SignedIn(Account(row.id, row.email, row.created_at), cookie)


def _entries(origin: Origin, user_id: UserId, also: Link | None) -> list[Entry]:
    if also is None:
        return [Entry(Action.LOGIN, origin, user_id)]
    return [Entry(action, origin, user_id, detail=also.detail) for action in (Action.ACCOUNT_LINK, Action.LOGIN)]


async def _record_failure(
    connection: AsyncConnection, email: EmailAddress, user_id: UserId | None, origin: Origin
) -> None:
    """Record the first wrong password of a window. `record_totals` records how many there were when it has ended.

    An address without an account gets no entry: otherwise, a stranger could fill the audit log.
    """
    last, current = await throttle.count_failure(connection, email.key, user_id)
    if user_id is None or current > 1:
        await throttle.imitate_entry(connection, email.key)
        return
    entries = [_total(Total(user_id, last))] if last > 1 else []
    await record(connection, *entries, Entry(Action.LOGIN_FAILED, origin, user_id, detail="1 failed sign-in"))


async def record_totals(db: Database) -> None:
    """Record how many sign-ins failed in each window that has ended, if it was more than the one already recorded."""
    taken = throttle.ENDED_AT_ONCE
    while taken >= throttle.ENDED_AT_ONCE:
        async with db.write(Unchecked.KEYMAN) as connection:
            totals = await throttle.take_ended(connection)
            await record(connection, *(_total(total) for total in totals if total.failures > 1))
        taken = len(totals)


def _total(total: Total) -> Entry:
    detail = f"{total.failures} failed sign-ins in 15 minutes"
    return Entry(Action.LOGIN_FAILED, Origin(Actor.ANONYMOUS), total.user_id, detail=detail)


async def log_out(db: Database, caller: Principal) -> str | None:
    """End the caller's session. Raises Forbidden for a token.

    Returns the issuer at which the user signed in, or None.
    """
    session_id = caller.session_id or caller.require_session()
    async with db.write(caller.exclusive()) as connection:
        issuer = await sessions.issuer_of(connection, session_id)
        await sessions.end_one(connection, caller.user_id, session_id)
        await record(connection, Entry(Action.LOGOUT, caller.origin, caller.user_id))
    return issuer
