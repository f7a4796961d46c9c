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

from keyman.errors import RateLimited, RefusedStatement
from keyman.ids import OwnerId
from keyman.keys.inserting import WRITTEN, Limit, NewRow, check_numbers, insert_all
from keyman.keys.rows import NO_CHECK
from keyman.keys.tables import api_keys
from keyman.storage.transactions import Database, Unchecked
from tests.support.rows import add, add_owner, count, row

pytestmark = pytest.mark.anyio

MOMENT = datetime(2030, 1, 2, 3, 4, 5, 678901, UTC)


def new_key(**values: Any) -> NewRow:
    made = {"name": None, "name_folded": None, "expires_at": None, "settings": "{}", "fingerprint": None}
    return cast("NewRow", {**row("api_keys"), **made, **values})


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
        together = await insert_all(connection, keys)
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
            await insert_all(connection, keys)

    for column, length in (("service", 65), ("name", 101), ("last_4_chars", 65)):
        with pytest.raises((DBAPIError, RefusedStatement)):
            await insert(new_key(), new_key(**{column: "x" * length}))
    assert await count(db, "api_keys") == 0
    await db.close()


@pytest.mark.parametrize("owners", [1, 2])
async def test_a_key_counts_for_those_that_come_after_it(db: Database, owners: int) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        ids = [await add(connection, "users") for _ in range(owners)]
    full = OwnerId(ids[0] or 0)
    async with db.write(Unchecked.OPERATOR) as connection:
        await insert_all(connection, [new_key(user_id=full, owner_id=full) for _ in range(2)])
        limits = [Limit(full, 4) for _ in range(4)]
        if owners == 2:
            limits.insert(3, Limit(OwnerId(ids[1] or 0), 4))
        refusals = await check_numbers(connection, limits)
    assert [refusal is None for refusal in refusals] == [True, True, False, *[True] * (owners - 1), False]
    assert all(isinstance(refusal, RateLimited) for refusal in refusals if refusal is not None)
    assert len({id(refusal) for refusal in refusals if refusal is not None}) == 2


async def test_each_of_several_keys_is_told_the_oldest_other_key_with_its_value(db: Database) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        ada, bob = [await add(connection, "users") for _ in range(2)]
    old, new = bytes(32), bytes(range(32))

    def of(owner: int | None, fingerprint: bytes | None) -> NewRow:
        return new_key(user_id=owner, owner_id=owner, fingerprint=fingerprint, value_uuid=uuid4())

    async with db.write(Unchecked.OPERATOR) as connection:
        (first,) = await insert_all(connection, [of(ada, old)])
        (second,) = await insert_all(connection, [of(ada, old)])
        found = await insert_all(
            connection, [of(ada, old), of(ada, new), of(ada, new), of(bob, old), of(bob, None), of(bob, None)]
        )
    assert first.duplicate_of is UNSET
    assert second.duplicate_of == first.shown.id
    same, one, other, *of_bob = found
    assert same.duplicate_of == first.shown.id
    assert (one.duplicate_of, other.duplicate_of) == (other.shown.id, one.shown.id)
    assert [row.duplicate_of for row in of_bob] == [UNSET] * 3
