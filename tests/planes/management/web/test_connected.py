"""Connected sign-ins: linking, unlinking, and proof of presence at the identity provider."""

from __future__ import annotations

import asyncio
import html
import re
import time
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlencode

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy import select

from keyman.identity import identities, sessions, users
from keyman.identity.connected import LAST_WAY_IN
from keyman.identity.first_password import NO_ADDRESS, TAKEN
from keyman.identity.identities import Identity
from keyman.identity.passwords import Passwords
from keyman.identity.tables import identities as identities_table
from keyman.ids import UserId
from keyman.storage.transactions import Database, Unchecked
from keyman.values import EmailAddress, NewPassword, Subject
from tests.planes.management.web.openid import CALLBACK, HTML, START, Open, come_back, me, of_forger, recorded
from tests.support.http import faulty_server
from tests.support.openid import Forger, query_of
from tests.support.planes import PASSWORD, Plane

pytestmark = pytest.mark.anyio

CONNECTED, PRESENCE = "/settings/account/sign-ins", "/settings/account/presence"


@pytest.fixture
async def signer() -> AsyncIterator[Forger]:
    forger = Forger()
    async with faulty_server(forger) as server:
        forger.address = server.address
        yield forger


async def post(client: httpx.AsyncClient, path: str, **form: str) -> httpx.Response:
    headers = {**HTML, "Content-Type": "application/x-www-form-urlencoded"}
    return await client.post(path, content=urlencode(form), headers=headers)


async def prove(client: httpx.AsyncClient, signer: Forger, code: str) -> httpx.Response:
    """Sign in again at the provider, and come back."""
    away = await post(client, PRESENCE, next=CONNECTED)
    asked = query_of(away.headers["location"])
    assert (asked["prompt"], asked["max_age"]) == ("login", "0")
    return await client.get(signer.log_in(away.headers["location"], code), headers=HTML)


async def test_linking_needs_the_password_and_is_of_the_session_that_began_it(open_plane: Open, signer: Forger) -> None:
    async with open_plane(of_forger(signer)) as plane:
        owner = await plane.user()
        known = await me(owner)
        assert (await post(owner, CONNECTED)).status_code == 422
        assert (await post(owner, CONNECTED, current_password="not this one")).status_code == 403
        foreign = {"Sec-Fetch-Site": "cross-site", **HTML}
        evil = await owner.post(CONNECTED, data={"current_password": PASSWORD}, headers=foreign)
        assert evil.status_code == 403
        away = await post(owner, CONNECTED, current_password=PASSWORD)
        assert away.headers["location"].startswith(f"{signer.address}/authorize?")
        stolen = signer.log_in(away.headers["location"])
        visit = [name for name in owner.cookies if "visit" in name]
        another = await plane.user()
        another.cookies.set(visit[0], owner.cookies[visit[0]])
        refused = await another.get(stolen, headers=HTML)
        assert refused.status_code == 400
        assert not signer.forms  # the code was not used
        assert (await owner.get(stolen, headers=HTML)).status_code == 400  # the visit has ended
        away = await post(owner, CONNECTED, current_password=PASSWORD)
        done = await owner.get(signer.log_in(away.headers["location"]), headers=HTML)
        assert done.headers["location"] == f"{CONNECTED}?done=linked"
        assert ("account.link", f"issuer {signer.address}") in await recorded(plane)
        later = plane.client()
        await come_back(later, signer, code="later")
        assert (await me(later))["id"] == known["id"]
        away = await post(another, CONNECTED, current_password=PASSWORD)
        taken = await another.get(signer.log_in(away.headers["location"]), headers=HTML)
        assert taken.status_code == 409  # it belongs to another account


async def test_starting_a_sign_in_never_links(open_plane: Open, signer: Forger) -> None:
    async with open_plane(of_forger(signer)) as plane:
        owner = await plane.user()
        known = await me(owner)
        await come_back(owner, signer)
        assert (await me(owner))["id"] != known["id"]


async def test_without_a_password_a_new_sign_in_at_the_provider_proves_presence(
    open_plane: Open, signer: Forger
) -> None:
    async with open_plane(of_forger(signer)) as plane:
        client = plane.client()
        await come_back(client, signer)
        assert (await post(client, "/settings/account/delete")).status_code == 403
        wrongs: list[dict[str, object]] = [{"auth_time": time.time() - 400}, {"auth_time": None}, {"sub": "another"}]
        for number, wrong in enumerate(wrongs):
            signer.claims = wrong
            assert (await prove(client, signer, f"wrong-{number}")).status_code in (400, 403)
            assert (await post(client, "/settings/account/delete")).status_code == 403
        signer.claims = {}
        assert (await prove(client, signer, "right")).headers["location"] == CONNECTED
        assert (await post(client, "/settings/account/delete")).status_code == 303
        assert (await client.get("/api/auth/me")).status_code == 401


