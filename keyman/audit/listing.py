"""Reads the audit log in the order of its ids, newest first. A filter by time reads only the entries of that time.

A later entry has a higher id, except as far as the clocks of the replicas differ. So the filter first converts a time
to an id, with a margin. It then compares the entries within the margin by their own time.

A statement depends on the shape of a filter only: how many actions it has, and which ends of a time. Each shape is
built once, when it is first used, because there are many of which few are ever used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import ClassVar, NamedTuple, Self

import msgspec
from sqlalchemy import ColumnElement, Integer, Select, bindparam, func, select, union_all

from keyman.audit.entries import Action, Actor
from keyman.audit.tables import audit_log
from keyman.ids import MAX_ID, UserId
from keyman.storage.paging import Listing, Page, Slice
from keyman.storage.statements import Query
from keyman.storage.transactions import Database
from keyman.storage.types import Id, UtcTime

CLOCKS_APART = timedelta(minutes=10)
"""The margin of a filter by time, so that it misses no entry: for the difference between the clocks of two replicas and
the duration of a transaction.

Synchronised clocks differ by much less, and no transaction of keyman takes that long.
"""

EARLIEST = datetime.min.replace(tzinfo=UTC) + CLOCKS_APART
LATEST = datetime.max.replace(tzinfo=UTC) - CLOCKS_APART


class AuditEntry(msgspec.Struct):
    """One audit entry, as its user sees it. `reason` is the reason why an application got no key.

    `detail` says more in keyman's words, such as the issuer at which the user signed in.
    """

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
    detail: str | None


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
    actions = {_action(n): action for n, action in enumerate(sorted(set(wanted.actions)))}
    listing = _own(len(actions), wanted.since is not None, wanted.until is not None)
    async with db.read() as connection:
        page = await listing.page(connection, part, user_id=user_id, **actions, **moments(wanted))
    return Page([AuditEntry(*row) for row in page.items], page.cursor)


async def list_all(
    db: Database, user_id: UserId | None, limit: int, wanted: Filter = EVERYTHING
) -> list[OperatorEntry]:
    """Return the newest entries that match, of one user or of all, oldest first."""
    owner = {} if user_id is None else {"user_id": user_id}
    actions = {"actions": list(wanted.actions)} if wanted.actions else {}
    newest = _all(bool(owner), bool(actions), wanted.since is not None, wanted.until is not None)
    async with db.read() as connection:
        return (await newest.all(connection, limit=limit, **owner, **actions, **moments(wanted)))[::-1]


class OwnRow(NamedTuple):
    """The columns of OF_USER, from which an AuditEntry is made."""

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
    detail: str | None


_LIMIT = bindparam("limit", type_=Integer)
_BEFORE = audit_log.c.id < bindparam("before", type_=Id)
IS_OWN = audit_log.c.user_id == bindparam("user_id", type_=Id)
OF_USER = select(*(audit_log.c[name] for name in OwnRow._fields)).where(IS_OWN)


@cache
def _own(actions: int, since: bool, until: bool) -> Listing[OwnRow]:
    """Return the listing of a user's entries with one of so many actions, or any action for 0, and within a time."""
    statement: Select[*tuple[object, ...]] = OF_USER.where(*within(has_since=since, has_until=until))
    if not actions:
        return Listing(statement, audit_log.c.id, OwnRow)
    first = _merged(statement, actions)
    return Listing(first, first.selected_columns.id, OwnRow, following=_merged(statement.where(_BEFORE), actions))


def _merged(statement: Select[*tuple[object, ...]], actions: int) -> Select[*tuple[object, ...]]:
    """Return a SELECT of the entries of several actions, of each as many as a page can have.

    With one SELECT for each action, the database reads the entries of each from an index, in order. With one SELECT for
    several actions, it would read the whole audit log, or sort it.
    """
    newest = statement.order_by(audit_log.c.id.desc()).limit(_LIMIT)
    each = (
        newest.where(audit_log.c.action == bindparam(_action(n), type_=audit_log.c.action.type)) for n in range(actions)
    )
    return select(union_all(*(select(one.subquery()) for one in each)).subquery())


def _action(number: int) -> str:
    """Return the name of a parameter."""
    return f"action_{number}"


@cache
def _all(owner: bool, actions: bool, since: bool, until: bool) -> Query[OperatorEntry]:
    """Return the query of entries of one user or of all, with some actions or any action, and within a time."""
    statement = select(*(audit_log.c[name] for name in OperatorEntry.__struct_fields__)).where(
        *within(has_since=since, has_until=until)
    )
    if owner:
        statement = statement.where(IS_OWN)
    if actions:
        statement = statement.where(audit_log.c.action.in_(bindparam("actions", expanding=True)))
    return Query(statement.order_by(audit_log.c.id.desc()).limit(_LIMIT), OperatorEntry)


def within(*, has_since: bool, has_until: bool) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions of a filter by time. `moments` has their parameters."""
    near = audit_log.alias()
    if has_since:
        earlier = select(near.c.id).where(near.c.at < bindparam("well_before", type_=UtcTime))
        last = earlier.order_by(near.c.at.desc()).limit(1).scalar_subquery()
        yield audit_log.c.id > func.coalesce(last, 0)
        yield audit_log.c.at >= bindparam("since", type_=UtcTime)
    if has_until:
        later = select(near.c.id).where(near.c.at >= bindparam("well_after", type_=UtcTime))
        first = later.order_by(near.c.at).limit(1).scalar_subquery()
        yield audit_log.c.id <= func.coalesce(first, MAX_ID)
        yield audit_log.c.at < bindparam("until", type_=UtcTime)


def moments(wanted: Filter) -> dict[str, datetime]:
    """Return the parameters of the conditions of `within`."""
    since, until = wanted.since, wanted.until
    moments = dict[str, datetime]()
    if since is not None:
        moments |= {"since": since, "well_before": max(since, EARLIEST) - CLOCKS_APART}
    if until is not None:
        moments |= {"until": until, "well_after": min(until, LATEST) + CLOCKS_APART}
    return moments
