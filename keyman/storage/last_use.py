"""When something was last used, stored once a minute: one write a minute, not one for each request."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, bindparam, or_

from keyman.storage.types import UtcTime

PRECISION = timedelta(minutes=1)
"""How old a stored last use may be before it is written again."""


def is_due(last: datetime | None, moment: datetime) -> bool:
    """Return True where a use at `moment` is to be written."""
    return last is None or moment - last >= PRECISION


def is_stale(column: ColumnElement[datetime]) -> ColumnElement[bool]:
    """The same as a condition on the parameter `stale_at`: of many requests at once one writes."""
    return or_(column.is_(None), column <= bindparam("stale_at", type_=UtcTime))


def stale_at(moment: datetime) -> datetime:
    """Return the parameter of `is_stale`."""
    return moment - PRECISION
