"""`/api/keys`: what goes in, what comes out, and what each field means."""

from __future__ import annotations

from asyncio import gather
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import time_machine
from sqlalchemy import select, update

from keyman.keys.tables import api_keys
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import (
    KEY_FIELDS,
    OPENAI_KEY,
    TIMESTAMP,
    ApiPlane,
    Json,
    in_days,
    problem,
    store,
)
from tests.providers.pastes import ACCOUNT, PASTES
from tests.providers.pastes import BODY as PASTED_BODY
from tests.support.needs import quick_on
from tests.support.rows import AnyRow

pytestmark = pytest.mark.anyio

PREFIXES = {
    "OPENAI": "sk-",
    "ANTHROPIC": "sk-ant-",
    "GOOGLE": "AIza",
    "AZURE_OPENAI": "",
    "MISTRAL": "",
    "COHERE": "",
    "GROQ": "gsk_",
    "XAI": "xai-",
    "DEEPSEEK": "sk-",
    "PERPLEXITY": "pplx-",
    "TOGETHER": "tgp_v1_",
    "OPENROUTER": "sk-or-",
    "HUGGINGFACE": "hf_",
    "REPLICATE": "r8_",
    "FIREWORKS": "fw_",
    "AWS_BEDROCK": "ABSK",
    "CEREBRAS": "csk-",
    "NVIDIA": "nvapi-",
    "OLLAMA_CLOUD": "",
}
"""Every service of the catalogue that takes a key, with the visible start of its keys."""

CERTAIN = {
    "sk-proj-": "OPENAI",
    "sk-svcacct-": "OPENAI",
    "sk-admin-": "OPENAI",
    "sk-ant-": "ANTHROPIC",
    "AIza": "GOOGLE",
    "gsk_": "GROQ",
    "xai-": "XAI",
    "pplx-": "PERPLEXITY",
    "tgp_v1_": "TOGETHER",
    "sk-or-": "OPENROUTER",
    "hf_": "HUGGINGFACE",
    "r8_": "REPLICATE",
    "fw_": "FIREWORKS",
    "fpk_": "FIREWORKS",
    "AQ.": "GOOGLE",
    "ABSKQmVkcm9ja0FQ": "AWS_BEDROCK",
    "bedrock-api-key-": "AWS_BEDROCK",
    "csk-": "CEREBRAS",
    "nvapi-": "NVIDIA",
}
"""Prefixes that say for certain whose key it is."""

BODY = "Zq7Rk2Lw9Xc4Vb6Nm1"

NOT_IN_A_NAME = [
    *"\0\x01\x08\t\n\r\x1b\x7f\x80\x9f\u2028\u2029",
    *"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
]


async def test_a_new_key_has_the_documented_fields_and_no_other(shared: ApiPlane) -> None:
    ada = await shared.user()
    answer = await ada.post(
        "/api/keys",
        json={"service": "OPENAI", "api_key": OPENAI_KEY, "name": "chat", "expires_at": "2099-01-01T02:00:00+02:00"},
    )
    assert answer.status_code == 201
    key = answer.json()
    assert key.keys() == KEY_FIELDS
    assert TIMESTAMP.fullmatch(key["created_at"])
    assert key == {
        "id": key["id"],
        "service": "OPENAI",
        "name": "chat",
        "last_4_chars": "sk-...1234",
        "status": "active",
        "created_at": key["created_at"],
        "updated_at": key["created_at"],
        "expires_at": "2099-01-01T00:00:00Z",
        "last_used_at": None,
        "last_used_by": None,
        "settings": {},
        "check": None,
        "default": False,
    }
    assert type(key["id"]) is int
    assert answer.headers["location"] == f"/api/keys/{key['id']}"
    assert answer.headers["etag"].strip('"') != answer.headers["etag"]
    assert answer.headers["content-type"] == "application/json"


async def test_the_location_of_a_new_key_shows_it_with_the_same_etag(shared: ApiPlane) -> None:
    ada = await shared.user()
    created = await ada.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})
    shown = await ada.get(created.headers["location"])
    assert shown.status_code == 200
    assert shown.json() == created.json()
    assert shown.headers["etag"] == created.headers["etag"]


