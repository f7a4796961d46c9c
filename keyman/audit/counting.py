"""Counts the entries of a user by day and application, for the chart on the page Activity."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, String, bindparam, func, literal_column, select

from keyman.audit.entries import Action
from keyman.audit.listing import IS_OWN, Filter, moments, within
from keyman.audit.tables import audit_log
from keyman.ids import UserId
from keyman.storage.statements import Query
from keyman.storage.transactions import Database

MAX_COUNTED = 10_000
"""The number of entries of one action that are counted, the newest ones: some 10 ms, however long the audit log is."""


class DayCount(NamedTuple):
    """How many entries of an application there are on a day (UTC). `application` is None for the user's own tokens."""

    day: date
    application: str | None
    uses: int


class Counts(NamedTuple):
    """The counts, and whether they are all that there are since the moment that was asked for."""

    days: list[DayCount]
    is_complete: bool


async def by_day(db: Database, user_id: UserId, actions: Collection[Action], since: datetime) -> Counts:
    """Count a user's own entries with one of these actions."""
    counted: dict[tuple[str, str | None], int] = {}
    is_complete = True
    async with db.read() as connection:
        for action in actions:
            asked = {"user_id": user_id, "action": action, **moments(Filter(since=since))}
            found = await _BY_DAY[connection.dialect.name].all(connection, **asked)
            is_complete = is_complete and sum(row.uses for row in found) < MAX_COUNTED
            for row in found:
                counted[row.day, row.application] = counted.get((row.day, row.application), 0) + row.uses
    days = [DayCount(date.fromisoformat(day), application, count) for (day, application), count in counted.items()]
    return Counts(days, is_complete)


class _Count(NamedTuple):
    day: str
    application: str | None
    uses: int


_NEWEST = (
    select(audit_log.c.application, audit_log.c.at)
    .where(IS_OWN, audit_log.c.action == bindparam("action"), *within(has_since=True, has_until=False))
    .order_by(audit_log.c.id.desc())
    .limit(literal_column(str(MAX_COUNTED)))
    .subquery("newest")
)


def _grouped(day: ColumnElement[str]) -> Query[_Count]:
    counted = select(day.label("day"), _NEWEST.c.application, func.count().label("uses"))
    return Query(counted.group_by(literal_column("1"), _NEWEST.c.application), _Count)


_BY_DAY = {
    "sqlite": _grouped(func.substr(_NEWEST.c.at, literal_column("1"), literal_column("10"), type_=String)),
    "postgresql": _grouped(
        func.to_char(func.timezone(literal_column("'UTC'"), _NEWEST.c.at), literal_column("'YYYY-MM-DD'"), type_=String)
    ),
}
