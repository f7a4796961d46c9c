"""Settings → API Keys → one key: `keyman.planes.management.web.key_page`."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import insert, update
from sqlalchemy.engine import URL

from keyman.audit.entries import Action, Actor
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.keys.tables import api_keys
from keyman.keys.uses import LAST_USES
from keyman.providers.verdicts import Verdict
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import ApiPlane, fresh_plane_at, store
from tests.planes.management.api.test_sessions import quick
from tests.planes.management.web.moves import KEYS
from tests.planes.management.web.test_verdicts import AWAY, judged
from tests.support.planes import Vault
from tests.support.rows import entry

pytestmark = pytest.mark.anyio

BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}


async def person(plane: ApiPlane) -> httpx.AsyncClient:
    client = await plane.user()
    client.headers.update(BROWSER)
    return client


async def used(plane: ApiPlane, client: httpx.AsyncClient, key_id: int, *uses: Mapping[str, object]) -> None:
    about = {"user_id": (await client.get("/api/auth/me")).json()["id"], "key_id": key_id, "service": "OPENAI"}
    async with plane.database.write(Unchecked.OPERATOR) as connection:
        for use in uses:
            row = {**entry(Action.KEY_RESOLVE), "at": now(), "application": "chat", **about, **use}
            await connection.execute(insert(audit_log).values(row))


def by(page: str) -> list[str]:
    """Who used the key, row by row."""
    cells = re.findall(r'class="by" data-label="By">(.*?)</td>', page, re.DOTALL)
    return [" ".join(html.unescape(re.sub("<[^>]*>", " ", cell)).split()) for cell in cells]


async def test_the_label_leads_to_the_page_of_a_key_and_without_one_the_mask(shared: ApiPlane) -> None:
    ada = await person(shared)
    named, unnamed = await store(ada, name="<b>chat"), await store(ada)
    page = (await ada.get(KEYS)).text
    assert f'<a href="{KEYS}/{named["id"]}">&lt;b&gt;chat</a>' in page
    assert f'<a href="{KEYS}/{unnamed["id"]}">{unnamed["last_4_chars"]}</a>' in page
    for key in (named, unnamed):
        answer = await ada.get(f"{KEYS}/{key['id']}")
        assert answer.status_code == 200
        assert key["last_4_chars"] in answer.text
        assert "<b>chat" not in answer.text
        for action in ("edit", "pause", "delete"):
            assert f'<form action="{KEYS}/{key["id"]}/{action}"' in answer.text


async def test_it_shows_the_last_uses_of_this_key(shared: ApiPlane) -> None:
    ada = await person(shared)
    key, other = await store(ada), await store(ada)
    assert "Nobody has used it in the last 30 days." in (await ada.get(f"{KEYS}/{key['id']}")).text
    moment = now()
    await used(
        shared,
        ada,
        key["id"],
        {"at": moment - timedelta(days=31), "application": "old"},
        {"at": moment - timedelta(days=3), "purpose": "to <chat>"},
        {
            "at": moment - timedelta(days=2),
            "action": Action.KEY_USE,
            "actor": Actor.TOKEN,
            "actor_id": 1,
            "application": None,
        },
        {"at": moment - timedelta(days=1), "action": Action.KEY_USE, "application": "batch"},
    )
    await used(shared, ada, other["id"], {"application": "of-another-key"})
    page = (await ada.get(f"{KEYS}/{key['id']}")).text
    assert by(page) == ["Application batch", "Access token token 1", "Application chat “to <chat>”"]
    await used(shared, ada, key["id"], *({"application": f"app-{n}"} for n in range(3) for _ in range(LAST_USES)))
    page = (await ada.get(f"{KEYS}/{key['id']}")).text
    assert len(by(page)) == LAST_USES


async def test_it_says_why_applications_get_this_one_of_several_keys(shared: ApiPlane) -> None:
    ada = await person(shared)
    only = (await store(ada, service="GROQ", api_key="gsk_hq2v9mXbT0c7eUKw"))["id"]
    old, new = [(await store(ada))["id"] for _ in range(2)]

    async def said(key_id: int) -> list[str]:
        page = (await ada.get(f"{KEYS}/{key_id}")).text
        marks = ("Applications get this key", "it is the newest active one", "you have made it the default")
        return [each for each in marks if each in page]

    assert await said(only) == []
    assert await said(old) == []
    assert await said(new) == ["Applications get this key", "it is the newest active one"]
    await ada.patch(f"/api/keys/{old}", json={"default": True})
    assert await said(new) == []
    assert await said(old) == ["Applications get this key", "you have made it the default"]
    await ada.patch(f"/api/keys/{old}", json={"disabled": True})
    assert await said(old) == []
    assert await said(new) == ["Applications get this key", "it is the newest active one"]


async def test_it_offers_what_the_row_of_the_list_offers(sqlite: URL, provisioned: Vault) -> None:
    past = now() - timedelta(days=1)
    active: dict[str, object] = {"disabled": False}
    states: list[dict[str, object]] = [
        {"disabled": True},
        {"expires_at": past},
        {"undecryptable": True},
        {"is_default": True},
        active,
        active,
    ]
    async with fresh_plane_at(sqlite, provisioned.settings, quick(), checks=AWAY) as plane:
        ada = await person(plane)
        for state in states:
            key_id = (await store(ada))["id"]
            async with plane.database.write(Unchecked.OPERATOR) as connection:
                await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(state))
        await judged(plane, key_id, Verdict.REFUSED)
        listed = (await ada.get(KEYS)).text
        for number in range(1, key_id + 1):
            row = listed.partition(f'id="key-{number}"')[2].partition("</tr>")[0]
            buttons = re.findall(r"<button[^>]* aria-labelledby[^>]*>([^<]+)</button>", row)
            page = (await ada.get(f"{KEYS}/{number}")).text.partition('class="buttons"')[2].partition("</dl>")[0]
            offered = re.findall(r"<button[^>]*>([^<]+)</", page)
            assert sorted(offered) == sorted(buttons), number
        assert {"Make default", "Clear default", "Check now", "Replace key", "Extend", "Resume"} <= set(
            re.findall(r">([^<]+)</button>", listed)
        )


async def test_a_check_leads_back_to_the_page_and_says_why_it_came_to_nothing(sqlite: URL, provisioned: Vault) -> None:
    async with fresh_plane_at(sqlite, provisioned.settings, quick(), checks=AWAY) as plane:
        ada = await person(plane)
        key_id = (await store(ada, name="chat"))["id"]
        form = {"on": "page", "view": "q=chat"}
        answer = await ada.post(f"{KEYS}/{key_id}/check", data=form)
        assert answer.headers["location"] == f"{KEYS}/{key_id}?q=chat&saved={key_id}&done=no-gateway"
        assert "Not checked: the gateway cannot be reached." in (await ada.get(answer.headers["location"])).text
        assert "Not checked" not in (await ada.get(f"{KEYS}/{key_id}")).text


async def test_a_key_that_cannot_be_opened_says_so(shared: ApiPlane) -> None:
    ada = await person(shared)
    key_id = (await store(ada))["id"]
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(undecryptable=True))
    assert "Its value can no longer be opened" in (await ada.get(f"{KEYS}/{key_id}")).text


async def test_a_key_of_somebody_else_is_not_there(shared: ApiPlane) -> None:
    ada, eve = await person(shared), await person(shared)
    key = await store(ada)
    for path in (f"{KEYS}/{key['id']}", f"{KEYS}/999999999", f"{KEYS}/x"):
        assert (await eve.get(path)).status_code == 404


async def test_uses_need_the_scope_of_the_audit_log(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    await used(shared, ada, key["id"], {})
    for scopes, is_shown in (("keys:read",), False), (("keys:read", "audit:read"), True):
        script = await shared.token(ada, *scopes)
        page = (await script.get(f"{KEYS}/{key['id']}", headers=BROWSER)).text
        assert ("Last Uses" in page) == ("Application chat" in page) == is_shown


async def test_a_search_is_still_there_on_the_way_back(shared: ApiPlane) -> None:
    ada = await person(shared)
    key = await store(ada, name="chat")
    page = (await ada.get(f"{KEYS}/{key['id']}?q=chat")).text
    assert f'<a href="{KEYS}?q=chat">All keys</a>' in page
    assert f'hx-get="{KEYS}/{key["id"]}/edit?on=page&amp;q=chat"' in page
