"""Planes in the test's process, with their whole ASGI stack and their real start and stop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from sqlalchemy.engine import URL

from keyman.config.settings import Settings
from keyman.config.vault import VaultSettings
from keyman.dev.embedded import EmbeddedVault
from keyman.http.edge import Edge
from keyman.http.exchange import Message
from keyman.identity.passwords import Passwords
from keyman.planes.management.app import create_app
from tests.support.applications import routes_shared

ORIGIN = "http://127.0.0.1:8000"
"""The public URL of planes in tests: plain http on loopback, where the session cookie is not `Secure`."""

PASSWORD = "correct horse battery staple"


@dataclass(frozen=True)
class Vault:
    """A provisioned Vault, and how each plane logs in to it."""

    server: EmbeddedVault
    settings: VaultSettings
    resolver: VaultSettings
    gateway: VaultSettings


@dataclass(repr=False)
class Plane:
    """A running plane. `client()` is a visitor, `user()` somebody signed in, `token()` a script."""

    app: Edge
    settings: Settings
    _clients: list[httpx.AsyncClient] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def client(self, **arguments: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url=ORIGIN, **arguments)
        self._clients.append(client)
        return client

    async def user(self, email: str | None = None) -> httpx.AsyncClient:
        """A client with the session of a new account."""
        client = self.client()
        body = {"email": email or f"user{next(self._numbers)}@example.com", "password": PASSWORD}
        answer = await client.post("/api/auth/signup", json=body)
        assert answer.status_code == 201, answer.text
        return client

    async def token(self, owner: httpx.AsyncClient, *scopes: str, **fields: Any) -> httpx.AsyncClient:
        """A client with a new access token of a signed-in owner."""
        body = {"name": "test", **({"scopes": list(scopes)} if scopes else {}), **fields}
        answer = await owner.post("/api/tokens", json=body)
        assert answer.status_code == 201, answer.text
        return self.client(headers={"Authorization": f"Bearer {answer.json()['token']}"})

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()


@asynccontextmanager
async def plane_at(
    database: URL, vault: VaultSettings, passwords: Passwords | None = None, **settings: Any
) -> AsyncIterator[Plane]:
    """Start a plane and stop it again, by the lifespan protocol that a server speaks.

    It has no limit of writes unless `settings` give one, because a test writes faster than a person. It compares no
    values, because most tests store the same one many times.
    """
    usual = {"public_url": ORIGIN, "signup_open": True, "max_writes": 0, "duplicates_on": False}
    usual["metrics_on_plane"] = True  # as in `keyman dev`
    given = Settings(database, vault, **{**usual, **settings})
    with routes_shared():
        app = create_app(given, passwords=passwords)
    plane = Plane(app, given)
    async with lifespan(app):
        try:
            yield plane
        finally:
            await plane.close()


@asynccontextmanager
async def lifespan(app: Edge) -> AsyncIterator[None]:
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    outbox: asyncio.Queue[Message] = asyncio.Queue()
    task = asyncio.ensure_future(app({"type": "lifespan", "asgi": {"version": "3.0"}}, inbox.get, outbox.put))
    await inbox.put({"type": "lifespan.startup"})
    await _next(outbox, task)
    yield
    await inbox.put({"type": "lifespan.shutdown"})
    await _next(outbox, task)
    await task


async def _next(outbox: asyncio.Queue[Message], task: asyncio.Future[None]) -> None:
    message = asyncio.ensure_future(outbox.get())
    waiting: set[asyncio.Future[Any]] = {message, task}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if not message.done():
        message.cancel()
        await task  # raises what stopped it
    assert not message.result()["type"].endswith("failed"), message.result()
