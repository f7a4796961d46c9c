"""Settings → Account → Delete account, as bytes, in English and German."""

from __future__ import annotations

import httpx
import pytest
from sqlalchemy import insert, update

from keyman.clock import now
from keyman.identity import presence
from keyman.identity.tables import applications, sessions, users
from keyman.ids import SessionId, UserId
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import ApiPlane, store
from tests.support.planes import PASSWORD

pytestmark = pytest.mark.anyio

DELETE = "/settings/account/delete"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Site": "same-origin"}


async def person(plane: ApiPlane) -> tuple[httpx.AsyncClient, UserId]:
    client = await plane.user()
    client.headers.update(BROWSER)
    return client, UserId((await client.get("/api/auth/me")).json()["id"])


async def erased(plane: ApiPlane, user_id: UserId) -> bool:
    (row,) = [row for row in await plane.rows(users) if row.id == user_id]
    return row.erased_at is not None


async def without_password(plane: ApiPlane, user_id: UserId) -> SessionId:
    """Make it an account of an identity only; the id of its session."""
    nothing = {"email": None, "email_key": None, "password_hash": None}
    async with plane.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(users).where(users.c.id == user_id).values(nothing))
    (found,) = [row.id for row in await plane.rows(sessions) if row.user_id == user_id]
    return SessionId(found)


async def test_the_account_page_leads_to_a_question_and_the_password_deletes(shared: ApiPlane) -> None:
    ada, user_id = await person(shared)
    await store(ada)
    assert f'href="{DELETE}"' in (await ada.get("/settings/account")).text  # a form would add a `?`
    question = await ada.get(DELETE)
    assert question.status_code == 200
    assert "Delete your account?" in question.text
    assert 'name="current_password"' in question.text
    wrong = await ada.post(DELETE, data={"account": str(user_id), "current_password": "wrong" * 3})
    assert wrong.status_code == 403
    assert "The current password is wrong." in wrong.text
    empty = await ada.post(DELETE, data={"account": str(user_id), "current_password": ""})
    assert empty.status_code == 422
    assert "Current password is missing." in empty.text
    assert not await erased(shared, user_id)
    done = await ada.post(DELETE, data={"account": str(user_id), "current_password": PASSWORD})
    assert (done.status_code, done.headers["location"]) == (303, "/account-deleted")
    assert await erased(shared, user_id)
    assert "Your account and all its keys are deleted." in (await ada.get("/account-deleted")).text
    assert (await ada.get("/settings/account")).status_code == 401


async def test_the_question_is_in_german_too(shared: ApiPlane) -> None:
    ada, _ = await person(shared)
    german = {"Accept-Language": "de"}
    assert "Ihr Konto löschen?" in (await ada.get(DELETE, headers=german)).text
    assert "Konto gelöscht" in (await ada.get("/account-deleted", headers=german)).text


async def test_a_form_of_another_person_deletes_nothing(shared: ApiPlane) -> None:
    ada, user_id = await person(shared)
    answer = await ada.post(DELETE, data={"account": str(user_id + 1), "current_password": PASSWORD})
    assert answer.status_code == 409
    foreign = {"Sec-Fetch-Site": "cross-site"}
    answer = await ada.post(DELETE, data={"current_password": PASSWORD}, headers=foreign)
    assert answer.status_code == 403
    assert not await erased(shared, user_id)


async def test_a_token_and_a_session_of_an_application_get_no_question(shared: ApiPlane) -> None:
    ada, user_id = await person(shared)
    script = await shared.token(ada)
    assert (await script.get(DELETE)).status_code == 403
    assert (await script.post(DELETE, data={"current_password": PASSWORD})).status_code == 403
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        values = {"name": f"pages-{user_id}", "services": "OPENAI", "created_at": now()}
        made = (await connection.execute(insert(applications).values(values).returning(applications.c.id))).scalar_one()
        await connection.execute(update(sessions).where(sessions.c.user_id == user_id).values(application_id=made))
    assert (await ada.get(DELETE)).status_code == 403
    assert (await ada.post(DELETE, data={"current_password": PASSWORD})).status_code == 403
    assert not await erased(shared, user_id)


async def test_a_person_without_a_password_is_sent_to_the_provider_first(shared: ApiPlane) -> None:
    ada, user_id = await person(shared)
    session_id = await without_password(shared, user_id)
    question = await ada.get(DELETE)
    assert "This account has no password." in question.text
    assert "current_password" not in question.text
    assert '<button type="submit" class="danger filled">' not in question.text
    assert (await ada.post(DELETE, data={"account": str(user_id)})).status_code == 403
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        await presence.note(connection, user_id, session_id, now())
    assert '<button type="submit" class="danger filled">' in (await ada.get(DELETE)).text
    assert (await ada.post(DELETE, data={"account": str(user_id)})).status_code == 303
    assert await erased(shared, user_id)
