"""The settings of keys in the API: what is accepted, what stays, and what can be changed only together with the key."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import time_machine
from sqlalchemy import select, update

from keyman.audit.tables import audit_log
from keyman.keys.settings import settings_hash
from keyman.keys.tables import api_keys
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import ApiPlane, Json, problem, store
from tests.planes.management.api.test_keys import BODY
from tests.providers.pastes import ACCOUNT
from tests.support.rows import AnyRow

pytestmark = pytest.mark.anyio

ENDPOINT = "https://my-resource.openai.azure.com"
OTHER = "https://other.services.ai.azure.com/"
AZURE = {"service": "AZURE_OPENAI", "api_key": BODY}


async def azure(client: httpx.AsyncClient, **settings: str) -> tuple[str, Json]:
    """A new key of Azure, with its path."""
    key = await store(client, **AZURE, settings=settings)
    return f"/api/keys/{key['id']}", key


async def entries(plane: ApiPlane, key_id: int) -> list[AnyRow]:
    """The audit entries of a key that name its current value, oldest first."""
    mine = (audit_log.c.key_id == key_id) & audit_log.c.value_uuid.is_not(None)
    async with plane.database.read() as connection:
        return list(await connection.execute(select(audit_log).where(mine).order_by(audit_log.c.id)))


async def tamper(plane: ApiPlane, key_id: int, settings: str) -> None:
    """Change the settings in the database, behind keyman's back."""
    async with plane.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(settings=settings))


GOOD = [
    ("AZURE_OPENAI", {"endpoint": ENDPOINT}),
    ("AZURE_OPENAI", {"endpoint": f"{ENDPOINT}/"}),
    ("AZURE_OPENAI", {"endpoint": f"{ENDPOINT}:443"}),
    ("AZURE_OPENAI", {"endpoint": f"{ENDPOINT}:443/"}),
    ("AZURE_OPENAI", {"endpoint": "https://a.b.cognitiveservices.azure.com"}),
    ("AZURE_OPENAI", {"endpoint": "https://My-Resource.OpenAI.Azure.com"}),
    ("AZURE_OPENAI", {"endpoint": ENDPOINT, "api_version": "2024-10-21"}),
    ("AZURE_OPENAI", {"api_version": "2025-04-01.preview"}),
    ("AWS_BEDROCK", {"region": "us-east-1"}),
    ("AWS_BEDROCK", {"region": "us-gov-west-1"}),
    ("GOOGLE_VERTEX", {"project": "my-project-123", "location": "europe-west4"}),
    ("GOOGLE_VERTEX", {"project": "example.com:my-project"}),
    ("OPENAI", {}),
]
BAD = [
    *(
        ("AZURE_OPENAI", "endpoint", value)
        for value in (
            "",
            "http://my-resource.openai.azure.com",
            "HTTPS://my-resource.openai.azure.com",
            "my-resource.openai.azure.com",
            "https://openai.azure.com",
            "https://.openai.azure.com",
            "https://evil.example.com",
            "https://evilopenai.azure.com",
            "https://my-resource.openai.azure.com.evil.example.com",
            "https://evil.example.com/.openai.azure.com",
            "https://evil.example.com#.openai.azure.com",
            "https://evil.example.com?.openai.azure.com",
            "https://evil.example.com\\.openai.azure.com",
            "https://user@my-resource.openai.azure.com",
            "https://user:pw@my-resource.openai.azure.com",
            "https://my-resource.openai.azure.com:8443",
            "https://my-resource.openai.azure.com:80",
            "https://my-resource.openai.azure.com:",
            "https://my-resource.openai.azure.com//",
            "https://my-resource.openai.azure.com/openai",
            "https://my-resource.openai.azure.com/?a=b",
            "https://my-resource.openai.azure.com?",
            "https://my-resource.openai.azure.com#",
            "https://my-resource.openai.azure.com.",
            "https://my_resource.openai.azure.com",
            "https://-a.openai.azure.com",
            "https://a-.openai.azure.com",
            "https://a..openai.azure.com",
            f"https://{'a' * 64}.openai.azure.com",
            "https://127.0.0.1",
            "https://[::1]",
            "https://my-resource.openai.azure.com\n",
            " https://my-resource.openai.azure.com",
            "https://my%2eresource.openai.azure.com",
            "https://m\u00fcller.openai.azure.com",
            "https://my-resource.openai.azure\u3002com",
            "https://my-re\u017fource.openai.azure.com",  # the long s, which is an s without case
        )
    ),
    *(("AZURE_OPENAI", "api_version", value) for value in ("", "x" * 33, "2024 10", "a/b", "2024-10-21\n", "v\u00e9")),
    *(
        ("AWS_BEDROCK", "region", value)
        for value in (
            *(
                "",
                "us",
                "US-EAST-1",
                "us-east-1.evil.example.com",
                "us-east-1/",
                "us-east-1@x",
                "-us-1",
                "us--1",
                "us-",
            ),
            *("a-1", "us-a-b-c-d-e", f"us-{'a' * 30}", "us-east-1\n", "us-east-\u0661"),
        )
    ),
    *(("GOOGLE_VERTEX", "location", value) for value in ("", "global", "Europe-West4", "europe_west4")),
    *(("GOOGLE_VERTEX", "project", value) for value in ("", "x" * 65, "My-Project", "a/b", "a b")),
]


