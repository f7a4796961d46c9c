"""The database and the Vault that commands work on, named by variables as an operator names them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from uuid import uuid4

import pytest
from sqlalchemy import insert, select
from sqlalchemy.engine import make_url

from keyman.audit.entries import OPERATOR, Action, Entry
from keyman.audit.log import record
from keyman.config.vault import VaultSettings
from keyman.ids import UserId
from keyman.keys.deployment import Deployment
from keyman.keys.tables import api_keys
from keyman.metrics import Metrics
from keyman.secret import Secret
from keyman.storage.transactions import Database, Unchecked
from keyman.vault.cipher import Context, TransitCipher
from keyman.vault.guard import KeyGuard
from keyman.vault.login import VaultClient
from tests.support.cli import environment
from tests.support.database import copied
from tests.support.rows import add_owner, row
from tests.support.vault import DisposableVault, disposable_vault_at


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the SQLite database of a test lies."""
    return tmp_path / "keyman.db"


@pytest.fixture
def env(file: Path, migrated_sqlite: Path) -> dict[str, str]:
    """The variables of somebody whose database is migrated."""
    copied(migrated_sqlite, file)
    return environment(KEYMAN_DATABASE_URL=f"sqlite+aiosqlite:///{file}")


@pytest.fixture(scope="session")
def rotated_vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DisposableVault]:
    with disposable_vault_at(tmp_path_factory.mktemp("rotated")) as started:
        yield started


@pytest.fixture
def management(rotated_vault: DisposableVault) -> VaultSettings:
    """How the service logs in, at a mount of the test's own."""
    return asyncio.run(rotated_vault.provisioned(mount=f"seals-{token_hex(4)}"))


@pytest.fixture
def operator(env: dict[str, str], rotated_vault: DisposableVault, management: VaultSettings) -> dict[str, str]:
    """The variables of the job that rotates."""
    role = "auth/approle/role/keyman-rotator"
    return env | {
        "KEYMAN_VAULT_ADDR": management.address,
        "KEYMAN_VAULT_MOUNT": management.mount,
        "KEYMAN_VAULT_ROLE_ID": rotated_vault.root.ask("GET", f"{role}/role-id")["role_id"],
        "KEYMAN_VAULT_SECRET_ID": rotated_vault.root.ask("POST", f"{role}/secret-id", {})["secret_id"],
    }


@pytest.fixture
def stored(operator: dict[str, str], management: VaultSettings) -> int:
    """How many keys there are: more than one chunk."""
    count = 160
    asyncio.run(store(operator, management, count))
    return count


async def store(env: dict[str, str], settings: VaultSettings, count: int) -> None:
    db, metrics = Database(make_url(env["KEYMAN_DATABASE_URL"])), Metrics()
    client = VaultClient(settings, metrics)
    at = await Deployment.load(db)
    cipher = TransitCipher(client, settings, KeyGuard(client, settings, at), metrics)
    await add_owner(db)
    values = [uuid4() for _ in range(count)]
    sealed = await asyncio.gather(
        *(cipher.encrypt(Secret("sk-1234567890"), Context(at.uuid, 1, "OPENAI", value)) for value in values)
    )
    rows = [
        row("api_keys", encrypted_key=one.ciphertext, key_version=one.key_version, value_uuid=value)
        for value, one in zip(values, sealed, strict=True)
    ]
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(insert(api_keys), rows)
        stored = (await connection.execute(select(api_keys.c.id, api_keys.c.value_uuid))).all()
        entries = (
            Entry(Action.KEY_CREATE, OPERATOR, UserId(1), key_id=one.id, value_uuid=one.value_uuid) for one in stored
        )
        await record(connection, *entries)
    await client.close()
    await db.close()


def execute(env: dict[str, str], statement: object) -> None:
    async def do() -> None:
        db = Database(make_url(env["KEYMAN_DATABASE_URL"]))
        async with db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(statement)  # type: ignore[call-overload]  # an UPDATE or a DELETE
        await db.close()

    asyncio.run(do())
