"""Vault away, sealed or misconfigured: nothing is stored, metadata stays readable, no restart is needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from uuid import uuid4

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import URL

from keyman.config.vault import VaultSettings
from tests.faults.conftest import Counts, checks, counts, plane_of, unavailable
from tests.support.database import stored_keys
from tests.support.http import slow_proxy
from tests.support.needs import quick, quick_on
from tests.support.planes import PASSWORD, Plane
from tests.support.vault import DisposableVault
from tests.support.waiting import PATIENCE, becomes

pytestmark = pytest.mark.anyio

VALUE = "sk-hq2v9mXbT0c7eUKwN4Rd1234"
OTHER_VALUE = "sk-Zt81LqoPw5aYc3hVn6Xe9876"

TIMEOUT = 1.5
"""Seconds for one operation of Vault in these tests: what is frozen keeps nobody longer."""

UNHURRIED = 10 * TIMEOUT
"""Seconds where Vault answers, so that only a fault ends an operation, and not a busy machine."""

Fault = Callable[[DisposableVault, VaultSettings], AbstractAsyncContextManager[None]]


@pytest.fixture
async def settings(disposable_vault: DisposableVault) -> VaultSettings:
    """A mount of the test's own: what is done to its key, policy and role concerns no other test."""
    return await disposable_vault.provisioned(mount=f"transit-{uuid4().hex[:8]}", timeout=TIMEOUT)


@asynccontextmanager
async def frozen(vault: DisposableVault, _settings: VaultSettings) -> AsyncIterator[None]:
    vault.freeze()
    yield
    vault.thaw()


@asynccontextmanager
async def killed(vault: DisposableVault, _settings: VaultSettings) -> AsyncIterator[None]:
    vault.kill()
    yield
    vault.start()
    vault.unseal()


@asynccontextmanager
async def sealed(vault: DisposableVault, _settings: VaultSettings) -> AsyncIterator[None]:
    vault.seal()
    yield
    vault.unseal()


@asynccontextmanager
async def shut_out(vault: DisposableVault, _settings: VaultSettings) -> AsyncIterator[None]:
    """The policy gone: the token lives and may do nothing."""
    policy = vault.root.ask("GET", "sys/policies/acl/keyman-management")["policy"]
    vault.root.ask("PUT", "sys/policies/acl/keyman-management", {"policy": LOOKUP_ONLY})
    yield
    vault.root.ask("PUT", "sys/policies/acl/keyman-management", {"policy": policy})


LOOKUP_ONLY = 'path "auth/token/lookup-self" {\n  capabilities = ["read"]\n}\n'


@asynccontextmanager
async def locked_out(vault: DisposableVault, settings: VaultSettings) -> AsyncIterator[None]:
    """Token and secret revoked: there is no way to log in until an operator gives the secret back."""
    assert settings.secret_id is not None
    secret = {"secret_id": settings.secret_id.reveal()}
    vault.root.ask("POST", "auth/approle/role/keyman-management/secret-id/destroy", secret)
    revoke_tokens(vault)
    yield
    vault.root.ask("POST", "auth/approle/role/keyman-management/custom-secret-id", secret)


@asynccontextmanager
async def over_quota(vault: DisposableVault, settings: VaultSettings) -> AsyncIterator[None]:
    quota = f"sys/quotas/rate-limit/{settings.mount}"
    vault.root.ask("POST", quota, {"path": f"{settings.mount}/", "rate": 0.001, "interval": "1h"})
    yield
    vault.root.ask("DELETE", quota)


def revoke_tokens(vault: DisposableVault) -> None:
    """Revoke every token but the root's."""
    own = vault.root.ask("GET", "auth/token/lookup-self")["accessor"]
    for accessor in vault.root.ask("LIST", "auth/token/accessors")["keys"]:
        if accessor != own:
            vault.root.ask("POST", "auth/token/revoke-accessor", {"accessor": accessor})


def delete_key(vault: DisposableVault, settings: VaultSettings) -> None:
    vault.root.ask("POST", f"{settings.mount}/keys/keyman/config", {"deletion_allowed": True})
    vault.root.ask("DELETE", f"{settings.mount}/keys/keyman")


FAULTS: dict[str, tuple[Fault, str, str]] = {
    "frozen": (frozen, "unreachable", "Vault did not answer in time."),
    "killed": (killed, "unreachable", "Vault cannot be reached."),
    "sealed": (sealed, "sealed", "Vault is sealed"),
    "policy": (shut_out, "forbidden", "its policy does not allow this operation"),
    "login": (locked_out, "forbidden", "Vault refuses keyman's login"),
    "quota": (over_quota, "unreachable", "request quota"),
}
"""Each with what `/readyz` calls it, and what the answer to a write says."""


async def state_becomes(client: httpx.AsyncClient, state: str) -> None:
    async def there() -> bool:
        return (await checks(client))["vault"] == state

    await becomes(there, f"the state {state}")


async def stored(client: httpx.AsyncClient, value: str = VALUE) -> dict[str, object]:
    answer = await client.post("/api/keys", json={"service": "OPENAI", "api_key": value})
    assert answer.status_code == 201, answer.text
    key: dict[str, object] = answer.json()
    return key


