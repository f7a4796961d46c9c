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
    ColumnElement,
    Integer,
    ScalarSelect,
    Select,
    bindparam,
    column,
    func,
    insert,
    select,
    table,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.chain import digest
from keyman.audit.entries import Entry
from keyman.audit.tables import audit_chains, audit_log
from keyman.clock import now
from keyman.errors import RefusedStatement
from keyman.storage.statements import Command, Query

T = TypeVar("T")


async def record(connection: AsyncConnection, *entries: Entry, chain: int | None = None) -> None:
    """Write entries in the caller's transaction, as its last step: they are committed with the change or not at all.

    All entries are written to one chain: to `chain`, or to any chain if it is None. A transaction that locks one chain
    and waits for another could deadlock.
    """
    for entry in entries:
        chain = await _write(connection, entry, chain)


async def _write(connection: AsyncConnection, entry: Entry, chain: int | None) -> int:
    """Write one entry, and return its chain."""
    end = await lock_end(connection, chain)
    row: dict[str, object] = {
        **entry._asdict(),
        "id": end.entry_id,
        "at": now(),
        "actor": entry.origin.actor,
        "actor_id": entry.origin.actor_id,
        "request_id": entry.origin.request_id,
        "address": entry.origin.address,
        "as_of": entry.as_of or (end.entry_id if entry.value_uuid is not None else None),
        "chain": end.chain,
        "sequence": end.sequence + 1,
    }
    del row["origin"]
    row["hash"] = digest(end.hash, row)
    values = {f"new_{name}": value for name, value in row.items()}
    for command in _WRITE[connection.dialect.name]:
        await command.execute(connection, **values)
    return end.chain


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
    that was pruned. `entry_id` is the id for the next entry.
    """

    chain: int
    sequence: int
    hash: bytes
    base_sequence: int
    base_hash: bytes
    entry_id: int


async def lock_end(connection: AsyncConnection, chain: int | None = None) -> End:
    """Lock the end of this chain, or of any chain, until the transaction ends, and return it.

    If `chain` is None, it locks an end that nobody has locked. If all of them are locked, it waits for one. Raises
    RefusedStatement if the row of the chain is missing in `audit_chains`.
    """
    dialect = connection.dialect.name
    if chain is None:
        end = await _FREE[dialect].first(connection) or await _ANY[dialect].first(connection)
    else:
        end = await _THIS[dialect].first(connection, this=chain)
    if end is None:
        raise RefusedStatement("the database refused an entry of the audit log: the row of its chain is missing")
    return end


_NUMBERED = table("sqlite_sequence", column("name"), column("seq", Integer))
_LAST = select(_NUMBERED.c.seq).where(_NUMBERED.c.name == "audit_log").scalar_subquery()
_NEXT_ID: Mapping[str, ColumnElement[int]] = {
    "sqlite": func.coalesce(_LAST, 0) + 1,
    "postgresql": func.nextval("audit_log_id_seq"),
}


def _locking(wanted: Select[*tuple[object, ...]]) -> Mapping[str, Query[End]]:
    """Return, for each dialect, a query that locks an end and returns it with the id for the next entry.

    The id is drawn after the end is locked, so ids rise along a chain.
    """
    locked = wanted.subquery()
    return {dialect: Query(select(locked, next_id.label("entry_id")), End) for dialect, next_id in _NEXT_ID.items()}


_BY_CHANCE = select(audit_chains).order_by(func.random()).limit(1)
_FREE = _locking(_BY_CHANCE.with_for_update(skip_locked=True))
_ANY = _locking(_BY_CHANCE.with_for_update())
_THIS = _locking(select(audit_chains).where(audit_chains.c.chain == bindparam("this")).with_for_update())

_ENTRY = insert(audit_log).values({one.name: bindparam(f"new_{one.name}", type_=one.type) for one in audit_log.c})
_END = (
    update(audit_chains)
    .where(audit_chains.c.chain == bindparam("new_chain"))
    .values(sequence=bindparam("new_sequence"), hash=bindparam("new_hash"))
)
_WRITE: Mapping[str, Sequence[Command]] = {
    "sqlite": (Command(_ENTRY), Command(_END)),
    "postgresql": (Command(_ENTRY.add_cte(_END.cte("ended"))),),  # one round trip instead of two
}
