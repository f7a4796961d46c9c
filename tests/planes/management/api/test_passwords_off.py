"""`KEYMAN_PASSWORDS=off`: nobody signs up, signs in or changes a password; one that is there still proves presence."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import URL

from keyman.identity import sessions, users
from keyman.identity.passwords import Passwords
from keyman.identity.tables import throttle
from keyman.ids import UserId
from keyman.storage.transactions import Unchecked
from keyman.values import EmailAddress, NewPassword
from tests.planes.management.api.harness import ApiPlane, api_plane_at, problem
from tests.support.planes import PASSWORD, Vault

pytestmark = pytest.mark.anyio

EMAIL = "ada@example.com"
CHANGE = {"current_password": PASSWORD, "new_password": "another horse, another battery"}


@pytest.fixture
async def without_passwords(
    database: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> AsyncIterator[ApiPlane]:
    async with api_plane_at(database, provisioned.settings, Passwords(quick_passwords), passwords_on=False) as plane:
        yield plane


async def person(plane: ApiPlane, quick: PasswordHasher) -> httpx.AsyncClient:
    """Somebody who has a password, and came in another way."""
    account = await users.add(plane.database, Passwords(quick), EmailAddress(EMAIL), NewPassword(PASSWORD))
    async with plane.database.write(Unchecked.OPERATOR) as connection:
        cookie = await sessions.open_session(connection, UserId(account.id))
    return plane.with_cookie(cookie.reveal())


async def test_the_api_takes_no_password_to_come_in_or_to_change(
    without_passwords: ApiPlane, quick_passwords: PasswordHasher
) -> None:
    ada, visitor = await person(without_passwords, quick_passwords), without_passwords.client()
    for path in ("/api/auth/signup", "/api/auth/login"):
        for body in ({"email": EMAIL, "password": PASSWORD}, {"email": "x@example.com", "password": PASSWORD}, {}):
            problem(await visitor.post(path, json=body), "forbidden")
    problem(await ada.put("/api/auth/password", json=CHANGE), "forbidden")
    assert await without_passwords.count(throttle) == 0


async def test_the_pages_have_no_form_for_a_password(
    without_passwords: ApiPlane, quick_passwords: PasswordHasher
) -> None:
    ada, visitor = await person(without_passwords, quick_passwords), without_passwords.client()
    door = await visitor.get("/sign-in")
    assert "Passwords are switched off here." in door.text
    assert 'type="password"' not in door.text
    assert "/sign-up" not in door.text
    form = {"email": EMAIL, "password": PASSWORD}
    for path in ("/sign-in", "/sign-up"):
        assert (await visitor.post(path, data=form)).status_code == 403
    assert (await visitor.get("/sign-up")).status_code == 403
    account = await ada.get("/settings/account")
    assert account.status_code == 200
    assert 'type="password"' not in account.text
    assert (await ada.post("/settings/account", data=CHANGE)).status_code == 403


async def test_an_existing_password_still_proves_presence(
    without_passwords: ApiPlane, quick_passwords: PasswordHasher
) -> None:
    ada = await person(without_passwords, quick_passwords)
    assert 'name="current_password"' in (await ada.get("/settings/account/delete")).text
    problem(await ada.request("DELETE", "/api/auth/me", json={"current_password": "wrong" * 3}), "forbidden")
    assert (await ada.request("DELETE", "/api/auth/me", json={"current_password": PASSWORD})).status_code == 204