def value_for(service: str) -> str:
    return ACCOUNT if service == "GOOGLE_VERTEX" else BODY


async def test_settings_of_the_service_are_stored_and_shown_in_every_answer(shared: ApiPlane) -> None:
    ada = await shared.user()
    schemas = {entry["service"]: entry["settings"] for entry in (await ada.get("/api/services")).json()}
    assert shared.document is not None
    for service, settings in GOOD:
        key = await store(ada, service=service, api_key=value_for(service), settings=settings)
        assert key["settings"] == settings
        assert (await ada.get(f"/api/keys/{key['id']}")).json() == key
        assert (await ada.get("/api/keys?limit=1")).json() == [key]
        lowered = {name: value.lower() for name, value in settings.items()}
        assert shared.document.validator(schemas[service]).is_valid(lowered), settings


async def test_what_a_setting_cannot_be_is_refused_with_its_name(shared: ApiPlane) -> None:
    ada = await shared.user()
    schemas = {entry["service"]: entry["settings"] for entry in (await ada.get("/api/services")).json()}
    assert shared.document is not None
    for service, member, value in BAD:
        body = {"service": service, "api_key": value_for(service), "settings": {member: value}}
        answer = await ada.post("/api/keys", json=body)
        refused = problem(answer, "invalid-request", f"settings.{member}")
        assert len(value) < 4 or value not in refused["errors"][0]["message"], value
        assert not shared.document.validator(schemas[service]).is_valid({member: value}), value
    assert (await ada.get("/api/keys")).json() == []


@pytest.mark.parametrize("settings", [None, [], "x", 7, True, {"endpoint": None}, {"endpoint": 7}, {"endpoint": {}}])
async def test_settings_are_an_object_of_texts_wherever_they_are_sent(sqlite_plane: ApiPlane, settings: object) -> None:
    ada = await sqlite_plane.user()
    path, _ = await azure(ada, endpoint=ENDPOINT)
    for answer in (
        await ada.post("/api/keys", json={**AZURE, "settings": settings}),
        await ada.put(path, json={"api_key": BODY, "settings": settings}),
        await ada.patch(path, json={"settings": settings}),
    ):
        problem(answer, "invalid-request", "settings")
    assert (await ada.get(path)).json()["settings"] == {"endpoint": ENDPOINT}


