"""An attacker has the management plane: its Vault token, its database user, a way to the resolver.

On PostgreSQL, with a database user for each plane that has the rights that `keyman db upgrade --management … --resolver
…` gives. SQLite has no users: there, anyone who has management's file can register an application (see SECURITY.md).
"""

# ruff: noqa: S608  # an attacker's statements

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, NamedTuple

import asyncpg
import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import URL, make_url

from keyman import migrations
from keyman.audit import listing, verification
from keyman.config.identity import JwtSettings
from keyman.identity import applications, users
from keyman.identity.applications import Users
from keyman.identity.issuers import Issuer
from keyman.identity.passwords import Passwords
from keyman.identity.tokens import Token
from keyman.keys.deployment import Deployment
from keyman.migrations.rights import MANAGEMENT, OF_OPERATORS, RESOLVER, Planes, excess
from keyman.planes.management import housekeeping
from keyman.storage.transactions import Database, Unchecked
from keyman.values import ApplicationName, EmailAddress, NewPassword
from keyman.vault.cipher import Context
from tests.cli.transcript import keyman
from tests.planes.management.api.harness import ApiPlane, api_plane_at, log_in, problem, state_of, store
from tests.planes.resolver.pair import Pair, resolver_at
from tests.support.cli import Finished, environment
from tests.support.database import PostgresServer
from tests.support.groups import groups_go_well
from tests.support.issuer import AUDIENCE, served
from tests.support.planes import PASSWORD, Vault
from tests.support.rows import add, count

pytestmark = pytest.mark.anyio

SECRET = "sk-c4n4ryq7w2e9r4t6y1u8i3o5p0"
OTHER = "sk-Zt81LqoPw5aYc3hVn6Xe9876"


class Urls(NamedTuple):
    """One database, as its owner and as each plane comes to it."""

    owner: URL
    management: URL
    resolver: URL


@dataclass
class Attacker:
    """Who has taken over the management plane of `pair`: all that its process held."""

    pair: Pair
    urls: Urls
    deployment: Deployment
    vault: httpx.AsyncClient
    database: Any
    """asyncpg's own connection: nothing of keyman stands between."""
    heard: list[str]
    """Every answer that they were given."""

    async def ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        answer = await self.vault.request(method, f"/v1/{path}", json=body)
        self.heard.append(answer.text)
        return answer

    async def refused(self, statement: str) -> bool:
        try:
            self.heard.append(repr(await self.database.fetch(statement)))
        except (
            asyncpg.InsufficientPrivilegeError,
            asyncpg.exceptions.CantChangeRuntimeParamError,
            asyncpg.CheckViolationError,  # an identity of an application among those of a provider
        ):
            return True
        return False

    def has_heard(self, value: str) -> bool:
        forms = (value, base64.b64encode(value.encode()).decode(), value.encode().hex())
        return any(form in text for text in self.heard for form in forms)


@pytest.fixture
def urls(postgres: PostgresServer) -> Iterator[Urls]:
    """A database with the users that docker/postgres/roles.sh makes, and the rights of each."""
    name, word = f"divided_{token_hex(6)}", token_hex(16)
    planes = Planes(f"{name}_management", f"{name}_resolver")
    owner = make_url(postgres.create_database(name))
    for user in planes.rights():
        postgres.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{word}'")
        postgres.execute(f"GRANT CONNECT ON DATABASE {name} TO {user}")
    postgres.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
    postgres.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC", name)
    # What earlier stacks gave, and an upgrade takes back.
    everything = f"ALTER DEFAULT PRIVILEGES FOR ROLE {owner.username} GRANT ALL ON"
    for kind in ("TABLES", "SEQUENCES"):
        postgres.execute(f"{everything} {kind} TO {planes.management}, {planes.resolver}", name)
    yield Urls(owner, *(owner.set(username=user, password=word) for user in planes.rights()))
    postgres.drop_database(name)
    for user in planes.rights():
        postgres.execute(f"DROP ROLE {user}")


