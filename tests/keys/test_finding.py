"""Keys that are found for several requests together are those that are found one at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import update
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Actor, Origin
from keyman.clock import now
from keyman.identity.principals import Principal, User
from keyman.identity.tables import users
from keyman.identity.tokens import ALL_SCOPES
from keyman.ids import KeyId, UserId
from keyman.keys import choosing, finding
from keyman.keys.finding import Found, Wanted
from keyman.keys.schemas import Status, status_of
from keyman.storage import driver
from keyman.storage.compiling import Bound
from keyman.storage.transactions import Database, Unchecked
from tests.support.groups import groups_go_well
from tests.support.rows import add

pytestmark = pytest.mark.anyio

STATES = ("active", "disabled", "undecryptable", "expired", "expires later")
ACTIVE = {"active", "expires later"}
DEFAULTS = ((False, False), (True, False), (False, True))


async def fill(db: Database) -> list[UserId]:
    """Users with two keys of one service in each pair of states, older one first, of which none, the older or the newer
    one is the default; and users with keys of no or other kind.
    """
    moment = now()
    values: dict[str, dict[str, Any]] = {
        "active": {},
        "disabled": {"disabled": True},
        "undecryptable": {"undecryptable": True},
        "expired": {"expires_at": moment - timedelta(hours=1)},
        "expires later": {"expires_at": moment + timedelta(hours=1)},
    }
    async with db.write(Unchecked.OPERATOR) as connection:
        found = []
        for states, defaults in itertools.product(itertools.product(STATES, repeat=2), DEFAULTS):
            user_id = await add(connection, "users")
            for state, is_default in zip(states, defaults, strict=True):
                await add(
                    connection,
                    "api_keys",
                    user_id=user_id,
                    owner_id=user_id,
                    is_default=is_default,
                    **values[state],
                )
            found.append(user_id)
        other = await add(connection, "users")
        await add(connection, "api_keys", user_id=other, owner_id=other, service="GROQ")
        await connection.execute(update(users).where(users.c.id == found[0]).values(disabled_at=moment))
        found += [other, await add(connection, "users"), 999_999]
    return [UserId(user_id or 0) for user_id in found]


async def find(db: Database, wanted: Wanted) -> Found | None:
    return await db.together(Unchecked.OUTCOME, lambda connection: finding.in_use(connection, wanted))


@contextmanager
def statements() -> Iterator[list[str]]:
    """The texts that the block sends to the driver and that return rows."""
    fetch, sent = driver.fetch, list[str]()

    async def fetch_and_note(connection: AsyncConnection, bound: Bound) -> object:
        sent.append(bound.text)
        return await fetch(connection, bound)

    with mock.patch.object(driver, "fetch", fetch_and_note):
        yield sent


async def test_the_newest_keys_of_several_users_are_those_of_each_user(db: Database) -> None:
    moment = now()
    wanted = [Wanted(user_id, service, moment) for user_id in await fill(db) for service in ("OPENAI", "GROQ")]
    one_by_one = [await find(db, each) for each in wanted]
    assert len({row.key_id for row in one_by_one if row is not None}) == len(STATES) ** 2 * len(DEFAULTS) + 1
    with groups_go_well():
        assert await asyncio.gather(*(find(db, each) for each in [*wanted, *reversed(wanted)])) == [
            *one_by_one,
            *reversed(one_by_one),
        ]


async def test_the_key_in_use_is_the_default_if_it_is_active_or_else_the_newest(db: Database) -> None:
    user_ids, older = await fill(db), 1
    for states, defaults in itertools.product(itertools.product(STATES, repeat=2), DEFAULTS):
        row = await find(db, Wanted(user_ids.pop(0), "OPENAI", now()))
        is_active = [state in ACTIVE for state in states]
        is_older = is_active[0] and (defaults[0] or not is_active[1])
        assert row is not None
        assert row.key_id == (older if is_older else older + 1), (states, defaults)
        older += 2


async def test_the_pages_mark_the_key_that_is_found_where_there_are_several(db: Database) -> None:
    for user_id in (await fill(db))[1:-3]:  # those with two keys of the service
        moment = now()
        found = await find(db, Wanted(user_id, "OPENAI", moment))
        async with db.write(Unchecked.OPERATOR) as connection:
            alone = await add(connection, "api_keys", user_id=user_id, owner_id=user_id, service="GROQ")
        owner = Principal(Origin(Actor.SESSION), ALL_SCOPES, User(user_id, None, moment))
        choices = await choosing.choices(db, owner, moment)
        assert found is not None
        marked = {found.key_id} if status_of(found, moment) is Status.ACTIVE else set()
        assert choices.among_several == marked
        assert choices.all == {*marked, alone}


async def test_requests_that_wait_together_find_their_keys_with_one_query(postgresql: URL) -> None:
    db = Database(postgresql)
    user_ids = (await fill(db))[: len(STATES) * len(DEFAULTS)]  # each has an active key
    wanted = [Wanted(user_id, "OPENAI", now()) for user_id in user_ids] * 20
    with groups_go_well(), statements() as sent:
        assert None not in await asyncio.gather(*(find(db, each) for each in wanted))
    assert len([text for text in sent if "api_keys" in text]) <= 3  # a first group can be of one request
    await db.close()


async def test_keys_by_id_are_found_together(db: Database) -> None:
    await fill(db)
    ids = [KeyId(number) for number in (3, 1, 2, 3, 99_999)]

    async def by_id(key_id: KeyId) -> Found | None:
        return await db.together(Unchecked.OUTCOME, lambda connection: finding.by_id(connection, key_id))

    one_by_one = [await by_id(key_id) for key_id in ids]
    assert [row and row.key_id for row in one_by_one] == [3, 1, 2, 3, None]
    with groups_go_well():
        assert await asyncio.gather(*(by_id(key_id) for key_id in ids)) == one_by_one