async def test_no_setting_has_the_key_because_settings_are_shown(shared: ApiPlane) -> None:
    """A key of Azure is 32 letters and digits, as a version of its API may be."""
    ada = await shared.user()
    value = "0123456789abcdef0123456789abcdef"
    azure = {"service": "AZURE_OPENAI", "api_key": value}
    leaking = ({"api_version": value}, {"endpoint": f"https://{value}.openai.azure.com"})
    key = (await ada.post("/api/keys", json=azure)).json()["id"]
    for given in leaking:
        other = {**azure, "api_key": "sk-of-another-entry", "settings": given}
        refused = [
            await ada.post("/api/keys", json={**azure, "settings": given}),
            await ada.put(f"/api/keys/{key}", json={"api_key": value, "settings": given}),
        ]
        (batch,) = [
            one["problem"]
            for one in (await ada.post("/api/keys/batch", json={"keys": [other, azure]})).json()
            if one["status"] == 400
        ]
        for found in [*(problem(one, "invalid-request") for one in refused), batch]:
            assert found["errors"] == [
                {
                    "field": f"settings.{next(iter(given))}",
                    "message": "must not contain a key, because settings are shown",
                }
            ]
            assert value not in str(found)


async def test_a_member_that_the_service_does_not_have_is_refused_and_not_repeated(shared: ApiPlane) -> None:
    ada = await shared.user()
    azure_path, _ = await azure(ada)
    openai_path = f"/api/keys/{(await store(ada))['id']}"
    for answer, words in (
        (await ada.post("/api/keys", json={**AZURE, "settings": {"c4n4ry": "x"}}), "endpoint, api_version"),
        (await ada.put(azure_path, json={"api_key": BODY, "settings": {"c4n4ry": "x"}}), "endpoint, api_version"),
        (await ada.patch(azure_path, json={"settings": {"c4n4ry": "x"}}), "endpoint, api_version"),
        (
            await ada.post(
                "/api/keys", json={"service": "OPENAI", "api_key": BODY, "settings": {"region": "us-east-1"}}
            ),
            "",
        ),
        (await ada.put(openai_path, json={"api_key": BODY, "settings": {"region": "us-east-1"}}), "must be empty"),
        (await ada.patch(openai_path, json={"settings": {"region": "us-east-1"}}), "must be empty"),
    ):
        refused = problem(answer, "invalid-request", "settings")
        assert words in refused["errors"][0]["message"]
        assert "c4n4ry" not in answer.text


async def test_a_put_replaces_the_settings_as_a_whole_or_leaves_them(shared: ApiPlane) -> None:
    ada = await shared.user()
    path, key = await azure(ada, endpoint=ENDPOINT, api_version="2024-10-21")
    assert (await ada.put(path, json={"api_key": BODY})).json()["settings"] == key["settings"]
    replaced = await ada.put(path, json={"api_key": BODY, "settings": {"endpoint": OTHER}})
    assert replaced.json()["settings"] == {"endpoint": OTHER}
    assert (await ada.put(path, json={"api_key": BODY, "settings": {}})).json()["settings"] == {}


async def test_a_patch_replaces_the_settings_as_a_whole_but_not_where_the_key_is_sent(shared: ApiPlane) -> None:
    ada = await shared.user()
    path, key = await azure(ada, endpoint=ENDPOINT)
    changed = await ada.patch(path, json={"settings": {"endpoint": ENDPOINT, "api_version": "2024-10-21"}})
    assert changed.json()["settings"] == {"endpoint": ENDPOINT, "api_version": "2024-10-21"}
    assert changed.headers["etag"] != key["id"]
    for settings in ({"endpoint": OTHER}, {}, {"api_version": "1"}, {"endpoint": f"{ENDPOINT}/"}):
        refused = problem(await ada.patch(path, json={"settings": settings}), "invalid-request", "settings.endpoint")
        assert "only together with the key" in refused["errors"][0]["message"]
    assert (await ada.patch(path, json={"settings": {"endpoint": ENDPOINT}})).json()["settings"] == {
        "endpoint": ENDPOINT
    }
    without, _ = await azure(ada)
    problem(await ada.patch(without, json={"settings": {"endpoint": ENDPOINT}}), "invalid-request", "settings.endpoint")
    for service, settings in (
        ("AWS_BEDROCK", {"region": "us-east-1"}),
        ("GOOGLE_VERTEX", {"location": "europe-west4"}),
    ):
        stored = await store(ada, service=service, api_key=value_for(service))
        (member,) = settings
        answer = await ada.patch(f"/api/keys/{stored['id']}", json={"settings": settings})
        problem(answer, "invalid-request", f"settings.{member}")


