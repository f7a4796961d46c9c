"""`keyman doctor` and the issuer of JSON Web Tokens."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from keyman.config.identity import JwtSettings
from keyman.config.oidc import OidcSettings
from keyman.config.settings import Settings
from keyman.config.vault import VaultSettings
from keyman.doctor.findings import Finding, State
from keyman.doctor.issuer import examine
from tests.support.http import Reply, answer
from tests.support.issuer import AUDIENCE, Issuer, served

pytestmark = pytest.mark.anyio

NONE = Settings(make_url("sqlite+aiosqlite:////nowhere"), VaultSettings("https://vault.example.com"))


async def found(jwt: JwtSettings | None) -> list[tuple[State, str]]:
    return [(finding.state, finding.found) async for finding in examine(replace(NONE, jwt=jwt))]


async def found_of_provider(issuer: str) -> dict[str, Finding]:
    settings = replace(NONE, oidc=OidcSettings(issuer, "keyman"), public_url="https://keys.example.com")
    return {finding.check: finding async for finding in examine(settings)}


def discovered(issuer: Issuer, **changes: object) -> Reply:
    names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
    paths = ("/authorize", "/token", "/jwks")
    addresses = {name: f"{issuer.url}{path}" for name, path in zip(names, paths, strict=True)}
    return answer({"issuer": issuer.url, **addresses, **changes})


async def test_without_an_issuer_there_is_nothing_to_check() -> None:
    assert await found(None) == []


async def test_the_keys_are_discovered_and_counted() -> None:
    async with served("ES256", "RS256") as issuer:
        jwt = JwtSettings(issuer.url, AUDIENCE)
        assert await found(jwt) == [(State.OK, "has 2 keys that keyman can use")]
        issuer.replies["/jwks"] = lambda: answer({"keys": []})
        ((state, _),) = await found(jwt)
        assert state is State.WARNING
        issuer.replies["/jwks"] = lambda: answer({}, 500)
        ((state, text),) = await found(jwt)
        assert (state, "status 500" in text, issuer.url in text) == (State.FAILED, True, False)
        ((state, text),) = await found(JwtSettings(f"{issuer.url}/", AUDIENCE))
        assert (state, "another issuer" in text) == (State.FAILED, True)


async def test_a_file_is_read(tmp_path: Path) -> None:
    issuer, file = Issuer(), tmp_path / "jwks.json"
    file.write_bytes(issuer.jwks())
    jwt = JwtSettings(issuer.url, AUDIENCE, jwks_file=file)
    assert await found(jwt) == [(State.OK, "has 1 key that keyman can use")]
    file.write_text("{}")
    ((state, _),) = await found(jwt)
    assert state is State.FAILED


def dated(reply: Reply, moment: datetime) -> Reply:
    return replace(reply, headers={**reply.headers, "Date": format_datetime(moment, usegmt=True)})


@pytest.mark.parametrize(("hours", "state"), [(0, State.OK), (1, State.FAILED), (-1, State.FAILED)])
async def test_a_clock_that_differs_is_named(hours: int, state: State) -> None:
    async with served("ES256") as issuer:
        moment = datetime.now(UTC) + timedelta(hours=hours)
        issuer.replies["/jwks"] = lambda: dated(Reply(200, issuer.jwks()), moment)
        _, (clock, text) = await found(JwtSettings(issuer.url, AUDIENCE))
        assert (clock, "the issuer's" in text) == (state, True)


async def test_a_provider_that_redirects_back_knows_the_redirect_address() -> None:
    callback = "https://keys.example.com/auth/oidc/callback"
    async with served("ES256") as issuer:
        issuer.replies["/.well-known/openid-configuration"] = lambda: discovered(issuer)
        for reply, state in (
            (Reply(303, b"", {"Location": f"{callback}?error=login_required"}), State.OK),
            (Reply(303, b"", {"Location": "https://elsewhere.example.com/"}), State.WARNING),
            (Reply(200, b"<p>Sign in"), State.WARNING),
            (Reply(400, b"unknown redirect_uri"), State.FAILED),
        ):
            issuer.replies["/authorize"] = lambda reply=reply: reply  # type: ignore[misc]  # bound now
            findings = await found_of_provider(issuer.url)
            assert findings["oidc-provider"].state is State.OK
            assert findings["oidc-redirect"].state is state
            assert callback in f"{findings['oidc-redirect'].found} {findings['oidc-redirect'].remedy}"


async def test_a_provider_that_cannot_be_used_is_named_in_words() -> None:
    async with served("ES256") as issuer:
        (finding,) = (await found_of_provider(f"{issuer.url}/")).values()
        assert (finding.state, "another issuer" in finding.found) == (State.FAILED, True)
        issuer.replies["/.well-known/openid-configuration"] = lambda: discovered(issuer, token_endpoint="http://a.b/")
        (finding,) = (await found_of_provider(issuer.url)).values()
        assert (finding.state, "not https" in finding.found) == (State.FAILED, True)
        issuer.replies["/jwks"] = lambda: answer({}, 500)
        (finding,) = (await found_of_provider(issuer.url)).values()
        assert (finding.state, "status 500" in finding.found) == (State.FAILED, True)
