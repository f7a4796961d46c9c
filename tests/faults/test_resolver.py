"""The resolver when Vault or the database is away or was changed by hand: answers, audit log, marks on keys.

The order of steps is seen on a proxy in front of the real Vault, which holds a call back while the audit log is read.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from uuid import uuid4

import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import URL

from keyman.config.vault import VaultSettings
from keyman.storage.transactions import Unchecked
from tests.faults.conftest import checks
from tests.faults.test_vault import LOOKUP_ONLY, Fault, delete_key, frozen, killed, over_quota, sealed
from tests.planes.management.api.harness import OPENAI_KEY, problem
from tests.planes.resolver.pair import App, Owner, Pair, pair_at, resolver_at, through
from tests.support.database import PostgresServer
from tests.support.http import Call, RecordingProxy, recording_proxy
from tests.support.needs import quick
from tests.support.planes import Vault
from tests.support.vault import DisposableVault
from tests.support.waiting import becomes

pytestmark = pytest.mark.anyio

OTHER = "sk-Zt81LqoPw5aYc3hVn6Xe9876"
TIMEOUT = 1.5
"""Seconds for one operation of Vault in these tests: what is frozen keeps nobody longer."""

UNHURRIED = 10 * TIMEOUT
"""Seconds where Vault answers, so that only a fault ends an operation, and not a busy machine."""

RESOLVED = ("key.resolve", None)


@dataclass
class Scene:
    """A pair, with somebody who has a key and an application that may have it."""

    pair: Pair
    ada: Owner
    app: App
    key_id: int
    proxy: RecordingProxy


async def vault_becomes(pair: Pair, state: str) -> None:
    """Return once the resolver's `/readyz` says so."""

    async def there() -> bool:
        return (await checks(pair.resolver.client()))["vault"] == state

    await becomes(there, f"the state {state}")


@asynccontextmanager
async def scene_at(
    database: URL, management: VaultSettings, resolver: VaultSettings, quick: PasswordHasher
) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(recording_proxy(resolver.address))
        vaults = (management, through(resolver, running.address))
        pair = await stack.enter_async_context(pair_at(database, *vaults, quick))
        ada, app = await pair.owner(), await pair.app()
        yield Scene(pair, ada, app, await ada.key(), running)


@pytest.fixture
async def scene(database: URL, provisioned: Vault, quick_passwords: PasswordHasher) -> AsyncIterator[Scene]:
    """Over a database of the test's own, once of each kind."""
    async with scene_at(database, provisioned.settings, provisioned.resolver, quick_passwords) as made:
        yield made


@pytest.fixture
async def one_scene(sqlite: URL, provisioned: Vault, quick_passwords: PasswordHasher) -> AsyncIterator[Scene]:
    async with scene_at(sqlite, provisioned.settings, provisioned.resolver, quick_passwords) as made:
        yield made


# --- the order of things


async def test_the_entry_is_committed_before_vault_is_asked(scene: Scene) -> None:
    before = len(scene.proxy.to("/decrypt/"))
    with scene.proxy.holding("/decrypt/"):
        asking = asyncio.create_task(scene.app.ask(key_id=scene.key_id))
        await scene.proxy.arrived("/decrypt/", before + 1)
        assert await scene.pair.told(scene.app) == [RESOLVED]
        assert not asking.done()
    assert (await asking).json()["api_key"] == OPENAI_KEY
    assert await scene.pair.told(scene.app) == [RESOLVED]
    assert len(scene.proxy.to("/decrypt/")) == before + 1


async def test_vault_is_asked_for_one_value_with_its_context_and_nothing_else(one_scene: Scene) -> None:
    await one_scene.app.gets(key_id=one_scene.key_id)
    call = one_scene.proxy.calls[-1]
    assert call.path == "/v1/transit/decrypt/keyman"
    assert call.json.keys() == {"ciphertext", "context"}
    assert {call.path for call in one_scene.proxy.calls} == {"/v1/auth/approle/login", "/v1/transit/decrypt/keyman"}


async def test_what_is_refused_is_not_asked_of_vault(scene: Scene) -> None:
    await scene.ada.client.patch(f"/api/keys/{scene.key_id}", json={"disabled": True})
    before = len(scene.proxy.calls)
    problem(await scene.app.ask(key_id=scene.key_id), "not-found")
    assert len(scene.proxy.calls) == before


