"""`keyman.planes.management.web.display` as bytes: theme, language and shortcuts, kept by the browser."""

from __future__ import annotations

import re
from dataclasses import replace

import httpx
import pytest

from keyman.http.exchange import Exchange
from keyman.planes.management.web.display import THEMES, Display, display_cookie, display_of
from tests.http.test_edge import settings
from tests.planes.management.api.harness import ApiPlane
from tests.planes.management.web.moves import ACCOUNT, KEYS

pytestmark = pytest.mark.anyio

BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
COOKIE = "keyman_session_display"


def exchange(cookie: str) -> Exchange:
    return Exchange("-", None, "GET", "/", {"cookie": cookie})


async def person(plane: ApiPlane) -> httpx.AsyncClient:
    client = await plane.user()
    client.headers.update(BROWSER)
    return client


@pytest.mark.parametrize("theme", ["", *THEMES])
@pytest.mark.parametrize("language", ["", "de"])
@pytest.mark.parametrize("has_shortcuts", [True, False])
def test_what_is_chosen_is_read_from_its_cookie(theme: str, language: str, has_shortcuts: bool) -> None:
    chosen = Display(theme, language, has_shortcuts)
    cookie = display_cookie(chosen, settings())
    assert cookie.httponly
    assert cookie.samesite == "lax"
    assert display_of(exchange(f"a=b; {cookie.key}={cookie.value}"), settings()) == chosen


def test_over_https_no_other_host_can_plant_the_cookie() -> None:
    cookie = display_cookie(Display(), replace(settings(), public_url="https://keys.example.com"))
    assert cookie.key == f"__Host-{COOKIE}"
    assert cookie.secure
    assert (cookie.path, cookie.domain) == ("/", None)


@pytest.mark.parametrize(
    "cookie",
    ["", f"{COOKIE}=", f"{COOKIE}=pink", f'{COOKIE}=dark"><b>', f"{COOKIE}=dark; {COOKIE}=light", f"{COOKIE}=......"],
)
def test_a_cookie_that_means_nothing_is_no_choice(cookie: str) -> None:
    assert display_of(exchange(cookie), settings()) == Display()


async def test_a_choice_holds_from_the_next_page_on_also_for_a_visitor(shared: ApiPlane) -> None:
    ada = await person(shared)
    assert "data-theme" not in (await ada.get(KEYS)).text
    done = await ada.post(f"{ACCOUNT}/display", data={"theme": "dark", "language": "de", "shortcuts": "on"})
    assert (done.status_code, done.headers["location"]) == (303, f"{ACCOUNT}?done=display")
    page = await ada.get(done.headers["location"])
    assert '<html lang="de" data-theme="dark">' in page.text
    assert '<meta name="color-scheme" content="dark">' in page.text
    assert page.headers["content-language"] == "de"
    assert '<option value="dark" selected>' in page.text
    assert "Ihre Auswahl" in page.text
    await ada.post("/sign-out", data={"a": "b"})
    for path in ("/sign-in", "/problems", "/nowhere"):
        assert '<html lang="de" data-theme="dark">' in (await ada.get(path)).text, path


async def test_the_choice_of_the_browser_comes_back(shared: ApiPlane) -> None:
    ada = await person(shared)
    await ada.post(f"{ACCOUNT}/display", data={"theme": "light", "language": "en"})
    assert "data-shortcuts" not in (await ada.get(KEYS)).text
    assert '<html lang="en" data-theme="light">' in (await ada.get(KEYS, headers={"Accept-Language": "de"})).text
    await ada.post(f"{ACCOUNT}/display", data={"theme": "", "language": "", "shortcuts": "on"})
    page = await ada.get(KEYS, headers={"Accept-Language": "de"})
    assert '<html lang="de">' in page.text
    assert "data-shortcuts" in page.text


async def test_nothing_else_can_be_chosen(shared: ApiPlane) -> None:
    ada = await person(shared)
    done = await ada.post(f"{ACCOUNT}/display", data={"theme": '"><b>', "language": "xx", "shortcuts": "maybe"})
    assert re.search(rf"{COOKIE}=\.\.off;", done.headers["set-cookie"])
    ada.cookies.clear()
    page = await ada.get("/sign-in", headers={"Cookie": f"{COOKIE}=<b>.<b>.<b>"})
    assert "<b>" not in page.text


async def test_a_page_of_another_site_changes_no_choice(shared: ApiPlane) -> None:
    ada = await person(shared)
    foreign = {**BROWSER, "Sec-Fetch-Site": "cross-site"}
    refused = await ada.post(f"{ACCOUNT}/display", data={"theme": "dark"}, headers=foreign)
    assert refused.status_code == 403
    assert "set-cookie" not in refused.headers
