"""`keyman.identity.lookups`: lookups that wait at the same moment are one query, and none sees what was before it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from sqlalchemy import bindparam, delete, select, text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.errors import DatabaseUnavailable, RefusedStatement, Unauthenticated
from keyman.identity import lookups, personal_tokens
from keyman.identity.lookups import QUERIES, TOGETHER, Lookup
from keyman.identity.personal_tokens import TokenProof
from keyman.identity.principals import Credentials
from keyman.identity.tables import throttle
from keyman.identity.tokens import Token
from keyman.storage.statements import Command, UnreadableRow
from keyman.storage.transactions import Database, Unchecked
from tests.support.rows import add, add_owner

pytestmark = pytest.mark.anyio


class Row(NamedTuple):
    bucket: bytes
    attempts: int


_DELETE = Command(delete(throttle).where(throttle.c.bucket == bindparam("key")))


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


class Held(Lookup[bytes, Row]):
    """A lookup whose queries are counted. Each waits, after it has its rows, until `released` is set."""

    def __init__(self) -> None:
        columns = select(throttle.c.bucket, throttle.c.attempts)
        super().__init__(columns, throttle.c.bucket, Row, lambda row: row.bucket)
        self.asked: list[list[bytes]] = []
        self.read = asyncio.Event()
        self.released = asyncio.Event()
        self.released.set()

    async def _find(self, database: weakref.ref[Database], keys: Sequence[bytes]) -> Sequence[Row | None]:
        self.asked.append(list(keys))
        found = await super()._find(database, keys)
        self.read.set()
        await self.released.wait()
        return found


async def fill(db: Database, count: int) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        for number in range(count):
            await add(connection, "throttle", bucket=key(number), attempts=number)


async def test_each_gets_its_own_row_or_none(db: Database) -> None:
    await fill(db, 40)
    lookup = Held()
    found = await asyncio.gather(*(lookup.find(db, key(number)) for number in range(60)))
    assert found == [Row(key(number), number) if number < 40 else None for number in range(60)]
    assert await lookup.find(db, key(3)) == Row(key(3), 3)
    twice = await asyncio.gather(*(lookup.find(db, key(number)) for number in (3, 3, 99)))
    assert twice == [Row(key(3), 3)] * 2 + [None]


async def test_lookups_that_wait_at_the_same_moment_are_one_query(db: Database) -> None:
    await fill(db, TOGETHER)
    lookup = Held()
    await asyncio.gather(*(lookup.find(db, key(number)) for number in range(TOGETHER)))
    assert [len(keys) for keys in lookup.asked] == [TOGETHER]


async def test_a_single_lookup_leaves_at_once(db: Database) -> None:
    await fill(db, 1)
    lookup = Held()
    assert await lookup.find(db, key(0)) == Row(key(0), 0)
    assert lookup.asked == [[key(0)]]


async def test_no_lookup_is_answered_from_a_query_that_started_before_it(db: Database) -> None:
    await fill(db, QUERIES)
    lookup = Held()
    lookup.released.clear()
    before = []
    for number in range(QUERIES):  # as many queries as are under way at a time
        before.append(asyncio.ensure_future(lookup.find(db, key(number))))
        lookup.read.clear()
        await lookup.read.wait()
    async with db.write(Unchecked.OPERATOR) as connection:
        await _DELETE.execute(connection, key=key(0))
    after = asyncio.ensure_future(lookup.find(db, key(0)))
    await asyncio.sleep(0)
    lookup.released.set()
    assert [row is not None for row in await asyncio.gather(*before)] == [True] * QUERIES
    assert await after is None
    assert lookup.asked[-1] == [key(0)]


async def test_a_token_that_was_revoked_while_others_are_looked_up_is_refused(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queries under way have read the token before it was revoked, on whichever replica."""
    token = Token.generate()
    await add_owner(db)
    async with db.write(Unchecked.OPERATOR) as connection:
        await add(connection, "api_tokens", token_hash=token.digest())
    reads, released = asyncio.Queue[None](), asyncio.Event()
    find = Lookup._find

    async def held(self: Lookup[bytes, object], database: weakref.ref[Database], keys: Sequence[bytes]) -> object:
        found = await find(self, database, keys)
        reads.put_nowait(None)
        await released.wait()
        return found

    monkeypatch.setattr(personal_tokens._BY_HASH, "_find", held.__get__(personal_tokens._BY_HASH))

    async def verify() -> None:
        text = token.reveal()
        await TokenProof().verify(db, text, Credentials(text, None, "r", None))

    before = []
    for _ in range(QUERIES):
        before.append(asyncio.ensure_future(verify()))
        await reads.get()
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(text("DELETE FROM api_tokens"))
    after = [asyncio.ensure_future(verify()) for _ in range(3)]
    await asyncio.sleep(0)
    released.set()
    await asyncio.gather(*before)
    for late in after:
        with pytest.raises(Unauthenticated):
            await late


