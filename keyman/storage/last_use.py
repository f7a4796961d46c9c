"""Decides when the time of a last use is stored: once a minute, and not at each request."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, bindparam, or_

from keyman.storage.types import UtcTime

PRECISION = timedelta(minutes=1)
"""How old a stored time of last use must be before it is written again.

One that lies as far ahead is written again, too: a clock that ran ahead for a moment wrote it.
"""


def is_due(last: datetime | None, moment: datetime) -> bool:
    """Return True if a use at `moment` must be written."""
    return last is None or abs(moment - last) >= PRECISION


def is_stale(column: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Return the same check as a condition in SQL, with the parameters `bounds`.

    It lets only one of many simultaneous requests write.
    """
    return or_(
        column.is_(None),
        column <= bindparam("stale_at", type_=UtcTime),
        column >= bindparam("ahead_at", type_=UtcTime),
    )


def bounds(moment: datetime) -> dict[str, datetime]:
    """Return the parameters of the condition `is_stale`."""
    return {"stale_at": moment - PRECISION, "ahead_at": moment + PRECISION}
