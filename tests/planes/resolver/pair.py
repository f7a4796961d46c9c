"""Both planes over one database, in this process: a user stores a key in one, an application asks the other."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
from argon2 import PasswordHasher
from sqlalchemy import select, update
from sqlalchemy.engine import URL

from keyman.audit.tables import audit_log
from keyman.config.settings import Settings
from keyman.config.vault import VaultSettings
from keyman.identity import applications
from keyman.identity.applications import ALL_USERS, Users
from keyman.identity.passwords import Passwords
from keyman.identity.tables import applications as registered
from keyman.keys.tables import api_keys
from keyman.planes.resolver.app import create_resolver
from keyman.storage.transactions import Database, Unchecked
from keyman.values import ApplicationName
from tests.planes.management.api.harness import OPENAI_KEY, ApiPlane, Document, Json, api_plane_at, store
from tests.support.planes import lifespan
from tests.support.rows import AnyRow

_NUMBERS = itertools.count()

SHOWN = {"key_id", "user_id", "service", "api_key", "expires_at", "settings"}
"""What the answer to a resolve holds."""


@dataclass
class Owner:
    """Somebody who leaves keys."""

    client: httpx.AsyncClient
    id: int

    async def key(self, service: str = "OPENAI", value: str = OPENAI_KEY, **fields: Any) -> int:
        stored = await store(self.client, service=service, api_key=value, **fields)
        return int(stored["id"])

    async def trail(self) -> list[Json]:
        """The owner's audit entries of applications, newest first."""
        entries: list[Json] = (await self.client.get("/api/audit?limit=200")).json()
        return [entry for entry in entries if entry["actor"] == "application"]


@dataclass
class App:
    """An application that is registered."""

    client: httpx.AsyncClient
    name: str
    token: str

    async def ask(self, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/resolve", json=body)

    async def gets(self, **body: Any) -> str:
        """The value, which must be given out."""
        answer = await self.ask(**body)
        assert answer.status_code == 200, answer.text
        assert answer.json().keys() == SHOWN
        return str(answer.json()["api_key"])


@dataclass(repr=False)
class Pair:
    """The two planes. It has a short repr, because a property that fails shows its arguments."""

    management: ApiPlane
    resolver: ApiPlane
    operator: Database | None = None
    """Who registers applications and changes rows, where neither plane's own database user may."""

    async def owner(self) -> Owner:
        client = await self.management.user()
        return Owner(client, (await client.get("/api/auth/me")).json()["id"])

    async def app(self, *services: str, name: str | None = None, users: Users = ALL_USERS) -> App:
        """A new application, for OPENAI unless said."""
        wanted = ApplicationName(name or f"app-{next(_NUMBERS)}")
        created = await applications.create(self._operator, wanted, services or ("OPENAI",), users)
        token = created.token.reveal()
        return App(self.resolver.bearer(token), str(wanted), token)

    @property
    def _operator(self) -> Database:
        return self.operator or self.resolver.database

    async def block_of(self, app: App) -> str:
        """The address with which an owner blocks this application."""
        async with self.management.database.read() as connection:
            found = await connection.execute(select(registered.c.id).where(registered.c.name == app.name))
            return f"/api/applications/{found.scalar_one()}/block"

    async def row(self, key_id: int) -> AnyRow:
        async with self.resolver.database.read() as connection:
            return (await connection.execute(select(api_keys).where(api_keys.c.id == key_id))).one()

    async def change(self, key_id: int, **values: Any) -> None:
        """Change a row behind keyman's back."""
        async with self._operator.write(Unchecked.OPERATOR) as connection:
            await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(values))

    async def entries(self, application: App) -> Sequence[AnyRow]:
        """The audit entries of what an application asked for, oldest first."""
        mine = (audit_log.c.application == application.name) & (audit_log.c.actor == "application")
        async with self.resolver.database.read() as connection:
            return (await connection.execute(select(audit_log).where(mine).order_by(audit_log.c.id))).all()

    async def told(self, application: App) -> list[tuple[str, str | None]]:
        """The same: action and reason."""
        return [(entry.action, entry.reason) for entry in await self.entries(application)]


@asynccontextmanager
async def resolver_at(database: URL, vault: VaultSettings, **settings: Any) -> AsyncIterator[ApiPlane]:
    """Start a resolver and stop it again."""
    given = Settings(database, vault, **{"metrics_on_plane": True, **settings})  # as in `keyman dev`
    app = create_resolver(given)
    plane = ApiPlane(app, given)
    async with lifespan(app):
        try:
            plane.document = Document((await plane.client().get("/docs/openapi.json")).json())
            yield plane
        finally:
            await plane.close()


@asynccontextmanager
async def pair_at(
    database: URL, management: VaultSettings, resolver: VaultSettings, quick: PasswordHasher, **settings: Any
) -> AsyncIterator[Pair]:
    """Start both planes over a migrated database; `settings` are the resolver's."""
    async with (
        api_plane_at(database, management, Passwords(quick)) as first,
        resolver_at(database, resolver, **settings) as second,
    ):
        yield Pair(first, second)


def through(vault: VaultSettings, address: str) -> VaultSettings:
    """The same Vault by another way."""
    return replace(vault, address=address)
