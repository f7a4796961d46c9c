"""Portal links at work: an application makes one, and a browser arrives with it at the pages."""

from __future__ import annotations

import asyncio
import json
import re
from base64 import b64encode
from datetime import timedelta
from typing import Any

import httpx
import pytest
import time_machine
from sqlalchemy import func, select, update

from keyman.clock import now
from keyman.http.limit import writes_per_minute
from keyman.identity import applications, arrivals
from keyman.identity.tables import api_tokens, portal_links, users
from keyman.keys import erasure
from keyman.storage.transactions import Database, Unchecked
from keyman.values import ApplicationName, RowNumber
from tests.planes.management.api.harness import OPENAI_KEY
from tests.planes.resolver.pair import App, Pair
from tests.planes.resolver.test_portal_links import BACK, PORTAL, link
from tests.support.planes import ORIGIN, PASSWORD

pytestmark = pytest.mark.anyio

BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
FROM_ELSEWHERE = {"Accept": "text/html", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}


async def path_of(app: App, subject: str = "ada", **more: Any) -> str:
    made = await link(app, subject, **more)
    assert made.status_code == 201, made.text
    return str(made.json()["url"]).removeprefix(ORIGIN)


def cookie_of(answer: httpx.Response) -> str:
    (value,) = re.findall("keyman_session=([^;]+);", answer.headers["set-cookie"])
    return str(value)


async def press(pair: Pair, path: str, cookie: str | None = None) -> httpx.Response:
    """Press the button of the page that a link leads to."""
    return await pair.management.with_cookie(cookie).post(path, headers=BROWSER)


async def arrived(pair: Pair, app: App, subject: str = "ada", **more: Any) -> httpx.AsyncClient:
    """A browser that has arrived by a new link."""
    done = await press(pair, await path_of(app, subject, **more))
    assert (done.status_code, done.headers["location"]) == (303, "/settings/api-keys")
    return pair.management.with_cookie(cookie_of(done))


async def disable(db: Database, user_id: int) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(users).where(users.c.id == user_id).values(disabled_at=now()))


async def test_a_link_leads_to_a_page_and_its_button_to_the_keys(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    path = await path_of(shop, "user-42", name="Ada <b>", email="ada@shop.example")
    page = await shared_pair.management.client().get(path, headers=FROM_ELSEWHERE)
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "script-src" not in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "<script" not in page.text
    assert "hx-" not in page.text
    assert shop.name in page.text
    assert "Ada &lt;b&gt;" in page.text
    assert "close this page" in page.text
    assert "already signed in" not in page.text
    assert "set-cookie" not in page.headers
    done = await press(shared_pair, path)
    assert (done.status_code, done.headers["location"]) == (303, "/settings/api-keys")
    assert "HttpOnly" in done.headers["set-cookie"]
    assert "SameSite=lax" in done.headers["set-cookie"]
    assert "Max-Age=7200" in done.headers["set-cookie"]
    browser = shared_pair.management.with_cookie(cookie_of(done))
    keys = await browser.get("/settings/api-keys", headers=BROWSER)
    assert keys.status_code == 200
    assert f'href="{BACK}"' in keys.text
    assert f"Back to {shop.name}" in keys.text
    assert "Ada &lt;b&gt;" in keys.text
    assert "/settings/account" not in keys.text
    assert "/settings/access-tokens" not in keys.text
    assert (await browser.get("/api/auth/me")).json()["email"] == "ada@shop.example"
    stored = await browser.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})
    assert stored.status_code == 201
    user_id = (await browser.get("/api/auth/me")).json()["id"]
    assert await shop.gets(user_id=user_id, service="OPENAI") == OPENAI_KEY
    (first, *_) = [one for one in (await browser.get("/api/audit")).json() if one["action"] == "account.login"]
    assert (first["application"], first["actor"]) == (shop.name, "session")
    activity = await browser.get("/settings/activity", headers=BROWSER)
    assert f"from {shop.name}" in activity.text