@pytest.fixture
async def divided(urls: Urls, provisioned: Vault, quick_passwords: PasswordHasher) -> AsyncIterator[Pair]:
    """Both planes, each as its own database user."""
    await migrations.upgrade(urls.owner)  # as somebody does who does not know of rights
    await upgrade(urls)
    operator = Database(urls.owner)
    async with (
        api_plane_at(urls.management, provisioned.settings, Passwords(quick_passwords)) as management,
        resolver_at(urls.resolver, provisioned.resolver) as resolver,
    ):
        yield Pair(management, resolver, operator)
    await operator.close()


@pytest.fixture
async def attacker(divided: Pair, urls: Urls) -> AsyncIterator[Attacker]:
    token = state_of(divided.management).guard._client.adapter.token
    assert token
    database = await connect(urls.management)
    deployment = await Deployment.load(divided.management.database)
    address = divided.management.settings.vault.address
    async with httpx.AsyncClient(base_url=address, headers={"X-Vault-Token": token}) as vault:
        yield Attacker(divided, urls, deployment, vault, database, [])
    await database.close()


async def connect(url: URL) -> Any:
    return await asyncpg.connect(
        host=url.host, port=url.port, user=url.username, password=url.password, database=url.database, ssl=False
    )


async def upgrade(urls: Urls) -> None:
    planes = Planes(str(urls.management.username), str(urls.resolver.username))
    await migrations.upgrade(urls.owner, planes)


async def test_vault_gives_no_plaintext_to_managements_token(attacker: Attacker) -> None:
    ada = await attacker.pair.owner()
    row = await attacker.pair.row(await ada.key(value=SECRET))
    context = Context(attacker.deployment.uuid, row.user_id, row.service, row.value_uuid).encoded()
    sealed = {"ciphertext": row.encrypted_key, "context": context}
    plain = {"plaintext": base64.b64encode(bytes(64)).decode(), "context": context}
    refused: list[tuple[str, str, object]] = [
        ("POST", "transit/decrypt/keyman", sealed),
        ("PUT", "transit/decrypt/keyman", {"batch_input": [sealed]}),
        ("POST", "transit/decrypt/keyman?format=raw", sealed),
        ("POST", "transit/./decrypt/keyman", sealed),
        ("POST", "transit/rewrap/../decrypt/keyman", sealed),
        ("POST", "transit/rewrap%2F..%2Fdecrypt/keyman", sealed),
        ("GET", "transit/export/encryption-key/keyman", None),
        ("GET", "transit/export/hmac-key/keyman/1", None),
        ("GET", "transit/backup/keyman", None),
        ("POST", "transit/restore/mine", {"backup": "x"}),
        ("POST", "transit/keys/keyman/config", {"exportable": True, "allow_plaintext_backup": True}),
        ("POST", "transit/keys/keyman/config", {"deletion_allowed": True}),
        ("POST", "transit/keys/keyman/rotate", {}),
        ("POST", "transit/keys/keyman/trim", {"min_available_version": 1}),
        ("DELETE", "transit/keys/keyman", None),
        ("POST", "transit/keys/mine", {"exportable": True, "derived": True}),
        ("POST", "transit/encrypt/mine", plain),
        ("POST", "transit/rewrap/mine", sealed),
        ("POST", "transit/decrypt/mine", sealed),
        ("POST", "transit/datakey/plaintext/keyman", {"context": context}),
        ("POST", "transit/datakey/wrapped/keyman", {"context": context}),
        ("POST", "transit/derive-key/keyman", {}),
        ("POST", "transit/hmac/keyman", {"input": plain["plaintext"]}),
        ("POST", "transit/sign/keyman", {"input": plain["plaintext"]}),
        ("POST", "sys/mounts/mine", {"type": "transit"}),
        ("POST", "sys/remount", {"from": "transit", "to": "mine"}),
        ("POST", "mine/decrypt/keyman", sealed),
        ("GET", "sys/raw/logical", None),
        ("GET", "sys/storage/raft/snapshot", None),
        ("POST", "sys/audit/mine", {"type": "file", "options": {"file_path": "/tmp/x", "log_raw": True}}),  # noqa: S108
        ("PUT", "sys/policies/acl/mine", {"policy": 'path "*" { capabilities = ["read"] }'}),
        ("PUT", "sys/policies/acl/keyman-management", {"policy": 'path "*" { capabilities = ["update"] }'}),
        ("GET", "sys/policies/acl/keyman-resolver", None),
        ("POST", "sys/wrapping/unwrap", {}),
        ("GET", "auth/approle/role/keyman-resolver/role-id", None),
        ("POST", "auth/approle/role/keyman-resolver/secret-id", {}),
        ("LIST", "auth/approle/role/keyman-resolver/secret-id", None),
        ("POST", "auth/approle/role/keyman-management", {"token_policies": ["keyman-resolver"]}),
        ("POST", "auth/approle/role/mine", {"token_policies": ["keyman-resolver"]}),
        ("POST", "auth/token/create", {"policies": ["keyman-resolver"]}),
        ("POST", "auth/token/create-orphan", {"policies": ["keyman-resolver"]}),
        ("POST", "auth/token/create/mine", {"policies": ["keyman-resolver"]}),
        ("LIST", "auth/token/accessors", None),
        ("POST", "identity/entity", {"policies": ["keyman-resolver"]}),
        ("POST", "auth/approle/login", {"role_id": "keyman-resolver", "secret_id": "x"}),
    ]
    statuses = {(method, path): (await attacker.ask(method, path, body)).status_code for method, path, body in refused}
    assert {asked: status for asked, status in statuses.items() if status not in {400, 403, 404, 405}} == {}
    assert statuses["POST", "transit/decrypt/keyman"] == statuses["PUT", "transit/decrypt/keyman"] == 403
    # What it may do turns no ciphertext into something else that opens.
    for body in (sealed, {**sealed, "plaintext": "true"}, {"batch_input": [sealed]}):
        assert (await attacker.ask("POST", "transit/rewrap/keyman", body)).status_code == 200
    mine = Context(attacker.deployment.uuid, row.user_id + 1, row.service, row.value_uuid).encoded()
    moved = await attacker.ask("POST", "transit/rewrap/keyman", {"ciphertext": row.encrypted_key, "context": mine})
    assert moved.status_code == 400
    # Two values under one key and one nonce would tell each other: Vault lets nobody choose a nonce.
    nonce = base64.b64decode(row.encrypted_key.split(":")[2])[:12]
    chosen = {**plain, "nonce": base64.b64encode(nonce).decode()}
    for body in (chosen, {"batch_input": [chosen]}):
        answer = await attacker.ask("POST", "transit/encrypt/keyman", body)
        if answer.status_code == 200:
            data = answer.json()["data"]
            made = data.get("batch_results", [data])[0].get("ciphertext")
            assert made is None or base64.b64decode(made.split(":")[2])[:12] != nonce
    for path in ("transit/keys/keyman", "auth/token/lookup-self"):
        assert (await attacker.ask("GET", path)).status_code == 200
    assert not attacker.has_heard(SECRET)


