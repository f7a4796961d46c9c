"""Settings → API Keys → Use it: the page, as bytes."""

from __future__ import annotations

import html
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import make_url

from keyman.providers.catalogue import Catalogue
from keyman.providers.snippets import snippets
from tests.planes.management.api.harness import OPENAI_KEY, ApiPlane, fresh_plane_at, store
from tests.planes.management.api.test_sessions import quick
from tests.planes.management.web.moves import KEYS
from tests.providers.pastes import ACCOUNT
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio

GATEWAY = "https://gateway.example.com"
BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
FORWARDED = [service for service in Catalogue().services() if service.upstream is not None]


async def page(client: httpx.AsyncClient, path: str, status: int = 200) -> str:
    answer = await client.get(path, headers=BROWSER)
    assert answer.status_code == status, answer.text
    return html.unescape(answer.text)


async def test_the_page_of_a_key_has_its_lines_and_nothing_of_its_value(tmp_path: Path, provisioned: Vault) -> None:
    database = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    async with fresh_plane_at(database, provisioned.settings, quick(), gateway_public_url=GATEWAY) as plane:
        ada = await plane.user()
        key = await store(ada, name="Chat")
        vertex = await store(ada, service="GOOGLE_VERTEX", api_key=ACCOUNT)
        azure = await store(ada, service="AZURE_OPENAI", api_key=OPENAI_KEY)
        listed = await page(ada, KEYS)
        assert f'action="{KEYS}/{key["id"]}/use"' in listed
        assert f'action="{KEYS}/{vertex["id"]}/use"' not in listed  # the gateway does not forward it
        shown = await page(ada, f"{KEYS}/{key['id']}/use")
        lines = snippets(FORWARDED[0], GATEWAY)
        assert lines is not None
        for text in (*lines[:4], f"Keyman-Key: {key['id']}", "sk-...1234"):
            assert text in shown
        assert OPENAI_KEY not in shown
        assert "km_" not in shown
        assert "cannot be used yet" not in shown
        await page(ada, f"{KEYS}/{vertex['id']}/use", 404)
        await page(await plane.user(), f"{KEYS}/{key['id']}/use", 404)
        lacking = await page(ada, f"{KEYS}/{azure['id']}/use")
        assert "This key cannot be used yet." in lacking
        assert "Endpoint" in lacking
        await ada.patch(f"/api/keys/{key['id']}", json={"disabled": True})
        assert "it is not active" in await page(ada, f"{KEYS}/{key['id']}/use")


async def test_without_a_gateway_there_is_no_page(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    assert "/use" not in await page(ada, KEYS)
    await page(ada, f"{KEYS}/{key['id']}/use", 404)