async def metadata_is_at_hand(client: httpx.AsyncClient, kept: dict[str, object], spare: dict[str, object]) -> None:
    """Everything that does not seal a value works: listing, reading, changing, deleting, signing in."""
    assert (await client.get("/api/keys")).json() == [spare, kept]
    assert (await client.get(f"/api/keys/{kept['id']}")).json() == kept
    changed = await client.patch(f"/api/keys/{kept['id']}", json={"name": "renamed", "disabled": True})
    assert (changed.status_code, changed.json()["status"]) == (200, "disabled")
    assert (await client.delete(f"/api/keys/{spare['id']}")).status_code == 204
    assert (await client.get("/api/audit")).json()[0]["action"] == "key.delete"
    email = (await client.get("/api/auth/me")).json()["email"]
    signed_in = await client.post("/api/auth/login", json={"email": email, "password": PASSWORD})
    assert signed_in.status_code == 200
    assert (await client.get("/livez")).status_code == 200


async def survives(
    name: str, plane: Plane, database: URL, vault: DisposableVault, settings: VaultSettings, state_after: str = "ok"
) -> None:
    fault, state, reason = FAULTS[name]
    ada = await plane.user()
    kept, spare = await stored(ada), await stored(ada, OTHER_VALUE)
    before = await stored_keys(database)
    retry, several = {"Idempotency-Key": uuid4().hex}, {"Idempotency-Key": uuid4().hex}
    body = {"service": "OPENAI", "api_key": OTHER_VALUE}
    async with fault(vault, settings):
        await state_becomes(ada, state)
        unavailable(await ada.post("/api/keys", json=body, headers=retry), "vault", reason)
        unavailable(await ada.post("/api/keys/batch", json={"keys": [body, body]}, headers=several), "vault", reason)
        replaced = await ada.put(f"/api/keys/{kept['id']}", json={"api_key": OTHER_VALUE})
        unavailable(replaced, "vault", reason)
        assert await counts(database) == Counts(keys=2, answers=0, entries=2)
        assert await stored_keys(database) == before
        await metadata_is_at_hand(ada, kept, spare)
        assert await checks(ada) == {"database": "ok", "vault": state}
    await state_becomes(ada, state_after)
    again = await ada.post("/api/keys", json=body, headers=retry)
    assert again.status_code == 201, again.text
    assert "idempotent-replayed" not in again.headers
    both = await ada.post("/api/keys/batch", json={"keys": [body, body]}, headers=several)
    assert "idempotent-replayed" not in both.headers
    numbers = [again.json()["id"], *(entry["key"]["id"] for entry in both.json())]
    rows = await stored_keys(database)
    opened = vault.root.opens_all(rows.values(), settings.mount)
    assert opened == {kept["id"]: VALUE, **dict.fromkeys(numbers, OTHER_VALUE)}


@pytest.mark.parametrize("name", quick(["killed", "policy"], ["frozen", "sealed", "login", "quota"]))
async def test_writes_stop_metadata_stays_and_all_is_well_again_once_vault_is(
    name: str, sqlite: URL, disposable_vault: DisposableVault, settings: VaultSettings, quick_passwords: PasswordHasher
) -> None:
    if name != "frozen":
        settings = replace(settings, timeout=UNHURRIED)
    async with plane_of(sqlite, settings, quick_passwords) as plane:
        await survives(name, plane, sqlite, disposable_vault, settings)


@quick_on("sqlite")
async def test_nothing_is_stored_while_vault_is_sealed_on_either_database(
    database: URL, disposable_vault: DisposableVault, settings: VaultSettings, quick_passwords: PasswordHasher
) -> None:
    settings = replace(settings, timeout=UNHURRIED)
    async with plane_of(database, settings, quick_passwords) as plane:
        await survives("sealed", plane, database, disposable_vault, settings)


async def test_a_revoked_token_is_replaced_without_anybody_noticing(
    sqlite: URL, disposable_vault: DisposableVault, settings: VaultSettings, quick_passwords: PasswordHasher
) -> None:
    async with plane_of(sqlite, replace(settings, timeout=UNHURRIED), quick_passwords) as plane:
        ada = await plane.user()
        await stored(ada)
        revoke_tokens(disposable_vault)
        answers = await asyncio.gather(*(stored(ada) for _ in range(20)))
        assert len({key["id"] for key in answers}) == 20
        assert await checks(ada) == {"database": "ok", "vault": "ok"}
        # One login for all of them.
        tokens = disposable_vault.root.ask("LIST", "auth/token/accessors")["keys"]
        assert len(tokens) == 2


