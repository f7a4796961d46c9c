"""`ETag` and `If-Match`: with `If-Match`, nobody overwrites a change that they have not seen."""

from __future__ import annotations

import re
from asyncio import gather
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import time_machine
from sqlalchemy import select, update

from keyman.audit.tables import audit_log
from keyman.keys.tables import api_keys
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import OPENAI_KEY, ApiPlane, problem, store

pytestmark = pytest.mark.anyio

Call = Callable[[httpx.AsyncClient, str, dict[str, str]], Awaitable[httpx.Response]]

CHANGES: dict[str, Call] = {
    "PUT": lambda client, path, headers: client.put(path, json={"api_key": OPENAI_KEY}, headers=headers),
    "PATCH": lambda client, path, headers: client.patch(path, json={"name": "new"}, headers=headers),
    "PATCH of nothing": lambda client, path, headers: client.patch(path, json={}, headers=headers),
    "DELETE": lambda client, path, headers: client.delete(path, headers=headers),
}


@pytest.fixture(params=CHANGES)
def change(request: pytest.FixtureRequest) -> Call:
    return CHANGES[request.param]


async def test_an_etag_is_a_strong_validator(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    answer = await ada.get(f"/api/keys/{key['id']}")
    assert re.fullmatch(r'"[!#-~]+"', answer.headers["etag"])


async def test_the_current_etag_lets_a_change_through(shared: ApiPlane, change: Call) -> None:
    ada = await shared.user()
    created = await ada.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})
    path, etag = created.headers["location"], created.headers["etag"]
    for condition in ("{}", '"other", {}', 'W/"weak",{},"x"', "*", " * "):
        answer = await change(ada, path, {"If-Match": condition.format(etag)})
        assert answer.status_code in (200, 204), condition
        if answer.status_code == 204:
            break  # the key is deleted
        etag = answer.headers["etag"]


@pytest.mark.parametrize(
    "condition",
    [
        '"stale"',
        'W/"stale"',
        '"stale-gzip", W/"x"',
        "{unquoted}",
        "W/{unquoted}",
        "",
        ",",
        '"*"',
        "not an etag",
        '"' * 3,
        '"x"' * 999,
    ],
)
async def test_any_other_condition_is_refused_and_changes_nothing(
    sqlite_plane: ApiPlane, change: Call, condition: str
) -> None:
    ada = await sqlite_plane.user()
    created = await ada.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})
    path, etag = created.headers["location"], created.headers["etag"]
    sent = condition.format(unquoted=etag.strip('"'))
    rows, trail = await sqlite_plane.rows(api_keys), await sqlite_plane.count(audit_log)
    problem(await change(ada, path, {"If-Match": sent}), "precondition-failed")
    assert await sqlite_plane.rows(api_keys) == rows
    assert await sqlite_plane.count(audit_log) == trail


async def test_an_etag_of_the_time_before_a_change_is_stale(shared: ApiPlane, change: Call) -> None:
    ada = await shared.user()
    created = await ada.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})
    path, stale = created.headers["location"], created.headers["etag"]
    assert (await ada.patch(path, json={"disabled": True})).status_code == 200
    before = (await ada.get(path)).json()
    problem(await change(ada, path, {"If-Match": stale}), "precondition-failed")
    assert (await ada.get(path)).json() == before


async def test_without_a_condition_the_last_write_wins(shared: ApiPlane) -> None:
    ada = await shared.user()
    path = f"/api/keys/{(await store(ada))['id']}"
    for n in range(3):
        assert (await ada.patch(path, json={"name": str(n)})).status_code == 200
    assert (await ada.get(path)).json()["name"] == "2"


async def test_a_condition_on_what_is_not_there_gets_404(shared: ApiPlane, change: Call) -> None:
    ada = await shared.user()
    for condition in ("*", '"stale"'):
        problem(await change(ada, "/api/keys/999999", {"If-Match": condition}), "not-found")


