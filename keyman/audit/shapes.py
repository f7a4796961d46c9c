"""Detects values in the audit log that SQLite accepts although keyman never writes them.

SQLite stores any type of value in any column, and a time or a uuid as text. So somebody can change an entry in such a
way that queries select and sort it differently, although it reads and hashes the same. Examples are a time in another
zone, bytes instead of text, and a uuid in capital letters.
"""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import BigInteger, Column, ColumnElement, Integer, LargeBinary, Uuid, and_, func, literal_column, or_

from keyman.audit.tables import audit_log
from keyman.storage.types import UtcTime

T = TypeVar("T")

TIME = "-".join(("[0-9]" * 4, "[0-9]" * 2, "[0-9]" * 2)) + " " + ":".join(["[0-9]" * 2] * 3) + "." + "[0-9]" * 6
"""The form of a stored time, as a GLOB pattern of SQLite: in UTC, with microseconds."""


def is_whole(number: ColumnElement[T]) -> ColumnElement[bool]:
    """Return a condition for SQLite: the value is an integer, and not a text, a float or bytes."""
    return _is("integer", number)


def _is(kind: str, value: ColumnElement[T]) -> ColumnElement[bool]:
    return func.typeof(value) == kind


def _is_written(one: Column[object]) -> ColumnElement[bool]:
    """Return a condition: the column, which is not null, has a value in the form that keyman writes."""
    if isinstance(one.type, BigInteger | Integer):
        return is_whole(one)
    if isinstance(one.type, LargeBinary):
        return _is("blob", one)
    # The text as it is stored: the type of the column would decode it.
    text: ColumnElement[str] = literal_column(f"audit_log.{one.name}")
    if isinstance(one.type, UtcTime):
        return and_(_is("text", one), text.op("GLOB")(TIME))
    if isinstance(one.type, Uuid):
        return and_(_is("text", one), func.length(text) == 32, ~text.op("GLOB")("*[^0-9a-f]*"))
    return _is("text", one)


IS_STRANGE = or_(*(and_(one.is_not(None), ~_is_written(one)) for one in audit_log.c))
"""A condition for an entry on SQLite: keyman cannot have written it."""
