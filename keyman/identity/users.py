"""Accounts: their passwords, and the operations of an operator. Sign-in is in login.py."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import msgspec
from sqlalchemy import bindparam, func, insert, select, union, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import OPERATOR, Action, Entry
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import Conflict, FieldError, Forbidden, InvalidRequest, RateLimited, Unauthenticated
from keyman.identity import limits, sessions, throttle
from keyman.identity.identities import new_user_id
from keyman.identity.limits import Bucket
from keyman.identity.passwords import Passwords, WrongPassword
from keyman.identity.principals import Principal
from keyman.identity.selection import Whom, lock_chosen
from keyman.identity.tables import application_identities, users
from keyman.identity.tables import identities as identities_table
from keyman.ids import UserId
from keyman.storage.statements import Command, Query
from keyman.storage.transactions import Database, Unchecked
from keyman.storage.types import UtcTime
from keyman.values import EmailAddress, GivenPassword, NewPassword


class ChangePassword(msgspec.Struct):
    """The request to change the password, with the current one as proof, or to set the first one, without it."""

    new_password: NewPassword
    current_password: GivenPassword | msgspec.UnsetType = msgspec.UNSET


class Account(msgspec.Struct):
    """An account, as its user sees it. `email` is None if nobody has named one."""

    id: int
    email: str | None
    created_at: datetime


class ListedIdentity(msgspec.Struct):
    """An identity of an account, as an operator sees it."""

    issuer: str
    subject: str

    def __str__(self) -> str:
        return f"{self.subject} ({self.issuer})"


class AccountState(msgspec.Struct):
    """An account, as an operator sees it. `email` is the sign-in name, or else for display only."""

    id: int
    email: str | None
    created_at: datetime
    disabled_at: datetime | None
    identities: list[ListedIdentity]


async def change_password(
    db: Database, passwords: Passwords, caller: Principal, current: GivenPassword, new: NewPassword
) -> None:
    """Set a new password and end all other sessions. Raises InvalidRequest if the current one is wrong, Conflict if
    another request changed the account meanwhile, and RateLimited after repeated failures.
    """
    session_id = caller.require_session()
    row = await _by_id(db, caller.user_id)
    if row is None:
        raise Unauthenticated("The session has ended. Sign in again.")
    if row.email is None or row.password_hash is None:
        raise Forbidden("This account has no password.")
    buckets = limits.password_buckets(caller.user_id, caller.origin.address)
    new_hash = await _prove_and_hash(db, passwords, row, caller, buckets, current, new)
    try:
        async with db.write(caller.exclusive()) as connection:
            await lock_as_proved(connection, row, new_hash)
            await sessions.end_all(connection, row.id, but=session_id)
            await throttle.forgive(connection, buckets)
            await record(connection, Entry(Action.PASSWORD, caller.origin, row.id))
    except WrongPassword:
        raise Conflict("Another request changed the account at the same time.") from None


async def _prove_and_hash(
    db: Database,
    passwords: Passwords,
    row: UserRow,
    caller: Principal,
    buckets: tuple[Bucket, ...],
    current: GivenPassword,
    new: NewPassword,
) -> str:
    """Verify the current password, and return the hash of the new one. Raises InvalidRequest and RateLimited."""

    async def record_failure(connection: AsyncConnection) -> None:
        await record(connection, Entry(Action.PASSWORD_FAILED, caller.origin, row.id))

    with passwords.place(EmailAddress(row.email or "").key, caller.origin.address) as place:
        await throttle.count(db, caller, buckets)
        try:
            await passwords.verify(row.password_hash, current, place)
            return await passwords.hash(new, place)
        except WrongPassword:
            await db.together(caller, record_failure)
            raise InvalidRequest.at(FieldError("current_password", "is wrong")) from None
        except RateLimited:
            await throttle.take_back(db, buckets)
            raise


async def add(db: Database, passwords: Passwords, email: EmailAddress, password: NewPassword) -> Account:
    """Create an account, as an operator. Raises Conflict for a known address."""
    password_hash = await passwords.hash(password)
    try:
        async with db.write(Unchecked.OPERATOR) as connection:
            account = await insert_account(connection, email, password_hash)
            await record(connection, Entry(Action.SIGNUP, OPERATOR, UserId(account.id)))
    except IntegrityError:
        raise Conflict("An account with this address already exists.") from None
    return account


async def list_all(db: Database) -> list[AccountState]:
    """Return every account, oldest first."""
    async with db.read() as connection:
        found = await _EVERY.all(connection)
        known: dict[int, list[ListedIdentity]] = {row.id: [] for row in found}
        for row in await _IDENTITIES.all(connection):
            if row.user_id in known:  # and was not created meanwhile
                known[row.user_id].append(ListedIdentity(row.issuer, row.subject))
    return [AccountState(*row, known[row.id]) for row in found]


async def disable(db: Database, whom: Whom) -> None:
    """Disable an account at once. Its sessions end, sign-in and tokens are refused, keys stay. Raises NotFound."""
    async with db.write(Unchecked.OPERATOR) as connection:
        user_id = await lock_chosen(connection, whom)
        await _DISABLE.execute(connection, user_id=user_id, moment=now())
        await sessions.end_all(connection, user_id)
        await record(connection, Entry(Action.DISABLE, OPERATOR, user_id))


async def enable(db: Database, whom: Whom) -> None:
    """Enable a disabled account. Its tokens work again. Raises NotFound."""
    async with db.write(Unchecked.OPERATOR) as connection:
        user_id = await lock_chosen(connection, whom)
        await _ENABLE.execute(connection, user_id=user_id)
        await record(connection, Entry(Action.ENABLE, OPERATOR, user_id))


async def set_password(db: Database, passwords: Passwords, email: EmailAddress, password: NewPassword) -> None:
    """Set a password as an operator, and end all sessions. Raises NotFound."""
    new_hash = await passwords.hash(password)
    async with db.write(Unchecked.OPERATOR) as connection:
        user_id = await lock_chosen(connection, email)
        await _SET_PASSWORD.execute(connection, user_id=user_id, new_hash=new_hash)
        await sessions.end_all(connection, user_id)
        await record(connection, Entry(Action.PASSWORD, OPERATOR, user_id))


class UserRow(NamedTuple):
    """A user, for a check of the password. Without one, `password_hash` is None."""

    id: UserId
    email: str | None  # the sign-in name
    password_hash: str | None
    created_at: datetime
    disabled_at: datetime | None


class _Listed(NamedTuple):
    id: UserId
    email: str | None
    created_at: datetime
    disabled_at: datetime | None


_USER = select(users.c.id, users.c.email, users.c.password_hash, users.c.created_at, users.c.disabled_at)
_BY_EMAIL = Query(_USER.where(users.c.email_key == bindparam("email_key")), UserRow)
_BY_ID = Query(_USER.where(users.c.id == bindparam("user_id")), UserRow)
_EVERY = Query(
    select(
        users.c.id,
        func.coalesce(users.c.email, users.c.shown_email).label("email"),
        users.c.created_at,
        users.c.disabled_at,
    )
    .where(users.c.erased_at.is_(None))
    .order_by(users.c.id),
    _Listed,
)


class _Identity(NamedTuple):
    user_id: UserId
    issuer: str
    subject: str


_IDENTITIES = Query(
    union(  # one that came both by a portal link and by a sign-in is in both
        *(
            select(table.c.user_id, table.c.issuer, table.c.subject)
            for table in (identities_table, application_identities)
        )
    ).order_by("user_id", "issuer", "subject"),
    _Identity,
)
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


async def find(db: Database, email: EmailAddress) -> UserRow | None:
    """Return the user with this address, disabled or not, or None."""
    async with db.read() as connection:
        return await _BY_EMAIL.first(connection, email_key=email.key)


async def _by_id(db: Database, user_id: UserId) -> UserRow | None:
    async with db.read() as connection:
        return await _BY_ID.first(connection, user_id=user_id)


async def lock_as_proved(connection: AsyncConnection, proved: UserRow, new_hash: str | None) -> None:
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


async def insert_account(connection: AsyncConnection, email: EmailAddress, password_hash: str) -> Account:
    """Store a user with a new owner. Raises IntegrityError if another user has the address."""
    created_at = now()
    user_id = await new_user_id(connection)
    await _INSERT.execute(
        connection,
        id=user_id,
        email=str(email),
        email_key=email.key,
        password_hash=password_hash,
        created_at=created_at,
    )
    return Account(user_id, str(email), created_at)
