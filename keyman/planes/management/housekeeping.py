"""What has ended is removed: sessions, throttling windows, idempotency keys. Correctness never waits for it."""

from __future__ import annotations

import asyncio
import random

from sqlalchemy import ColumnElement, Table, bindparam, delete, or_, select

from keyman.clock import now
from keyman.errors import DatabaseUnavailable
from keyman.identity.sessions import SESSION_IDLE
from keyman.identity.tables import sessions, throttle
from keyman.keys.idempotency import LIFETIME
from keyman.keys.tables import idempotency
from keyman.storage.statements import Command
from keyman.storage.transactions import Database
from keyman.storage.types import UtcTime
from keyman.telemetry import frames, log

BATCH = 1000
"""Rows removed in one transaction: others wait for it, on SQLite all who write."""

INTERVAL = 3600.0
"""Seconds between two rounds of one process; what lies around meanwhile is small and answers nobody."""


async def run(db: Database) -> None:
    """Remove what has ended, for ever. The first round comes after a random part of the interval: replicas that
    started together do not sweep together.
    """
    await asyncio.sleep(random.uniform(0, INTERVAL))  # noqa: S311  # spreads load only
    while True:
        try:
            await sweep(db)
        except DatabaseUnavailable:
            pass  # logged where it was seen; the next round does it
        except Exception as fault:  # noqa: BLE001  # a task that dies would go unnoticed
            log.error("housekeeping failed", **frames(fault))
        await asyncio.sleep(INTERVAL)


async def sweep(db: Database) -> None:
    """One round, in transactions of at most BATCH rows each. Raises DatabaseUnavailable."""
    moment = now()
    ends = {"moment": moment, "idle_since": moment - SESSION_IDLE, "ended_before": moment - LIFETIME}
    for command, parameters in _SWEEPS:
        removed = BATCH
        while removed >= BATCH:  # more, where several owners share a key's hash
            async with db.write() as connection:
                removed = await command.execute(connection, **{name: ends[name] for name in parameters})


def _sweep(
    table: Table, key: ColumnElement[object], has_ended: ColumnElement[bool], *parameters: str
) -> tuple[Command, tuple[str, ...]]:
    """A command that removes at most BATCH rows that have ended, and the names of its parameters."""
    some = select(key).where(has_ended).limit(BATCH)
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
    _sweep(throttle, throttle.c.bucket, throttle.c.ends_at <= bindparam("moment", type_=UtcTime), "moment"),
    _sweep(
        idempotency,
        idempotency.c.key_hash,
        idempotency.c.created_at <= bindparam("ended_before", type_=UtcTime),
        "ended_before",
    ),
)