async def test_a_database_that_cannot_be_written_to_gives_out_nothing(
    database: URL,
    provisioned: Vault,
    quick_passwords: PasswordHasher,
    impatient: None,
    request: pytest.FixtureRequest,
) -> None:
    """No entry, no key."""
    async with scene_at(database, provisioned.settings, provisioned.resolver, quick_passwords) as scene:
        with closing(_read_only(database, request)):
            address = through(provisioned.resolver, scene.proxy.address)
            async with resolver_at(database, address) as resolver:
                before = len(scene.proxy.to("/decrypt/"))
                client = resolver.bearer(scene.app.token)
                for body in ({"key_id": scene.key_id}, {"key_id": 4711}):
                    answer = await client.post("/v1/resolve", json=body)
                    problem(answer, "database-unavailable")
                    assert OPENAI_KEY not in answer.text
                assert len(scene.proxy.to("/decrypt/")) == before
        assert await scene.pair.told(scene.app) == []


def _read_only(database: URL, request: pytest.FixtureRequest) -> sqlite3.Connection:
    """Make a database one that new connections can only read; undone when what is returned is closed."""
    if database.get_backend_name() == "sqlite":
        writer = sqlite3.connect(str(database.database), isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        return writer
    server: PostgresServer = request.getfixturevalue("postgres")
    server.execute(f'ALTER DATABASE "{database.database}" SET default_transaction_read_only = on')
    return sqlite3.connect(":memory:")


async def test_a_key_that_is_deleted_on_the_way_was_given_out_before(scene: Scene) -> None:
    before = len(scene.proxy.to("/decrypt/"))
    with scene.proxy.holding("/decrypt/"):
        asking = asyncio.create_task(scene.app.ask(key_id=scene.key_id))
        await scene.proxy.arrived("/decrypt/", before + 1)
        assert (await scene.ada.client.delete(f"/api/keys/{scene.key_id}")).status_code == 204
    assert (await asking).status_code == 200
    problem(await scene.app.ask(key_id=scene.key_id), "not-found")
    assert [entry["action"] for entry in (await scene.ada.client.get("/api/audit")).json()[:3]] == [
        "key.delete",
        "key.resolve",
        "key.create",
    ]


async def test_who_has_gone_away_leaves_the_entry_and_takes_nothing(scene: Scene) -> None:
    before = len(scene.proxy.to("/decrypt/"))
    with scene.proxy.holding("/decrypt/"):
        asking = asyncio.create_task(scene.app.ask(key_id=scene.key_id))
        await scene.proxy.arrived("/decrypt/", before + 1)
        asking.cancel()
        await asyncio.wait([asking])
    assert asking.cancelled()
    assert await scene.pair.told(scene.app) == [RESOLVED]
    assert (await scene.pair.row(scene.key_id)).last_used_at is None
    assert await scene.app.gets(key_id=scene.key_id) == OPENAI_KEY


# --- rows that were changed by hand


async def test_ciphertexts_that_were_exchanged_open_nowhere_and_are_marked(scene: Scene) -> None:
    eve = await scene.pair.owner()
    own, theirs = scene.key_id, await eve.key(value=OTHER)
    second, third = await scene.ada.key(value=OTHER), await scene.ada.key(value=OTHER)
    rows = {key_id: await scene.pair.row(key_id) for key_id in (own, theirs, second)}
    taken_from = {own: theirs, theirs: second, second: own}
    for key_id, other in taken_from.items():
        await scene.pair.change(key_id, encrypted_key=rows[other].encrypted_key)
    for key_id in taken_from:
        for _ in range(2):
            answer = await scene.app.ask(key_id=key_id)
            problem(answer, "undecryptable")
            for word in (OPENAI_KEY, OTHER, "vault:", *(row.encrypted_key for row in rows.values())):
                assert word not in answer.text
        assert (await scene.pair.row(key_id)).undecryptable
    assert await scene.app.gets(key_id=third) == OTHER
    assert not (await scene.pair.row(third)).undecryptable
    failed, refused = ("key.resolve-failed", "undecryptable"), ("key.resolve-refused", "undecryptable")
    assert await scene.pair.told(scene.app) == [RESOLVED, failed, refused] * 3 + [RESOLVED]
    assert (await checks(scene.pair.resolver.client()))["vault"] == "ok"
    assert (await scene.ada.client.get(f"/api/keys/{own}")).json()["status"] == "undecryptable"
    # Its owner stores it again, and all is well.
    assert (await scene.ada.client.put(f"/api/keys/{own}", json={"api_key": OTHER})).status_code == 200
    assert await scene.app.gets(key_id=own) == OTHER


@pytest.mark.parametrize(
    "ciphertext", ["vault:v1:", "vault:v1:AAAA", "vault:v9:AAAA", "vault:v0:AAAA", "vault:vx", "vault:v1:%"]
)
async def test_what_is_no_ciphertext_is_marked(one_scene: Scene, ciphertext: str) -> None:
    await one_scene.pair.change(one_scene.key_id, encrypted_key=ciphertext)
    problem(await one_scene.app.ask(key_id=one_scene.key_id), "undecryptable")
    assert (await one_scene.pair.row(one_scene.key_id)).undecryptable


async def test_a_value_that_was_replaced_does_not_come_back_with_its_ciphertext(one_scene: Scene) -> None:
    old = (await one_scene.pair.row(one_scene.key_id)).encrypted_key
    await one_scene.ada.client.put(f"/api/keys/{one_scene.key_id}", json={"api_key": OTHER})
    await one_scene.pair.change(one_scene.key_id, encrypted_key=old)
    problem(await one_scene.app.ask(key_id=one_scene.key_id), "undecryptable")


async def test_a_value_that_is_replaced_during_a_resolve_is_the_one_given_out(one_scene: Scene) -> None:
    await one_scene.pair.change(one_scene.key_id, encrypted_key="vault:v1:AAAA")
    before = len(one_scene.proxy.to("/decrypt/"))
    with one_scene.proxy.holding("/decrypt/"):
        asking = asyncio.create_task(one_scene.app.ask(key_id=one_scene.key_id))
        await one_scene.proxy.arrived("/decrypt/", before + 1)
        await one_scene.ada.client.put(f"/api/keys/{one_scene.key_id}", json={"api_key": OTHER})
    assert (await asking).json()["api_key"] == OTHER
    assert not (await one_scene.pair.row(one_scene.key_id)).undecryptable
    assert await one_scene.pair.told(one_scene.app) == [RESOLVED, ("key.resolve-failed", "undecryptable"), RESOLVED]


async def test_a_key_that_is_tampered_with_and_deleted_meanwhile_is_not_there(one_scene: Scene) -> None:
    await one_scene.pair.change(one_scene.key_id, encrypted_key="vault:v1:AAAA")
    before = len(one_scene.proxy.to("/decrypt/"))
    with one_scene.proxy.holding("/decrypt/"):
        asking = asyncio.create_task(one_scene.app.ask(key_id=one_scene.key_id))
        await one_scene.proxy.arrived("/decrypt/", before + 1)
        await one_scene.ada.client.delete(f"/api/keys/{one_scene.key_id}")
    problem(await asking, "not-found")


async def test_a_vault_that_was_another_one_for_a_moment_marks_nothing(one_scene: Scene) -> None:
    wrong = 1

    def refuse(_call: Call, status: int, content: bytes) -> tuple[int, bytes]:
        nonlocal wrong
        wrong -= 1
        return (status, content) if wrong < 0 else (400, b'{"errors": ["cipher: message authentication failed"]}')

    with one_scene.proxy.changing("/decrypt/", refuse):
        assert await one_scene.app.gets(key_id=one_scene.key_id) == OPENAI_KEY
        wrong = 3  # and when the sentinel does not open either
        answer = await one_scene.app.ask(key_id=one_scene.key_id)
    problem(answer, "vault-unavailable")
    assert "not the one that this database was sealed with" in answer.json()["detail"]
    assert not (await one_scene.pair.row(one_scene.key_id)).undecryptable


# --- Vault away or another one


@asynccontextmanager
async def shut_out(vault: DisposableVault, _settings: VaultSettings) -> AsyncIterator[None]:
    policy = vault.root.ask("GET", "sys/policies/acl/keyman-resolver")["policy"]
    vault.root.ask("PUT", "sys/policies/acl/keyman-resolver", {"policy": LOOKUP_ONLY})
    yield
    vault.root.ask("PUT", "sys/policies/acl/keyman-resolver", {"policy": policy})


FAULTS: dict[str, tuple[Fault, str, str, str]] = {
    "frozen": (frozen, "unreachable", "timeout", "Vault did not answer in time."),
    "killed": (killed, "unreachable", "unreachable", "Vault cannot be reached."),
    "sealed": (sealed, "sealed", "sealed", "Vault is sealed"),
    "policy": (shut_out, "forbidden", "forbidden", "its policy does not allow this operation"),
    "quota": (over_quota, "unreachable", "quota", "request quota"),
}
"""Each with what `/readyz` calls it, what the audit log says, and what the answer says."""


@pytest.fixture
async def vaults(disposable_vault: DisposableVault) -> tuple[VaultSettings, VaultSettings]:
    """A mount of the test's own, for both planes."""
    mount = f"transit-{uuid4().hex[:8]}"
    roles = ("keyman-management", "keyman-resolver")
    management, resolver = [await disposable_vault.provisioned(role, mount=mount, timeout=TIMEOUT) for role in roles]
    return management, resolver


@pytest.mark.parametrize("name", quick(["killed"], ["frozen", "sealed", "policy", "quota"]))
async def test_without_vault_no_key_leaves_a_second_entry_says_so_and_all_is_well_again_once_it_is_back(
    name: str,
    sqlite: URL,
    disposable_vault: DisposableVault,
    vaults: tuple[VaultSettings, VaultSettings],
    quick_passwords: PasswordHasher,
) -> None:
    fault, state, reason, said = FAULTS[name]
    management, resolver = vaults
    if name != "frozen":
        management, resolver = (replace(each, timeout=UNHURRIED) for each in vaults)
    async with pair_at(sqlite, management, resolver, quick_passwords) as pair:
        ada, app = await pair.owner(), await pair.app()
        key_id = await ada.key()
        assert await app.gets(key_id=key_id) == OPENAI_KEY
        async with fault(disposable_vault, vaults[1]):
            await vault_becomes(pair, state)
            answer = await app.ask(key_id=key_id)
            problem(answer, "vault-unavailable")
            assert said in answer.json()["detail"]
            assert answer.json()["detail"].endswith("No key was given out.")
        await vault_becomes(pair, "ok")
        assert await pair.told(app) == [RESOLVED, RESOLVED, ("key.resolve-failed", reason)]
        assert not (await pair.row(key_id)).undecryptable
        assert await app.gets(key_id=key_id) == OPENAI_KEY


async def test_a_key_of_vaults_that_was_deleted_or_made_again_marks_nothing(
    sqlite: URL,
    disposable_vault: DisposableVault,
    vaults: tuple[VaultSettings, VaultSettings],
    quick_passwords: PasswordHasher,
) -> None:
    async with pair_at(sqlite, *vaults, quick_passwords) as pair:
        ada, app = await pair.owner(), await pair.app()
        keys = [await ada.key() for _ in range(5)]
        delete_key(disposable_vault, vaults[0])
        for _ in range(2):
            for key_id in keys:
                answer = await app.ask(key_id=key_id)
                problem(answer, "vault-unavailable")
                assert "not the one that this database was sealed with" in answer.json()["detail"]
                assert not (await pair.row(key_id)).undecryptable
            assert (await checks(pair.resolver.client()))["vault"] == "wrong-key"
            await disposable_vault.provisioned(mount=vaults[0].mount)  # under the same name, with the same properties
        failed = ("key.resolve-failed", "wrong-key")
        assert await pair.told(app) == [RESOLVED, failed] * 10


async def test_without_a_sentinel_nothing_is_marked_and_it_is_not_ready(scene: Scene) -> None:
    """A resolver that is first at an empty deployment waits for the management plane."""
    async with scene.pair.resolver.database.write(Unchecked.OPERATOR) as connection:
        await connection.exec_driver_sql("UPDATE deployment SET sentinel = NULL")
    async with resolver_at(scene.pair.resolver.settings.database_url, scene.pair.resolver.settings.vault) as resolver:
        assert (await checks(resolver.client()))["vault"] == "wrong-key"
        client = resolver.bearer(scene.app.token)
        assert (await client.post("/v1/resolve", json={"key_id": scene.key_id})).json()["api_key"] == OPENAI_KEY
        await scene.pair.change(scene.key_id, encrypted_key="vault:v1:AAAA")
        problem(await client.post("/v1/resolve", json={"key_id": scene.key_id}), "vault-unavailable")
    assert not (await scene.pair.row(scene.key_id)).undecryptable


async def test_a_second_entry_that_cannot_be_written_changes_nothing_about_the_answer(
    one_scene: Scene, impatient: None
) -> None:
    before = len(one_scene.proxy.to("/decrypt/"))
    database = str(one_scene.pair.resolver.settings.database_url.database)
    with (
        closing(sqlite3.connect(database, isolation_level=None)) as writer,
        one_scene.proxy.changing("/decrypt/", lambda _call, _status, _content: (500, b"")),
    ):
        with one_scene.proxy.holding("/decrypt/"):
            asking = asyncio.create_task(one_scene.app.ask(key_id=one_scene.key_id))
            await one_scene.proxy.arrived("/decrypt/", before + 1)
            writer.execute("BEGIN IMMEDIATE")
        problem(await asking, "vault-unavailable")
    assert await one_scene.pair.told(one_scene.app) == [RESOLVED]
