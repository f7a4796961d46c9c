"""The pages as bytes: who gets which page, its content, and what a form does with any input."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest
from argon2 import PasswordHasher
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update
from sqlalchemy.engine import make_url

from keyman.config.vault import VaultSettings
from keyman.identity.passwords import Passwords
from keyman.keys.tables import api_keys
from keyman.planes.management.web.pages import HOME, own_page
from keyman.providers.pasted import bare
from keyman.secret import Secret
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import ApiPlane, api_plane_at, fresh_plane_at
from tests.providers.pastes import BODY as PASTED_BODY
from tests.providers.pastes import PASTES
from tests.providers.test_pasted import message_for
from tests.support.fast import examples
from tests.support.planes import ORIGIN, PASSWORD, Vault

pytestmark = pytest.mark.anyio

VALUE = "sk-hq2v9mXbT0c7eUKwN4Rd1234"
OTHER = "csk-0f1e2d3c4b5a69788796a5b4c3d2e1f0"  # pragma: allowlist secret
"""Another key, which somebody types in the wrong field."""

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Site": "same-origin"}

SETTINGS = (
    "/settings/api-keys",
    "/settings/api-keys/new",
    "/settings/access-tokens",
    "/settings/access-tokens/new",
    "/settings/activity",
    "/settings/account",
    "/settings/account/delete",
)


@pytest.fixture(scope="module")
async def page_plane(
    tmp_path_factory: pytest.TempPathFactory, provisioned: Vault, quick_passwords: PasswordHasher
) -> AsyncIterator[ApiPlane]:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('pages')}/keyman.db")
    async with fresh_plane_at(url, provisioned.settings, Passwords(quick_passwords)) as running:
        yield running


async def person(plane: ApiPlane) -> httpx.AsyncClient:
    """Somebody signed in, with a browser that follows no redirect by itself."""
    client = await plane.user()
    client.headers.update(BROWSER)
    return client


def field(page: httpx.Response, name: str) -> str:
    """The value of a hidden field."""
    found = re.search(rf'<input type="hidden" name="{name}" value="([^"]*)"', page.text)
    assert found, name
    return html.unescape(found[1])


async def add(client: httpx.AsyncClient, **fields: str) -> int:
    """Store a key by the form; its id."""
    answer = await client.post(HOME, data={"service": "OPENAI", "api_key": VALUE, **fields})
    assert answer.status_code == 303, answer.text
    return int(answer.headers["location"].partition("saved=")[2].partition("&")[0])


async def send(client: httpx.AsyncClient, path: str, fields: dict[str, str]) -> httpx.Response:
    """A form as a browser sends it, also one without a field."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    return await client.post(path, content=urlencode(fields), headers=form)


async def keys(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get("/api/keys")).json()
    return found


# --- who gets in


async def test_the_front_door_leads_in_or_to_the_sign_in(page_plane: ApiPlane) -> None:
    visitor, ada = page_plane.client(headers=BROWSER), await person(page_plane)
    assert (await visitor.get("/")).headers["location"] == "/sign-in"
    for path in ("/", "/sign-in", "/sign-up", "/settings"):
        answer = await ada.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, HOME)


@pytest.mark.parametrize("path", [*SETTINGS, "/settings/api-keys/1/edit", "/settings/api-keys/1/delete"])
async def test_a_page_that_needs_an_account_is_the_sign_in_that_leads_back_to_it(
    page_plane: ApiPlane, path: str
) -> None:
    visitor = page_plane.client(headers=BROWSER)
    page = await visitor.get(f"{path}?q=a%26b")
    assert page.status_code == 401
    assert page.headers["www-authenticate"] == "Bearer"
    assert "<h1" in page.text
    assert field(page, "back") == f"{path}?q=a%26b"
    ada = await person(page_plane)
    email = (await ada.get("/api/auth/me")).json()["email"]
    form = {"email": email, "password": PASSWORD, "back": field(page, "back")}
    assert (await visitor.post("/sign-in", data=form)).headers["location"] == f"{path}?q=a%26b"
    assert (await visitor.get("/settings/account")).status_code == 200


@pytest.mark.parametrize("path", [*SETTINGS, "/settings/api-keys/1/edit", "/nowhere"])
async def test_a_client_that_does_not_accept_html_gets_a_problem_in_json(page_plane: ApiPlane, path: str) -> None:
    for accept in ("*/*", "application/json", ""):
        answer = await page_plane.client(headers={"Accept": accept}).get(path)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code in (401, 404)


async def test_the_api_speaks_json_to_browsers_too(page_plane: ApiPlane) -> None:
    visitor = page_plane.client(headers=BROWSER)
    for method, path in (("GET", "/api/keys"), ("GET", "/api/nothing"), ("DELETE", "/api/keys")):
        answer = await visitor.request(method, path)
        assert answer.headers["content-type"] == "application/problem+json"