async def test_the_last_way_in_stays_and_another_can_be_disconnected(open_plane: Open, signer: Forger) -> None:
    async with open_plane(of_forger(signer)) as plane:
        client = plane.client()
        await come_back(client, signer)
        await prove(client, signer, "proof")
        assert (await post(client, f"{CONNECTED}/1/unlink")).status_code == 409
        owner = await plane.user()
        signer.claims = {"sub": "second"}
        away = await post(owner, CONNECTED, current_password=PASSWORD)
        await owner.get(signer.log_in(away.headers["location"], "link"), headers=HTML)
        opened = plane.client()
        await come_back(opened, signer, code="open")
        assert "Disconnect" in (await owner.get(CONNECTED, headers=HTML)).text
        assert (await post(owner, f"{CONNECTED}/1/unlink", current_password=PASSWORD)).status_code == 404  # another's
        assert (await post(owner, f"{CONNECTED}/2/unlink", current_password="not this one")).status_code == 403
        done = await post(owner, f"{CONNECTED}/2/unlink", current_password=PASSWORD)
        assert done.headers["location"] == f"{CONNECTED}?done=unlinked"
        assert (await opened.get("/api/auth/me")).status_code == 401
        assert (await owner.get("/api/auth/me")).status_code == 200
        assert ("account.unlink", f"issuer {signer.address}") in await recorded(plane)


async def account(plane: Plane, issuer: str, subjects: Sequence[str], sessions_wanted: int) -> list[httpx.AsyncClient]:
    """Browsers of one account with a password and these identities of the provider."""
    db = Database(plane.settings.database_url)
    email = EmailAddress(f"{subjects[0]}@example.com")
    made = await users.add(db, Passwords(PasswordHasher(1, 8, 1)), email, NewPassword(PASSWORD))
    user_id = UserId(made.id)
    async with db.write(Unchecked.OPERATOR) as connection:
        for subject in subjects:
            await identities.add(connection, Identity(issuer, Subject(subject)), user_id, identities_table)
        cookies = [await sessions.open_session(connection, user_id) for _ in range(sessions_wanted)]
    await db.close()
    return [plane.client(cookies={"keyman_session": cookie.reveal()}) for cookie in cookies]


async def identities_of(client: httpx.AsyncClient) -> list[str]:
    page = await client.get(CONNECTED, headers=HTML)
    return re.findall(rf"{CONNECTED}/([0-9]+)/unlink", page.text)


@pytest.mark.parametrize(("passwords_on", "status"), [(True, 303), (False, 409)])
async def test_a_password_is_a_way_in_only_while_passwords_are_on(
    open_plane: Open, signer: Forger, passwords_on: bool, status: int
) -> None:
    async with open_plane(of_forger(signer), passwords_on=passwords_on) as plane:
        (owner,) = await account(plane, signer.address, ["only"], 1)
        (only,) = await identities_of(owner)
        answer = await post(owner, f"{CONNECTED}/{only}/unlink", current_password=PASSWORD)
        assert answer.status_code == status
        assert (html.escape(LAST_WAY_IN, quote=False) in answer.text) is (status == 409)
        assert await identities_of(owner) == ([] if passwords_on else [only])


async def test_an_identity_of_another_issuer_is_no_way_in(open_plane: Open, signer: Forger) -> None:
    async with open_plane(of_forger(signer), passwords_on=False) as plane:
        (owner,) = await account(plane, "https://former.example", ["former"], 1)
        (former,) = await identities_of(owner)
        db = Database(plane.settings.database_url)
        async with db.write(Unchecked.OPERATOR) as connection:
            identity = Identity(signer.address, Subject("current"))
            user_id = UserId((await me(owner))["id"])
            await identities.add(connection, identity, user_id, identities_table)
        await db.close()
        current = next(one for one in await identities_of(owner) if one != former)
        refused = await post(owner, f"{CONNECTED}/{current}/unlink", current_password=PASSWORD)
        assert refused.status_code == 409
        assert (await post(owner, f"{CONNECTED}/{former}/unlink", current_password=PASSWORD)).status_code == 303
        assert await identities_of(owner) == [current]


@pytest.mark.parametrize("round_", range(3))
async def test_of_unlinks_at_the_same_time_one_is_refused(open_plane: Open, signer: Forger, round_: int) -> None:
    async with open_plane(of_forger(signer), passwords_on=False) as plane:
        browsers = await account(plane, signer.address, ["a", "b", "c", "d"], 4)
        linked = await identities_of(browsers[0])
        answers = await asyncio.gather(
            *(
                post(browser, f"{CONNECTED}/{identity}/unlink", current_password=PASSWORD)
                for browser, identity in zip(browsers, linked, strict=True)
            )
        )
        assert sorted(answer.status_code for answer in answers) == [303, 303, 303, 409]
        assert len(await identities_of(browsers[0])) == 1


