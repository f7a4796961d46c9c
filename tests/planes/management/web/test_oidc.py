"""Sign-in with OpenID Connect over HTTP, with OpenBao's own provider."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import select

from keyman.config.oidc import Claim
from keyman.identity.applications import Users
from keyman.identity.issuers import Issuer
from keyman.identity.tables import identities
from keyman.keys import erasure
from keyman.storage.transactions import Database
from keyman.values import RowNumber
from tests.planes.management.api.harness import ApiPlane, store
from tests.planes.management.web.moves import ACTIVITY, KEYS
from tests.planes.management.web.openid import CALLBACK, HTML, START, Open, arrive, leave, me, of_bao, recorded
from tests.planes.resolver.pair import Pair, resolver_at
from tests.planes.resolver.test_portal import arrived, path_of
from tests.planes.resolver.test_portal_links import PORTAL, link
from tests.support.openid import BaoProvider, members, query_of
from tests.support.planes import ORIGIN, PASSWORD, Vault

pytestmark = pytest.mark.anyio


async def test_a_person_signs_in_with_the_real_provider_and_is_the_same_user_next_time(
    open_plane: Open, bao: BaoProvider
) -> None:
    async with open_plane(of_bao(bao)) as plane:
        client = plane.client()
        back = await arrive(client, bao, next="/settings/account")
        assert (back.status_code, back.headers["location"]) == (303, "/settings/account")
        account = await me(client)
        assert account["email"] == "ada@company.example"
        visit, session = sorted((cookie.name, cookie.value) for cookie in client.cookies.jar)[::-1]
        assert session[0] == "keyman_session"
        assert visit[1] == "done.%2Fsettings%2Faccount"  # it proves nothing any more
        assert await recorded(plane) == [
            ("account.create", f"issuer {bao.issuer}"),
            ("account.login", f"issuer {bao.issuer}"),
        ]
        shown = (await client.get("/api/audit")).json()
        assert [entry["detail"] for entry in shown] == [f"issuer {bao.issuer}"] * 2
        assert f"at {bao.issuer}" in (await client.get("/settings/activity", headers=HTML)).text
        again = plane.client()
        await arrive(again, bao)
        assert await me(again) == account


async def test_the_button_comes_first_and_leads_back_to_the_page(open_plane: Open, bao: BaoProvider) -> None:
    async with open_plane(of_bao(bao, shown_name="Company")) as plane:
        page = (await plane.client().get("/settings/activity", headers=HTML)).text
        assert page.index("Sign in with Company") < page.index('name="password"')
        assert (
            f'href="{START}?next=%2Fsettings%2Factivity"' in page or f'href="{START}?next=/settings/activity"' in page
        )


async def test_signing_out_here_signs_out_there(open_plane: Open, bao: BaoProvider) -> None:
    end = {"end_session_endpoint": f"{bao.origin}/logout"}
    with bao.changing("openid-configuration", members(**end)):
        async with open_plane(of_bao(bao)) as plane:
            client = plane.client()
            await arrive(client, bao)
            out = await client.post("/sign-out")
            assert out.status_code == 303
            assert out.headers["location"].startswith(f"{bao.origin}/logout?")
            assert query_of(out.headers["location"]) == {
                "client_id": bao.client_id,
                "post_logout_redirect_uri": f"{ORIGIN}/sign-in",
            }
            assert (await client.get("/api/auth/me")).status_code == 401
            by_password = await plane.user()
            assert (await by_password.post("/sign-out")).headers["location"] == "/sign-in"
            for each in (client, by_password):  # the provider leads back to this page, too
                assert "You are signed out." in (await each.get("/sign-in", headers=HTML)).text
                assert "You are signed out." not in (await each.get("/sign-in", headers=HTML)).text


async def test_pages_let_a_form_lead_to_the_provider_and_nowhere_else(open_plane: Open, bao: BaoProvider) -> None:
    async with open_plane(of_bao(bao)) as plane:
        client = plane.client()
        before = (await client.get("/sign-in", headers=HTML)).headers["content-security-policy"]
        assert "form-action 'self';" in before
        await arrive(client, bao)
        policy = (await client.get("/settings/api-keys", headers=HTML)).headers["content-security-policy"]
        assert f"form-action 'self' {bao.origin};" in policy


async def test_an_account_with_the_same_address_is_not_linked_silently(open_plane: Open, bao: BaoProvider) -> None:
    async with open_plane(of_bao(bao)) as plane:
        owner = await plane.user("Ada@Company.example")
        known = await me(owner)
        client = plane.client()
        away = await arrive(client, bao)
        assert away.headers["location"].startswith("/auth/oidc/choice?visit=")
        assert (await client.get("/api/auth/me")).status_code == 401
        page = await client.get(away.headers["location"], headers=HTML)
        assert "ada@company.example exists already" in page.text
        visit = query_of(away.headers["location"])["visit"]
        wrong = await client.post("/auth/oidc/link", data={"visit": visit, "password": "not this one"}, headers=HTML)
        assert (wrong.status_code, "is wrong" in wrong.text) == (422, True)
        assert PASSWORD not in wrong.text
        linked = await client.post("/auth/oidc/link", data={"visit": visit, "password": PASSWORD}, headers=HTML)
        assert (linked.status_code, linked.headers["location"]) == (303, "/settings/api-keys")
        assert (await me(client))["id"] == known["id"]
        assert ("account.link", f"issuer {bao.issuer}") in await recorded(plane)
        later = plane.client()
        await arrive(later, bao)
        assert (await me(later))["id"] == known["id"]


async def test_one_can_continue_as_a_new_account_instead(open_plane: Open, bao: BaoProvider) -> None:
    async with open_plane(of_bao(bao)) as plane:
        known = await me(await plane.user("ada@company.example"))
        client = plane.client()
        away = await arrive(client, bao)
        visit = query_of(away.headers["location"])["visit"]
        stranger = await plane.client().post("/auth/oidc/continue", data={"visit": visit}, headers=HTML)
        assert stranger.status_code == 400  # without the cookie of the choice
        done = await client.post("/auth/oidc/continue", data={"visit": visit}, headers=HTML)
        assert done.status_code == 303
        assert (await me(client))["id"] != known["id"]
        assert (await me(client))["email"] == "ada@company.example"
        again = await client.post("/auth/oidc/continue", data={"visit": visit}, headers=HTML)
        assert (again.status_code, again.headers["location"]) == (303, KEYS)  # used: nothing happens again
        assert (await client.get(f"/auth/oidc/choice?visit={visit}", headers=HTML)).headers["location"] == KEYS


async def test_somebody_whom_an_application_named_first_is_the_same_user_and_belongs_to_no_application(
    open_plane: Open, bao: BaoProvider, provisioned: Vault
) -> None:
    """An application whose first issuer is the provider makes a portal link for a subject of it."""
    async with open_plane(of_bao(bao)) as plane:
        client = plane.client()
        await arrive(client, bao)
        first = await me(client)
        db = Database(plane.settings.database_url)
        async with db.read() as connection:
            subject = (await connection.execute(select(identities.c.subject))).scalar_one()
        await erasure.delete_any(db, RowNumber(first["id"]))  # so that the provider's subject is new again
        async with resolver_at(plane.settings.database_url, provisioned.resolver, public_url=ORIGIN) as resolver:
            pair = Pair(ApiPlane(plane.app, plane.settings), resolver)
            shop = await pair.app(users=Users((Issuer(bao.issuer),), PORTAL.return_urls))
            browser, unused = await arrived(pair, shop, subject), await path_of(shop, subject)
            named = (await browser.get("/api/auth/me")).json()["id"]
            assert named != first["id"]
            await store(browser)
            await arrive(client, bao)
            assert f"Left through {shop.name}" in (await client.get(KEYS, headers=HTML)).text
            assert (await me(client))["id"] == named
            assert (await browser.get("/api/auth/me")).status_code == 401
            assert (await client.get(unused, headers=HTML)).status_code == 404
            assert (await link(shop, subject)).status_code == 403
        await db.close()


async def test_a_session_that_was_planted_does_not_become_signed_in(open_plane: Open, bao: BaoProvider) -> None:
    async with open_plane(of_bao(bao)) as plane:
        client = await plane.user()
        planted = client.cookies["keyman_session"]
        await arrive(client, bao)
        assert client.cookies["keyman_session"] != planted
        attacker = plane.client(cookies={"keyman_session": planted})
        assert (await attacker.get("/api/auth/me")).status_code == 401


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"domains": frozenset({"company.example"})}, True),
        ({"domains": frozenset({"example"})}, False),
        ({"domains": frozenset({"mycompany.example"})}, False),
        ({"signup_open": False}, False),
        ({"claim": Claim("name", "ada")}, True),
        ({"claim": Claim("name", "root")}, False),
    ],
)
async def test_only_those_whom_the_operator_wants_come_in(
    open_plane: Open, bao: BaoProvider, settings: dict[str, object], allowed: bool
) -> None:
    async with open_plane(of_bao(bao, **settings)) as plane:
        client = plane.client()
        back = await arrive(client, bao)
        assert back.status_code == (303 if allowed else 403)
        assert (await client.get("/api/auth/me")).status_code == (200 if allowed else 401)


async def test_two_tabs_do_not_disturb_each_other(open_plane: Open, bao: BaoProvider) -> None:
    async with open_plane(of_bao(bao)) as plane:
        client = plane.client()
        bao.person = "ada"
        first, second = [await leave(client, next=f"/settings/{page}") for page in ("account", "activity")]
        for url, page in ((second, "activity"), (first, "account")):
            back = await client.get(bao.log_in(url.partition("?")[2]), headers=HTML)
            assert back.headers["location"] == f"/settings/{page}"


async def test_a_browser_does_not_collect_cookies_without_end(open_plane: Open, bao: BaoProvider) -> None:
    async with open_plane(of_bao(bao)) as plane:
        client = plane.client()
        for _ in range(12):
            last = await leave(client)
        assert len(client.cookies) == 8
        bao.person = "ada"
        back = await client.get(bao.log_in(last.partition("?")[2]), headers=HTML)
        assert back.status_code == 303


async def test_the_callback_works_once_and_only_in_the_browser_that_left(open_plane: Open, bao: BaoProvider) -> None:
    async with open_plane(of_bao(bao)) as plane:
        client, victim = plane.client(), plane.client()
        bao.person = "ada"
        url = bao.log_in((await leave(client)).partition("?")[2])
        planted = await victim.get(url, headers=HTML)  # login CSRF: a link with the attacker's code
        assert planted.status_code == 400
        assert "Try again" in planted.text
        assert "set-cookie" not in planted.headers or "keyman_session=" not in planted.headers["set-cookie"]
        cookies = dict(client.cookies)
        assert (await client.get(url, headers=HTML)).status_code == 303
        replayed = await plane.client(cookies=cookies).get(url, headers=HTML)
        assert replayed.status_code == 400


async def test_who_comes_back_after_the_sign_in_gets_to_where_it_led(open_plane: Open, bao: BaoProvider) -> None:
    async with open_plane(of_bao(bao)) as plane:
        client = plane.client()
        bao.person = "ada"
        url = bao.log_in((await leave(client, next=ACTIVITY)).partition("?")[2])
        assert (await client.get(url, headers=HTML)).headers["location"] == ACTIVITY
        session = client.cookies["keyman_session"]
        cancelled = f"{CALLBACK}?error=access_denied&state={query_of(url)['state']}"
        for back in (url, cancelled):
            again = await client.get(back, headers=HTML)
            assert (again.status_code, again.headers["location"]) == (303, ACTIVITY)
        assert client.cookies["keyman_session"] == session
        assert (await client.get(url)).status_code == 400  # a program gets the problem
        other = f"{CALLBACK}?code=any&state=another"
        assert (await client.get(other, headers=HTML)).status_code == 400
        await client.post("/sign-out")
        assert (await client.get(url, headers=HTML)).status_code == 400


async def test_a_visit_that_has_ended_leads_to_no_other_site(open_plane: Open, bao: BaoProvider) -> None:
    async with open_plane(of_bao(bao)) as plane:
        client = plane.client()
        bao.person = "ada"
        url = bao.log_in((await leave(client, next=f"{ACTIVITY}?x={'y' * 600}")).partition("?")[2])
        assert len((await client.get(url, headers=HTML)).headers["location"]) > 600
        assert (await client.get(url, headers=HTML)).headers["location"] == KEYS  # too long for a cookie
        (name,) = [name for name in client.cookies if "_visit_" in name]
        for planted in ("done.%2F%2Fevil.example", "done.https%3A%2F%2Fevil.example", "done.", "done.%5Cevil"):
            client.cookies.set(name, planted, domain="localhost.local")
            cookies = {"keyman_session": client.cookies["keyman_session"], name: planted}
            again = await plane.client(cookies=cookies).get(url, headers=HTML)
            assert again.headers["location"] == KEYS, planted


async def test_a_provider_that_says_no_gets_a_page(open_plane: Open, bao: BaoProvider) -> None:
    async with open_plane(of_bao(bao)) as plane:
        client = plane.client()
        url = await leave(client, next="/settings/account")
        bao.person = None
        back = await client.get(bao.log_in(url.partition("?")[2]), headers={**HTML, "Accept-Language": "de"})
        assert back.status_code == 400
        assert "Anmeldung" in back.text
        assert re.search(r'href="/auth/oidc/start\?next=%2Fsettings', back.text)


async def test_without_a_provider_there_is_nothing(open_plane: Open) -> None:
    async with open_plane() as plane:
        for path in (START, CALLBACK):
            assert (await plane.client().get(path)).status_code == 404
        assert START not in (await plane.client().get("/sign-in", headers=HTML)).text
