"""`/api/services`, and the file by which an operator adds to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tests.planes.management.api.harness import ApiPlane, fresh_plane_at, problem, store
from tests.planes.management.api.test_keys import BODY, PREFIXES
from tests.planes.management.api.test_sessions import quick
from tests.providers.pastes import ACCOUNT
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio

SERVICE_FIELDS = {
    *("service", "name", "console_url", "settings", "forwarded", "checked"),
    *("prefixes", "exclusive_prefixes", "gateway"),
}

NAMES = {"OPENAI": "OpenAI", "ANTHROPIC": "Anthropic"}

FILES = {
    "services.json": json.dumps(
        [
            {"service": "ACME_2", "name": "Acme & Söhne", "prefix": "acme-", "exclusive": ["acme-"]},
            {"service": "PLAIN", "name": "Plain", "console_url": "https://plain.example.com/keys"},
            {"service": "AZURE_OPENAI", "name": "Azure OpenAI (EU)"},
            {"service": "OPENAI", "name": "OpenAI (through our proxy)", "prefix": "px-"},
        ]
    ),
    "services.toml": """
[[services]]
service = "ACME_2"
name = "Acme & Söhne"
prefix = "acme-"
exclusive = ["acme-"]

[[services]]
service = "PLAIN"
name = "Plain"
console_url = "https://plain.example.com/keys"

[[services]]
service = "AZURE_OPENAI"
name = "Azure OpenAI (EU)"

