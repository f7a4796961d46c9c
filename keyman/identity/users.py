"""Accounts: sign-up, sign-in, sign-out, passwords, and the operations of an operator."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import msgspec
from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import OPERATOR, Action, Actor, Entry, Origin
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import Conflict, FieldError, Forbidden, InvalidRequest, NotFound, RateLimited, Unauthenticated
from keyman.identity import sessions, throttle
from keyman.identity.passwords import Passwords, WrongPassword
from keyman.identity.principals import Principal
from keyman.identity.standing import lock_accounts
from keyman.identity.tables import owners, users
from keyman.identity.throttle import Bucket, Total
from keyman.ids import OwnerId, UserId
from keyman.secret import Secret
from keyman.storage.statements import Command, Query, scalar
from keyman.storage.transactions import Database, Unchecked
from keyman.storage.types import UtcTime
from keyman.values import EmailAddress, GivenPassword, NewPassword

OWNER_KIND = "user"
"""The value of `owners.kind` for a user."""


class SignUp(msgspec.Struct):
    """The request for a new account."""

    email: EmailAddress
    password: NewPassword


class LogIn(msgspec.Struct):
    """The request to sign in."""

    email: EmailAddress
    password: GivenPassword


class ChangePassword(msgspec.Struct):
    """The request to change the password, with the current one as proof."""

    current_password: GivenPassword
    new_password: NewPassword


class Account(msgspec.Struct):
    """An account, as its user sees it."""

    id: int
    email: str
    created_at: datetime


class AccountState(msgspec.Struct):
    """An account, as an operator sees it."""

    id: int
    email: str
    created_at: datetime
    disabled_at: datetime | None


class SignedIn(NamedTuple):
    account: Account
    cookie: Secret


async def sign_up(
    db: Database, passwords: Passwords, new: SignUp, origin: Origin, *, is_open: bool, previous_cookie: str | None
) -> SignedIn:
    """Create an account and sign it in. Raises Forbidden when sign-up is closed, Conflict for a known address."""
    if not is_open:
        raise Forbidden("Sign-up is closed. Ask the operator for an account.")
    with passwords.place(new.email.key, origin.address) as place:
        buckets = throttle.signup_buckets(origin.address)
        await throttle.count(db, Unchecked.SIGN_IN, buckets, throttle.TOO_MANY_SIGNUPS)
        if await _by_email(db, new.email) is not None:
            raise Conflict("An account with this address already exists. Sign in instead.")
        try:
            password_hash = await passwords.hash(new.password, place)
        except RateLimited:
            await throttle.take_back(db, buckets)
            raise
        try:
            async with db.write(Unchecked.SIGN_IN) as connection:
                await lock_accounts(connection, await sessions.user_by_cookie(connection, previous_cookie))
                account = await _insert(connection, new.email, password_hash)
                await sessions.end_by_cookie(connection, previous_cookie)
                cookie = await sessions.open_session(connection, UserId(account.id), origin.device)
                await record(connection, Entry(Action.SIGNUP, origin, UserId(account.id)))
        except IntegrityError:
            raise Conflict("An account with this address already exists. Sign in instead.") from None
    return SignedIn(account, cookie)


async def log_in(
    db: Database, passwords: Passwords, given: LogIn, origin: Origin, *, previous_cookie: str | None
) -> SignedIn:
    """Sign in with a new session.

    Raises Unauthenticated for an unknown address, a disabled account and a wrong password, with the same text and after
    the same time. Raises RateLimited after repeated failures.
    """
    with passwords.place(given.email.key, origin.address) as place:
        buckets = throttle.login_buckets(given.email.key, origin.address)
        await throttle.count(db, Unchecked.SIGN_IN, buckets)
        row = await _by_email(db, given.email)
        is_usable = row is not None and row.disabled_at is None
        try:
            stored = row.password_hash if row is not None else None
            new_hash = await passwords.verify(stored, given.password, place)
            if row is None or not is_usable:
                raise WrongPassword
            async with db.write(Unchecked.SIGN_IN) as connection:
                await lock_accounts(connection, row.id, await sessions.user_by_cookie(connection, previous_cookie))
                await _lock(connection, row, new_hash)
                # A session id that somebody planted in the browser must not become signed in.
                await sessions.end_by_cookie(connection, previous_cookie)
                cookie = await sessions.open_session(connection, row.id, origin.device)
                await throttle.forgive(connection, buckets)
                await record(connection, Entry(Action.LOGIN, origin._replace(actor=Actor.SESSION), row.id))
        except WrongPassword:
            # Counted for an unknown address too, because without this write the answer would be measurably faster.
            async with db.write(Unchecked.SIGN_IN) as connection:
                await _record_failure(connection, given.email, row.id if row is not None else None, origin)
            raise Unauthenticated("E-mail or password is wrong.") from None
        except RateLimited:
            await throttle.take_back(db, buckets)
            raise
    return SignedIn(_account(row), cookie)


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


async def log_out(db: Database, caller: Principal) -> None:
    """End the caller's session. Raises Forbidden for a token."""
    session_id = caller.require_session()
    async with db.write(caller.exclusive()) as connection:
        await sessions.end_one(connection, caller.user_id, session_id)
        await record(connection, Entry(Action.LOGOUT, caller.origin, caller.user_id))


