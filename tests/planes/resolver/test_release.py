"""`POST /v1/resolve`: which key an application gets, which it does not, and what the audit log says of both."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import time_machine
from sqlalchemy import update

from keyman.clock import now
from keyman.identity import users
from keyman.identity.tables import users as users_table
from keyman.ids import MAX_ID
from keyman.storage.transactions import Unchecked
from keyman.values import EmailAddress
from tests.planes.management.api.harness import OPENAI_KEY, TIMESTAMP, email_of, problem, same_but_for_the_request_id
from tests.planes.resolver.pair import SHOWN, Pair

pytestmark = pytest.mark.anyio

OTHER = "sk-Zt81LqoPw5aYc3hVn6Xe9876"
ANTHROPIC_KEY = "sk-ant-q7w2e9r4t6y1u8i3o5p0"


async def test_an_application_gets_a_key_by_its_id_and_by_user_and_service(shared_pair: Pair) -> None:
    ada, app = await shared_pair.owner(), await shared_pair.app()
    key_id = await ada.key(expires_at="2999-01-31T00:00:00Z")
    by_id, by_service = await app.ask(key_id=key_id), await app.ask(user_id=ada.id, service="OPENAI")
    for answer in (by_id, by_service):
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json() == {
            "key_id": key_id,
            "user_id": ada.id,
            "service": "OPENAI",
            "api_key": OPENAI_KEY,
            "expires_at": "2999-01-31T00:00:00Z",
            "settings": {},
        }
    assert TIMESTAMP.fullmatch(by_id.json()["expires_at"])
    await ada.client.patch(f"/api/keys/{key_id}", json={"expires_at": None})
    assert (await app.ask(key_id=key_id)).json()["expires_at"] is None


async def test_by_service_it_is_the_newest_active_key(shared_pair: Pair) -> None:
    ada, app = await shared_pair.owner(), await shared_pair.app("OPENAI", "ANTHROPIC")
    await ada.key("ANTHROPIC", ANTHROPIC_KEY)
    values = [f"sk-{n}-q7w2e9r4t6y1u8i3o5p0" for n in range(5)]
    keys = [await ada.key(value=value) for value in values]
    wanted = {"user_id": ada.id, "service": "OPENAI"}
    assert await app.gets(**wanted) == values[4]
    await ada.client.delete(f"/api/keys/{keys[4]}")
    assert await app.gets(**wanted) == values[3]
    await ada.client.patch(f"/api/keys/{keys[3]}", json={"disabled": True})
    assert await app.gets(**wanted) == values[2]
    await shared_pair.change(keys[2], expires_at=now() - timedelta(seconds=1))
    assert await app.gets(**wanted) == values[1]
    await shared_pair.change(keys[1], undecryptable=True)
    assert await app.gets(**wanted) == values[0]
    await ada.client.patch(f"/api/keys/{keys[3]}", json={"disabled": False})
    assert await app.gets(**wanted) == values[3]
    assert await app.gets(user_id=ada.id, service="ANTHROPIC") == ANTHROPIC_KEY


async def test_by_service_it_is_the_default_as_long_as_it_is_active(shared_pair: Pair) -> None:
    ada, app = await shared_pair.owner(), await shared_pair.app("OPENAI", "ANTHROPIC")
    await ada.key("ANTHROPIC", ANTHROPIC_KEY)
    values = [f"sk-{n}-q7w2e9r4t6y1u8i3o5p0" for n in range(3)]
    keys = [await ada.key(value=value) for value in values]
    wanted = {"user_id": ada.id, "service": "OPENAI"}

    async def change(key_id: int, **fields: Any) -> None:
        assert (await ada.client.patch(f"/api/keys/{key_id}", json=fields)).status_code == 200

    await change(keys[0], default=True)
    assert await app.gets(**wanted) == values[0]
    assert await app.gets(key_id=keys[2]) == values[2]
    assert await app.gets(user_id=ada.id, service="ANTHROPIC") == ANTHROPIC_KEY
    await change(keys[0], disabled=True)
    assert await app.gets(**wanted) == values[2]
    await change(keys[0], disabled=False)
    assert await app.gets(**wanted) == values[0]
    await change(keys[1], default=True)
    assert await app.gets(**wanted) == values[1]
    await shared_pair.change(keys[1], expires_at=now() - timedelta(seconds=1))
    assert await app.gets(**wanted) == values[2]
    await shared_pair.change(keys[1], expires_at=None, undecryptable=True)
    assert await app.gets(**wanted) == values[2]
    await ada.client.put(f"/api/keys/{keys[1]}", json={"api_key": OTHER})
    assert await app.gets(**wanted) == OTHER
    await change(keys[1], default=False)
    assert await app.gets(**wanted) == values[2]
    await change(keys[0], default=True)
    await ada.client.delete(f"/api/keys/{keys[0]}")
    assert await app.gets(**wanted) == values[2]


async def test_a_replaced_value_is_what_is_given_out_from_then_on(shared_pair: Pair) -> None:
    ada, app = await shared_pair.owner(), await shared_pair.app()
    key_id = await ada.key()
    assert await app.gets(key_id=key_id) == OPENAI_KEY
    await ada.client.put(f"/api/keys/{key_id}", json={"api_key": OTHER})
    assert await app.gets(key_id=key_id) == OTHER


async def test_whatever_an_application_may_not_have_is_one_and_the_same_answer(shared_pair: Pair) -> None:
    """Byte for byte; and the audit log says why."""
    ada, grace, app = await shared_pair.owner(), await shared_pair.owner(), await shared_pair.app("OPENAI", "GROQ")
    paused, expired, other = await ada.key(), await ada.key(), await ada.key("ANTHROPIC", ANTHROPIC_KEY)
    await ada.client.patch(f"/api/keys/{paused}", json={"disabled": True})
    await shared_pair.change(expired, expires_at=now() - timedelta(seconds=1))
    theirs = await grace.key()
    async with shared_pair.resolver.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(users_table).where(users_table.c.id == grace.id).values(disabled_at=now()))
    refused: list[tuple[dict[str, Any], str, int | None, int | None, str | None]] = [
        ({"key_id": paused}, "disabled", ada.id, paused, "OPENAI"),
        ({"key_id": expired}, "expired", ada.id, expired, "OPENAI"),
        ({"key_id": other}, "not-granted", ada.id, other, "ANTHROPIC"),
        ({"key_id": theirs}, "account-disabled", grace.id, theirs, "OPENAI"),
        ({"key_id": MAX_ID}, "unknown", None, MAX_ID, None),
        ({"user_id": ada.id, "service": "OPENAI"}, "expired", ada.id, expired, "OPENAI"),
        ({"user_id": ada.id, "service": "GROQ"}, "unknown", ada.id, None, "GROQ"),
        ({"user_id": ada.id, "service": "ANTHROPIC"}, "not-granted", ada.id, other, "ANTHROPIC"),
        ({"user_id": ada.id, "service": "NO_SUCH_SERVICE"}, "not-granted", ada.id, None, "NO_SUCH_SERVICE"),
        ({"user_id": grace.id, "service": "OPENAI"}, "account-disabled", grace.id, theirs, "OPENAI"),
        ({"user_id": MAX_ID, "service": "OPENAI"}, "unknown", None, None, "OPENAI"),
    ]
    answers = [await app.ask(**body) for body, *_ in refused]
    for answer in answers:
        problem(answer, "not-found")
        assert same_but_for_the_request_id(answer, answers[0])
    entries = await shared_pair.entries(app)
    assert {entry.action for entry in entries} == {"key.resolve-refused"}
    told = [(entry.reason, entry.user_id, entry.key_id, entry.service) for entry in entries]
    assert told == [tuple(expected) for _, *expected in refused]
    assert [entry.request_id for entry in entries] == [answer.headers["x-request-id"] for answer in answers]


async def test_a_key_that_is_marked_undecryptable_is_409_and_vault_is_not_asked(shared_pair: Pair) -> None:
    ada, app = await shared_pair.owner(), await shared_pair.app()
    key_id = await ada.key()
    await shared_pair.change(key_id, undecryptable=True, encrypted_key="vault:v1:kNrYcAnArY")
    answers = [await app.ask(key_id=key_id), await app.ask(user_id=ada.id, service="OPENAI")]
    for answer in answers:
        problem(answer, "undecryptable")
        assert "kNrY" not in answer.text
    assert await shared_pair.told(app) == [("key.resolve-refused", "undecryptable")] * 2
    other = await shared_pair.app("GROQ")
    problem(await other.ask(key_id=key_id), "not-found")  # who may not have it does not learn what is wrong with it


async def test_the_owner_sees_which_application_had_which_key_and_for_what(shared_pair: Pair) -> None:
    ada, eve, app = await shared_pair.owner(), await shared_pair.owner(), await shared_pair.app()
    key_id = await ada.key()
    given = await app.ask(key_id=key_id, purpose="Answer to a chat")
    refused = await app.ask(user_id=ada.id, service="GROQ")
    second, first = await ada.trail()
    assert first | {"id": 0, "at": "", "actor_token_id": 0, "address": ""} == {
        "id": 0,
        "at": "",
        "action": "key.resolve",
        "actor": "application",
        "actor_token_id": 0,
        "token_id": None,
        "key_id": key_id,
        "service": "OPENAI",
        "request_id": given.headers["x-request-id"],
        "address": "",
        "application": app.name,
        "purpose": "Answer to a chat",
        "reason": None,
        "detail": None,
    }
    assert (second["action"], second["reason"]) == ("key.resolve-refused", "not-granted")
    assert (second["service"], second["purpose"]) == ("GROQ", None)
    assert second["request_id"] == refused.headers["x-request-id"]
    assert await eve.trail() == []
    page = (await ada.client.get("/settings/activity", headers={"Accept": "text/html"})).text
    assert "Key given to an application" in page
    assert f"Application {app.name}" in page


async def test_the_last_use_follows_and_does_not_change_the_etag(shared_pair: Pair) -> None:
    ada, app = await shared_pair.owner(), await shared_pair.app()
    key_id = await ada.key()
    before = await ada.client.get(f"/api/keys/{key_id}")
    assert (before.json()["last_used_at"], before.json()["last_used_by"]) == (None, None)
    await app.gets(key_id=key_id)
    after = await ada.client.get(f"/api/keys/{key_id}")
    assert TIMESTAMP.fullmatch(after.json()["last_used_at"])
    assert after.json()["last_used_by"] == app.name
    assert after.headers["etag"] == before.headers["etag"]
    assert after.json()["updated_at"] == before.json()["updated_at"]
    changed = await ada.client.patch(
        f"/api/keys/{key_id}", json={"name": "x"}, headers={"If-Match": before.headers["etag"]}
    )
    assert changed.status_code == 200


async def test_the_last_use_is_written_once_a_minute(sqlite_pair: Pair) -> None:
    ada, app, other = await sqlite_pair.owner(), await sqlite_pair.app(), await sqlite_pair.app()
    key_id = await ada.key()
    with time_machine.travel(now(), tick=False) as clock:
        start = now()
        for seconds, by, at in ((0, app, 0), (59, other, 0), (60, other, 60), (119, app, 60)):
            clock.move_to(start + timedelta(seconds=seconds))
            await by.gets(key_id=key_id)
            row = await sqlite_pair.row(key_id)
            assert row.last_used_at == start + timedelta(seconds=at)
            assert row.last_used_by == (app if at == 0 else other).name


async def test_what_was_refused_is_no_use(shared_pair: Pair) -> None:
    ada, app = await shared_pair.owner(), await shared_pair.app("GROQ")
    key_id = await ada.key()
    problem(await app.ask(key_id=key_id), "not-found")
    assert (await shared_pair.row(key_id)).last_used_at is None


async def test_an_account_that_is_enabled_again_has_its_keys_given_out_again(shared_pair: Pair) -> None:
    ada, app = await shared_pair.owner(), await shared_pair.app()
    key_id, email = await ada.key(), EmailAddress(await email_of(ada.client))
    await users.disable(shared_pair.resolver.database, email)
    problem(await app.ask(key_id=key_id), "not-found")
    await users.enable(shared_pair.resolver.database, email)
    assert await app.gets(key_id=key_id) == OPENAI_KEY


async def test_a_key_that_expires_is_not_given_out_from_that_moment_on(sqlite_pair: Pair) -> None:
    ada, app = await sqlite_pair.owner(), await sqlite_pair.app()
    with time_machine.travel(now(), tick=False) as clock:
        end = now() + timedelta(hours=1)
        key_id = await ada.key(expires_at=end.isoformat())
        clock.move_to(end - timedelta(microseconds=1))
        assert (await app.ask(key_id=key_id)).json().keys() == SHOWN
        clock.move_to(end)
        problem(await app.ask(key_id=key_id), "not-found")
        problem(await app.ask(user_id=ada.id, service="OPENAI"), "not-found")
