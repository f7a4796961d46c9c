"""JSON Web Tokens of users: who comes in with one, what it may do, and when it ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import time_machine
from argon2 import PasswordHasher
from joserfc.util import urlsafe_b64encode
from sqlalchemy import delete, insert, update
from sqlalchemy.engine import URL

from keyman.audit.tables import audit_log
from keyman.config.identity import JwtSettings
from keyman.identity.applications import ALL_USERS, Workload, create_workload, revoke
from keyman.identity.passwords import Passwords
from keyman.identity.tables import application_identities, identities, users
from keyman.keys.tables import api_keys
from keyman.storage.transactions import Unchecked
from keyman.values import ApplicationName, Subject
from tests.planes.management.api.harness import OPENAI_KEY, ApiPlane, api_plane_at, problem
from tests.support.http import answer
from tests.support.issuer import AUDIENCE, Issuer, served
from tests.support.parsing import counting_parses
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio

NEW_KEY = {"service": "OPENAI", "api_key": OPENAI_KEY}
FOREIGN = {"Origin": "https://chat.example.com", "Sec-Fetch-Site": "cross-site"}


@pytest.fixture
async def provider() -> AsyncIterator[Issuer]:
    async with served() as found:
        yield found


@pytest.fixture
async def jwt_plane(
    database: URL, provisioned: Vault, quick_passwords: PasswordHasher, provider: Issuer
) -> AsyncIterator[ApiPlane]:
    async with plane_of(database, provisioned, quick_passwords, provider) as running:
        yield running


@asynccontextmanager
async def plane_of(
    database: URL, vault: Vault, hasher: PasswordHasher, provider: Issuer, **changes: Any
) -> AsyncIterator[ApiPlane]:
    jwt = JwtSettings(provider.url, AUDIENCE, **changes)
    async with api_plane_at(database, vault.settings, Passwords(hasher), jwt=jwt) as running:
        yield running


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def refused(reply: httpx.Response, claim: str) -> None:
    found = problem(reply, "unauthenticated")
    assert reply.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert claim in found["detail"]


async def me(plane: ApiPlane, token: str) -> httpx.Response:
    return await plane.client().get("/api/auth/me", headers=bearer(token))


async def test_the_first_token_makes_a_user_who_has_keys_from_then_on(jwt_plane: ApiPlane, provider: Issuer) -> None:
    client = jwt_plane.client(headers=bearer(provider.token()))
    made = await client.post("/api/keys", json=NEW_KEY)
    assert made.status_code == 201
    again = jwt_plane.client(headers={"Authorization": f"bEARER   {provider.token()}"})
    assert [key["id"] for key in (await again.get("/api/keys")).json()] == [made.json()["id"]]
    assert (await again.get("/api/auth/me")).json()["email"] is None
    assert (await jwt_plane.client(headers=bearer(provider.token(sub="Ada"))).get("/api/keys")).json() == []


async def test_the_creation_and_each_write_are_in_the_audit_log(jwt_plane: ApiPlane, provider: Issuer) -> None:
    token = provider.token(sub="kNrY-42", scope="keys:write audit:read")  # hexadecimal digits can contain "ada"
    client = jwt_plane.client(headers=bearer(token))
    await client.post("/api/keys", json=NEW_KEY)
    entries = await jwt_plane.rows(audit_log)
    found = [(entry.action, entry.actor, entry.actor_id, entry.detail) for entry in entries if entry.user_id]
    assert found == [
        ("account.create", "token", None, f"issuer {provider.url}"),
        ("key.create", "token", None, None),
    ]
    assert "kNrY" not in repr(entries)
    shown = (await client.get("/api/audit")).json()
    assert [(entry["action"], entry["actor_token_id"], entry["detail"]) for entry in shown] == [
        ("key.create", None, None),
        ("account.create", None, f"issuer {provider.url}"),
    ]


async def test_a_hundred_first_requests_at_once_make_one_user(jwt_plane: ApiPlane, provider: Issuer) -> None:
    client = jwt_plane.client(headers=bearer(provider.token()))
    replies = await asyncio.gather(*(client.get("/api/auth/me") for _ in range(100)))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["id"] for reply in replies}) == 1
    assert (await jwt_plane.count(users), await jwt_plane.count(identities)) == (1, 1)
    assert await jwt_plane.count(audit_log) == 1


async def test_subjects_that_differ_in_case_or_form_are_different_users(jwt_plane: ApiPlane, provider: Issuer) -> None:
    found = {(await me(jwt_plane, provider.token(sub=sub))).json()["id"] for sub in ("ada", "Ada", "\u00e5", "a\u030a")}
    assert len(found) == 4


async def test_the_identity_of_an_application_counts_before_the_own_one(jwt_plane: ApiPlane, provider: Issuer) -> None:
    ada = (await me(jwt_plane, provider.token())).json()["id"]
    eve = (await me(jwt_plane, provider.token(sub="eve"))).json()["id"]
    moment = (await jwt_plane.rows(users))[0].created_at
    of_app = {"user_id": eve, "issuer": provider.url, "subject": "ada", "created_at": moment}
    await change(jwt_plane, insert(application_identities).values(of_app))
    assert (await me(jwt_plane, provider.token())).json()["id"] == eve != ada


SCOPES: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {"keys:read", "keys:write"}),
    ({"scope": "openid profile"}, {"keys:read", "keys:write"}),
    ({"scope": "openid keys:read"}, {"keys:read"}),
    ({"scp": ["keys:write", "tokens:manage"]}, {"keys:write", "tokens:manage"}),
    ({"scp": "audit:read"}, {"audit:read"}),
    ({"scope": "keys:read", "scp": ["audit:read", 5]}, {"keys:read", "audit:read"}),
    ({"scope": ["tokens:manage"]}, {"tokens:manage"}),
    ({"scope": {"tokens:manage": 1}}, {"keys:read", "keys:write"}),
    ({"scope": "KEYS:READ tokens:manage,audit:read"}, {"keys:read", "keys:write"}),
]


async def test_the_scopes_come_from_the_token_or_from_the_setting(jwt_plane: ApiPlane, provider: Issuer) -> None:
    for claims, allowed in SCOPES:
        client = jwt_plane.client(headers=bearer(provider.token(**claims)))
        asked = {
            "keys:read": await client.get("/api/keys"),
            "keys:write": await client.post("/api/keys", json=NEW_KEY),
            "tokens:manage": await client.get("/api/tokens"),
            "audit:read": await client.get("/api/audit"),
        }
        assert {scope for scope, reply in asked.items() if reply.status_code < 400} == allowed, claims
        assert {reply.status_code for scope, reply in asked.items() if scope not in allowed} <= {403}


async def test_what_needs_a_session_stays_forbidden(jwt_plane: ApiPlane, provider: Issuer) -> None:
    client = jwt_plane.client(headers=bearer(provider.token(scope="tokens:manage keys:read keys:write audit:read")))
    body = {"current_password": "x", "new_password": "correct horse battery staple"}
    problem(await client.put("/api/auth/password", json=body), "forbidden")


async def test_an_access_token_made_with_a_jwt_ends_with_it(jwt_plane: ApiPlane, provider: Issuer) -> None:
    ends = int(time.time()) + 120
    client = jwt_plane.client(headers=bearer(provider.token(scope="tokens:manage keys:read", exp=ends)))
    body = {"name": "cli", "scopes": ["keys:read"]}
    made = await client.post("/api/tokens", json=body)
    assert made.status_code == 201
    assert made.json()["expires_at"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends))
    later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends + 1))
    problem(await client.post("/api/tokens", json={**body, "expires_at": later}), "forbidden")
    problem(await client.post("/api/tokens", json={**body, "scopes": ["keys:write"]}), "forbidden")
    own = jwt_plane.client(headers=bearer(made.json()["token"]))
    assert (await own.get("/api/keys")).status_code == 200
    with time_machine.travel(ends + 1, tick=True):
        problem(await own.get("/api/keys"), "unauthenticated")


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"exp": 0}, "exp"),
    ({"exp": None}, "exp"),
    ({"aud": "other"}, "aud"),
    ({"aud": [AUDIENCE, "keyman-resolver"]}, "aud"),
    ({"sub": None}, "sub"),
    ({"sub": "a\u202eda"}, "sub"),
    ({"nbf": 2**40}, "nbf"),
    ({"at_hash": "x"}, "at_hash"),
    ({"events": {}}, "events"),
    ({"header": {"typ": "logout+jwt"}}, "typ"),
    ({"header": {"crit": ["exp"]}}, "crit"),
    ({"header": {"kid": "../../etc/passwd"}}, "kid"),
    ({"more": "x" * 16_000}, "length"),
]


async def test_each_fault_is_401_and_names_the_claim_cookie_or_not(jwt_plane: ApiPlane, provider: Issuer) -> None:
    signed_in = await jwt_plane.user()
    for changes, claim in FAULTS:
        token = provider.token(**changes)
        refused(await me(jwt_plane, token), claim)
        refused(await signed_in.get("/api/auth/me", headers=bearer(token)), claim)
    assert await jwt_plane.count(users) == 1


async def test_a_token_that_an_application_could_log_in_with_is_refused(jwt_plane: ApiPlane, provider: Issuer) -> None:
    """An operator chose the audience, and the application's issuer is another one."""
    name = ApplicationName("elsewhere")
    workload = Workload("https://cluster.example.com", Subject("pod"), "vault.example.com")
    await create_workload(jwt_plane.database, name, ["OPENAI"], ALL_USERS, workload)
    for audience in ([AUDIENCE, "vault.example.com"], ["vault.example.com", "another", AUDIENCE]):
        refused(await me(jwt_plane, provider.token(aud=audience)), "aud")
    assert await jwt_plane.count(users) == 0
    odd = ["another", "Vault.example.com", "vault.example.com ", "\0", "\ud800", "", "x" * 300]
    assert (await me(jwt_plane, provider.token(aud=[AUDIENCE, *odd]))).status_code == 200
    await revoke(jwt_plane.database, name)
    assert (await me(jwt_plane, provider.token(aud=[AUDIENCE, "vault.example.com"]))).status_code == 200