async def test_managements_database_user_adds_no_application_and_changes_no_audit_log(attacker: Attacker) -> None:
    """Who can write an application's row has its token, and with it what the resolver gives."""
    app = await attacker.pair.app("OPENAI")
    ada = await attacker.pair.owner()
    key_id = await ada.key(value=SECRET)
    token = Token.generate()
    digest = token.digest().hex()
    columns = "(application_id, token_hash, hint, created_at)"
    statements = [
        "SELECT * FROM applications",
        "SELECT share_lock FROM applications",
        *(f"SELECT {column} FROM applications" for column in OF_OPERATORS),
        "SELECT FROM applications WHERE services = 'OPENAI'",
        "UPDATE applications SET name = 'x'",
        "UPDATE applications SET disabled_at = NULL",
        "UPDATE application_blocks SET user_id = 1",
        "INSERT INTO application_identities (user_id, issuer, subject, created_at) VALUES (1, 'i', 's', now())",
        "UPDATE application_identities SET user_id = 1",
        "INSERT INTO identities (user_id, issuer, subject, created_at) VALUES (1, 'keyman:app:x', 's', now())",
        "UPDATE portal_links SET user_id = 1",
        "DELETE FROM user_audiences",
        "UPDATE user_audiences SET audience = 'x'",
        "SELECT token_hash FROM application_tokens",
        "INSERT INTO applications (name, services, created_at) VALUES ('mine', 'OPENAI', now())",
        f"INSERT INTO application_tokens {columns} VALUES (1, '\\x{digest}', 'x', now())",
        f"UPDATE application_tokens SET token_hash = '\\x{digest}'",
        "UPDATE applications SET services = 'ANTHROPIC GROQ OPENAI'",
        "DELETE FROM application_tokens",
        "SELECT nextval('application_tokens_id_seq')",
        "UPDATE audit_log SET reason = 'x'",
        "DELETE FROM audit_log",
        "TRUNCATE audit_log",
        "UPDATE audit_chains SET base_sequence = sequence, base_hash = hash",
        "DELETE FROM audit_chains",
        "INSERT INTO audit_chains VALUES (99, 0, '\\x00', 0, '\\x00')",
        "UPDATE deployment SET uuid = gen_random_uuid()",
        "DELETE FROM users",
        "UPDATE alembic_version SET version_num = 'x'",
        *seizures(attacker.urls),
    ]
    assert [statement for statement in statements if not await attacker.refused(statement)] == []
    answer = await attacker.pair.resolver.bearer(token.reveal()).post("/v1/resolve", json={"key_id": key_id})
    problem(answer, "unauthenticated")
    assert await app.gets(key_id=key_id) == SECRET
    for table in MANAGEMENT:  # all that is to be read, is read
        columns = "id, name, disabled_at" if table == "applications" else "*"
        assert not await attacker.refused(f"SELECT {columns} FROM {table}"), table
    assert not attacker.has_heard(SECRET)


