"""The restore drill of docs/guide/operator.md: only the database, only Vault, backups of different days."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import URL

from keyman.config.vault import VaultSettings
from keyman.identity.passwords import Passwords
from tests.cli.transcript import keyman
from tests.support.cli import serve, variables
from tests.support.database import stored_keys
from tests.support.http import NO_TLS
from tests.support.planes import PASSWORD, plane_at
from tests.support.vault import DisposableVault, disposable_vault_at
from tests.support.waiting import until


@dataclass
class Deployment:
    """A Vault and a database that are backed up, lost and restored, apart from each other."""

    directory: Path
    vault: DisposableVault
    settings: VaultSettings

    @property
    def file(self) -> Path:
        return self.directory / "keyman.db"

    @property
    def url(self) -> URL:
        return URL.create("sqlite+aiosqlite", database=str(self.file))

    @property
    def env(self) -> dict[str, str]:
        """The management plane's variables."""
        return variables(self.settings, self.url)

    @property
    def rotator(self) -> dict[str, str]:
        role = "auth/approle/role/keyman-rotator"
        return self.env | {
            "KEYMAN_VAULT_ROLE_ID": self.vault.root.ask("GET", f"{role}/role-id")["role_id"],
            "KEYMAN_VAULT_SECRET_ID": self.vault.root.ask("POST", f"{role}/secret-id", {})["secret_id"],
        }

    def back_up_database(self, day: str) -> None:
        """As the documentation says: SQLite's own backup, while it may be in use."""
        with (
            closing(sqlite3.connect(self.file)) as source,
            closing(sqlite3.connect(self.directory / f"database-{day}")) as target,
        ):
            source.backup(target)

    def restore_database(self, day: str) -> None:
        self.lose_database()
        shutil.copy(self.directory / f"database-{day}", self.file)
        self.file.chmod(0o600)  # which the doctor would ask for

    def lose_database(self) -> None:
        for path in self.directory.glob("keyman.db*"):
            path.unlink()

    def back_up_vault(self, day: str) -> None:
        """Its whole storage, while it does not run."""
        self.vault.kill()
        shutil.copytree(self.directory / "vault", self.directory / f"vault-{day}")
        self.vault.start()
        self.vault.unseal()

    def restore_vault(self, day: str) -> None:
        self.vault.kill()
        shutil.rmtree(self.directory / "vault")
        shutil.copytree(self.directory / f"vault-{day}", self.directory / "vault")
        self.vault.start()
        self.vault.unseal()

    def lose_vault(self) -> None:
        """All that is left is the name: somebody has made a key again, as if nothing had been stored."""
        self.vault.root.ask("POST", "transit/keys/keyman/config", {"deletion_allowed": True})
        self.vault.root.ask("DELETE", "transit/keys/keyman")
        self.settings = asyncio.run(self.vault.provisioned())

    async def store(self, email: str, value: str, quick: PasswordHasher) -> None:
        """Start a plane, sign up there and store a key."""
        async with plane_at(self.url, self.settings, Passwords(quick)) as plane:
            user = await plane.user(email)
            answer = await user.post("/api/keys", json={"service": "OPENAI", "api_key": value})
            assert answer.status_code == 201, answer.text

    def doctor(self) -> dict[str, str]:
        """The checks that failed and what they found."""
        findings: list[dict[str, Any]] = json.loads(keyman("doctor", "--json", env=self.env).out)
        return {one["check"]: one["found"] for one in findings if one["state"] == "failed"}

    def opened(self) -> set[str | None]:
        keys = asyncio.run(stored_keys(self.url))
        return set(self.vault.root.opens_all(keys.values()).values())


FIRST, SECOND = "sk-of-the-first-day-1111", "sk-of-the-second-day-2222"


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory: pytest.TempPathFactory, quick_passwords: PasswordHasher) -> Iterator[Deployment]:
    """On the first day there is one key; on the second the key was rotated, and there is another one."""
    directory = tmp_path_factory.mktemp("restored")
    with disposable_vault_at(directory / "vault") as vault:
        made = Deployment(directory, vault, asyncio.run(vault.provisioned()))
        assert keyman("db", "upgrade", env=made.env).code == 0
        asyncio.run(made.store("ada@example.com", FIRST, quick_passwords))
        made.back_up_database("first")
        made.back_up_vault("first")
        assert keyman("rotate", env=made.rotator).code == 0
        asyncio.run(made.store("grace@example.com", SECOND, quick_passwords))
        made.back_up_database("second")
        made.back_up_vault("second")
        yield made


