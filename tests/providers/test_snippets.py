"""The lines with which somebody uses a key through the gateway, for each service."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from keyman.providers.catalogue import Catalogue
from keyman.providers.file import read_services
from keyman.providers.paths import allows
from keyman.providers.services import Service
from keyman.providers.snippets import VARIABLE, snippets
from keyman.providers.upstreams import Upstream

GATEWAY = "https://gateway.example.com"
FORWARDED = [service for service in Catalogue().services() if service.upstream is not None]


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
    names = re.findall(r"export ([A-Z_]+)=", lines.variables)
    assert names == [name for name in (lines.url_variable, lines.token_variable) if name]


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
    assert plain == (f"{GATEWAY}/acme-2", "", "", "", None, None)
    assert like is not None
    assert like.url == f"{GATEWAY}/like-openai/api/v1"
    assert f'OPENAI_BASE_URL="{like.url}"' in like.variables
    assert kept is None
