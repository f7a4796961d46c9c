"""A gateway in this process, with a provider on loopback, an owner of keys and applications."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from sqlalchemy import select
from sqlalchemy.engine import URL

from keyman.audit.tables import audit_log
from keyman.config.gateway import GatewaySettings
from keyman.config.identity import JwtSettings
from keyman.config.settings import Settings
from keyman.http.edge import Edge
from keyman.identity.passwords import Passwords
from keyman.planes.gateway.app import create_gateway
from tests.planes.gateway.provider import Provider, good, provider_running
from tests.planes.gateway.talk import PATIENCE, Answer, Talk, asked
from tests.planes.management.api.harness import api_plane_at
from tests.planes.resolver.pair import App, Owner, Pair
from tests.support.planes import Vault, lifespan

VALUE = "sk-proj-hq2v9mXb/T0c7eUK+wN4Rd1234"
"""The value of keys in these tests. Two of its characters can be escaped."""

CHAT = "/openai/v1/chat/completions"

_NUMBERS = itertools.count()


@dataclass
class Scene:
    """The planes, and somebody with a key for OPENAI that an application may use."""

    pair: Pair
    app: Edge
    provider: Provider
    owner: Owner
    key_id: int
    application: App
    services: Path
    """The services file."""

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.application.token}", "keyman-user": str(self.owner.id)}

    async def post(self, body: bytes = b'{"a": 1}', path: str = CHAT, **headers: str) -> Answer:
        return await self.ask("POST", path, {**self.headers, **_named(headers)}, body)

    async def ask(self, method: str, path: str, headers: Any, body: bytes = b"") -> Answer:
        return await asked(self.app, method, path, headers, body)

    def talk(self, method: str = "POST", path: str = CHAT, most: int = 0, **headers: str) -> Talk:
        return Talk(self.app, method, path, {**self.headers, **_named(headers)}, most)

    async def entries(self) -> list[tuple[str, str | None]]:
        """What the audit log says of this application, oldest first."""
        return await self.pair.told(self.application)

    async def last_used_by(self) -> str:
        """The name that is stored with the key's last use. A busy database skips it, so the key is used again then."""
        async with asyncio.timeout(PATIENCE):
            while (name := (await self.pair.row(self.key_id)).last_used_by) is None:
                await self.post()
                await asyncio.sleep(0.2)
        return str(name)

    async def last_entry(self) -> Any:
        async with self.pair.management.database.read() as connection:
            rows = await connection.execute(select(audit_log).order_by(audit_log.c.id.desc()).limit(1))
            return rows.one()


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@asynccontextmanager
async def scene_at(
    url: URL,
    vault: Vault,
    quick: PasswordHasher,
    directory: Path,
    entries: Any = (),
    own_url: URL | None = None,
    jwt: JwtSettings | None = None,
    **gateway: Any,
) -> AsyncIterator[Scene]:
    """Start the planes over a migrated database. `gateway` are settings of the gateway, and `own_url` the database with
    its own user.
    """
    async with provider_running() as provider:
        port = provider.address.rpartition(":")[2]
        services = [
            {"service": "OPENAI", "base_url": provider.address},
            {"service": "ANTHROPIC", "base_url": provider.address},
            {"service": "GOOGLE", "base_url": f"{provider.address}/below"},
            {"service": "COHERE", "base_url": f"{provider.address}/cohere"},
            {
                "service": "HUGGINGFACE",
                "base_url": f"{provider.address}/router",
                "check": {"url": f"{provider.address}/api/whoami-v2"},
            },
            {"service": "INWARDS", "name": "Inwards", "base_url": f"https://localhost:{port}", "paths": ["GET /x"]},
            *entries,
        ]
        path = directory / f"services-{next(_NUMBERS)}.json"
        path.write_text(json.dumps(services))
        settings = Settings(
            own_url or url, vault.gateway, services_file=path, jwt=jwt, gateway=GatewaySettings(**gateway)
        )
        app = create_gateway(settings)
        passwords = Passwords(quick)
        async with (
            api_plane_at(url, vault.settings, passwords, services_file=path, jwt=jwt) as management,
            lifespan(app),
        ):
            pair = Pair(management, management)
            owner = await pair.owner()
            application = await pair.app("OPENAI", "ANTHROPIC", "GOOGLE", "INWARDS")
            yield Scene(pair, app, provider, owner, await owner.key(value=VALUE), application, path)


async def renewed(scene: Scene) -> Scene:
    """The same planes with another owner, key and application, and a provider that is as new."""
    scene.provider.handler = good
    scene.provider.requests.clear()
    owner = await scene.pair.owner()
    return dataclasses.replace(
        scene,
        owner=owner,
        key_id=await owner.key(value=VALUE),
        application=await scene.pair.app("OPENAI", "ANTHROPIC", "GOOGLE", "INWARDS"),
    )