async def test_a_key_that_was_deleted_or_made_again_seals_nothing(
    sqlite: URL, disposable_vault: DisposableVault, settings: VaultSettings, quick_passwords: PasswordHasher
) -> None:
    settings = replace(settings, timeout=UNHURRIED)
    async with plane_of(sqlite, settings, quick_passwords) as plane:
        ada = await plane.user()
        kept, spare = await stored(ada), await stored(ada)
        before = await stored_keys(sqlite)

        delete_key(disposable_vault, settings)
        await state_becomes(ada, "wrong-key")
        body = {"service": "OPENAI", "api_key": VALUE}
        unavailable(await ada.post("/api/keys", json=body), "vault", "not the one that this database was sealed with")

        # Under the same name, with the same properties: only the sentinel can tell.
        await disposable_vault.provisioned(mount=settings.mount)
        for _ in range(3):
            assert await checks(ada) == {"database": "ok", "vault": "wrong-key"}
            answer = await ada.post("/api/keys", json=body)
            unavailable(answer, "vault", "not the one that this database was sealed with")
            replaced = await ada.put(f"/api/keys/{kept['id']}", json={"api_key": OTHER_VALUE})
            unavailable(replaced, "vault", "not the one that this database was sealed with")
        assert await stored_keys(sqlite) == before
        await metadata_is_at_hand(ada, kept, spare)

    # A start says the same.
    async with plane_of(sqlite, settings, quick_passwords) as plane:
        assert await checks(plane.client()) == {"database": "ok", "vault": "wrong-key"}


async def test_a_slow_vault_is_waited_for_up_to_the_deadline_and_no_longer(
    sqlite: URL, disposable_vault: DisposableVault, settings: VaultSettings, quick_passwords: PasswordHasher
) -> None:
    async with slow_proxy(disposable_vault.port, TIMEOUT / 10) as port:
        slow = replace(settings, address=f"http://127.0.0.1:{port}", timeout=UNHURRIED)
        async with plane_of(sqlite, slow, quick_passwords) as plane:
            ada = await plane.user()
            await stored(ada)
    async with slow_proxy(disposable_vault.port, TIMEOUT * 2) as port:
        slower = replace(settings, address=f"http://127.0.0.1:{port}")
        async with plane_of(sqlite, slower, quick_passwords) as plane:
            ada = await plane.user("ada@example.com")
            body = {"service": "OPENAI", "api_key": VALUE}
            unavailable(await ada.post("/api/keys", json=body), "vault", "did not answer in time")
            assert (await counts(sqlite)).keys == 1
            assert (await checks(ada))["vault"] == "unreachable"


async def test_no_connection_to_the_database_is_held_while_vault_is_asked(
    database: URL, disposable_vault: DisposableVault, settings: VaultSettings, quick_passwords: PasswordHasher
) -> None:
    patient = replace(settings, timeout=PATIENCE)
    many = 40  # four times the pool
    async with plane_of(database, patient, quick_passwords) as plane:
        ada = await plane.user()
        kept = await stored(ada)
        disposable_vault.freeze()
        waiting = [asyncio.create_task(stored(ada, f"{VALUE}{number}")) for number in range(many)]
        in_flight = "keyman_http_requests_in_progress"

        async def all_wait() -> bool:
            return await _metric(ada, in_flight) == many + 1 and await _metric(ada, IN_USE) == 0

        await becomes(all_wait, "requests that wait for Vault alone")
        assert (await ada.get("/api/keys")).json() == [kept]
        assert (await ada.patch(f"/api/keys/{kept['id']}", json={"name": "meanwhile"})).status_code == 200
        disposable_vault.thaw()
        assert len({key["id"] for key in await asyncio.gather(*waiting)}) == many
    assert (await counts(database)).keys == many + 1


IN_USE = "keyman_database_connections_in_use"


async def _metric(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.removeprefix(f"{name} ")) for line in lines if line.startswith(f"{name} "))


async def test_many_who_ask_for_readiness_share_one_wait(
    sqlite: URL, disposable_vault: DisposableVault, settings: VaultSettings, quick_passwords: PasswordHasher
) -> None:
    async with plane_of(sqlite, settings, quick_passwords) as plane:
        client = plane.client()
        disposable_vault.freeze()
        await asyncio.sleep(1.1)  # what was seen less than a second ago is not asked again
        # One after the other they would need thirty times the deadline.
        async with asyncio.timeout(TIMEOUT * 15):
            found = await asyncio.gather(*(checks(client) for _ in range(30)))
        assert all(check == {"database": "ok", "vault": "unreachable"} for check in found)
        disposable_vault.thaw()
        await state_becomes(client, "ok")


async def test_clients_that_leave_while_vault_is_asked_leave_nothing(
    database: URL, disposable_vault: DisposableVault, settings: VaultSettings, quick_passwords: PasswordHasher
) -> None:
    async with plane_of(database, replace(settings, timeout=PATIENCE), quick_passwords) as plane:
        ada = await plane.user()
        await stored(ada)
        disposable_vault.freeze()
        waiting = [asyncio.create_task(stored(ada)) for _ in range(10)]

        async def all_wait() -> bool:
            return await _metric(ada, "keyman_http_requests_in_progress") == 11

        await becomes(all_wait, "requests in flight")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        disposable_vault.thaw()
        await stored(ada)
        assert (await counts(database)).keys == 2
        assert await _metric(ada, "keyman_vault_requests_in_flight") == 0
        assert await _metric(ada, IN_USE) == 0