async def test_the_fields_of_the_first_api_are_still_there(shared: ApiPlane) -> None:
    """Clients that were written for the first sketch of the API still find its paths and fields."""
    ada = await shared.user()
    created = await ada.post("/api/keys", json={"service": "OPENAI", "api_key": "your_api_key_here"})
    assert created.status_code == 201
    assert created.json().keys() >= {"id", "service", "created_at"}
    listed = await ada.get("/api/keys")
    assert listed.status_code == 200
    assert isinstance(listed.json(), list)
    assert listed.json()[0].keys() >= {"id", "service", "last_4_chars", "created_at"}
    path = f"/api/keys/{created.json()['id']}"
    replaced = await ada.put(path, json={"api_key": "your_new_api_key_here"})
    assert replaced.status_code == 200
    assert replaced.json().keys() >= {"id", "service", "updated_at"}
    deleted = await ada.delete(path)
    assert deleted.status_code == 204
    assert deleted.content == b""


async def test_a_stored_key_is_listed_by_its_mask(shared: ApiPlane) -> None:
    ada = await shared.user()
    created = await ada.post("/api/keys", json={"service": "OPENAI", "api_key": f" {OPENAI_KEY}\n", "name": "chat"})
    listed = await ada.get("/api/keys")
    assert listed.json() == [created.json()]
    assert OPENAI_KEY not in created.text + listed.text


async def test_a_listing_is_newest_first_and_empty_at_first(shared: ApiPlane) -> None:
    ada = await shared.user()
    assert (await ada.get("/api/keys")).json() == []
    ids = [(await store(ada))["id"] for _ in range(3)]
    assert [key["id"] for key in (await ada.get("/api/keys")).json()] == ids[::-1]


async def test_a_listing_shows_nobody_elses_keys(shared: ApiPlane) -> None:
    ada, eve = await shared.user(), await shared.user()
    await store(ada, name="secret plan")
    assert (await eve.get("/api/keys")).json() == []
    assert (await eve.get("/api/keys", params={"q": "plan", "service": "OPENAI"})).json() == []


