"""Exports the whole audit log, for an archive or another system."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import BigInteger, bindparam, func, select

from keyman.audit.chain import line
from keyman.audit.tables import AuditRow, audit_chains, audit_log
from keyman.storage.statements import Query, UnreadableRow, scalar
from keyman.storage.transactions import Database
from keyman.storage.types import UtcTime

PAGE = 2000
"""The number of entries that one statement reads."""


async def lines(db: Database, since: datetime | None) -> AsyncIterator[bytes]:
    """Yield a line of JSON for each entry, chain by chain, in the order of the chain.

    A line contains `hash`. Without it, the line is exactly what was hashed (see chain.py).
    """
    async with db.read() as connection:
        chains = await _CHAINS.all(connection)
    for chain in chains:
        after = 0
        while True:
            async with db.read() as connection:
                if since is None:
                    rows = await _LINES.all(connection, chain=chain, after=after)
                else:
                    rows = await _LINES_SINCE.all(connection, chain=chain, after=after, since=since)
            for entry, previous in rows:
                if not (isinstance(previous, bytes) and isinstance(entry.hash, bytes)):
                    raise UnreadableRow("an entry of the audit log has a damaged hash")
                yield _with_hash(line(previous, entry._asdict()), entry.hash)
            if len(rows) < PAGE:
                break
            after = rows[-1].entry.sequence


def _with_hash(hashed: bytes, value: bytes) -> bytes:
    return hashed[:-1] + b',"hash":"' + value.hex().encode() + b'"}'


class _Line(NamedTuple):
    """An entry, and the hash of the entry before it. On SQLite a damaged hash can have any type."""

    entry: AuditRow
    previous: object


def _line(*values: object) -> _Line:
    return _Line(AuditRow._make(values[:-1]), values[-1])


_before = audit_log.alias()
_PREVIOUS = (
    select(_before.c.hash)
    .where(_before.c.chain == audit_log.c.chain, _before.c.sequence == audit_log.c.sequence - 1)
    .scalar_subquery()
)
_OF_CHAIN = (
    select(*audit_log.c, func.coalesce(_PREVIOUS, audit_chains.c.base_hash).label("previous"))
    .join_from(audit_log, audit_chains, audit_log.c.chain == audit_chains.c.chain)
    .where(audit_log.c.chain == bindparam("chain"), audit_log.c.sequence > bindparam("after", type_=BigInteger))
    .order_by(audit_log.c.sequence)
    .limit(PAGE)
)
_CHAINS = scalar(select(audit_chains.c.chain).order_by(audit_chains.c.chain), int)
_LINES = Query(_OF_CHAIN, _line)
_LINES_SINCE = Query(_OF_CHAIN.where(audit_log.c.at >= bindparam("since", type_=UtcTime)), _line)
