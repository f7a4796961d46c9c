"""An application that the owner has blocked gets none of the owner's keys, from its next request on."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import OPENAI_KEY, problem, same_but_for_the_request_id
from tests.planes.resolver.held import Held, Point
from tests.planes.resolver.pair import App, Owner, Pair
from tests.support.rows import row, table

pytestmark = pytest.mark.anyio

REFUSED = ("key.resolve-refused", "blocked-by-owner")


async def block(pair: Pair, owner: Owner, app: App) -> None:
    assert (await owner.client.put(await pair.block_of(app))).status_code == 204


async def with_subject(pair: Pair, app: App, owner: Owner) -> str:
    """Give the owner a name in the application."""
    subject = f"user-{owner.id}"
    values = row("application_identities", user_id=owner.id, issuer=f"keyman:app:{app.name}", subject=subject)
    async with pair.management.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(insert(table("application_identities")).values(values))
    return subject


async def test_it_gets_the_answer_for_a_missing_key_whichever_way_it_asks(shared_pair: Pair) -> None:
    owner, app = await shared_pair.owner(), await shared_pair.app()
    key_id = await owner.key()
    subject = await with_subject(shared_pair, app, owner)
    ways = ({"key_id": key_id}, {"user_id": owner.id, "service": "OPENAI"}, {"subject": subject, "service": "OPENAI"})
    for way in ways:
        assert (await app.ask(**way)).json()["api_key"] == OPENAI_KEY
    missing = await app.ask(key_id=key_id + 1_000_000)
    await block(shared_pair, owner, app)
    for way in ways:
        refused = await app.ask(**way)
        assert same_but_for_the_request_id(refused, missing)
        problem(refused, "not-found")
    assert (await shared_pair.told(app))[-3:] == [REFUSED] * 3
    assert [each.key_id for each in (await shared_pair.entries(app))[-3:]] == [key_id] * 3
    assert [each["reason"] for each in await owner.trail()][:3] == ["blocked-by-owner"] * 3


async def test_a_block_is_for_one_application_and_one_owner_and_for_later_keys_too(shared_pair: Pair) -> None:
    owner, other = await shared_pair.owner(), await shared_pair.owner()
    app, neighbour = await shared_pair.app(), await shared_pair.app()
    key_id, theirs = await owner.key(), await other.key()
    await block(shared_pair, owner, app)
    later = await owner.key()
    for asked in (key_id, later):
        problem(await app.ask(key_id=asked), "not-found")
        assert await neighbour.gets(key_id=asked) == OPENAI_KEY
    assert await app.gets(key_id=theirs) == OPENAI_KEY
    await block(shared_pair, owner, neighbour)  # a second one
    problem(await neighbour.ask(key_id=key_id), "not-found")
    assert (await owner.client.delete(await shared_pair.block_of(app))).status_code == 204
    assert await app.gets(key_id=key_id) == OPENAI_KEY
    problem(await neighbour.ask(key_id=key_id), "not-found")


@pytest.mark.parametrize("state", ["paused", "undecryptable", "not current"])
async def test_a_blocked_application_learns_nothing_of_the_state_of_a_key(shared_pair: Pair, state: str) -> None:
    owner, app = await shared_pair.owner(), await shared_pair.app()
    key_id = await owner.key()
    changes: dict[str, dict[str, Any]] = {
        "paused": {"disabled": True},
        "undecryptable": {"undecryptable": True},
        "not current": {"settings": '{"a": "b"}'},
    }
    await shared_pair.change(key_id, **changes[state])
    await block(shared_pair, owner, app)
    missing = await app.ask(key_id=key_id + 1_000_000)
    assert same_but_for_the_request_id(await app.ask(key_id=key_id), missing)
    assert (await shared_pair.told(app))[-1] == REFUSED
    assert bool((await shared_pair.row(key_id)).undecryptable) == (state == "undecryptable")


async def test_an_application_that_may_not_have_the_key_anyway_is_refused_for_that(shared_pair: Pair) -> None:
    owner, app = await shared_pair.owner(), await shared_pair.app("ANTHROPIC")
    key_id = await owner.key("OPENAI")
    await block(shared_pair, owner, app)
    problem(await app.ask(key_id=key_id), "not-found")
    assert await shared_pair.told(app) == [("key.resolve-refused", "not-granted")]


def ask(pair: Pair, app: App, body: bytes, point: Point) -> Held:
    headers = {"content-type": "application/json", "authorization": f"Bearer {app.token}"}
    return Held(pair.resolver, "POST", "/v1/resolve", headers, body, point=point)


async def test_no_open_resolve_gets_a_key_after_a_block(shared_pair: Pair) -> None:
    owner, app = await shared_pair.owner(), await shared_pair.app()
    key_id = await owner.key()
    bodies = (b'{"key_id": %d}' % key_id, b'{"user_id": %d, "service": "OPENAI"}' % owner.id)
    held = [ask(shared_pair, app, bodies[n % 2], Point.BODY) for n in range(50)]
    await asyncio.gather(*(one.begin() for one in held))
    await block(shared_pair, owner, app)
    for answer in await asyncio.gather(*(one.finish() for one in held)):
        problem(answer, "not-found")
        assert OPENAI_KEY not in answer.text
    assert {*(await shared_pair.told(app))} == {REFUSED}


async def test_resolves_and_blocks_at_once_follow_one_order(shared_pair: Pair) -> None:
    """Whatever is asked after the answer to a block is refused, while other requests are under way all the time.

    There are 90 requests, because an application may send 100 in a second.
    """
    owner, app = await shared_pair.owner(), await shared_pair.app()
    key_id = await owner.key()
    address = await shared_pair.block_of(app)

    def begin(count: int) -> list[asyncio.Task[httpx.Response]]:
        return [asyncio.create_task(app.ask(key_id=key_id)) for _ in range(count)]

    for _ in range(5):
        under_way = begin(5)
        assert (await owner.client.put(address)).status_code == 204
        assert {answer.status_code for answer in await asyncio.gather(*begin(4))} == {404}
        under_way += begin(5)
        assert (await owner.client.delete(address)).status_code == 204
        assert {answer.status_code for answer in await asyncio.gather(*begin(4))} == {200}
        assert {answer.status_code for answer in await asyncio.gather(*under_way)} <= {200, 404}