async def change_password(db: Database, passwords: Passwords, caller: Principal, change: ChangePassword) -> None:
    """Set a new password and end all other sessions. Raises InvalidRequest if the current one is wrong, Conflict if
    another request changed the account meanwhile, and RateLimited after repeated failures.
    """
    session_id = caller.require_session()
    row = await _by_id(db, caller.user_id)
    if row is None:
        raise Unauthenticated("The session has ended. Sign in again.")
    buckets = throttle.password_buckets(caller.user_id, caller.origin.address)
    new_hash = await _prove_and_hash(db, passwords, row, caller, buckets, change)
    try:
        async with db.write(caller.exclusive()) as connection:
            await _lock(connection, row, new_hash)
            await sessions.end_all(connection, row.id, but=session_id)
            await throttle.forgive(connection, buckets)
            await record(connection, Entry(Action.PASSWORD, caller.origin, row.id))
    except WrongPassword:
        raise Conflict("Another request changed the account at the same time.") from None


async def _prove_and_hash(
    db: Database,
    passwords: Passwords,
    row: _User,
    caller: Principal,
    buckets: tuple[Bucket, ...],
    change: ChangePassword,
) -> str:
    """Verify the current password, and return the hash of the new one. Raises InvalidRequest and RateLimited."""
    with passwords.place(EmailAddress(row.email).key, caller.origin.address) as place:
        await throttle.count(db, caller, buckets)
        try:
            await passwords.verify(row.password_hash, change.current_password, place)
            return await passwords.hash(change.new_password, place)
        except WrongPassword:
            async with db.write(caller) as connection:
                await record(connection, Entry(Action.PASSWORD_FAILED, caller.origin, row.id))
            raise InvalidRequest.at(FieldError("current_password", "is not your current password")) from None
        except RateLimited:
            await throttle.take_back(db, buckets)
            raise


async def add(db: Database, passwords: Passwords, email: EmailAddress, password: NewPassword) -> Account:
    """Create an account, as an operator. Raises Conflict for a known address."""
    password_hash = await passwords.hash(password)
    try:
        async with db.write(Unchecked.OPERATOR) as connection:
            account = await _insert(connection, email, password_hash)
            await record(connection, Entry(Action.SIGNUP, OPERATOR, UserId(account.id)))
    except IntegrityError:
        raise Conflict("An account with this address already exists.") from None
    return account


async def list_all(db: Database) -> list[AccountState]:
    """Return every account, oldest first."""
    async with db.read() as connection:
        return [AccountState(*row) for row in await _EVERY.all(connection)]


async def disable(db: Database, email: EmailAddress) -> None:
    """Disable an account at once. Its sessions end, sign-in and tokens are refused, keys stay. Raises NotFound."""
    async with db.write(Unchecked.OPERATOR) as connection:
        user_id = await id_by_email(connection, email)
        await lock_accounts(connection, user_id)
        await _DISABLE.execute(connection, user_id=user_id, moment=now())
        await sessions.end_all(connection, user_id)
        await record(connection, Entry(Action.DISABLE, OPERATOR, user_id))


