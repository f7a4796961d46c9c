"""Pruning: entries that are old enough, and anchored, are removed, and what remains still verifies.

A chain then begins behind the last entry that went, whose place and hash stay with the chain, and an entry of the chain
says so: nobody shortens it unnoticed by moving its beginning. What the trail says of the current value of a key is said
again when the entry that said it goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import and_, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import NO_VALUE, OPERATOR, Action, Entry
from keyman.audit.log import current_value, hold, record
from keyman.audit.tables import audit_chains, audit_log
from keyman.audit.verification import Head, Report
from keyman.storage.transactions import Database
from keyman.storage.types import AnyRow

BATCH = 1000
"""Entries that go in one transaction, and are told by one entry: on SQLite all who write wait for it, and to say all
of them again takes nearly a second, a fifth of BUSY_TIMEOUT.
"""

PAUSE = 0.2
"""Seconds between two batches on SQLite, where who waits for the lock looks for it every 0.1 seconds at the latest: one
that is taken again at once is had by nobody else until all is pruned.
"""

PARAMETERS = 500
"""Ids in one statement."""


class Cut(NamedTuple):
    """The last entry of a chain that may go, and how many go with it."""

    chain: int
    sequence: int
    entries: int


class Pruned(NamedTuple):
    """How many entries went, and of how many keys the current value was said again."""

    entries: int
    carried: int


async def prunable(db: Database, before: datetime, anchored: Sequence[Head]) -> list[Cut]:
    """Up to where each chain may be pruned: as far as the anchor goes, and short of the first entry that is newer."""
    found = []
    for head in anchored:
        covered = and_(audit_log.c.chain == head.chain, audit_log.c.sequence <= head.sequence)
        newer = select(audit_log.c.sequence).where(covered, audit_log.c.at >= before).order_by(audit_log.c.sequence)
        base = select(audit_chains.c.base_sequence).where(audit_chains.c.chain == head.chain)
        async with db.read() as connection:
            first = (await connection.execute(newer.limit(1))).scalar_one_or_none()
            begins = (await connection.execute(base)).scalar_one()
        last = head.sequence if first is None else first - 1
        if last > begins:
            found.append(Cut(head.chain, last, last - begins))
    return found


async def prune(db: Database, cuts: Sequence[Cut], report: Report = lambda _count: None) -> Pruned:
    """Remove the entries up to each of these. Raises DatabaseUnavailable; what was done until then holds.

    For chains that were verified: what does not verify is evidence.
    """
    entries = carried = 0
    for cut in cuts:
        while True:
            async with db.write() as connection:
                gone, again = await _batch(connection, cut)
            if not gone:
                break
            entries, carried = entries + gone, carried + again
            report(gone)
            if db.is_sqlite:
                await asyncio.sleep(PAUSE)
    return Pruned(entries, carried)


async def _batch(connection: AsyncConnection, cut: Cut) -> tuple[int, int]:
    """How many entries went, and how many were said again."""
    await hold(connection, cut.chain)
    oldest = select(audit_log).where(audit_log.c.chain == cut.chain, audit_log.c.sequence <= cut.sequence)
    going = (await connection.execute(oldest.order_by(audit_log.c.sequence).limit(BATCH))).all()
    if not going:
        return 0, 0
    last = going[-1]
    current = await _current(connection, going)
    gone = and_(audit_log.c.chain == cut.chain, audit_log.c.sequence <= last.sequence)
    await connection.execute(delete(audit_log).where(gone))
    await connection.execute(
        update(audit_chains)
        .where(audit_chains.c.chain == cut.chain)
        .values(base_sequence=last.sequence, base_hash=last.hash)
    )
    again = [row for row in current if row.value_uuid != NO_VALUE or await _has_a_value(connection, row.key_id)]
    for row in again:
        await record(
            connection,
            Entry(
                Action.TRAIL_CARRY,
                OPERATOR,
                row.user_id,
                key_id=row.key_id,
                service=row.service,
                value_uuid=row.value_uuid,
                as_of=row.as_of,
                vault_request_id=row.vault_request_id,
            ),
            chain=cut.chain,
        )
    await record(
        connection,
        Entry(Action.TRAIL_PRUNE, OPERATOR, detail=f"up to {last.sequence} {last.hash.hex()}"),
        chain=cut.chain,
    )
    return len(going), len(again)


async def _current(connection: AsyncConnection, rows: Sequence[AnyRow]) -> list[AnyRow]:
    """Those of the entries that say what a key holds now.

    Whoever replaces the key meanwhile writes one with a higher `as_of`, and is not overruled by what is said again.
    """
    later = audit_log.alias()
    newest = select(func.max(later.c.as_of)).where(
        later.c.key_id == audit_log.c.key_id, later.c.value_uuid.is_not(None)
    )
    ids = [row.id for row in rows if row.value_uuid is not None]
    found: set[int] = set()
    for start in range(0, len(ids), PARAMETERS):
        among = audit_log.c.id.in_(ids[start : start + PARAMETERS])
        is_newest = audit_log.c.as_of == newest.scalar_subquery()
        found |= set((await connection.execute(select(audit_log.c.id).where(among, is_newest))).scalars())
    return [row for row in rows if row.id in found]


async def _has_a_value(connection: AsyncConnection, key_id: int) -> bool:
    """Whether an entry still says that a deleted key holds something: an older one, of a chain that goes later."""
    return (await connection.execute(select(current_value(key_id)))).scalar_one() is not None