async def test_unlinks_at_the_same_time_leave_a_way_in_to_those_without_a_password(
    open_plane: Open, signer: Forger
) -> None:
    async with open_plane(of_forger(signer), passwords_on=False) as plane:
        browsers = [plane.client(), plane.client()]
        signer.claims = {"sub": "first"}
        await come_back(browsers[0], signer, code="first")
        await prove(browsers[0], signer, "to link")
        away = await post(browsers[0], CONNECTED)
        signer.claims = {"sub": "second"}
        await browsers[0].get(signer.log_in(away.headers["location"], "link"), headers=HTML)
        await come_back(browsers[1], signer, code="second")
        for number, browser in enumerate(browsers):
            await prove(browser, signer, f"to unlink {number}")
        linked = await identities_of(browsers[0])
        assert len(linked) == 2
        answers = await asyncio.gather(
            *(
                post(browser, f"{CONNECTED}/{identity}/unlink")
                for browser, identity in zip(browsers, linked, strict=True)
            )
        )
        assert 303 in {answer.status_code for answer in answers}
        db = Database(plane.settings.database_url)
        async with db.read() as connection:
            assert len((await connection.execute(select(identities_table.c.id))).all()) == 1
        await db.close()


async def test_a_visit_that_fails_leads_back_to_the_page_where_it_began_and_not_to_a_sign_in(
    open_plane: Open, signer: Forger
) -> None:
    async with open_plane(of_forger(signer)) as plane:
        owner = await plane.user()
        away = await post(owner, CONNECTED, current_password=PASSWORD)
        state = query_of(away.headers["location"])["state"]
        back = await owner.get(CALLBACK, params={"state": state, "error": "access_denied"}, headers=HTML)
        assert f'href="{CONNECTED}"' in back.text
        assert START not in back.text


async def test_the_page_says_what_is_connected_also_to_a_browser_that_comes_from_another_site(
    open_plane: Open, signer: Forger
) -> None:
    foreign = {**HTML, "Sec-Fetch-Site": "cross-site"}
    async with open_plane(of_forger(signer)) as plane:
        owner = await plane.user()
        assert "is connected" not in (await owner.get(f"{CONNECTED}?done=linked", headers=foreign)).text
        away = await post(owner, CONNECTED, current_password=PASSWORD)
        done = await owner.get(signer.log_in(away.headers["location"]), headers=HTML)
        assert "is connected" in (await owner.get(done.headers["location"], headers=foreign)).text
        assert "is connected" not in (await owner.get(CONNECTED, headers=foreign)).text


async def test_a_provider_that_knows_no_age_of_zero_is_asked_once_more(open_plane: Open, signer: Forger) -> None:
    async with open_plane(of_forger(signer)) as plane:
        client = plane.client()
        await come_back(client, signer)
        away = await post(client, PRESENCE, next=CONNECTED)
        for age in ("0", "1"):
            asked = query_of(away.headers["location"])
            assert (asked["prompt"], asked["max_age"]) == ("login", age)
            error = {"state": asked["state"], "error": "invalid_request"}
            url = signer.log_in(away.headers["location"], f"age {age}")
            away = await client.get(CALLBACK, params=error, headers=HTML)
        assert away.status_code == 400  # not for ever
        assert (await client.get(url, headers=HTML)).status_code == 400  # the visit has ended
        away = await post(client, PRESENCE, next=CONNECTED)
        error["state"] = query_of(away.headers["location"])["state"]
        again = await client.get(CALLBACK, params=error, headers=HTML)
        done = await client.get(signer.log_in(again.headers["location"], "right"), headers=HTML)
        assert done.headers["location"] == CONNECTED
        assert (await post(client, "/settings/account/delete")).status_code == 303


async def test_without_the_provider_there_is_no_proof_and_a_page_says_why(open_plane: Open, signer: Forger) -> None:
    signer.metadata["token_endpoint"] = None
    async with open_plane(of_forger(signer)) as plane:
        owner = await plane.user()
        for path in (PRESENCE, CONNECTED):
            away = await post(owner, path, next=CONNECTED, current_password=PASSWORD)
            assert (away.status_code, "cannot be reached" in away.text) == (503, True)
        assert f'href="{CONNECTED}"' in (await post(owner, PRESENCE, next=CONNECTED)).text


ACCOUNT, FIRST = "/settings/account", "a first password"
VERIFIED: dict[str, object] = {"sub": "newcomer", "email": "Newcomer@example.com", "email_verified": True}