async def test_none_and_a_symmetric_algorithm_are_refused(jwt_plane: ApiPlane, provider: Issuer) -> None:
    _, payload, signature = provider.token().split(".")
    for algorithm in ("none", "HS256"):
        header = urlsafe_b64encode(json.dumps({"alg": algorithm, "kid": next(iter(provider.keys))}).encode()).decode()
        for other in ("", signature):
            refused(await me(jwt_plane, f"{header}.{payload}.{other}"), "alg")


FOREIGN_ISSUERS = ("https://other.example.com", "{url}/", "{URL}", "", 5, None, ["{url}"])


async def test_a_foreign_jwt_is_ignored_where_a_cookie_authenticates(jwt_plane: ApiPlane, provider: Issuer) -> None:
    signed_in = await jwt_plane.user()
    ended = jwt_plane.client(cookies={"keyman_session": "x" * 40})
    for issuer in FOREIGN_ISSUERS:
        named = issuer.format(url=provider.url, URL=provider.url.upper()) if isinstance(issuer, str) else issuer
        token = provider.token(iss=named)
        assert (await signed_in.get("/api/keys", headers=bearer(token))).status_code == 200
        refused(await me(jwt_plane, token), "iss")
        refused(await ended.get("/api/keys", headers=bearer(token)), "iss")