async def test_managements_database_user_sees_whose_keys_an_application_may_use_and_not_why(
    attacker: Attacker, postgres: PostgresServer, urls: Urls
) -> None:
    """Not of an application that is revoked, or that is for live checks. A function of the reader's own, which the
    server could call before it leaves rows out, sees no more.
    """
    postgres.execute(f"GRANT TEMPORARY ON DATABASE {urls.owner.database} TO PUBLIC")  # as a new database has it
    pair = attacker.pair
    ada, eve = await pair.owner(), await pair.owner()
    assert pair.operator is not None
    issuer = "https://id.c4n4ry.example.com"
    bound, revoked = await pair.app("OPENAI", users=Users((Issuer(issuer),))), await pair.app("GROQ")
    checker = ApplicationName("checker")
    await applications.create(pair.operator, checker, ())
    await applications.revoke(pair.operator, ApplicationName(revoked.name))
    async with pair.operator.write(Unchecked.OPERATOR) as connection:
        await add(connection, "identities", user_id=ada.id, issuer=issuer)
    await attacker.database.execute(
        "CREATE FUNCTION pg_temp.seen(whose bigint, services text) RETURNS bool LANGUAGE plpgsql COST 0.0001 AS"
        " $$ BEGIN RAISE NOTICE '% of %', services, whose; RETURN true; END $$"
    )
    attacker.database.add_log_listener(lambda _connection, message: attacker.heard.append(str(message)))
    columns = "user_id, name, permitted_applications.services"
    found = await attacker.database.fetch(
        f"SELECT {columns} FROM permitted_applications JOIN applications ON application_id = applications.id"
        " WHERE pg_temp.seen(user_id, permitted_applications.services)"
    )
    assert [tuple(row) for row in found] == [(ada.id, bound.name, "OPENAI")]
    assert any(f"OPENAI of {ada.id}" in text for text in attacker.heard)
    assert not any("GROQ" in text or f" of {eve.id}" in text for text in attacker.heard)
    assert not attacker.has_heard(issuer)
    assert [one["name"] for one in (await ada.client.get("/api/applications")).json()] == [bound.name]
    assert (await eve.client.get("/api/applications")).json() == []


