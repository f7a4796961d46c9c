"""Recomputes the chains, entry by entry, and reports where and how a chain is broken.

A chain is read in pages. The same statement reads the end of the chain, so both are of one moment: a chain can be
verified while others write, and it ends where the database says. Only one page is in memory at a time.

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

from sqlalchemy import BigInteger, ColumnElement, Integer, and_, bindparam, case, func, select

from keyman.audit import shapes
from keyman.audit.chain import digest, genesis
from keyman.audit.entries import Action
from keyman.audit.tables import AuditRow, audit_chains, audit_log
from keyman.errors import RefusedStatement
from keyman.storage.statements import Query, scalar
from keyman.storage.transactions import Database

PAGE = 2000
"""Entries that one statement reads: less than 1 MB."""

MOST = 1000
"""Missing chains that are reported. Somebody may give a chain a number of nine digits, and the report must stay short.
"""

STRANGE = "it holds what no entry can hold"

UNREADABLE = RefusedStatement
"""Raised for a value that its column's type cannot hold, which SQLite takes: by the driver, or as an UnreadableRow."""

PRUNED = re.compile(r"up to ([0-9]{1,18}) ([0-9a-f]{64})")
"""The detail of an entry about pruning: the sequence and the hash of the last removed entry."""

Report = Callable[[int], None]
"""Called with the number of further entries that were read."""


class Head(NamedTuple):
    """An entry of a chain by its place, and its hash: it stands for all that came before, down to behind `base`, the
    place of the last that was pruned.
    """

    chain: int
    sequence: int
    hash: bytes
    base: int = 0


class Break(NamedTuple):
    """Where a chain is broken, and how. `entry_id` is that of the entry at which it shows, None at an end."""

    chain: int
    sequence: int
    entry_id: int | None
    what: str


@dataclass
class Verified:
    """The result of a verification: how many entries were read, where each chain ends, and what is broken; which
    anchored entries exist, and which were pruned since, so that nothing is known about them; and how many entries from
    before the newest anchor were pruned after it was taken, which only the database itself says.
    """

    entries: int = 0
    heads: list[Head] = field(default_factory=list)
    breaks: list[Break] = field(default_factory=list)
    held: list[Head] = field(default_factory=list)
    pruned: list[Head] = field(default_factory=list)
    pruned_since: int = 0

    def unheld(self) -> set[int]:
        """The chains of which no anchored entry is left: nothing that was anchored says anything of them."""
        return {head.chain for head in self.pruned} - {head.chain for head in self.held}


async def count(db: Database) -> int:
    """How many entries there are to verify, as the chains say."""
    async with db.read() as connection:
        return int(await _COUNT.one(connection))  # PostgreSQL sums integers to a decimal


async def verify(
    db: Database, deployment: UUID, anchored: Sequence[Head] = (), report: Report = lambda _count: None
) -> Verified:
    """Verify every chain, and that each anchored entry is still the same. Raises DatabaseUnavailable."""
    found = Verified()
    async with db.read() as connection:
        chains = await _CHAINS.all(connection)
        lowest, highest = await _RANGE.one(connection)
    expected = {0, *itertools.islice(_gaps(chains), MOST), *(n for n in (lowest, highest) if isinstance(n, int))}
    expected |= {head.chain for head in anchored}
    for chain in sorted(expected - set(chains)):
        found.breaks.append(Break(chain, 0, None, "its ends are gone, and with them what its entries are held to"))
    for chain in chains:
        mine = [head for head in anchored if head.chain == chain]
        await _Chain(db, deployment, chain, mine, found, report).verify()
    if db.is_sqlite:
        await _find_strange(db, found)
    return found


def _gaps(chains: Sequence[int]) -> Iterator[int]:
    """The numbers that are left out in a row of them, which rises."""
    for before, after in itertools.pairwise((-1, *chains)):
        yield from range(before + 1, after)


