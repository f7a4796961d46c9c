"""Proof of presence: the user of a session is there now, and not somebody who found the browser open or stole a cookie.

To link or unlink an identity, to set a first password and to delete the account, a session is not enough. The proof is
the current password. A user without one signs in again at the identity provider: the callback of that sign-in calls
`note`, and the session can then prove the user's presence once, within PRESENT_FOR. A token proves nothing, and neither
does a session that an application opened by a portal link.

An operation calls `prove` first, which can take as long as an Argon2 hash, and then `confirm` in its transaction, whose
authority is `caller.exclusive()`. As the last step before the audit entry, it calls `settle`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Entry
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import Conflict, FieldError, Forbidden, InvalidRequest, RateLimited, Unauthenticated
from keyman.identity import limits, throttle
from keyman.identity.limits import Bucket
from keyman.identity.passwords import Passwords, WrongPassword
from keyman.identity.principals import Principal
from keyman.identity.tables import sessions, users
from keyman.ids import SessionId, UserId
from keyman.storage.statements import Command, Query
from keyman.storage.transactions import Database
from keyman.storage.types import UtcTime
from keyman.values import GivenPassword

PRESENT_FOR = timedelta(minutes=5)
"""The time for which a sign-in at the provider proves presence: as long as its `auth_time` may lie in the past."""

OF_AN_APPLICATION = "You cannot do this in a session that an application opened. Sign in to keyman itself."
WRONG = "The current password is wrong."
SIGN_IN_AGAIN = (
    "This account has no password. Sign in again at your identity provider, then repeat this within 5 minutes."
)
_ENDED = "The session has ended. Sign in again."


@dataclass(frozen=True)
class Presence:
    """A proof that was accepted. It counts only in a transaction that confirms it.

    `password_hash` is the hash that the password matched, and `new_hash` the one to store instead, if its parameters
    are outdated. Without a password, `present_at` is the time of the sign-in at the provider.
    """

    session_id: SessionId
    user_id: UserId
    password_hash: str | None = None
    new_hash: str | None = None
    present_at: datetime | None = None
    buckets: tuple[Bucket, ...] = ()

    async def confirm(self, connection: AsyncConnection) -> None:
        """Use the proof up, in a transaction on the authority of `caller.exclusive()`.

        Raises Conflict if the password was changed meanwhile, or if another request has used the proof.
        """
        if self.password_hash is not None:
            found = await _SAME_PASSWORD.execute(
                connection,
                of_user=self.user_id,
                proved_hash=self.password_hash,
                new_hash=self.new_hash or self.password_hash,
            )
        else:
            found = await _USE_UP.execute(
                connection, of_session=self.session_id, of_user=self.user_id, proved_at=self.present_at
            )
        if not found:
            raise Conflict("Another request changed the account at the same time.")

    async def settle(self, connection: AsyncConnection) -> None:
        """Take back the attempt, because its password was right. Call it just before the audit entry."""
        if self.buckets:
            await throttle.forgive(connection, self.buckets)


async def prove(db: Database, passwords: Passwords, caller: Principal, password: GivenPassword | None) -> Presence:
    """Return the proof that the caller's user is there: by `password`, or by a sign-in at the provider.

    Raises Forbidden for a token, for a portal session, for a wrong password, and without a fresh sign-in if the account
    has no password. Raises InvalidRequest if it has one and none is given, and RateLimited after repeated failures.
    """
    session = await _find(db, caller)
    if session.password_hash is not None:
        if password is None:
            raise InvalidRequest.at(FieldError("current_password", "is missing"))
        return await _by_password(db, passwords, caller, session, password)
    if session.present_at is None or not _is_fresh(session.present_at):
        raise Forbidden(SIGN_IN_AGAIN)
    return Presence(session.id, caller.user_id, present_at=session.present_at)


async def check_session(db: Database, caller: Principal) -> None:
    """Raise Forbidden for a caller that can never prove presence: a token, or a portal session."""
    await _find(db, caller)


class Means(NamedTuple):
    """How the user of a session can prove their presence, for a page."""

    by_password: bool
    is_proved: bool


async def means(db: Database, caller: Principal) -> Means:
    """Return whether the account has a password, and whether a sign-in at the provider counts now. Raises Forbidden."""
    session = await _find(db, caller)
    fresh = session.present_at is not None and _is_fresh(session.present_at)
    return Means(session.password_hash is not None, fresh)


async def note(connection: AsyncConnection, user_id: UserId, session_id: SessionId, at: datetime) -> None:
    """Remember that the user of this session signed in again at the provider, at the time `auth_time` of the ID token.

    The caller has checked that the identity is one of this user's, and has locked the account. Raises Unauthenticated
    if the session has ended.
    """
    if not await _NOTE.execute(connection, of_session=session_id, of_user=user_id, noted_at=at):
        raise Unauthenticated(_ENDED)


class _Session(NamedTuple):
    id: SessionId
    present_at: datetime | None
    application_id: int | None
    email_key: str | None
    password_hash: str | None


async def _find(db: Database, caller: Principal) -> _Session:
    async with db.read() as connection:
        row = await _OF_CALLER.first(connection, of_session=caller.require_session(), of_user=caller.user_id)
    if row is None:
        raise Unauthenticated(_ENDED)
    if row.application_id is not None:
        raise Forbidden(OF_AN_APPLICATION)
    return row


async def _by_password(
    db: Database, passwords: Passwords, caller: Principal, session: _Session, password: GivenPassword
) -> Presence:
    account, address = session.email_key or "", caller.origin.address
    buckets = limits.password_buckets(caller.user_id, address)
    with passwords.place(account, address) as place:
        await throttle.count(db, caller, buckets)
        try:
            new_hash = await passwords.verify(session.password_hash, password, place)
        except WrongPassword:
            await _count_failure(db, caller, account)
            raise Forbidden(WRONG) from None
        except RateLimited:
            await throttle.take_back(db, buckets)
            raise
    return Presence(session.id, caller.user_id, session.password_hash, new_hash, buckets=buckets)


async def _count_failure(db: Database, caller: Principal, account: str) -> None:
    """Count a wrong password as a failed sign-in too, and record it.

    Whether sign-ins are held up does not matter here: anyone who knows the address can fill their buckets, and the user
    could then not delete the account.
    """
    with contextlib.suppress(RateLimited):
        await throttle.count(db, caller, limits.login_buckets(account, caller.origin.address))
    async with db.write(caller) as connection:
        await record(connection, Entry(Action.PASSWORD_FAILED, caller.origin, caller.user_id))


def _is_fresh(present_at: datetime) -> bool:
    """Return True if a sign-in counts now. One in the future does not, beyond what two clocks differ."""
    return -throttle.CLOCKS_APART <= now() - present_at <= PRESENT_FOR


_IS_THIS = (sessions.c.id == bindparam("of_session"), sessions.c.user_id == bindparam("of_user"))
_OF_CALLER = Query(
    select(sessions.c.id, sessions.c.present_at, sessions.c.application_id, users.c.email_key, users.c.password_hash)
    .join_from(sessions, users)
    .where(*_IS_THIS, users.c.disabled_at.is_(None)),
    _Session,
)
_NOTE = Command(
    update(sessions)
    .where(*_IS_THIS, sessions.c.application_id.is_(None))
    .values(present_at=bindparam("noted_at", type_=UtcTime))
)
_USE_UP = Command(
    update(sessions)
    .where(*_IS_THIS, sessions.c.present_at == bindparam("proved_at", type_=UtcTime))
    .values(present_at=None)
)
_SAME_PASSWORD = Command(
    update(users)
    .where(
        users.c.id == bindparam("of_user"),
        users.c.password_hash == bindparam("proved_hash"),
        users.c.disabled_at.is_(None),
    )
    .values(password_hash=bindparam("new_hash"))
)
