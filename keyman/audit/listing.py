"""Reads the audit log in the order of its ids, newest first. A filter by time reads only the entries of that time.

A later entry has a higher id, except as far as the clocks of the replicas differ. So the filter first converts a time
to an id, with a margin. It then compares the entries within the margin by their own time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import ClassVar, NamedTuple, Self

import msgspec
from sqlalchemy import ColumnElement, Select, bindparam, func, select, union_all

from keyman.audit.entries import Action, Actor
from keyman.audit.tables import audit_log
from keyman.ids import MAX_ID, UserId
from keyman.storage.paging import Listing, Page, Slice
from keyman.storage.statements import Query
from keyman.storage.transactions import Database

CLOCKS_APART = timedelta(minutes=10)
"""The margin of a filter by time, so that it misses no entry: for the difference between the clocks of two replicas and
the duration of a transaction.

Synchronised clocks differ by much less, and no transaction of keyman takes that long.
"""

EARLIEST = datetime.min.replace(tzinfo=UTC) + CLOCKS_APART
LATEST = datetime.max.replace(tzinfo=UTC) - CLOCKS_APART


class AuditEntry(msgspec.Struct):
    """One audit entry, as its user sees it. `reason` is the reason why an application got no key."""

    id: int
    at: datetime
    action: Action
    actor: Actor
    actor_token_id: int | None
    token_id: int | None
    key_id: int | None
    service: str | None
    request_id: str | None
    address: str | None
    application: str | None
    purpose: str | None
    reason: str | None


class OperatorEntry(msgspec.Struct):
    """One audit entry, as an operator sees it: all fields except those that only the chain and the resolver need."""

    id: int
    at: datetime
    user_id: int | None
    action: Action
    actor: Actor
    actor_id: int | None
    token_id: int | None
    key_id: int | None
    service: str | None
    application: str | None
    purpose: str | None
    reason: str | None
    detail: str | None
    request_id: str | None
    vault_request_id: str | None
    address: str | None
    chain: int
    sequence: int


class ActionName(str):
    """An action in a query parameter."""

    __slots__ = ()
    schema: ClassVar[dict[str, object]] = {
        "type": "string",
        "enum": [action.value for action in Action],
        "examples": [Action.KEY_RESOLVE.value],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        if not isinstance(raw, str) or raw not in list(Action):
            raise ValueError("must be an action of the audit log, such as key.resolve")
        return cls(raw)


class Filter(NamedTuple):
    """A filter for entries: with one of `actions`, or any action if it is empty; from `since` on; before `until`."""

    actions: Collection[Action] = ()
    since: datetime | None = None
    until: datetime | None = None


EVERYTHING = Filter()


async def list_own(db: Database, user_id: UserId, part: Slice, wanted: Filter = EVERYTHING) -> Page[AuditEntry]:
    """Return a user's own audit log, newest first."""
    listing = _UNFILTERED if wanted == EVERYTHING else _filtered(wanted, part)
    async with db.read() as connection:
        page = await listing.page(connection, part, user_id=user_id)
    return Page([AuditEntry(*row) for row in page.items], page.cursor)


async def list_all(
    db: Database, user_id: UserId | None, limit: int, wanted: Filter = EVERYTHING
) -> list[OperatorEntry]:
    """Return the newest entries that match, of one user or of all, oldest first."""
    statement = select(*(audit_log.c[name] for name in OperatorEntry.__struct_fields__)).where(*_within(wanted))
    if user_id is not None:
        statement = statement.where(audit_log.c.user_id == user_id)
    if wanted.actions:
        statement = statement.where(audit_log.c.action.in_(wanted.actions))
    newest = Query(statement.order_by(audit_log.c.id.desc()).limit(limit), OperatorEntry)
    async with db.read() as connection:
        return (await newest.all(connection))[::-1]


class _Own(NamedTuple):
    id: int
    at: datetime
    action: Action
    actor: Actor
    actor_id: int | None
    token_id: int | None
    key_id: int | None
    service: str | None
    request_id: str | None
    address: str | None
    application: str | None
    purpose: str | None
    reason: str | None


_OF_USER = select(*(audit_log.c[name] for name in _Own._fields)).where(audit_log.c.user_id == bindparam("user_id"))
_UNFILTERED = Listing(_OF_USER, audit_log.c.id, _Own)


def _filtered(wanted: Filter, part: Slice) -> Listing[_Own]:
    statement: Select[*tuple[object, ...]] = _OF_USER.where(*_within(wanted))
    if not wanted.actions:
        return Listing(statement, audit_log.c.id, _Own)
    newest = union_all(*(select(_newest(statement, action, part).subquery()) for action in sorted(wanted.actions)))
    rows = newest.subquery()
    return Listing(select(rows), rows.c.id, _Own)


def _newest(statement: Select[*tuple[object, ...]], action: Action, part: Slice) -> Select[*tuple[object, ...]]:
    """Return a SELECT of as many entries of one action as a page can have.

    With one SELECT for each action, the database reads the entries of each from an index, in order. With one SELECT for
    several actions, it would read the whole audit log, or sort it.
    """
    if part.before is not None:
        statement = statement.where(audit_log.c.id < part.before)
    return statement.where(audit_log.c.action == action).order_by(audit_log.c.id.desc()).limit(part.limit + 1)


def _within(wanted: Filter) -> Iterator[ColumnElement[bool]]:
    since, until = wanted.since, wanted.until
    near = audit_log.alias()
    if since is not None:
        earlier = select(near.c.id).where(near.c.at < max(since, EARLIEST) - CLOCKS_APART)
        last = earlier.order_by(near.c.at.desc()).limit(1).scalar_subquery()
        yield audit_log.c.id > func.coalesce(last, 0)
        yield audit_log.c.at >= since
    if until is not None:
        later = select(near.c.id).where(near.c.at >= min(until, LATEST) + CLOCKS_APART)
        first = later.order_by(near.c.at).limit(1).scalar_subquery()
        yield audit_log.c.id <= func.coalesce(first, MAX_ID)
        yield audit_log.c.at < until
