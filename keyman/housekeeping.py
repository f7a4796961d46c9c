"""What has ended is removed: sessions, throttling windows, idempotency keys. Correctness never waits for it."""

from __future__ import annotations

import asyncio
import random

from sqlalchemy import delete

from keyman.accounts.callers import SESSION_IDLE
from keyman.accounts.tables import sessions, throttle
from keyman.db import Database, now
from keyman.errors import DatabaseUnavailable
from keyman.keys.idempotency import LIFETIME
from keyman.keys.tables import idempotency
from keyman.telemetry import frames, log

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
    """One round. Raises DatabaseUnavailable."""
    moment = now()
    for statement in (
        delete(sessions).where(sessions.c.expires_at <= moment),
        delete(sessions).where(sessions.c.last_seen_at <= moment - SESSION_IDLE),
        delete(throttle).where(throttle.c.ends_at <= moment),
        delete(idempotency).where(idempotency.c.created_at <= moment - LIFETIME),
    ):
        async with db.write() as connection:
            await connection.execute(statement)
