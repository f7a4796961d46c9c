"""A request to the gateway that is open while its caller, or the owner of the key, loses the right to use the key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import select

from keyman.audit.tables import audit_log
from keyman.planes.gateway.forwarding import Forwarder
from keyman.storage.transactions import Database
from tests.planes.gateway.scene import CHAT, Scene
from tests.planes.gateway.test_streaming import block_application, delete_owner, disable_owner, revoke_application
from tests.planes.resolver.held import Held, Point, has_to_wait, stoppable
from tests.support.needs import quick_on

pytestmark = pytest.mark.anyio

Way = Callable[[Scene], Awaitable[None]]


async def revoke_token(scene: Scene) -> None:
    (token,) = (await scene.owner.client.get("/api/tokens")).json()
    assert (await scene.owner.client.delete(f"/api/tokens/{token['id']}")).status_code == 204


OF_APPLICATION: tuple[Way, ...] = (revoke_application, disable_owner, delete_owner, block_application)
OF_TOKEN: tuple[Way, ...] = (revoke_token, disable_owner, delete_owner)
CASES = [*((way, False) for way in OF_APPLICATION), *((way, True) for way in OF_TOKEN)]


@asynccontextmanager
async def held(scene: Scene, point: Point, *, is_personal: bool) -> AsyncIterator[Held]:
    """A request with the token of the application, or with a personal one, that stands still at a point."""
    headers = scene.headers
    if is_personal:
        made = await scene.owner.client.post("/api/tokens", json={"name": "editor", "scopes": ["keys:use"]})
        headers = {"authorization": f"Bearer {made.json()['token']}"}
    behind: Any = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(db=database_of(scene))))
    request = Held(cast("Any", scene), "POST", CHAT, headers, b"{}", point=point)
    async with stoppable(behind):
        await request.begin()
        assert not request.has_ended, (await request.finish()).text
        yield request


def database_of(scene: Scene) -> Database:
    """The gateway's own."""
    starting: Any = scene.app._app
    forwarder: Forwarder = starting._app
    return forwarder._open().db


async def uses(scene: Scene) -> int:
    """How many uses of the key the audit log has."""
    about = (audit_log.c.key_id == scene.key_id) & (audit_log.c.action == "key.use")
    async with scene.pair.management.database.read() as connection:
        return len((await connection.execute(select(audit_log.c.id).where(about))).all())


@quick_on("sqlite", "shared_gateway")
@pytest.mark.parametrize(("revoke", "is_personal"), CASES)
async def test_nothing_is_used_after_a_revocation(gateway: Scene, revoke: Way, is_personal: bool) -> None:
    """The caller was known before it, and the audit entry of the use would be committed after it."""
    async with held(gateway, Point.TRANSACTION, is_personal=is_personal) as request:
        await revoke(gateway)
        answer = await request.finish()
    is_of_owner = not is_personal and revoke is not revoke_application
    assert answer.status_code == (404 if is_of_owner else 401), answer.text
    assert gateway.provider.requests == []
    assert await uses(gateway) == 0


@quick_on("sqlite", "shared_gateway")
@pytest.mark.parametrize(("revoke", "is_personal"), CASES)
async def test_a_revocation_waits_for_a_use_that_is_being_recorded(
    gateway: Scene, revoke: Way, is_personal: bool
) -> None:
    """So what is committed after the revocation was not done by the revoked caller."""
    async with held(gateway, Point.COMMIT, is_personal=is_personal) as request:
        revocation = asyncio.ensure_future(revoke(gateway))
        await has_to_wait(database_of(gateway), revocation)
        assert gateway.provider.requests == []
        answer = await request.finish()
        await revocation
    assert answer.status_code in (200, 401, 404), answer.text  # the stream can end before the provider answers
    assert await uses(gateway) == 1
