"""The identity provider: what keyman sends to it, and what of its answers it believes."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from keyman.config.oidc import OidcSettings
from keyman.errors import InvalidRequest, IssuerUnavailable
from keyman.identity import provider as providers
from keyman.identity.provider import Provider
from keyman.identity.visits import Begun
from keyman.secret import Secret
from tests.support.http import HANG_UP, RESET, SILENCE, Reply, Request, answer, faulty_server
from tests.support.openid import Forger, query_of

pytestmark = pytest.mark.anyio

BASE = "https://keys.example.com/keyman"


class Counterpart:
    """A provider that is a forger, except for `fails`: replies by the beginning of a path."""

    def __init__(self) -> None:
        self.forger = Forger()
        self.fails: dict[str, Reply] = {}

    def __call__(self, request: Request) -> Reply:
        failed = next((reply for path, reply in self.fails.items() if request.target.startswith(path)), None)
        return failed or self.forger(request)

    def provider(self, **settings: Any) -> Provider:
        known = {"issuer": self.forger.address, "client_id": "keyman", **settings}
        return Provider(OidcSettings(**known), BASE)


@pytest.fixture
async def other() -> AsyncIterator[Counterpart]:
    running = Counterpart()
    async with faulty_server(running) as server:
        running.forger.address = server.address
        yield running


BAD = [
    HANG_UP,
    RESET,
    Reply(500, b"{}"),
    Reply(200, b"<html>"),
    Reply(200, b"[]"),
    Reply(200, b'{"sub": "user-43", "issuer": "http://127.0.0.1/other"'),
    Reply(200, b"{" + b" " * 300_000 + b"}"),
    Reply(200, b'{"a": ' * 100_000),
    Reply(302, b"{}", {"Location": "http://127.0.0.1:9/"}),
]


@pytest.mark.parametrize("reply", BAD)
async def test_nonsense_and_absence_become_one_fault(other: Counterpart, reply: Reply) -> None:
    other.fails["/.well-known"] = reply
    with pytest.raises(IssuerUnavailable):
        await other.provider().metadata()
    del other.fails["/.well-known"]
    other.fails = {"/token": reply, "/userinfo": reply}
    provider = other.provider()
    with pytest.raises(IssuerUnavailable) as refused:
        await provider.exchange("the-code", "the-verifier")
    assert refused.value.__context__ is None
    with pytest.raises(IssuerUnavailable):
        await provider.userinfo(Secret("access"), "user-42")


async def test_a_silent_provider_is_not_waited_for(other: Counterpart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "TIMEOUT", 0.2)
    other.fails["/token"] = SILENCE
    with pytest.raises(IssuerUnavailable):
        await other.provider().exchange("the-code", "the-verifier")


@pytest.mark.parametrize(
    "metadata",
    [
        {"authorization_endpoint": "http://provider.example/authorize"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": "https://a;script-src/authorize"},
        {"token_endpoint": "http://provider.example/token"},
        {"token_endpoint": None},
        {"jwks_uri": ["https://provider.example"]},
        {"userinfo_endpoint": "ftp://127.0.0.1/"},
        {"end_session_endpoint": "https://user:password@provider.example/"},
        {"issuer": "https://other.example"},
    ],
)
async def test_discovery_with_an_address_that_is_not_safe_is_refused(
    other: Counterpart, metadata: dict[str, Any]
) -> None:
    other.forger.metadata = metadata
    with pytest.raises(IssuerUnavailable):
        await other.provider().metadata()


async def test_the_issuer_is_compared_byte_for_byte(other: Counterpart) -> None:
    with pytest.raises(IssuerUnavailable):
        await other.provider(issuer=f"{other.forger.address}/").metadata()


async def test_metadata_counts_while_the_provider_is_away(other: Counterpart, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = other.provider()
    found = await provider.metadata()
    monkeypatch.setattr(providers, "FRESH", 0.0)
    other.fails["/.well-known"] = HANG_UP
    assert await provider.metadata() == found
    monkeypatch.setattr(providers, "STALE", 0.0)
    with pytest.raises(IssuerUnavailable):
        await provider.metadata()


async def test_sign_ins_that_wait_do_not_repeat_a_failed_discovery(other: Counterpart) -> None:
    other.fails["/.well-known"] = HANG_UP
    provider = other.provider()
    for _ in range(5):
        with pytest.raises(IssuerUnavailable):
            await provider.metadata()
    del other.fails["/.well-known"]
    with pytest.raises(IssuerUnavailable):
        await provider.metadata()


@pytest.mark.parametrize(
    ("methods", "secret", "sent"),
    [
        (None, True, "basic"),
        (["client_secret_post", "client_secret_basic"], True, "basic"),
        (["client_secret_post"], True, "post"),
        (["client_secret_basic"], False, "none"),
    ],
)
async def test_the_client_authenticates_as_the_provider_wants(
    other: Counterpart, methods: object, secret: bool, sent: str
) -> None:
    other.forger.metadata["token_endpoint_auth_methods_supported"] = methods
    provider = other.provider(client_secret=Secret("s:e/c%") if secret else None)
    await provider.exchange("the-code", "the-verifier")
    form, header = other.forger.forms[-1], other.forger.authorizations[-1]
    assert (form["code"], form["code_verifier"]) == ("the-code", "the-verifier")
    assert form["redirect_uri"] == f"{BASE}/auth/oidc/callback"
    assert (header == f"Basic {base64.b64encode(b'keyman:s%3Ae%2Fc%25').decode()}") == (sent == "basic")
    assert (form.get("client_secret") == "s:e/c%") == (sent == "post")
    assert ("client_id" in form) == (sent != "basic")


async def test_a_code_that_the_provider_refuses_is_the_browsers_fault(other: Counterpart) -> None:
    other.fails["/token"] = answer({"error": "invalid_grant", "error_description": "<secret>"}, 400)
    with pytest.raises(InvalidRequest) as refused:
        await other.provider().exchange("used", "the-verifier")
    assert "secret" not in str(refused.value)


async def test_the_address_has_pkce_and_asks_for_a_new_sign_in_only_as_a_proof(other: Counterpart) -> None:
    provider = other.provider(scopes="openid groups")
    begun = Begun("the-state", "the-nonce", Secret("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"), Secret("c"))
    query = query_of(await provider.authorization_url(begun))
    assert query == {
        "response_type": "code",
        "client_id": "keyman",
        "redirect_uri": f"{BASE}/auth/oidc/callback",
        "scope": "openid groups",
        "state": "the-state",
        "nonce": "the-nonce",
        "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",  # RFC 7636, appendix B
        "code_challenge_method": "S256",
    }
    proof = query_of(await provider.authorization_url(begun, max_age=0))
    assert (proof["prompt"], proof["max_age"]) == ("login", "0")


async def test_another_users_userinfo_is_refused(other: Counterpart) -> None:
    other.forger.userinfo = {"sub": "user-43"}
    with pytest.raises(InvalidRequest):
        await other.provider().userinfo(Secret("access"), "user-42")
