"""What holds for every route of the pages, so that no new one can be forgotten."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping

import httpx
import pytest
from sqlalchemy import insert, update

from keyman.audit.entries import Action
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.identity.tables import api_tokens, application_blocks, sessions, users
from keyman.keys.tables import api_keys
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import OPENAI_KEY, ApiPlane, application_of, store
from tests.support.planes import PASSWORD
from tests.support.rows import entry

pytestmark = pytest.mark.anyio

BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
FROM_ELSEWHERE = ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"})
OF_A_PROVIDER = "/auth/oidc/backchannel-logout"
"""The one route that another server calls. It is authenticated by a signed token."""

FORM = {
    "service": "OPENAI",
    "api_key": OPENAI_KEY,
    "name": "x",
    "ids": "1",
    "id": "1",
    "action": "delete",
    "do": "delete",
    "confirm": "yes",
    "theme": "dark",
    "language": "de",
    "email": "x@example.com",
    "password": PASSWORD,
    "current_password": PASSWORD,
    "new_password": f"{PASSWORD}2",
}
"""Fields of many forms, with which each of them would do something."""


WITH_A_PROVIDER = {"/settings/account/sign-ins", "/settings/account/presence"}
"""Nothing is there without an OpenID provider: see `test_connected.py`."""

TYPED = "typed-into-an-address"


def routes(plane: ApiPlane, method: str, **ids: object) -> Iterator[str]:
    """The paths of the pages that take this method, with numbers in place of their parameters."""
    for route in application_of(plane).routes:
        path: str = route.path_format
        if method in route.methods and not path.startswith(("/api/", "/static/")) and path != OF_A_PROVIDER:
            yield re.sub(r"\{(\w+)\}", lambda one: str(ids.get(one[1], 1)), path)


async def somebody(plane: ApiPlane, headers: Mapping[str, str] = BROWSER) -> httpx.AsyncClient:
    client = await plane.user()
    client.headers.update(headers)
    return client


async def state(plane: ApiPlane) -> list[object]:
    """What a page may change. When a session was used last is no change that somebody made."""
    used = ("last_seen_at", "last_used_at", "expires_at")
    found = [
        await plane.rows(table) for table in (api_keys, audit_log, api_tokens, sessions, application_blocks, users)
    ]
    return [
        [{name: value for name, value in row._mapping.items() if name not in used} for row in rows] for rows in found
    ]


async def test_no_form_of_another_site_changes_anything(shared: ApiPlane) -> None:
    ada = await somebody(shared, {"Accept": "text/html"})
    key = await store(ada)
    before = await state(shared)
    paths = [*routes(shared, "POST", key_id=key["id"])]
    assert len(paths) > 20
    for path in paths:
        for sent in FROM_ELSEWHERE:
            for client in (ada, shared.client(headers={"Accept": "text/html"})):
                page = await client.post(path, data=FORM, headers=sent)
                assert (page.status_code, page.headers.get("set-cookie")) == (403, None), path
                assert OPENAI_KEY not in page.text
    assert await state(shared) == before


async def test_no_page_that_is_only_looked_at_changes_anything(shared: ApiPlane) -> None:
    """Any site can make a browser ask for one, with a query too."""
    ada = await somebody(shared)
    key = await store(ada)
    before = await state(shared)
    for path in routes(shared, "GET", key_id=key["id"]):
        page = await ada.get(path, params=FORM | {"password": TYPED, "api_key": TYPED})
        assert page.status_code < 500, path
        assert TYPED not in page.text, path
    assert await state(shared) == before


async def test_what_is_anothers_is_like_what_is_not_there_in_every_page(shared: ApiPlane) -> None:
    ada, eve = await somebody(shared), await somebody(shared)
    theirs = {
        "key_id": (await store(ada))["id"],
        "token_id": (await ada.post("/api/tokens", json={"name": "x"})).json()["id"],
    }
    nobodys = dict.fromkeys(theirs, 10**9)
    for method in ("GET", "POST"):
        before = await state(shared)
        hers, missing = routes(shared, method, **theirs), routes(shared, method, **nobodys)
        pairs = [(one, other) for one, other in zip(hers, missing, strict=True) if one != other]
        assert len(pairs) >= 6
        for one, other in pairs:
            pages = [await eve.request(method, path, data=FORM if method == "POST" else None) for path in (one, other)]
            assert told(pages[0]) == told(pages[1]), one
            assert pages[0].status_code == 404 or one.endswith("/revoke"), one
        assert await state(shared) == before


async def test_no_form_acts_for_another_account_than_it_was_made_for(shared: ApiPlane) -> None:
    """Two people can sign in one after the other in two windows of one browser."""
    ada, eve = await somebody(shared), await somebody(shared)
    key, before = (await store(eve))["id"], await state(shared)
    form = FORM | {"account": str((await ada.get("/api/auth/me")).json()["id"]), "id": str(key), "ids": str(key)}
    paths = {path for path in routes(shared, "POST", key_id=key) if path.startswith("/settings/")} - WITH_A_PROVIDER
    assert len(paths) > 12
    for path in paths:
        page = await eve.post(path, data=form)
        assert page.status_code == 409, path
        assert "Somebody else has signed in with this browser." in page.text, path
    assert await state(shared) == before


def told(page: httpx.Response) -> str:
    return f"{page.status_code} {re.sub(r'nonce=.[^ ]*|[0-9a-f]{32}|1000000000', '', page.text)}"


MARKUP = """\"'><img src=x onerror=alert(1)></svg></td>{{7*7}}&lt;x"""


async def filled(plane: ApiPlane, text: str) -> tuple[httpx.AsyncClient, dict[str, int]]:
    """Somebody in whose account everything that others or the database can name is called `text`."""
    client = await somebody(plane)
    user_id = (await client.get("/api/auth/me")).json()["id"]
    key = await store(client, name=text)
    await client.patch(f"/api/keys/{key['id']}", json={"name": f"{text}2"})
    token = (await client.post("/api/tokens", json={"name": text})).json()
    about = {"user_id": user_id, "key_id": key["id"], "at": now(), "application": text, "purpose": text}
    async with plane.database.write(Unchecked.OPERATOR) as connection:
        for action in (Action.KEY_RESOLVE, Action.KEY_USE, Action.KEY_RESOLVE_REFUSED):
            await connection.execute(insert(audit_log).values(entry(action, **about)))
        used = {"last_used_at": now(), "last_used_by": text}
        verdict = {"check_verdict": "refused", "checked_at": now(), "check_detail": text, "checked_by": "keyman"}
        await connection.execute(update(api_keys).where(api_keys.c.id == key["id"]).values(**used, **verdict))
    return client, {"key_id": key["id"], "token_id": token["id"]}


@pytest.mark.parametrize("language", ["en", "de"])
async def test_what_others_can_name_is_text_on_every_page(shared: ApiPlane, language: str) -> None:
    """The same elements and as many quotation marks as with words: nothing was taken for markup."""
    tags = []
    for text in (MARKUP, "x" * len(MARKUP)):
        client, ids = await filled(shared, text)
        client.headers["Accept-Language"] = language
        paths = [path for path in routes(shared, "GET", **ids) if path.startswith("/settings")]
        pages = [(await client.get(path)).text for path in paths]
        assert sum(text in html.unescape(page) for page in pages) >= 6
        tags.append([(re.findall(r"<[^\s>]*", page), page.count('"')) for page in pages])
        assert not any(text in page for page in pages if text is MARKUP)
    assert len(tags[0]) > 15
    for path, marked, plain in zip(paths, *tags, strict=True):
        assert marked == plain, path
