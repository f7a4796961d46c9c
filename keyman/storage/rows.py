"""Rows as their column types decode them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.engine import Result

from keyman.errors import RefusedStatement, raise_alone
from keyman.storage.types import AnyRow


class UnreadableRow(RefusedStatement):
    """A stored value is not of its column's type. SQLite stores such a value; PostgreSQL refuses it."""


def decoded(result: Result[*tuple[object, ...]]) -> Sequence[AnyRow]:
    """Return all rows of a result. Raises UnreadableRow, which repeats nothing of what is stored.

    Only the column types run in here. So a TypeError or an AttributeError of other code of keyman is never taken for a
    damaged row.
    """
    try:
        return result.all()
    except (ValueError, TypeError, AttributeError):  # the types' own errors hold the value
        raise_alone(UnreadableRow("a stored row holds a value that its column cannot hold"))
