"""`keyman.providers.file`: what an operator may say about where a service is, and what is sent there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyman.errors import ConfigurationError
from keyman.providers.catalogue import Catalogue
from keyman.providers.file import RESERVED
from keyman.providers.paths import PathRule, allows
from keyman.providers.services import SHIPPED, Service
from keyman.providers.settings import ENDPOINT
from keyman.providers.upstreams import Check, Upstream
from tests.support.fast import examples

CANARY = "kNrYcAnArY"
ACME = {"service": "ACME", "name": "Acme", "base_url": "https://api.acme.example"}
REGIONAL = {**ACME, "settings": ["region", "api_version", "endpoint"], "allowed_hosts": [".acme.example"]}


def loaded(tmp_path: Path, entry: object) -> Service:
    path = tmp_path / "services.json"
    path.write_text(json.dumps([entry]))
    found = Catalogue.load(path).find(entry["service"] if isinstance(entry, dict) else "")
    assert found is not None
    return found


def upstream(service: str) -> Upstream:
    found = Catalogue().find(service)
    assert found is not None
    assert found.upstream is not None
    return found.upstream


def test_an_entry_keeps_what_it_does_not_give(tmp_path: Path) -> None:
    service = loaded(tmp_path, {"service": "ANTHROPIC", "base_url": "http://127.0.0.1:9"})
    assert (service.name, service.prefix, service.exclusive) == ("Anthropic", "sk-ant-", ("sk-ant-",))
    assert service.upstream is not None
    shipped = upstream("ANTHROPIC")
    assert service.upstream.base_url == "http://127.0.0.1:9"
    assert (service.upstream.auth, service.upstream.paths) == ("x-api-key", shipped.paths)


def test_an_entry_can_give_back_a_default(tmp_path: Path) -> None:
    service = loaded(tmp_path, {"service": "ANTHROPIC", "auth": "bearer", "exclusive": [], "prefix": None})
    assert service.upstream is not None
    assert (service.upstream.auth, service.exclusive, service.prefixes) == ("bearer", (), ())


@pytest.mark.parametrize("service", ["HUGGINGFACE", "FIREWORKS", "AWS_BEDROCK"])
def test_another_base_url_takes_away_a_check_at_the_address_of_the_provider(tmp_path: Path, service: str) -> None:
    elsewhere = {"service": service, "base_url": "https://llm.acme.example"}
    moved = loaded(tmp_path, elsewhere).upstream
    assert moved is not None
    assert moved.check is None
    own = loaded(tmp_path, {**elsewhere, "check": {"path": "/me"}}).upstream
    assert own is not None
    assert own.check == Check(path="/me")
    for entry in ({"service": service, "auth": "x-key"}, {"service": service, "base_url": upstream(service).base_url}):
        kept = loaded(tmp_path, entry).upstream
        assert kept is not None
        assert kept.check == upstream(service).check


def test_another_base_url_keeps_a_check_below_it(tmp_path: Path) -> None:
    moved = loaded(tmp_path, {"service": "MISTRAL", "base_url": "https://llm.acme.example"}).upstream
    assert moved is not None
    assert moved.check == upstream("MISTRAL").check


def test_the_url_of_a_check_can_have_a_setting_that_decides_where_a_key_is_sent(tmp_path: Path) -> None:
    check = {"url": "https://me.{region}.acme.example/v1/{region}/me"}
    found = loaded(tmp_path, {**ACME, "settings": ["region"], "check": check}).upstream
    assert found is not None
    assert found.check == Check(url=check["url"])


def test_only_a_service_with_a_base_url_is_forwarded(tmp_path: Path) -> None:
    assert loaded(tmp_path, {"service": "ACME", "name": "Acme"}).upstream is None
    assert {info.service for info in Catalogue().infos() if not info.forwarded} == {"GOOGLE_VERTEX"}


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        *(
            ({**ACME, "base_url": url}, "base_url")
            for url in (
                "http://api.acme.example",
                "http://10.0.0.1",
                "http://localhost:1",
                "http://127.999.1.1",  # it looks like an address, but it is a name
                "ftp://api.acme.example",
                f"https://{CANARY}@api.acme.example",
                "https://api.acme.example/",
                "https://api.acme.example?x=1",
                "https://api.acme.example#x",
                "https://api.acme.example/../x",
                "https://api.acme.example/%2e",
                "https://api.acme.example:99999",
                "https://API.acme.example",
                "https://exämple.com",
                "https://api.acme.example\\x",
                "https://{tenant}.acme.example",
                "{endpoint}",
                "",
            )
        ),
        *(({**ACME, "auth": name}, "auth") for name in ("", "Bearer", "x api", "host", "cookie", f"x-{CANARY}:", "é")),
        *(
            ({**ACME, "paths": [entry]}, "a path must be")
            for entry in ("/v1", "GET", "GET v1", "GET /", "GET //", "GET /a/..", "GET /a%2f", "get /a", "GET /{}")
        ),
        ({**ACME, "check": {}}, "check"),
        ({**ACME, "check": {"path": "/a", "url": "https://a.example"}}, "check"),
        ({**ACME, "check": {"path": "/a", CANARY: 1}}, "check"),
        ({**ACME, "check": {"path": "/a", "method": CANARY}}, "check"),
        ({**ACME, "check": {"path": "/v1/models/{model}"}}, "the path of check"),
        *(
            ({**REGIONAL, "check": {"url": url}}, "the url of check")
            for url in (
                "http://10.0.0.1",
                "https://{tenant}.acme.example/me",
                "https://{location}.acme.example/me",
                "https://{api_version}.acme.example/me",
                "https://acme.example/{api_version}",
                "https://{region.acme.example/me",
                "https://region}.acme.example/me",
                "{endpoint}",
            )
        ),
        *(
            ({**REGIONAL, "base_url": url}, "base_url")
            for url in ("https://{endpoint}.acme.example", "https://a}b.acme.example", "https://{}.acme.example")
        ),
        ({**ACME, "allow_private": "yes"}, "allow_private"),
        *(
            ({**ACME, "allowed_hosts": [host]}, "allowed_hosts")
            for host in (
                "",
                ".",
                "*.acme.example",
                "10.0.0.1",
                "https://a.example",
                "a.example/",
                ".a.example:1",
                "A.b",
            )
        ),
        ({**ACME, "settings": [CANARY]}, "settings"),
        ({**ACME, "settings": ["endpoint"]}, "allowed_hosts must name"),
        ({**ACME, "settings": ["endpoint"], "allowed_hosts": []}, "allowed_hosts must name"),
        ({"service": "AZURE_OPENAI", "allowed_hosts": []}, "allowed_hosts must name"),
        ({"service": "ACME", "name": "Acme", "auth": "bearer"}, "base_url"),
        *(({**ACME, "service": name}, "service") for name in sorted(RESERVED)),
    ],
)
def test_a_wrong_entry_stops_the_start(tmp_path: Path, entry: object, word: str) -> None:
    path = tmp_path / "services.json"
    path.write_text(json.dumps([entry]))
    with pytest.raises(ConfigurationError) as refused:
        Catalogue.load(path)
    assert word in str(refused.value)
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:11434", "http://[::1]:8080/v1", "https://10.1.2.3"])
def test_a_base_url_that_is_written_as_a_private_address_allows_itself(tmp_path: Path, url: str) -> None:
    service = loaded(tmp_path, {**ACME, "base_url": url})
    assert service.upstream is not None
    assert service.upstream.may_be_private
    assert not upstream("OPENAI").may_be_private


def test_every_shipped_service_could_stand_in_a_file(tmp_path: Path) -> None:
    for service in SHIPPED:
        assert loaded(tmp_path, {"service": service.service}) == service


def test_an_exact_host_and_a_suffix_are_matched_at_a_dot() -> None:
    hosts = (".openai.azure.com", "llm.acme.example:8443")
    for good in ("https://a.openai.azure.com", "https://a.b.openai.azure.com:443/", "https://llm.acme.example:8443"):
        assert ENDPOINT.accepts(good, hosts), good
    for bad in (
        "https://openai.azure.com",
        "https://xopenai.azure.com",
        "https://a.openai.azure.com.evil.example",
        "https://llm.acme.example",
        "https://llm.acme.example:443",
        "https://x.llm.acme.example:8443",
    ):
        assert not ENDPOINT.accepts(bad, hosts), bad


def allowed(service: str, method: str, path: str) -> bool:
    return allows(upstream(service).rules(), method, path)


@pytest.mark.parametrize(
    ("service", "method", "path"),
    [
        ("OPENAI", "POST", "/v1/chat/completions"),
        ("OPENAI", "POST", "/v1/responses"),
        ("OPENAI", "POST", "/v1/embeddings"),
        ("OPENAI", "POST", "/v1/moderations"),
        ("OPENAI", "POST", "/v1/images/generations"),
        ("OPENAI", "POST", "/v1/audio/speech"),
        ("OPENAI", "GET", "/v1/models"),
        ("OPENAI", "HEAD", "/v1/models"),
        ("OPENAI", "GET", "/v1/models/gpt-4o-2024-08-06"),
        ("OPENAI", "GET", "/v1/models/ft:gpt-4o:acme::1"),
        ("ANTHROPIC", "POST", "/v1/messages"),
        ("ANTHROPIC", "POST", "/v1/messages/count_tokens"),
        ("ANTHROPIC", "GET", "/v1/models"),
        ("ANTHROPIC", "GET", "/v1/models/claude-sonnet-4-5"),
        ("GOOGLE", "POST", "/v1beta/models/gemini-2.5-pro:streamGenerateContent"),
        ("GOOGLE", "POST", "/v1/models/gemini-2.5-pro:countTokens"),
        ("GOOGLE", "GET", "/v1beta/models"),
        ("GOOGLE", "GET", "/v1/models"),
        *(
            ("GOOGLE", "POST", f"/{version}/models/gemini-2.5-pro:{verb}")
            for version in ("v1beta", "v1")
            for verb in ("generateContent", "streamGenerateContent", "embedContent", "batchEmbedContents")
        ),
        ("AZURE_OPENAI", "POST", "/openai/v1/chat/completions"),
        ("AWS_BEDROCK", "POST", "/openai/v1/chat/completions"),
        ("AWS_BEDROCK", "POST", "/model/amazon.nova-lite-v1:0/converse"),
    ],
)
def test_what_the_sdks_ask_for_is_allowed(service: str, method: str, path: str) -> None:
    assert allowed(service, method, path)


@pytest.mark.parametrize(
    ("service", "method", "path"),
    [
        ("OPENAI", "GET", "/v1/chat/completions"),
        ("OPENAI", "DELETE", "/v1/models/x"),
        ("OPENAI", "POST", "/v1/files"),
        ("OPENAI", "POST", "/v1/fine_tuning/jobs"),
        ("OPENAI", "GET", "/v1/organization/users"),
        ("OPENAI", "GET", "/v1/models/"),
        ("OPENAI", "GET", "/v1/models/a/b"),
        ("OPENAI", "GET", "/v1/Models"),
        ("OPENAI", "GET", "/v1/models\n"),
        ("OPENAI", "GET", "/v1/models/.."),
        ("OPENAI", "GET", f"/v1/models/{'x' * 201}"),
        ("GOOGLE", "POST", "/v1beta/models/m:delete"),
        ("GOOGLE", "POST", "/v1beta/models/m:delete:generateContent"),
        ("GOOGLE", "POST", "/v1beta/models/m"),
        ("ANTHROPIC", "POST", "/v1/messages/batches"),
    ],
)
def test_nothing_else_is_allowed(service: str, method: str, path: str) -> None:
    assert not allowed(service, method, path)


@settings(max_examples=examples(300))
@given(segment=st.text(max_size=12))
def test_a_placeholder_is_one_segment_of_plain_characters(segment: str) -> None:
    rule = PathRule.parse("GET /v1/models/{model}")
    plain = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~:@-")
    assert rule.allows("GET", f"/v1/models/{segment}") == (
        0 < len(segment) <= 200 and set(segment) <= plain and segment not in (".", "..")
    )


def test_a_placeholder_has_at_most_200_characters_and_a_path_is_matched_whole() -> None:
    rule = PathRule.parse("GET /v1/models/{model}:countTokens")
    assert rule.allows("GET", f"/v1/models/{'x' * 200}:countTokens")
    for path in (
        f"/v1/models/{'x' * 201}:countTokens",
        "/v1/models/x:counttokens",
        "/V1/models/x:countTokens",
        "/v1/models/x:countTokens/",
        "/v1/models/x:countTokensAndMore",
        "/v1/models/:countTokens",
        "/v1/models/a:b:countTokens",
        "/x/v1/models/x:countTokens",
    ):
        assert not rule.allows("GET", path), path
    assert rule.allows("HEAD", "/v1/models/x:countTokens")
    assert not rule.allows("POST", "/v1/models/x:countTokens")


PROVIDERS = {
    "OPENAI": ("https://api.openai.com", "bearer", "GET /v1/models"),
    "ANTHROPIC": ("https://api.anthropic.com", "x-api-key", "GET /v1/models"),
    "GOOGLE": ("https://generativelanguage.googleapis.com", "x-goog-api-key", "GET /v1/models"),
    "AZURE_OPENAI": ("{endpoint}", "api-key", "GET /openai/v1/models"),
    "MISTRAL": ("https://api.mistral.ai", "bearer", "GET /v1/models"),
    "COHERE": ("https://api.cohere.com", "bearer", "POST /v1/check-api-key"),
    "GROQ": ("https://api.groq.com", "bearer", "GET /openai/v1/models"),
    "XAI": ("https://api.x.ai", "bearer", "GET /v1/api-key"),
    "DEEPSEEK": ("https://api.deepseek.com", "bearer", "GET /user/balance"),
    "PERPLEXITY": ("https://api.perplexity.ai", "bearer", None),
    "TOGETHER": ("https://api.together.xyz", "bearer", "GET /v1/models"),
    "OPENROUTER": ("https://openrouter.ai/api", "bearer", "GET /v1/key"),
    "HUGGINGFACE": ("https://router.huggingface.co", "bearer", "GET https://huggingface.co/api/whoami-v2"),
    "REPLICATE": ("https://api.replicate.com", "bearer", "GET /v1/account"),
    "FIREWORKS": (
        "https://api.fireworks.ai/inference",
        "bearer",
        "GET https://api.fireworks.ai/v1/accounts/fireworks/models",
    ),
    "CEREBRAS": ("https://api.cerebras.ai", "bearer", "GET /v1/models"),
    "NVIDIA": ("https://integrate.api.nvidia.com", "bearer", None),
    "OLLAMA_CLOUD": ("https://ollama.com", "bearer", None),
    "AWS_BEDROCK": (
        "https://bedrock-runtime.{region}.amazonaws.com",
        "bearer",
        "GET https://bedrock.{region}.amazonaws.com/foundation-models",
    ),
    "GOOGLE_VERTEX": None,
}
"""Where a key goes, how, and what a live check asks, from the documentation of the providers. It stands here a second
time, because a slip in the code sends every key of a service to somebody else.
"""


def test_a_key_goes_where_the_documentation_of_its_provider_says() -> None:
    def facts(service: Service) -> tuple[str, str, str | None] | None:
        found = service.upstream
        if found is None:
            return None
        check = found.check
        return found.base_url, found.auth, None if check is None else f"{check.method} {check.url or check.path}"

    assert {service.service: facts(service) for service in SHIPPED} == PROVIDERS
    with_headers = {one.service: one.upstream.headers for one in SHIPPED if one.upstream and one.upstream.headers}
    assert with_headers == {"ANTHROPIC": (("anthropic-version", "2023-06-01"),)}


def test_the_other_paths_of_the_gateway_are_no_services() -> None:
    assert {"V1", "LIVEZ", "READYZ", "METRICS", "PROBLEMS", "OPENAPI", "DOCS"} == RESERVED
    assert not RESERVED & {service.service for service in SHIPPED}


def test_a_shipped_check_only_reads_and_none_calls_a_model() -> None:
    checks = {one.service: one.upstream.check for one in SHIPPED if one.upstream is not None}
    others = {name: check for name, check in checks.items() if check is not None and check.method != "GET"}
    assert others == {"COHERE": Check("POST", "/v1/check-api-key")}
    assert {name for name, check in checks.items() if check is None} == {"PERPLEXITY", "NVIDIA", "OLLAMA_CLOUD"}


def test_no_path_of_a_shipped_service_deletes_anything() -> None:
    entries = [entry for service in SHIPPED if service.upstream for entry in service.upstream.paths]
    assert entries
    assert {entry.split()[0] for entry in entries} == {"GET", "POST"}
    assert not [
        entry for entry in entries if any(word in entry for word in ("files", "fine", "organization", "batch "))
    ]