async def test_what_is_stored_is_sealed_and_bound_to_a_new_uuid_with_every_value(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    before = await row_of(shared, key)
    assert before.encrypted_key.startswith("vault:v1:")
    await ada.put(f"/api/keys/{key['id']}", json={"api_key": OPENAI_KEY})
    after = await row_of(shared, key)
    assert after.encrypted_key != before.encrypted_key
    assert after.value_uuid != before.value_uuid
    assert after.service == before.service
    assert after.user_id == before.user_id


async def test_reading_and_renaming_and_deleting_never_ask_vault(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    asked = await vault_calls(shared)
    await ada.get("/api/keys")
    await ada.get(f"/api/keys/{key['id']}")
    await ada.patch(f"/api/keys/{key['id']}", json={"name": "other"})
    await ada.delete(f"/api/keys/{key['id']}")
    assert await vault_calls(shared) == asked
    await store(ada)
    assert await vault_calls(shared) > asked


# --- the value


@pytest.mark.parametrize("around", [" ", "\t", "\n", "\r\n", "\u00a0", "\u2003", " \n\t \u3000"])
async def test_white_space_around_a_value_is_stripped(sqlite_plane: ApiPlane, around: str) -> None:
    ada = await sqlite_plane.user()
    answer = await ada.post("/api/keys", json={"service": "OPENAI", "api_key": f"{around}{OPENAI_KEY}{around}"})
    assert answer.status_code == 201
    assert answer.json()["last_4_chars"] == "sk-...1234"


async def test_a_value_has_8_to_8192_characters_after_stripping(shared: ApiPlane) -> None:
    ada = await shared.user()
    for length, status in ((0, 400), (1, 400), (7, 400), (8, 201), (9, 201), (8191, 201), (8192, 201), (8193, 400)):
        answer = await ada.post("/api/keys", json={"service": "COHERE", "api_key": f"  {'x' * length}  "})
        assert answer.status_code == status, length
        if status == 400:
            problem(answer, "invalid-request", "api_key")
    assert len((await ada.get("/api/keys")).json()) == 4


async def test_a_value_takes_every_printable_ascii_character_and_no_other(shared: ApiPlane) -> None:
    ada = await shared.user()
    printable = "".join(map(chr, range(0x21, 0x7F)))
    assert (await ada.post("/api/keys", json={"service": "COHERE", "api_key": printable})).status_code == 201
    for bad in (
        "\0",
        "\x01",
        "\x1f",
        " ",
        "\t",
        "\n",
        "\r\n",
        "\x7f",
        "\x80",
        "é",
        "\u200b",
        "\u202e",
        "…",
        "\U0001f511",
    ):
        answer = await ada.post("/api/keys", json={"service": "COHERE", "api_key": f"abcdefgh{bad}ijkl"})
        problem(answer, "invalid-request", "api_key")
    assert len((await ada.get("/api/keys")).json()) == 1


@pytest.mark.parametrize("service", PREFIXES)
async def test_a_mask_is_the_services_prefix_and_the_last_four(sqlite_plane: ApiPlane, service: str) -> None:
    ada = await sqlite_plane.user()
    prefix = PREFIXES[service]
    cases = {
        f"{prefix}{BODY}wxyz": f"{prefix}...wxyz",
        f"{BODY}wxyz": "...wxyz",  # without the prefix: providers change formats
        "12345678901": "...",  # eleven characters show nothing
        "123456789012": "...9012",
        "abcdefgh": "...",
    }
    for value, mask in cases.items():
        assert (await store(ada, service=service, api_key=value))["last_4_chars"] == mask
    assert [key["last_4_chars"] for key in (await ada.get("/api/keys")).json()] == list(cases.values())[::-1]


async def test_a_replaced_value_has_a_new_mask(shared: ApiPlane) -> None:
    ada = await shared.user()
    path = f"/api/keys/{(await store(ada))['id']}"
    replaced = await ada.put(path, json={"api_key": "sk-Zt81LqoPw5aYc3hVn6Xe9876"})
    assert replaced.json()["last_4_chars"] == "sk-...9876"
    assert (await ada.put(path, json={"api_key": "shortish"})).json()["last_4_chars"] == "..."


@quick_on("sqlite", "shared")
async def test_a_value_that_certainly_belongs_to_another_service_is_refused(shared: ApiPlane) -> None:
    ada = await shared.user()
    stored = await shared.count(api_keys)
    accepted = 0
    for prefix, owner in CERTAIN.items():
        value = f"{prefix}{BODY}wxyz"
        for service in PREFIXES:
            answer = await ada.post("/api/keys", json={"service": service, "api_key": value})
            if service == owner:
                assert answer.status_code == 201
                accepted += 1
            else:
                body = problem(answer, "invalid-request", "api_key")
                assert BODY not in answer.text
                assert "choose" in body["errors"][0]["message"]
    assert await shared.count(api_keys) - stored == accepted == len(CERTAIN)


async def test_a_replacement_that_certainly_belongs_to_another_service_is_refused(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    before = await row_of(shared, key)
    answer = await ada.put(f"/api/keys/{key['id']}", json={"api_key": f"sk-ant-{BODY}"})
    problem(answer, "invalid-request", "api_key")
    assert await row_of(shared, key) == before


@pytest.mark.parametrize(
    ("service", "value"),
    [("OPENAI", OPENAI_KEY), ("ANTHROPIC", f"sk-ant-{BODY}wxyz"), ("TOGETHER", f"tgp_v1_{BODY}wxyz"), ("COHERE", BODY)],
)
async def test_a_mask_that_is_sent_back_is_refused(sqlite_plane: ApiPlane, service: str, value: str) -> None:
    ada = await sqlite_plane.user()
    key = await store(ada, service=service, api_key=value)
    path, mask = f"/api/keys/{key['id']}", key["last_4_chars"]
    before = await row_of(sqlite_plane, key)
    for sent in (mask, f" {mask}\n", "..."):
        for answer in (
            await ada.put(path, json={"api_key": sent}),
            await ada.post("/api/keys", json={"service": service, "api_key": sent}),
        ):
            (error,) = problem(answer, "invalid-request", "api_key")["errors"]
            assert "mask" in error["message"]
    assert await row_of(sqlite_plane, key) == before
    # Also the mask of the value that it had before: a page that was open meanwhile still shows it.
    other = f"{PREFIXES[service]}{BODY}9876"
    assert (await ada.put(path, json={"api_key": other})).status_code == 200
    problem(await ada.put(path, json={"api_key": mask}), "invalid-request", "api_key")


async def test_a_value_with_dots_that_is_no_mask_is_taken(shared: ApiPlane) -> None:
    ada = await shared.user()
    for value in ("abc..defgh", "a.b.c.d.e", "..sk-12345", "sk-a.1234"):
        assert (await store(ada, api_key=value))["status"] == "active"


@quick_on("sqlite", "shared")
async def test_every_paste_is_stored_or_its_mistake_is_named(shared: ApiPlane) -> None:
    ada = await shared.user()
    for paste in PASTES:
        answer = await ada.post("/api/keys", json={"service": paste.service, "api_key": paste.text})
        if paste.message is None:
            assert answer.status_code == 201, paste
        else:
            refused = problem(answer, "invalid-request", "api_key")
            assert [error["message"] for error in refused["errors"]] == [paste.message], paste
            assert PASTED_BODY not in answer.text
    assert len((await ada.get("/api/keys?limit=200")).json()) == sum(paste.message is None for paste in PASTES)


@quick_on("sqlite", "shared")
async def test_every_paste_is_refused_as_a_replacement_too(shared: ApiPlane) -> None:
    ada = await shared.user()
    paths = {}
    for service in {paste.service for paste in PASTES}:
        value = ACCOUNT if service == "GOOGLE_VERTEX" else BODY
        paths[service] = f"/api/keys/{(await store(ada, service=service, api_key=value))['id']}"
    for paste in PASTES:
        answer = await ada.put(paths[paste.service], json={"api_key": paste.text})
        if paste.message is None:
            assert answer.status_code == 200, paste
        else:
            refused = problem(answer, "invalid-request", "api_key")
            assert [error["message"] for error in refused["errors"]] == [paste.message], paste


@pytest.mark.parametrize("service", ["openai", "Openai", "NOPE", "", "OPENAI ", "OPEN\0AI", "ＯＰＥＮＡＩ", "A" * 65])
async def test_a_service_is_one_of_the_catalogue_in_upper_case(sqlite_plane: ApiPlane, service: str) -> None:
    ada = await sqlite_plane.user()
    answer = await ada.post("/api/keys", json={"service": service, "api_key": OPENAI_KEY})
    problem(answer, "invalid-request", "service")
    assert (await ada.get("/api/keys")).json() == []


async def test_the_service_of_a_stored_key_cannot_be_changed(shared: ApiPlane) -> None:
    ada = await shared.user()
    path = f"/api/keys/{(await store(ada))['id']}"
    problem(await ada.put(path, json={"api_key": OPENAI_KEY, "service": "COHERE"}), "invalid-request", "")
    problem(await ada.patch(path, json={"service": "COHERE"}), "invalid-request", "")
    assert (await ada.get(path)).json()["service"] == "OPENAI"


# --- the name


async def test_a_name_has_up_to_100_characters_of_any_script(shared: ApiPlane) -> None:
    ada = await shared.user()
    for name in (
        "",
        "x" * 100,
        "\U0001f511" * 100,
        "ключ",
        "鍵",
        "e\u0301" * 50,
        "a\u200db",
        "İstanbul",
        "ΐ" * 100,
    ):
        key = await store(ada, name=name)
        assert key["name"] == name
        assert (await ada.get(f"/api/keys/{key['id']}")).json()["name"] == name
    assert (await store(ada, name=" "))["name"] == ""  # it shows nothing
    for name in ("x" * 101, "\U0001f511" * 101):
        answer = await ada.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY, "name": name})
        problem(answer, "invalid-request", "name")


async def test_a_name_is_not_unique(shared: ApiPlane) -> None:
    ada = await shared.user()
    assert (await store(ada, name="chat"))["id"] != (await store(ada, name="chat"))["id"]


async def test_a_name_holds_no_control_and_no_bidirectional_character(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada, name="before")
    path = f"/api/keys/{key['id']}"
    for bad in NOT_IN_A_NAME:
        name = f"a{bad}b"
        refused = [
            await ada.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY, "name": name}),
            await ada.put(path, json={"api_key": OPENAI_KEY, "name": name}),
            await ada.patch(path, json={"name": name}),
            await ada.post("/api/tokens", json={"name": name}),
        ]
        for answer in refused:
            problem(answer, "invalid-request", "name")
    assert (await ada.get("/api/keys")).json() == [key]


