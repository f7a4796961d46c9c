"""Pages of a listing, newest first. A cursor is the last id of a page, in a form that is opaque to the client."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Callable
from typing import ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar

from sqlalchemy import ColumnElement, Integer, Select, bindparam
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.storage.statements import Query
from keyman.storage.types import Id

T = TypeVar("T")

DEFAULT_LIMIT = 50
MAX_LIMIT = 200


class Limit(int):
    """The maximum number of items on a page, in a query parameter."""

    schema: ClassVar[dict[str, object]] = {
        "type": "integer",
        "minimum": 1,
        "maximum": MAX_LIMIT,
        "default": DEFAULT_LIMIT,
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        number = int(raw) if isinstance(raw, str) and raw.isascii() and raw.isdigit() and len(raw) < 10 else 0
        if not 1 <= number <= MAX_LIMIT:
            raise ValueError(f"must be a whole number from 1 to {MAX_LIMIT}")
        return cls(number)


PLAIN_CURSOR = "^(?!A{11}$)[A-Za-f][A-Za-z0-9_-]{9}[AEIMQUYcgkosw048]$"
"""An id in base64url: eight bytes, which are not all zero, and whose first bit is 0."""


class Cursor(int):
    """The position where a page begins: after the last id of the page before it. It is opaque to clients."""

    schema: ClassVar[dict[str, object]] = {
        "type": "string",
        "pattern": PLAIN_CURSOR,
        "examples": ["AAAAAAAAAAo"],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        if not isinstance(raw, str) or not re.fullmatch(PLAIN_CURSOR, raw):
            raise ValueError("must be a cursor from a Link header")
        (number,) = struct.unpack(">q", base64.urlsafe_b64decode(f"{raw}="))
        return cls(number)

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(struct.pack(">q", self)).decode().rstrip("=")


UNSAID = Limit(DEFAULT_LIMIT)
"""The limit of a request without a limit."""


class Page(NamedTuple, Generic[T]):
    """One page of a listing. `cursor` asks for the next page; it is None on the last one."""

    items: list[T]
    cursor: Cursor | None


class Slice(NamedTuple):
    """The requested part of a listing."""

    limit: int = DEFAULT_LIMIT
    before: Cursor | None = None


class HasId(Protocol):
    """A row with an id, by which a listing is ordered."""

    @property
    def id(self) -> int: ...


H = TypeVar("H", bound=HasId)


class Listing(Generic[H]):
    """A statement whose rows are read in pages, newest first. `page` takes the parameters of the statement.

    A statement that has to know where a page begins has another one for the pages after the first: `following`, with
    the same columns and the parameter `before`.
    """

    def __init__(
        self,
        statement: Select[*tuple[object, ...]],
        id_column: ColumnElement[int],
        row: Callable[..., H],
        *,
        following: Select[*tuple[object, ...]] | None = None,
    ) -> None:
        limit = bindparam("limit", type_=Integer)
        if following is None:
            following = statement.where(id_column < bindparam("before", type_=Id))
        self._first = Query(statement.order_by(id_column.desc()).limit(limit), row)
        self._following = Query(following.order_by(following.selected_columns["id"].desc()).limit(limit), row)

    async def page(self, connection: AsyncConnection, part: Slice, **parameters: object) -> Page[H]:
        """Return the rows of this part, newest first. It reads one row more, to know whether there is a next page."""
        limit = part.limit + 1
        if part.before is None:
            rows = await self._first.all(connection, limit=limit, **parameters)
        else:
            rows = await self._following.all(connection, limit=limit, before=part.before, **parameters)
        shown = rows[: part.limit]
        return Page(shown, Cursor(shown[-1].id) if len(rows) > part.limit else None)
