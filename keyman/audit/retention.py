"""Pruning removes entries that are old enough and anchored. The remaining entries still verify.

A chain then begins after its last removed entry. `audit_chains` keeps the place and hash of that entry, and a new entry
in the chain records the pruning, so that nobody can shorten a chain unnoticed by moving its beginning. If a removed
entry named the current value of a key, a new entry names it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, and_, bindparam, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.chain import Head
from keyman.audit.entries import NO_VALUE, OPERATOR, Action, Entry
from keyman.audit.log import current_value, lock_end, record
from keyman.audit.tables import audit_chains, audit_log
from keyman.audit.verification import Report
from keyman.ids import KeyId, UserId
from keyman.storage.statements import Command, Query, optional, scalar
from keyman.storage.transactions import Database, Unchecked
from keyman.storage.types import Id, UtcTime

BATCH = 1000
"""The number of entries that one transaction removes, and that one new entry records as pruned.

On SQLite all writers wait for this transaction. If all of the entries must be repeated, it takes nearly a second, a
fifth of BUSY_TIMEOUT.
"""

PAUSE = 0.2
"""Seconds between two batches on SQLite.

A waiting writer tries to get the lock at least every 0.1 seconds. So without this pause no other writer would get it
until the end of the pruning.
"""

PARAMETERS = 500
"""The maximum number of ids in one statement."""


class Cut(NamedTuple):
    """The last entry of a chain that may be removed, and the number of entries to remove, up to and including it."""

    chain: int
    sequence: int
    entries: int


class Pruned(NamedTuple):
    """The number of removed entries, and the number of keys whose current value was recorded again."""

    entries: int
    carried: int


async def prunable(db: Database, before: datetime, anchored: Sequence[Head]) -> list[Cut]:
    """Return which part of each chain may be pruned: up to the anchored entry, and before the first newer entry."""
    found = []
    for head in anchored:
        async with db.read() as connection:
            first = await _FIRST_NEWER.first(connection, chain=head.chain, last=head.sequence, before=before)
            begins = await _BASE.one(connection, chain=head.chain)
        last = head.sequence if first is None else first - 1
        if last > begins:
            found.append(Cut(head.chain, last, last - begins))
    return found


async def prune(db: Database, cuts: Sequence[Cut], report: Report = lambda _count: None) -> Pruned:
    """Remove the entries of each cut, in batches. Raises DatabaseUnavailable; the batches before that stay removed.

    Verify the chains first. A chain that does not verify is evidence and must not be changed.
    """
    entries = carried = 0
    for cut in cuts:
        while True:
            async with db.write(Unchecked.OPERATOR) as connection:
                gone, again = await _batch(connection, cut)
            if not gone:
                break
            entries, carried = entries + gone, carried + again
            report(gone)
            if db.is_sqlite:
                await asyncio.sleep(PAUSE)
    return Pruned(entries, carried)


async def _batch(connection: AsyncConnection, cut: Cut) -> tuple[int, int]:
    """Prune one batch. Return how many entries were removed, and how many were repeated."""
    await lock_end(connection, cut.chain)
    going = await _GOING.all(connection, chain=cut.chain, last=cut.sequence)
    if not going:
        return 0, 0
    last = going[-1]
    current = await _current(connection, going)
    await _DELETE.execute(connection, chain=cut.chain, last=last.sequence)
    await _MOVE_BASE.execute(connection, of_chain=cut.chain, last=last.sequence, last_hash=last.hash)
    again = [row for row in current if row.value_uuid != NO_VALUE or await _has_a_value(connection, row.key_id)]
    pruned = Entry(Action.TRAIL_PRUNE, OPERATOR, detail=f"up to {last.sequence} {last.hash.hex()}")
    await record(connection, *(_carried(row) for row in again), pruned, chain=cut.chain)
    return len(going), len(again)


def _carried(row: _Valued) -> Entry:
    """Return an entry that repeats the one that named the current value of a key."""
    return Entry(
        Action.TRAIL_CARRY,
        OPERATOR,
        row.user_id,
        key_id=row.key_id,
        service=row.service,
        value_uuid=row.value_uuid,
        as_of=row.as_of,
        vault_request_id=row.vault_request_id,
        settings_hash=row.settings_hash,
        application=row.application,  # see keys/left.py
    )


async def _current(connection: AsyncConnection, rows: Sequence[_Going]) -> list[_Valued]:
    """Return those of the entries that name the current value of a key.

    A client that replaces the key meanwhile writes an entry with a higher `as_of`, so the repeated entry does not
    override it.
    """
    named = [
        _Valued(
            row.id,
            row.user_id,
            row.key_id,
            row.service,
            row.value_uuid,
            row.as_of,
            row.vault_request_id,
            row.settings_hash,
            row.application,
        )
        for row in rows
        if row.value_uuid is not None and row.key_id is not None
    ]
    found: set[int] = set()
    for start in range(0, len(named), PARAMETERS):
        found |= set(await _NEWEST.all(connection, ids=[row.id for row in named[start : start + PARAMETERS]]))
    return [row for row in named if row.id in found]


async def _has_a_value(connection: AsyncConnection, key_id: KeyId) -> bool:
    """Return True if an older entry, in a chain that is pruned later, still names a value of a deleted key."""
    return await _VALUE.one(connection, key_id=key_id) is not None


class _Going(NamedTuple):
    id: int
    user_id: UserId | None
    key_id: KeyId | None
    service: str | None
    value_uuid: UUID | None
    as_of: int | None
    vault_request_id: str | None
    settings_hash: str | None
    application: str | None
    sequence: int
    hash: bytes


class _Valued(NamedTuple):
    """An entry that names the value of a key."""

    id: int
    user_id: UserId | None
    key_id: KeyId
    service: str | None
    value_uuid: UUID
    as_of: int | None
    vault_request_id: str | None
    settings_hash: str | None
    application: str | None


_COVERED = and_(audit_log.c.chain == bindparam("chain"), audit_log.c.sequence <= bindparam("last", type_=BigInteger))
_FIRST_NEWER = scalar(
    select(audit_log.c.sequence)
    .where(_COVERED, audit_log.c.at >= bindparam("before", type_=UtcTime))
    .order_by(audit_log.c.sequence)
    .limit(1),
    int,
)
_BASE = scalar(select(audit_chains.c.base_sequence).where(audit_chains.c.chain == bindparam("chain")), int)
_GOING = Query(
    select(*(audit_log.c[name] for name in _Going._fields)).where(_COVERED).order_by(audit_log.c.sequence).limit(BATCH),
    _Going,
)
_DELETE = Command(delete(audit_log).where(_COVERED))
_MOVE_BASE = Command(
    update(audit_chains)
    .where(audit_chains.c.chain == bindparam("of_chain"))
    .values(base_sequence=bindparam("last"), base_hash=bindparam("last_hash"))
)
_later = audit_log.alias()
_NEWEST = scalar(
    select(audit_log.c.id).where(
        audit_log.c.id.in_(bindparam("ids", expanding=True)),
        audit_log.c.as_of
        == select(func.max(_later.c.as_of))
        .where(_later.c.key_id == audit_log.c.key_id, _later.c.value_uuid.is_not(None))
        .scalar_subquery(),
    ),
    int,
)
_VALUE = optional(select(current_value(bindparam("key_id", type_=Id))), UUID)
