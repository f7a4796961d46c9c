"""An audit log with entries, and changes to it behind keyman's back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.engine import URL

from keyman.audit import verification
from keyman.audit.chain import Head, digest
from keyman.audit.entries import OPERATOR, Action, Entry
from keyman.audit.log import record
from keyman.audit.tables import audit_chains, audit_log
from keyman.audit.verification import Verified
from keyman.keys.deployment import Deployment
from keyman.storage.transactions import Database, Unchecked
from tests.support.rows import AnyRow


@dataclass
class Trail:
    """The audit log of a database."""

    db: Database
    deployment: UUID

    async def write(self, count: int, **values: Any) -> None:
        """Entries, each in a transaction of its own."""
        for n in range(count):
            async with self.db.write(Unchecked.OPERATOR) as connection:
                await record(connection, Entry(Action.DISABLE, OPERATOR, **{"key_id": n + 1, **values}))

    async def rows(self, *conditions: ColumnElement[bool]) -> Sequence[AnyRow]:
        async with self.db.read() as connection:
            return (await connection.execute(select(audit_log).where(*conditions).order_by(audit_log.c.id))).all()

    async def longest(self) -> list[AnyRow]:
        """The entries of the chain that has most, in order."""
        chains: dict[int, list[AnyRow]] = {}
        for row in await self.rows():
            chains.setdefault(row.chain, []).append(row)
        most = max((len(rows), chain) for chain, rows in chains.items())
        return sorted(chains[most[1]], key=lambda row: row.sequence)

    async def change(self, entry_id: int, **values: Any) -> None:
        async with self.db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(update(audit_log).where(audit_log.c.id == entry_id).values(values))

    async def remove(self, *ids: int) -> None:
        async with self.db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(delete(audit_log).where(audit_log.c.id.in_(ids)))

    async def put(self, **values: Any) -> None:
        async with self.db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(insert(audit_log).values(values))

    async def end(self, chain: int, **values: Any) -> None:
        async with self.db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(update(audit_chains).where(audit_chains.c.chain == chain).values(values))

    async def rewrite(self, rows: Sequence[AnyRow], **changes: Any) -> None:
        """Change the first of a chain's last entries, and make all hashes and the end of the chain right again: what
        somebody can do who knows how keyman computes them.
        """
        (before,) = await self.rows(audit_log.c.chain == rows[0].chain, audit_log.c.sequence == rows[0].sequence - 1)
        previous = before.hash
        for n, row in enumerate(rows):
            entry = {**row._mapping, **(changes if n == 0 else {})}
            entry["hash"] = previous = digest(previous, entry)
            await self.change(row.id, **entry)
        await self.end(rows[0].chain, hash=previous)

    async def verified(self, anchored: Sequence[Head] = ()) -> Verified:
        return await verification.verify(self.db, self.deployment, anchored)

    async def broken(self, anchored: Sequence[Head] = ()) -> list[tuple[int, int | None, str]]:
        """Each break by place, entry and what is said of it."""
        return [(one.sequence, one.entry_id, one.what) for one in (await self.verified(anchored)).breaks]


@pytest.fixture
async def kept(database: URL) -> AsyncIterator[Trail]:
    db = Database(database)
    yield Trail(db, (await Deployment.load(db)).uuid)
    await db.close()


@pytest.fixture
async def bent(kept: Trail) -> Trail:
    """An audit log of few chains, one of which has at least ten entries."""
    async with kept.db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(delete(audit_chains).where(audit_chains.c.chain >= 3))
    await kept.write(12 if kept.db.is_sqlite else 28)
    return kept
