"""Lists the keys of an owner, in the order that the caller asks for, and counts them.

Requests that wait at the same moment share a connection and, on SQLite, a hand-over to its thread. Those that ask for
the same page share the statement, too. Nothing waits for others to come, and no list comes from a statement that
started before its request: see `Batcher`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary, ref

from sqlalchemy import bindparam
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.batching import Batcher, BatchRefused
from keyman.clock import now
from keyman.errors import FieldError, InvalidRequest, RefusedStatement
from keyman.identity.principals import Principal
from keyman.ids import OwnerId
from keyman.keys import selecting
from keyman.keys.rows import OWNED, Shown, to_info
from keyman.keys.schemas import KeyInfo, Status
from keyman.keys.sorting import KeyCursor, Selection, Sort
from keyman.keys.tables import api_keys
from keyman.providers.verdicts import Verdict
from keyman.storage import driver
from keyman.storage.faults import of_one_caller
from keyman.storage.paging import Listing, Page, Slice
from keyman.storage.transactions import Database

TOGETHER = 16
"""Lists on one connection, one after the other. More save little, and each waits for those before it."""

CONNECTIONS = 2
"""Connections that read lists at a time in a process, of ten. More would share less: each takes what waits."""

PATIENCE = 10.0
"""Seconds that a list may take, including the time that it waits for those before it. See `identity.lookups`."""


class _Wanted(NamedTuple):
    """One page of the keys of an owner."""

    owner_id: OwnerId
    service: str | None
    part: Slice


_FAILURE = partial(of_one_caller, what="a list of keys")
_Batcher = Batcher[_Wanted, Page[KeyInfo]]
_BATCHERS: WeakKeyDictionary[Database, _Batcher] = WeakKeyDictionary()


async def list_own(
    db: Database,
    caller: Principal,
    part: Slice,
    service: str | None = None,
    text: str | None = None,
    *,
    named: Sequence[str] = (),
    status: Status | None = None,
    verdict: Verdict | None = None,
    sort: Sort = Sort.NEWEST,
) -> Page[KeyInfo]:
    """Return a page of the caller's keys. Others may have the same page, so do not change it.

    `service` selects the keys of one service, `status` those that have it now, and `verdict` those whose last check
    has it. `text` selects those with this text in their label or their last four characters, ignoring case, or whose
    service is one of `named`. Raises InvalidRequest for a cursor of another list.
    """
    wanted = Selection(service, text or "", tuple(named) if text else (), status, verdict, sort)
    of = part.before.of if isinstance(part.before, KeyCursor) else b""
    if part.before is not None and of != wanted.fingerprint:
        raise InvalidRequest.at(FieldError("cursor", "belongs to a list with another sort or other filters"))
    if wanted == Selection(service):
        page = await _find(db, _Wanted(caller.owner_id, service, part))
        cursor = None if page.cursor is None else KeyCursor.at(page.cursor, wanted.fingerprint)
        return Page(page.items, cursor)
    # A search can read every key of an owner, so nobody else waits for it.
    moment = now()
    async with db.read() as connection:
        found = await selecting.read(connection, caller.owner_id, wanted, part, moment)
    return Page([to_info(row, moment) for row in found.items], found.cursor)


async def count_own(
    db: Database,
    caller: Principal,
    service: str | None = None,
    text: str | None = None,
    *,
    named: Sequence[str] = (),
    status: Status | None = None,
    verdict: Verdict | None = None,
) -> int:
    """Return how many keys the caller has on all pages of such a list."""
    wanted = Selection(service, text or "", tuple(named) if text else (), status, verdict)
    async with db.read() as connection:
        return await selecting.count(connection, caller.owner_id, wanted, now())


async def _find(db: Database, wanted: _Wanted) -> Page[KeyInfo]:
    """Return a page, together with what others wait for. Raises DatabaseUnavailable, after PATIENCE at the latest."""
    batcher = _BATCHERS.get(db)
    if batcher is None:
        run = partial(_find_all, ref(db))  # a batcher must not keep its database alive
        batcher = _BATCHERS[db] = _Batcher(run, _FAILURE, max_batch=TOGETHER, max_batches=CONNECTIONS)
    return await batcher.submit(wanted, PATIENCE)


async def _find_all(database: ref[Database], all_of: Sequence[_Wanted]) -> Sequence[Page[KeyInfo]]:
    db = database()
    assert db is not None, "a caller of list_own() holds it"
    different = dict.fromkeys(all_of)
    try:
        pages = await db.fetch(lambda one: driver.at_once(one, lambda: _read_all(one, different)))
    except RefusedStatement:
        if len(all_of) == 1:
            raise
        raise BatchRefused("One of several lists cannot be read.") from None  # the others are asked for again
    return [pages[wanted] for wanted in all_of]


async def _read_all(connection: AsyncConnection, different: Mapping[_Wanted, None]) -> dict[_Wanted, Page[KeyInfo]]:
    return {wanted: await _read(connection, wanted) for wanted in different}


async def _read(connection: AsyncConnection, wanted: _Wanted) -> Page[KeyInfo]:
    more = {} if wanted.service is None else {"service": wanted.service}
    page = await _LISTINGS[wanted.service is not None].page(connection, wanted.part, owner_id=wanted.owner_id, **more)
    moment = now()
    return Page([to_info(row, moment) for row in page.items], page.cursor)


_LISTINGS: Mapping[bool, Listing[Shown]] = {
    False: Listing(OWNED, api_keys.c.id, Shown),
    True: Listing(OWNED.where(api_keys.c.service == bindparam("service")), api_keys.c.id, Shown),
}
"""The lists of keys, newest first, by a flag: whether they are of one service. `selecting` has all others."""
