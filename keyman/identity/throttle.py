"""Counts what `limits` allows, and slows down the guessing of passwords.

Attempts are counted in the database, so that all replicas count together.

An attempt is counted before the password is verified, and subtracted again if the password was right. So a thousand
attempts at the same time get no more guesses than a thousand one after the other.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from math import ceil
from typing import NamedTuple

from sqlalchemy import CTE, ColumnElement, bindparam, case, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.clock import now
from keyman.errors import RateLimited
from keyman.identity.limits import TOO_MANY_FAILURES, WINDOW, Bucket
from keyman.identity.tables import throttle
from keyman.ids import UserId
from keyman.storage.statements import Command, Query, scalar
from keyman.storage.transactions import Authority, Database, Unchecked
from keyman.storage.types import UtcTime

CLOCKS_APART = timedelta(minutes=1)
"""If a window ends later than one that starts now, by more than this, a clock that ran ahead has started it. It then
counts as over: otherwise, a clock that runs a day ahead for a moment would keep an owner out for a day. The difference
between the clocks of two replicas, and the time for which an attempt waits for a lock, are shorter.
"""

_FAILURES = b"failed sign-ins of user:"
"""The first 24 bytes of the bucket in which the wrong passwords for an account are counted for the audit log.

The other eight are the number of its user, so that the total can be recorded when the window has ended. No other bucket
begins like this: they are hashes.
"""

ENDED_AT_ONCE = 100
"""The maximum number of windows whose totals one transaction records: on SQLite, all writers wait for it."""


async def count(
    db: Database,
    by: Authority,
    buckets: tuple[Bucket, ...],
    refusal: str = TOO_MANY_FAILURES,
    *,
    counts_refused: bool = True,
) -> None:
    """Count one attempt in each bucket. Raises RateLimited with the text `refusal` when one of them is full.
    Its `retry_after` is the number of seconds until the window ends.

    Without `counts_refused`, an attempt that one bucket refuses counts in none.
    """
    if not buckets:
        return
    moment = now()
    query = _COUNT["sqlite" if db.is_sqlite else "postgresql"]
    waits = []
    async with db.write(by) as connection:
        for bucket in _in_order(buckets):
            row = await query.one(connection, counted=bucket.digest, **_window(moment, bucket.window))
            if row.attempts > bucket.limit:
                waits.append((row.ends_at - moment).total_seconds())
        refused = RateLimited(refusal, retry_after=max(1, ceil(max(waits)))) if waits else None
        if refused is not None and not counts_refused:
            raise refused  # which ends the transaction without a commit
    if refused is not None:
        raise refused


async def forgive(connection: AsyncConnection, buckets: tuple[Bucket, ...]) -> None:
    """Subtract an attempt whose password was right, and delete the failures of the account.

    It runs in the transaction of the action itself, so that the attempt still counts if the action fails.
    """
    account = buckets[0]
    for bucket in _in_order(buckets):
        command = _FORGET if bucket is account else _ONE_LESS
        await command.execute(connection, of_bucket=bucket.digest)


class Total(NamedTuple):
    """The number of wrong passwords for an account in a window that has ended."""

    user_id: UserId
    failures: int


async def count_failure(connection: AsyncConnection, email_key: str, user_id: UserId | None) -> tuple[int, int]:
    """Count a wrong password for the audit log. Return the failures of the last window, if it has just been found to
    have ended, and those of the current one.

    The same statements run for an address without an account, where `user_id` is None.
    """
    bucket = Bucket(f"failed|{email_key}", 0).digest if user_id is None else _FAILURES + user_id.to_bytes(8, "big")
    window = _window(now())
    ended = await _END.first(connection, of_bucket=bucket, moment=window["moment"], last_end=window["last_end"])
    current = await _COUNT[connection.dialect.name].one(connection, counted=bucket, **window)
    return ended or 0, current.attempts


async def imitate_entry(connection: AsyncConnection, email_key: str) -> None:
    """Execute the same kinds of statements as for an audit entry, for a failure that gets none."""
    bucket = Bucket(f"imitation|{email_key}", 0).digest
    await _READ.first(connection, of_bucket=bucket)
    for query in _IMITATION[connection.dialect.name]:
        await query.one(connection, counted=bucket, of_bucket=bucket, **_window(now()))


async def forget(connection: AsyncConnection, user_id: UserId, email_key: str | None) -> None:
    """Delete what was counted about an account, and not about a network, in the transaction that deletes the account.

    `email_key` is None for an account without a sign-in name.
    """
    names = [f"password|account|{user_id}", f"check|account|{user_id}"]
    if email_key is not None:
        names += [f"{what}|{email_key}" for what in ("login|account", "failed", "imitation")]
    digests = [_FAILURES + user_id.to_bytes(8, "big"), *(Bucket(name, 0).digest for name in names)]
    for digest in sorted(digests):
        await _FORGET.execute(connection, of_bucket=digest)


async def take_ended(connection: AsyncConnection) -> list[Total]:
    """Delete the counts of at most ENDED_AT_ONCE accounts whose windows have ended, and return them."""
    window = _window(now())
    rows = await _TAKE_ENDED.all(connection, moment=window["moment"], last_end=window["last_end"])
    return [Total(UserId(int.from_bytes(row.bucket[len(_FAILURES) :], "big")), row.attempts) for row in rows]


async def take_back(db: Database, buckets: tuple[Bucket, ...]) -> None:
    """Subtract an attempt that was refused before its password was verified."""
    if not buckets:
        return
    async with db.write(Unchecked.OUTCOME) as connection:
        for bucket in _in_order(buckets):
            await _ONE_LESS.execute(connection, of_bucket=bucket.digest)


def _window(moment: datetime, length: timedelta = WINDOW) -> dict[str, datetime]:
    """Return the parameters of `_is_over` and of a new window."""
    new_end = moment + length
    return {"moment": moment, "new_end": new_end, "last_end": new_end + CLOCKS_APART}


def _in_order(buckets: tuple[Bucket, ...]) -> list[Bucket]:
    """Return the buckets in a fixed order, so that two transactions never deadlock."""
    return sorted(buckets, key=lambda bucket: bucket.digest)


class _Counted(NamedTuple):
    attempts: int
    ends_at: datetime


def _counting(insert: type[sqlite.Insert] | type[postgresql.Insert], *, also: CTE | None = None) -> Query[_Counted]:
    """Return a statement that counts an attempt in a bucket, and starts a new window if the last one has ended. In the
    same statement, it executes `also`.
    """
    new = insert(throttle).values(bucket=bindparam("counted"), attempts=1, ends_at=bindparam("new_end", type_=UtcTime))
    is_over = _is_over()
    counted = new.on_conflict_do_update(
        index_elements=[throttle.c.bucket],
        set_={
            "attempts": case((is_over, 1), else_=throttle.c.attempts + 1),
            "ends_at": case((is_over, new.excluded.ends_at), else_=throttle.c.ends_at),
        },
    )
    returning = counted.returning(throttle.c.attempts, throttle.c.ends_at)
    return Query(returning if also is None else returning.add_cte(also), _Counted)


def _is_over() -> ColumnElement[bool]:
    """Return the condition for a window that has ended, or that a wrong clock has started."""
    return or_(
        throttle.c.ends_at <= bindparam("moment", type_=UtcTime),
        throttle.c.ends_at > bindparam("last_end", type_=UtcTime),
    )


IS_OF_ACCOUNT = throttle.c.bucket.between(_FAILURES + bytes(8), _FAILURES + b"\xff" * 8)
"""The condition for a count of `count_failure` for an account."""


class _Ended(NamedTuple):
    bucket: bytes
    attempts: int


_END = scalar(
    delete(throttle).where(throttle.c.bucket == bindparam("of_bucket"), _is_over()).returning(throttle.c.attempts), int
)
_SOME_ENDED = (
    select(throttle.c.bucket).where(IS_OF_ACCOUNT, _is_over()).limit(ENDED_AT_ONCE).with_for_update(skip_locked=True)
)
_TAKE_ENDED = Query(
    delete(throttle).where(throttle.c.bucket.in_(_SOME_ENDED)).returning(throttle.c.bucket, throttle.c.attempts), _Ended
)
_COUNT = {"sqlite": _counting(sqlite.Insert), "postgresql": _counting(postgresql.Insert)}
_READ = scalar(select(throttle.c.attempts).where(throttle.c.bucket == bindparam("of_bucket")).with_for_update(), int)
_IS_SAME = update(throttle).where(throttle.c.bucket == bindparam("of_bucket")).values(attempts=throttle.c.attempts)
_SAME_ROW = Query(_IS_SAME.returning(throttle.c.attempts, throttle.c.ends_at), _Counted)
# As in audit/log.py: PostgreSQL changes the end of the chain in the statement that inserts the entry.
_NO_ROW = update(throttle).where(throttle.c.bucket == b"").values(attempts=0).cte("imitated")
_IMITATION = {
    "sqlite": (_COUNT["sqlite"], _SAME_ROW),
    "postgresql": (_counting(postgresql.Insert, also=_NO_ROW),),
}
_FORGET = Command(delete(throttle).where(throttle.c.bucket == bindparam("of_bucket")))
_ONE_LESS = Command(
    update(throttle)
    .where(throttle.c.bucket == bindparam("of_bucket"), throttle.c.attempts > 0)
    .values(attempts=throttle.c.attempts - 1)
)