async def test_the_pages_offer_only_the_services_that_the_application_may_use(shared_pair: Pair) -> None:
    shop = await shared_pair.app("OPENAI", "MISTRAL", users=PORTAL)
    browser = await arrived(shared_pair, shop)
    assert await offered(browser) == {"OPENAI", "MISTRAL"}
    refused = await browser.post("/settings/api-keys", data={"service": "OPENAI", "api_key": "x"}, headers=BROWSER)
    assert services_in(refused.text) == {"OPENAI", "MISTRAL"}
    path = await path_of(shop)
    async with shared_pair.management.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(portal_links).values(services=None))  # a link from before the upgrade
    everything = await offered(shared_pair.management.with_cookie(cookie_of(await press(shared_pair, path))))
    assert everything > {"OPENAI", "MISTRAL", "ANTHROPIC"}
    assert await offered(await shared_pair.management.user()) == everything


async def offered(browser: httpx.AsyncClient) -> set[str]:
    """The services of the form to add a key."""
    return services_in((await browser.get("/settings/api-keys/new", headers=BROWSER)).text)


def services_in(page: str) -> set[str]:
    return set(re.findall('<option value="([A-Z_]+)"', page))


@pytest.mark.parametrize(
    ("shown", "fields"),
    [("Ada", {"name": "Ada", "email": "a@b.example"}), ("a@b.example", {"email": "a@b.example"}), ("who-1", {})],
)
async def test_the_person_is_named_by_what_the_application_gave(
    shared_pair: Pair, shown: str, fields: dict[str, str]
) -> None:
    shop = await shared_pair.app(users=PORTAL)
    path = await path_of(shop, "who-1", **fields)
    page = await shared_pair.management.client().get(path, headers=BROWSER)
    assert f"<strong>{shown}</strong>" in page.text
    german = await shared_pair.management.client().get(path, headers={**BROWSER, "Accept-Language": "de"})
    assert f"API-Schlüssel für {shop.name}" in german.text


async def test_an_address_that_an_application_gave_is_only_shown(shared_pair: Pair) -> None:
    """It is that of an account, of two people at once, and of somebody who signs up later."""
    shop = await shared_pair.app(users=PORTAL)
    address, later = f"{shop.name}@example.com", f"later-{shop.name}@example.com"
    owner = await shared_pair.management.user(address)
    of_owner = (await owner.get("/api/auth/me")).json()["id"]
    ada, eve = await arrived(shared_pair, shop, email=address), await arrived(shared_pair, shop, "eve", email=address)
    found = [(await browser.get("/api/auth/me")).json() for browser in (ada, eve)]
    assert [one["email"] for one in found] == [address] * 2
    assert len({of_owner, *(one["id"] for one in found)}) == 3
    again = await arrived(shared_pair, shop, email=later, name="Ada")
    assert (await again.get("/api/auth/me")).json() == {**found[0], "email": later}
    body = {"email": later, "password": PASSWORD}
    assert (await shared_pair.management.client().post("/api/auth/login", json=body)).status_code == 401
    signed_up = await shared_pair.management.client().post("/api/auth/signup", json=body)
    assert signed_up.status_code == 201
    assert signed_up.json()["id"] != found[0]["id"]
    assert (await ada.get("/api/auth/me")).json()["id"] == found[0]["id"]


