"""`keyman.keys.listing`: lists that wait at the same moment share a statement, and none is of before its request."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Sequence

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL

from keyman.audit.entries import Actor, Origin
from keyman.clock import now
from keyman.errors import DatabaseUnavailable
from keyman.identity.principals import Principal, User
from keyman.ids import UserId
from keyman.keys import listing
from keyman.keys.listing import CONNECTIONS, TOGETHER, _Wanted
from keyman.keys.schemas import KeyInfo
from keyman.storage.paging import Page, Slice
from keyman.storage.statements import UnreadableRow
from keyman.storage.transactions import Database, Unchecked
from tests.support.rows import add

pytestmark = pytest.mark.anyio


def caller(user_id: int) -> Principal:
    return Principal(Origin(Actor.TOKEN, 1, "r", None), user=User(UserId(user_id), None, now()))


async def fill(db: Database, *owners: int) -> None:
    """Store a key of each of these owners, whose label is the owner's number."""
    async with db.write(Unchecked.OPERATOR) as connection:
        for _ in {*owners}:
            await add(connection, "users")  # numbered from 1
        for owner in owners:
            await add(
                connection, "api_keys", user_id=owner, owner_id=owner, name=f"of {owner}", name_folded=f"of {owner}"
            )


def names(page: Page[KeyInfo]) -> list[str | None]:
    return [key.name for key in page.items]


class Held:
    """Counts the batches. Each waits, after it has its pages, until `released` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[_Wanted]] = []
        self.read = asyncio.Event()
        self.released = asyncio.Event()
        self.released.set()
        self._find_all = listing._find_all
        monkeypatch.setattr(listing, "_find_all", self.find_all)

    async def find_all(self, database: weakref.ref[Database], all_of: Sequence[_Wanted]) -> Sequence[Page[KeyInfo]]:
        self.asked.append(list(all_of))
        found = await self._find_all(database, all_of)
        self.read.set()
        await self.released.wait()
        return found


async def test_each_owner_gets_the_own_keys_and_nothing_else(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    await fill(db, 1, 2, 2, 3)
    asked = [1, 2, 3, 4, 2]
    found = await asyncio.gather(*(listing.list_own(db, caller(owner), Slice()) for owner in asked))
    assert [names(page) for page in found] == [["of 1"], ["of 2"] * 2, ["of 3"], [], ["of 2"] * 2]
    assert len(held.asked) == 1


async def test_pages_filters_and_searches_that_wait_together_do_not_mix(db: Database) -> None:
    await fill(db, 1, 1, 1)
    whole, first, service, found, none = await asyncio.gather(
        listing.list_own(db, caller(1), Slice()),
        listing.list_own(db, caller(1), Slice(1)),
        listing.list_own(db, caller(1), Slice(), "GROQ"),
        listing.list_own(db, caller(1), Slice(), None, "OF 1"),
        listing.list_own(db, caller(1), Slice(), "OPENAI", "of 2"),
    )
    assert [len(page.items) for page in (whole, first, service, found, none)] == [3, 1, 0, 3, 0]
    assert first.items == whole.items[:1]
    assert first.cursor is not None
    rest = await listing.list_own(db, caller(1), Slice(50, first.cursor))
    assert rest.items == whole.items[1:]


async def test_those_that_ask_for_the_same_page_share_a_statement(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(db, 1)
    read, statements = listing._read, list[_Wanted]()

    async def counted(connection: object, wanted: _Wanted) -> Page[KeyInfo]:
        statements.append(wanted)
        return await read(connection, wanted)  # type: ignore[arg-type]  # passed on as it is

    monkeypatch.setattr(listing, "_read", counted)
    found = await asyncio.gather(*(listing.list_own(db, caller(1), Slice()) for _ in range(TOGETHER)))
    assert [names(page) for page in found] == [["of 1"]] * TOGETHER
    assert len(statements) == 1


async def test_no_list_comes_from_a_statement_that_started_before_it(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    await fill(db, 1)
    held.released.clear()
    before = []
    for _ in range(CONNECTIONS):
        held.read.clear()
        before.append(asyncio.ensure_future(listing.list_own(db, caller(1), Slice())))
        await held.read.wait()
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(text("DELETE FROM api_keys"))
    after = asyncio.ensure_future(listing.list_own(db, caller(1), Slice()))
    await asyncio.sleep(0)
    held.released.set()
    assert [names(page) for page in await asyncio.gather(*before)] == [["of 1"]] * CONNECTIONS
    assert names(await after) == []


async def test_a_row_that_cannot_be_read_fails_only_its_owners_list(sqlite: URL) -> None:
    db = Database(sqlite)
    await fill(db, 1, 2, 3)
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(text("UPDATE api_keys SET last_used_at = 'damaged' WHERE owner_id = 2"))
    asked = [listing.list_own(db, caller(owner), Slice()) for owner in (1, 2, 2, 3)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(outcome) for outcome in found] == [Page, UnreadableRow, UnreadableRow, Page]
    assert found[1] is not found[2]
    await db.close()


async def test_no_list_waits_for_ever_for_those_before_it(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    await fill(db, 1)
    held.released.clear()
    with monkeypatch.context() as short:
        short.setattr(listing, "PATIENCE", 0.1)
        async with asyncio.timeout(10):
            late = [listing.list_own(db, caller(1), Slice()) for _ in range(CONNECTIONS * TOGETHER + 1)]
            found = await asyncio.gather(*late, return_exceptions=True)
    assert {type(outcome) for outcome in found} == {DatabaseUnavailable}
    held.released.set()
    assert names(await listing.list_own(db, caller(1), Slice())) == ["of 1"]


async def test_it_does_not_keep_a_database_alive(sqlite: URL) -> None:
    db = Database(sqlite)
    await listing.list_own(db, caller(1), Slice())
    await db.close()
    alive = weakref.ref(db)
    del db
    await asyncio.sleep(0)
    gc.collect()
    assert alive() is None
