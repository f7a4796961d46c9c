"""`Idempotency-Key`: a POST that a client sends twice stores one key."""

from __future__ import annotations

import hashlib
import json
from asyncio import gather
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest
import time_machine
from sqlalchemy import update

from keyman.keys.tables import api_keys, idempotency
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import KEY_FIELDS, OPENAI_KEY, ApiPlane, headers_of, problem

pytestmark = pytest.mark.anyio

BODY = {"service": "OPENAI", "api_key": OPENAI_KEY, "name": "chat"}


async def post(client: httpx.AsyncClient, retry: str, **fields: object) -> httpx.Response:
    return await client.post("/api/keys", json={**BODY, **fields}, headers={"Idempotency-Key": retry})


async def ids(client: httpx.AsyncClient) -> list[int]:
    return [key["id"] for key in (await client.get("/api/keys?limit=200")).json()]


async def test_the_same_request_again_gets_the_first_answer_again(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    first = await post(ada, retry)
    assert first.status_code == 201
    assert "idempotent-replayed" not in first.headers
    for _ in range(3):
        again = await post(ada, retry)
        assert again.status_code == 201
        assert again.headers["idempotent-replayed"] == "true"
        assert again.content == first.content
        assert again.headers["location"] == first.headers["location"]
        assert again.headers["etag"] == first.headers["etag"]
    assert first.json().keys() == KEY_FIELDS
    assert await ids(ada) == [first.json()["id"]]


async def test_the_first_answer_comes_again_whatever_became_of_the_key(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    first = await post(ada, retry)
    path = first.headers["location"]
    await ada.patch(path, json={"name": "renamed"})
    assert (await post(ada, retry)).content == first.content
    await ada.delete(path)
    again = await post(ada, retry)
    assert (again.status_code, again.content) == (201, first.content)
    assert await ids(ada) == []


async def test_the_same_body_of_another_type_is_no_retry(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    content = json.dumps(BODY).encode()
    sent = {"Idempotency-Key": retry, "Content-Type": "application/json"}
    assert (await ada.post("/api/keys", content=content, headers=sent)).status_code == 201
    for other in ({"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}):
        refused = await ada.post("/api/keys", content=content, headers={**sent, **other})
        problem(refused, "unsupported-media-type")
    assert (await ada.post("/api/keys", content=content, headers=sent)).headers["idempotent-replayed"] == "true"


async def test_the_same_key_with_another_body_is_refused_and_stores_nothing(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    first = await post(ada, retry)
    for fields in ({"name": "other"}, {"api_key": OPENAI_KEY + "x"}, {"name": None}, {"service": "DEEPSEEK"}):
        problem(await post(ada, retry, **fields), "idempotency-mismatch")
    assert await ids(ada) == [first.json()["id"]]
    assert (await post(ada, retry)).content == first.content


async def test_the_same_request_many_times_at_once_stores_one_key(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    answers = await gather(*(post(ada, retry) for _ in range(12)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert [answer.headers.get("idempotent-replayed") for answer in answers].count(None) == 1
    assert await ids(ada) == [answers[0].json()["id"]]


async def test_of_different_requests_with_one_key_at_once_one_is_carried_out(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    answers = await gather(*(post(ada, retry, name=str(n)) for n in range(8)))
    stored = [answer for answer in answers if answer.status_code == 201]
    assert len(stored) == 1
    for answer in answers:
        if answer is not stored[0]:
            problem(answer, "idempotency-mismatch")
    assert await ids(ada) == [stored[0].json()["id"]]


async def test_another_users_key_of_the_same_name_is_another_key(shared: ApiPlane) -> None:
    ada, eve, retry = await shared.user(), await shared.user(), str(uuid4())
    first, other = await post(ada, retry), await post(eve, retry, name="mine")
    assert other.status_code == 201
    assert "idempotent-replayed" not in other.headers
    assert await ids(ada) == [first.json()["id"]]
    assert await ids(eve) == [other.json()["id"]]


async def test_the_users_own_token_and_session_share_their_keys(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    script = await shared.token(ada)
    first = await post(ada, retry)
    assert (await post(script, retry)).content == first.content


async def test_after_24_hours_the_key_is_forgotten(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    now = datetime.now(UTC)
    with time_machine.travel(now, tick=True) as clock:
        first = await post(ada, retry)
        clock.move_to(now + timedelta(hours=23, minutes=59))
        assert (await post(ada, retry)).content == first.content
        problem(await post(ada, retry, name="other"), "idempotency-mismatch")
        clock.move_to(now + timedelta(hours=24, minutes=1))
        second = await post(ada, retry, name="other")
        assert second.status_code == 201
        assert "idempotent-replayed" not in second.headers
        assert (await post(ada, retry, name="other")).content == second.content
        problem(await post(ada, retry), "idempotency-mismatch")
    assert await ids(ada) == [second.json()["id"], first.json()["id"]]


async def test_a_request_is_replayed_also_when_its_expiry_has_passed_meanwhile(shared: ApiPlane) -> None:
    """The first time it was right; the client that asks again wants to know what became of it."""
    ada, retry = await shared.user(), str(uuid4())
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    first = await post(ada, retry, expires_at=soon)
    assert first.status_code == 201
    with time_machine.travel(datetime.now(UTC) + timedelta(hours=2), tick=True):
        again = await post(ada, retry, expires_at=soon)
    assert (again.status_code, again.content) == (201, first.content)


async def test_a_first_answer_that_was_damaged_is_a_conflict_and_stores_no_second_key(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    first = await post(ada, retry)
    user_id = (await ada.get("/api/auth/me")).json()["id"]
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        theirs = idempotency.c.user_id == user_id
        await connection.execute(update(idempotency).where(theirs).values(response='{"id": "x'))
    for _ in range(2):
        refused = await post(ada, retry)
        problem(refused, "conflict")
        assert "Look for the key" in refused.json()["detail"]
    assert await ids(ada) == [first.json()["id"]]


async def test_a_refused_request_leaves_the_key_free(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    kept = await shared.count(idempotency)
    problem(await post(ada, retry, service="NOPE"), "invalid-request", "service")
    problem(await post(ada, retry, api_key="short"), "invalid-request", "api_key")
    assert await shared.count(idempotency) == kept
    assert (await post(ada, retry)).status_code == 201


async def test_with_an_idempotency_key_a_body_is_looked_at_like_any_other(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    kept = await shared.count(idempotency)
    for content, content_type, slug in (
        (b"{", "application/json", "invalid-request"),
        (b"", "application/json", "invalid-request"),
        (b"x" * 65_537, "application/json", "payload-too-large"),
        (json.dumps(BODY).encode(), "text/plain", "unsupported-media-type"),
    ):
        for _ in range(2):
            headers = {"Idempotency-Key": retry, "Content-Type": content_type}
            answer = await ada.post("/api/keys", content=content, headers=headers)
            problem(answer, slug)
    assert await shared.count(idempotency) == kept
    problem(await shared.client().post("/api/keys", json=BODY, headers={"Idempotency-Key": ""}), "unauthenticated")
    reader = await shared.token(ada, "keys:read")
    first = await post(ada, retry)
    problem(await post(reader, retry), "forbidden")
    assert (await post(ada, retry)).content == first.content


@pytest.mark.parametrize(
    "value", [b"", b"x" * 256, b"x" * 9000, "schlüssel".encode(), b"\xff", b"a\tb", b"a\x7fb", b"a\x01b", "🔑".encode()]
)
async def test_an_idempotency_key_is_1_to_255_printable_ascii_characters(sqlite_plane: ApiPlane, value: bytes) -> None:
    ada = await sqlite_plane.user()
    sent = [*headers_of(ada), (b"idempotency-key", value)]
    answer = await sqlite_plane.wire("POST", b"/api/keys", sent, json.dumps(BODY).encode())
    problem(answer, "invalid-request", "Idempotency-Key")
    assert await ids(ada) == []


@pytest.mark.parametrize("value", ["x", "x" * 255, "with spaces, and ~!@#$%^&*()", '"quoted"'])
async def test_any_other_idempotency_key_is_taken(shared: ApiPlane, value: str) -> None:
    ada = await shared.user()
    first = await post(ada, value)
    assert first.status_code == 201
    assert (await post(ada, value)).content == first.content


async def test_other_methods_do_not_know_idempotency_keys(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    path = (await post(ada, retry)).headers["location"]
    for name in ("a", "b"):
        answer = await ada.patch(path, json={"name": name}, headers={"Idempotency-Key": retry})
        assert answer.json()["name"] == name
        assert "idempotent-replayed" not in answer.headers


async def test_what_is_kept_of_a_request_cannot_be_used_to_test_guesses_of_it(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    body = json.dumps(BODY).encode()
    await ada.post("/api/keys", content=body, headers={"Idempotency-Key": retry, "Content-Type": "application/json"})
    kept = (await shared.rows(idempotency))[-1]
    everything = repr(tuple(kept)).encode() + kept.key_hash + kept.fingerprint
    for guess in (body, OPENAI_KEY.encode(), retry.encode()):
        assert guess not in everything
        assert hashlib.sha256(guess).digest() not in everything
    assert await shared.count(api_keys) > 0