async def test_a_preview_uses_nothing_up_and_a_link_works_once(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    path = await path_of(shop)
    for _ in range(3):
        assert (await shared_pair.management.client().head(path)).status_code == 200
        assert (await shared_pair.management.client().get(path)).status_code == 200
    assert (await press(shared_pair, path)).status_code == 303
    assert (await press(shared_pair, path)).status_code == 404
    assert (await shared_pair.management.client().get(path, headers=BROWSER)).status_code == 404


async def test_all_links_that_do_not_count_are_alike(shared_pair: Pair) -> None:
    shop, gone = await shared_pair.app(users=PORTAL), await shared_pair.app(users=PORTAL)
    used, expired, of_revoked = await path_of(shop), await path_of(shop, "eve"), await path_of(gone)
    of_disabled, superseded = await link(shop, "bob"), await path_of(shop, "kim")
    for _ in range(5):
        assert (await link(shop, "kim")).status_code == 201
    await press(shared_pair, used)
    await applications.revoke(shared_pair.resolver.database, ApplicationName(gone.name))
    await disable(shared_pair.resolver.database, of_disabled.json()["user_id"])
    disabled = of_disabled.json()["url"].removeprefix(ORIGIN)
    paths = [used, of_revoked, disabled, superseded, "/portal/unknown", f"{used}x", "/portal/%00", "/portal/%ff"]
    pages = []
    for method in ("GET", "POST"):
        pages += [await shared_pair.management.client().request(method, path, headers=BROWSER) for path in paths]
        with time_machine.travel(now() + timedelta(minutes=5, seconds=1), tick=False):
            pages.append(await shared_pair.management.client().request(method, expired, headers=BROWSER))
    assert {(page.status_code, page.text) for page in pages} == {(404, pages[0].text)}
    assert "<script" not in pages[0].text
    assert not [page for page in pages if "set-cookie" in page.headers]


async def test_the_newest_five_links_of_a_user_work(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    paths = [await path_of(shop) for _ in range(6)]
    client = shared_pair.management.client()
    assert [(await client.get(path)).status_code for path in paths] == [404, 200, 200, 200, 200, 200]


async def test_of_ten_browsers_with_one_link_one_arrives(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    path = await path_of(shop)
    answers = await asyncio.gather(*(press(shared_pair, path) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [303] + [404] * 9


async def test_no_page_of_another_site_presses_the_button(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    path = await path_of(shop)
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ):
        refused = await shared_pair.management.client().post(path, headers=headers)
        assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
    assert (await press(shared_pair, path)).status_code == 303


async def test_a_link_of_the_attackers_in_the_victims_browser_says_so_and_ends_the_victims_session(
    shared_pair: Pair,
) -> None:
    """The page says whose account it is before anybody goes on. The victim's own session is not used for it."""
    victim = await shared_pair.management.user()
    cookie = victim.cookies["keyman_session"]
    shop = await shared_pair.app(users=PORTAL)
    path = await path_of(shop, "attacker", name="Eve")
    page = await shared_pair.management.with_cookie(cookie).get(path, headers=FROM_ELSEWHERE)
    assert "Eve" in page.text
    assert "already signed in" in page.text
    assert "close this page" in page.text
    me = shared_pair.management.with_cookie(cookie)
    assert (await me.get("/api/auth/me")).status_code == 200  # the page by itself has ended nothing
    done = await press(shared_pair, path, cookie)
    assert cookie_of(done) != cookie
    assert (await me.get("/api/auth/me")).status_code == 401
    attacker = shared_pair.management.with_cookie(cookie_of(done))
    assert (await attacker.get("/api/auth/me")).json()["email"] is None


async def test_a_planted_cookie_does_not_become_a_session(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    done = await press(shared_pair, await path_of(shop), "planted")
    assert cookie_of(done) != "planted"
    assert (await shared_pair.management.with_cookie("planted").get("/api/auth/me")).status_code == 401


ALLOWED = {
    ("GET", "/api/auth/me"),
    ("POST", "/api/auth/logout"),
    ("GET", "/api/services"),
    ("GET", "/api/audit"),
    ("GET", "/settings"),
    ("GET", "/settings/activity"),
    ("GET", "/settings/shortcuts"),  # a dialog of these pages, which says nothing of anybody
    ("POST", "/sign-out"),
}


def is_for_all(method: str, path: str) -> bool:
    public = ("/api/auth/signup", "/api/auth/login", "/sign-", "/problems", "/docs", "/static", "/portal", "/livez")
    return path == "/" or path.startswith((*public, "/readyz", "/metrics", "/auth/oidc", "/account-deleted"))


def litestar_of(pair: Pair) -> Any:
    app: Any = pair.management.app
    while not hasattr(app, "routes"):
        app = getattr(app, "_app", None) or app._litestar  # the layers around Litestar
    return app


async def test_a_portal_session_that_asks_for_anything_else_is_refused(shared_pair: Pair) -> None:
    """The routes are those of the plane, so that a new one is refused until somebody allows it."""
    shop = await shared_pair.app(users=PORTAL)
    browser = await arrived(shared_pair, shop)
    asked = 0
    for route in litestar_of(shared_pair).routes:
        for method in route.methods - {"OPTIONS", "HEAD"}:
            path = re.sub(r"\{[^}]*\}", "1", route.path)
            is_keys = path.startswith(("/api/keys", "/settings/api-keys"))
            if is_for_all(method, path) or is_keys or (method, path) in ALLOWED:
                continue
            answer = await browser.request(method, path, headers=BROWSER)
            assert answer.status_code == 403, (method, path, answer.status_code)
            asked += 1
    assert asked >= 10
    for method, path in sorted(ALLOWED - {("POST", "/sign-out"), ("POST", "/api/auth/logout")}):
        assert (await browser.request(method, path, headers=BROWSER)).status_code in (200, 303), path


async def test_every_page_of_a_portal_session_names_application_and_person_and_leads_back(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    browser = await arrived(shared_pair, shop, name="Ada Lovelace")
    key = (await browser.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})).json()
    shown = set()
    for route in litestar_of(shared_pair).routes:
        path = re.sub(r"\{[^}]*\}", str(key["id"]), route.path)
        if "GET" not in route.methods or not path.startswith("/settings/"):
            continue
        page = await browser.get(path, headers=BROWSER)
        if page.status_code == 200 and "<main" in page.text:
            shown.add(path)
            for text in (f"Back to {shop.name}", f'href="{BACK}"', "Ada Lovelace"):
                assert text in page.text, (path, text)
    assert {"/settings/api-keys", "/settings/activity", "/settings/api-keys/new"} <= shown


@pytest.mark.parametrize(("path", "status"), [("/sign-out", 303), ("/api/auth/logout", 204)])
async def test_a_person_can_leave(shared_pair: Pair, path: str, status: int) -> None:
    shop = await shared_pair.app(users=PORTAL)
    browser = await arrived(shared_pair, shop)
    left = await browser.post(path, headers=BROWSER)
    assert left.status_code == status
    if status == 303:
        assert left.headers["location"] == "/portal"
        assert "You have left" in (await browser.get("/portal", headers=BROWSER)).text
    assert (await browser.get("/api/auth/me")).status_code == 401


async def test_the_page_after_leaving_leads_back_to_the_application(shared_pair: Pair) -> None:
    browser = await arrived(shared_pair, await shared_pair.app(users=PORTAL))
    left = await browser.post("/sign-out", headers=BROWSER)
    (header,) = [each for each in left.headers.get_list("set-cookie") if each.startswith("keyman_session_left=")]
    assert {"HttpOnly", "Max-Age=600", "Path=/", "SameSite=lax"} <= {part.strip() for part in header.split(";")}
    value = header.partition("=")[2].partition(";")[0].strip('"')

    async def page(cookie: str) -> str:
        anybody = shared_pair.management.client(headers={**BROWSER, "Cookie": f"keyman_session_left={cookie}"})
        return (await anybody.get("/portal")).text

    assert f'href="{BACK}"' in await page(value)
    assert "Back to" in await page(value)
    for planted in (["shop", "javascript:alert(1)"], ["shop", "http://evil.example/"], ["<b>shop", BACK], [], "x", 1):
        text = await page(b64encode(json.dumps(planted).encode()).decode())
        assert "You have left" in text
        assert "Back to" not in text, planted
    for broken in ("", "%", "AAAA", f"{value}; keyman_session_left={value}"):
        assert "Back to" not in await page(broken), broken


async def test_a_portal_session_ends_after_half_an_hour_of_rest_and_after_two_hours(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    with time_machine.travel(now(), tick=False) as clock:
        browser = await arrived(shared_pair, shop)
        for _ in range(4):
            clock.shift(timedelta(minutes=29))
            assert (await browser.get("/api/auth/me")).status_code == 200
        clock.shift(timedelta(minutes=4))
        assert (await browser.get("/api/auth/me")).status_code == 401
        other = await arrived(shared_pair, shop)
        clock.shift(timedelta(minutes=30))
        ended = await other.get("/settings/api-keys", headers=BROWSER)
        assert ended.status_code == 401
        assert "This visit has ended" in ended.text


async def test_it_ends_at_once_with_its_application_and_with_its_user(shared_pair: Pair) -> None:
    shop, other = await shared_pair.app(users=PORTAL), await shared_pair.app(users=PORTAL)
    one, two = await arrived(shared_pair, shop), await arrived(shared_pair, other)
    user_id = (await two.get("/api/auth/me")).json()["id"]
    await applications.revoke(shared_pair.resolver.database, ApplicationName(shop.name))
    await disable(shared_pair.resolver.database, user_id)
    for browser in (one, two):
        assert (await browser.get("/api/auth/me")).status_code == 401
        body = {"service": "OPENAI", "api_key": OPENAI_KEY}
        assert (await browser.post("/api/keys", json=body)).status_code == 401


async def test_it_ends_with_the_account_and_so_do_unused_links(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    browser, unused = await arrived(shared_pair, shop), await path_of(shop)
    assert (await browser.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})).status_code == 201
    gone = (await browser.get("/api/auth/me")).json()["id"]
    await erasure.delete_any(shared_pair.resolver.database, RowNumber(gone))
    assert (await browser.get("/api/auth/me")).status_code == 401
    assert (await press(shared_pair, unused)).status_code == 404
    assert (await shop.ask(subject="ada", service="OPENAI")).status_code == 404
    new = await arrived(shared_pair, shop)
    assert (await new.get("/api/auth/me")).json()["id"] != gone
    assert (await new.get("/api/keys")).json() == []


@pytest.mark.parametrize("ended", ["application", "user"])
async def test_what_was_disabled_before_the_body_came_stores_nothing(shared_pair: Pair, ended: str) -> None:
    shop = await shared_pair.app(users=PORTAL)
    browser = await arrived(shared_pair, shop)
    user_id = (await browser.get("/api/auth/me")).json()["id"]

    async def body() -> Any:
        yield b'{"service": "OPENAI", '
        if ended == "user":
            await disable(shared_pair.resolver.database, user_id)
        else:
            await applications.revoke(shared_pair.resolver.database, ApplicationName(shop.name))
        yield f'"api_key": "{OPENAI_KEY}"}}'.encode()

    answer = await browser.post("/api/keys", content=body(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 401


async def test_a_portal_user_gets_no_token_and_no_password(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    browser = await arrived(shared_pair, shop)
    user_id = (await browser.get("/api/auth/me")).json()["id"]
    for path in ("/settings/access-tokens", "/settings/account", "/api/tokens"):
        refused = await browser.post(path, headers=BROWSER, json={"name": "x"})
        assert refused.status_code == 403
    async with shared_pair.resolver.database.read() as connection:
        found = select(func.count()).select_from(api_tokens).where(api_tokens.c.user_id == user_id)
        assert (await connection.execute(found)).scalar_one() == 0


async def test_housekeeping_deletes_expired_links_only(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    user_id = (await link(shop, "old")).json()["user_id"]
    with time_machine.travel(now() + timedelta(minutes=4), tick=False):
        await link(shop, "old")
    with time_machine.travel(now() + timedelta(minutes=6), tick=False):
        await arrivals.delete_expired(shared_pair.management.database)
    async with shared_pair.resolver.database.read() as connection:
        found = select(func.count()).select_from(portal_links).where(portal_links.c.user_id == user_id)
        assert (await connection.execute(found)).scalar_one() == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/settings/account", 403),
        ("GET", "/settings/access-tokens", 403),
        ("POST", "/settings/access-tokens", 403),
        ("GET", "/settings/api-keys/999999999/edit", 404),
        ("GET", "/settings/nothing", 404),
        ("GET", "/nothing/at/all", 404),
        ("DELETE", "/settings/activity", 405),
    ],
)
async def test_a_problem_page_leads_back_to_the_application(
    shared_pair: Pair, method: str, path: str, status: int
) -> None:
    shop = await shared_pair.app(users=PORTAL)
    browser = await arrived(shared_pair, shop, name="Ada <b>")
    page = await browser.request(method, path, headers=BROWSER)
    assert page.status_code == status
    assert f'<a href="{BACK}">Back to {shop.name}</a>' in page.text
    assert f"Keys of Ada &lt;b&gt; for {shop.name}" in page.text
    assert "Back to your keys" in page.text
    assert "Back to your tokens" not in page.text
    german = await browser.request(method, path, headers={**BROWSER, "Accept-Language": "de"})
    assert f"Zurück zu {shop.name}" in german.text


async def test_too_many_changes_lead_back_to_the_application(
    shared_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = await shared_pair.app(users=PORTAL)
    browser = await arrived(shared_pair, shop)
    monkeypatch.setattr(litestar_of(shared_pair).state, "write_limit", writes_per_minute(1))
    pages = [await browser.post("/settings/api-keys", headers=BROWSER) for _ in range(2)]
    page = pages[-1]
    assert page.status_code == 429
    assert f'<a href="{BACK}">Back to {shop.name}</a>' in page.text


async def test_the_problem_pages_of_others_lead_to_no_application(shared_pair: Pair) -> None:
    user = await shared_pair.management.user()
    ended = shared_pair.management.with_cookie("ended")
    for browser in (shared_pair.management.client(), user, ended):
        page = await browser.get("/settings/nothing", headers=BROWSER)
        assert page.status_code == 404
        assert 'class="visit"' not in page.text
