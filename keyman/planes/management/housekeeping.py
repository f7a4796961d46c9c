"""Deletes what has ended: sessions, portal links, visits of the identity provider, logout tokens, throttling windows
and idempotency keys. keyman ignores them even before that.
"""

from __future__ import annotations

import asyncio
import random

from sqlalchemy import ColumnElement, Table, and_, bindparam, delete, not_, or_, select

from keyman.clock import now
from keyman.errors import DatabaseUnavailable
from keyman.identity import arrivals, login
from keyman.identity.sessions import SESSION_IDLE
from keyman.identity.tables import logout_tokens, provider_visits, sessions, throttle
from keyman.identity.throttle import IS_OF_ACCOUNT
from keyman.keys.idempotency import LIFETIME
from keyman.keys.tables import idempotency
from keyman.logs import frames, log
from keyman.storage.statements import Command
from keyman.storage.transactions import Database, Unchecked
from keyman.storage.types import UtcTime

BATCH = 1000
"""How many keys one transaction deletes at most. Others may wait for it; on SQLite, all writers do."""

INTERVAL = 3600.0
"""Seconds between two rounds of one process. The rows that stay until then are small and have no effect."""


TOTALS_INTERVAL = 60.0
"""Seconds between two rounds of `record_totals`."""


async def run(db: Database) -> None:
    """Delete ended rows once in every INTERVAL.

    The first round comes after a random part of the interval, so that replicas that started together do not sweep at
    the same time.
    """
    await asyncio.sleep(random.uniform(0, INTERVAL))  # noqa: S311  # spreads load only
    while True:
        try:
            await sweep(db)
            await arrivals.delete_expired(db)
        except DatabaseUnavailable:
            pass  # the storage has logged it; the next round tries again
        except Exception as fault:  # noqa: BLE001  # otherwise the task would end, and nobody would notice
            log.error("housekeeping failed", **frames(fault))
        await asyncio.sleep(INTERVAL)


async def record_totals(db: Database) -> None:
    """Record the totals of failed sign-ins once in every TOTALS_INTERVAL. A total comes at most so much late."""
    while True:
        await asyncio.sleep(TOTALS_INTERVAL)
        try:
            await login.record_totals(db)
        except DatabaseUnavailable:
            pass  # the storage has logged it; the next round tries again
        except Exception as fault:  # noqa: BLE001  # otherwise the task would end, and nobody would notice
            log.error("housekeeping failed", **frames(fault))


async def sweep(db: Database) -> None:
    """Run one round, in transactions of about BATCH rows each. Raises DatabaseUnavailable.

    One of idempotency keys can be larger, because several users may have the same `key_hash`.
    """
    moment = now()
    ends = {"moment": moment, "idle_since": moment - SESSION_IDLE, "ended_before": moment - LIFETIME}
    for command, parameters in _SWEEPS:
        removed = BATCH
        while removed >= BATCH:
            async with db.write(Unchecked.KEYMAN) as connection:
                removed = await command.execute(connection, **{name: ends[name] for name in parameters})
    await db.truncate_log()  # with what an account left in it whose deletion found the database busy


def _sweep(
    table: Table, key: ColumnElement[object], has_ended: ColumnElement[bool], *parameters: str
) -> tuple[Command, tuple[str, ...]]:
    """Return a command that deletes the rows of BATCH keys that have ended, and the names of its parameters.

    It leaves rows that another transaction has locked to the next round: to wait for one while it has locked others
    could deadlock.
    """
    some = select(key).where(has_ended).limit(BATCH).with_for_update(skip_locked=True)
    return Command(delete(table).where(key.in_(some), has_ended)), parameters


_SWEEPS = (
    _sweep(
        sessions,
        sessions.c.id,
        or_(
            sessions.c.expires_at <= bindparam("moment", type_=UtcTime),
            sessions.c.last_seen_at <= bindparam("idle_since", type_=UtcTime),
        ),
        "moment",
        "idle_since",
    ),
    *(
        _sweep(table, table.primary_key.columns[0], table.c.expires_at <= bindparam("moment", type_=UtcTime), "moment")
        for table in (provider_visits, logout_tokens)
    ),
    _sweep(
        throttle,
        throttle.c.bucket,
        and_(throttle.c.ends_at <= bindparam("moment", type_=UtcTime), not_(IS_OF_ACCOUNT)),
        "moment",
    ),
    _sweep(
        idempotency,
        idempotency.c.key_hash,
        idempotency.c.created_at <= bindparam("ended_before", type_=UtcTime),
        "ended_before",
    ),
)