async def test_of_many_writes_with_one_etag_exactly_one_wins(shared: ApiPlane) -> None:
    ada = await shared.user()
    for _ in range(3):
        created = await ada.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})
        path, condition = created.headers["location"], {"If-Match": created.headers["etag"]}
        answers = await gather(
            *(
                ada.put(path, json={"api_key": f"sk-hq2v9mXbT0c7eUKw{n:04}"}, headers=condition)
                if n % 2
                else ada.patch(path, json={"name": f"{n:04}"}, headers=condition)
                for n in range(12)
            )
        )
        winners = [answer for answer in answers if answer.status_code == 200]
        assert len(winners) == 1
        for answer in answers:
            if answer is not winners[0]:
                problem(answer, "precondition-failed")
        shown = await ada.get(path)
        assert shown.json() == winners[0].json()
        assert shown.headers["etag"] == winners[0].headers["etag"]


async def test_of_a_change_and_a_deletion_with_one_etag_one_wins(shared: ApiPlane) -> None:
    ada = await shared.user()
    for _ in range(5):
        created = await ada.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})
        path, condition = created.headers["location"], {"If-Match": created.headers["etag"]}
        changed, deleted = await gather(
            ada.patch(path, json={"name": "x"}, headers=condition), ada.delete(path, headers=condition)
        )
        assert (changed.status_code, deleted.status_code) in {(200, 412), (404, 204)}


async def test_writes_at_once_without_a_condition_all_succeed_and_one_is_the_last(shared: ApiPlane) -> None:
    ada = await shared.user()
    path = f"/api/keys/{(await store(ada))['id']}"
    answers = await gather(*(ada.patch(path, json={"name": str(n)}) for n in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    last = max(answers, key=lambda answer: datetime.fromisoformat(answer.json()["updated_at"]))
    assert (await ada.get(path)).json() == last.json()


async def test_a_rewrap_and_a_use_leave_the_etag(shared: ApiPlane) -> None:
    """What keyman and applications do with a key does not get in the way of its owner."""
    ada = await shared.user()
    key = await store(ada)
    path = f"/api/keys/{key['id']}"
    etag = (await ada.get(path)).headers["etag"]
    is_key = api_keys.c.id == key["id"]
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        sealed = (await connection.execute(select(api_keys.c.encrypted_key).where(is_key))).scalar_one()
        rewrapped = {"encrypted_key": sealed.replace("vault:v1:", "vault:v2:"), "key_version": 2}
        used = {"last_used_at": datetime.now(UTC), "last_used_by": "chat-backend"}
        await connection.execute(update(api_keys).where(is_key).values(**rewrapped, **used))
    assert (await ada.get(path)).headers["etag"] == etag
    assert (await ada.patch(path, json={"name": "x"}, headers={"If-Match": etag})).status_code == 200


async def test_the_etag_follows_what_the_owner_sees(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada, name="a", expires_at=(datetime.now(UTC) + timedelta(days=1)).isoformat())
    path = f"/api/keys/{key['id']}"
    seen = {(await ada.get(path)).headers["etag"]}
    assert len(seen | {(await ada.get(path)).headers["etag"]}) == 1
    for fields in ({"name": "b"}, {"disabled": True}, {"disabled": False}, {"name": "a"}):
        etag = (await ada.patch(path, json=fields)).headers["etag"]
        assert etag not in seen
        assert (await ada.get(path)).headers["etag"] == etag
        seen.add(etag)
    with time_machine.travel(datetime.now(UTC) + timedelta(days=2), tick=True):
        expired = await ada.get(path)
        assert expired.json()["status"] == "expired"
        assert expired.headers["etag"] not in seen


async def test_two_keys_that_look_alike_have_two_etags(shared: ApiPlane) -> None:
    ada = await shared.user()
    with time_machine.travel(datetime.now(UTC), tick=False):
        answers = [await ada.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY}) for _ in range(2)]
    assert len({answer.headers["etag"] for answer in answers}) == 2