async def test_put_keeps_what_is_left_out_and_null_clears_it(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada, name="chat", expires_at=in_days(9))
    path = f"/api/keys/{key['id']}"
    await ada.patch(path, json={"disabled": True})

    async def put(**fields: object) -> Json:
        answer = await ada.put(path, json={"api_key": OPENAI_KEY, **fields})
        assert answer.status_code == 200, answer.text
        shown = (await ada.get(path)).json()
        assert shown == answer.json()
        return dict(shown)

    kept = await put()
    assert (kept["name"], kept["expires_at"], kept["status"]) == ("chat", key["expires_at"], "disabled")
    renamed = await put(name="other")
    assert (renamed["name"], renamed["expires_at"]) == ("other", key["expires_at"])
    assert (await put(name=None))["name"] is None
    later = in_days(20)
    assert (await put(expires_at=later))["expires_at"] == later
    cleared = await put(expires_at=None)
    assert (cleared["name"], cleared["expires_at"], cleared["status"]) == (None, None, "disabled")
    assert cleared["created_at"] == key["created_at"]


async def test_patch_changes_what_is_sent_and_null_clears_name_and_expiry(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada, name="chat", expires_at=in_days(9))
    path = f"/api/keys/{key['id']}"
    value = (await row_of(shared, key)).encrypted_key

    async def patch(**fields: object) -> Json:
        answer = await ada.patch(path, json=fields)
        assert answer.status_code == 200, answer.text
        assert (await ada.get(path)).headers["etag"] == answer.headers["etag"]
        return dict(answer.json())

    assert await patch() == key
    assert (await patch(name="other"))["expires_at"] == key["expires_at"]
    assert (await patch(disabled=True))["status"] == "disabled"
    assert (await patch(name=None)).items() >= {"name": None, "status": "disabled"}.items()
    assert (await patch(disabled=False, expires_at=None)).items() >= {"status": "active", "expires_at": None}.items()
    assert (await patch(name="x", expires_at=in_days(1), disabled=True))["status"] == "disabled"
    problem(await ada.patch(path, json={"disabled": None}), "invalid-request", "disabled")
    problem(await ada.patch(path, json={"api_key": OPENAI_KEY}), "invalid-request", "")
    assert (await row_of(shared, key)).encrypted_key == value


