"""Proves that a key could be stored: a plane updates its row of `probes`, and commits.

A SELECT proves less: it works on a full disk, on a standby, and on a SQLite database whose `-wal` file was removed.

The row has the time of the last proof, so that the workers and replicas of a plane share it. While it is fresh, the
UPDATE of another process changes nothing. It still proves that this process is connected to a database that takes
writes: PostgreSQL refuses it on a standby.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from time import monotonic

from sqlalchemy import Column, String, Table, bindparam, or_, select, update

from keyman.clock import now
from keyman.errors import DatabaseUnavailable, RefusedStatement
from keyman.logs import log
from keyman.storage.statements import Command, scalar
from keyman.storage.transactions import Database, Unchecked
from keyman.storage.types import UtcTime, metadata

INTERVAL = 5.0
"""Seconds for which a result is shared. Anyone can ask for it, and each probe is a write."""

probes = Table(
    "probes",
    metadata,
    Column("plane", String(16), primary_key=True),
    Column("proved_at", UtcTime),
)

_ROW = scalar(select(probes.c.plane).where(probes.c.plane == bindparam("name")), str)
_PROVE = Command(
    update(probes)
    .where(
        probes.c.plane == bindparam("name"),
        or_(
            probes.c.proved_at.is_(None),
            probes.c.proved_at <= bindparam("stale_at", type_=UtcTime),
            probes.c.proved_at > bindparam("moment", type_=UtcTime),  # by a clock that runs ahead
        ),
    )
    .values(proved_at=bindparam("moment", type_=UtcTime))
)


class Probe:
    """The probe of one process of a plane."""

    def __init__(self, db: Database, plane: str) -> None:
        self._db = db
        self._plane = plane
        self._lock = asyncio.Lock()
        self._next = 0.0
        self._proved = 0.0
        self._is_proved = False

    async def verify(self) -> None:
        """Raise DatabaseUnavailable unless the last probe succeeded and no write was refused since it began.

        It probes if the last probe began at least INTERVAL seconds ago. A caller that gives up leaves the last result.
        """
        async with self._lock:
            if (started := monotonic()) >= self._next:
                try:
                    await self._prove()
                except DatabaseUnavailable:
                    self._next, self._is_proved = started + INTERVAL, False
                    raise
                self._next, self._is_proved, self._proved = started + INTERVAL, True, started
        if not self._is_proved or self._db.refused_at > self._proved:
            raise DatabaseUnavailable

    async def _prove(self) -> None:
        moment = now()
        # After a refused write, the proof of another process does not count: it may have been just before.
        age = timedelta(0) if self._db.refused_at > self._proved else timedelta(seconds=INTERVAL)
        try:
            self._db.require_space()
            async with self._db.write(Unchecked.KEYMAN) as connection:
                await _PROVE.execute(connection, name=self._plane, moment=moment, stale_at=moment - age)
                row = await _ROW.first(connection, name=self._plane)
        except RefusedStatement as fault:
            # Such as a missing right, if an upgrade was run without the users of the planes.
            log.error("readiness probe refused", fault=str(fault), remedy="run keyman db upgrade")
            raise DatabaseUnavailable from None
        if row is None:
            log.error("readiness probe without its row", plane=self._plane, remedy="run keyman db upgrade")
            raise DatabaseUnavailable
