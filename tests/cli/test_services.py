"""`keyman services`, as an operator types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keyman.providers.services import SHIPPED
from tests.cli.test_common import failed
from tests.cli.transcript import keyman
from tests.support.cli import environment

FILE = """
[[services]]
service = "OPENAI"
base_url = "http://127.0.0.1:9187"
check = { path = "/v1/ping" }

[[services]]
service = "ANTHROPIC"
name = "Anthropic"

[[services]]
service = "MINE"
name = "Mine\\u0007"
prefix = "mine-"
base_url = "https://ai.example.com"
auth = "x-key"
paths = ["POST /v1/chat"]
"""


@pytest.fixture
def with_file(tmp_path: Path) -> dict[str, str]:
    """The variables of an operator with a services file: it needs neither a database nor Vault."""
    file = tmp_path / "services.toml"
    file.write_text(FILE)
    return environment(KEYMAN_SERVICES_FILE=str(file))


def test_the_shipped_catalogue_is_listed_as_it_is() -> None:
    listed = keyman("services", "--json")
    assert (listed.code, listed.err) == (0, "")
    shown = json.loads(listed.out)
    assert [one["service"] for one in shown] == [service.service for service in SHIPPED]
    for one, service in zip(shown, SHIPPED, strict=True):
        assert (one["source"], one["changed"], one["shipped"]) == ("shipped", [], {})
        assert one["prefixes"] == list(service.prefixes)
        assert one["base_url"] == (service.upstream.base_url if service.upstream else None)
        assert one["paths"] == (list(service.upstream.paths) if service.upstream else [])
    (vertex,) = [one for one in shown if one["service"] == "GOOGLE_VERTEX"]
    assert (vertex["base_url"], vertex["auth"], vertex["check"]) == (None, None, None)


def test_the_table_has_a_line_for_each_service_and_says_what_is_changed(with_file: dict[str, str]) -> None:
    head, *lines = keyman("services", env=with_file).out.splitlines()
    assert " ".join(head.split()) == "SERVICE NAME SOURCE BASE URL AUTH CHECKED BY PREFIXES CHANGED"
    assert len(lines) == len(SHIPPED) + 1
    changed = "OPENAI OpenAI changed http://127.0.0.1:9187 bearer GET /v1/ping sk- base_url check"
    assert " ".join(lines[0].split()) == changed
    assert lines[1].split()[:3] == ["ANTHROPIC", "Anthropic", "shipped"]
    assert " ".join(lines[-1].split()) == r"MINE Mine\x07 added https://ai.example.com x-key - mine- -"


def test_what_the_file_changes_is_shown_with_its_shipped_value(with_file: dict[str, str]) -> None:
    (openai, *_, mine) = json.loads(keyman("services", "--json", env=with_file).out)
    assert openai["changed"] == ["base_url", "check"]
    assert openai["shipped"] == {
        "base_url": "https://api.openai.com",
        "check": {"method": "GET", "path": "/v1/models", "url": None},
    }
    assert openai["check"] == {"method": "GET", "path": "/v1/ping", "url": None}
    assert (mine["source"], mine["auth"], mine["paths"]) == ("added", "x-key", ["POST /v1/chat"])


def test_one_service_is_shown_with_its_paths(with_file: dict[str, str]) -> None:
    shown = keyman("services", "OPENAI", env=with_file)
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert lines[0] == "service        OPENAI"
    assert keyman("services", "aws-bedrock", env=with_file).out.startswith("service        AWS_BEDROCK\n")
    assert "base URL       http://127.0.0.1:9187" in lines
    assert "paths          POST /v1/chat/completions" in lines
    assert "               GET /v1/models/{model}" in lines
    assert lines[-2:] == [
        "changed        base_url, shipped as https://api.openai.com",
        "               check, shipped as GET /v1/models",
    ]
    assert [one["service"] for one in json.loads(keyman("services", "openai", "--json", env=with_file).out)] == [
        "OPENAI"
    ]
    assert r"Mine\x07" in keyman("services", "MINE", env=with_file).out


def test_an_unknown_service_is_wrong_usage() -> None:
    wrong = keyman("services", "no-such")
    assert wrong.code == 2
    assert "the known services are OPENAI, ANTHROPIC" in wrong.err


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "services.json"
    file.write_text('[{"service": "MINE"}]')
    wrong = keyman("services", env=environment(KEYMAN_SERVICES_FILE=str(file)))
    assert failed(wrong) == "keyman: KEYMAN_SERVICES_FILE has an invalid entry 1: it needs a name\n"
