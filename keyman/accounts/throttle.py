"""Guessing passwords is slow: failed attempts are counted in the database, so that all replicas count together.

An attempt is counted before the password is looked at and taken back when it was right; a thousand attempts at once
get no more guesses than one after the other.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from datetime import timedelta
from math import ceil

from sqlalchemy import case, delete, update
from sqlalchemy.dialects import postgresql, sqlite

from keyman.accounts.tables import throttle
from keyman.db import Database, now
from keyman.errors import RateLimited

WINDOW = timedelta(minutes=15)
"""How long failures are remembered from the first one on."""

MAX_PER_ACCOUNT = 10
"""Failures for one e-mail address in a window: 960 guesses a day, against passwords of ten characters and more."""

MAX_PER_NETWORK = 100
"""Failures from one address (IPv6: one /64) in a window: an office behind one address mistypes less than that."""

MAX_SIGNUPS_PER_NETWORK = 50
"""New accounts from one address in a window."""


@dataclass(frozen=True)
class Bucket:
    """What attempts have in common, and how many of them a window allows."""

    name: str
    limit: int

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.name.encode()).digest()


def login_buckets(email_key: str, address: str | None) -> tuple[Bucket, ...]:
    account = Bucket(f"login|account|{email_key}", MAX_PER_ACCOUNT)
    return (account, *([Bucket(f"login|network|{_network(address)}", MAX_PER_NETWORK)] if address else []))


def signup_buckets(address: str | None) -> tuple[Bucket, ...]:
    return (Bucket(f"signup|network|{_network(address)}", MAX_SIGNUPS_PER_NETWORK),) if address else ()


async def count(db: Database, buckets: tuple[Bucket, ...]) -> None:
    """Count one attempt in each bucket. Raises RateLimited when one of them is full; `retry_after` says until when."""
    if not buckets:
        return
    moment = now()
    insert = sqlite.insert if db.is_sqlite else postgresql.insert
    waits = []
    async with db.write() as connection:
        # One order for all, so that two transactions never wait for each other.
        for bucket in sorted(buckets, key=lambda bucket: bucket.digest):
            statement = insert(throttle).values(bucket=bucket.digest, attempts=1, ends_at=moment + WINDOW)
            is_over = throttle.c.ends_at <= moment
            row = (
                await connection.execute(
                    statement.on_conflict_do_update(
                        index_elements=[throttle.c.bucket],
                        set_={
                            "attempts": case((is_over, 1), else_=throttle.c.attempts + 1),
                            "ends_at": case((is_over, statement.excluded.ends_at), else_=throttle.c.ends_at),
                        },
                    ).returning(throttle.c.attempts, throttle.c.ends_at)
                )
            ).one()
            if row.attempts > bucket.limit:
                waits.append((row.ends_at - moment).total_seconds())
    if waits:
        raise RateLimited("Too many attempts failed. Wait before you try again.", retry_after=max(1, ceil(max(waits))))


async def forgive(db: Database, buckets: tuple[Bucket, ...]) -> None:
    """Take back what `count` counted, for the attempt was right; an account's failures are forgotten with it."""
    account, *others = buckets
    async with db.write() as connection:
        await connection.execute(delete(throttle).where(throttle.c.bucket == account.digest))
    await take_back(db, tuple(others))


async def take_back(db: Database, buckets: tuple[Bucket, ...]) -> None:
    """Take back what `count` counted, for the attempt was turned away before it was looked at."""
    if not buckets:
        return
    async with db.write() as connection:
        for bucket in sorted(buckets, key=lambda bucket: bucket.digest):
            await connection.execute(
                update(throttle)
                .where(throttle.c.bucket == bucket.digest, throttle.c.attempts > 0)
                .values(attempts=throttle.c.attempts - 1)
            )


def _network(address: str) -> str:
    """One client: an IPv4 address, or the /64 that an IPv6 one has to itself."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)
