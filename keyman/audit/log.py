"""Writes the audit log.

There is one entry for each change to an account, a token, a key or an application, in the transaction of the change.
There is also one for each time that an application asks for a key; it is committed before the application gets the key.

The hash of each entry covers the hash of the entry before it in its chain. A writer locks the end of a chain until its
transaction ends. A single chain would serialise all writers. So a database that allows several writers has several
chains, and an entry is written to any chain whose end is not locked. Write the entries as the last step of a
transaction, to keep the lock short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    ScalarSelect,
    Select,
    bindparam,
    column,
    func,
    insert,
    null,
    select,
    table,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.chain import digest
from keyman.audit.entries import Entry
from keyman.audit.tables import audit_chains, audit_log
from keyman.clock import now
from keyman.errors import RefusedStatement
from keyman.storage import committed, driver, engine
from keyman.storage.arrays import as_arrays, given_rows
from keyman.storage.group import later
from keyman.storage.statements import Command, Query

T = TypeVar("T")


async def record(connection: AsyncConnection, *entries: Entry, chain: int | None = None) -> None:
    """Write entries in the caller's transaction, as its last step: they are committed with the change or not at all.

    All entries are written to one chain: to `chain`, or to any chain if it is None. A transaction that locks one chain
    and waits for another could deadlock.
    """
    if chain is not None and entries:
        await _write(connection, entries, chain)
        return
    if entries:
        await later(connection, _write, entries)


async def _write(connection: AsyncConnection, entries: Sequence[Entry], chain: int | None = None) -> None:
    """Write entries to this chain, or to one that is free."""
    end = await lock_end(connection, chain, len(entries))
    rows: list[dict[str, object]] = []
    for entry_id, entry in zip(end.ids(len(entries)), entries, strict=True):
        row = _row(entry, entry_id, end)
        end = end._replace(sequence=end.sequence + 1, hash=digest(end.hash, row))
        rows.append({**row, "hash": end.hash})
    ended: dict[str, object] = {"end_chain": end.chain, "end_sequence": end.sequence, "end_hash": end.hash}
    if connection.dialect.name == "sqlite":
        await _WRITE_EACH.execute_many(connection, rows)
        await _WRITE_END.execute(connection, **ended)
    else:
        write = _WRITE_ALL[await committed.tells_timeline(connection)]
        committed.note(connection, await write.one(connection, **as_arrays(_COLUMNS, rows), **ended))


def _row(entry: Entry, entry_id: int, end: End) -> dict[str, object]:
    """Return the columns of an entry, but for the hash. `end` is the end of the chain before it."""
    row: dict[str, object] = {
        **entry._asdict(),
        "id": entry_id,
        "at": now(),
        "actor": entry.origin.actor,
        "actor_id": entry.origin.actor_id,
        "request_id": entry.origin.request_id,
        "address": entry.origin.address,
        "as_of": entry.as_of or (entry_id if entry.value_uuid is not None else None),
        "chain": end.chain,
        "sequence": end.sequence + 1,
    }
    del row["origin"]
    return row


def current_value(key_id: ColumnElement[int] | int) -> ScalarSelect[UUID | None]:
    """Return a subquery for the `value_uuid` of a key's current value, according to the audit log."""
    return _newest(audit_log.c.value_uuid, key_id)


def current_settings(key_id: ColumnElement[int] | int) -> ScalarSelect[str | None]:
    """Return a subquery for the hash of a key's current settings, according to the audit log.

    It is null in entries from before keys had settings.
    """
    return _newest(audit_log.c.settings_hash, key_id)


def _newest(column: ColumnElement[T], key_id: ColumnElement[int] | int) -> ScalarSelect[T]:
    """Return a subquery for a column of the newest entry that names the current value of a key."""
    naming = select(column).where(audit_log.c.key_id == key_id, audit_log.c.value_uuid.is_not(None))
    return naming.order_by(audit_log.c.as_of.desc()).limit(1).scalar_subquery()


