"""Applications that log in to the resolver with a JWT of their own, such as that of a Kubernetes service account."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import time_machine
from argon2 import PasswordHasher
from sqlalchemy.engine import URL

from keyman.config.identity import JwtSettings
from keyman.errors import InvalidToken
from keyman.identity import applications
from keyman.identity.applications import ALL_USERS, Workload
from keyman.identity.fetching import Fetcher
from keyman.identity.jose import LEEWAY
from keyman.identity.passwords import Passwords
from keyman.identity.principals import Credentials
from keyman.identity.workloads import WorkloadProof
from keyman.storage.transactions import Database
from keyman.values import ApplicationName, Subject
from tests.planes.management.api.harness import OPENAI_KEY, api_plane_at, problem
from tests.planes.resolver.pair import Owner, Pair, resolver_at
from tests.support.http import answer
from tests.support.issuer import Issuer, served
from tests.support.parsing import counting_parses
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio

SUBJECT = "system:serviceaccount:shop:chat"
AUDIENCE = "keyman-resolver"


@pytest.fixture
async def cluster() -> AsyncIterator[Issuer]:
    async with served("RS256") as found:
        yield found


async def register(pair: Pair, cluster: Issuer, **changes: Any) -> str:
    workload = Workload(cluster.url, Subject(SUBJECT), AUDIENCE)._replace(**changes)
    name = ApplicationName(f"workload-{time.monotonic_ns()}")
    await applications.create_workload(pair.resolver.database, name, ["OPENAI"], ALL_USERS, workload)
    return str(name)


async def ask(pair: Pair, token: str, owner: Owner, **headers: str) -> httpx.Response:
    client = pair.resolver.client(headers={"Authorization": f"Bearer {token}", **headers})
    return await client.post("/v1/resolve", json={"user_id": owner.id, "service": "OPENAI"})


def token_of(cluster: Issuer, **changes: Any) -> str:
    return cluster.token(**{"sub": SUBJECT, "aud": [AUDIENCE], **changes})


def refused(reply: httpx.Response, claim: str) -> None:
    found = problem(reply, "unauthenticated")
    assert reply.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert claim in found["detail"]


async def test_an_application_gets_keys_with_its_jwt_and_the_owner_sees_it(shared_pair: Pair, cluster: Issuer) -> None:
    owner = await shared_pair.owner()
    await owner.key()
    name = await register(shared_pair, cluster)
    for _ in range(3):
        reply = await ask(shared_pair, token_of(cluster), owner)
        assert (reply.status_code, reply.json()["api_key"]) == (200, OPENAI_KEY)
    assert cluster.requests() == 1
    (entry, *_) = await owner.trail()
    assert (entry["action"], entry["application"], entry["actor_token_id"]) == ("key.resolve", name, None)


async def test_each_fault_is_401_and_names_the_claim(shared_pair: Pair, cluster: Issuer) -> None:
    owner = await shared_pair.owner()
    await owner.key()
    await register(shared_pair, cluster)
    for changes, claim in (
        ({"iss": "https://other.example.com"}, "sub"),
        ({"iss": f"{cluster.url}/"}, "sub"),
        ({"iss": None}, "iss"),
        ({"iss": "a\0b"}, "iss"),
        ({"sub": "system:serviceaccount:shop:other"}, "sub"),
        ({"sub": SUBJECT.upper()}, "sub"),
        ({"sub": "a\0b"}, "sub"),
        ({"sub": None}, "sub"),
        ({"aud": "keyman"}, "aud"),
        ({"aud": None}, "aud"),
        ({"exp": 0}, "exp"),
        ({"exp": None}, "exp"),
        ({"at_hash": "x"}, "at_hash"),
        ({"header": {"kid": "other"}}, "kid"),
        ({"header": {"typ": "logout+jwt"}}, "typ"),
    ):
        refused(await ask(shared_pair, token_of(cluster, **changes), owner), claim)
    for forged in (token_of(cluster)[:-20], token_of(cluster).rpartition(".")[0] + "."):
        refused(await ask(shared_pair, forged, owner), "signature")
    stranger = Issuer(cluster.url, "RS256", "RS256")  # the same issuer and kid, another key
    refused(await ask(shared_pair, token_of(stranger, header={"kid": next(iter(cluster.keys))}), owner), "signature")


async def test_a_cookie_or_a_token_beside_it_does_not_count(shared_pair: Pair, cluster: Issuer) -> None:
    owner = await shared_pair.owner()
    cookie = "; ".join(f"{name}={value}" for name, value in owner.client.cookies.items())
    refused(await ask(shared_pair, token_of(cluster), owner, Cookie=cookie), "sub")


async def test_a_revoked_application_is_refused_at_the_next_request(shared_pair: Pair, cluster: Issuer) -> None:
    owner = await shared_pair.owner()
    await owner.key()
    name = await register(shared_pair, cluster)
    assert (await ask(shared_pair, token_of(cluster), owner)).status_code == 200
    await applications.revoke(shared_pair.resolver.database, ApplicationName(name))
    refused(await ask(shared_pair, token_of(cluster), owner), "sub")


async def test_a_jwt_of_one_application_is_not_that_of_another(shared_pair: Pair, cluster: Issuer) -> None:
    owner = await shared_pair.owner()
    await owner.key()
    first, second = await register(shared_pair, cluster), await register(shared_pair, cluster, audience="other")
    for audience, name in ((AUDIENCE, first), ("other", second)):
        assert (await ask(shared_pair, token_of(cluster, aud=audience), owner)).status_code == 200
        assert (await owner.trail())[0]["application"] == name
    refused(await ask(shared_pair, token_of(cluster, aud=["other", AUDIENCE]), owner), "aud")


async def test_without_the_keys_of_the_issuer_the_answer_is_503(shared_pair: Pair, cluster: Issuer) -> None:
    owner = await shared_pair.owner()
    await register(shared_pair, cluster)
    cluster.replies["/jwks"] = lambda: answer({}, 500)
    reply = await ask(shared_pair, token_of(cluster), owner)
    problem(reply, "issuer-unavailable")
    assert int(reply.headers["retry-after"]) > 0


async def test_stored_keys_need_no_issuer(shared_pair: Pair) -> None:
    cluster = Issuer(f"offline-{time.monotonic_ns()}", "ES256")
    owner = await shared_pair.owner()
    await owner.key()
    await register(shared_pair, cluster, jwks=cluster.jwks().decode())
    assert (await ask(shared_pair, token_of(cluster), owner)).status_code == 200
    stranger = Issuer(cluster.url, "ES256")
    stranger.rotate(keep=False)
    refused(await ask(shared_pair, token_of(stranger), owner), "kid")


async def test_a_token_for_users_and_applications_is_refused(sqlite: URL, provisioned: Vault, cluster: Issuer) -> None:
    async with resolver(sqlite, provisioned, JwtSettings("https://id.example.com", "keyman")) as plane:
        await register(plane, cluster)
        nobody = Owner(plane.resolver.client(), 1)
        assert (await ask(plane, token_of(cluster), nobody)).status_code == 404
        refused(await ask(plane, token_of(cluster, aud=[AUDIENCE, "keyman"]), nobody), "aud")


async def test_an_application_with_the_audience_of_users_is_refused(
    sqlite: URL, provisioned: Vault, cluster: Issuer
) -> None:
    """The operator registered it before the variable was set, or where it is not set."""
    async with resolver(sqlite, provisioned, JwtSettings("https://id.example.com", "keyman")) as plane:
        await register(plane, cluster, audience="keyman")
        refused(await ask(plane, token_of(cluster, aud="keyman"), Owner(plane.resolver.client(), 1)), "aud")


async def test_a_resolver_that_does_not_know_the_audience_of_users_learns_it_from_management(
    database: URL, provisioned: Vault, quick_passwords: PasswordHasher, cluster: Issuer
) -> None:
    """A token for both was shown to management by mistake, and an attacker there shows it to the resolver."""
    jwt = JwtSettings(cluster.url, "keyman")
    both = token_of(cluster, aud=[AUDIENCE, "keyman"])
    async with (
        api_plane_at(database, provisioned.settings, Passwords(quick_passwords), jwt=jwt) as management,
        resolver_at(database, provisioned.resolver) as plane,
    ):
        pair = Pair(management, plane)
        owner = await pair.owner()
        await owner.key()
        await register(pair, cluster)
        refused(await management.client().get("/api/keys", headers={"Authorization": f"Bearer {both}"}), "aud")
        refused(await ask(pair, both, owner), "aud")
        assert (await ask(pair, token_of(cluster, aud=[AUDIENCE, "another"]), owner)).status_code == 200


@asynccontextmanager
async def resolver(database: URL, vault: Vault, jwt: JwtSettings) -> AsyncIterator[Pair]:
    async with resolver_at(database, vault.resolver, jwt=jwt) as plane:
        yield Pair(plane, plane)


async def test_an_expired_or_revoked_jwt_does_nothing_in_a_transaction(db: Database) -> None:
    cluster = Issuer("https://cluster.example.com")
    workload = Workload(cluster.url, Subject(SUBJECT), AUDIENCE, jwks=cluster.jwks().decode())
    await applications.create_workload(db, ApplicationName("chat"), ["OPENAI"], ALL_USERS, workload)
    ends = int(time.time()) + 100
    token = token_of(cluster, exp=ends)
    caller = await WorkloadProof(Fetcher(), None).verify(db, token, Credentials(None, None, "-", None, token))
    with time_machine.travel(ends + LEEWAY - 1, tick=False):
        async with db.write(caller):
            pass
    with time_machine.travel(ends + LEEWAY, tick=False), pytest.raises(InvalidToken, match="exp"):
        async with db.write(caller):
            raise AssertionError("the transaction began")
    await applications.revoke(db, ApplicationName("chat"))
    with pytest.raises(InvalidToken, match="sub"):
        async with db.write(caller):
            raise AssertionError("the transaction began")
    with pytest.raises(InvalidToken, match="sub"):
        await caller.confirm_for_reading(db)


async def test_a_request_parses_its_token_once(
    shared_pair: Pair, cluster: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await shared_pair.owner()
    await owner.key()
    await register(shared_pair, cluster)
    token = token_of(cluster)
    parsed = counting_parses(monkeypatch)
    assert (await ask(shared_pair, token, owner)).status_code == 200
    assert parsed == [token]
