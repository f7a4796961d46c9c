"""`DELETE /api/auth/me`: who may delete an account, with which proof, and what works afterwards."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, update

from keyman.clock import now
from keyman.identity import presence
from keyman.identity.limits import MAX_PER_ACCOUNT
from keyman.identity.tables import applications, sessions, users
from keyman.ids import SessionId, UserId
from keyman.keys.tables import api_keys
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import ApiPlane, email_of, log_in, problem, set_cookie, store
from tests.support.planes import PASSWORD

pytestmark = pytest.mark.anyio

ME = "/api/auth/me"
PROOF = {"current_password": PASSWORD}


async def test_an_account_is_deleted_with_everything_that_could_use_it(shared: ApiPlane) -> None:
    ada = await shared.user()
    before = (await ada.get(ME)).json()
    other, script = await log_in(shared, before["email"]), await shared.token(ada)
    key = await store(ada)
    answer = await ada.request("DELETE", ME, json=PROOF)
    assert (answer.status_code, answer.content) == (204, b"")
    value, attributes = set_cookie(answer)
    assert (value.strip('"'), attributes["max-age"]) == ("", "0")
    for client in (other, script):
        problem(await client.get(ME), "unauthenticated")
        problem(await client.get(f"/api/keys/{key['id']}"), "unauthenticated")
    body = {"email": before["email"], "password": PASSWORD}
    problem(await shared.client().post("/api/auth/login", json=body), "unauthenticated")
    again = await shared.client().post("/api/auth/signup", json=body)
    assert again.status_code == 201
    assert again.json()["id"] > before["id"]
    returned = await log_in(shared, before["email"])
    assert (await returned.get("/api/keys")).json() == []
    assert [entry["action"] for entry in (await returned.get("/api/audit")).json()] == [
        "account.login",
        "account.signup",
    ]


async def test_a_wrong_password_is_403_and_deletes_nothing(shared: ApiPlane) -> None:
    ada = await shared.user()
    await store(ada)
    for _ in range(MAX_PER_ACCOUNT):
        problem(await ada.request("DELETE", ME, json={"current_password": "wrong" * 3}), "forbidden")
    problem(await ada.request("DELETE", ME, json=PROOF), "rate-limited")
    assert len((await ada.get("/api/keys")).json()) == 1
    held_up = await shared.client().post("/api/auth/login", json={"email": await email_of(ada), "password": PASSWORD})
    problem(held_up, "rate-limited")


async def test_without_the_password_nothing_is_deleted(shared: ApiPlane) -> None:
    ada = await shared.user()
    problem(await ada.request("DELETE", ME, json={}), "invalid-request", "current_password")
    problem(await ada.delete(ME), "invalid-request", "")
    assert (await ada.get(ME)).status_code == 200


async def test_an_access_token_cannot_delete_the_account(shared: ApiPlane) -> None:
    ada = await shared.user()
    script = await shared.token(ada, "keys:read", "keys:write", "tokens:manage", "audit:read")
    problem(await script.request("DELETE", ME, json=PROOF), "forbidden")
    assert (await ada.get(ME)).status_code == 200


async def test_a_session_that_an_application_opened_cannot_delete_the_account(shared: ApiPlane) -> None:
    ada = await shared.user()
    user_id = (await ada.get(ME)).json()["id"]
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        values = {"name": f"portal-{user_id}", "services": "OPENAI", "created_at": now()}
        made = (await connection.execute(insert(applications).values(values).returning(applications.c.id))).scalar_one()
        await connection.execute(update(sessions).where(sessions.c.user_id == user_id).values(application_id=made))
    problem(await ada.request("DELETE", ME, json=PROOF), "forbidden")
    assert [row.id for row in await shared.rows(users) if row.id == user_id and row.erased_at is None]


async def test_a_user_without_a_password_deletes_the_account_after_a_fresh_sign_in_at_the_provider(
    shared: ApiPlane,
) -> None:
    ada = await shared.user()
    await store(ada)
    user_id = UserId((await ada.get(ME)).json()["id"])
    nothing = {"email": None, "email_key": None, "password_hash": None}
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(users).where(users.c.id == user_id).values(nothing))
    assert (await ada.get(ME)).json()["email"] is None
    for body in ({}, PROOF):
        problem(await ada.request("DELETE", ME, json=body), "forbidden")
    (session_id,) = [row.id for row in await shared.rows(sessions) if row.user_id == user_id]
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        await presence.note(connection, user_id, SessionId(session_id), now())
    assert (await ada.request("DELETE", ME, json={})).status_code == 204
    assert not [row for row in await shared.rows(api_keys) if row.user_id == user_id]
