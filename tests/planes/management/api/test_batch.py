"""`POST /api/keys/batch`: several keys in one request, with an answer for each entry."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import time_machine
from argon2 import PasswordHasher
from sqlalchemy import update
from sqlalchemy.engine import URL

from keyman.audit.tables import audit_log
from keyman.errors import VaultReason, VaultUnavailable
from keyman.identity.passwords import Passwords
from keyman.keys.inserting import FULL_RETRY_AFTER
from keyman.keys.schemas import MAX_NEW_KEYS
from keyman.keys.tables import api_keys, idempotency
from keyman.planes.management.api.batch import MAX_BYTES
from keyman.secret import Secret
from keyman.storage.transactions import Unchecked
from keyman.vault.cipher import Context, Sealed, TransitCipher
from tests.planes.management.api.harness import (
    KEY_FIELDS,
    OPENAI_KEY,
    STATUSES,
    ApiPlane,
    Json,
    api_plane_at,
    headers_of,
    in_days,
    problem,
    state_of,
    statements,
    store,
)
from tests.support.database import stored_keys
from tests.support.logs import capture_logs
from tests.support.planes import Vault
from tests.support.vault import RootClient

pytestmark = pytest.mark.anyio

KEY = {"service": "OPENAI", "api_key": OPENAI_KEY}
CANARY = "sk-cAnArYq7Rk2Lw9Xc4Vb6"

REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "an unknown service": ({**KEY, "service": "NOPE"}, ("service",)),
    "no service": ({"api_key": OPENAI_KEY}, ("service",)),
    "no value": ({"service": "OPENAI"}, ("api_key",)),
    "a short value": ({**KEY, "api_key": "short"}, ("api_key",)),
    "a value with white space": ({**KEY, "api_key": "sk-hq2v9 mXbT0c7"}, ("api_key",)),
    "a value that is a number": ({**KEY, "api_key": 7}, ("api_key",)),
    "a mask": ({**KEY, "api_key": "sk-...1234"}, ("api_key",)),
    "a value of another service": ({**KEY, "api_key": f"sk-ant-{OPENAI_KEY}"}, ("api_key",)),
    "a value that is not ASCII": ({**KEY, "api_key": "sk-hq2v9mXbT0c7é"}, ("api_key",)),
    "a label with control characters": ({**KEY, "name": "a\nb"}, ("name",)),
    "a label that turns text around": ({**KEY, "name": "a\u202eb"}, ("name",)),
    "a label with the value": ({**KEY, "name": f"my {OPENAI_KEY}"}, ("name",)),
    "a label that is too long": ({**KEY, "name": "x" * 101}, ("name",)),
    "an expiry in the past": ({**KEY, "expires_at": "2020-01-01T00:00:00Z"}, ("expires_at",)),
    "settings of another service": ({**KEY, "settings": {"region": "us-east-1"}}, ("settings",)),
    "settings that are null": ({**KEY, "settings": None}, ("settings",)),
    "an unknown field": ({**KEY, "apikey": CANARY}, ("",)),
    "several faults": ({"service": "NOPE", "api_key": "x", "name": 7, "more": 1}, ("service", "api_key", "name", "")),
    "no object": (CANARY, ("",)),
    "null": (None, ("",)),
    "a list": ([KEY], ("",)),
}
"""Entries that are refused, and the fields that are named."""


async def post(client: httpx.AsyncClient, entries: Any, retry: str | None = None) -> httpx.Response:
    headers = {} if retry is None else {"Idempotency-Key": retry}
    return await client.post("/api/keys/batch", json={"keys": entries}, headers=headers)


async def answered(client: httpx.AsyncClient, entries: Sequence[Any], retry: str | None = None) -> list[Json]:
    """The answer to a batch, each entry of which is in shape."""
    answer = await post(client, entries, retry)
    assert answer.status_code == 200, answer.text
    found: list[Json] = answer.json()
    assert len(found) == len(entries)
    for one in found:
        if one["status"] == 201:
            assert one.keys() == {"status", "key"}
            assert one["key"].keys() == KEY_FIELDS
        else:
            assert one.keys() == {"status", "problem"}
            refusal = one["problem"]
            assert refusal["status"] == one["status"] == STATUSES[refusal["type"].removeprefix("/problems/")]
            assert refusal["request_id"]
    return found


def statuses(found: list[Json]) -> list[int]:
    return [one["status"] for one in found]


async def ids(client: httpx.AsyncClient) -> list[int]:
    return [key["id"] for key in (await client.get("/api/keys?limit=200")).json()]


async def audited(client: httpx.AsyncClient) -> list[Json]:
    found: list[Json] = (await client.get("/api/audit?limit=200&action=key.create")).json()
    return found


# --- what is stored


async def test_each_entry_is_stored_as_a_request_of_its_own_would_store_it(shared: ApiPlane) -> None:
    ada, later = await shared.user(), in_days(30)
    entries: list[Json] = [
        {**KEY, "name": "chat", "expires_at": later},
        {"service": "AWS_BEDROCK", "api_key": "ABSK" + "x7Pq2LmWn9Rt4Ks8", "settings": {"region": "us-east-1"}},
        {"service": "MISTRAL", "api_key": "  x7Pq2LmWn9Rt4Ks8\n", "name": "überall 🔑"},
    ]
    found = await answered(ada, entries)
    assert statuses(found) == [201, 201, 201]
    keys = [one["key"] for one in found]
    assert [key["service"] for key in keys] == ["OPENAI", "AWS_BEDROCK", "MISTRAL"]
    assert [key["last_4_chars"] for key in keys] == ["sk-...1234", "ABSK...4Ks8", "...4Ks8"]
    assert [key["name"] for key in keys] == ["chat", None, "überall 🔑"]
    assert keys[1]["settings"] == {"region": "us-east-1"}
    for entry, key in zip(entries, keys, strict=True):
        assert (await ada.get(f"/api/keys/{key['id']}")).json() == key
        alone = await store(ada, **entry)
        differs = {"id", "created_at", "updated_at"}
        assert {n: v for n, v in key.items() if n not in differs} == {
            n: v for n, v in alone.items() if n not in differs
        }


async def test_each_key_has_an_audit_entry_that_names_its_value_and_its_settings(shared: ApiPlane) -> None:
    ada = await shared.user()
    answer = await post(ada, [KEY, {**KEY, "api_key": "short"}, {**KEY, "service": "DEEPSEEK"}])
    keys = [one["key"] for one in answer.json() if "key" in one]
    entries = await audited(ada)
    assert [entry["key_id"] for entry in entries] == [key["id"] for key in reversed(keys)]
    assert {entry["request_id"] for entry in entries} == {answer.headers["x-request-id"]}
    wanted = {key["id"] for key in keys}
    logged = [row for row in await shared.rows(audit_log) if row.key_id in wanted]
    stored = {row.id: row.value_uuid for row in await shared.rows(api_keys) if row.id in wanted}
    assert {row.key_id: row.value_uuid for row in logged} == stored
    assert all(row.settings_hash for row in logged)
    assert len({row.vault_request_id for row in logged}) == 1  # one call to Vault


async def test_the_values_open_each_in_its_own_row(shared: ApiPlane, provisioned: Vault) -> None:
    ada = await shared.user()
    values = [f"sk-hq2v9mXbT0c7eUKwN4Rd{n:04}" for n in range(5)]
    found = await answered(ada, [{**KEY, "api_key": value} for value in values])
    numbers = [one["key"]["id"] for one in found]
    rows = await stored_keys(shared.settings.database_url)
    root = RootClient(provisioned.server.address, provisioned.server.root_token.reveal())
    assert root.opens_all([rows[number] for number in numbers]) == dict(zip(numbers, values, strict=True))


async def test_a_full_batch_is_one_call_to_vault_and_one_transaction(
    shared: ApiPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, sizes, sealing = await shared.user(), list[int](), TransitCipher._encrypt

    async def counted(self: TransitCipher, items: Sequence[Any]) -> Any:
        sizes.append(len(items))
        return await sealing(self, items)

    cipher = state_of(shared).sealer._cipher
    monkeypatch.setattr(cipher._batcher, "_run", counted.__get__(cipher))
    with statements() as asked:
        found = await answered(ada, [KEY] * MAX_NEW_KEYS)
    assert statuses(found) == [201] * MAX_NEW_KEYS
    assert sizes == [MAX_NEW_KEYS]
    assert asked.count("COMMIT") == 1
    numbers = [one["key"]["id"] for one in found]
    assert await ids(ada) == sorted(numbers, reverse=True)
    assert numbers == sorted(numbers)


async def test_the_same_value_twice_is_two_keys(shared: ApiPlane) -> None:
    ada = await shared.user()
    found = await answered(ada, [KEY, KEY])
    assert statuses(found) == [201, 201]
    assert len(set(await ids(ada))) == 2


async def test_keys_belong_to_the_caller_only(shared: ApiPlane) -> None:
    ada, eve = await shared.user(), await shared.user()
    (one,) = await answered(ada, [KEY])
    problem(await eve.get(f"/api/keys/{one['key']['id']}"), "not-found")
    assert await ids(eve) == []


# --- what is refused


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_wrong_with_one_entry_does_not_stop_the_others(shared: ApiPlane, name: str) -> None:
    ada, (wrong, fields) = await shared.user(), REFUSED[name]
    found = await answered(ada, [KEY, wrong, {**KEY, "name": "last"}])
    assert statuses(found) == [201, 400, 201]
    refusal = found[1]["problem"]
    assert sorted({error["field"] for error in refusal["errors"]}) == sorted(fields)
    assert CANARY not in json.dumps(found)
    assert await ids(ada) == [found[2]["key"]["id"], found[0]["key"]["id"]]
    assert len(await audited(ada)) == 2


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - {"no object", "null", "a list"}))
async def test_an_entry_gets_the_problem_that_a_request_of_its_own_would_get(sqlite_plane: ApiPlane, name: str) -> None:
    ada, (wrong, _) = await sqlite_plane.user(), REFUSED[name]
    (one,) = await answered(ada, [wrong])
    alone = problem(await ada.post("/api/keys", json=wrong), "invalid-request")
    fixed = json.loads(json.dumps(one["problem"]).replace("The entry has", "The body has"))
    assert {**fixed, "request_id": ""} == {**alone, "request_id": ""}


@pytest.mark.parametrize(
    "other",
    [OPENAI_KEY, f" {OPENAI_KEY}\n", f"OPENAI_API_KEY={OPENAI_KEY}", f'"{OPENAI_KEY}"'],
    ids=["a key", "white space around it", "a name in front of it", "quotation marks around it"],
)
@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
async def test_no_label_has_the_value_of_another_entry(shared: ApiPlane, other: str, is_first: bool) -> None:
    ada = await shared.user()
    wrong = {"service": "MISTRAL", "api_key": CANARY, "name": f"with {OPENAI_KEY}"}
    entries = [{"service": "OPENAI", "api_key": other}, wrong, {**KEY, "name": "last"}]
    answer = await post(ada, entries if is_first else entries[::-1])
    refusal = answer.json()[1]["problem"]
    assert [(each["field"], each["message"]) for each in refusal["errors"]] == [
        ("name", "must not contain another key, because labels are shown")
    ]
    for text in (answer.text, (await ada.get("/api/keys")).text, (await ada.get("/api/audit")).text):
        assert OPENAI_KEY not in text
    assert "MISTRAL" not in [key["service"] for key in (await ada.get("/api/keys")).json()]


async def test_a_short_text_that_is_no_key_is_a_word_of_a_label(shared: ApiPlane) -> None:
    ada = await shared.user()
    found = await answered(ada, [{**KEY, "name": "chat"}, {**KEY, "api_key": "chat"}, {**KEY, "api_key": ""}])
    assert statuses(found) == [201, 400, 400]


async def test_a_batch_of_only_wrong_entries_stores_nothing(shared: ApiPlane) -> None:
    ada = await shared.user()
    found = await answered(ada, [wrong for wrong, _ in REFUSED.values()])
    assert set(statuses(found)) == {400}
    assert await ids(ada) == []


BODIES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no entry": ({"keys": []}, ("keys",)),
    "too many entries": ({"keys": [KEY] * (MAX_NEW_KEYS + 1)}, ("keys",)),
    "an object": ({"keys": {"0": KEY}}, ("keys",)),
    "a string": ({"keys": CANARY}, ("keys",)),
    "null": ({"keys": None}, ("keys",)),
    "a number": ({"keys": 7}, ("keys",)),
    "nothing": ({}, ("keys",)),
    "an unknown field": ({"keys": [KEY], CANARY: 1}, ("",)),
    "a list": ([KEY], ("",)),
    "a single key": (KEY, ("", "keys")),
}
"""Bodies that are refused as a whole."""


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_is_no_batch_is_refused_as_a_whole(shared: ApiPlane, name: str) -> None:
    ada, (body, fields) = await shared.user(), BODIES[name]
    answer = await ada.post("/api/keys/batch", json=body)
    problem(answer, "invalid-request", *fields)
    assert CANARY not in answer.text
    assert await ids(ada) == []


async def test_the_message_says_how_many_entries_there_can_be(sqlite_plane: ApiPlane) -> None:
    ada = await sqlite_plane.user()
    many = problem(await post(ada, [KEY] * (MAX_NEW_KEYS + 1)), "invalid-request", "keys")
    assert many["errors"][0]["message"] == "must have at most 50 entries"
    none = problem(await post(ada, []), "invalid-request", "keys")
    assert none["errors"][0]["message"] == "must have at least one entry"


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        (b"{", ("",)),
        (b"", ("",)),
        (b"\xff", ("",)),
        (b'{"keys": [' + b"[" * 5000 + b"]" * 5000 + b"]}", ("",)),
        (b'{"keys": [{"service": "OPENAI", "api_key": "sk-hq2v9mXbT0c7\\ud800"}]}', ("keys",)),
    ],
)
async def test_a_body_that_is_not_json_is_refused(shared: ApiPlane, content: bytes, fields: tuple[str, ...]) -> None:
    ada = await shared.user()
    answer = await ada.post("/api/keys/batch", content=content, headers={"Content-Type": "application/json"})
    problem(answer, "invalid-request", *fields)


async def test_a_body_can_have_1_mib(shared: ApiPlane) -> None:
    ada = await shared.user()
    content = json.dumps({"keys": [KEY]}).encode()
    headers = {"Content-Type": "application/json"}
    full = content.ljust(MAX_BYTES)
    answer = await ada.post("/api/keys/batch", content=full, headers=headers)
    assert answer.status_code == 200, answer.text
    for more in ({}, {"Idempotency-Key": str(uuid4())}):
        refused = await ada.post("/api/keys/batch", content=full + b" ", headers={**headers, **more})
        assert "1 MiB" in problem(refused, "payload-too-large")["detail"]
    chunks = [full, b" "]  # without a Content-Length
    refused = await shared.wire("POST", b"/api/keys/batch", headers_of(ada), chunks)
    assert "1 MiB" in problem(refused, "payload-too-large")["detail"]
    alone = await ada.post("/api/keys", content=b" " * 65_537, headers=headers)
    assert "64 KiB" in problem(alone, "payload-too-large")["detail"]
    assert len(await ids(ada)) == 1


async def test_fifty_service_account_files_fit_into_a_batch(shared: ApiPlane) -> None:
    ada = await shared.user()
    account = json.dumps(
        {
            "type": "service_account",
            "private_key_id": "0123456789abcdef",
            "private_key": "x" * 15_000,
            "client_email": "ada@example.com",
        }
    )
    found = await answered(ada, [{"service": "GOOGLE_VERTEX", "api_key": account}] * MAX_NEW_KEYS)
    assert {(one["status"], one["key"]["last_4_chars"]) for one in found} == {(201, "...cdef")}


async def test_only_a_caller_with_the_scope_stores_keys(shared: ApiPlane) -> None:
    ada = await shared.user()
    problem(await post(shared.client(), [KEY]), "unauthenticated")
    problem(await post(await shared.token(ada, "keys:read"), [KEY]), "forbidden")
    foreign = await ada.post("/api/keys/batch", json={"keys": [KEY]}, headers={"Sec-Fetch-Site": "cross-site"})
    problem(foreign, "forbidden")
    assert await ids(ada) == []
    assert statuses(await answered(await shared.token(ada, "keys:write"), [KEY])) == [201]


async def test_the_name_of_the_route_is_no_id(shared: ApiPlane) -> None:
    ada = await shared.user()
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        refused = await ada.request(method, "/api/keys/batch")
        problem(refused, "method-not-allowed")
        assert refused.headers["allow"] == "POST, OPTIONS"
    problem(await ada.post("/api/keys/batch/check"), "not-found")
    problem(await ada.post("/api/keys/batch?x=1", json={"keys": [KEY]}), "invalid-request", "")


async def test_no_value_is_in_the_answer_the_log_or_a_repr(shared: ApiPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await shared.user()
    entries = [{**KEY, "api_key": CANARY}, {**KEY, "api_key": f"{CANARY} x"}, CANARY, {CANARY: CANARY}]
    with capture_logs() as logs:
        answer = await post(ada, entries, str(uuid4()))
    assert statuses(answer.json()) == [201, 400, 400, 400]
    rows = [tuple(row) for table in (api_keys, idempotency, audit_log) for row in await shared.rows(table)]
    for place in (answer.text, repr(answer.headers), repr(logs), repr(rows)):
        assert CANARY[3:] not in place


# --- limits


async def test_the_entries_beyond_the_number_of_keys_are_refused(
    database: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with api_plane_at(database, provisioned.settings, Passwords(quick_passwords), max_keys=4) as plane:
        ada = await plane.user()
        await store(ada)
        found = await answered(ada, [KEY, {**KEY, "api_key": "short"}, KEY, KEY, KEY, {**KEY, "service": "NOPE"}])
        assert statuses(found) == [201, 400, 201, 201, 429, 400]
        assert "as it can have: 4." in found[4]["problem"]["detail"]
        assert found[4]["problem"]["retry_after"] == FULL_RETRY_AFTER
        assert not any("retry_after" in one["problem"] for one in found if one["status"] == 400)
        assert len(await ids(ada)) == 4
        assert statuses(await answered(ada, [KEY, KEY])) == [429, 429]
        problem(await ada.post("/api/keys", json=KEY), "rate-limited")
        assert (await ada.delete(f"/api/keys/{found[0]['key']['id']}")).status_code == 204
        assert statuses(await answered(ada, [KEY, KEY])) == [201, 429]


async def test_batches_at_once_store_no_more_keys_than_there_can_be(
    database: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with api_plane_at(database, provisioned.settings, Passwords(quick_passwords), max_keys=10) as plane:
        ada = await plane.user()
        batches = (answered(ada, [KEY] * 4) for _ in range(4))
        single = (ada.post("/api/keys", json=KEY) for _ in range(4))
        found, alone = await asyncio.gather(asyncio.gather(*batches), asyncio.gather(*single))
        stored = [one["status"] for each in found for one in each] + [answer.status_code for answer in alone]
        assert stored.count(201) == 10
        assert set(stored) == {201, 429}
        assert len(await ids(ada)) == 10


async def test_each_entry_counts_as_a_write(sqlite: URL, provisioned: Vault, quick_passwords: PasswordHasher) -> None:
    async with api_plane_at(sqlite, provisioned.settings, Passwords(quick_passwords), max_writes=8) as plane:
        ada = await plane.user()
        assert statuses(await answered(ada, [KEY, {**KEY, "api_key": "short"}, KEY])) == [201, 400, 201]
        found = await answered(ada, [KEY] * 7)
        assert statuses(found) == [201] * 5 + [429] * 2
        assert all(1 <= one["problem"]["retry_after"] <= 60 for one in found[5:])
        assert "too many changes" in found[-1]["problem"]["detail"]
        refused = await post(ada, [KEY])
        assert "too many changes" in problem(refused, "rate-limited")["detail"]
        assert len(await ids(ada)) == 7


async def test_a_replay_counts_once(sqlite: URL, provisioned: Vault, quick_passwords: PasswordHasher) -> None:
    async with api_plane_at(sqlite, provisioned.settings, Passwords(quick_passwords), max_writes=8) as plane:
        ada, retry = await plane.user(), str(uuid4())
        first = await post(ada, [KEY] * 5, retry)
        for _ in range(3):
            assert (await post(ada, [KEY] * 5, retry)).content == first.content


# --- sent twice


async def test_the_same_request_again_gets_the_first_answer_again(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    entries = [KEY, {**KEY, "api_key": "short"}, {**KEY, "name": "ü"}]
    first = await post(ada, entries, retry)
    assert statuses(first.json()) == [201, 400, 201]
    assert "idempotent-replayed" not in first.headers
    for _ in range(3):
        again = await post(ada, entries, retry)
        assert (again.status_code, again.content) == (200, first.content)
        assert again.headers["idempotent-replayed"] == "true"
    assert len(await ids(ada)) == 2
    assert len(await audited(ada)) == 2


async def test_the_same_batch_many_times_at_once_is_stored_once(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    answers = await asyncio.gather(*(post(ada, [KEY, KEY], retry) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert [answer.headers.get("idempotent-replayed") for answer in answers].count(None) == 1
    assert len(await ids(ada)) == 2
    assert len(await audited(ada)) == 2


async def test_the_same_key_with_another_body_or_another_route_is_refused(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    first = await post(ada, [KEY], retry)
    for entries in ([KEY, KEY], [{**KEY, "name": "x"}], []):
        problem(await post(ada, entries, retry), "idempotency-mismatch")
    headers = {"Idempotency-Key": retry}
    same = await ada.post("/api/keys", json={"keys": [KEY]}, headers=headers)
    problem(same, "idempotency-mismatch")
    problem(await ada.post("/api/keys", json=KEY, headers=headers), "idempotency-mismatch")
    single = {"Idempotency-Key": str(uuid4())}
    assert (await ada.post("/api/keys", json=KEY, headers=single)).status_code == 201
    problem(await ada.post("/api/keys/batch", json=KEY, headers=single), "idempotency-mismatch")
    assert (await post(ada, [KEY], retry)).content == first.content
    assert len(await ids(ada)) == 2


async def test_an_answer_of_refusals_comes_again_too(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    first = await post(ada, [{**KEY, "api_key": "short"}], retry)
    again = await post(ada, [{**KEY, "api_key": "short"}], retry)
    assert (again.content, again.headers["idempotent-replayed"]) == (first.content, "true")
    problem(await post(ada, [KEY], retry), "idempotency-mismatch")


async def test_a_batch_that_is_refused_as_a_whole_leaves_the_key_free(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    problem(await post(ada, [], retry), "invalid-request", "keys")
    assert statuses((await post(ada, [KEY], retry)).json()) == [201]


async def test_after_24_hours_the_batch_is_forgotten(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    first = await post(ada, [{**KEY, "expires_at": soon}], retry)
    assert statuses(first.json()) == [201]
    with time_machine.travel(datetime.now(UTC) + timedelta(hours=2), tick=True):
        assert (await post(ada, [{**KEY, "expires_at": soon}], retry)).content == first.content
    with time_machine.travel(datetime.now(UTC) + timedelta(hours=25), tick=True):
        again = await post(ada, [{**KEY, "expires_at": soon}], retry)
        assert statuses(again.json()) == [400]


async def test_an_answer_that_was_damaged_is_a_conflict_and_stores_no_second_key(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    assert statuses((await post(ada, [KEY], retry)).json()) == [201]
    user_id = (await ada.get("/api/auth/me")).json()["id"]
    for damaged in ('[{"status": 201, "key": {"id"', '{"id": 1}', "[7]"):
        async with shared.database.write(Unchecked.OPERATOR) as connection:
            theirs = idempotency.c.user_id == user_id
            await connection.execute(update(idempotency).where(theirs).values(response=damaged))
        problem(await post(ada, [KEY], retry), "conflict")
    assert len(await ids(ada)) == 1


async def test_the_same_body_of_another_type_is_no_retry(shared: ApiPlane) -> None:
    ada, retry = await shared.user(), str(uuid4())
    content = json.dumps({"keys": [KEY]}).encode()
    sent = {"Idempotency-Key": retry, "Content-Type": "application/json"}
    assert (await ada.post("/api/keys/batch", content=content, headers=sent)).status_code == 200
    for other in ({"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}):
        refused = await ada.post("/api/keys/batch", content=content, headers={**sent, **other})
        problem(refused, "unsupported-media-type")


# --- faults in the middle


@pytest.mark.parametrize("place", [0, 2, 4])
async def test_if_vault_fails_at_one_entry_nothing_is_stored(
    shared: ApiPlane, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """A fake, because Vault refuses one item of a batch only if it is broken."""
    ada, retry, sealing = await shared.user(), str(uuid4()), TransitCipher.encrypt
    values = [f"sk-hq2v9mXbT0c7eUKwN4Rd{n:04}" for n in range(5)]
    entries = [*({**KEY, "api_key": value} for value in values), {**KEY, "api_key": "short"}]

    async def fails_at_one(self: TransitCipher, plaintext: Secret, context: Context) -> Sealed:
        if plaintext.reveal() == values[place]:
            raise VaultUnavailable(VaultReason.TIMEOUT)
        return await sealing(self, plaintext, context)

    with monkeypatch.context() as patched:
        patched.setattr(TransitCipher, "encrypt", fails_at_one)
        refused = await post(ada, entries, retry)
    assert "Nothing was stored." in problem(refused, "vault-unavailable")["detail"]
    assert int(refused.headers["retry-after"]) > 0
    assert await ids(ada) == []
    assert await audited(ada) == []
    again = await post(ada, entries, retry)
    assert statuses(again.json()) == [201] * 5 + [400]
    assert "idempotent-replayed" not in again.headers


async def test_if_the_caller_is_revoked_meanwhile_nothing_is_stored(
    shared: ApiPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, sealing = await shared.user(), TransitCipher.encrypt
    script = await shared.token(ada, "keys:write")
    (token,) = (await ada.get("/api/tokens")).json()

    async def revoked(self: TransitCipher, plaintext: Secret, context: Context) -> Sealed:
        sealed = await sealing(self, plaintext, context)
        await ada.delete(f"/api/tokens/{token['id']}")
        return sealed

    monkeypatch.setattr(TransitCipher, "encrypt", revoked)
    problem(await post(script, [KEY, KEY]), "unauthenticated")
    assert await ids(ada) == []
    assert await audited(ada) == []