async def test_other_changes_leave_the_settings(shared: ApiPlane) -> None:
    ada = await shared.user()
    path, key = await azure(ada, endpoint=ENDPOINT)
    for change in ({"name": "x"}, {"disabled": True}, {"expires_at": "2099-01-01T00:00:00Z"}, {}):
        assert (await ada.patch(path, json=change)).json()["settings"] == key["settings"]


async def test_settings_are_part_of_the_etag(shared: ApiPlane) -> None:
    ada = await shared.user()
    path, _ = await azure(ada)
    before = (await ada.get(path)).headers["etag"]
    after = (await ada.patch(path, json={"settings": {"api_version": "1"}})).headers["etag"]
    assert before != after
    stale = await ada.patch(path, json={"settings": {}}, headers={"If-Match": before})
    problem(stale, "precondition-failed")


async def test_the_entry_that_names_the_value_has_a_hash_of_the_settings(shared: ApiPlane) -> None:
    ada = await shared.user()
    path, key = await azure(ada, endpoint=ENDPOINT)
    await ada.patch(path, json={"name": "x"})
    await ada.patch(path, json={"settings": {"endpoint": ENDPOINT, "api_version": "1"}})
    await ada.put(path, json={"api_key": BODY})
    await ada.put(path, json={"api_key": BODY, "settings": {}})
    found = await entries(shared, key["id"])
    assert [entry.action for entry in found] == ["key.create", "key.change", "key.replace", "key.replace"]
    texts = [f'{{"endpoint":"{ENDPOINT}"}}', *[f'{{"api_version":"1","endpoint":"{ENDPOINT}"}}'] * 2, "{}"]
    assert [entry.settings_hash for entry in found] == [settings_hash(text) for text in texts]
    assert all(re.fullmatch("[0-9a-f]{64}", entry.settings_hash) for entry in found)
    assert found[0].value_uuid == found[1].value_uuid != found[2].value_uuid


async def test_settings_that_were_changed_in_the_database_do_not_become_the_users(shared: ApiPlane) -> None:
    ada = await shared.user()
    path, key = await azure(ada, endpoint=ENDPOINT)
    await tamper(shared, key["id"], f'{{"endpoint":"{OTHER}"}}')
    before = await entries(shared, key["id"])
    for answer in (
        await ada.put(path, json={"api_key": BODY}),  # the settings stay, which are not the user's
        await ada.patch(path, json={"settings": {"endpoint": OTHER, "api_version": "1"}}),
        await ada.patch(path, json={"settings": {"endpoint": ENDPOINT}}),
    ):
        problem(answer, "conflict")
    assert await entries(shared, key["id"]) == before
    assert (await ada.patch(path, json={"name": "x"})).status_code == 200
    assert (await ada.put(path, json={"api_key": BODY, "settings": {"endpoint": ENDPOINT}})).status_code == 200
    assert (await ada.patch(path, json={"settings": {"endpoint": ENDPOINT, "api_version": "1"}})).status_code == 200


DAMAGED = ("", "null", "no JSON", "[]", '{"endpoint": 1}', '{"endpoint": {}}', "{" * 10_000, "\ud7ff")


@pytest.mark.parametrize("damaged", DAMAGED)
async def test_a_key_with_damaged_settings_is_listed_as_undecryptable_beside_the_others(
    shared: ApiPlane, damaged: str
) -> None:
    ada = await shared.user()
    path, key = await azure(ada, endpoint=ENDPOINT)
    other = await store(ada)
    await tamper(shared, key["id"], damaged)
    shown = {**key, "status": "undecryptable", "settings": {}}
    assert (await ada.get("/api/keys")).json() == [other, shown]
    assert (await ada.get("/api/keys?service=AZURE_OPENAI")).json() == [shown]
    found = await ada.get(path)
    assert found.json() == shown
    # Its owner can do with it what is possible with every other key that cannot be opened.
    assert (await ada.patch(path, json={"name": "x"})).json()["status"] == "undecryptable"
    assert (await ada.patch(path, json={"disabled": True})).status_code == 200
    problem(await ada.patch(path, json={"settings": {"api_version": "1"}}), "conflict")
    problem(await ada.put(path, json={"api_key": BODY}), "conflict")
    again = await ada.put(path, json={"api_key": BODY, "settings": {"endpoint": ENDPOINT}})
    assert (again.json()["status"], again.json()["settings"]) == ("disabled", {"endpoint": ENDPOINT})
    await tamper(shared, key["id"], damaged)
    assert (await ada.delete(path)).status_code == 204
    assert (await ada.get("/api/keys")).json() == [other]


