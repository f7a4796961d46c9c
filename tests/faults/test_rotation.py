"""A rotation under traffic: no request fails, no update is lost, and afterwards nothing needs the old version."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex

import httpx
import pytest
from sqlalchemy.engine import URL

from tests.support.cli import KEYMAN, serve, variables
from tests.support.database import stored_keys
from tests.support.http import NO_TLS
from tests.support.planes import PASSWORD
from tests.support.vault import DisposableVault
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.anyio

CLIENTS = 6
ROTATIONS = 2


@pytest.mark.slow
async def test_a_rotation_under_traffic_fails_no_request_and_loses_no_update(
    database: URL, disposable_vault: DisposableVault, tmp_path: Path
) -> None:
    settings = await disposable_vault.provisioned(mount=f"busy-{token_hex(4)}")
    env = variables(settings, database) | {"KEYMAN_VAULT_MOUNT": settings.mount}
    with serve(env, tmp_path) as service:
        resting = asyncio.Event()
        clients = [asyncio.create_task(_use(service.url, number, resting)) for number in range(CLIENTS)]
        try:
            rotator = env | _rotator(disposable_vault)
            said = [await _keyman(rotator, "rotate") for _ in range(ROTATIONS)]
        finally:
            resting.set()
        held: dict[int, str] = {}
        for client in clients:
            held |= await client
        assert [f"version {number} of the encryption key" in text for number, text in enumerate(said, 2)] == [
            True
        ] * ROTATIONS
        # What was sealed before the last rotation and stored after the run was over is for the next one.
        await _keyman(rotator, "rewrap")
        keys = await stored_keys(database)
        assert {key.ciphertext.split(":")[1] for key in keys.values()} == {f"v{ROTATIONS + 1}"}
        assert disposable_vault.root.opens_all(keys.values(), mount=settings.mount) == held
        disposable_vault.root.ask(
            "POST", f"{settings.mount}/keys/keyman/config", {"min_decryption_version": ROTATIONS + 1}
        )
        assert service.is_ready()
        assert disposable_vault.root.opens_all(keys.values(), mount=settings.mount) == held


async def _use(url: str, number: int, resting: asyncio.Event) -> dict[int, str]:
    """Store, replace, change and delete keys, each with success, until it is time to rest; return what is held then."""
    chance, held = random.Random(number), dict[int, str]()  # noqa: S311  # to do the same again
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, verify=NO_TLS) as client:
        body = {"email": f"user{number}@example.com", "password": PASSWORD}
        assert (await client.post("/api/auth/signup", json=body)).status_code == 201
        while not resting.is_set():
            value = f"sk-{chance.getrandbits(160):040x}"
            kind = chance.random()
            if not held or kind < 0.4:
                answer = await client.post("/api/keys", json={"service": "OPENAI", "api_key": value})
                held[answer.json()["id"]] = value
            else:
                key = chance.choice(list(held))
                read = await client.get(f"/api/keys/{key}")
                condition = {"If-Match": read.headers["ETag"]}  # which a rewrap in between does not break
                if kind < 0.7:
                    answer = await client.put(f"/api/keys/{key}", json={"api_key": value}, headers=condition)
                    held[key] = value
                elif kind < 0.85:
                    answer = await client.patch(f"/api/keys/{key}", json={"name": "busy"}, headers=condition)
                else:
                    answer = await client.delete(f"/api/keys/{key}", headers=condition)
                    del held[key]
            assert answer.is_success, answer.text
            await asyncio.sleep(0.01)
    return held


async def _keyman(env: Mapping[str, str], command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        KEYMAN, command, env=dict(env), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert (process.returncode, out) == (0, b""), err.decode()
    return err.decode()


def _rotator(vault: DisposableVault) -> dict[str, str]:
    role = "auth/approle/role/keyman-rotator"
    return {
        "KEYMAN_VAULT_ROLE_ID": vault.root.ask("GET", f"{role}/role-id")["role_id"],
        "KEYMAN_VAULT_SECRET_ID": vault.root.ask("POST", f"{role}/secret-id", {})["secret_id"],
    }
