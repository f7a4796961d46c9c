"""`/api/services`, and the file by which an operator adds to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tests.planes.management.api.harness import ApiPlane, fresh_plane_at, problem, store
from tests.planes.management.api.test_keys import BODY, PREFIXES
from tests.planes.management.api.test_sessions import quick
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio

NAMES = {"OPENAI": "OpenAI", "ANTHROPIC": "Anthropic"}

FILES = {
    "services.json": json.dumps(
        [
            {"service": "ACME_2", "name": "Acme & Söhne", "prefix": "acme-", "exclusive": ["acme-"]},
            {"service": "PLAIN", "name": "Plain"},
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
    assert all(entry.keys() == {"service", "name"} for entry in services)
    shown = {entry["service"]: entry["name"] for entry in services}
    assert len(shown) == len(services)
    assert shown.keys() >= PREFIXES.keys()
    assert NAMES.items() <= shown.items()
    assert services[0] == {"service": "OPENAI", "name": "OpenAI"}


async def test_every_service_of_the_catalogue_can_be_stored(shared: ApiPlane) -> None:
    ada = await shared.user()
    for entry in (await ada.get("/api/services")).json():
        assert (await store(ada, service=entry["service"], api_key=f"{BODY}1234"))["service"] == entry["service"]


@pytest.mark.parametrize("name", FILES)
async def test_an_operator_adds_services_by_a_file(name: str, tmp_path: Path, provisioned: Vault) -> None:
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    database = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    async with fresh_plane_at(database, provisioned.settings, quick(), services_file=path) as plane:
        ada = await plane.user()
        shown = {entry["service"]: entry["name"] for entry in (await ada.get("/api/services")).json()}
        assert shown.keys() == PREFIXES.keys() | {"ACME_2", "PLAIN"}
        assert shown["ACME_2"] == "Acme & Söhne"
        assert shown["OPENAI"] == "OpenAI (through our proxy)"

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
        # What replaces a shipped service replaces its prefixes too.
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