class End(NamedTuple):
    """The end of a chain.

    `sequence` and `hash` are those of its newest entry. `base_sequence` and `base_hash` are those of the last entry
    that was pruned. `entry_id` is the id for the next entry, and `more_ids` are those for the entries after it. On
    SQLite, which has one writer, they are None: they follow `entry_id`.
    """

    chain: int
    sequence: int
    hash: bytes
    base_sequence: int
    base_hash: bytes
    entry_id: int
    more_ids: list[int] | None

    def ids(self, count: int) -> Sequence[int]:
        """Return the ids for the `count` entries for which the end was locked, in rising order."""
        if self.more_ids is None:
            return range(self.entry_id, self.entry_id + count)
        return sorted([self.entry_id, *self.more_ids])


async def lock_end(connection: AsyncConnection, chain: int | None, count: int = 1) -> End:
    """Lock the end of this chain, or of any chain, until the transaction ends, and return it for `count` entries.

    If `chain` is None, it locks an end that nobody has locked. If all of them are locked, it waits for one. Raises
    RefusedStatement if the row of the chain is missing in `audit_chains`.
    """
    dialect = connection.dialect.name
    more = {} if dialect == "sqlite" else {"more": count - 1}
    if chain is None:
        end = await _FREE[dialect].first(connection, **more)
        if end is None:
            # A group waits for other locks only for a short time. But for this one, no member waits less by itself.
            await driver.wait_for_locks(connection, engine.BUSY_TIMEOUT)
            end = await _ANY[dialect].first(connection, **more)
    else:
        end = await _THIS[dialect].first(connection, this=chain, **more)
    if end is None:
        raise RefusedStatement("the database refused an entry of the audit log: the row of its chain is missing")
    return end


_NUMBERED = table("sqlite_sequence", column("name"), column("seq", Integer))
_LAST = select(_NUMBERED.c.seq).where(_NUMBERED.c.name == "audit_log").scalar_subquery()
_NEXT_ID = func.nextval("audit_log_id_seq")
_NUMBERS = func.generate_series(1, bindparam("more", type_=Integer))
_MORE_IDS = func.array(select(_NEXT_ID).select_from(_NUMBERS).scalar_subquery(), type_=ARRAY(BigInteger))
_NO_IDS = type_coerce(null(), ARRAY(BigInteger))
_IDS: Mapping[str, tuple[ColumnElement[int], ColumnElement[Sequence[int]]]] = {
    "sqlite": (func.coalesce(_LAST, 0) + 1, _NO_IDS),
    "postgresql": (_NEXT_ID, _MORE_IDS),
}


def _locking(wanted: Select[*tuple[object, ...]]) -> Mapping[str, Query[End]]:
    """Return, for each dialect, a query that locks an end and returns it with the ids for the next entries.

    The ids are drawn after the end is locked, so they rise along a chain.
    """
    locked = wanted.subquery()
    return {
        dialect: Query(select(locked, next_id.label("entry_id"), more.label("more_ids")), End)
        for dialect, (next_id, more) in _IDS.items()
    }


_BY_CHANCE = select(audit_chains).order_by(func.random()).limit(1)
_FREE = _locking(_BY_CHANCE.with_for_update(skip_locked=True))
_ANY = _locking(_BY_CHANCE.with_for_update())
_THIS = _locking(select(audit_chains).where(audit_chains.c.chain == bindparam("this")).with_for_update())

_END = (
    update(audit_chains)
    .where(audit_chains.c.chain == bindparam("end_chain"))
    .values(sequence=bindparam("end_sequence"), hash=bindparam("end_hash"))
)
_WRITE_EACH, _WRITE_END = Command(insert(audit_log)), Command(_END)

# On PostgreSQL, one round trip for the entries, the end of their chain, and the id of the transaction.
_COLUMNS = tuple(audit_log.c.keys())
_ENTRIES = insert(audit_log).from_select(_COLUMNS, select(given_rows(audit_log.c))).cte("entries")
_WRITE_ALL = {
    has_timeline: Query(_END.add_cte(_ENTRIES).returning(*own), committed.Transaction)
    for has_timeline, own in committed.OWN.items()
}