@pytest.mark.parametrize("by_page", [True, False], ids=["page", "api"])
async def test_a_first_password_needs_a_new_sign_in_and_then_signs_in(
    open_plane: Open, signer: Forger, by_page: bool
) -> None:
    async def set_it(client: httpx.AsyncClient) -> httpx.Response:
        if by_page:
            return await post(client, ACCOUNT, new_password=FIRST)
        return await client.put("/api/auth/password", json={"new_password": FIRST})

    async with open_plane(of_forger(signer)) as plane:
        signer.claims = VERIFIED
        client, other = plane.client(), plane.client()
        await come_back(client, signer, code="first")
        await come_back(other, signer, code="other")
        page = await client.get(ACCOUNT, headers=HTML)
        assert "Newcomer@example.com" in page.text
        assert "Sign in again with" in page.text
        assert 'name="new_password"' not in page.text
        refused = await set_it(client)
        assert refused.status_code == 403
        assert "This account has no password" in refused.text
        await prove(client, signer, "proof")
        assert 'name="new_password"' in (await client.get(ACCOUNT, headers=HTML)).text
        done = await set_it(client)
        assert done.status_code == (303 if by_page else 204)
        assert (await other.get("/api/auth/me")).status_code == 401
        account = await me(client)
        by_password = plane.client()
        login = {"email": "newcomer@EXAMPLE.com", "password": FIRST}
        assert (await by_password.post("/api/auth/login", json=login)).json() == account
        assert (await set_it(client)).status_code in (400, 422)  # the current one is missing
        assert ("account.password", "first password") in await recorded(plane)
        german = await client.get(ACCOUNT, params={"done": "first-password"}, headers={**HTML, "Accept-Language": "de"})
        assert "anderen Sitzungen sind beendet" in german.text


async def test_a_first_password_never_takes_the_address_of_another_account(open_plane: Open, signer: Forger) -> None:
    async with open_plane(of_forger(signer)) as plane:
        signer.claims = VERIFIED
        client = plane.client()
        await come_back(client, signer, code="first")
        other = await plane.user("newcomer@example.com")
        await prove(client, signer, "proof")
        taken = await client.put("/api/auth/password", json={"new_password": FIRST})
        assert (taken.status_code, taken.json()["detail"]) == (409, TAKEN)
        assert TAKEN in (await post(client, ACCOUNT, new_password=FIRST)).text
        login = {"email": "newcomer@example.com", "password": PASSWORD}
        assert (await other.post("/api/auth/login", json=login)).status_code == 200


@pytest.mark.parametrize("claims", [{"email": "a@example.com", "email_verified": "true"}, {"email": None}])
async def test_without_a_verified_address_there_is_no_first_password(
    open_plane: Open, signer: Forger, claims: dict[str, object]
) -> None:
    async with open_plane(of_forger(signer)) as plane:
        signer.claims = {"sub": "nameless", **claims}
        client = plane.client()
        await come_back(client, signer, code="first")
        await prove(client, signer, "proof")
        refused = await client.put("/api/auth/password", json={"new_password": FIRST})
        assert (refused.status_code, refused.json()["detail"]) == (409, NO_ADDRESS)
        assert "Set password" not in (await client.get(ACCOUNT, headers=HTML)).text
        assert NO_ADDRESS in (await post(client, ACCOUNT, new_password=FIRST)).text


async def test_passwords_that_are_off_and_tokens_set_no_first_password(open_plane: Open, signer: Forger) -> None:
    async with open_plane(of_forger(signer)) as plane:
        signer.claims = VERIFIED
        client = plane.client()
        await come_back(client, signer, code="first")
        await prove(client, signer, "proof")
        script = await plane.token(client)
        assert (await script.put("/api/auth/password", json={"new_password": FIRST})).status_code == 403
        async with open_plane(of_forger(signer), passwords_on=False) as off:
            visitor = off.client(cookies={"keyman_session": client.cookies["keyman_session"]})
            assert (await visitor.put("/api/auth/password", json={"new_password": FIRST})).status_code == 403
            assert "Set password" not in (await visitor.get(ACCOUNT, headers=HTML)).text


async def test_one_proof_sets_one_first_password(open_plane: Open, signer: Forger) -> None:
    async with open_plane(of_forger(signer)) as plane:
        signer.claims = VERIFIED
        client = plane.client()
        await come_back(client, signer, code="first")
        await prove(client, signer, "proof")
        bodies = [{"new_password": f"{FIRST} {number}"} for number in range(4)]
        answers = await asyncio.gather(*(client.put("/api/auth/password", json=body) for body in bodies))
        assert sorted(answer.status_code for answer in answers)[:2] in ([204, 400], [204, 403], [204, 409])
        assert [answer.status_code for answer in answers].count(204) == 1
