"""Reads the chains of the audit log in pages, each with the ends of its chain at the same moment."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Integer, and_, bindparam, func, select

from keyman.audit import shapes
from keyman.audit.tables import AuditRow, audit_chains, audit_log
from keyman.storage.statements import Query, scalar

PAGE = 2000
"""The number of entries that one statement reads: less than 1 MB."""


class End(NamedTuple):
    """The two ends of a chain: the columns of `audit_chains`."""

    sequence: int
    hash: bytes
    base_sequence: int
    base_hash: bytes


class Row(NamedTuple):
    """An entry, and the ends of its chain at the same moment. `entry` is None in the only row of an empty page."""

    entry: AuditRow | None
    end: End


def _row(*values: object) -> Row:
    count = len(AuditRow._fields)
    entry = None if values[0] is None else AuditRow._make(values[:count])
    return Row(entry, End._make(values[count:]))


class Queries(NamedTuple):
    """The queries for the entries that follow in a chain: for a page, and for the place of the next entry."""

    page: Query[Row]
    next_place: Query[int]


def _queries(follows: ColumnElement[bool]) -> Queries:
    chain = bindparam("chain", type_=Integer)
    ends = audit_chains.c
    page = (
        select(*audit_log.c, *(ends[name].label(f"end_{name}") for name in End._fields))
        .select_from(audit_chains.outerjoin(audit_log, and_(audit_log.c.chain == ends.chain, follows)))
        .where(ends.chain == chain)
        .order_by(audit_log.c.sequence)
        .limit(bindparam("limit", type_=Integer))
    )
    next_place = select(func.min(audit_log.c.sequence)).where(audit_log.c.chain == chain, follows)
    return Queries(Query(page, _row), scalar(next_place, int))


_FOLLOWS = audit_log.c.sequence > bindparam("after", type_=BigInteger)

QUERIES = {
    # An entry whose sequence is not a whole number has no place in the chain.
    "sqlite": _queries(and_(_FOLLOWS, shapes.is_whole(audit_log.c.sequence))),
    "postgresql": _queries(_FOLLOWS),
}
