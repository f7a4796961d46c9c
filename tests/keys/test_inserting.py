"""New keys that are inserted together are the same as those that are inserted one at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast
from uuid import uuid4

import pytest
from msgspec import UNSET
from sqlalchemy import select
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.errors import RateLimited, RefusedStatement
from keyman.ids import OwnerId
from keyman.keys.inserting import WRITTEN, Inserted, Insertion, NewRow, insert_all
from keyman.keys.rows import NO_CHECK
from keyman.keys.tables import api_keys
from keyman.storage.transactions import Database, Unchecked
from tests.support.rows import add, add_owner, count, row

pytestmark = pytest.mark.anyio

MOMENT = datetime(2030, 1, 2, 3, 4, 5, 678901, UTC)


def new_key(**values: Any) -> NewRow:
    made = {"name": None, "name_folded": None, "expires_at": None, "settings": "{}", "fingerprint": None}
    return cast("NewRow", {**row("api_keys"), **made, **values})


async def inserted(connection: AsyncConnection, *keys: NewRow) -> list[Inserted]:
    """Insert keys of owners without a limit."""
    rows = await insert_all(connection, [Insertion(values) for values in keys])
    return [row for row in rows if isinstance(row, Inserted)]


def test_every_column_of_a_new_key_is_written_that_has_no_value_by_itself() -> None:
    assert {*WRITTEN} == {*api_keys.c.keys()} - {"id", "last_used_at", "last_used_by", "is_default", *NO_CHECK}


async def test_keys_that_are_inserted_together_are_those_that_are_given(db: Database) -> None:
    await add_owner(db)
    keys = [
        new_key(),
        new_key(name="Ünïcode 'quoted', {braced} \\ NULL", name_folded="x", expires_at=MOMENT),
        new_key(service="GROQ", fingerprint=bytes(range(32)), settings='{"a": "b"}', disabled=True, key_version=7),
        new_key(name="", expires_at=MOMENT.astimezone(timezone(timedelta(hours=5)))),
    ]
    async with db.write(Unchecked.OPERATOR) as connection:
        together = await inserted(connection, *keys)
        stored = [
            (await connection.execute(select(api_keys).where(api_keys.c.id == one.shown.id))).one() for one in together
        ]
    assert [{name: getattr(each, name) for name in WRITTEN} for each in stored] == keys
    for one, each in zip(together, stored, strict=True):
        assert one.shown._asdict() == {name: getattr(each, name) for name in one.shown._fields}
    assert len({one.shown.id for one in together}) == len(keys)


async def test_a_text_that_is_too_long_is_refused_and_not_cut(postgresql: URL) -> None:
    db = Database(postgresql)
    await add_owner(db)

    async def insert(*keys: NewRow) -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await inserted(connection, *keys)

    for column, length in (("service", 65), ("name", 101), ("last_4_chars", 65)):
        with pytest.raises((DBAPIError, RefusedStatement)):
            await insert(new_key(), new_key(**{column: "x" * length}))
    assert await count(db, "api_keys") == 0
    await db.close()


async def test_a_key_counts_for_those_that_come_after_it(db: Database) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        full, other = [OwnerId(await add(connection, "users") or 0) for _ in range(2)]

    def of(owner: OwnerId, most: int) -> Insertion:
        one = uuid4()
        return Insertion(new_key(user_id=owner, owner_id=owner, value_uuid=one, last_4_chars=one.hex[-4:]), most)

    async with db.write(Unchecked.OPERATOR) as connection:
        await insert_all(connection, [of(full, 0), of(full, 4)])
    async with db.write(Unchecked.OPERATOR) as connection:
        given = [of(full, 4), of(full, 4), of(full, 4), of(other, 4), of(full, 4)]
        rows = await insert_all(connection, given)
    assert [isinstance(row, Inserted) for row in rows] == [True, True, False, True, False]
    stored = [(one.values["last_4_chars"], row) for one, row in zip(given, rows, strict=True)]
    assert all(row.shown.last_4_chars == last for last, row in stored if isinstance(row, Inserted))
    refusals = [row for row in rows if isinstance(row, RateLimited)]
    assert len({id(refusal) for refusal in refusals}) == 2
    assert await count(db, "api_keys") == 5
    async with db.write(Unchecked.OPERATOR) as connection:
        (none,) = await insert_all(connection, [of(full, 4)])
        (unlimited,) = await insert_all(connection, [of(full, 0)])
    assert (type(none), type(unlimited)) == (RateLimited, Inserted)


async def test_each_of_several_keys_is_told_the_oldest_other_key_with_its_value(db: Database) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        ada, bob = [await add(connection, "users") for _ in range(2)]
    old, new = bytes(32), bytes(range(32))

    def of(owner: int | None, fingerprint: bytes | None) -> NewRow:
        return new_key(user_id=owner, owner_id=owner, fingerprint=fingerprint, value_uuid=uuid4())

    async with db.write(Unchecked.OPERATOR) as connection:
        (first,) = await inserted(connection, of(ada, old))
        (second,) = await inserted(connection, of(ada, old))
        found = await inserted(
            connection, of(ada, old), of(ada, new), of(ada, new), of(bob, old), of(bob, None), of(bob, None)
        )
    assert first.duplicate_of is UNSET
    assert second.duplicate_of == first.shown.id
    same, one, other, *of_bob = found
    assert same.duplicate_of == first.shown.id
    assert (one.duplicate_of, other.duplicate_of) == (other.shown.id, one.shown.id)
    assert [row.duplicate_of for row in of_bob] == [UNSET] * 3
