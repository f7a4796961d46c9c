"""The gateway with the rights of its own PostgreSQL user, which are all that it needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_hex

import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import make_url

from keyman import migrations
from keyman.identity import applications
from keyman.migrations.rights import Planes
from keyman.values import ApplicationName
from tests.planes.gateway.provider import Incoming, good
from tests.planes.gateway.scene import CHAT, Scene, scene_at
from tests.planes.gateway.talk import Talk
from tests.support.database import PostgresServer
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio


@pytest.fixture
async def confined_gateway(
    postgres: PostgresServer, provisioned: Vault, quick_passwords: PasswordHasher, tmp_path: Path
) -> AsyncIterator[Scene]:
    name, word = f"gateway_{token_hex(6)}", token_hex(16)
    owner = make_url(postgres.create_database(name))
    users = Planes(f"{name}_m", f"{name}_r", f"{name}_g")
    for user in users.rights():
        postgres.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{word}'")
    await migrations.upgrade(owner, users)
    own = owner.set(username=users.gateway, password=word)
    async with scene_at(owner, provisioned, quick_passwords, tmp_path, own_url=own) as scene:
        yield scene
    postgres.drop_database(name)
    for user in users.rights():
        postgres.execute(f"DROP ROLE {user}")


async def test_its_rights_are_enough(confined_gateway: Scene) -> None:
    scene = confined_gateway
    assert (await scene.ask("GET", "/readyz", {})).json["status"] == "ok"
    several = await asyncio.gather(*(scene.post() for _ in range(12)))
    assert {answer.status for answer in several} == {200}
    assert {action for action, _ in await scene.entries()} == {"key.use"}
    made = await scene.owner.client.post("/api/tokens", json={"name": "editor", "scopes": ["keys:use"]})
    headers = {"authorization": f"Bearer {made.json()['token']}"}
    assert (await scene.ask("POST", CHAT, headers, b"{}")).status == 200
    token = {"authorization": scene.headers["authorization"]}
    assert (await scene.ask("POST", CHAT, {**token, "keyman-key": str(scene.key_id)}, b"{}")).status == 200
    assert (await scene.ask("POST", CHAT, {**token, "keyman-subject": "nobody"}, b"{}")).status == 404
    block = await scene.pair.block_of(scene.application)
    assert (await scene.owner.client.put(block)).status_code == 204
    assert (await scene.post()).status == 404
    assert (await scene.owner.client.delete(block)).status_code == 204
    assert await scene.last_used_by() in (scene.application.name, "editor")
    await scene.owner.client.patch(f"/api/keys/{scene.key_id}", json={"disabled": True})
    assert (await scene.post()).status == 404


async def test_streams_of_all_kinds_of_callers_are_checked(confined_gateway: Scene) -> None:
    scene = confined_gateway
    gone: list[asyncio.Event] = []

    async def handler(incoming: Incoming) -> None:
        event = asyncio.Event()
        gone.append(event)
        await incoming.rest()
        await incoming.begin()
        await incoming.closed()
        event.set()

    scene.provider.handler = handler
    made = await scene.owner.client.post("/api/tokens", json={"name": "editor", "scopes": ["keys:use"]})
    first = scene.talk()
    assert await first.begun() == 200
    # A talk starts when it is made, and the events are in the order in which the provider got the requests.
    second = Talk(scene.app, "POST", CHAT, {"authorization": f"Bearer {made.json()['token']}"})
    assert await second.begun() == 200
    await applications.revoke(scene.pair.management.database, ApplicationName(scene.application.name))
    await asyncio.wait_for(gone[0].wait(), 10)
    assert await first.was_cut()
    assert not gone[1].is_set()
    await scene.owner.client.delete(f"/api/tokens/{made.json()['id']}")
    await asyncio.wait_for(gone[1].wait(), 10)
    assert await second.was_cut()


async def test_its_rights_are_enough_for_checks_and_verdicts_of_use(confined_gateway: Scene) -> None:
    scene = confined_gateway
    registered = await applications.create(scene.pair.management.database, ApplicationName("checks"), ())
    headers = {"authorization": f"Bearer {registered.token.reveal()}", "content-type": "application/json"}

    async def verdict() -> object:
        return (await scene.owner.client.get(f"/api/keys/{scene.key_id}")).json()["check"]

    got = await scene.ask("POST", "/v1/check", headers, b'{"key_id": %d}' % scene.key_id)
    assert (got.status, got.json["verdict"]) == (200, "accepted")
    assert await verdict() == {**got.json, "by": "keyman"}
    refusal = b'{"error": {"code": "invalid_api_key"}}'
    scene.provider.answers(b"HTTP/1.1 401 X\r\ncontent-length: %d\r\n\r\n%s" % (len(refusal), refusal))
    assert (await scene.post()).status == 401
    found = await verdict()
    assert isinstance(found, dict)
    assert (found["verdict"], found["by"]) == ("refused", "use")
    scene.provider.handler = good
    assert (await scene.post()).status == 200
    assert await verdict() is None
