"""`/api/audit`: one entry for each change, with who, what and from where, and with no value."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from keyman.audit.tables import audit_log
from keyman.identity import users
from keyman.values import EmailAddress
from tests.planes.management.api.harness import (
    OPENAI_KEY,
    TIMESTAMP,
    ApiPlane,
    Json,
    email_of,
    log_in,
    next_link,
    pages,
    problem,
    store,
)
from tests.support.planes import PASSWORD

pytestmark = pytest.mark.anyio

OF_SOME = {"application", "purpose", "reason", "detail"}
FIELDS = {
    *("id", "at", "action", "actor", "actor_token_id", "token_id", "key_id", "service", "request_id", "address"),
    *OF_SOME,
}


async def trail(client: httpx.AsyncClient) -> list[Json]:
    """Newest first."""
    return [entry async for page in pages(client, "/api/audit?limit=200") for entry in page]


async def test_every_change_leaves_one_entry_with_the_request_that_made_it(shared: ApiPlane) -> None:
    ada = shared.client(address="203.0.113.5")
    signed_up = await ada.post("/api/auth/signup", json={"email": "trail@example.com", "password": PASSWORD})
    expected: list[tuple[httpx.Response, Json]] = [(signed_up, {"action": "account.signup", "actor": "anonymous"})]
    session = {"actor": "session", "actor_token_id": None}

    made = await ada.post("/api/tokens", json={"name": "x", "scopes": ["keys:write", "tokens:manage"]})
    token_id = made.json()["id"]
    expected.append((made, {"action": "token.create", "token_id": token_id, **session}))
    script = shared.client(address="203.0.113.6", headers={"Authorization": f"Bearer {made.json()['token']}"})
    by_token = {"actor": "token", "actor_token_id": token_id}

    for client, actor in ((ada, session), (script, by_token)):
        created = await client.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})
        path, about = created.headers["location"], {"key_id": created.json()["id"], "service": "OPENAI", **actor}
        expected += [
            (created, {"action": "key.create", **about}),
            (await client.put(path, json={"api_key": OPENAI_KEY}), {"action": "key.replace", **about}),
            (await client.patch(path, json={"name": "x"}), {"action": "key.change", **about}),
            (await client.patch(path, json={"disabled": True}), {"action": "key.pause", **about}),
            (await client.patch(path, json={"disabled": False}), {"action": "key.resume", **about}),
            (await client.delete(path), {"action": "key.delete", **about}),
        ]
    revoked = await script.delete(f"/api/tokens/{token_id}")
    expected.append((revoked, {"action": "token.revoke", "token_id": token_id, **by_token}))
    changed = await ada.put("/api/auth/password", json={"current_password": PASSWORD, "new_password": PASSWORD + "!"})
    expected.append((changed, {"action": "account.password", **session}))
    failed = await ada.post("/api/auth/login", json={"email": "trail@example.com", "password": PASSWORD})
    expected.append((failed, {"action": "account.login-failed", "actor": "anonymous", "detail": "1 failed sign-in"}))
    expected.append((await ada.post("/api/auth/logout"), {"action": "account.logout", **session}))
    again = await ada.post("/api/auth/login", json={"email": "trail@example.com", "password": PASSWORD + "!"})
    expected.append((again, {"action": "account.login", **session}))

    entries = (await trail(ada))[::-1]
    assert [entry["action"] for entry in entries] == [fields["action"] for _, fields in expected]
    for entry, (answer, fields) in zip(entries, expected, strict=True):
        assert entry.keys() == FIELDS
        assert TIMESTAMP.fullmatch(entry["at"])
        address = "203.0.113.6" if fields["actor"] == "token" else "203.0.113.5"
        empty = dict.fromkeys(("actor_token_id", "token_id", "key_id", "service", *OF_SOME))
        known = {"id": entry["id"], "at": entry["at"], "request_id": answer.headers["x-request-id"]}
        assert entry == {**empty, **known, "address": address, **fields}
    assert [entry["id"] for entry in entries] == sorted({entry["id"] for entry in entries})


async def test_reading_leaves_no_entry_and_neither_does_what_was_refused(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    path = f"/api/keys/{key['id']}"
    script = await shared.token(ada, "keys:read")
    before = await trail(ada)

    async def forms() -> None:
        get: Callable[[str], Awaitable[httpx.Response]] = ada.get
        for target in ("/api/keys", path, "/api/services", "/api/tokens", "/api/auth/me", "/api/audit"):
            assert (await get(target)).status_code == 200
        problem(await script.delete(path), "forbidden")
        problem(await ada.put(path, json={"api_key": "short"}), "invalid-request")
        problem(await ada.patch(path, json={"name": "x"}, headers={"If-Match": '"x"'}), "precondition-failed")
        problem(await ada.delete("/api/keys/999999"), "not-found")
        assert (await ada.patch(path, json={})).status_code == 200

    await forms()
    assert await trail(ada) == before


async def test_a_replayed_request_leaves_no_second_entry(shared: ApiPlane) -> None:
    ada = await shared.user()
    for _ in range(2):
        body = {"service": "OPENAI", "api_key": OPENAI_KEY}
        await ada.post("/api/keys", json=body, headers={"Idempotency-Key": "once"})
    assert [entry["action"] for entry in await trail(ada)] == ["key.create", "account.signup"]


async def test_an_audit_log_is_only_for_its_owner(shared: ApiPlane) -> None:
    ada, eve = await shared.user(), await shared.user()
    await store(ada)
    assert [entry["action"] for entry in await trail(eve)] == ["account.signup"]


async def test_what_an_operator_did_is_in_the_audit_log(shared: ApiPlane) -> None:
    ada = await shared.user()
    email = await email_of(ada)
    await users.disable(shared.database, EmailAddress(email))
    await users.enable(shared.database, EmailAddress(email))
    entries = await trail(await log_in(shared, email))
    assert [(entry["action"], entry["actor"], entry["address"]) for entry in entries[1:3]] == [
        ("account.enable", "operator", None),
        ("account.disable", "operator", None),
    ]


async def test_the_audit_entries_of_a_deleted_key_and_a_revoked_token_stay(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    made = (await ada.post("/api/tokens", json={"name": "x"})).json()
    await ada.delete(f"/api/keys/{key['id']}")
    await ada.delete(f"/api/tokens/{made['id']}")
    entries = await trail(ada)
    assert [entry["key_id"] for entry in entries if entry["key_id"]] == [key["id"]] * 2
    assert [entry["token_id"] for entry in entries if entry["token_id"]] == [made["id"]] * 2


async def test_the_audit_log_comes_in_pages(shared: ApiPlane) -> None:
    ada = await shared.user()
    for n in range(12):
        await ada.post("/api/tokens", json={"name": str(n)})
    whole = await trail(ada)
    assert len(whole) == 13
    for limit in (1, 5, 12, 13, 14):
        got = [page async for page in pages(ada, f"/api/audit?limit={limit}")]
        assert [entry for page in got for entry in page] == whole
        assert all(len(page) == limit for page in got[:-1])
    assert len((await ada.get("/api/audit")).json()) == 13


async def test_an_entry_holds_no_value_no_mask_and_no_name(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada, name="a telling name")
    made = (await ada.post("/api/tokens", json={"name": "another telling name"})).json()
    rows = repr([tuple(row) for row in await shared.rows(audit_log)]) + str(await trail(ada))
    for secret in (OPENAI_KEY, key["last_4_chars"], "telling", made["token"], made["hint"], "vault:"):
        assert secret not in rows


async def test_a_pause_is_an_entry_of_its_own_beside_what_else_was_changed(shared: ApiPlane) -> None:
    ada = await shared.user()
    path = f"/api/keys/{(await store(ada))['id']}"
    expected: list[str] = []
    for change, actions in (
        ({"disabled": False}, ["key.change"]),  # as it was
        ({"disabled": True}, ["key.pause"]),
        ({"disabled": True}, ["key.change"]),
        ({"disabled": True, "name": "x"}, ["key.change"]),
        ({"disabled": False, "name": "y"}, ["key.change", "key.resume"]),
        ({"disabled": True, "expires_at": None}, ["key.change", "key.pause"]),
    ):
        assert (await ada.patch(path, json=change)).status_code == 200
        expected += actions
        recorded = [entry["action"] for entry in await trail(ada)]
        assert recorded[::-1] == ["account.signup", "key.create", *expected], change
    assert (await ada.put(path, json={"api_key": OPENAI_KEY})).json()["status"] == "disabled"
    assert (await trail(ada))[0]["action"] == "key.replace"


async def test_the_audit_log_is_filtered_by_action_and_time_over_pages_that_keep_the_filter(shared: ApiPlane) -> None:
    ada, eve = await shared.user(), await shared.user()
    for _ in range(3):
        path = f"/api/keys/{(await store(ada))['id']}"
        await store(eve)
        await ada.patch(path, json={"name": "x"})
        await ada.delete(path)
    whole = await trail(ada)
    first, last = whole[-2]["at"], whole[1]["at"]
    for action in (None, "key.create", "key.delete", "key.resolve", "account.signup"):
        for since, until in ((None, None), (first, None), (None, last), (first, last), (last, first)):
            asked = {"action": action, "since": since, "until": until, "limit": "2"}
            params = {name: value for name, value in asked.items() if value is not None}
            wanted = [
                entry
                for entry in whole
                if (action is None or entry["action"] == action)
                and (since is None or entry["at"] >= since)
                and (until is None or entry["at"] < until)
            ]
            got = [page async for page in pages(ada, str(httpx.URL("/api/audit", params=params)))]
            assert [entry for page in got for entry in page] == wanted
            assert all(len(page) == 2 for page in got[:-1])
    answer = await ada.get("/api/audit", params={"action": "key.create", "since": first, "limit": "1"})
    link = next_link(answer)
    assert link is not None
    query = parse_qs(urlsplit(link).query)
    assert query.keys() == {"action", "since", "limit", "cursor"}
    assert (query["action"], query["since"]) == (["key.create"], [first])


async def test_a_time_may_have_any_offset_and_must_have_one(shared: ApiPlane) -> None:
    ada = await shared.user()
    ((entry,),) = [page async for page in pages(ada, "/api/audit")]
    at = datetime.fromisoformat(entry["at"])
    for hours in (-11, 0, 14):
        zone = timezone(timedelta(hours=hours))
        since, until = at.astimezone(zone), (at + timedelta(microseconds=1)).astimezone(zone)
        params = {"since": since.isoformat(), "until": until.isoformat(), "limit": "1"}
        assert (await ada.get("/api/audit", params=params)).json() == [entry]
    for good in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"):
        assert (await ada.get("/api/audit", params={"since": good, "until": good})).json() == []
    for bad in (
        *("2026-01-01T00:00:00", "2026-01-01", "yesterday", "", "1767225600", "2026-13-01T00:00:00Z"),
        *("0001-01-01T00:00:00+14:00", "2026-01-01T00:00:00 02:00"),
    ):
        answer = await ada.get("/api/audit", params={"since": bad, "until": bad, "action": "key.nothing"})
        problem(answer, "invalid-request", "action", "since", "until")
        assert not bad or bad not in answer.text.replace("2030-01-31T00:00:00Z", "")
    assert "must have a time zone" in (await ada.get("/api/audit?since=2026-01-01T00:00:00")).text
    problem(await ada.get("/api/audit?action=key.create&action=key.delete"), "invalid-request", "action")
