"""An upgrade loses nothing: the deployment of tests/fixtures/revision_0004, upgraded, and read by the code of today.

Each test restores the database again. The Vault is restored once for all tests, because none of them changes it.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.engine import URL, make_url

from keyman import migrations
from keyman.audit import anchors, verification
from keyman.audit.chain import Head
from keyman.audit.tables import audit_log
from keyman.audit.verification import Verified
from keyman.clock import now
from keyman.config.vault import VaultSettings
from keyman.dev import embedded
from keyman.errors import Undecryptable
from keyman.identity import users
from keyman.identity.limits import MAX_PER_ACCOUNT, WINDOW
from keyman.identity.tables import api_tokens, sessions, throttle
from keyman.identity.tables import users as users_table
from keyman.keys.deployment import SCHEMA_REVISION, Deployment
from keyman.keys.rewrap import Rewrap
from keyman.keys.tables import api_keys
from keyman.metrics import Metrics
from keyman.secret import Secret
from keyman.storage.transactions import Database, Unchecked
from keyman.values import EmailAddress
from keyman.vault.cipher import Context
from keyman.vault.guard import KeyGuard
from keyman.vault.login import VaultClient
from keyman.vault.opener import TransitOpener
from keyman.vault.rotation import KeyRotation
from tests.fixtures.revision_0004 import restore
from tests.planes.management.api.harness import KEY_FIELDS, ApiPlane, Json, api_plane_at, problem
from tests.planes.resolver.pair import resolver_at
from tests.support.database import PostgresServer, sqlite_at
from tests.support.rows import AnyRow

pytestmark = pytest.mark.anyio

LATEST: int = restore.expected()["vault"]["latest_version"]

ROLES = ("management", "resolver", "rotator")


class Upgraded(NamedTuple):
    """The restored deployment after the upgrade. `expected` is what expected.json says of it, `logins` is by role."""

    kind: str
    url: URL
    db: Database
    deployment: Deployment
    logins: dict[str, VaultSettings]
    expected: Json

    async def rows(self) -> dict[int, AnyRow]:
        """Every row of a key, by its id."""
        async with self.db.read() as connection:
            return {row.id: row for row in await connection.execute(select(api_keys))}

    def context(self, row: AnyRow) -> Context:
        return Context(self.deployment.uuid, row.user_id, row.service, row.value_uuid)

    def anchored(self, name: str) -> list[Head]:
        """The heads of an anchor: `-end` is that of the dump, and the empty name is that of the pruning before."""
        return anchors.load(restore.DIRECTORY / f"anchor-{self.kind}{name}.json", self.deployment.uuid).parsed_heads()

    async def verified(self, *anchored: Head) -> Verified:
        return await verification.verify(self.db, self.deployment.uuid, anchored)

    def unopenable(self) -> set[int]:
        """The ids of the keys whose ciphertext Vault refuses in its row."""
        return {key["id"] for key in self.expected["keys"] if key["api_key"] is None}


@pytest.fixture(scope="module")
def vault_0004(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, VaultSettings]]:
    """The fixture's Vault, with new credentials of each role."""
    server = asyncio.run(embedded.start(tmp_path_factory.mktemp("vault_0004")))
    try:
        root_token = restore.restore_vault(server.address, server.root_token.reveal())
        logins = {}
        for role in ROLES:
            issued = restore.issue_credentials(server.address, root_token, f"keyman-{role}")
            secret_id = Secret(issued.secret_id)
            logins[role] = VaultSettings(server.address, role_id=issued.role_id, secret_id=secret_id)
        yield logins
    finally:
        server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_0004(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[URL]:
    """The fixture's database as it was dumped, once of each kind."""
    if request.param == "sqlite":
        file = tmp_path / "keyman.db"
        restore.restore_sqlite(file)
        yield sqlite_at(file)
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    name = f"upgrade_{uuid4().hex}"
    url = server.create_database(name)
    try:
        await restore.restore_postgresql(url)
        yield make_url(url)
    finally:
        server.drop_database(name)


@pytest.fixture
async def upgraded(database_0004: URL, vault_0004: dict[str, VaultSettings]) -> AsyncIterator[Upgraded]:
    await migrations.upgrade(database_0004)
    kind = database_0004.get_backend_name()
    db = Database(database_0004)
    try:
        deployment = await Deployment.load(db)
        yield Upgraded(kind, database_0004, db, deployment, vault_0004, restore.expected()[kind])
    finally:
        await db.close()


@asynccontextmanager
async def resolver_of(upgraded: Upgraded) -> AsyncIterator[ApiPlane]:
    # The rate is that of one application, which asks for every key at once here.
    async with resolver_at(upgraded.url, upgraded.logins["resolver"], resolve_rate=1000.0) as plane:
        yield plane


@asynccontextmanager
async def management_of(upgraded: Upgraded) -> AsyncIterator[ApiPlane]:
    async with api_plane_at(upgraded.url, upgraded.logins["management"]) as plane:
        yield plane


async def newest_entry(db: Database) -> AnyRow:
    async with db.read() as connection:
        newest = select(audit_log).order_by(audit_log.c.id.desc()).limit(1)
        return (await connection.execute(newest)).one()


async def check_resolve(
    upgraded: Upgraded, plane: ApiPlane, name: str, body: Json, outcome: Json, key: Json | None
) -> None:
    """Asks as an application does, and compares the answer and the audit log. `key` is the one that is given out."""
    [application] = [one for one in upgraded.expected["applications"] if one["name"] == name]
    answer = await plane.bearer(application["tokens"][-1]["token"]).post("/v1/resolve", json=body)
    assert answer.status_code == outcome["status"], (body, answer.status_code)
    entry = await newest_entry(upgraded.db)
    assert (entry.application, entry.reason) == (name, outcome["reason"]), body
    if outcome["status"] != 200:
        problem(answer, outcome["problem"])
        return
    assert key is not None
    assert answer.json() == {
        "key_id": key["id"],
        "user_id": key["user_id"],
        "service": key["service"],
        "api_key": key["api_key"],
        "expires_at": key["expires_at"],
        "settings": {},
    }


async def check_resolves(upgraded: Upgraded) -> None:
    """Asks for every key by its id."""
    async with resolver_of(upgraded) as plane:
        for key in upgraded.expected["keys"]:
            await check_resolve(upgraded, plane, "everything", {"key_id": key["id"]}, key["resolve"], key)


async def sign_in(plane: ApiPlane, person: Json, password: str) -> tuple[int, Any]:
    """The status of a sign-in, and the client that tried, which has the session then."""
    client = plane.client()
    body = {"email": person["email"], "password": password}
    return (await client.post("/api/auth/login", json=body)).status_code, client


async def check_reads(client: Any, keys: Sequence[Json]) -> None:
    """Compares the owner's list, and each of the keys with its ETag."""
    later: Json = {"settings": {}, "check": None, "default": False}  # what keys did not have then
    bodies: Json = {key["id"]: {name: {**later, **key}[name] for name in KEY_FIELDS} for key in keys}
    listed = await client.get("/api/keys", params={"limit": 200})
    assert listed.status_code == 200, listed.text
    assert listed.json() == [bodies[key_id] for key_id in sorted(bodies, reverse=True)]
    for key in keys:
        answer = await client.get(f"/api/keys/{key['id']}")
        assert answer.status_code == 200, answer.text
        assert answer.json() == bodies[key["id"]]
        assert answer.headers["etag"] == key["etag"]


async def test_an_upgrade_of_a_restored_dump_makes_the_schema_that_the_code_describes(database_0004: URL) -> None:
    assert await migrations.upgrade(database_0004) == (restore.expected()["revision"], SCHEMA_REVISION)
    assert await migrations.differences(database_0004) == []


async def test_every_key_resolves_after_an_upgrade_as_it_did_before(upgraded: Upgraded) -> None:
    statuses = [key["resolve"]["status"] for key in upgraded.expected["keys"]]
    assert {200, 404, 409} == set(statuses)
    await check_resolves(upgraded)


async def test_applications_get_and_are_refused_after_an_upgrade_what_they_were_before(upgraded: Upgraded) -> None:
    keys = {key["id"]: key for key in upgraded.expected["keys"]}
    assert upgraded.expected["resolves"]
    async with resolver_of(upgraded) as plane:
        for asked in upgraded.expected["resolves"]:
            key = keys.get(asked["key_id"])
            await check_resolve(upgraded, plane, asked["application"], asked["body"], asked, key)


async def test_everyone_who_can_sign_in_reads_every_key_after_an_upgrade(upgraded: Upgraded) -> None:
    read = 0
    # The window of the account that was guessed at ends far in the future, which counts as over. Let it end soon.
    soon = update(throttle).where(throttle.c.attempts > MAX_PER_ACCOUNT).values(ends_at=now() + WINDOW)
    async with upgraded.db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(soon)
    async with management_of(upgraded) as plane:
        for person in upgraded.expected["users"]:
            for password in person["refused_passwords"]:
                assert (await sign_in(plane, person, password))[0] == 401, person["email"]
            status, client = await sign_in(plane, person, person["password"])
            assert status == person["login"], person["email"]
            if status == 200:
                keys = [key for key in upgraded.expected["keys"] if key["user_id"] == person["id"]]
                await check_reads(client, keys)
                read += len(keys)
        # A disabled user's keys are still there, too.
        disabled = [person for person in upgraded.expected["users"] if person["login"] == 401]
        for person in disabled:
            await users.enable(upgraded.db, EmailAddress.parse(person["email"]))
            status, client = await sign_in(plane, person, person["password"])
            assert status == 200, person["email"]
            keys = [key for key in upgraded.expected["keys"] if key["user_id"] == person["id"]]
            await check_reads(client, keys)
            read += len(keys)
    assert read == len(upgraded.expected["keys"])


async def test_the_audit_log_verifies_after_an_upgrade_with_the_anchors_from_before(upgraded: Upgraded) -> None:
    end = upgraded.anchored("-end")
    found = await upgraded.verified(*end)
    assert found.breaks == []
    assert sorted(found.held) == sorted(end)
    assert found.pruned == []
    # At least: a migration may write entries.
    assert found.entries >= upgraded.expected["audit"]["entries"]
    # The log was pruned with the other anchor, so entries that it names may be gone, and none may be changed.
    before = upgraded.anchored("")
    found = await upgraded.verified(*before)
    assert found.breaks == []
    assert sorted(found.held + found.pruned) == sorted(before)


async def test_an_audit_log_that_is_cut_after_an_upgrade_does_not_verify(upgraded: Upgraded) -> None:
    async with upgraded.db.write(Unchecked.OPERATOR) as connection:
        newest = (await newest_entry(upgraded.db)).id
        await connection.execute(audit_log.delete().where(audit_log.c.id == newest))
    assert (await upgraded.verified(*upgraded.anchored("-end"))).breaks


async def test_a_rewrap_after_an_upgrade_leaves_behind_only_what_is_damaged(upgraded: Upgraded) -> None:
    before = await upgraded.rows()
    damaged = upgraded.unopenable()
    assert damaged
    behind = {key_id for key_id, row in before.items() if row.key_version < LATEST or row.undecryptable}
    client = VaultClient(upgraded.logins["rotator"], Metrics())
    try:
        guard = KeyGuard(client, upgraded.logins["rotator"], upgraded.deployment)
        rotation = KeyRotation(client, upgraded.logins["rotator"])
        summary = await Rewrap(upgraded.db, upgraded.deployment, guard, rotation).run()
    finally:
        await client.close()
    assert summary.latest == LATEST
    assert {key.id for key in summary.refused} == damaged
    assert summary.damaged == set()
    assert summary.rewrapped == len(behind - damaged)
    after = await upgraded.rows()
    assert after.keys() == before.keys()
    for key_id, row in after.items():
        if key_id in damaged:
            assert row.undecryptable
            assert row.encrypted_key == before[key_id].encrypted_key
        else:
            assert not row.undecryptable
            assert row.key_version == LATEST
            assert row.encrypted_key.startswith(f"vault:v{LATEST}:")
    sentinel = await upgraded.deployment.sentinel(refresh=True)
    assert sentinel is not None
    assert sentinel.startswith(f"vault:v{LATEST}:")
    await check_resolves(upgraded)
    assert (await upgraded.verified(*upgraded.anchored("-end"))).breaks == []


async def test_ids_that_were_given_before_an_upgrade_are_not_given_again(upgraded: Upgraded) -> None:
    numbers = upgraded.expected["numbers"]
    # Or the highest row that there is would keep the next id above what was given.
    assert all(numbers[name]["given"] > numbers[name]["highest"] for name in ("api_keys", "api_tokens", "sessions"))
    ada = upgraded.expected["users"][0]
    async with management_of(upgraded) as plane:
        status, client = await sign_in(plane, ada, ada["password"])
        assert status == 200
        for key_id in upgraded.expected["deleted_keys"]:
            problem(await client.get(f"/api/keys/{key_id}"), "not-found")
        new_key = {"service": "OPENAI", "api_key": "sk-stored-after-the-upgrade"}
        stored = await client.post("/api/keys", json=new_key)
        issued = await client.post("/api/tokens", json={"name": "issued after the upgrade"})
        await plane.user("new@fixture.example")
    async with upgraded.db.read() as connection:
        session, user = [
            (await connection.execute(select(func.max(table.c.id)))).scalar_one() for table in (sessions, users_table)
        ]
        # What the API calls the id of a token is the id of its row.
        assert (await connection.execute(select(func.max(api_tokens.c.id)))).scalar_one() == issued.json()["id"]
    assert stored.json()["id"] > numbers["api_keys"]["given"]
    assert issued.json()["id"] > numbers["api_tokens"]["given"]
    assert session > numbers["sessions"]["given"]
    assert user > numbers["users"]["given"]


async def test_the_bytes_of_an_encryption_context_are_those_from_before_an_upgrade(upgraded: Upgraded) -> None:
    rows = await upgraded.rows()
    assert str(upgraded.deployment.uuid) == upgraded.expected["deployment"]
    assert rows.keys() == {key["id"] for key in upgraded.expected["keys"]}
    for key in upgraded.expected["keys"]:
        text = base64.b64encode(key["context"].encode()).decode()
        assert upgraded.context(rows[key["id"]]).encoded() == text, key["id"]


async def test_each_ciphertext_opens_in_its_row_after_an_upgrade_or_is_refused_as_before(upgraded: Upgraded) -> None:
    """Also those that the resolver does not ask Vault for: paused, expired, or of a disabled user."""
    rows = await upgraded.rows()
    opened: dict[int, str | None] = {}
    client = VaultClient(upgraded.logins["resolver"], Metrics())
    try:
        opener = TransitOpener(client, upgraded.logins["resolver"], upgraded.deployment)
        for key_id, row in rows.items():
            try:
                opened[key_id] = (await opener.open(row.encrypted_key, upgraded.context(row))).reveal()
            except Undecryptable:
                opened[key_id] = None
    finally:
        await client.close()
    assert opened == {key["id"]: key["api_key"] for key in upgraded.expected["keys"]}