async def test_a_token_opens_pages_of_its_scopes_and_never_the_account(page_plane: ApiPlane) -> None:
    script = await page_plane.token(await page_plane.user(), "keys:read")
    script.headers.update(BROWSER)
    assert (await script.get(HOME)).status_code == 200
    for path in ("/settings/api-keys/new", "/settings/access-tokens", "/settings/activity", "/settings/account"):
        assert (await script.get(path)).status_code == 403
    assert (await send(script, "/settings/account/sessions/others/end", {})).status_code == 403


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"email": "", "password": ""},
        {"email": "nobody@example.com"},
        {"email": "not an address", "password": PASSWORD},
        {"email": "nobody@example.com", "password": "a wrong password"},
        {"email": "nobody@example.com", "password": "x" * 5000},
    ],
)
async def test_a_refused_sign_in_comes_back_with_the_address_and_without_the_password(
    page_plane: ApiPlane, form: dict[str, str]
) -> None:
    page = await send(page_plane.client(headers=BROWSER), "/sign-in", form)
    assert page.status_code in (401, 422)
    assert 'class="fault"' in page.text or 'id="banner"' in page.text
    assert f'value="{form.get("email", "")}"' in page.text
    assert form.get("password") is None or not form["password"] or form["password"] not in page.text
    assert "set-cookie" not in page.headers


