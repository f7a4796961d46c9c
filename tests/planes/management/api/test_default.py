"""`default`: the key of a service that its owner has chosen for applications. There is at most one."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from keyman.audit.tables import audit_log
from keyman.keys.tables import api_keys
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import ApiPlane, problem, store

pytestmark = pytest.mark.anyio

ANTHROPIC = {"service": "ANTHROPIC", "api_key": "sk-ant-q7w2e9r4t6y1u8i3o5p0"}


async def choose(client: httpx.AsyncClient, key: Any, etag: str = "*", *, is_default: bool = True) -> httpx.Response:
    return await client.patch(f"/api/keys/{key['id']}", json={"default": is_default}, headers={"If-Match": etag})


async def defaults(client: httpx.AsyncClient) -> set[int]:
    return {key["id"] for key in (await client.get("/api/keys")).json() if key["default"]}


async def changes(plane: ApiPlane, key: Any) -> int:
    """How many changes of a key the audit log has."""
    wanted = (audit_log.c.key_id == key["id"], audit_log.c.action == "key.change")
    async with plane.database.read() as connection:
        return len((await connection.execute(select(audit_log.c.id).where(*wanted))).all())


async def test_a_new_default_takes_the_place_of_the_one_before(shared: ApiPlane) -> None:
    ada, grace = await shared.user(), await shared.user()
    first, second, other, hers = await store(ada), await store(ada), await store(ada, **ANTHROPIC), await store(grace)
    assert await defaults(ada) == set()
    for client, key in ((grace, hers), (ada, other), (ada, first)):
        answer = await choose(client, key)
        assert (answer.status_code, answer.json()["default"]) == (200, True)
    assert await defaults(ada) == {first["id"], other["id"]}
    await choose(ada, second)
    assert await defaults(ada) == {second["id"], other["id"]}
    assert await defaults(grace) == {hers["id"]}
    answer = await choose(ada, second, is_default=False)
    assert (answer.status_code, answer.json()["default"]) == (200, False)
    assert await defaults(ada) == {other["id"]}


async def test_a_change_of_the_default_is_a_change_of_both_keys(shared: ApiPlane) -> None:
    ada = await shared.user()
    before, after, third = await store(ada), await store(ada), await store(ada)
    await choose(ada, before)
    seen = {key["id"]: await ada.get(f"/api/keys/{key['id']}") for key in (before, after, third)}
    answer = await choose(ada, after, seen[after["id"]].headers["etag"])
    assert answer.status_code == 200
    for key, is_changed in ((before, True), (after, True), (third, False)):
        was, now = seen[key["id"]], await ada.get(f"/api/keys/{key['id']}")
        assert (was.headers["etag"] != now.headers["etag"]) == is_changed
        assert (was.json()["updated_at"] < now.json()["updated_at"]) == is_changed
    assert [await changes(shared, key) for key in (before, after, third)] == [2, 1, 0]
    problem(await choose(ada, before, seen[before["id"]].headers["etag"]), "precondition-failed")
    assert await defaults(ada) == {after["id"]}


async def test_other_changes_leave_the_choice_as_it_is(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    await choose(ada, key)
    path = f"/api/keys/{key['id']}"
    for fields in ({"name": "new"}, {"disabled": True}, {"expires_at": "2999-01-31T00:00:00Z"}, {"default": True}):
        assert (await ada.patch(path, json=fields)).json()["default"] is True
    assert (await ada.put(path, json={"api_key": "sk-Zt81LqoPw5aYc3hVn6Xe9876"})).json()["default"] is True
    await ada.delete(path)
    assert await defaults(ada) == set()


@pytest.mark.parametrize("value", [None, "true", 1, [], {}])
async def test_what_is_neither_true_nor_false_is_refused(shared: ApiPlane, value: object) -> None:
    ada = await shared.user()
    key = await store(ada)
    refused = problem(await ada.patch(f"/api/keys/{key['id']}", json={"default": value}), "invalid-request")
    assert [error["field"] for error in refused["errors"]] == ["default"]
    assert (await ada.post("/api/keys", json={**ANTHROPIC, "default": True})).status_code == 400


async def test_the_key_of_another_owner_cannot_become_the_default(shared: ApiPlane) -> None:
    ada, grace = await shared.user(), await shared.user()
    hers, his = await store(ada), await store(grace)
    await choose(ada, hers)
    problem(await choose(grace, hers), "not-found")
    problem(await choose(grace, {"id": 999_999}), "not-found")
    assert (await defaults(ada), await defaults(grace)) == ({hers["id"]}, set())
    assert await changes(shared, his) == 0


async def test_of_changes_at_once_one_wins_and_each_is_carried_out(api_plane: ApiPlane) -> None:
    """Other writes to the same keys go on meanwhile, and nobody waits for ever."""
    ada = await api_plane.user()
    keys = [await store(ada) for _ in range(4)]
    answers = await asyncio.gather(
        *(choose(ada, key, is_default=n < 5) for n in range(6) for key in reversed(keys)),
        *(ada.patch(f"/api/keys/{key['id']}", json={"name": str(n)}) for n in range(3) for key in keys),
    )
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json()["default"] for answer in answers[:20])
    assert len(await defaults(ada)) <= 1
    answers = await asyncio.gather(*(choose(ada, key) for key in keys))
    assert {answer.status_code for answer in answers} == {200}
    assert len(await defaults(ada)) == 1


async def test_the_database_has_no_second_default(api_plane: ApiPlane) -> None:
    ada = await api_plane.user()
    keys = [await store(ada), await store(ada)]
    await choose(ada, keys[0])
    with pytest.raises(IntegrityError):
        async with api_plane.database.write(Unchecked.OPERATOR) as connection:
            await connection.execute(update(api_keys).where(api_keys.c.id == keys[1]["id"]).values(is_default=True))
