"""JSON Web Tokens of OpenBao: identity tokens for users and for applications, and ID tokens, which are neither."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from secrets import token_hex
from urllib.parse import urlencode

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import URL

from keyman.config.identity import JwtSettings
from keyman.identity import applications
from keyman.identity.applications import ALL_USERS, Users, Workload
from keyman.identity.issuers import Issuer
from keyman.identity.passwords import Passwords
from keyman.identity.tables import users
from keyman.values import ApplicationName, Subject
from tests.planes.management.api.harness import OPENAI_KEY, api_plane_at, problem
from tests.planes.resolver.pair import Pair, resolver_at
from tests.planes.resolver.test_portal import arrived
from tests.planes.resolver.test_portal_links import PORTAL, link
from tests.support.http import NO_TLS
from tests.support.issuer import decoded
from tests.support.needs import quick
from tests.support.openid import BaoProvider, bao_provider, query_of
from tests.support.planes import ORIGIN, Vault
from tests.support.vault import RootClient

pytestmark = pytest.mark.anyio

POLICY = "keyman-test-tokens"
BACK = "http://127.0.0.1:1/callback"
_NUMBERS = itertools.count()


class Bao:
    """OpenBao as the issuer of JWTs. It publishes all of its keys, and keyman takes 100: so each kind has one."""

    def __init__(self, address: str, root: RootClient, algorithm: str) -> None:
        self.address, self.root = address, root
        self.url = f"{address}/v1/identity/oidc"
        self.key = f"jwt-{algorithm}"
        root.ask("POST", "identity/oidc/config", {"issuer": address})
        root.ask(
            "PUT", f"sys/policies/acl/{POLICY}", {"policy": 'path "identity/oidc/token/*" { capabilities = ["read"] }'}
        )
        root.ask("POST", f"identity/oidc/key/{self.key}", {"algorithm": algorithm, "allowed_client_ids": "*"})
        if "userpass/" not in root.ask("GET", "sys/auth"):
            root.ask("POST", "sys/auth/userpass", {"type": "userpass"})

    def person(self) -> str:
        name = f"jwt-{next(_NUMBERS)}-{token_hex(4)}"
        self.root.ask("POST", f"auth/userpass/users/{name}", {"password": name, "token_policies": POLICY})
        return name

    def token(self, person: str, audience: str = "keyman", **template: str) -> str:
        """A JWT of this person for this audience, with the claims of the template."""
        role = f"{self.key}-{next(_NUMBERS)}-{token_hex(4)}"
        claims = ", ".join(f'"{name}": "{value}"' for name, value in template.items())
        body = {"key": self.key, "client_id": audience, "template": f"{{{claims}}}", "ttl": "5m"}
        self.root.ask("POST", f"identity/oidc/role/{role}", body)
        url = f"{self.address}/v1/auth/userpass/login/{person}"
        login = httpx.post(url, json={"password": person}, verify=NO_TLS).raise_for_status().json()
        headers = {"X-Vault-Token": login["auth"]["client_token"]}
        given = httpx.get(f"{self.url}/token/{role}", headers=headers, verify=NO_TLS).raise_for_status().json()
        return str(given["data"]["token"])

    def rotate(self) -> None:
        self.root.ask("POST", f"identity/oidc/key/{self.key}/rotate", {"verification_ttl": "1h"})


@pytest.fixture(params=quick(["RS256"], ["ES256", "ES384", "EdDSA"]))
def vault_issuer(provisioned: Vault, request: pytest.FixtureRequest) -> Bao:
    server = provisioned.server
    return Bao(server.address, RootClient(server.address, server.root_token.reveal()), request.param)


Opened = Callable[[JwtSettings], AbstractAsyncContextManager[Pair]]


@pytest.fixture
def open_pair(database: URL, provisioned: Vault, quick_passwords: PasswordHasher) -> Opened:
    """Both planes, with the settings for JWTs of users."""

    @asynccontextmanager
    async def opened(jwt: JwtSettings) -> AsyncIterator[Pair]:
        async with (
            api_plane_at(database, provisioned.settings, Passwords(quick_passwords), jwt=jwt) as management,
            resolver_at(database, provisioned.resolver, jwt=jwt, public_url=ORIGIN) as resolver,
        ):
            yield Pair(management, resolver)

    return opened


def caller(pair: Pair, token: str) -> httpx.AsyncClient:
    return pair.management.client(headers={"Authorization": f"Bearer {token}"})


async def test_a_person_leaves_a_key_with_a_jwt_and_an_application_gets_it_by_the_subject(
    open_pair: Opened, vault_issuer: Bao
) -> None:
    ada = vault_issuer.person()
    async with open_pair(JwtSettings(vault_issuer.url, "keyman")) as pair:
        token = vault_issuer.token(ada)
        client = caller(pair, token)
        assert (await client.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})).status_code == 201
        again = caller(pair, vault_issuer.token(ada))
        assert len((await again.get("/api/keys")).json()) == 1
        shop = await pair.app(users=Users((Issuer(vault_issuer.url),)))
        answer = await shop.ask(subject=decoded(token)["sub"], service="OPENAI")
        assert (answer.status_code, answer.json()["api_key"]) == (200, OPENAI_KEY)
        problem(await shop.ask(subject=decoded(token)["sub"].upper(), service="OPENAI"), "not-found")
        eve = caller(pair, vault_issuer.token(vault_issuer.person()))
        assert (await eve.get("/api/keys")).json() == []
        assert await pair.management.count(users) == 2


async def test_the_scopes_are_those_in_the_token(open_pair: Opened, vault_issuer: Bao) -> None:
    ada = vault_issuer.person()
    async with open_pair(JwtSettings(vault_issuer.url, "keyman")) as pair:
        reading = caller(pair, vault_issuer.token(ada, scope="openid keys:read"))
        assert (await reading.get("/api/keys")).status_code == 200
        body = {"service": "OPENAI", "api_key": OPENAI_KEY}
        problem(await reading.post("/api/keys", json=body), "forbidden")
        problem(await caller(pair, vault_issuer.token(ada)).get("/api/tokens"), "forbidden")
        managing = caller(pair, vault_issuer.token(ada, scope="tokens:manage"))
        assert (await managing.get("/api/tokens")).status_code == 200


async def test_a_token_for_another_audience_and_one_of_another_issuer_are_refused(
    open_pair: Opened, vault_issuer: Bao
) -> None:
    ada = vault_issuer.person()
    async with open_pair(JwtSettings(vault_issuer.url, "keyman")) as pair:
        refused = await caller(pair, vault_issuer.token(ada, "another")).get("/api/keys")
        assert "aud" in problem(refused, "unauthenticated")["detail"]
        assert refused.headers["www-authenticate"] == 'Bearer error="invalid_token"'
        broken = vault_issuer.token(ada)[:-6] + "AAAAAA"
        assert "signature" in problem(await caller(pair, broken).get("/api/keys"), "unauthenticated")["detail"]
    elsewhere = JwtSettings(f"{vault_issuer.url}/", "keyman", f"{vault_issuer.url}/.well-known/keys")
    async with open_pair(elsewhere) as pair:
        problem(await caller(pair, vault_issuer.token(ada)).get("/api/keys"), "unauthenticated")
        assert await pair.management.count(users) == 0


async def test_a_key_that_the_issuer_takes_is_found_at_once(
    open_pair: Opened, vault_issuer: Bao, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyman.identity.key_sets.PAUSE", 0.0)
    ada = vault_issuer.person()
    async with open_pair(JwtSettings(vault_issuer.url, "keyman")) as pair:
        old = vault_issuer.token(ada)
        assert (await caller(pair, old).get("/api/keys")).status_code == 200
        vault_issuer.rotate()
        vault_issuer.rotate()  # OpenBao signs with a key that it has published before
        new = vault_issuer.token(ada)
        assert (await caller(pair, new).get("/api/keys")).status_code == 200
        assert (await caller(pair, old).get("/api/keys")).status_code == 200


async def test_an_application_logs_in_with_its_jwt(open_pair: Opened, vault_issuer: Bao) -> None:
    pod, ada = vault_issuer.person(), vault_issuer.person()
    token = vault_issuer.token(pod, "keyman-resolver")
    async with open_pair(JwtSettings(vault_issuer.url, "keyman")) as pair:
        workload = Workload(vault_issuer.url, Subject(decoded(token)["sub"]), "keyman-resolver")
        name = ApplicationName("pod")
        await applications.create_workload(pair.resolver.database, name, ["OPENAI"], ALL_USERS, workload)
        owner = caller(pair, vault_issuer.token(ada))
        key = (await owner.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})).json()
        body = {"key_id": key["id"]}
        resolver = pair.resolver.client()

        async def resolve(jwt: str) -> httpx.Response:
            return await resolver.post("/v1/resolve", json=body, headers={"Authorization": f"Bearer {jwt}"})

        assert (await resolve(token)).json()["api_key"] == OPENAI_KEY
        for wrong in (vault_issuer.token(pod), vault_issuer.token(ada, "keyman-resolver")):
            problem(await resolve(wrong), "unauthenticated")
        problem(await caller(pair, token).get("/api/keys"), "unauthenticated")  # it is no user
        await applications.revoke(pair.resolver.database, name)
        problem(await resolve(token), "unauthenticated")


async def test_somebody_whom_an_application_named_first_is_the_same_user(open_pair: Opened, vault_issuer: Bao) -> None:
    token = vault_issuer.token(vault_issuer.person())
    async with open_pair(JwtSettings(vault_issuer.url, "keyman")) as pair:
        shop = await pair.app(users=Users((Issuer(vault_issuer.url),), PORTAL.return_urls))
        browser = await arrived(pair, shop, decoded(token)["sub"])
        named = (await browser.get("/api/auth/me")).json()["id"]
        assert (await caller(pair, token).get("/api/auth/me")).json()["id"] == named
        assert (await link(shop, decoded(token)["sub"])).status_code == 403


@pytest.fixture
def id_tokens(provisioned: Vault) -> Iterator[BaoProvider]:
    """OpenBao's OpenID provider."""
    server = provisioned.server
    with bao_provider(server.address, server.root_token.reveal(), name=f"id-{token_hex(4)}") as provider:
        provider.set_up(BACK)
        provider.add("ada", "ada@company.example")
        yield provider


def id_token_of(provider: BaoProvider) -> str:
    """The ID token of somebody who signs in at the provider, for its own client."""
    asked = {"client_id": provider.client_id, "redirect_uri": BACK, "response_type": "code", "scope": "openid"}
    code = query_of(provider.log_in(urlencode({**asked, "state": "s", "nonce": "n"}), "ada"))["code"]
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": BACK}
    login = (provider.client_id, provider.client_secret)
    given = httpx.post(f"{provider.issuer}/token", data=form, auth=login, verify=NO_TLS).raise_for_status()
    return str(given.json()["id_token"])


async def test_an_id_token_is_no_access_token(open_pair: Opened, id_tokens: BaoProvider) -> None:
    token = id_token_of(id_tokens)
    assert decoded(token)["aud"] == id_tokens.client_id
    for audience in ("keyman", id_tokens.client_id):
        async with open_pair(JwtSettings(id_tokens.issuer, audience)) as pair:
            refused = await caller(pair, token).get("/api/keys")
            assert "at_hash" in problem(refused, "unauthenticated")["detail"]
            assert await pair.management.count(users) == 0
