"""The statements of lists of keys that are filtered, searched or sorted.

All of them read the keys of one owner from an index on `owner_id`, so what the owner has limits what a list costs.
There is no index for a label, a status or a last use: it would be written at each use, to help one owner.

A statement depends on the shape of a selection only. Each is built once, when it is first used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Integer,
    String,
    Text,
    and_,
    any_,
    bindparam,
    func,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.errors import FieldError, InvalidRequest
from keyman.ids import OwnerId
from keyman.keys.rows import OWNED, Shown, folded, pattern_of
from keyman.keys.schemas import Status
from keyman.keys.sorting import KeyCursor, Selection, Sort
from keyman.keys.tables import api_keys
from keyman.providers.catalogue import Catalogue
from keyman.storage.arrays import as_list
from keyman.storage.paging import Page, Slice
from keyman.storage.statements import Query, scalar
from keyman.storage.types import Id, UtcTime

NEVER = datetime(1970, 1, 1, tzinfo=UTC)
"""Stands for the time of a use that there was not."""

_MAX_MICROSECONDS = (datetime.max.replace(tzinfo=UTC) - NEVER) // timedelta(microseconds=1)


async def read(
    connection: AsyncConnection, owner_id: OwnerId, wanted: Selection, part: Slice, moment: datetime
) -> Page[Shown]:
    """Return a page of the keys of an owner at this moment. Raises InvalidRequest for a cursor that is made up."""
    limit = part.limit + 1  # one more, to know whether there is a next page
    parameters = _parameters(connection, owner_id, wanted, moment)
    if wanted.sort in _USES:
        parameters["never"] = NEVER
    if part.before is not None:
        parameters |= {"before": int(part.before), **_value(wanted.sort, part.before)}
    query = _page(_shape(connection, wanted), is_first=part.before is None)
    rows = await query.all(connection, limit=limit, **parameters)
    shown = rows[: part.limit]
    cursor = None
    if len(rows) > part.limit:
        cursor = KeyCursor.at(shown[-1].shown.id, wanted.fingerprint, _text(shown[-1].value))
    return Page([row.shown for row in shown], cursor)


async def count(connection: AsyncConnection, owner_id: OwnerId, wanted: Selection, moment: datetime) -> int:
    """Return how many keys the list has on all its pages."""
    shape = _shape(connection, wanted)._replace(sort=Sort.NEWEST)
    return await _number(shape).one(connection, **_parameters(connection, owner_id, wanted, moment))


def services_named(catalogue: Catalogue, text: str) -> tuple[str, ...]:
    """Return the services whose names contain a text, ignoring case."""
    return tuple(one.service for one in catalogue.services() if text and folded(text) in folded(one.name))


class _Shape(NamedTuple):
    """What the text of a statement depends on."""

    is_sqlite: bool
    has_service: bool
    has_text: bool
    has_verdict: bool
    status: Status | None
    sort: Sort


def _shape(connection: AsyncConnection, wanted: Selection) -> _Shape:
    return _Shape(
        connection.dialect.name == "sqlite",
        wanted.service is not None,
        bool(wanted.text),
        wanted.verdict is not None,
        wanted.status,
        wanted.sort,
    )


def _parameters(
    connection: AsyncConnection, owner_id: OwnerId, wanted: Selection, moment: datetime
) -> dict[str, object]:
    parameters: dict[str, object] = {"owner_id": owner_id}
    if wanted.service is not None:
        parameters["service"] = wanted.service
    if wanted.text:
        parameters["pattern"] = pattern_of(wanted.text)
        parameters["named"] = as_list(list(wanted.named), connection.dialect.name)
    if wanted.verdict is not None:
        parameters["verdict"] = wanted.verdict.value
    if wanted.status not in (None, Status.UNDECRYPTABLE):
        parameters["moment"] = moment
    return parameters


def _conditions(shape: _Shape) -> Iterator[ColumnElement[bool]]:
    if shape.has_service:
        yield api_keys.c.service == bindparam("service")
    if shape.has_text:
        pattern = bindparam("pattern", type_=Text)
        ending = func.lower(_by_code_points(shape, func.substr(_MASK, func.length(_MASK) - 3)))
        yield or_(
            api_keys.c.name_folded.like(pattern, escape="/"),
            _is_named(shape),
            and_(_MASK != "...", ending.like(pattern, escape="/")),  # the mask of a short value has no character of it
        )
    if shape.has_verdict:
        yield and_(api_keys.c.check_verdict == bindparam("verdict"), api_keys.c.checked_at.is_not(None))
    if shape.status is not None:
        yield _HAS_STATUS[shape.status]


_MASK = api_keys.c.last_4_chars


def _is_named(shape: _Shape) -> ColumnElement[bool]:
    """Return a condition for the services of the parameter `named`: an array, or on SQLite one in JSON."""
    if shape.is_sqlite:
        listed = func.json_each(bindparam("named", type_=String)).table_valued("value")
        return api_keys.c.service.in_(select(listed.c.value))
    return api_keys.c.service == any_(bindparam("named", type_=ARRAY(Text)))


_HAS_ENDED = and_(api_keys.c.expires_at.is_not(None), api_keys.c.expires_at <= bindparam("moment", type_=UtcTime))
_LASTS = or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > bindparam("moment", type_=UtcTime))
_HAS_STATUS: Mapping[Status, ColumnElement[bool]] = {
    Status.UNDECRYPTABLE: api_keys.c.undecryptable,
    Status.EXPIRED: and_(~api_keys.c.undecryptable, _HAS_ENDED),
    Status.DISABLED: and_(~api_keys.c.undecryptable, _LASTS, api_keys.c.disabled),
    Status.ACTIVE: and_(~api_keys.c.undecryptable, _LASTS, ~api_keys.c.disabled),
}
"""The same as `status_of`, in SQL. Settings that were damaged in the database are not seen here."""


def _by_code_points(shape: _Shape, text: ColumnElement[str]) -> ColumnElement[str]:
    """Return a text that is compared by its code points: the same on both databases, and in each locale."""
    return text if shape.is_sqlite else text.collate("C")


_USES = (Sort.BY_USE, Sort.BY_USE_DESCENDING)
_NAMES = (Sort.BY_NAME, Sort.BY_NAME_DESCENDING)


def _key(shape: _Shape) -> ColumnElement[Any]:
    """Return the value by which a list is sorted, before the id. It is never null."""
    if shape.sort in _USES:
        return func.coalesce(api_keys.c.last_used_at, bindparam("never", type_=UtcTime))
    return _by_code_points(shape, func.coalesce(api_keys.c.name_folded, ""))


def _value(sort: Sort, before: int) -> dict[str, object]:
    """Return the parameter `value` of a page that begins at a cursor. Raises InvalidRequest."""
    text = before.value if isinstance(before, KeyCursor) else ""
    if sort in _NAMES:
        return {"value": text}
    if sort not in _USES:
        return {}
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _MAX_MICROSECONDS):
        raise InvalidRequest.at(FieldError("cursor", "must be a cursor from a Link header"))
    return {"value": NEVER + timedelta(microseconds=int(text))}


def _text(value: object) -> str:
    """Return the value by which a row is sorted, for a cursor."""
    if isinstance(value, datetime):
        return str(max(0, (value - NEVER) // timedelta(microseconds=1)))
    return value if isinstance(value, str) else ""


class _Placed(NamedTuple):
    """A row, and the value by which it is sorted."""

    shown: Shown
    value: object


def _placed(*values: object) -> _Placed:
    return _Placed(Shown._make(values[:-1]), values[-1])


def _unplaced(*values: object) -> _Placed:
    return _Placed(Shown._make(values), None)


@cache
def _page(shape: _Shape, *, is_first: bool) -> Query[_Placed]:
    """Return the statement of a first page, or of one that begins at the parameters `value` and `before`."""
    statement = OWNED.where(*_conditions(shape))
    is_descending, limit, before = (
        shape.sort.is_descending,
        bindparam("limit", type_=Integer),
        bindparam("before", type_=Id),
    )
    by_id = api_keys.c.id.desc() if is_descending else api_keys.c.id.asc()
    is_after = api_keys.c.id < before if is_descending else api_keys.c.id > before
    if shape.sort in (Sort.NEWEST, Sort.OLDEST):
        statement = statement if is_first else statement.where(is_after)
        return Query(statement.order_by(by_id).limit(limit), _unplaced)
    key = _key(shape)
    if not is_first:
        statement = statement.where(_is_beyond(shape, key, is_after))
    by_key = key.desc() if is_descending else key.asc()
    return Query(statement.add_columns(key.label("value")).order_by(by_key, by_id).limit(limit), _placed)


def _is_beyond(shape: _Shape, key: ColumnElement[Any], is_after: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return a condition for what comes after the parameter `value`, and for an equal value after the id."""
    value: ColumnElement[Any] = (
        bindparam("value", type_=UtcTime) if shape.sort in _USES else bindparam("value", type_=Text)
    )
    beyond = key < value if shape.sort.is_descending else key > value
    return or_(beyond, and_(key == value, is_after))


@cache
def _number(shape: _Shape) -> Query[int]:
    theirs = select(func.count()).select_from(api_keys).where(api_keys.c.owner_id == bindparam("owner_id"))
    return scalar(theirs.where(*_conditions(shape)), int)
