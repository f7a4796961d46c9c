"""What a browser does to sign in with a provider, over HTTP: for the tests of `/auth/oidc`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import urlsplit

import httpx
from sqlalchemy import select

from keyman.audit.tables import audit_log
from keyman.config.oidc import OidcSettings
from keyman.secret import Secret
from keyman.storage.transactions import Database
from tests.support.openid import AUTHORIZE, BaoProvider, Forger
from tests.support.planes import Plane

START, CALLBACK = "/auth/oidc/start", "/auth/oidc/callback"
HTML = {"Accept": "text/html"}

Open = Callable[..., AbstractAsyncContextManager[Plane]]
"""Opens a plane with the settings of a provider."""


def of_bao(bao: BaoProvider, **more: Any) -> OidcSettings:
    return OidcSettings(bao.issuer, bao.client_id, Secret(bao.client_secret), **more)


def of_forger(forger: Forger, **more: Any) -> OidcSettings:
    return OidcSettings(forger.address, forger.client_id, **more)


async def leave(client: httpx.AsyncClient, **query: str) -> str:
    """Go to the provider. Returns the address to which keyman sends the browser."""
    away = await client.get(START, params=query, headers=HTML)
    assert away.status_code == 303, away.text
    return str(away.headers["location"])


async def arrive(client: httpx.AsyncClient, bao: BaoProvider, person: str = "ada", **query: str) -> httpx.Response:
    """Go to the provider, log in there as `person`, and come back."""
    bao.person = person
    url = urlsplit(await leave(client, **query))
    assert url.path == AUTHORIZE
    return await client.get(bao.log_in(url.query), headers=HTML)


async def come_back(client: httpx.AsyncClient, forger: Forger, **more: str) -> httpx.Response:
    """The same with a forger, whose next token is that of the test."""
    return await client.get(forger.log_in(await leave(client), **more), headers=HTML)


async def me(client: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get("/api/auth/me")).raise_for_status().json()
    return found


async def tell(plane: Plane, token: str, **more: str) -> httpx.Response:
    """Send a logout token as the provider does, from its own server."""
    client = plane.client(headers={"Sec-Fetch-Site": "cross-site"})
    return await client.post("/auth/oidc/backchannel-logout", data={"logout_token": token, **more})


async def recorded(plane: Plane) -> list[tuple[str, str | None]]:
    """The actions in the audit log, oldest first, and their details."""
    db = Database(plane.settings.database_url)
    async with db.read() as connection:
        rows = await connection.execute(select(audit_log.c.action, audit_log.c.detail).order_by(audit_log.c.id))
        found = [(str(row.action), row.detail) for row in rows]
    await db.close()
    return found