@pytest.fixture
def deployment(backed_up: Deployment) -> Deployment:
    """As it was at the end of the second day."""
    backed_up.restore_database("second")
    backed_up.restore_vault("second")
    backed_up.settings = asyncio.run(backed_up.vault.provisioned())
    assert backed_up.doctor() == {}
    return backed_up


def test_both_of_one_day_are_whole_again(deployment: Deployment) -> None:
    for day, held in (("first", {FIRST}), ("second", {FIRST, SECOND})):
        deployment.restore_database(day)
        deployment.restore_vault(day)
        deployment.settings = asyncio.run(deployment.vault.provisioned())  # secret IDs are in that backup, too
        assert deployment.doctor() == {}
        assert deployment.opened() == held


def test_a_database_without_its_vault_takes_no_keys_and_loses_none(deployment: Deployment, tmp_path: Path) -> None:
    deployment.lose_vault()
    assert deployment.doctor().keys() == {"sentinel", "sample", "key-versions"}
    with serve(deployment.env, tmp_path / "without", ready=False) as service:
        until(lambda: service.readiness() is not None, "an answer")
        assert (service.readiness() or {})["checks"]["vault"] == "wrong-key"
        ada = httpx.Client(base_url=service.url, verify=NO_TLS)
        login = {"email": "ada@example.com", "password": PASSWORD}
        assert ada.post("/api/auth/login", json=login).status_code == 200
        assert [key["status"] for key in ada.get("/api/keys").json()] == ["active"]  # listing needs no Vault
        refused = ada.post("/api/keys", json={"service": "OPENAI", "api_key": SECOND})
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/vault-unavailable")
        ada.close()
    # Rewrapping would only find that nothing opens, so it does not begin, and marks nothing.
    assert keyman("rewrap", env=deployment.rotator).code == 1
    deployment.restore_vault("second")
    deployment.settings = asyncio.run(deployment.vault.provisioned())
    assert deployment.doctor() == {}
    assert deployment.opened() == {FIRST, SECOND}


def test_a_vault_without_its_database_starts_empty(deployment: Deployment, quick_passwords: PasswordHasher) -> None:
    deployment.lose_database()
    assert deployment.doctor().keys() == {"database"}
    assert keyman("db", "upgrade", env=deployment.env).code == 0
    asyncio.run(deployment.store("ada@example.com", FIRST, quick_passwords))
    assert deployment.doctor() == {}
    assert deployment.opened() == {FIRST}


def test_a_vault_older_than_the_database_is_recognised_and_a_newer_backup_repairs_it(deployment: Deployment) -> None:
    deployment.restore_vault("first")  # before the rotation
    deployment.settings = asyncio.run(deployment.vault.provisioned())
    found = deployment.doctor()
    assert "newest version is 1" in found["key-versions"]
    assert "sentinel" in found
    deployment.restore_vault("second")
    deployment.settings = asyncio.run(deployment.vault.provisioned())
    assert deployment.doctor() == {}
    assert deployment.opened() == {FIRST, SECOND}


def test_a_database_older_than_the_vault_opens_and_a_retired_version_is_allowed_again(deployment: Deployment) -> None:
    deployment.vault.root.ask("POST", "transit/keys/keyman/config", {"min_decryption_version": 2})
    assert deployment.doctor() == {}
    deployment.restore_database("first")  # sealed with what has been retired
    found = deployment.doctor()
    assert "Vault opens none below 2" in found["key-versions"]
    deployment.vault.root.ask("POST", "transit/keys/keyman/config", {"min_decryption_version": 1})
    assert deployment.doctor() == {}
    assert keyman("rewrap", env=deployment.rotator).code == 0
    deployment.vault.root.ask("POST", "transit/keys/keyman/config", {"min_decryption_version": 2})
    assert deployment.doctor() == {}
    assert deployment.opened() == {FIRST}
