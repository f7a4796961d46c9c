"""Settings → API Keys → Use it: the lines for each service, and the page, as bytes."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import make_url

from keyman.planes.management.web.snippets import VARIABLE, snippets
from keyman.providers.catalogue import Catalogue
from keyman.providers.file import read_services
from keyman.providers.paths import allows
from keyman.providers.services import Service
from keyman.providers.upstreams import Upstream
from tests.planes.management.api.harness import OPENAI_KEY, ApiPlane, fresh_plane_at, store
from tests.planes.management.api.test_sessions import quick
from tests.planes.management.web.moves import KEYS
from tests.providers.pastes import ACCOUNT
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio

GATEWAY = "https://gateway.example.com"
BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
FORWARDED = [service for service in Catalogue().services() if service.upstream is not None]


# --- the lines


def upstream_of(service: Service) -> Upstream:
    assert service.upstream is not None
    return service.upstream


def is_allowed(service: Service, method: str, url: str) -> bool:
    """Whether the gateway forwards a request to this address."""
    path = url.removeprefix(f"{GATEWAY}/{service.service.lower().replace('_', '-')}")
    assert path != url, url
    return allows(upstream_of(service).rules(), method, path)


@pytest.mark.parametrize("service", FORWARDED, ids=lambda service: service.service)
def test_the_gateway_allows_what_the_lines_ask_for(service: Service) -> None:
    lines = snippets(service, GATEWAY)
    assert lines is not None
    (called,) = re.findall(r"https://[^ ]+", lines.curl)
    assert is_allowed(service, "POST" if " -d " in lines.curl else "GET", called)
    assert lines.url in lines.python
    if "OpenAI(" in lines.python:
        asks = ("GET", "/models") if "models.list" in lines.python else ("POST", "/chat/completions")
        assert is_allowed(service, asks[0], f"{lines.url}{asks[1]}")


@pytest.mark.parametrize("service", FORWARDED, ids=lambda service: service.service)
def test_python_can_read_the_lines_and_no_token_goes_to_a_provider(service: Service) -> None:
    lines = snippets(service, GATEWAY)
    assert lines is not None
    compile(lines.python, service.service, "exec")
    for text in (lines.curl, lines.python, lines.variables):
        assert "{url}" not in text
        assert VARIABLE in text or not text
        assert set(re.findall(r"https?://([^/\" ]+)", text)) <= {"gateway.example.com"}
    # With the token, but without the address, an SDK would send it to the provider.
    assert ("API_KEY" in lines.variables) == ("URL" in lines.variables)


def test_a_service_of_an_operator_has_what_is_known_of_it(tmp_path: Path) -> None:
    path = tmp_path / "services.json"
    own = {"service": "ACME_2", "name": "Acme", "base_url": "https://acme.example.com"}
    listed = [
        {**own, "paths": ["POST /v1/things", "GET /v1/things/{id}"]},
        {**own, "service": "LIKE_OPENAI", "paths": ["POST /api/v1/chat/completions"]},
        {"service": "KEPT_ONLY", "name": "Kept"},
    ]
    path.write_text(json.dumps(listed))
    plain, like, kept = (snippets(service, GATEWAY) for service in read_services(path))
    assert plain == (f"{GATEWAY}/acme-2", "", "", "")
    assert like is not None
    assert like.url == f"{GATEWAY}/like-openai/api/v1"
    assert f'OPENAI_BASE_URL="{like.url}"' in like.variables
    assert kept is None


# --- the page


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
        for text in (*lines, f"Keyman-Key: {key['id']}", "sk-...1234"):
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