async def _find_strange(db: Database, found: Verified) -> None:
    """Find what the reading of the chains does not: what hashes alike, and what has no place in any."""
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
        self._queries = _QUERIES["sqlite" if db.is_sqlite else "postgresql"]
        self._genesis = genesis(deployment, chain)
        self._chain = chain
        self._newest = max(anchored, key=lambda head: head.sequence, default=None)
        self._anchored: dict[int, set[Head]] = {}
        for head in anchored:
            self._anchored.setdefault(head.sequence, set()).add(head)
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
            end = page[0].end
            if [type(value) for value in end] != [int, bytes, int, bytes]:
                return self._broken(0, None, "its ends hold what no end can hold")
            if end.base_sequence > self._at:  # at the beginning, or pruned in the meantime
                self._at, self._hash = end.base_sequence, end.base_hash
            for entry, _ in page:
                # The end stands there without an entry, too; and what is before the beginning is found in the end.
                if entry is not None and entry.sequence > end.base_sequence:
                    self._take(entry)
            if len(page) < limit:
                await self._find_before(end.base_sequence)
                return self._finish(end)

    async def _page(self, limit: int) -> list[_Row]:
        """The next entries, each with the ends of the chain."""
        async with self._db.read() as connection:
            rows = await self._queries.page.all(connection, chain=self._chain, after=self._at, limit=limit)
        self._report(sum(row.entry is not None for row in rows))
        return rows

    async def _skip(self) -> None:
        """Pass over an entry that cannot be read. What follows it may well be whole."""
        async with self._db.read() as connection:
            sequence = await self._queries.next_place.one(connection, chain=self._chain, after=self._at)
        self._broken(sequence, None, STRANGE)
        self._at, self._hash = sequence, None

    def _take(self, row: AuditRow) -> None:
        self._found.entries += 1
        missing = row.sequence - self._at - 1
        if missing:
            self._broken(row.sequence, row.id, f"{missing:,} before it are missing")
        elif self._hash is not None and digest(self._hash, row._asdict()) != row.hash:
            self._broken(row.sequence, row.id, "it was changed, or exchanged, or the one before it was")
        if isinstance(row.as_of, int) and row.as_of > row.id:  # SQLite takes a text, which is found by its kind
            self._broken(row.sequence, row.id, "it claims to be newer than it is")
        for anchored in self._anchored.pop(row.sequence, ()):
            if anchored.hash == row.hash:
                self._found.held.append(anchored)
            else:
                self._broken(row.sequence, row.id, "it is not the entry that was anchored")
        if row.action == Action.TRAIL_PRUNE and (said := PRUNED.fullmatch(str(row.detail))):
            self._pruned.add((int(said[1]), bytes.fromhex(said[2])))
        self._at, self._hash = row.sequence, row.hash if isinstance(row.hash, bytes) else None

    def _finish(self, end: _End) -> None:
        base = (end.base_sequence, end.base_hash)
        if end.base_sequence == 0 and end.base_hash != self._genesis:
            self._broken(0, None, "it does not begin where this deployment's begins")
        if end.base_sequence > 0 and base not in self._pruned:
            self._broken(1, None, f"{end.base_sequence:,} at its beginning are missing, and no entry says so")
        if self._at < end.sequence:
            self._broken(self._at + 1, None, f"{end.sequence - self._at:,} at its end are missing")
        elif self._at > end.sequence:
            self._broken(end.sequence + 1, None, f"{self._at - end.sequence:,} stand behind its end")
        elif self._hash != end.hash:
            self._broken(self._at, None, "its end was changed")
        for head in itertools.chain.from_iterable(self._anchored.values()):
            if head.sequence == end.base_sequence and head.hash == end.base_hash:
                self._found.held.append(head)
            elif head.sequence < end.base_sequence:
                self._found.pruned.append(head)
            else:
                self._broken(head.sequence, None, "the entry that was anchored is gone")
        if self._newest is not None:
            gone = min(end.base_sequence, self._newest.sequence) - self._newest.base
            self._found.pruned_since += max(0, gone)
            if end.base_sequence < self._newest.base:
                self._broken(0, None, "it begins before the place where it began when it was anchored")
        self._found.heads.append(Head(self._chain, self._at, self._hash or end.hash, end.base_sequence))

    async def _find_before(self, base: int) -> None:
        """Find what stands where nothing can: at or before what was pruned, or before the first place of all."""
        async with self._db.read() as connection:
            for sequence, entry_id in await _BEFORE.all(connection, chain=self._chain, base=base):
                self._broken(sequence, entry_id, "it stands before the beginning")

    def _broken(self, sequence: int, entry_id: int | None, what: str) -> None:
        self._found.breaks.append(Break(self._chain, sequence, entry_id, what))


class _End(NamedTuple):
    """The end of a chain, and its base."""

    sequence: int
    hash: bytes
    base_sequence: int
    base_hash: bytes


class _Row(NamedTuple):
    """An entry, None where a page has none, and the end of its chain in the same moment."""

    entry: AuditRow | None
    end: _End


def _row(*values: object) -> _Row:
    count = len(AuditRow._fields)
    entry = None if values[0] is None else AuditRow._make(values[:count])
    return _Row(entry, _End._make(values[count:]))


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


class _Queries(NamedTuple):
    """What follows in a chain: a page of it, and the place of the next entry."""

    page: Query[_Row]
    next_place: Query[int]


def _queries(follows: ColumnElement[bool]) -> _Queries:
    chain = bindparam("chain", type_=Integer)
    ends = audit_chains.c
    page = (
        select(*audit_log.c, *(ends[name].label(f"end_{name}") for name in _End._fields))
        .select_from(audit_chains.outerjoin(audit_log, and_(audit_log.c.chain == ends.chain, follows)))
        .where(ends.chain == chain)
        .order_by(audit_log.c.sequence)
        .limit(bindparam("limit", type_=Integer))
    )
    next_place = select(func.min(audit_log.c.sequence)).where(audit_log.c.chain == chain, follows)
    return _Queries(Query(page, _row), scalar(next_place, int))


_FOLLOWS = audit_log.c.sequence > bindparam("after", type_=BigInteger)
_QUERIES = {
    # An entry whose place is no number has no place in the chain.
    "sqlite": _queries(and_(_FOLLOWS, shapes.is_whole(audit_log.c.sequence))),
    "postgresql": _queries(_FOLLOWS),
}
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
