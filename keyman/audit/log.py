"""Writing the audit log: one entry for each change to an account, a token, a key or an application, in the transaction
of the change itself; and one for each time that an application asks for a key, committed before it gets one.

The hash of each entry covers the one before it in its chain. A writer locks the end of a chain until its transaction is
over. A single chain would serialise all writers. So a database that takes several writers has several chains, and an
entry goes to any whose end nobody has locked. Write the entries last: that keeps the lock short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Executable,
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
from keyman.storage.types import AnyRow


async def record(connection: AsyncConnection, *entries: Entry, chain: int | None = None) -> None:
    """Write entries in the caller's transaction, as the last thing in it: all is committed, or nothing.

    All go to one chain: this one, or any. A transaction that waited for a second chain while it holds one could
    deadlock with another.
    """
    for entry in entries:
        chain = await _write(connection, entry, chain)


async def _write(connection: AsyncConnection, entry: Entry, chain: int | None) -> int:
    """Write one entry, and return its chain."""
    end = await hold(connection, chain)
    row = {
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
    for statement in _WRITE[connection.dialect.name]:
        await connection.execute(statement, values)
    return int(end.chain)


def current_value(key_id: ColumnElement[int] | int) -> ScalarSelect[UUID | None]:
    """The uuid of the value that a key holds, as the audit log has it."""
    newest = select(audit_log.c.value_uuid).where(audit_log.c.key_id == key_id, audit_log.c.value_uuid.is_not(None))
    return newest.order_by(audit_log.c.as_of.desc()).limit(1).scalar_subquery()


async def hold(connection: AsyncConnection, chain: int | None = None) -> AnyRow:
    """The end of a chain, held until the transaction is over, and the id for its next entry: of this chain, or of any.

    One that nobody holds is taken, where there is one; else this waits, as for any lock.
    """
    dialect = connection.dialect.name
    statements = (_FREE[dialect], _ANY[dialect]) if chain is None else (_THIS[dialect],)
    for statement in statements:
        row = (await connection.execute(statement, {} if chain is None else {"this": chain})).one_or_none()
        if row is not None:
            return row
    raise RefusedStatement("the database refused an entry of the audit log: its chain is gone")


# Made once, for each entry executes them: to put a statement together takes as long as to execute it.

_NUMBERED = table("sqlite_sequence", column("name"), column("seq", Integer))
_LAST = select(_NUMBERED.c.seq).where(_NUMBERED.c.name == "audit_log").scalar_subquery()
_NEXT_ID: Mapping[str, ColumnElement[int]] = {
    "sqlite": func.coalesce(_LAST, 0) + 1,
    "postgresql": func.nextval("audit_log_id_seq"),
}


def _held(wanted: Select[*tuple[Any, ...]]) -> Mapping[str, Select[*tuple[Any, ...]]]:
    """By dialect: an end, and the id for the next entry, drawn once the end is held, so that ids rise along a chain."""
    held = wanted.subquery()
    return {dialect: select(held, next_id.label("entry_id")) for dialect, next_id in _NEXT_ID.items()}


_BY_CHANCE = select(audit_chains).order_by(func.random()).limit(1)
_FREE = _held(_BY_CHANCE.with_for_update(skip_locked=True))
_ANY = _held(_BY_CHANCE.with_for_update())
_THIS = _held(select(audit_chains).where(audit_chains.c.chain == bindparam("this")).with_for_update())

_ENTRY = insert(audit_log).values({one.name: bindparam(f"new_{one.name}", type_=one.type) for one in audit_log.c})
_END = (
    update(audit_chains)
    .where(audit_chains.c.chain == bindparam("new_chain"))
    .values(sequence=bindparam("new_sequence"), hash=bindparam("new_hash"))
)
_WRITE: Mapping[str, Sequence[Executable]] = {
    "sqlite": (_ENTRY, _END),
    "postgresql": (_ENTRY.add_cte(_END.cte("ended")),),  # one trip instead of two
}