OTHERS = (
    "Basic YWRhOnB3",
    "Bearer",
    "Bearer x",
    "Bearer a.b.c",
    "Bearer e30.e30",
    "Bearer e30.e30.e30.e30",
    "Negotiate a.b.c",
)


async def test_what_is_no_jwt_is_ignored_as_before(jwt_plane: ApiPlane) -> None:
    signed_in = await jwt_plane.user()
    for value in OTHERS:
        assert (await signed_in.get("/api/keys", headers={"Authorization": value})).status_code == 200
        reply = await jwt_plane.client().get("/api/keys", headers={"Authorization": value})
        problem(reply, "unauthenticated")
        assert reply.headers["www-authenticate"] == "Bearer"


async def test_without_an_issuer_every_jwt_is_ignored(shared: ApiPlane, provider: Issuer) -> None:
    assert (await (await shared.user()).get("/api/keys", headers=bearer(provider.token()))).status_code == 200
    reply = await me(shared, provider.token())
    problem(reply, "unauthenticated")
    assert reply.headers["www-authenticate"] == "Bearer"


async def test_a_jwt_passes_from_another_site_and_a_foreign_one_does_not(jwt_plane: ApiPlane, provider: Issuer) -> None:
    client = jwt_plane.client(headers=FOREIGN)
    assert (await client.post("/api/keys", json=NEW_KEY, headers=bearer(provider.token()))).status_code == 201
    signed_in = await jwt_plane.user()
    for token in (provider.token(iss="https://other.example.com"), provider.token(exp=0)):
        for one in (client, signed_in):
            reply = await one.post("/api/keys", json=NEW_KEY, headers={**FOREIGN, **bearer(token)})
            problem(reply, "forbidden")
    assert len(await jwt_plane.rows(api_keys)) == 1


