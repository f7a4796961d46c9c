"""`keyman.audit.entries`: an entry and its change are committed together or not at all.

tests/planes/management/api/test_audit.py tests which acts have entries.
"""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from keyman.audit import listing
from keyman.audit.entries import OPERATOR, Action, Actor, Entry, Origin
from keyman.audit.log import record
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.identity.tables import users
from keyman.ids import MAX_ID, KeyId, UserId
from keyman.storage.paging import Cursor, Slice
from keyman.storage.transactions import Database, Unchecked
from tests.support import rows

pytestmark = pytest.mark.anyio


@pytest.fixture
async def owner(db: Database) -> UserId:
    return await add(db, "ada@example.com")


async def add(db: Database, email: str) -> UserId:
    async with db.write(Unchecked.OPERATOR) as connection:
        made = await rows.add(connection, "users", email=email, email_key=email)
    assert made is not None
    return UserId(made)


async def entries(db: Database) -> list[Any]:
    async with db.read() as connection:
        return list((await connection.execute(select(audit_log).order_by(audit_log.c.id))).all())


async def test_an_entry_is_there_once_its_change_is_committed(db: Database, owner: UserId) -> None:
    origin = Origin(Actor.TOKEN, 3, "a" * 32, "2001:db8::1")
    async with db.write(Unchecked.OPERATOR) as connection:
        await record(connection, Entry(Action.KEY_CREATE, origin, owner, key_id=KeyId(5), service="OPENAI"))
        assert await entries(db) == []
    (entry,) = await entries(db)
    assert (entry.user_id, entry.actor, entry.actor_id, entry.action) == (owner, "token", 3, "key.create")
    assert (entry.key_id, entry.token_id, entry.service) == (5, None, "OPENAI")
    assert (entry.request_id, entry.address) == ("a" * 32, "2001:db8::1")
    assert entry.at.utcoffset().total_seconds() == 0


async def test_a_change_that_fails_leaves_no_entry(db: Database, owner: UserId) -> None:
    async def change() -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await record(connection, Entry(Action.DISABLE, OPERATOR, owner))
            raise LookupError

    with pytest.raises(LookupError):
        await change()
    assert await entries(db) == []


async def test_an_entry_that_fails_leaves_no_change(db: Database, owner: UserId) -> None:
    async def change() -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(update(users).values(disabled_at=now()))
            await record(connection, Entry(Action.DISABLE, OPERATOR, UserId(owner + 1000)))

    with pytest.raises(IntegrityError):
        await change()
    async with db.read() as connection:
        assert (await connection.execute(select(users.c.disabled_at))).scalar_one() is None


async def test_every_action_of_every_actor_can_be_recorded(db: Database, owner: UserId) -> None:
    told = [(action, actor) for action in Action for actor in Actor]
    async with db.write(Unchecked.OPERATOR) as connection:
        for action, actor in told:
            await record(connection, Entry(action, Origin(actor, MAX_ID, "x" * 64, "x" * 64), owner, service="X" * 64))
    page = await listing.list_own(db, owner, Slice(len(told)))
    assert [(entry.action, entry.actor) for entry in page.items] == told[::-1]
    assert {entry.actor_token_id for entry in page.items} == {MAX_ID}


async def test_an_audit_log_comes_newest_first_in_parts_and_only_for_its_owner(db: Database, owner: UserId) -> None:
    other = await add(db, "eve@example.com")
    async with db.write(Unchecked.OPERATOR) as connection:
        for n in range(7):
            await record(connection, Entry(Action.LOGIN, OPERATOR, owner if n % 2 else other, key_id=KeyId(n)))
    seen, cursor = [], None
    while True:
        page = await listing.list_own(db, owner, Slice(2, cursor))
        seen += [entry.key_id for entry in page.items]
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == [5, 3, 1]
    assert (await listing.list_own(db, owner, Slice(2, Cursor(1)))).items == []
