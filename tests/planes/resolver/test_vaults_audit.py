"""Vault's own audit log beside keyman's: an entry of the one is found in the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import URL

from keyman.dev import embedded
from tests.planes.resolver.pair import pair_at
from tests.support.vault import DisposableVault, disposable_vault_at

pytestmark = pytest.mark.anyio


@pytest.fixture
def audited(tmp_path: Path) -> Iterator[DisposableVault]:
    """A Vault that writes what it is asked to `vault.log`, with the secrets hashed, as it does by default."""
    plain = embedded._config
    log = {"file": {"to-file": {"options": [{"file_path": str(tmp_path / "vault.log")}]}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "_config", lambda *given: {**plain(*given), "audit": log})
        with disposable_vault_at(tmp_path / "home") as started:
            yield started


@pytest.fixture
def logins(audited: DisposableVault) -> tuple[Any, Any]:
    return asyncio.run(audited.provisioned()), asyncio.run(audited.provisioned("keyman-resolver"))


async def test_a_use_of_a_key_is_found_in_both(
    database: URL, logins: tuple[Any, Any], quick_passwords: PasswordHasher, tmp_path: Path
) -> None:
    async with pair_at(database, *logins, quick_passwords) as pair:
        owner, app = await pair.owner(), await pair.app()
        stored = await owner.client.post("/api/keys", json={"service": "OPENAI", "api_key": "sk-c4n4ry-c4n4ry"})
        key_id = stored.json()["id"]
        await app.gets(key_id=key_id)
        (resolved,) = await pair.entries(app)
        async with pair.resolver.database.read() as connection:
            rows = await connection.exec_driver_sql(
                "SELECT request_id, vault_request_id FROM audit_log WHERE key_id = 1"
            )
            told = {row.request_id: row.vault_request_id for row in rows}
    requests = [json.loads(text)["request"] for text in (tmp_path / "vault.log").read_text().splitlines()]

    sealing = [one for one in requests if one["path"] == "transit/encrypt/keyman"]
    assert told[stored.headers["X-Request-ID"]] in {one["id"] for one in sealing}
    # One call may seal for several requests, and names none of them.
    assert not [one for one in sealing if "x-request-id" in (one.get("headers") or {})]
    # A resolve is in the audit log before Vault is asked: what the two have in common is keyman's id.
    assert told[resolved.request_id] is None
    opening = [one for one in requests if one["path"] == "transit/decrypt/keyman"]
    assert resolved.request_id in {id_ for one in opening for id_ in one.get("headers", {}).get("x-request-id", ())}
    assert "c4n4ry" not in (tmp_path / "vault.log").read_text()