async def test_a_caller_who_gives_up_costs_the_others_nothing(db: Database) -> None:
    await fill(db, 2)
    lookup = Held()
    gone, stays = (asyncio.ensure_future(lookup.find(db, key(number))) for number in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == Row(key(1), 1)


async def test_no_lookup_waits_for_ever_for_those_before_it(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that hangs ends each query after its own time, and hundreds of lookups may wait for their turn."""
    await fill(db, 1)
    lookup = Held()
    lookup.released.clear()
    with monkeypatch.context() as short:
        short.setattr(lookups, "PATIENCE", 0.1)
        async with asyncio.timeout(10):
            late = [lookup.find(db, key(number)) for number in range(QUERIES * TOGETHER + 1)]
            found = await asyncio.gather(*late, return_exceptions=True)
    assert {type(outcome) for outcome in found} == {DatabaseUnavailable}
    assert all(fault.__context__ is None for fault in found if isinstance(fault, BaseException))
    lookup.released.set()
    assert await lookup.find(db, key(0)) == Row(key(0), 0)
    assert lookup.asked[-1] == [key(0)]  # who has given up is not looked up any more


async def test_a_row_that_cannot_be_read_fails_only_its_own_lookup(sqlite: URL) -> None:
    db = Database(sqlite)
    await fill(db, 3)

    def read(bucket: bytes, attempts: int) -> Row:
        if attempts == 1:
            raise UnreadableRow("damaged")
        return Row(bucket, attempts)

    columns = select(throttle.c.bucket, throttle.c.attempts)
    lookup: Lookup[bytes, Row] = Lookup(columns, throttle.c.bucket, read, lambda row: row.bucket)
    found = await asyncio.gather(*(lookup.find(db, key(number)) for number in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in found] == [Row, UnreadableRow, Row]
    await db.close()


async def test_each_caller_of_a_query_that_fails_gets_an_exception_of_its_own(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookup = Held()

    async def fail(_connection: AsyncConnection, **_keys: object) -> list[Row]:
        raise faults[-1]

    monkeypatch.setattr(lookup._for_many["sqlite" if db.is_sqlite else "postgresql"], "all", fail)
    faults: list[Exception] = [KeyError("x"), DatabaseUnavailable(kind="x")]
    for expected in (DatabaseUnavailable, RefusedStatement):
        found = await asyncio.gather(*(lookup.find(db, key(n)) for n in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in found] == [expected] * 3
        assert len({id(outcome) for outcome in found}) == 3
        faults.pop()


async def test_it_does_not_keep_a_database_alive(sqlite: URL) -> None:
    lookup = Held()
    db = Database(sqlite)
    await lookup.find(db, key(0))
    await db.close()
    alive = weakref.ref(db)
    del db
    await asyncio.sleep(0)
    gc.collect()
    assert alive() is None


async def test_more_different_keys_than_a_query_takes_are_found(db: Database) -> None:
    known = [key(number) for number in range(2 * TOGETHER + 3)]
    async with db.write(Unchecked.OPERATOR) as connection:
        for bucket in known[::2]:
            await add(connection, "throttle", bucket=bucket)
    held = Held()
    held.released.clear()
    first = [asyncio.create_task(held.find(db, key(10_000 + number))) for number in range(QUERIES)]
    await held.read.wait()  # the others wait, and come together
    asked = [asyncio.create_task(held.find(db, each)) for each in (*known, *known)]
    await asyncio.sleep(0)
    held.released.set()
    await asyncio.gather(*first)
    found = await asyncio.gather(*asked)
    assert [row.bucket if row else None for row in found] == 2 * [
        each if number % 2 == 0 else None for number, each in enumerate(known)
    ]