async def test_sign_up_closed_is_said_on_a_page(
    page_plane: ApiPlane, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    url = page_plane.settings.database_url
    async with api_plane_at(url, provisioned.settings, Passwords(quick_passwords), signup_open=False) as closed:
        visitor = closed.client(headers=BROWSER)
        page = await visitor.get("/sign-up")
        assert (page.status_code, "Sign-up is closed" in page.text) == (403, True)
        assert "Sign up" not in (await visitor.get("/sign-in")).text
        answer = await visitor.post("/sign-up", data={"email": "a@example.com", "password": PASSWORD})
        assert answer.status_code == 403


async def test_without_vault_the_form_says_so_and_the_list_works(
    page_plane: ApiPlane, quick_passwords: PasswordHasher
) -> None:
    away = VaultSettings("http://127.0.0.1:9", role_id="r", secret_id=Secret("s"))
    ada = await person(page_plane)
    await add(ada, name="from before")
    async with api_plane_at(page_plane.settings.database_url, away, Passwords(quick_passwords)) as plane:
        again = plane.client(headers=BROWSER)
        again.cookies.update(ada.cookies)
        refused = await again.post(HOME, data={"service": "OPENAI", "api_key": VALUE, "name": "never stored"})
        assert refused.status_code == 503
        assert "We could not save your key. Nothing was stored. Try again." in refused.text
        assert 'value="never stored"' in refused.text
        assert VALUE not in refused.text
        page = await again.get(HOME)
        assert (page.status_code, "from before" in page.text, "never stored" in page.text) == (200, True, False)


async def test_a_mistake_of_our_own_is_a_page_that_shows_only_the_request_id(
    page_plane: ApiPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await person(page_plane)
    monkeypatch.setattr("keyman.keys.listing.list_own", None)
    page = await ada.get(HOME)
    assert page.status_code == 500
    assert "Something went wrong on our side" in page.text
    assert page.headers["x-request-id"] in page.text
    assert "NoneType" not in page.text


async def test_signing_out_ends_the_session_on_the_server(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    cookie = ada.cookies["keyman_session"]
    assert (await ada.post("/sign-out")).headers["location"] == "/sign-in"
    again = page_plane.client(headers=BROWSER, cookies={"keyman_session": cookie})
    page = await again.get(HOME)
    assert page.status_code == 401
    assert "The session has ended." in page.text


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/",
        "//evil.example/settings",
        "/settings//evil.example",
        "/\\evil.example",
        "/settings\\..\\..",
        "javascript:alert(1)",
        "/settings\r\nSet-Cookie: a=b",
        "/settings/\u0000",
        "/api/keys",
        "settings",
        "",
    ],
)
async def test_nobody_is_led_away_after_signing_in(page_plane: ApiPlane, url: str) -> None:
    ada = await person(page_plane)
    email = (await ada.get("/api/auth/me")).json()["email"]
    form = {"email": email, "password": PASSWORD, "back": url}
    assert (await ada.post("/sign-in", data=form)).headers["location"] == HOME


@pytest.mark.parametrize("end", ["/../x", "/..", "/..?a", "/.#a", "/a/%2e%2E/x", "/.%2e/x", "//x", "/\\x"])
def test_own_page_is_no_path_that_a_browser_takes_for_another(end: str) -> None:
    assert own_page(f"/settings{end}") == HOME
    assert own_page("/settings/api-keys?q=..%2Fa..b") != HOME


@given(st.text())
def test_own_page_is_a_path_of_the_settings_whatever_it_is_given(url: str) -> None:
    for made in (own_page(url), own_page(f"/settings{url}")):
        assert re.fullmatch(r"/settings[!-~]*", made)
        assert "//" not in made
        assert "\\" not in made


async def test_a_form_of_another_site_is_refused_with_a_page(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    page = await ada.post(HOME, data={"service": "OPENAI", "api_key": VALUE}, headers={"Sec-Fetch-Site": "cross-site"})
    assert page.status_code == 403
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert VALUE not in page.text
    assert await keys(ada) == []


# --- what every page is


async def test_every_page_keeps_its_promises_to_the_browser(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    key = await add(ada)
    nonces = set()
    pages = (*SETTINGS, f"{HOME}/{key}/edit", f"{HOME}/{key}/delete", "/nowhere", "/problems", "/problems/forbidden")
    for path in pages:
        page = await ada.get(path)
        assert page.headers["cache-control"] == "no-store"
        policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
        nonces.add(policy["script-src"])
        assert re.fullmatch("'nonce-[A-Za-z0-9_-]{22}'", policy.pop("script-src"))
        assert policy == {
            "default-src": "'none'",
            "style-src": "'self'",
            "img-src": "'self'",
            "connect-src": "'self'",
            "form-action": "'self'",
            "frame-ancestors": "'none'",
            "base-uri": "'none'",
            "require-trusted-types-for": "'script'",
            "trusted-types": "htmx",
        }
        assert page.headers["referrer-policy"] == "same-origin"
        assert page.headers["cross-origin-opener-policy"] == "same-origin"
        assert page.headers["cross-origin-resource-policy"] == "same-origin"
        assert "clipboard-write=(self)" in page.headers["permissions-policy"]
        assert "strict-transport-security" not in page.headers
        # Nothing that a strict policy would refuse: no script and no style in the page itself.
        assert not re.search(r"<script(?![^>]* src=)|<style|\son[a-z]+=|\sstyle=|javascript:", page.text)
        # The body has one, too, for what the others inherit from it, and so has the form of each row.
        asking = sum(page.text.count(each) for each in ("hx-get=", "hx-post=", 'class="menu"'))
        assert asking + 1 == page.text.count("hx-nonce=")
    assert len(nonces) == len(pages)


async def test_behind_https_browsers_get_hsts(
    page_plane: ApiPlane, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    url, public = page_plane.settings.database_url, "https://keys.example.com"
    async with api_plane_at(url, provisioned.settings, Passwords(quick_passwords), public_url=public) as secure:
        answer = await secure.client(headers=BROWSER).post(
            "/sign-up", data={"email": "https@example.com", "password": PASSWORD}
        )
        assert answer.headers["strict-transport-security"].startswith("max-age=63072000")
        assert "; Secure" in answer.headers["set-cookie"]


MARKUP = st.sampled_from(
    ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'--><b>", "{{ 7*7 }}", "{% x %}", "&lt;", "</td>"]
)


@settings(max_examples=examples(40))  # an account, a key and eight pages each; the marks themselves are few
@given(label=MARKUP | st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=60))
async def test_a_label_is_text_wherever_it_is_shown(page_plane: ApiPlane, label: str) -> None:
    ada = await person(page_plane)
    key = await add(ada, name=label)
    stored = (await keys(ada))[0]["name"]
    assert stored in (label, label.strip())
    paths = (HOME, f"{HOME}/{key}/edit", f"{HOME}/{key}/delete")
    with_label = [(await ada.get(path)).text for path in paths]
    await ada.patch(f"/api/keys/{key}", json={"name": "plain"})
    with_plain = [(await ada.get(path)).text for path in paths]
    for labelled, plain in zip(with_label, with_plain, strict=True):
        # The same elements and as many quotes as with a label of letters: nothing of it was taken for markup.
        assert re.findall(r"<[^\s>]*", labelled) == re.findall(r"<[^\s>]*", plain)
        assert labelled.count('"') == plain.count('"')


# --- keys


async def test_a_form_stores_replaces_and_deletes_a_key_and_says_so_once(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    key = await add(ada, name=" production chat ", expires_at="2031-05-06")
    (stored,) = await keys(ada)
    assert (stored["id"], stored["service"], stored["last_4_chars"]) == (key, "OPENAI", "sk-...1234")
    assert (stored["name"].strip(), stored["expires_at"]) == ("production chat", "2031-05-06T23:59:59Z")
    page = await ada.get(f"{HOME}?saved={key}&done=created")
    assert f'id="key-{key}" class="fresh"' in page.text
    assert " production chat  is stored." in page.text
    form = await ada.get(f"{HOME}/{key}/edit")
    assert 'value="2031-05-06"' in form.text
    changed = {
        "name": "other",
        "expires_at": "2031-05-06",
        "api_key": "",
        "etag": field(form, "etag").replace("&#34;", '"'),
    }
    assert (await ada.post(f"{HOME}/{key}/edit", data=changed)).status_code == 303
    (after,) = await keys(ada)
    assert (after["name"], after["expires_at"], after["last_4_chars"]) == ("other", stored["expires_at"], "sk-...1234")
    replaced = {"name": "other", "expires_at": "", "api_key": " sk-Zt81LqoPw5aYc3hVn6Xe9876\n"}
    assert (await ada.post(f"{HOME}/{key}/edit", data=replaced)).status_code == 303
    (after,) = await keys(ada)
    assert (after["expires_at"], after["last_4_chars"]) == (None, "sk-...9876")
    assert (await send(ada, f"{HOME}/{key}/delete", {})).headers["location"] == f"{HOME}?saved={key}&done=deleted"
    assert await keys(ada) == []


async def test_an_exact_expiry_outlives_an_edit_of_the_label_even_when_it_is_past(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    soon = datetime.now(UTC) + timedelta(seconds=0.4)
    body = {"service": "OPENAI", "api_key": VALUE, "expires_at": soon.isoformat()}
    key = (await ada.post("/api/keys", json=body)).json()
    day = key["expires_at"][:10]
    form = {"name": "x", "expires_at": day, "shown_name": "", "shown_expires_at": day, "api_key": ""}
    assert (await ada.post(f"{HOME}/{key['id']}/edit", data=form)).status_code == 303
    (after,) = await keys(ada)
    assert (after["name"], after["expires_at"]) == ("x", key["expires_at"])


REFUSED: list[tuple[dict[str, str], str]] = [
    ({}, "Service is missing."),
    ({"service": "OPENAI"}, "API key is missing."),
    ({"service": "OPENAI", "api_key": "   "}, "API key must not be empty."),
    ({"service": "OPENAI", "api_key": VALUE, "name": f"my {VALUE}"}, "Label must not contain the key itself"),
    ({"service": "OPENAI", "api_key": VALUE, "name": f"no {OTHER}"}, "Label must not contain what looks like a key"),
    ({"service": "OPENAI", "api_key": "sk-few"}, "API key must be 8 to 8,192 characters long."),
    ({"service": "OPENAI", "api_key": "x" * 8193}, "API key must be 8 to 8,192 characters long."),
    ({"service": "OPENAI", "api_key": "sk-c4n4ry\u00e4\u00f6\u00fc"}, "API key must contain only printable ASCII"),
    ({"service": "OPENAI", "api_key": "sk-ant-c4n4ry-c4n4ry"}, "API key looks like a key of Anthropic, not of OpenAI"),
    ({"service": "OPENAI", "api_key": "sk-...1234"}, "API key is a mask, which shows only the ends of a key"),
    ({"service": "NOWHERE", "api_key": VALUE}, "Service is not a service of the catalogue"),
    ({"service": "openai", "api_key": VALUE}, "Service must be a service of the catalogue"),
    ({"service": "OPENAI", "api_key": VALUE, "name": "x" * 101}, "Label must be at most 100 characters long."),
    ({"service": "OPENAI", "api_key": VALUE, "name": "a\u202eb"}, "Label must not contain control characters"),
    ({"service": "OPENAI", "api_key": VALUE, "expires_at": "2001-01-01"}, "Expires must be in the future."),
    ({"service": "OPENAI", "api_key": VALUE, "expires_at": "tomorrow"}, "Expires must be a date"),
    ({"service": "OPENAI", "api_key": VALUE, "expires_at": "2031-02-30"}, "Expires must be a date"),
]


@pytest.mark.parametrize(("form", "words"), REFUSED)
async def test_what_is_refused_stands_beside_its_field_and_only_the_key_is_lost(
    page_plane: ApiPlane, form: dict[str, str], words: str
) -> None:
    ada = await person(page_plane)
    page = await send(ada, HOME, form)
    assert page.status_code == 422
    assert words in page.text
    assert 'aria-invalid="true"' in page.text
    value = form.get("api_key", "").strip()
    for name in ("name", "expires_at"):
        typed = form.get(name, "")
        kept = "" if OTHER in typed or (value and value in typed) else typed
        assert f'value="{kept}"' in page.text
    assert not value or value in words or value not in page.text
    assert OTHER not in page.text
    assert await keys(ada) == []


async def test_no_edit_makes_a_label_or_a_setting_of_a_key_nor_shows_it_again(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    await ada.post("/api/keys", json=AZURE)
    (key,) = await keys(ada)
    unchanged = {"shown_name": "", "shown_expires_at": "", "shown_settings": "{}", "expires_at": ""}
    leaking = {"name": OTHER, "settings-AZURE_OPENAI-api_version": OTHER[:32]}
    for value in ("", AZURE["api_key"]):
        page = await send(ada, f"{HOME}/{key['id']}/edit", {**unchanged, **leaking, "api_key": value})
        assert page.status_code == 422
        assert "Label must not contain what looks like a key" in page.text
        assert "API version must not contain a key" in page.text
        assert OTHER[:20] not in page.text
    assert [(one["name"], one["settings"]) for one in await keys(ada)] == [(None, {})]


async def test_every_paste_is_stored_or_its_mistake_is_named_beside_the_field(page_plane: ApiPlane) -> None:
    """The API refuses more of them: the form takes the key out of what is around it."""
    ada = await person(page_plane)
    messages = [message_for(paste._replace(text=bare(paste.text))) for paste in PASTES]
    assert sum(paste.message is not None for paste in PASTES) > sum(message is not None for message in messages) > 20
    for paste, message in zip(PASTES, messages, strict=True):
        form = {"service": paste.service, "api_key": paste.text, "anyway": paste.service}
        page = await send(ada, HOME, form)
        if message is None:
            assert page.status_code == 303, paste
        else:
            assert page.status_code == 422, paste
            assert f">API key {message}.</p>" in html.unescape(page.text), paste
            assert PASTED_BODY not in page.text, paste
    assert len((await ada.get("/api/keys?limit=200")).json()) == messages.count(None)


AZURE = {"service": "AZURE_OPENAI", "api_key": VALUE[3:]}
ENDPOINT = "https://my-resource.openai.azure.com"


async def test_a_form_has_the_settings_of_every_service_and_only_the_chosen_ones_count(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    form = {**AZURE, "settings-AZURE_OPENAI-endpoint": f" {ENDPOINT} ", "settings-AWS_BEDROCK-region": "no region"}
    page = await ada.get(f"{HOME}/new")
    for service in (await ada.get("/api/services")).json():
        for member, schema in service["settings"]["properties"].items():
            name = f"settings-{service['service']}-{member}"
            assert f'<label for="{name}">{schema["title"]}</label>' in page.text
            assert f'id="{name}" name="{name}"' in page.text
    assert (await send(ada, HOME, form)).status_code == 303
    (key,) = await keys(ada)
    assert key["settings"] == {"endpoint": ENDPOINT}
    assert ENDPOINT in (await ada.get(HOME)).text


async def test_what_is_wrong_with_a_setting_stands_beside_it(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    page = await send(ada, HOME, {**AZURE, "settings-AZURE_OPENAI-endpoint": "https://evil.example.com"})
    assert page.status_code == 422
    assert "Endpoint must be https:// and the host of your resource" in page.text
    assert 'value="https://evil.example.com"' in page.text
    assert 'aria-describedby="settings-AZURE_OPENAI-endpoint-hint settings-AZURE_OPENAI-endpoint-fault"' in page.text
    german = await ada.post(
        HOME,
        data={**AZURE, "settings-AZURE_OPENAI-endpoint": "https://evil.example.com"},
        headers={"Accept-Language": "de"},
    )
    assert "Endpunkt muss aus https:// und dem Host Ihrer " in german.text


async def test_an_edit_leaves_settings_that_were_not_touched(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    body = {**AZURE, "settings": {"endpoint": ENDPOINT, "api_version": "1"}}
    path = f"{HOME}/{(await ada.post('/api/keys', json=body)).json()['id']}/edit"
    opened = await ada.get(path)
    shown = html.unescape(field(opened, "shown_settings"))
    form = {
        "shown_settings": shown,
        "settings-AZURE_OPENAI-endpoint": ENDPOINT,
        "settings-AZURE_OPENAI-api_version": "1",
        "name": "x",
        "shown_name": "",
    }
    assert f'value="{ENDPOINT}"' in opened.text
    assert (await send(ada, path, form)).status_code == 303
    (key,) = await keys(ada)
    assert (key["name"], key["settings"]) == ("x", body["settings"])
    assert (await send(ada, path, {**form, "settings-AZURE_OPENAI-api_version": ""})).status_code == 303
    (key,) = await keys(ada)
    assert key["settings"] == {"endpoint": ENDPOINT}
    moved = {**form, "settings-AZURE_OPENAI-endpoint": ENDPOINT.replace("my-", "other-")}
    page = await send(ada, path, moved)
    assert page.status_code == 422
    assert "Endpoint decides where the key is sent" in page.text
    assert (await send(ada, path, {**moved, "api_key": VALUE})).status_code == 303


@pytest.mark.parametrize("damaged", ["no JSON", '{"somewhere":"else"}'])
@pytest.mark.parametrize("new", [{"service": "OPENAI", "api_key": VALUE}, AZURE])
async def test_a_key_whose_settings_were_damaged_is_listed_and_can_be_replaced(
    page_plane: ApiPlane, damaged: str, new: dict[str, str]
) -> None:
    ada = await person(page_plane)
    key = (await ada.post("/api/keys", json=new)).json()
    async with page_plane.database.write(Unchecked.OPERATOR) as connection:
        damage = update(api_keys).where(api_keys.c.id == key["id"]).values(settings=damaged)
        await connection.execute(damage)
    listed = await ada.get(HOME)
    assert listed.status_code == 200
    assert ("Unreadable" in listed.text) == (damaged == "no JSON")
    path = f"{HOME}/{key['id']}/edit"
    opened = await ada.get(path)
    assert damaged not in html.unescape(opened.text)
    form = {"shown_settings": html.unescape(field(opened, "shown_settings")), "name": "", "shown_name": ""}
    form |= {"expires_at": "", "shown_expires_at": "", "etag": html.unescape(field(opened, "etag"))}
    assert (await send(ada, path, {**form, "api_key": new["api_key"]})).status_code == 303
    (replaced,) = await keys(ada)
    assert (replaced["status"], replaced["settings"]) == ("active", {})


async def test_a_form_that_is_sent_twice_stores_one_key(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    attempt = field(await ada.get(f"{HOME}/new"), "attempt")
    form = {"service": "OPENAI", "api_key": VALUE, "attempt": attempt}
    first, second = [await ada.post(HOME, data=form) for _ in range(2)]
    assert first.headers["location"] == second.headers["location"]
    assert len(await keys(ada)) == 1
    # The same form with other words, by the back button, is another key.
    assert (await ada.post(HOME, data={**form, "name": "other"})).status_code == 303
    assert len(await keys(ada)) == 2


async def test_an_edit_over_another_ones_is_said_and_can_be_repeated(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    key = await add(ada, name="first")
    stale = field(await ada.get(f"{HOME}/{key}/edit"), "etag")
    await ada.patch(f"/api/keys/{key}", json={"name": "second"})
    form = {"name": "third", "expires_at": "", "api_key": "", "etag": stale}
    page = await ada.post(f"{HOME}/{key}/edit", data=form)
    assert page.status_code == 412
    assert 'value="third"' in page.text
    assert (await keys(ada))[0]["name"] == "second"
    form["etag"] = field(page, "etag")
    assert (await ada.post(f"{HOME}/{key}/edit", data=form)).status_code == 303
    assert (await keys(ada))[0]["name"] == "third"


async def test_what_was_not_touched_after_a_refusal_is_what_is_stored_now(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    key = await add(ada, name="first", expires_at="2030-01-01")
    shown = await ada.get(f"{HOME}/{key}/edit")
    hidden = {name: field(shown, name) for name in ("etag", "shown_name", "shown_expires_at", "account", "view")}
    await ada.patch(f"/api/keys/{key}", json={"expires_at": "2031-12-31T08:00:00Z"})
    form = {**hidden, "name": "second", "expires_at": "2030-01-01", "api_key": ""}
    page = await ada.post(f"{HOME}/{key}/edit", data=form)
    assert page.status_code == 412
    assert 'value="second"' in page.text
    assert 'name="expires_at" aria-describedby="expires_at-hint" type="date" value="2031-12-31"' in re.sub(
        r"\s+", " ", page.text
    )
    form |= {name: field(page, name) for name in hidden} | {"expires_at": "2031-12-31"}
    assert (await ada.post(f"{HOME}/{key}/edit", data=form)).status_code == 303
    (after,) = await keys(ada)
    assert (after["name"], after["expires_at"]) == ("second", "2031-12-31T08:00:00Z")


async def test_a_form_acts_for_nobody_but_whom_it_was_made_for(page_plane: ApiPlane) -> None:
    ada, eve = await person(page_plane), await person(page_plane)
    key = await add(eve)
    hers = field(await ada.get(f"{HOME}/new"), "account")
    for path in (HOME, f"{HOME}/{key}/edit", f"{HOME}/{key}/delete", "/settings/access-tokens", "/settings/account"):
        sent = {"account": hers, "service": "OPENAI", "api_key": VALUE, "name": "x", "scopes": "keys:read"}
        page = await eve.post(path, data=sent)
        assert page.status_code == 409, path
        assert "Somebody else has signed in with this browser." in page.text
    assert [(stored["id"], stored["name"]) for stored in await keys(eve)] == [(key, None)]
    assert (await eve.get("/api/tokens")).json() == []


async def test_the_last_page_of_a_list_that_is_gone_leads_to_the_first(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    for _ in range(2):
        await add(ada)
    (newest, oldest) = await keys(ada)
    cursor = (await ada.get("/api/keys?limit=1")).links["next"]["url"].partition("cursor=")[2]
    await ada.delete(f"/api/keys/{oldest['id']}")
    answer = await ada.get(f"{HOME}?cursor={cursor}&done=deleted")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{HOME}?done=deleted")
    assert f'id="key-{newest["id"]}"' in (await ada.get(HOME)).text


async def test_another_sites_link_cannot_say_that_something_was_done(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    for site, is_said in (("same-origin", True), ("cross-site", False), ("none", False)):
        page = await ada.get("/settings/account?done=password", headers={"Sec-Fetch-Site": site})
        assert ("Your password is changed." in page.text) == is_said


async def test_another_ones_key_is_a_page_like_a_missing_ones(page_plane: ApiPlane) -> None:
    ada, eve = await person(page_plane), await person(page_plane)
    key = await add(ada)
    token = (await ada.post("/api/tokens", json={"name": "x"})).json()["id"]

    def told(page: httpx.Response) -> str:
        varying = r'nonce="[^"]*"|[0-9a-f]{32}'
        return f"{page.status_code} {re.sub(varying, '', page.text)}"

    for method, path, row in (
        ("GET", f"{HOME}/{{}}/edit", key),
        ("GET", f"{HOME}/{{}}/delete", key),
        ("POST", f"{HOME}/{{}}/edit", key),
        ("POST", f"{HOME}/{{}}/delete", key),
        ("GET", "/settings/access-tokens/{}/revoke", token),
        ("POST", "/settings/access-tokens/{}/revoke", token),
        ("POST", "/settings/account/sessions/{}/end", 1),
    ):
        hers, nobodys = [
            await eve.request(
                method, path.format(row_id), data={"name": "x", "api_key": VALUE} if method == "POST" else None
            )
            for row_id in (row, 10**9)
        ]
        is_done_already = path.endswith(("}/revoke", "}/end")) and method == "POST"
        assert hers.status_code == (303 if is_done_already else 404), path
        assert told(hers) == told(nobodys)
    for odd in ("0", "-1", "x", "1.0", quote("1 or 1=1"), "9" * 30):
        assert (await eve.get(f"{HOME}/{odd}/edit")).status_code == 404
    assert [stored["id"] for stored in await keys(ada)] == [key]


@pytest.mark.parametrize("media_type", ["application/json", "multipart/form-data; boundary=x", "text/plain", ""])
async def test_what_is_no_form_is_refused(page_plane: ApiPlane, media_type: str) -> None:
    ada = await person(page_plane)
    page = await ada.post(HOME, content=b"service=OPENAI", headers={"Content-Type": media_type})
    assert page.status_code == 415


@pytest.mark.parametrize(
    "body", [b"a=%ff%fe", b"\xff", "ä=1".encode(), b"&".join(b"a=1" for _ in range(100)), b"a=%ED%A0%80"]
)
async def test_a_form_that_is_not_well_formed_is_said_and_not_repeated(page_plane: ApiPlane, body: bytes) -> None:
    ada = await person(page_plane)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    page = await ada.post(HOME, content=body, headers=form)
    assert page.status_code == 400
    assert "The form is malformed." in page.text


@given(fields=st.dictionaries(st.sampled_from(["service", "api_key", "name", "expires_at", "attempt", "x"]), st.text()))
async def test_no_form_whatever_it_holds_ends_in_a_500(page_plane: ApiPlane, fields: dict[str, str]) -> None:
    ada = await person(page_plane)
    sendable = {name: text.encode("utf-8", "ignore").decode() for name, text in fields.items()}
    page = await send(ada, HOME, sendable)
    assert page.status_code in (303, 400, 422)
    assert page.status_code != 303 or len(await keys(ada)) == 1


# --- the list


async def test_a_few_keys_are_seen_at_a_glance_and_more_can_be_searched(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    for number in range(10):
        await add(ada, name=f"label {number}")
    assert 'role="search"' not in (await ada.get(HOME)).text
    await add(ada, service="MISTRAL", name="Größe")
    page = await ada.get(HOME)
    assert 'role="search"' in page.text
    found = await ada.get(HOME, params={"q": "GRÖSSE", "service": ""})
    assert re.findall(r'<tr role="row" id="key-', found.text) == ['<tr role="row" id="key-']
    assert "Größe" in found.text
    none = await ada.get(HOME, params={"service": "OPENAI", "q": "Größe"})
    assert "No matching keys" in none.text
    # A link to a row's form leads back to the part of the list that it was opened from.
    assert 'name="view" value="q=GR%C3%96SSE"' in found.text
    (link,) = re.findall(r'<a href="([^"]*)">Größe', found.text)
    assert link.endswith("?q=GR%C3%96SSE")


async def test_pages_of_a_long_list_lead_to_all_of_it(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    for number in range(103):
        body = {"service": "OPENAI", "api_key": VALUE, "name": f"label {number}"}
        assert (await ada.post("/api/keys", json=body)).status_code == 201
    seen: list[str] = []
    path: str | None = HOME
    while path:
        page = await ada.get(path)
        seen += re.findall(r"label (\d+)</a>", page.text)
        older = re.search(r'<a href="([^"]*)" rel="next">', page.text)
        path = older[1].replace("&amp;", "&") if older else None
    assert seen == [str(number) for number in reversed(range(103))]


@pytest.mark.parametrize(
    "query", ["cursor=x", "service=x", "service=%00", "q=%00", f"q={'x' * 500}", "cursor=%ff", "saved=<b>"]
)
async def test_a_query_that_means_nothing_shows_the_list(page_plane: ApiPlane, query: str) -> None:
    ada = await person(page_plane)
    key = await add(ada)
    page = await ada.get(f"{HOME}?{query}")
    assert (page.status_code, f'id="key-{key}"' in page.text) == (200, True)
    assert "<b>" not in page.text


# --- tokens, account, activity


async def test_a_token_is_shown_in_the_answer_to_its_form_and_nowhere_else(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    form = {"name": "CI", "scopes": ["keys:read", "audit:read"], "expires_at": "2031-01-01"}
    page = await ada.post("/settings/access-tokens", data=form)
    assert page.status_code == 200
    (token,) = set(re.findall(r"km_[0-9A-Za-z]{36}", page.text))
    assert f"{ORIGIN}/api/keys" in page.text
    assert (await page_plane.client(headers={"Authorization": f"Bearer {token}"}).get("/api/keys")).status_code == 200
    for path in SETTINGS:
        assert token not in (await ada.get(path)).text
    (listed,) = (await ada.get("/api/tokens")).json()
    assert (listed["scopes"], listed["expires_at"]) == (["keys:read", "audit:read"], "2031-01-01T23:59:59Z")
    await send(ada, f"/settings/access-tokens/{listed['id']}/revoke", {})
    assert (await page_plane.client(headers={"Authorization": f"Bearer {token}"}).get("/api/keys")).status_code == 401


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"name": "", "scopes": "keys:read"}, "Name is missing."),
        ({"name": "x"}, "Scopes must have at least one entry."),
        ({"name": "x", "scopes": "everything"}, "Scopes may contain only"),
        ({"name": "x", "scopes": "keys:read", "expires_at": "2001-01-01"}, "Expires must be in the future."),
    ],
)
async def test_a_token_form_that_is_refused_says_what_is_wrong(
    page_plane: ApiPlane, form: dict[str, str], words: str
) -> None:
    ada = await person(page_plane)
    page = await ada.post("/settings/access-tokens", data=form)
    assert (page.status_code, words in page.text) == (422, True)
    assert (await ada.get("/api/tokens")).json() == []


async def test_a_password_change_asks_for_the_current_one_and_ends_the_others(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    email = (await ada.get("/api/auth/me")).json()["email"]
    other = page_plane.client(headers=BROWSER)
    await other.post("/sign-in", data={"email": email, "password": PASSWORD})
    form = {"current_password": "wrong wrong wrong", "new_password": "another horse battery"}
    page = await ada.post("/settings/account", data=form)
    assert page.status_code == 422
    assert "Current password is wrong." in page.text
    assert "wrong wrong wrong" not in page.text
    form["current_password"] = PASSWORD
    assert (await ada.post("/settings/account", data=form)).headers["location"].endswith("?done=password")
    assert (await ada.get("/settings/account")).status_code == 200
    assert (await other.get("/settings/account")).status_code == 401


async def test_sessions_are_listed_by_device_and_end_one_by_one_or_all(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    email = (await ada.get("/api/auth/me")).json()["email"]
    agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
    others = [page_plane.client(headers={**BROWSER, "User-Agent": agent}) for _ in range(3)]
    for other in others:
        await other.post("/sign-in", data={"email": email, "password": PASSWORD})
    page = await ada.get("/settings/account")
    assert page.text.count("Firefox · Linux") == 3
    assert page.text.count("This session") == 1
    newest = max(int(row) for row in re.findall(r"/sessions/(\d+)/end", page.text))
    assert (await send(ada, f"/settings/account/sessions/{newest}/end", {})).status_code == 303
    assert [(await other.get(HOME)).status_code for other in others] == [200, 200, 401]
    await send(ada, "/settings/account/sessions/others/end", {})
    assert [(await other.get(HOME)).status_code for other in others] == [401, 401, 401]
    assert (await ada.get(HOME)).status_code == 200
    activity = (await ada.get("/settings/activity")).text
    assert activity.count("Session ended") == 2


async def test_activity_shows_what_was_done_and_by_what(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    key = await add(ada)
    script = await page_plane.token(ada, "keys:write", "keys:read")
    assert (await script.patch(f"/api/keys/{key}", json={"name": "x"})).status_code == 200
    page = (await ada.get("/settings/activity")).text
    said = re.findall(r'<t[dh][^>]* class="label">([^<]*)</t[dh]>', page)
    assert said == ["Key changed", "Access token created", "Key added", "Account created"]
    assert "Access token" in page


async def test_no_page_holds_a_value_whatever_was_done_with_it(page_plane: ApiPlane) -> None:
    ada = await person(page_plane)
    canary = "sk-c4n4ryC4N4RYc4n4ry0000"
    key = await add(ada, api_key=canary)
    await ada.post(f"{HOME}/{key}/edit", data={"api_key": canary, "name": "x" * 101})
    await ada.post(HOME, data={"api_key": canary})
    for path in (*SETTINGS, f"{HOME}/{key}/edit", f"{HOME}/{key}/delete"):
        page = (await ada.get(path)).text
        assert "c4n4ry" not in page.lower()
        assert "vault:v" not in page
