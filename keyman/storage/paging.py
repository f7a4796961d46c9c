"""Pages of a listing that is newest first: a cursor is the id that the last page ended with, opaque to the client."""

from __future__ import annotations

import base64
import re
import struct
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

from sqlalchemy import ColumnElement, Select
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.storage.types import AnyRow

T = TypeVar("T")

DEFAULT_LIMIT = 50
MAX_LIMIT = 200


class Limit(int):
    """How many items a page may hold, as a query parameter says it."""

    schema: ClassVar[dict[str, Any]] = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}

    @classmethod
    def parse(cls, raw: object) -> Self:
        number = int(raw) if isinstance(raw, str) and raw.isascii() and raw.isdigit() and len(raw) < 10 else 0
        if not 1 <= number <= MAX_LIMIT:
            raise ValueError(f"must be a whole number from 1 to {MAX_LIMIT}")
        return cls(number)


class Cursor(int):
    """Where a page begins: below the id that the page before ended with. Opaque on the wire."""

    # Base64url of eight bytes, not all zero, whose first bit is 0: an id.
    schema: ClassVar[dict[str, Any]] = {
        "type": "string",
        "pattern": "^(?!A{11}$)[A-Za-f][A-Za-z0-9_-]{9}[AEIMQUYcgkosw048]$",
        "examples": ["AAAAAAAAAAo"],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        if not isinstance(raw, str) or not re.fullmatch(cls.schema["pattern"], raw):
            raise ValueError("must be a cursor that a Link header has given")
        (number,) = struct.unpack(">q", base64.urlsafe_b64decode(f"{raw}="))
        return cls(number)

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(struct.pack(">q", self)).decode().rstrip("=")


UNSAID = Limit(DEFAULT_LIMIT)
"""The limit of a request that names none."""


class Page(NamedTuple, Generic[T]):
    """Some of a listing; `cursor` asks for what follows, None at the end."""

    items: list[T]
    cursor: Cursor | None


class Slice(NamedTuple):
    """Which part of a listing is asked for."""

    limit: int = DEFAULT_LIMIT
    before: Cursor | None = None


async def fetch(
    connection: AsyncConnection, statement: Select[*tuple[object, ...]], id_column: ColumnElement[int], part: Slice
) -> Page[AnyRow]:
    """The rows of `statement` in this part, newest first; one more is read, to know whether there are more."""
    if part.before is not None:
        statement = statement.where(id_column < part.before)
    rows = (await connection.execute(statement.order_by(id_column.desc()).limit(part.limit + 1))).all()
    shown = list(rows[: part.limit])
    return Page(shown, Cursor(shown[-1].id) if len(rows) > part.limit else None)
