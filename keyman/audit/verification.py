"""Recomputing the chains, entry by entry, and saying where and how one is broken.

A chain is read in pages, each with the end of the chain in the same statement, so both are of one moment: it may be
verified while others write, and it ends where the database says that it ends. A page is all that is held in memory.

Whoever can write to the database can also compute hashes, and bend the trail so that it holds again. What they cannot
bend is an anchor that was taken before and is kept elsewhere: see anchors.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import and_, func, select

from keyman.audit.chain import digest, genesis
from keyman.audit.trail import Action, audit_chains, audit_log
from keyman.db import AnyRow, Database
from keyman.errors import RefusedStatement

PAGE = 2000
"""Entries that are read at once: less than a MB."""

UNREADABLE = (ValueError, TypeError, RefusedStatement)
"""What comes of a value that is none of its column's type, which SQLite takes."""

PRUNED = re.compile(r"up to ([0-9]{1,18}) ([0-9a-f]{64})")
"""The detail of an entry that says up to where its chain was pruned: the sequence of the last that went, its hash."""

Report = Callable[[int], None]
"""Told how many more entries were read."""


class Head(NamedTuple):
    """An entry of a chain by its place, and its hash: it stands for all that came before."""

    chain: int
    sequence: int
    hash: bytes


class Break(NamedTuple):
    """Where a chain is broken, and how. `entry_id` is that of the entry at which it shows, None at an end."""

    chain: int
    sequence: int
    entry_id: int | None
    what: str


@dataclass
class Verified:
    """What was found: how many entries were read, where each chain ends, what is broken, and which anchored entries
    were pruned since, so that nothing can be said of them.
    """

    entries: int = 0
    heads: list[Head] = field(default_factory=list)
    breaks: list[Break] = field(default_factory=list)
    pruned: list[Head] = field(default_factory=list)


async def count(db: Database) -> int:
    """How many entries there are to verify, as the chains say."""
    held = func.coalesce(func.sum(audit_chains.c.sequence - audit_chains.c.base_sequence), 0)
    async with db.read() as connection:
        return int((await connection.execute(select(held))).scalar_one())


async def verify(
    db: Database, deployment: UUID, anchored: Sequence[Head] = (), report: Report = lambda _count: None
) -> Verified:
    """Verify every chain, and that each anchored entry is still the same. Raises DatabaseUnavailable."""
    found = Verified()
    async with db.read() as connection:
        chains = (await connection.execute(select(audit_chains.c.chain).order_by(audit_chains.c.chain))).scalars().all()
        ends = select(func.min(audit_log.c.chain), func.max(audit_log.c.chain))
        lowest, highest = (await connection.execute(ends)).one()
    expected = {0, *range(max(chains, default=0)), *(n for n in (lowest, highest) if n is not None)}
    expected |= {head.chain for head in anchored}
    for chain in sorted(expected - set(chains)):
        found.breaks.append(Break(chain, 0, None, "its ends are gone, and with them what its entries are held to"))
    for chain in chains:
        mine = [head for head in anchored if head.chain == chain]
        await _Chain(db, deployment, chain, mine, found, report).verify()
    return found


