"""Recomputes the chains, entry by entry, and reports where and how a chain is broken.

A chain is read in pages, and only one page is in memory at a time. The statement that reads a page also reads the ends
of the chain from `audit_chains`, so both are from the same moment. So a chain can be verified while others write, and
it must end where `audit_chains` says.

Anyone who can write to the database can also compute hashes, and change the audit log so that it verifies. They cannot
change an older anchor that is kept elsewhere: see anchors.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, bindparam, case, func, select

from keyman.audit import shapes
from keyman.audit.chain import Head, digest, genesis
from keyman.audit.entries import Action
from keyman.audit.pages import PAGE, QUERIES, End, Row
from keyman.audit.tables import AuditRow, audit_chains, audit_log
from keyman.errors import RefusedStatement
from keyman.storage.statements import Query, scalar
from keyman.storage.transactions import Database

MOST = 1000
"""The maximum number of missing chains that are reported.

Somebody may give a chain a number of nine digits, and the report must stay short.
"""

STRANGE = "the entry contains a value that keyman cannot have written"

UNREADABLE = RefusedStatement
"""Raised for a stored value that does not fit its column's type. SQLite accepts such values.

It is an UnreadableRow, or stands for an exception of the driver.
"""

PRUNED = re.compile(r"up to ([0-9]{1,18}) ([0-9a-f]{64})")
"""The detail of an entry about pruning: the sequence and the hash of the last removed entry."""

Report = Callable[[int], None]
"""A function that is called with the number of further entries that were read, or removed."""


class Break(NamedTuple):
    """A place where a chain is broken, and how.

    `entry_id` is the id of the entry at this place. It is None if there is no such entry, or if it cannot be read.
    """

    chain: int
    sequence: int
    entry_id: int | None
    what: str


@dataclass
class Verified:
    """The result of a verification.

    `entries` is the number of entries that were read. `heads` are the ends of the chains. `held` are the anchored
    entries that exist unchanged. `pruned` are the anchored entries that were pruned since, so that nothing is known
    about them. `pruned_since` is the number of entries from before the newest anchor that were pruned after it was
    taken, according to the database itself, which is the only source for it.
    """

    entries: int = 0
    heads: list[Head] = field(default_factory=list)
    breaks: list[Break] = field(default_factory=list)
    held: list[Head] = field(default_factory=list)
    pruned: list[Head] = field(default_factory=list)
    pruned_since: int = 0

    def unheld(self) -> set[int]:
        """Return the chains whose anchored entries were all pruned. The anchors prove nothing about them."""
        return {head.chain for head in self.pruned} - {head.chain for head in self.held}


async def count(db: Database) -> int:
    """Return the number of entries to verify, according to `audit_chains`."""
    async with db.read() as connection:
        return int(await _COUNT.one(connection))  # PostgreSQL sums integers to a decimal


async def verify(
    db: Database, deployment: UUID, anchored: Sequence[Head] = (), report: Report = lambda _count: None
) -> Verified:
    """Verify every chain, and check that each anchored entry is unchanged. Raises DatabaseUnavailable."""
    found = Verified()
    async with db.read() as connection:
        chains = await _CHAINS.all(connection)
        lowest, highest = await _RANGE.one(connection)
    expected = {0, *itertools.islice(_gaps(chains), MOST), *(n for n in (lowest, highest) if isinstance(n, int))}
    expected |= {head.chain for head in anchored}
    for chain in sorted(expected - set(chains)):
        found.breaks.append(
            Break(chain, 0, None, "the row of the chain in audit_chains is missing, so its entries cannot be verified")
        )
    for chain in chains:
        mine = [head for head in anchored if head.chain == chain]
        await _Chain(db, deployment, chain, mine, found, report).verify()
    if db.is_sqlite:
        await _find_strange(db, found)
    return found


def _gaps(chains: Sequence[int]) -> Iterator[int]:
    """Yield the numbers from 0 on that are missing in a sorted list of chains."""
    for before, after in itertools.pairwise((-1, *chains)):
        yield from range(before + 1, after)


async def _find_strange(db: Database, found: Verified) -> None:
    """Add breaks that `_Chain` does not detect: changed values that hash the same, and entries that have no valid place
    in a chain.
    """
    async with db.read() as connection:
        rows = await _STRANGE.all(connection)
    known = {(one.chain, one.sequence) for one in found.breaks if one.what == STRANGE}
    found.breaks += [Break(*row, STRANGE) for row in rows if (row.chain, row.sequence) not in known]


class _Chain:
    """Verifies one chain."""

    def __init__(
        self, db: Database, deployment: UUID, chain: int, anchored: Sequence[Head], found: Verified, report: Report
    ) -> None:
        self._db = db
        self._queries = QUERIES["sqlite" if db.is_sqlite else "postgresql"]
        self._genesis = genesis(deployment, chain)
        self._chain = chain
        self._newest = max(anchored, key=lambda head: head.sequence, default=None)
        self._anchored: dict[int, set[Head]] = {}
        for head in anchored:
            self._anchored.setdefault(head.sequence, set()).add(head)
        self._found = found
        self._report = report
        self._at = 0  # the sequence of the last entry that was read
        self._hash: bytes | None = self._genesis  # and its stored hash; None if that cannot be read
        self._pruned: set[tuple[int, bytes]] = set()  # the last removed entry of each pruning that an entry records

    async def verify(self) -> None:
        limit = PAGE
        while True:
            try:
                page = await self._page(limit)
            except UNREADABLE:
                if limit > 1:
                    limit //= 2  # to get closer to the entry that cannot be read
                else:
                    await self._skip()
                    limit = PAGE
                continue
            if not page:
                return self._broken(0, None, "the row of the chain in audit_chains is missing")
            end = page[0].end
            if [type(value) for value in end] != [int, bytes, int, bytes]:
                return self._broken(0, None, "the row of the chain in audit_chains contains a value of the wrong type")
            if end.base_sequence > self._at:  # on the first page, or because entries were pruned meanwhile
                self._at, self._hash = end.base_sequence, end.base_hash
            for entry, _ in page:
                # An empty page has one row, without an entry. `_find_before` reports the entries before the beginning.
                if entry is not None and entry.sequence > end.base_sequence:
                    self._take(entry)
            if len(page) < limit:
                await self._find_before(end.base_sequence)
                return self._finish(end)

    async def _page(self, limit: int) -> list[Row]:
        """Read the next entries, each with the ends of the chain."""
        async with self._db.read() as connection:
            rows = await self._queries.page.all(connection, chain=self._chain, after=self._at, limit=limit)
        self._report(sum(row.entry is not None for row in rows))
        return rows

    async def _skip(self) -> None:
        """Report an entry that cannot be read, and continue after it, because the entries after it may be intact."""
        async with self._db.read() as connection:
            sequence = await self._queries.next_place.one(connection, chain=self._chain, after=self._at)
        self._broken(sequence, None, STRANGE)
        self._at, self._hash = sequence, None

    def _take(self, row: AuditRow) -> None:
        self._found.entries += 1
        missing = row.sequence - self._at - 1
        if missing:
            self._broken(row.sequence, row.id, f"entries missing before this one: {missing:,}")
        elif self._hash is not None and digest(self._hash, row._asdict()) != row.hash:
            self._broken(
                row.sequence, row.id, "its hash does not match: this entry or the one before it was changed or replaced"
            )
        if isinstance(row.as_of, int) and row.as_of > row.id:  # on SQLite it can be text, which `_find_strange` reports
            self._broken(
                row.sequence, row.id, "as_of is higher than the id, so the entry claims to be newer than it is"
            )
        for anchored in self._anchored.pop(row.sequence, ()):
            if anchored.hash == row.hash:
                self._found.held.append(anchored)
            else:
                self._broken(row.sequence, row.id, "this is not the entry that was anchored")
        if row.action == Action.TRAIL_PRUNE and (said := PRUNED.fullmatch(str(row.detail))):
            self._pruned.add((int(said[1]), bytes.fromhex(said[2])))
        self._at, self._hash = row.sequence, row.hash if isinstance(row.hash, bytes) else None

    def _finish(self, end: End) -> None:
        self._check_beginning(end)
        self._check_end(end)
        self._check_anchored(end)
        self._found.heads.append(Head(self._chain, self._at, self._hash or end.hash, end.base_sequence))

    def _check_beginning(self, end: End) -> None:
        base = (end.base_sequence, end.base_hash)
        if end.base_sequence == 0 and end.base_hash != self._genesis:
            self._broken(0, None, "the first hash of the chain is not that of this deployment")
        if end.base_sequence > 0 and base not in self._pruned:
            self._broken(
                1,
                None,
                f"entries missing at the beginning of the chain, whose pruning no entry records: {end.base_sequence:,}",
            )

    def _check_end(self, end: End) -> None:
        if self._at < end.sequence:
            self._broken(self._at + 1, None, f"entries missing at the end of the chain: {end.sequence - self._at:,}")
        elif self._at > end.sequence:
            self._broken(end.sequence + 1, None, f"entries after the end of the chain: {self._at - end.sequence:,}")
        elif self._hash != end.hash:
            self._broken(self._at, None, "the hash of the last entry is not the one in audit_chains")

    def _check_anchored(self, end: End) -> None:
        """Sort the anchored entries that were not read, and count what was pruned since the newest anchor."""
        for head in itertools.chain.from_iterable(self._anchored.values()):
            if head.sequence == end.base_sequence and head.hash == end.base_hash:
                self._found.held.append(head)
            elif head.sequence < end.base_sequence:
                self._found.pruned.append(head)
            else:
                self._broken(head.sequence, None, "the entry that was anchored is missing")
        if self._newest is not None:
            gone = min(end.base_sequence, self._newest.sequence) - self._newest.base
            self._found.pruned_since += max(0, gone)
            if end.base_sequence < self._newest.base:
                self._broken(0, None, "the chain begins at an earlier place than when it was anchored")

    async def _find_before(self, base: int) -> None:
        """Report the entries at places that were pruned, or before the first place."""
        async with self._db.read() as connection:
            for sequence, entry_id in await _BEFORE.all(connection, chain=self._chain, base=base):
                self._broken(sequence, entry_id, "the entry is before the beginning of the chain")

    def _broken(self, sequence: int, entry_id: int | None, what: str) -> None:
        self._found.breaks.append(Break(self._chain, sequence, entry_id, what))


class _Range(NamedTuple):
    lowest: int | None
    highest: int | None


class _Place(NamedTuple):
    chain: int
    sequence: int
    id: int


class _PlaceInChain(NamedTuple):
    sequence: int
    id: int


_COUNT = scalar(select(func.coalesce(func.sum(audit_chains.c.sequence - audit_chains.c.base_sequence), 0)), int)
_CHAINS = scalar(select(audit_chains.c.chain).order_by(audit_chains.c.chain), int)
_RANGE = Query(
    select(func.min(audit_log.c.chain).label("lowest"), func.max(audit_log.c.chain).label("highest")), _Range
)
_STRANGE = Query(
    select(
        *(
            case((shapes.is_whole(one), one), else_=0).label(one.name)
            for one in (audit_log.c.chain, audit_log.c.sequence)
        ),
        audit_log.c.id,
    ).where(shapes.IS_STRANGE),
    _Place,
)
_BEFORE = Query(
    select(audit_log.c.sequence, audit_log.c.id).where(
        audit_log.c.chain == bindparam("chain"), audit_log.c.sequence <= bindparam("base", type_=BigInteger)
    ),
    _PlaceInChain,
)