async def enable(db: Database, email: EmailAddress) -> None:
    """Enable a disabled account. Its tokens work again. Raises NotFound."""
    async with db.write(Unchecked.OPERATOR) as connection:
        user_id = await id_by_email(connection, email)
        await lock_accounts(connection, user_id)
        await _ENABLE.execute(connection, user_id=user_id)
        await record(connection, Entry(Action.ENABLE, OPERATOR, user_id))


async def set_password(db: Database, passwords: Passwords, email: EmailAddress, password: NewPassword) -> None:
    """Set a password as an operator, and end all sessions. Raises NotFound."""
    new_hash = await passwords.hash(password)
    async with db.write(Unchecked.OPERATOR) as connection:
        user_id = await id_by_email(connection, email)
        await lock_accounts(connection, user_id)
        await _SET_PASSWORD.execute(connection, user_id=user_id, new_hash=new_hash)
        await sessions.end_all(connection, user_id)
        await record(connection, Entry(Action.PASSWORD, OPERATOR, user_id))


async def id_by_email(connection: AsyncConnection, email: EmailAddress) -> UserId:
    """Return the id of the account with this address. Raises NotFound."""
    user_id = await _ID_BY_EMAIL.first(connection, email_key=email.key)
    if user_id is None:
        raise NotFound("There is no account with this address.")
    return user_id


class _User(NamedTuple):
    id: UserId
    email: str
    password_hash: str
    created_at: datetime
    disabled_at: datetime | None


class _Listed(NamedTuple):
    id: UserId
    email: str
    created_at: datetime
    disabled_at: datetime | None


_USER = select(users.c.id, users.c.email, users.c.password_hash, users.c.created_at, users.c.disabled_at)
_BY_EMAIL = Query(_USER.where(users.c.email_key == bindparam("email_key")), _User)
_BY_ID = Query(_USER.where(users.c.id == bindparam("user_id")), _User)
_ID_BY_EMAIL = scalar(select(users.c.id).where(users.c.email_key == bindparam("email_key")), UserId)
_EVERY = Query(select(users.c.id, users.c.email, users.c.created_at, users.c.disabled_at).order_by(users.c.id), _Listed)
_INSERT_OWNER = scalar(insert(owners).values(kind=OWNER_KIND).returning(owners.c.id), OwnerId)
_INSERT = Command(insert(users))
_ONE = update(users).where(users.c.id == bindparam("user_id"))
_DISABLE = Command(_ONE.values(disabled_at=func.coalesce(users.c.disabled_at, bindparam("moment", type_=UtcTime))))
_ENABLE = Command(_ONE.values(disabled_at=None))
_SET_PASSWORD = Command(_ONE.values(password_hash=bindparam("new_hash")))
_LOCK_AS_PROVED = Command(
    _ONE.where(users.c.password_hash == bindparam("proved_hash"), users.c.disabled_at.is_(None)).values(
        password_hash=bindparam("new_hash")
    )
)


async def _by_email(db: Database, email: EmailAddress) -> _User | None:
    async with db.read() as connection:
        return await _BY_EMAIL.first(connection, email_key=email.key)


async def _by_id(db: Database, user_id: UserId) -> _User | None:
    async with db.read() as connection:
        return await _BY_ID.first(connection, user_id=user_id)


async def _lock(connection: AsyncConnection, proved: _User, new_hash: str | None = None) -> None:
    """Lock an account whose password was verified, until the transaction ends. If `new_hash` is given, store it.

    Raises WrongPassword if the password was changed after it was verified, or the account was disabled. Without this
    check, a sign-in with the old password could open a session just after a password change has ended all sessions.
    """
    proved_hash = proved.password_hash
    is_same = await _LOCK_AS_PROVED.execute(
        connection, user_id=proved.id, proved_hash=proved_hash, new_hash=new_hash or proved_hash
    )
    if not is_same:
        raise WrongPassword


async def _insert(connection: AsyncConnection, email: EmailAddress, password_hash: str) -> Account:
    created_at = now()
    owner_id = await _INSERT_OWNER.one(connection)
    await _INSERT.execute(
        connection,
        id=owner_id,
        email=str(email),
        email_key=email.key,
        password_hash=password_hash,
        created_at=created_at,
    )
    return Account(owner_id, str(email), created_at)


def _account(row: _User) -> Account:
    return Account(row.id, row.email, row.created_at)