# --- time and status


async def test_every_change_moves_updated_at_even_when_the_clock_stands_still_or_goes_back(shared: ApiPlane) -> None:
    ada = await shared.user()
    with time_machine.travel(datetime.now(UTC), tick=False) as clock:
        key = await store(ada)
        path = f"/api/keys/{key['id']}"
        seen = [(key["updated_at"], (await ada.get(path)).headers["etag"])]
        for step in (0, 0, -3600, 0):
            clock.shift(step)
            for answer in (
                await ada.put(path, json={"api_key": OPENAI_KEY}),
                await ada.patch(path, json={"name": "same"}),
            ):
                assert answer.status_code == 200
                seen.append((answer.json()["updated_at"], answer.headers["etag"]))
    moments = [datetime.fromisoformat(moment) for moment, _ in seen]
    assert moments == sorted(set(moments))
    assert len({etag for _, etag in seen}) == len(seen)
    assert (await ada.get(path)).json()["created_at"] == key["created_at"]


@pytest.mark.parametrize(
    "moment",
    [
        "2001-01-01T00:00:00Z",
        "2001-01-01T00:00:00+14:00",
        "2099-01-01T00:00:00",
        "2099-01-01",
        "2099-13-01T00:00:00Z",
        "2099-02-30T00:00:00Z",
        "2099-01-01T25:00:00Z",
        "99999-01-01T00:00:00Z",
        "9999-12-31T23:59:59-01:00",
        "0001-01-01T00:00:00+23:59",
        "tomorrow",
        "",
        "２０９９-01-01T00:00:00Z",
        4102444800,
        4102444800.5,
        True,
        ["2099-01-01T00:00:00Z"],
        {},
    ],
)
async def test_an_expiry_is_a_time_with_a_zone_in_the_future(sqlite_plane: ApiPlane, moment: object) -> None:
    ada = await sqlite_plane.user()
    key = await store(ada)
    path = f"/api/keys/{key['id']}"
    for answer in (
        await ada.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY, "expires_at": moment}),
        await ada.put(path, json={"api_key": OPENAI_KEY, "expires_at": moment}),
        await ada.patch(path, json={"expires_at": moment}),
        await ada.post("/api/tokens", json={"name": "x", "expires_at": moment}),
    ):
        problem(answer, "invalid-request", "expires_at")
    assert (await ada.get("/api/keys")).json() == [key]
    assert (await ada.get("/api/tokens")).json() == []


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("2099-01-01T00:00:00Z", "2099-01-01T00:00:00Z"),
        ("2099-01-01T00:00:00.5Z", "2099-01-01T00:00:00.5Z"),
        ("2099-01-01T00:00:00.123456789Z", "2099-01-01T00:00:00.123457Z"),
        ("2098-12-31T19:30:00-04:30", "2099-01-01T00:00:00Z"),
        ("2099-01-01t00:00:00z", "2099-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
async def test_an_expiry_is_shown_in_utc(shared: ApiPlane, sent: str, shown: str) -> None:
    ada = await shared.user()
    key = await store(ada, expires_at=sent)
    assert TIMESTAMP.fullmatch(key["expires_at"])
    assert datetime.fromisoformat(key["expires_at"]) == datetime.fromisoformat(shown)
    assert (await ada.get(f"/api/keys/{key['id']}")).json() == key


async def test_a_key_past_its_expiry_is_expired_until_it_is_given_another(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada, expires_at=in_days(1))
    path = f"/api/keys/{key['id']}"
    with time_machine.travel(datetime.now(UTC) + timedelta(days=1, seconds=1), tick=True):
        shown = (await ada.get(path)).json()
        assert shown == {**key, "status": "expired"}
        assert (await ada.get("/api/keys")).json() == [shown]
        # Another name does not make it current again.
        assert (await ada.patch(path, json={"disabled": True})).json()["status"] == "expired"
        assert (await ada.patch(path, json={"expires_at": in_days(1)})).json()["status"] == "disabled"
        assert (await ada.patch(path, json={"disabled": False})).json()["status"] == "active"
    with time_machine.travel(datetime.now(UTC) + timedelta(days=3), tick=True):
        # A new value does: it has no expiry unless the request gives one.
        assert (await ada.get(path)).json()["status"] == "expired"
        replaced = (await ada.put(path, json={"api_key": OPENAI_KEY})).json()
        assert (replaced["status"], replaced["expires_at"]) == ("active", None)


async def test_a_key_that_vault_refused_is_undecryptable_until_it_is_replaced(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    path = f"/api/keys/{key['id']}"
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(api_keys).where(api_keys.c.id == key["id"]).values(undecryptable=True))
    assert (await ada.get(path)).json() == {**key, "status": "undecryptable"}
    assert (await ada.patch(path, json={"disabled": True})).json()["status"] == "undecryptable"
    assert (await ada.put(path, json={"api_key": OPENAI_KEY})).json()["status"] == "disabled"
    assert (await ada.patch(path, json={"disabled": False})).json()["status"] == "active"


async def test_the_last_use_is_shown_as_the_resolver_wrote_it(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        used = {"last_used_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "last_used_by": "chat-backend"}
        await connection.execute(update(api_keys).where(api_keys.c.id == key["id"]).values(used))
    shown = (await ada.get(f"/api/keys/{key['id']}")).json()
    assert shown == {**key, "last_used_at": "2026-01-02T03:04:05Z", "last_used_by": "chat-backend"}


# --- the end


async def test_a_deleted_key_is_gone_with_its_ciphertext_and_its_id(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    path = f"/api/keys/{key['id']}"
    deleted = await ada.delete(path)
    assert (deleted.status_code, deleted.content) == (204, b"")
    for answer in (
        await ada.get(path),
        await ada.put(path, json={"api_key": OPENAI_KEY}),
        await ada.patch(path, json={"name": "x"}),
        await ada.delete(path),
    ):
        problem(answer, "not-found")
    assert (await ada.get("/api/keys")).json() == []
    assert key["id"] not in {row.id for row in await shared.rows(api_keys)}
    assert (await store(ada))["id"] > key["id"]


async def test_many_at_once_are_all_stored_each_under_its_own_name(shared: ApiPlane) -> None:
    ada = await shared.user()
    values = [f"sk-{BODY}{n:04}" for n in range(40)]

    async def post(value: str) -> httpx.Response:
        return await ada.post("/api/keys", json={"service": "OPENAI", "api_key": value, "name": value[-4:]})

    answers = await gather(*(post(value) for value in values))
    assert {answer.status_code for answer in answers} == {201}
    listed = (await ada.get("/api/keys?limit=200")).json()
    assert sorted(key["name"] for key in listed) == [value[-4:] for value in values]
    assert all(key["last_4_chars"] == f"sk-...{key['name']}" for key in listed)


async def row_of(plane: ApiPlane, key: Json) -> AnyRow:
    async with plane.database.read() as connection:
        return (await connection.execute(select(api_keys).where(api_keys.c.id == key["id"]))).one()


async def vault_calls(plane: ApiPlane) -> float:
    text = (await plane.client().get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("keyman_vault_operation_seconds_count")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def test_a_name_that_holds_the_key_is_refused_for_names_are_shown(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada, name="plain")
    body = {"api_key": OPENAI_KEY, "name": f"prod {OPENAI_KEY}"}
    for answer in (
        await ada.post("/api/keys", json={"service": "OPENAI", **body}),
        await ada.put(f"/api/keys/{key['id']}", json=body),
    ):
        problem(answer, "invalid-request", "name")
        assert OPENAI_KEY not in answer.text
    assert [stored["name"] for stored in (await ada.get("/api/keys")).json()] == ["plain"]


async def test_no_label_has_what_looks_like_a_key_however_it_is_set(shared: ApiPlane) -> None:
    ada, other = await shared.user(), "gsk_hq2v9mXbT0c7eUKwN4Rd"
    path, label = f"/api/keys/{(await store(ada))['id']}", f"with {other}"
    new = {"service": "OPENAI", "api_key": OPENAI_KEY, "name": label}
    batch = await ada.post("/api/keys/batch", json={"keys": [new]})
    refused = [
        problem(await ada.post("/api/keys", json=new), "invalid-request"),
        problem(await ada.put(path, json={"api_key": OPENAI_KEY, "name": label}), "invalid-request"),
        problem(await ada.patch(path, json={"name": label}), "invalid-request"),
        batch.json()[0]["problem"],
    ]
    for each in refused:
        assert [(fault["field"], fault["message"]) for fault in each["errors"]] == [
            ("name", "must not contain what looks like a key, because labels are shown; write what the key is for")
        ]
    for text in (str(refused), (await ada.get("/api/keys")).text, (await ada.get("/api/audit")).text):
        assert other not in text
    assert len((await ada.get("/api/keys")).json()) == 1


async def test_a_change_has_no_key_in_a_setting(shared: ApiPlane) -> None:
    """A project may have all characters of a key."""
    ada, other = await shared.user(), "sk-0f1e2d3c4b5a69788796a5b4c3d2e1f0"  # pragma: allowlist secret
    vertex = {"service": "GOOGLE_VERTEX", "api_key": ACCOUNT}
    path = f"/api/keys/{(await ada.post('/api/keys', json=vertex)).json()['id']}"
    refused = problem(await ada.patch(path, json={"settings": {"project": other}}), "invalid-request")
    assert [(fault["field"], fault["message"]) for fault in refused["errors"]] == [
        ("settings.project", "must not contain a key, because settings are shown")
    ]
    assert (await ada.get(path)).json()["settings"] == {}