class _Chain:
    """The verification of one chain."""

    def __init__(
        self, db: Database, deployment: UUID, chain: int, anchored: Sequence[Head], found: Verified, report: Report
    ) -> None:
        self._db = db
        self._genesis = genesis(deployment, chain)
        self._chain = chain
        self._anchored = {head.sequence: head for head in anchored}
        self._found = found
        self._report = report
        self._at = 0  # the sequence of the last entry that was read
        self._hash: bytes | None = self._genesis  # and its hash, as stored; None when that cannot be read
        self._pruned: set[tuple[int, bytes]] = set()  # up to where, as entries say

    async def verify(self) -> None:
        limit = PAGE
        while True:
            try:
                page = await self._page(limit)
            except UNREADABLE:
                if limit > 1:
                    limit //= 2  # closer to the one that it is
                else:
                    await self._skip()
                    limit = PAGE
                continue
            if not page:
                return self._broken(0, None, "its ends are gone")
            end = page[0]
            if [type(value) for value in end[-len(_ENDS) :]] != [int, bytes, int, bytes]:
                return self._broken(0, None, "its ends hold what no end can hold")
            if end.base_sequence > self._at:  # at the beginning, or pruned in the meantime
                self._at, self._hash = end.base_sequence, end.base_hash
            for row in page:
                if row.id is not None:  # the end stands there without an entry, too
                    self._take(row)
            if len(page) < limit:
                return self._finish(end)

    async def _page(self, limit: int) -> Sequence[AnyRow]:
        """The next entries, each with the ends of the chain."""
        following = and_(audit_log.c.chain == audit_chains.c.chain, audit_log.c.sequence > self._at)
        statement = (
            select(*audit_log.c, *_ENDS)
            .select_from(audit_chains.outerjoin(audit_log, following))
            .where(audit_chains.c.chain == self._chain)
            .order_by(audit_log.c.sequence)
            .limit(limit)
        )
        async with self._db.read() as connection:
            rows = (await connection.execute(statement)).all()
        self._report(sum(row.id is not None for row in rows))
        return rows

    async def _skip(self) -> None:
        """Pass over an entry that cannot be read. What follows it may well be whole."""
        following = and_(audit_log.c.chain == self._chain, audit_log.c.sequence > self._at)
        async with self._db.read() as connection:
            sequence = (await connection.execute(select(func.min(audit_log.c.sequence)).where(following))).scalar_one()
        self._broken(sequence, None, "it holds what no entry can hold")
        self._at, self._hash = sequence, None

    def _take(self, row: AnyRow) -> None:
        self._found.entries += 1
        missing = row.sequence - self._at - 1
        if missing:
            self._broken(row.sequence, row.id, f"{missing:,} before it are missing")
        elif self._hash is not None and digest(self._hash, dict(zip(_NAMES, row, strict=False))) != row.hash:
            self._broken(row.sequence, row.id, "it was changed, or exchanged, or the one before it was")
        anchored = self._anchored.pop(row.sequence, None)
        if anchored is not None and anchored.hash != row.hash:
            self._broken(row.sequence, row.id, "it is not the entry that was anchored")
        if row.action == Action.TRAIL_PRUNE and (said := PRUNED.fullmatch(row.detail or "")):
            self._pruned.add((int(said[1]), bytes.fromhex(said[2])))
        self._at, self._hash = row.sequence, row.hash if isinstance(row.hash, bytes) else None

    def _finish(self, end: AnyRow) -> None:
        base = (end.base_sequence, end.base_hash)
        if end.base_sequence == 0 and end.base_hash != self._genesis:
            self._broken(0, None, "it does not begin where this deployment's begins")
        if end.base_sequence > 0 and base not in self._pruned:
            self._broken(1, None, f"{end.base_sequence:,} at its beginning are missing, and no entry says so")
        if self._at < end.end_sequence:
            self._broken(self._at + 1, None, f"{end.end_sequence - self._at:,} at its end are missing")
        elif self._at > end.end_sequence:
            self._broken(end.end_sequence + 1, None, f"{self._at - end.end_sequence:,} stand behind its end")
        elif self._hash != end.end_hash:
            self._broken(self._at, None, "its end was changed")
        for head in self._anchored.values():
            if head.sequence == end.base_sequence and head.hash == end.base_hash:
                continue
            if head.sequence < end.base_sequence:
                self._found.pruned.append(head)
            else:
                self._broken(head.sequence, None, "the entry that was anchored is gone")
        self._found.heads.append(Head(self._chain, self._at, self._hash or end.end_hash))

    def _broken(self, sequence: int, entry_id: int | None, what: str) -> None:
        self._found.breaks.append(Break(self._chain, sequence, entry_id, what))


_NAMES = tuple(column.name for column in audit_log.c)
_ENDS = (
    audit_chains.c.sequence.label("end_sequence"),
    audit_chains.c.hash.label("end_hash"),
    audit_chains.c.base_sequence,
    audit_chains.c.base_hash,
)