async def test_settings_of_bytes_which_only_sqlite_stores_are_damaged(sqlite_plane: ApiPlane) -> None:
    ada = await sqlite_plane.user()
    for damaged in ("x'7b7d'", "x'ff'", "7"):
        path, key = await azure(ada, endpoint=ENDPOINT)
        async with sqlite_plane.database.write(Unchecked.OPERATOR) as connection:
            await connection.exec_driver_sql(f"UPDATE api_keys SET settings = {damaged} WHERE id = {key['id']}")  # noqa: S608
        assert (await ada.get(path)).json()["status"] == "undecryptable"
        problem(await ada.put(path, json={"api_key": BODY}), "conflict")
        assert (await ada.put(path, json={"api_key": BODY, "settings": {}})).json()["status"] == "active"


async def test_an_older_value_that_was_put_back_is_not_named_by_a_change_of_settings(shared: ApiPlane) -> None:
    ada = await shared.user()
    path, key = await azure(ada)
    async with shared.database.read() as connection:
        older = (await connection.execute(select(api_keys).where(api_keys.c.id == key["id"]))).one()
    await ada.put(path, json={"api_key": f"{BODY}2"})
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        put_back = {"value_uuid": older.value_uuid, "encrypted_key": older.encrypted_key}
        await connection.execute(update(api_keys).where(api_keys.c.id == key["id"]).values(put_back))
    problem(await ada.patch(path, json={"settings": {"api_version": "1"}}), "conflict")


async def test_a_new_value_for_an_expired_key_is_not_expired(shared: ApiPlane) -> None:
    ada = await shared.user()
    soon = datetime.now(UTC) + timedelta(days=1)
    path = f"/api/keys/{(await store(ada, expires_at=soon.isoformat()))['id']}"
    kept = (await ada.put(path, json={"api_key": BODY})).json()
    assert kept["expires_at"] is not None  # it has not passed
    with time_machine.travel(soon + timedelta(seconds=1), tick=True):
        assert (await ada.get(path)).json()["status"] == "expired"
        assert (await ada.patch(path, json={"name": "x"})).json()["status"] == "expired"
        replaced = (await ada.put(path, json={"api_key": BODY})).json()
        assert (replaced["expires_at"], replaced["status"]) == (None, "active")
        later = (soon + timedelta(days=1)).replace(microsecond=0)
        replaced = (await ada.put(path, json={"api_key": BODY, "expires_at": later.isoformat()})).json()
        assert replaced["expires_at"] == later.isoformat().replace("+00:00", "Z")


async def test_a_credential_of_16_kib_fits_into_a_body_however_it_is_escaped(shared: ApiPlane) -> None:
    ada = await shared.user()
    file = ACCOUNT.rstrip("}").rstrip() + ',\n  "note": "' + "\u00e9" * 4000 + '\\"' * 1000 + '"\n}'
    file += "\n" * (16 * 1024 - len(file.encode()))
    assert len(file.encode()) == 16 * 1024
    body = {"service": "GOOGLE_VERTEX", "api_key": file, "settings": {"project": "my-project-123"}}
    answer = await ada.post("/api/keys", json=body)  # httpx escapes what is not ASCII
    assert answer.status_code == 201
    assert answer.json()["last_4_chars"] == "...cdef"
    problem(await ada.post("/api/keys", json={**body, "api_key": f"{file} "}), "invalid-request", "api_key")
