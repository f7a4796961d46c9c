"""`keyman.keys.labels`: Activity calls keys and tokens what their user called them at the time of each entry."""

from __future__ import annotations

import html
import re

import httpx
import pytest
from sqlalchemy import func, select

from keyman.identity.tables import token_labels
from keyman.keys.tables import key_labels
from tests.planes.management.api.harness import OPENAI_KEY, ApiPlane, store
from tests.support.planes import PASSWORD

pytestmark = pytest.mark.anyio

ACTIVITY = "/settings/activity"
BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
OTHER_KEY = "sk-Zt81LqoPw5aYc3hVn6Xe9876"


async def concerns(client: httpx.AsyncClient, kind: str) -> list[tuple[str, str]]:
    """What happened and what it concerns, newest first."""
    page = (await client.get(f"{ACTIVITY}?kind={kind}", headers=BROWSER)).text
    cells = re.findall(r'class="label">(.*?)</t[dh]>\s*<t[dh][^>]* class="about">(.*?)</t[dh]>', page)
    return [(what, " ".join(html.unescape(re.sub("<[^>]*>", " ", about)).split())) for what, about in cells]


async def test_a_key_has_the_label_and_mask_of_each_moment(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada, name="first")
    address = f"/api/keys/{key['id']}"
    await ada.patch(address, json={"name": "second"})
    await ada.put(address, json={"api_key": OTHER_KEY})
    await ada.patch(address, json={"name": None})
    await ada.patch(address, json={"disabled": True})
    assert await concerns(ada, "keys-changed") == [
        ("Key paused", "OpenAI · sk-...9876"),
        ("Key changed", "OpenAI · sk-...9876"),
        ("Key replaced", "OpenAI · second sk-...9876"),
        ("Key changed", "OpenAI · second sk-...1234"),
        ("Key added", "OpenAI · first sk-...1234"),
    ]
    assert f'href="/settings/api-keys/{key["id"]}"' in (await ada.get(ACTIVITY, headers=BROWSER)).text


async def test_a_deleted_key_is_still_called_what_it_was_and_leads_nowhere(shared: ApiPlane) -> None:
    ada = await shared.user()
    key, unnamed = await store(ada, name="<b>bold</b>"), await store(ada)
    for each in (key, unnamed):
        assert (await ada.delete(f"/api/keys/{each['id']}")).status_code == 204
    mask = key["last_4_chars"]
    expected = [f"OpenAI · {mask}", f"OpenAI · <b>bold</b> {mask}"] * 2
    assert [about for _, about in await concerns(ada, "keys-changed")] == expected
    page = (await ada.get(ACTIVITY, headers=BROWSER)).text
    assert "<b>bold" not in page
    assert "/settings/api-keys/" not in page.partition("<main")[2].partition("</main>")[0]


async def test_a_token_is_called_by_its_name_also_once_it_is_revoked(shared: ApiPlane) -> None:
    ada = await shared.user()
    made = (await ada.post("/api/tokens", json={"name": "CI pipeline"})).json()
    await store(shared.bearer(made["token"]))
    for attempt in range(2):
        assert ("Access token created", "CI pipeline") in await concerns(ada, "tokens")
        page = (await ada.get(f"{ACTIVITY}?kind=keys-changed", headers=BROWSER)).text
        assert re.search(r"Access token\s+(<a [^>]*>)?CI pipeline<", page)
        # A way to the token, as long as it is there.
        assert (f'href="/settings/access-tokens#token-{made["id"]}-name"' in page) == (attempt == 0)
        await ada.delete(f"/api/tokens/{made['id']}")
    assert ("Access token revoked", "CI pipeline") in await concerns(ada, "tokens")


async def test_nothing_is_kept_when_nothing_is_renamed_and_all_of_it_goes_with_the_account(shared: ApiPlane) -> None:
    ada = await shared.user()
    user_id = (await ada.get("/api/auth/me")).json()["id"]

    async def kept() -> list[int]:
        async with shared.database.read() as connection:
            counts = []
            for table in (key_labels, token_labels):
                counted = select(func.count()).select_from(table).where(table.c.user_id == user_id)
                counts.append(int((await connection.execute(counted)).scalar_one()))
            return counts

    key = await store(ada, name="label")
    await ada.patch(f"/api/keys/{key['id']}", json={"name": "label", "disabled": True})
    await ada.put(f"/api/keys/{key['id']}", json={"api_key": f"{OPENAI_KEY[:-8]}xxxx1234"})
    assert await kept() == [0, 0]
    await ada.patch(f"/api/keys/{key['id']}", json={"name": "another"})
    token = (await ada.post("/api/tokens", json={"name": "t"})).json()
    await ada.delete(f"/api/tokens/{token['id']}")
    assert await kept() == [1, 1]
    assert (await ada.request("DELETE", "/api/auth/me", json={"current_password": PASSWORD})).status_code == 204
    assert await kept() == [0, 0]
