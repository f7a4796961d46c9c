"""JSON Web Tokens at the gateway: of users, who use their own keys, and of applications."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from sqlalchemy import delete, func, select
from sqlalchemy.engine import make_url

from keyman import migrations
from keyman.clock import now
from keyman.config.identity import JwtSettings
from keyman.http import limit
from keyman.identity import applications, standing
from keyman.identity.applications import ALL_USERS, Users, Workload
from keyman.identity.issuers import Issuer as IssuerName
from keyman.identity.tables import identities, users
from keyman.planes.gateway import streams
from keyman.storage.transactions import Unchecked
from keyman.values import ApplicationName, Subject
from tests.planes.gateway.provider import Incoming
from tests.planes.gateway.scene import CHAT, VALUE, Scene, scene_at
from tests.planes.gateway.talk import Talk
from tests.support.http import answer as reply
from tests.support.issuer import AUDIENCE, Issuer, served
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio


@pytest.fixture
async def gateway_issuer() -> AsyncIterator[Issuer]:
    async with served() as found:
        yield found


@pytest.fixture
async def jwt_gateway(
    tmp_path: Path, provisioned: Vault, quick_passwords: PasswordHasher, gateway_issuer: Issuer
) -> AsyncIterator[Scene]:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    await migrations.upgrade(url)
    jwt = JwtSettings(gateway_issuer.url, AUDIENCE)
    async with scene_at(url, provisioned, quick_passwords, tmp_path, jwt=jwt) as scene:
        yield scene


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def leave_key(scene: Scene, issuer: Issuer) -> int:
    """Somebody who is known only by a JWT leaves a key. The id of the user."""
    client = scene.pair.management.client(headers=bearer(issuer.token()))
    assert (await client.post("/api/keys", json={"service": "OPENAI", "api_key": VALUE})).status_code == 201
    return int((await client.get("/api/auth/me")).json()["id"])


async def test_a_user_uses_own_keys_with_a_jwt_that_says_so(jwt_gateway: Scene, gateway_issuer: Issuer) -> None:
    user_id = await leave_key(jwt_gateway, gateway_issuer)
    answer = await jwt_gateway.ask("POST", CHAT, bearer(gateway_issuer.token(scope="keys:use")), b"{}")
    assert answer.status == 200
    entry = await jwt_gateway.last_entry()
    assert (entry.action, entry.user_id, entry.actor, entry.token_id) == ("key.use", user_id, "token", None)
    in_key_header = {"x-api-key": gateway_issuer.token(scope="keys:use")}
    assert (await jwt_gateway.ask("POST", CHAT, in_key_header, b"{}")).status == 200
    assert (await jwt_gateway.ask("POST", CHAT, bearer(gateway_issuer.token()), b"{}")).status == 403


async def test_a_jwt_and_a_personal_token_of_a_user_share_the_limits(
    tmp_path: Path,
    provisioned: Vault,
    quick_passwords: PasswordHasher,
    gateway_issuer: Issuer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limit, "monotonic", lambda: 1000.0)
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    await migrations.upgrade(url)
    jwt = JwtSettings(gateway_issuer.url, AUDIENCE)
    async with scene_at(url, provisioned, quick_passwords, tmp_path, jwt=jwt, rate=2.0) as scene:
        await leave_key(scene, gateway_issuer)
        manager = scene.pair.management.client(headers=bearer(gateway_issuer.token(scope="tokens:manage keys:use")))
        made = await manager.post("/api/tokens", json={"name": "editor", "scopes": ["keys:use"]})
        assert made.status_code == 201, made.text
        mine = (made.json()["token"], gateway_issuer.token(scope="keys:use"))
        answers = [await scene.ask("POST", CHAT, bearer(mine[number % 2]), b"{}") for number in range(5)]
        assert [answer.status for answer in answers] == [200, 200, 200, 200, 429]


async def test_an_application_names_a_user_by_the_subject_of_an_issuer(
    jwt_gateway: Scene, gateway_issuer: Issuer
) -> None:
    user_id = await leave_key(jwt_gateway, gateway_issuer)
    issuer = IssuerName.parse(gateway_issuer.url)
    own = IssuerName.parse("https://own.example.com")
    for issuers, named in (((issuer,), {}), ((own, issuer), {"keyman-issuer": gateway_issuer.url})):
        application = await jwt_gateway.pair.app("OPENAI", users=Users(issuers))
        headers = {**bearer(application.token), "keyman-subject": "ada", **named}
        assert (await jwt_gateway.ask("POST", CHAT, headers, b"{}")).status == 200
        entry = await jwt_gateway.last_entry()
        assert (entry.action, entry.user_id, entry.application) == ("key.use", user_id, application.name)
    encoded = {**bearer(application.token), "keyman-subject*": "UTF-8''%61da", **named}
    assert (await jwt_gateway.ask("POST", CHAT, encoded, b"{}")).status == 200


async def test_an_operator_can_shut_the_jwts_of_users_out(
    tmp_path: Path, provisioned: Vault, quick_passwords: PasswordHasher, gateway_issuer: Issuer
) -> None:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    await migrations.upgrade(url)
    jwt = JwtSettings(gateway_issuer.url, AUDIENCE)
    async with scene_at(url, provisioned, quick_passwords, tmp_path, jwt=jwt, personal=False) as scene:
        await leave_key(scene, gateway_issuer)
        answer = await scene.ask("POST", CHAT, bearer(gateway_issuer.token(scope="keys:use")), b"{}")
        assert (answer.status, answer.header("keyman-error")) == (401, "unauthenticated")
        assert scene.provider.requests == []


async def test_the_keys_of_the_issuer_may_be_in_a_file(
    tmp_path: Path, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    issuer = Issuer()
    file = tmp_path / "jwks.json"
    file.write_bytes(issuer.jwks())
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    await migrations.upgrade(url)
    jwt = JwtSettings(issuer.url, AUDIENCE, jwks_file=file)
    async with scene_at(url, provisioned, quick_passwords, tmp_path, jwt=jwt) as scene:
        await leave_key(scene, issuer)
        answer = await scene.ask("POST", CHAT, bearer(issuer.token(scope="keys:use")), b"{}")
        assert answer.status == 200


async def test_an_unknown_user_gets_401_and_no_account(jwt_gateway: Scene, gateway_issuer: Issuer) -> None:
    async def count() -> int:
        async with jwt_gateway.pair.management.database.read() as connection:
            return int((await connection.execute(select(func.count()).select_from(users))).scalar_one())

    before = await count()
    answer = await jwt_gateway.ask("POST", CHAT, bearer(gateway_issuer.token(sub="new", scope="keys:use")), b"{}")
    assert (answer.status, await count()) == (401, before)
    assert "sub" in answer.json["error"]["message"]


async def test_an_answer_ends_when_the_jwt_does(
    jwt_gateway: Scene, gateway_issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leave_key(jwt_gateway, gateway_issuer)

    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.begin()
        await incoming.closed()

    jwt_gateway.provider.handler = handler
    expires = now().replace(microsecond=0) + timedelta(hours=1)
    token = gateway_issuer.token(scope="keys:use", exp=int(expires.timestamp()))
    talk = Talk(jwt_gateway.app, "POST", CHAT, bearer(token))
    talk.give(b"")
    assert await talk.begun() == 200
    end = expires + timedelta(seconds=60)  # the leeway of `exp`
    monkeypatch.setattr(standing, "now", lambda: end - timedelta(microseconds=1))
    await asyncio.sleep(2 * streams.INTERVAL)  # it was checked by then. Less would only make the test weaker
    assert not talk.task.done()
    monkeypatch.setattr(standing, "now", lambda: end)
    assert await talk.was_cut()


async def test_an_answer_ends_when_the_jwt_of_an_application_does(
    jwt_gateway: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.begin()
        await incoming.closed()

    jwt_gateway.provider.handler = handler
    async with served("RS256") as cluster:
        workload = Workload(cluster.url, Subject("pod"), "keyman-resolver")
        database = jwt_gateway.pair.management.database
        await applications.create_workload(database, ApplicationName("pod"), ["OPENAI"], ALL_USERS, workload)
        token = cluster.token(sub="pod", aud=["keyman-resolver"])
        talk = Talk(jwt_gateway.app, "POST", CHAT, {**bearer(token), "keyman-user": str(jwt_gateway.owner.id)})
        talk.give(b"")
        assert await talk.begun() == 200
        monkeypatch.setattr(standing, "now", lambda: now() + timedelta(days=1))
        assert await talk.was_cut()


async def test_an_answer_ends_when_the_user_of_the_jwt_is_no_longer_the_one_it_names(
    jwt_gateway: Scene, gateway_issuer: Issuer
) -> None:
    user_id = await leave_key(jwt_gateway, gateway_issuer)

    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.begin()
        await incoming.closed()

    jwt_gateway.provider.handler = handler
    talk = Talk(jwt_gateway.app, "POST", CHAT, bearer(gateway_issuer.token(scope="keys:use")))
    talk.give(b"")
    assert await talk.begun() == 200
    async with jwt_gateway.pair.management.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(delete(identities).where(identities.c.user_id == user_id))
    assert await talk.was_cut()


async def test_a_user_with_a_jwt_names_no_user(jwt_gateway: Scene, gateway_issuer: Issuer) -> None:
    user_id = await leave_key(jwt_gateway, gateway_issuer)
    own = bearer(gateway_issuer.token(scope="keys:use"))
    for name in ("keyman-user", "keyman-subject", "keyman-subject*", "keyman-issuer"):
        value = "UTF-8''ada" if name.endswith("*") else str(user_id)
        assert (await jwt_gateway.ask("POST", CHAT, {**own, name: value}, b"{}")).status == 400, name
    assert jwt_gateway.provider.requests == []


async def test_a_key_that_is_named_beside_a_subject_must_be_of_this_user(
    jwt_gateway: Scene, gateway_issuer: Issuer
) -> None:
    await leave_key(jwt_gateway, gateway_issuer)
    client = jwt_gateway.pair.management.client(headers=bearer(gateway_issuer.token()))
    own = (await client.get("/api/keys")).json()[0]["id"]
    issuers = (IssuerName.parse(gateway_issuer.url),)
    application = await jwt_gateway.pair.app("OPENAI", users=Users(issuers))
    headers = {**bearer(application.token), "keyman-subject": "ada"}
    for key_id, status in ((own, 200), (jwt_gateway.key_id, 404)):
        answer = await jwt_gateway.ask("POST", CHAT, {**headers, "keyman-key": str(key_id)}, b"{}")
        assert (answer.status, answer.header("keyman-key-id")) == (status, str(own) if status == 200 else None)


async def test_an_application_logs_in_with_a_jwt_of_its_platform(jwt_gateway: Scene) -> None:
    async with served("RS256") as cluster:
        workload = Workload(cluster.url, Subject("pod"), "keyman-resolver")
        database = jwt_gateway.pair.management.database
        await applications.create_workload(database, ApplicationName("pod"), ["OPENAI"], ALL_USERS, workload)
        token = cluster.token(sub="pod", aud=["keyman-resolver"])
        headers = {**bearer(token), "keyman-user": str(jwt_gateway.owner.id)}
        assert (await jwt_gateway.ask("POST", CHAT, headers, b"{}")).status == 200
        assert (await jwt_gateway.ask("POST", CHAT, bearer(cluster.token(sub="other")), b"{}")).status == 401


async def test_a_jwt_of_a_user_and_of_an_application_is_that_of_neither(
    jwt_gateway: Scene, gateway_issuer: Issuer
) -> None:
    await leave_key(jwt_gateway, gateway_issuer)
    workload = Workload(gateway_issuer.url, Subject("ada"), "vault.example.com")
    database = jwt_gateway.pair.management.database
    await applications.create_workload(database, ApplicationName("both"), ["OPENAI"], ALL_USERS, workload)
    for audiences, status in (([AUDIENCE], 200), ([AUDIENCE, "vault.example.com"], 401), ([AUDIENCE, "another"], 200)):
        token = gateway_issuer.token(scope="keys:use", aud=audiences)
        assert (await jwt_gateway.ask("POST", CHAT, bearer(token), b"{}")).status == status, audiences


async def test_the_last_use_by_a_jwt_has_no_name(jwt_gateway: Scene, gateway_issuer: Issuer) -> None:
    await leave_key(jwt_gateway, gateway_issuer)
    answer = await jwt_gateway.ask("POST", CHAT, bearer(gateway_issuer.token(scope="keys:use")), b"{}")
    assert answer.status == 200
    client = jwt_gateway.pair.management.client(headers=bearer(gateway_issuer.token()))
    (key,) = (await client.get("/api/keys")).json()
    assert key["last_used_at"] is not None
    assert key["last_used_by"] is None


async def test_without_the_keys_of_the_issuer_the_answer_is_503_in_the_form_of_the_gateway(
    jwt_gateway: Scene, gateway_issuer: Issuer
) -> None:
    gateway_issuer.replies["/jwks"] = lambda: reply({}, 500)
    answer = await jwt_gateway.ask("POST", CHAT, bearer(gateway_issuer.token(scope="keys:use")), b"{}")
    assert (answer.status, answer.header("keyman-error")) == (503, "issuer-unavailable")
    assert answer.json["error"]["code"] == "issuer-unavailable"
    assert int(answer.header("retry-after") or 0) > 0