async def test_what_management_can_write_makes_nothing_open_elsewhere(attacker: Attacker) -> None:
    """With an application of theirs that an operator has registered, for another service; and as the user herself."""
    own = await attacker.pair.app("GROQ")
    ada, mallory = await attacker.pair.owner(), await attacker.pair.owner()
    key_id, theirs = await ada.key(value=SECRET), await mallory.key("GROQ", "gsk_q7w2e9r4t6y1u8i3o5p0")
    sealed = f"(SELECT encrypted_key FROM api_keys WHERE id = {key_id})"
    email = (await ada.client.get("/api/auth/me")).json()["email"]
    known = f"(SELECT password_hash FROM users WHERE id = {mallory.id})"
    for statement in (
        f"UPDATE api_keys SET encrypted_key = {sealed} WHERE id = {theirs}",
        f"UPDATE api_keys SET user_id = {mallory.id}, service = 'GROQ' WHERE id = {key_id}",
        f"UPDATE users SET password_hash = {known} WHERE id = {ada.id}",
    ):
        assert not await attacker.refused(statement)
    for asked in ({"key_id": key_id}, {"key_id": theirs}, {"user_id": mallory.id, "service": "GROQ"}):
        answer = await own.ask(**asked)
        attacker.heard.append(answer.text)
        problem(answer, "undecryptable")
    assert not await attacker.refused(
        f"UPDATE api_keys SET user_id = {ada.id}, service = 'OPENAI', undecryptable = false WHERE id = {key_id}"
    )
    as_ada = await log_in(attacker.pair.management, email)
    for path in ("/api/keys", f"/api/keys/{key_id}", "/api/audit", "/keys", "/activity"):
        attacker.heard.append((await as_ada.get(path)).text)
    assert not attacker.has_heard(SECRET)
    assert await (await attacker.pair.app("OPENAI")).gets(key_id=key_id) == SECRET


async def test_the_resolvers_database_user_changes_no_account_no_value_and_no_audit_log(
    divided: Pair, urls: Urls
) -> None:
    """It reads of a user that there is one, and no proof of who somebody is but an application's hash."""
    connection = await connect(urls.resolver)
    statements = [
        "SELECT password_hash FROM users",
        "SELECT email FROM users",
        *(f"SELECT * FROM {table}" for table in MANAGEMENT if table not in RESOLVER),
        "UPDATE users SET disabled_at = NULL",
        *(
            f"UPDATE api_keys SET {column} = {column}"
            for column in ("encrypted_key", "value_uuid", "user_id", "service")
        ),
        "DELETE FROM api_keys",
        "INSERT INTO applications (name, services, created_at) VALUES ('mine', 'OPENAI', now())",
        *(f"UPDATE applications SET {column} = {column}" for column in ("id", "name", "services", "disabled_at")),
        "UPDATE users SET email = email, share_lock = NULL",
        "UPDATE application_tokens SET expires_at = NULL",
        "UPDATE audit_log SET reason = 'x'",
        "DELETE FROM audit_log",
        "UPDATE deployment SET sentinel = NULL",
        *seizures(urls),
    ]
    allowed = []
    for statement in statements:
        try:
            await connection.fetch(statement)
            allowed.append(statement)
        except (asyncpg.InsufficientPrivilegeError, asyncpg.exceptions.CantChangeRuntimeParamError):
            pass
    await connection.close()
    assert allowed == []


async def test_the_right_to_lock_a_row_stores_nothing(divided: Pair, urls: Urls) -> None:
    await divided.owner()
    await divided.app()
    connection = await connect(urls.resolver)
    for table in ("applications", "users"):
        assert await connection.fetch(f"SELECT id FROM {table} FOR SHARE")
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(f"UPDATE {table} SET share_lock = 1")
        updatable = await connection.fetch(
            "SELECT column_name FROM information_schema.column_privileges"
            " WHERE table_name = $1 AND privilege_type = 'UPDATE' AND grantee = current_user",
            table,
        )
        assert [row["column_name"] for row in updatable] == ["share_lock"]
    await connection.close()


