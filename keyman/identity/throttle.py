"""Slows down the guessing of passwords.

Failed attempts are counted in the database, so that all replicas count together.

An attempt is counted before the password is verified, and subtracted again if the password was right. So a thousand
attempts at the same time get no more guesses than a thousand one after the other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import NamedTuple

from sqlalchemy import ColumnElement, bindparam, case, delete, or_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.clock import now
from keyman.errors import RateLimited
from keyman.identity.networks import network_of
from keyman.identity.tables import throttle
from keyman.ids import UserId
from keyman.storage.statements import Command, Query
from keyman.storage.transactions import Authority, Database, Unchecked
from keyman.storage.types import UtcTime

WINDOW = timedelta(minutes=15)
"""The time for which failures count, from the first one on."""

CLOCKS_APART = timedelta(minutes=1)
"""If a window ends later than one that starts now, by more than this, a clock that ran ahead has started it. It then
counts as over: otherwise, a clock that runs a day ahead for a moment would keep an owner out for a day. The difference
between the clocks of two replicas, and the time for which an attempt waits for a lock, are shorter.
"""

MAX_PER_ACCOUNT = 10
"""The maximum number of failures for one e-mail address in a window. That is 960 guesses a day, for passwords of at
least ten characters.
"""

MAX_PER_NETWORK = 100
"""The maximum number of failures from one address (IPv6: one /64) in a window. An office behind one address mistypes
less often.
"""

MAX_SIGNUPS_PER_NETWORK = 50
"""The maximum number of new accounts from one address in a window."""

TOO_MANY_FAILURES = "Too many attempts failed. Wait before you try again."
TOO_MANY_SIGNUPS = "Too many accounts were created from your network. Wait before you create another one."


@dataclass(frozen=True)
class Bucket:
    """A common property of attempts, and the number of attempts that a window allows."""

    name: str
    limit: int

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.name.encode()).digest()


def login_buckets(email_key: str, address: str | None) -> tuple[Bucket, ...]:
    return (Bucket(f"login|account|{email_key}", MAX_PER_ACCOUNT), *_by_network("login", address, MAX_PER_NETWORK))


def password_buckets(user_id: UserId, address: str | None) -> tuple[Bucket, ...]:
    """Return the buckets of a password change.

    They are separate from the buckets of sign-ins. Anyone who knows the address can fill those, and the user could then
    not change the password.
    """
    return (Bucket(f"password|account|{user_id}", MAX_PER_ACCOUNT), *_by_network("password", address, MAX_PER_NETWORK))


def signup_buckets(address: str | None) -> tuple[Bucket, ...]:
    return _by_network("signup", address, MAX_SIGNUPS_PER_NETWORK)


async def count(db: Database, by: Authority, buckets: tuple[Bucket, ...], refusal: str = TOO_MANY_FAILURES) -> None:
    """Count one attempt in each bucket. Raises RateLimited with the text `refusal` when one of them is full.
    Its `retry_after` is the number of seconds until the window ends.
    """
    if not buckets:
        return
    moment = now()
    query = _COUNT["sqlite" if db.is_sqlite else "postgresql"]
    waits = []
    async with db.write(by) as connection:
        for bucket in _in_order(buckets):
            row = await query.one(connection, bucket=bucket.digest, **_window(moment))
            if row.attempts > bucket.limit:
                waits.append((row.ends_at - moment).total_seconds())
    if waits:
        raise RateLimited(refusal, retry_after=max(1, ceil(max(waits))))


async def forgive(connection: AsyncConnection, buckets: tuple[Bucket, ...]) -> None:
    """Subtract an attempt whose password was right, and delete the failures of the account.

    It runs in the transaction of the action itself, so that the attempt still counts if the action fails.
    """
    account = buckets[0]
    for bucket in _in_order(buckets):
        command = _FORGET if bucket is account else _ONE_LESS
        await command.execute(connection, of_bucket=bucket.digest)


async def take_back(db: Database, buckets: tuple[Bucket, ...]) -> None:
    """Subtract an attempt that was refused before its password was verified."""
    if not buckets:
        return
    async with db.write(Unchecked.OUTCOME) as connection:
        for bucket in _in_order(buckets):
            await _ONE_LESS.execute(connection, of_bucket=bucket.digest)


def _window(moment: datetime) -> dict[str, datetime]:
    """Return the parameters of `_is_over` and of a new window."""
    new_end = moment + WINDOW
    return {"moment": moment, "new_end": new_end, "last_end": new_end + CLOCKS_APART}


def _in_order(buckets: tuple[Bucket, ...]) -> list[Bucket]:
    """Return the buckets in a fixed order, so that two transactions never deadlock."""
    return sorted(buckets, key=lambda bucket: bucket.digest)


class _Counted(NamedTuple):
    attempts: int
    ends_at: datetime


def _counting(insert: type[sqlite.Insert] | type[postgresql.Insert]) -> Query[_Counted]:
    """Return a statement that counts an attempt in a bucket, and starts a new window if the last one has ended."""
    new = insert(throttle).values(bucket=bindparam("bucket"), attempts=1, ends_at=bindparam("new_end", type_=UtcTime))
    is_over = _is_over()
    counted = new.on_conflict_do_update(
        index_elements=[throttle.c.bucket],
        set_={
            "attempts": case((is_over, 1), else_=throttle.c.attempts + 1),
            "ends_at": case((is_over, new.excluded.ends_at), else_=throttle.c.ends_at),
        },
    )
    return Query(counted.returning(throttle.c.attempts, throttle.c.ends_at), _Counted)


def _is_over() -> ColumnElement[bool]:
    """Return the condition for a window that has ended, or that a wrong clock has started."""
    return or_(
        throttle.c.ends_at <= bindparam("moment", type_=UtcTime),
        throttle.c.ends_at > bindparam("last_end", type_=UtcTime),
    )


_COUNT = {"sqlite": _counting(sqlite.Insert), "postgresql": _counting(postgresql.Insert)}
_FORGET = Command(delete(throttle).where(throttle.c.bucket == bindparam("of_bucket")))
_ONE_LESS = Command(
    update(throttle)
    .where(throttle.c.bucket == bindparam("of_bucket"), throttle.c.attempts > 0)
    .values(attempts=throttle.c.attempts - 1)
)


def _by_network(what: str, address: str | None, limit: int) -> tuple[Bucket, ...]:
    return (Bucket(f"{what}|network|{network_of(address)}", limit),) if address else ()
