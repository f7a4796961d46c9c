"""A Transit mount for each test, with stored keys sealed by it. Tests rotate and damage its encryption key."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from secrets import token_hex
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert
from sqlalchemy.engine import URL

from keyman.config.vault import VaultSettings
from keyman.dev.embedded import EmbeddedVault
from keyman.keys.deployment import Deployment
from keyman.keys.rewrap import Rewrap
from keyman.keys.tables import api_keys
from keyman.metrics import Metrics
from keyman.secret import Secret
from keyman.storage.transactions import Database, Unchecked
from keyman.vault.adapter import AsyncAdapter
from keyman.vault.cipher import Context
from keyman.vault.guard import KeyGuard
from keyman.vault.login import VaultClient
from keyman.vault.provision import policy
from keyman.vault.rotation import KeyRotation
from tests.support.database import StoredKey, stored_keys
from tests.support.rows import add_owner, row


@dataclass
class Stock:
    """A database with keys, sealed by a key of Vault's that is the test's own."""

    url: URL
    db: Database
    deployment: Deployment
    admin: AsyncAdapter
    settings: VaultSettings
    plaintexts: dict[int, str] = field(default_factory=dict)
    clients: list[VaultClient] = field(default_factory=list)

    def client(self) -> VaultClient:
        """Logged in with a token of the rotator's policy for this mount."""
        client = VaultClient(self.settings, Metrics())
        self.clients.append(client)
        return client

    def guard(self, client: VaultClient | None = None, deployment: Deployment | None = None) -> KeyGuard:
        return KeyGuard(client or self.client(), self.settings, deployment or self.deployment)

    def rewrap(self, rotation: KeyRotation | None = None, **options: Any) -> Rewrap:
        client = self.client()
        return Rewrap(
            self.db,
            self.deployment,
            self.guard(client),
            rotation or KeyRotation(client, self.settings),
            **options,
        )

    def path(self, operation: str) -> str:
        return f"/v1/{self.settings.mount}/{operation}/{self.settings.key}"

    async def rotate(self) -> None:
        await self.admin.post(f"{self.path('keys')}/rotate")

    async def store(self, count: int, version: int | None = None) -> list[int]:
        """Add rows, sealed as the service seals them; their ids."""
        values = [(uuid4(), f"sk-{token_hex(20)}") for _ in range(count)]
        ciphertexts: list[str] = []
        for start in range(0, count, 200):
            items = [self._item(value, text, version) for value, text in values[start : start + 200]]
            answer = await self.admin.post(self.path("encrypt"), json={"batch_input": items})
            ciphertexts += [item["ciphertext"] for item in answer["data"]["batch_results"]]
        rows = [
            row("api_keys", encrypted_key=ciphertext, key_version=int(ciphertext.split(":")[1][1:]), value_uuid=value)
            for (value, _), ciphertext in zip(values, ciphertexts, strict=True)
        ]
        async with self.db.write(Unchecked.OPERATOR) as connection:
            statement = insert(api_keys).returning(api_keys.c.id, sort_by_parameter_order=True)
            ids = [int(key) for (key,) in await connection.execute(statement, rows)]
        self.plaintexts |= {key: text for key, (_, text) in zip(ids, values, strict=True)}
        return ids

    def _item(self, value: UUID, text: str, version: int | None) -> dict[str, object]:
        context = Context(self.deployment.uuid, 1, "OPENAI", value).encoded()
        item: dict[str, object] = {"plaintext": base64.b64encode(text.encode()).decode(), "context": context}
        return item if version is None else {**item, "key_version": version}

    async def opened(self) -> dict[int, str | None]:
        """What every row holds, by id, as only the root token may ask; None where it does not open."""
        return {key.id: await self._open(key) for key in (await stored_keys(self.url)).values()}

    async def _open(self, key: StoredKey) -> str | None:
        body = {"ciphertext": key.ciphertext, "context": base64.b64encode(key.context.encode()).decode()}
        async with self.admin.session.post(
            self.admin.base_uri + self.path("decrypt"), json=body, headers={"X-Vault-Token": self.admin.token or ""}
        ) as answer:
            if answer.status == 400:
                return None
            return base64.b64decode((await answer.json())["data"]["plaintext"]).decode()

    async def versions(self) -> set[int]:
        return {int(key.ciphertext.split(":")[1][1:]) for key in (await stored_keys(self.url)).values()}


async def _token(admin: AsyncAdapter, settings: VaultSettings, role: str) -> Secret:
    """A token with what a role may do, for this mount."""
    name = f"{role}-{settings.mount}"
    await admin.post(f"/v1/sys/policies/acl/{name}", json={"policy": policy(role, settings)})
    login = {"policies": [name], "no_default_policy": True}
    return Secret((await admin.post("/v1/auth/token/create", json=login))["auth"]["client_token"])


@pytest.fixture
async def stock(database: URL, embedded_server: EmbeddedVault) -> AsyncIterator[Stock]:
    admin = embedded_server.admin()
    settings = VaultSettings(address=embedded_server.address, auth="token", mount=f"stock-{token_hex(4)}")
    await admin.post(f"/v1/sys/mounts/{settings.mount}", json={"type": "transit"})
    await admin.post(f"/v1/{settings.mount}/keys/{settings.key}", json={"derived": True, "type": "aes256-gcm96"})
    rotator, management = [
        replace(settings, token=await _token(admin, settings, role)) for role in ("keyman-rotator", "keyman-management")
    ]
    db = Database(database)
    await add_owner(db)
    deployment = await Deployment.load(db)
    made = Stock(database, db, deployment, admin, rotator)
    # The sentinel is the service's to make: the rotator cannot seal.
    service = VaultClient(management, Metrics())
    made.clients.append(service)
    await KeyGuard(service, management, deployment).verify()
    yield made
    await asyncio.gather(*(client.close() for client in made.clients))
    await admin.delete(f"/v1/sys/mounts/{settings.mount}")
    await admin.close()
    await db.close()
