"""The whole trail, for an archive or another system to keep."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

from sqlalchemy import func, select

from keyman.audit.chain import line
from keyman.audit.tables import audit_chains, audit_log
from keyman.storage.rows import UnreadableRow, decoded
from keyman.storage.transactions import Database

PAGE = 2000
"""Entries that are read at once."""


async def lines(db: Database, since: datetime | None) -> AsyncIterator[bytes]:
    """A line of JSON for each entry, chain by chain, in the order in which they are chained.

    A line holds `hash`; without it, it is just what was hashed (see chain.py).
    """
    before = audit_log.alias()
    previous = select(before.c.hash).where(
        before.c.chain == audit_log.c.chain, before.c.sequence == audit_log.c.sequence - 1
    )
    columns = (*audit_log.c, func.coalesce(previous.scalar_subquery(), audit_chains.c.base_hash).label("previous"))
    names = tuple(column.name for column in audit_log.c)
    async with db.read() as connection:
        chains = (await connection.execute(select(audit_chains.c.chain).order_by(audit_chains.c.chain))).scalars().all()
    for chain in chains:
        at = 0
        while True:
            statement = (
                select(*columns)
                .join_from(audit_log, audit_chains, audit_log.c.chain == audit_chains.c.chain)
                .where(audit_log.c.chain == chain, audit_log.c.sequence > at)
                .order_by(audit_log.c.sequence)
                .limit(PAGE)
            )
            if since is not None:
                statement = statement.where(audit_log.c.at >= since)
            async with db.read() as connection:
                rows = decoded(await connection.execute(statement))
            for row in rows:
                if not (isinstance(row.previous, bytes) and isinstance(row.hash, bytes)):
                    raise UnreadableRow("an entry of the audit log has a damaged hash")
                entry = dict(zip(names, row, strict=False))
                yield _with_hash(line(row.previous, entry), row.hash)
            if len(rows) < PAGE:
                break
            at = rows[-1].sequence


def _with_hash(hashed: bytes, value: bytes) -> bytes:
    return hashed[:-1] + b',"hash":"' + value.hex().encode() + b'"}'