async def test_the_right_to_lock_an_owner_moves_no_key_and_removes_no_owner(divided: Pair, urls: Urls) -> None:
    """The management plane locks an owner's row while it counts the keys. PostgreSQL wants UPDATE on some column."""
    owner = await divided.owner()
    connection = await connect(urls.management)
    async with connection.transaction():
        assert await connection.fetch("SELECT id FROM owners WHERE id = $1 FOR NO KEY UPDATE", owner.id)
        updatable = await connection.fetch(
            "SELECT column_name FROM information_schema.column_privileges"
            " WHERE table_name = 'owners' AND privilege_type = 'UPDATE' AND grantee = current_user"
        )
        assert [row["column_name"] for row in updatable] == ["kind"]
    for statement in ("UPDATE owners SET id = id", "DELETE FROM owners", "TRUNCATE owners"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute("UPDATE owners SET kind = ''")
    # Nothing reads the kind: whatever it is, the owner keeps its keys, and an application gets them.
    key_id = await owner.key(value=SECRET)
    await connection.execute("UPDATE owners SET kind = 'stranger' WHERE id = $1", owner.id)
    await connection.close()
    assert await (await divided.app("OPENAI")).gets(key_id=key_id) == SECRET
    assert [one["id"] for one in (await owner.client.get("/api/keys")).json()] == [key_id]


def seizures(urls: Urls) -> list[str]:
    """Ways to more rights than one has, or to the server's files."""
    owner, management, resolver = (url.username for url in urls)
    return [
        f"SET ROLE {owner}",
        "SET ROLE postgres",
        f"SET SESSION AUTHORIZATION {owner}",
        f"GRANT {owner} TO {management}, {resolver}",
        f"ALTER ROLE {owner} PASSWORD 'x'",
        f"ALTER ROLE {management} SUPERUSER",
        "CREATE ROLE mine SUPERUSER",
        "ALTER TABLE applications OWNER TO CURRENT_USER",
        "ALTER TABLE audit_log DISABLE TRIGGER ALL",
        "DROP TABLE audit_log",
        "CREATE TABLE mine (x int)",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION length(varchar) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE EXTENSION dblink",
        "SET session_replication_role = replica",
        "SELECT rolpassword FROM pg_authid",
        "SELECT pg_read_file('postgresql.conf')",
        "SELECT lo_import('/etc/passwd')",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "COPY (SELECT 1) TO '/tmp/x'",
    ]


async def test_the_planes_do_all_their_work_with_no_more_rights(
    divided: Pair, urls: Urls, quick_passwords: PasswordHasher
) -> None:
    management, resolver = divided.management, divided.resolver
    for name, plane in (("management", management), ("resolver", resolver)):
        async with plane.database.read() as connection:
            assert await connection.run_sync(excess, name) == []
        assert (await plane.client().get("/readyz")).json()["checks"] == {"database": "ok", "vault": "ok"}
    ada = await divided.owner()
    await accounts_work(management, ada.client)
    key_id = await ada.key(value=SECRET, name="chat")
    again = {"Idempotency-Key": "x"}
    for _ in range(2):
        body = {"service": "OPENAI", "api_key": OTHER}
        answer = await ada.client.post("/api/keys", json=body, headers=again)
        assert answer.status_code == 201
    assert (await ada.client.patch(f"/api/keys/{key_id}", json={"name": "other"})).status_code == 200
    assert (await ada.client.get("/api/keys?q=other&service=OPENAI")).json()[0]["id"] == key_id
    app = await divided.app("OPENAI")
    assert await app.gets(key_id=key_id) == SECRET
    shown = (await ada.client.get(f"/api/keys/{key_id}")).json()
    assert shown["last_used_by"] == app.name
    assert (await ada.client.put(f"/api/keys/{key_id}", json={"api_key": OTHER})).status_code == 200
    before = await divided.row(answer.json()["id"])
    await divided.change(before.id, encrypted_key=(await divided.row(key_id)).encrypted_key)
    problem(await app.ask(key_id=before.id), "undecryptable")
    assert (await divided.row(before.id)).undecryptable
    assert (await ada.client.delete(f"/api/keys/{before.id}")).status_code == 204
    assert len((await ada.client.get("/api/audit?limit=200")).json()) > 15
    await operators_work(management.database, quick_passwords)
    # What an operator does as the owner: the rights stay as they are, no matter who upgrades again.
    await upgrade(urls)
    assert await app.gets(key_id=key_id) == OTHER


async def test_an_account_is_deleted_with_the_rights_of_management(divided: Pair) -> None:
    """Also rows that only the resolver can insert: identities of applications, and portal links."""
    ada = await divided.owner()
    await ada.key()
    assert divided.operator is not None
    async with divided.operator.write(Unchecked.OPERATOR) as connection:
        application = await add(connection, "applications")
        for table in ("application_identities", "identities"):
            await add(connection, table, user_id=ada.id)
        await add(connection, "portal_links", user_id=ada.id, application_id=application)
    deleted = await ada.client.request("DELETE", "/api/auth/me", json={"current_password": PASSWORD})
    assert deleted.status_code == 204, deleted.text
    for table in ("api_keys", "application_identities", "identities", "portal_links", "sessions"):
        assert await count(divided.operator, table) == 0, table


async def test_an_owner_blocks_an_application_with_the_rights_of_the_planes(divided: Pair) -> None:
    ada, app = await divided.owner(), await divided.app("OPENAI")
    key_id = await ada.key(value=SECRET)
    block = await divided.block_of(app)
    assert app.name in [each["name"] for each in (await ada.client.get("/api/applications")).json()]
    assert (await ada.client.put(block)).status_code == 204
    problem(await app.ask(key_id=key_id), "not-found")
    assert (await ada.client.delete(block)).status_code == 204
    assert await app.gets(key_id=key_id) == SECRET


async def test_the_audiences_of_a_jwt_need_no_more_rights(
    divided: Pair, urls: Urls, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with served() as issuer:
        jwt = JwtSettings(issuer.url, AUDIENCE)
        passwords = Passwords(quick_passwords)
        async with api_plane_at(urls.management, provisioned.settings, passwords, jwt=jwt) as management:
            client = management.client()
            for audience in ([AUDIENCE], [AUDIENCE, "another"]):
                headers = {"Authorization": f"Bearer {issuer.token(aud=audience)}"}
                assert (await client.get("/api/keys", headers=headers)).json() == []


async def test_writes_that_share_a_transaction_need_no_more_rights(divided: Pair) -> None:
    owners = [await divided.owner() for _ in range(2)]
    app = await divided.app("OPENAI")
    with groups_go_well():
        keys = await asyncio.gather(*(owner.key(value=SECRET) for owner in owners * 20))
        values = await asyncio.gather(*(app.gets(key_id=key_id) for key_id in keys))
    assert len({*keys}) == 40
    assert {*values} == {SECRET}


def test_an_operator_registers_applications_as_the_owner_and_adds_people_as_either(urls: Urls) -> None:
    asyncio.run(upgrade(urls))
    owner, management, _ = (environment(KEYMAN_DATABASE_URL=url.render_as_string(hide_password=False)) for url in urls)
    refused = keyman("app", "create", "chat-backend", "--service", "OPENAI", env=management)
    said = "keyman: The database's user has no right to do this. Run the command as the user that owns the tables.\n"
    assert refused == Finished(1, "", said)
    made = keyman("app", "create", "chat-backend", "--service", "OPENAI", env=owner)
    assert made.out.startswith("km_")
    for env in (owner, management):
        assert keyman("audit", "verify", env=env).code == 0
        assert keyman("audit", "list", "--action", "application.create", "--json", env=env).out.count('"id"') == 1
        assert keyman("user", "list", env=env).code == 0


async def accounts_work(management: ApiPlane, client: httpx.AsyncClient) -> None:
    """What somebody does with an account of theirs."""
    email = (await client.get("/api/auth/me")).json()["email"]
    failed = await management.client().post("/api/auth/login", json={"email": email, "password": "wrong" * 3})
    assert failed.status_code == 401
    other = await log_in(management, email)
    changed = {"current_password": PASSWORD, "new_password": f"{PASSWORD} again"}
    assert (await client.put("/api/auth/password", json=changed)).status_code == 204
    assert (await other.get("/api/auth/me")).status_code == 401
    script = await management.token(client)
    await store(script, name="by a script")
    (token,) = (await client.get("/api/tokens")).json()
    assert token["last_used_at"]
    assert (await client.delete(f"/api/tokens/{token['id']}")).status_code == 204
    leaving = await log_in(management, email, f"{PASSWORD} again")
    assert (await leaving.post("/api/auth/logout")).status_code == 204


async def operators_work(db: Database, quick_passwords: PasswordHasher) -> None:
    """What an operator does as management's user: accounts, the audit log."""
    passwords = Passwords(quick_passwords)
    await users.add(db, passwords, EmailAddress.parse("grace@example.com"), NewPassword.parse(PASSWORD))
    passwords.close()
    await housekeeping.sweep(db)
    deployment = await Deployment.load(db)
    verified = await verification.verify(db, deployment.uuid)
    assert verified.breaks == []
    assert verified.entries == await verification.count(db) > 0
    assert await listing.list_all(db, None, 10)