[[services]]
service = "OPENAI"
name = "OpenAI (through our proxy)"
prefix = "px-"
""",
}


async def test_the_catalogue_has_the_documented_services(shared: ApiPlane) -> None:
    ada = await shared.user()
    answer = await ada.get("/api/services")
    assert answer.status_code == 200
    services = answer.json()
    assert all(entry.keys() == SERVICE_FIELDS for entry in services)
    assert {entry["service"] for entry in services if not entry["forwarded"]} == {"GOOGLE_VERTEX"}
    unchecked = {"PERPLEXITY", "NVIDIA", "OLLAMA_CLOUD", "GOOGLE_VERTEX"}
    assert {entry["service"] for entry in services if not entry["checked"]} == unchecked
    shown = {entry["service"]: entry["name"] for entry in services}
    assert len(shown) == len(services)
    assert shown.keys() >= PREFIXES.keys()
    assert NAMES.items() <= shown.items()
    assert services[0] == {
        "service": "OPENAI",
        "name": "OpenAI",
        "console_url": "https://platform.openai.com/api-keys",
        "settings": {"type": "object", "properties": {}, "additionalProperties": False},
        "forwarded": True,
        "checked": True,
        "prefixes": ["sk-"],
        "exclusive_prefixes": ["sk-proj-", "sk-svcacct-", "sk-admin-"],
        "gateway": None,
    }
    members = {entry["service"]: [*entry["settings"]["properties"]] for entry in services}
    assert {service: names for service, names in members.items() if names} == {
        "AZURE_OPENAI": ["endpoint", "api_version"],
        "AWS_BEDROCK": ["region"],
        "GOOGLE_VERTEX": ["project", "location"],
    }


async def test_a_service_says_how_programs_use_it_at_the_gateway(tmp_path: Path, provisioned: Vault) -> None:
    database = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    given = {"gateway_public_url": "https://gateway.example.com"}
    async with fresh_plane_at(database, provisioned.settings, quick(), **given) as plane:
        ada = await plane.user()
        uses = {entry["service"]: entry["gateway"] for entry in (await ada.get("/api/services")).json()}
    assert uses["OPENAI"] == {
        "url": "https://gateway.example.com/openai/v1",
        "url_variable": "OPENAI_BASE_URL",
        "token_variable": "OPENAI_API_KEY",
    }
    assert uses["MISTRAL"] == {
        "url": "https://gateway.example.com/mistral",
        "url_variable": None,
        "token_variable": None,
    }
    assert uses["GOOGLE_VERTEX"] is None


async def test_every_service_of_the_catalogue_can_be_stored(shared: ApiPlane) -> None:
    ada = await shared.user()
    for entry in (await ada.get("/api/services")).json():
        value = ACCOUNT if entry["service"] == "GOOGLE_VERTEX" else f"{BODY}1234"
        assert (await store(ada, service=entry["service"], api_key=value))["service"] == entry["service"]


@pytest.mark.parametrize("name", FILES)
async def test_an_operator_adds_services_by_a_file(name: str, tmp_path: Path, provisioned: Vault) -> None:
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    database = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    async with fresh_plane_at(database, provisioned.settings, quick(), services_file=path) as plane:
        ada = await plane.user()
        shown = {entry["service"]: entry["name"] for entry in (await ada.get("/api/services")).json()}
        assert shown.keys() == PREFIXES.keys() | {"GOOGLE_VERTEX", "ACME_2", "PLAIN"}
        assert shown["ACME_2"] == "Acme & Söhne"
        assert shown["OPENAI"] == "OpenAI (through our proxy)"
        by_name = {entry["service"]: entry for entry in (await ada.get("/api/services")).json()}
        assert by_name["PLAIN"]["console_url"] == "https://plain.example.com/keys"
        # What an entry does not give stays as it is shipped.
        assert shown["AZURE_OPENAI"] == "Azure OpenAI (EU)"
        assert by_name["AZURE_OPENAI"]["console_url"] == "https://portal.azure.com/"
        assert by_name["AZURE_OPENAI"]["settings"]["properties"].keys() == {"endpoint", "api_version"}
        azure = {"service": "AZURE_OPENAI", "api_key": BODY, "settings": {"endpoint": "https://a.openai.azure.com"}}
        assert (await ada.post("/api/keys", json=azure)).status_code == 201

        assert plane.document is not None
        new_key = plane.document.document["components"]["schemas"]["NewKey"]
        assert new_key["properties"]["service"]["enum"] == list(shown)

        key = await store(ada, service="ACME_2", api_key=f"acme-{BODY}wxyz")
        assert key["last_4_chars"] == "acme-...wxyz"
        assert (await store(ada, service="PLAIN", api_key=f"{BODY}wxyz"))["last_4_chars"] == "...wxyz"
        # An exclusive prefix of theirs is as certain as a shipped one.
        answer = await ada.post("/api/keys", json={"service": "COHERE", "api_key": f"acme-{BODY}wxyz"})
        problem(answer, "invalid-request", "api_key")
        assert "Acme & Söhne" in answer.text
        answer = await ada.post("/api/keys", json={"service": "ACME_2", "api_key": f"sk-ant-{BODY}wxyz"})
        problem(answer, "invalid-request", "api_key")
        # What gives another prefix to a shipped service replaces its prefix.
        assert (await store(ada, api_key=f"px-{BODY}wxyz"))["last_4_chars"] == "px-...wxyz"
        assert (await store(ada, api_key=f"sk-{BODY}wxyz"))["last_4_chars"] == "...wxyz"
        problem(await ada.put(f"/api/keys/{key['id']}", json={"api_key": "acme-...wxyz"}), "invalid-request", "api_key")


async def test_a_key_of_a_service_that_was_taken_from_the_catalogue_is_still_its_owners(
    tmp_path: Path, provisioned: Vault
) -> None:
    path = tmp_path / "services.json"
    path.write_text(FILES["services.json"], encoding="utf-8")
    database = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    async with fresh_plane_at(database, provisioned.settings, quick(), services_file=path) as plane:
        ada = await plane.user()
        key = await store(ada, service="ACME_2", api_key=f"acme-{BODY}wxyz")
        cookie = ada.cookies["keyman_session"]
    async with fresh_plane_at(database, provisioned.settings, quick()) as plane:
        ada = plane.with_cookie(cookie)
        target = f"/api/keys/{key['id']}"
        assert (await ada.get("/api/keys?service=ACME_2")).json() == [key]
        assert (await ada.get(target)).json() == key
        problem(await ada.put(target, json={"api_key": "acme-...wxyz"}), "invalid-request", "api_key")
        assert (await ada.put(target, json={"api_key": f"{BODY}6789"})).json()["last_4_chars"] == "...6789"
        assert (await ada.patch(target, json={"disabled": True})).json()["status"] == "disabled"
        problem(await ada.post("/api/keys", json={"service": "ACME_2", "api_key": BODY}), "invalid-request", "service")
        assert (await ada.delete(target)).status_code == 204