async def test_a_disabled_user_is_shut_out_at_the_next_request(jwt_plane: ApiPlane, provider: Issuer) -> None:
    assert (await me(jwt_plane, provider.token())).status_code == 200
    moment = (await jwt_plane.rows(users))[0].created_at
    await change(jwt_plane, update(users).values(disabled_at=moment))
    refused(await me(jwt_plane, provider.token()), "sub")
    assert await jwt_plane.count(users) == 1


async def test_after_its_identity_is_gone_a_token_makes_another_user(jwt_plane: ApiPlane, provider: Issuer) -> None:
    first = (await me(jwt_plane, provider.token())).json()["id"]
    await change(jwt_plane, delete(identities))
    assert (await me(jwt_plane, provider.token())).json()["id"] > first


async def test_where_sign_up_is_closed_only_known_users_come_in(
    database: URL, provisioned: Vault, quick_passwords: PasswordHasher, provider: Issuer
) -> None:
    async with plane_of(database, provisioned, quick_passwords, provider) as plane:
        known = (await me(plane, provider.token())).json()["id"]
    async with plane_of(database, provisioned, quick_passwords, provider, signup_open=False) as plane:
        assert (await me(plane, provider.token())).json()["id"] == known
        refused(await me(plane, provider.token(sub="eve")), "sub")
        assert await plane.count(users) == 1


async def test_the_scopes_of_a_token_without_any_can_be_set(
    sqlite: URL, provisioned: Vault, quick_passwords: PasswordHasher, provider: Issuer
) -> None:
    scopes = ("keys:read", "tokens:manage")
    async with plane_of(sqlite, provisioned, quick_passwords, provider, scopes=scopes) as plane:
        client = plane.client(headers=bearer(provider.token()))
        assert (await client.get("/api/tokens")).status_code == 200
        problem(await client.post("/api/keys", json=NEW_KEY), "forbidden")


async def test_while_the_issuer_is_down_the_answer_is_503_and_never_401(jwt_plane: ApiPlane, provider: Issuer) -> None:
    provider.replies["/jwks"] = lambda: answer({}, 500)
    for token in (provider.token(), provider.token(exp=0), provider.token(header={"kid": "x"})):
        reply = await me(jwt_plane, token)
        problem(reply, "issuer-unavailable")
        assert int(reply.headers["retry-after"]) > 0
    assert provider.requests() == 1
    assert (await (await jwt_plane.user()).get("/api/keys")).status_code == 200


async def test_a_key_that_the_issuer_adds_is_found(jwt_plane: ApiPlane, provider: Issuer) -> None:
    assert (await me(jwt_plane, provider.token())).status_code == 200
    provider.rotate("EdDSA")
    refused(await me(jwt_plane, provider.token()), "kid")  # the last fetch was less than ten seconds ago
    assert provider.requests() == 1


async def change(plane: ApiPlane, statement: Any) -> None:
    async with plane.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(statement)


async def test_a_request_parses_its_token_once(
    jwt_plane: ApiPlane, provider: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = provider.token()
    client = jwt_plane.client(headers=bearer(token))
    parsed = counting_parses(monkeypatch)
    assert (await client.get("/api/keys")).status_code == 200
    assert parsed == [token]
