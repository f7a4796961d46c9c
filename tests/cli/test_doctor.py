"""`keyman doctor`: every check passes and fails, on a real Vault and a real database."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from sqlalchemy import text, update
from sqlalchemy.engine import URL, Connection

from keyman import migrations
from keyman.clock import now
from keyman.config.vault import VaultSettings
from keyman.dev.home import Home
from keyman.keys.deployment import deployment
from keyman.keys.tables import api_keys
from keyman.vault.provision import policy
from tests.cli.conftest import execute, store
from tests.cli.transcript import keyman
from tests.support.cli import Finished, environment
from tests.support.vault import DisposableVault, RootClient
from tests.vault.bench import agent

Findings = dict[str, dict[str, Any]]


@pytest.fixture
def management_env(env: dict[str, str], management: VaultSettings) -> dict[str, str]:
    """The variables of a management plane in production, but for the loopback addresses."""
    assert management.role_id is not None
    assert management.secret_id is not None
    return env | {
        "KEYMAN_VAULT_ADDR": management.address,
        "KEYMAN_VAULT_MOUNT": management.mount,
        "KEYMAN_VAULT_ROLE_ID": management.role_id,
        "KEYMAN_VAULT_SECRET_ID": management.secret_id.reveal(),
        "KEYMAN_PUBLIC_URL": "https://keys.example.com",
        "KEYMAN_TRUSTED_PROXIES": "127.0.0.1",
    }


_DIFFERENCES: dict[tuple[object, ...], list[str]] = {}


@pytest.fixture(autouse=True)
def compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare each schema of SQLite with that of the code once. To compare it takes most of the time of a command."""
    compare = migrations._differences

    def compared(connection: Connection) -> list[str]:
        if connection.dialect.name != "sqlite":
            return compare(connection)
        rows = connection.execute(text("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"))
        schema = tuple(map(tuple, rows))
        if any(row[1] == "alembic_version" for row in schema):
            schema += tuple(connection.execute(text("SELECT version_num FROM alembic_version")).scalars())
        if schema not in _DIFFERENCES:
            _DIFFERENCES[schema] = compare(connection)
        return _DIFFERENCES[schema]

    monkeypatch.setattr(migrations, "_differences", compared)


@pytest.fixture
def three_keys(management_env: dict[str, str], management: VaultSettings) -> None:
    """There are keys."""
    asyncio.run(store(management_env, management, 3))


@pytest.fixture
def key(management: VaultSettings) -> str:
    """Where the key is in Vault."""
    return f"{management.mount}/keys/keyman"


def doctor(env: dict[str, str], *arguments: str) -> tuple[int, Findings]:
    done = keyman("doctor", "--json", *arguments, env=env)
    assert "Traceback" not in done.err
    for secret in ("KEYMAN_VAULT_SECRET_ID", "KEYMAN_VAULT_WRAPPED_SECRET_ID", "KEYMAN_VAULT_TOKEN"):
        assert not env.get(secret) or env[secret] not in done.out + done.err
    findings: list[dict[str, Any]] = json.loads(done.out)
    assert len({finding["check"] for finding in findings}) == len(findings)
    for finding in findings:
        assert (finding["remedy"] is not None) == (finding["state"] in ("warning", "failed")), finding
    return done.code, {finding["check"]: finding for finding in findings}


def wrong(findings: Findings) -> dict[str, str]:
    """The checks that are not ok, and how they are; without that of the machine that runs the test."""
    return {
        name: finding["state"]
        for name, finding in findings.items()
        if finding["state"] != "ok" and name != "core-dumps"
    }


# --- As it should be


@pytest.mark.usefixtures("three_keys")
def test_all_is_well_and_nothing_is_changed(
    management_env: dict[str, str], rotated_vault: DisposableVault, key: str
) -> None:
    before = rotated_vault.root.ask("GET", key)
    code, findings = doctor(management_env)
    assert (code, wrong(findings)) == (0, {})
    assert set(findings) == {
        *("configuration", "vault-address", "public-url", "sign-up", "proxies"),
        *("metrics", "secret-files", "core-dumps"),
        *("vault", "vault-clock", "vault-login", "vault-token", "vault-policy", "vault-key"),
        *("database", "schema", "database-settings", "database-rights", "database-clock", "values"),
        *("sentinel", "key-versions", "sample", "undecryptable"),
    }
    assert rotated_vault.root.ask("GET", key) == before


@pytest.mark.usefixtures("three_keys")
def test_a_person_gets_a_line_each_and_what_to_do_below_it(management_env: dict[str, str]) -> None:
    done = keyman("doctor", env=management_env | {"KEYMAN_SIGNUP": "open"})
    assert done.code == 0  # a warning fails nothing
    lines = done.out.splitlines()
    assert lines[0].split() == ["ok", "configuration", "complete"]
    place = next(number for number, line in enumerate(lines) if line.startswith("warning  sign-up"))
    assert lines[place + 1].strip().startswith("-> set KEYMAN_SIGNUP to closed")
    states = Counter(line.split()[0] for line in lines if not line.startswith(" "))
    assert states["ok"] + states["warning"] == 24
    assert states["warning"] in (1, 2)  # the second is of a machine that gives core dumps to a program
    plural = "s" if states["warning"] > 1 else ""
    assert done.err == f"{states['ok']} ok, {states['warning']} warning{plural}\n"


def test_a_deployment_that_never_started_gets_a_warning_and_no_sentinel(
    management_env: dict[str, str],
) -> None:
    for _ in range(2):
        code, findings = doctor(management_env)
        assert code == 0
        skipped = dict.fromkeys(("key-versions", "sample", "undecryptable"), "skipped")
        assert wrong(findings) == {"sentinel": "warning", **skipped}


def test_postgresql_is_examined_too(
    empty_database: URL, management_env: dict[str, str], management: VaultSettings
) -> None:
    asyncio.run(migrations.upgrade(empty_database))
    env = management_env | {"KEYMAN_DATABASE_URL": empty_database.render_as_string(hide_password=False)}
    asyncio.run(store(env, management, 2))
    code, findings = doctor(env)
    # The tests' server does without the disk, for speed; it is what this check is for.
    expected = (
        {}
        if empty_database.get_backend_name() == "sqlite"
        else {"database-settings": "failed", "database-rights": "warning"}
    )
    assert (wrong(findings), code) == (expected, 1 if expected else 0)
    if expected:
        assert "fsync" in findings["database-settings"]["found"]


# --- Settings


@pytest.mark.parametrize(
    ("variables", "check", "state"),
    [
        ({"KEYMAN_PUBLIC_URL": "http://keys.example.com"}, "public-url", "failed"),
        ({"KEYMAN_PUBLIC_URL": "HTTPS://keys.example.com"}, "public-url", "ok"),
        ({"KEYMAN_PUBLIC_URL": ""}, "public-url", "warning"),
        ({"KEYMAN_SIGNUP": "open"}, "sign-up", "warning"),
        ({"KEYMAN_TRUSTED_PROXIES": ""}, "proxies", "warning"),
    ],
    ids=str,
)
def test_what_the_settings_let_in_is_said(
    management_env: dict[str, str], variables: dict[str, str], check: str, state: str
) -> None:
    code, findings = doctor(management_env | variables)
    assert findings[check]["state"] == state
    assert code == (1 if state == "failed" else 0)


def test_settings_that_do_not_parse_are_one_failed_check(management_env: dict[str, str]) -> None:
    code, findings = doctor(management_env | {"KEYMAN_VAULT_TIMEOUT": "soon", "KEYMAN_VAULT_ADDR": "nowhere"})
    assert (code, wrong(findings)) == (1, {"configuration": "failed"})
    for name in ("KEYMAN_VAULT_TIMEOUT", "KEYMAN_VAULT_ADDR"):
        assert name in findings["configuration"]["found"]
    assert "nowhere" not in findings["configuration"]["found"]


def test_vault_without_tls_is_a_failure_where_it_is_not_loopback(management_env: dict[str, str]) -> None:
    code, findings = doctor(
        management_env | {"KEYMAN_VAULT_ADDR": "http://vault.invalid:8200", "KEYMAN_VAULT_TIMEOUT": "0.5"}
    )
    assert code == 1
    assert wrong(findings)["vault-address"] == "failed"


def test_a_secret_that_everybody_can_read_is_named_by_its_variable(
    management_env: dict[str, str], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(management_env.pop("KEYMAN_VAULT_SECRET_ID"))
    env = management_env | {"KEYMAN_VAULT_SECRET_ID_FILE": str(secret)}
    for mode, state in ((0o600, "ok"), (0o440, "ok"), (0o644, "failed"), (0o620, "failed")):
        secret.chmod(mode)
        findings = doctor(env)[1]
        assert findings["secret-files"]["state"] == state, oct(mode)
    assert "KEYMAN_VAULT_SECRET_ID_FILE" in findings["secret-files"]["found"]
    assert str(secret) not in findings["secret-files"]["found"]


# --- Vault


@pytest.fixture
def sealed(rotated_vault: DisposableVault) -> Iterator[None]:
    rotated_vault.seal()
    yield
    rotated_vault.unseal()


@pytest.mark.usefixtures("three_keys")
def test_a_sealed_vault_is_said_once_and_the_rest_is_skipped(management_env: dict[str, str], sealed: None) -> None:
    code, findings = doctor(management_env)
    assert code == 1
    states = wrong(findings)
    assert [name for name, state in states.items() if state == "failed"] == ["vault", "sentinel"]
    assert "sealed" in findings["vault"]["found"]
    assert "unseal" in findings["vault"]["remedy"]
    assert states["vault-policy"] == "skipped"


def test_a_vault_that_is_not_there_is_said(management_env: dict[str, str]) -> None:
    code, findings = doctor(management_env | {"KEYMAN_VAULT_ADDR": "http://127.0.0.1:9", "KEYMAN_VAULT_TIMEOUT": "0.5"})
    assert (code, findings["vault"]["found"]) == (1, "Vault cannot be reached.")
    assert findings["database"]["state"] == "ok"


def test_a_clock_that_is_off_is_noticed(management_env: dict[str, str]) -> None:
    for seconds, state in ((-20, "warning"), (20, "warning"), (300, "failed")):
        with time_machine.travel(now() + timedelta(seconds=seconds)):
            findings = doctor(management_env)[1]
        assert findings["vault-clock"]["state"] == state, findings["vault-clock"]
        assert ("ahead of" if seconds > 0 else "behind") in findings["vault-clock"]["found"]


def test_a_login_that_is_refused_says_how_to_get_another(management_env: dict[str, str]) -> None:
    code, findings = doctor(management_env | {"KEYMAN_VAULT_SECRET_ID": "00000000-not-the-secret"})
    assert (code, findings["vault-login"]["state"]) == (1, "failed")
    assert "keyman vault secret-id" in findings["vault-login"]["remedy"]
    assert wrong(findings)["vault-policy"] == "skipped"


def test_a_wrapped_secret_id_is_looked_at_and_not_taken(
    management_env: dict[str, str], rotated_vault: DisposableVault
) -> None:
    wrapping = rotated_vault.root.wraps("auth/approle/role/keyman-management/secret-id")
    env = {**management_env, "KEYMAN_VAULT_SECRET_ID": "", "KEYMAN_VAULT_WRAPPED_SECRET_ID": wrapping}
    for _ in range(2):
        code, findings = doctor(env)
        assert code == 0
        assert findings["vault-login"]["state"] == "ok"
        assert set(wrong(findings).values()) == {"skipped"}
    code, findings = doctor(env, "--role", "resolver")
    assert (code, findings["vault-login"]["state"]) == (1, "failed")
    assert "holds no secret ID of the AppRole keyman-resolver" in findings["vault-login"]["found"]
    rotated_vault.root.ask("POST", "sys/wrapping/unwrap", {"token": wrapping})
    code, findings = doctor(env)
    assert (code, findings["vault-login"]["state"]) == (1, "failed")
    assert "used up" in findings["vault-login"]["found"]


@pytest.mark.usefixtures("three_keys")
def test_behind_an_agent_everything_is_looked_at_with_its_token(
    management_env: dict[str, str], management: VaultSettings, tmp_path: Path
) -> None:
    async def examined() -> tuple[int, Findings]:
        async with agent(management, "proxy", tmp_path) as address:
            env = {**management_env, "KEYMAN_VAULT_AUTH": "agent", "KEYMAN_VAULT_ADDR": address}
            return await asyncio.to_thread(doctor, env)

    code, findings = asyncio.run(examined())
    assert (code, wrong(findings)) == (0, {})


def token(env: dict[str, str], root: RootClient, **properties: Any) -> dict[str, str]:
    """The same plane with a plain token of these properties."""
    made = root.ask_token({"no_default_policy": True, "ttl": "1h", **properties})
    return env | {"KEYMAN_VAULT_AUTH": "token", "KEYMAN_VAULT_TOKEN": made}


def test_a_token_that_does_not_last_is_said(management_env: dict[str, str], rotated_vault: DisposableVault) -> None:
    policies = ["keyman-management"]
    lasting = token(management_env, rotated_vault.root, policies=policies)
    assert doctor(lasting)[1]["vault-token"]["state"] == "ok"
    for properties, state in (
        ({"renewable": False}, "warning"),
        ({"renewable": False, "ttl": "1m"}, "failed"),
        ({"num_uses": 50}, "failed"),
    ):
        findings = doctor(token(management_env, rotated_vault.root, policies=policies, **properties))[1]
        assert findings["vault-token"]["state"] == state, properties


def test_a_root_token_is_refused(management_env: dict[str, str], rotated_vault: DisposableVault) -> None:
    code, findings = doctor(token(management_env, rotated_vault.root, policies=["root"]))
    assert (code, findings["vault-login"]["state"]) == (1, "failed")
    assert "a root token is refused" in findings["vault-login"]["remedy"]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ('path "MOUNT/decrypt/keyman" { capabilities = ["update"] }', "this token can decrypt"),
        ('path "MOUNT/keys/keyman/rotate" { capabilities = ["update"] }', "rotate the key"),
        ('path "MOUNT/export/*" { capabilities = ["read"] }', "export the key"),
        ('path "MOUNT/+/*" { capabilities = ["create", "update"] }', "create other keys"),
        ('path "sys/policies/acl/*" { capabilities = ["update"] }', "write policies"),
        ('path "auth/approle/role/+/secret-id" { capabilities = ["update"] }', "issue the resolver's credentials"),
        ('path "MOUNT/export/encryption-key/keyman/*" { capabilities = ["read"] }', "export a version of the key"),
        ('path "MOUNT/restore/+" { capabilities = ["update"] }', "replace the key with another"),
        ('path "auth/approle/role/keyman-management" { capabilities = ["update"] }', "other policies"),
        ('path "auth/approle/role/*" { capabilities = ["create"] }', "create roles"),
        ('path "sys/policies/acl/keyman-management" { capabilities = ["update"] }', "rewrite the management plane's"),
        ('path "sys/policy/*" { capabilities = ["update"] }', "by their old path"),
        ('path "auth/token/create-orphan" { capabilities = ["update", "sudo"] }', "tokens that outlive it"),
        ('path "identity/*" { capabilities = ["create", "update"] }', "give policies to groups"),
        ('path "sys/storage/raft/snapshot" { capabilities = ["read"] }', "copy Vault's storage"),
    ],
)
def test_a_token_that_may_too_much_is_a_failure_that_says_what_it_could_do(
    management_env: dict[str, str], rotated_vault: DisposableVault, management: VaultSettings, rules: str, said: str
) -> None:
    rotated_vault.root.ask("PUT", "sys/policies/acl/beside", {"policy": rules.replace("MOUNT", management.mount)})
    code, findings = doctor(token(management_env, rotated_vault.root, policies=["keyman-management", "beside"]))
    assert (code, findings["vault-policy"]["state"]) == (1, "failed")
    assert findings["vault-policy"]["found"].startswith("too much: ")
    assert said in findings["vault-policy"]["found"]


def test_a_policy_beside_the_roles_own_is_a_failure_whatever_it_allows(
    management_env: dict[str, str], rotated_vault: DisposableVault
) -> None:
    allowed_where_nobody_asks = 'path "prod/data/db" { capabilities = ["read"] }'
    rotated_vault.root.ask("PUT", "sys/policies/acl/beside", {"policy": allowed_where_nobody_asks})
    code, findings = doctor(token(management_env, rotated_vault.root, policies=["keyman-management", "beside"]))
    assert (code, findings["vault-policy"]["state"]) == (1, "failed")
    assert "also has beside" in findings["vault-policy"]["found"]
    code, findings = doctor(
        token(management_env, rotated_vault.root, policies=["keyman-management"], no_default_policy=False)
    )
    assert (code, findings["vault-policy"]["state"]) == (0, "warning")
    assert "also has default" in findings["vault-policy"]["found"]


def test_a_policy_of_the_tokens_identity_counts_too(
    management_env: dict[str, str], rotated_vault: DisposableVault
) -> None:
    root = rotated_vault.root
    root.ask("PUT", "sys/policies/acl/beside", {"policy": 'path "prod/data/db" { capabilities = ["read"] }'})
    accessor = root.ask("GET", "sys/auth")["approle/"]["accessor"]
    entity = root.ask("POST", "identity/entity", {"name": "somebody", "policies": ["beside"]})["id"]
    alias = {"name": management_env["KEYMAN_VAULT_ROLE_ID"], "canonical_id": entity, "mount_accessor": accessor}
    root.ask("POST", "identity/entity-alias", alias)
    try:
        code, findings = doctor(management_env)
    finally:
        root.ask("DELETE", f"identity/entity/id/{entity}")
    assert (code, findings["vault-policy"]["state"]) == (1, "failed")
    assert "also has beside" in findings["vault-policy"]["found"]


@pytest.mark.parametrize("operation", ["encrypt", "rewrap", "keys"])
def test_a_token_that_may_too_little_is_a_failure_that_names_what_it_lacks(
    management_env: dict[str, str], rotated_vault: DisposableVault, management: VaultSettings, operation: str
) -> None:
    rules = policy("keyman-management", management)
    without = rules.replace(f'"{management.mount}/{operation}/keyman"', f'"{management.mount}/{operation}/other"')
    rotated_vault.root.ask("PUT", "sys/policies/acl/narrow", {"policy": without})
    code, findings = doctor(token(management_env, rotated_vault.root, policies=["narrow"]))
    assert (code, findings["vault-policy"]["state"]) == (1, "failed")
    assert f"on {management.mount}/{operation}/keyman" in findings["vault-policy"]["found"]


def test_a_policy_from_before_it_could_be_asked_is_a_warning(
    management_env: dict[str, str], rotated_vault: DisposableVault, management: VaultSettings
) -> None:
    rules = policy("keyman-management", management).replace("sys/capabilities-self", "sys/nothing")
    rotated_vault.root.ask("PUT", "sys/policies/acl/before", {"policy": rules})
    code, findings = doctor(token(management_env, rotated_vault.root, policies=["before"]))
    assert (code, findings["vault-policy"]["state"]) == (0, "warning")
    assert "keyman vault setup" in findings["vault-policy"]["remedy"]


def test_each_role_is_held_against_its_own_policy(
    management_env: dict[str, str], rotated_vault: DisposableVault
) -> None:
    for role in ("management", "resolver", "rotator"):
        env = token(management_env, rotated_vault.root, policies=[f"keyman-{role}"])
        for other in ("management", "resolver", "rotator"):
            state = doctor(env, "--role", other)[1]["vault-policy"]["state"]
            assert state == ("ok" if other == role else "failed"), (role, other)


@pytest.mark.usefixtures("three_keys")
@pytest.mark.parametrize("nature", [{"derived": False}, {"exportable": True}], ids=str)
def test_a_key_of_another_nature_is_a_failure(
    management_env: dict[str, str], rotated_vault: DisposableVault, key: str, nature: dict[str, bool]
) -> None:
    another(rotated_vault.root, key, **nature)
    code, findings = doctor(management_env)
    assert code == 1
    assert next(iter(nature)) in findings["vault-key"]["found"]
    assert findings["sentinel"]["state"] == "failed"


def another(root: RootClient, key: str, **nature: Any) -> None:
    """The key is deleted, and one of the same name made."""
    root.ask("POST", f"{key}/config", {"deletion_allowed": True})
    root.ask("DELETE", key)
    root.ask("POST", key, {"derived": True, "type": "aes256-gcm96", **nature})


@pytest.mark.usefixtures("three_keys")
def test_a_key_that_was_made_again_is_noticed_by_what_it_does_not_open(
    management_env: dict[str, str], rotated_vault: DisposableVault, key: str
) -> None:
    another(rotated_vault.root, key)
    code, findings = doctor(management_env)
    assert code == 1
    assert wrong(findings) == {"sentinel": "failed", "sample": "failed"}
    assert "3 of 3 do not open" in findings["sample"]["found"]


@pytest.mark.usefixtures("three_keys")
def test_a_key_that_is_gone_is_said(management_env: dict[str, str], rotated_vault: DisposableVault, key: str) -> None:
    rotated_vault.root.ask("POST", f"{key}/config", {"deletion_allowed": True})
    assert doctor(management_env)[1]["vault-key"]["state"] == "warning"
    rotated_vault.root.ask("DELETE", key)
    code, findings = doctor(management_env)
    assert code == 1
    assert findings["vault-key"]["found"].startswith("missing")


# --- The database


def test_a_database_that_is_empty_or_gone_or_older_is_said(management_env: dict[str, str], tmp_path: Path) -> None:
    code, findings = doctor(management_env | {"KEYMAN_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/nothing.db"})
    assert (code, findings["database"]["state"]) == (1, "failed")
    execute(management_env, text("UPDATE alembic_version SET version_num = '0001'"))
    code, findings = doctor(management_env)
    assert (code, findings["schema"]["state"]) == (1, "failed")
    assert findings["schema"]["remedy"] == "run keyman db upgrade"
    assert wrong(findings)["sentinel"] == "skipped"


def test_a_schema_that_was_changed_by_hand_is_said(management_env: dict[str, str]) -> None:
    execute(management_env, text("DROP INDEX ix_api_keys_owner_service"))
    code, findings = doctor(management_env)
    assert (code, findings["schema"]["state"]) == (1, "failed")


def test_a_sqlite_file_is_left_byte_for_byte_even_where_its_settings_are_wrong(
    management_env: dict[str, str], file: Path
) -> None:
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    before = file.read_bytes()
    code, findings = doctor(management_env)
    assert (code, findings["database-settings"]["state"]) == (0, "warning")
    assert file.read_bytes() == before


# --- The key and what it sealed


@pytest.mark.usefixtures("three_keys")
def test_keys_without_a_sentinel_are_a_failure(management_env: dict[str, str]) -> None:
    execute(management_env, update(deployment).values(sentinel=None))
    code, findings = doctor(management_env)
    assert (code, findings["sentinel"]["state"]) == (1, "failed")
    assert wrong(findings)["sample"] == "skipped"


@pytest.mark.usefixtures("three_keys")
def test_rows_that_are_behind_are_a_warning(
    management_env: dict[str, str], rotated_vault: DisposableVault, key: str
) -> None:
    rotated_vault.root.ask("POST", f"{key}/rotate")
    code, findings = doctor(management_env)
    assert (code, wrong(findings)) == (0, {"key-versions": "warning"})
    assert findings["key-versions"]["remedy"] == "run keyman rewrap"


@pytest.mark.usefixtures("three_keys")
def test_rows_below_what_vault_still_opens_are_a_failure(
    management_env: dict[str, str], rotated_vault: DisposableVault, key: str
) -> None:
    rotated_vault.root.ask("POST", f"{key}/rotate")
    rotated_vault.root.ask("POST", f"{key}/config", {"min_decryption_version": 2})
    code, findings = doctor(management_env)
    assert code == 1
    assert "opens none below 2" in findings["key-versions"]["found"]
    assert "set min_decryption_version to 1" in findings["key-versions"]["remedy"]


@pytest.mark.usefixtures("three_keys")
def test_a_vault_from_before_the_rotation_is_noticed(management_env: dict[str, str]) -> None:
    execute(management_env, update(api_keys).values(key_version=2))
    code, findings = doctor(management_env)
    assert code == 1
    assert "Vault's newest version is 1" in findings["key-versions"]["found"]


@pytest.mark.usefixtures("three_keys")
@pytest.mark.parametrize(
    ("changed", "failing"),
    [({"value_uuid": uuid4()}, ("values", "sample")), ({"service": "ANTHROPIC"}, ("sample",))],
    ids=["another value", "another service"],
)
def test_a_row_that_does_not_open_is_found(
    management_env: dict[str, str], changed: dict[str, Any], failing: tuple[str, ...]
) -> None:
    execute(management_env, update(api_keys).where(api_keys.c.id == 2).values(changed))
    code, findings = doctor(management_env)
    assert (code, wrong(findings)) == (1, dict.fromkeys(failing, "failed"))
    assert findings["sample"]["found"] == "1 of 3 do not open, such as key 2"
    # Once it is marked, it is known, and no failure any more.
    execute(management_env, update(api_keys).where(api_keys.c.id == 2).values(undecryptable=True))
    code, findings = doctor(management_env)
    assert (code, wrong(findings)) == (0, {"key-versions": "warning", "undecryptable": "warning"})


@pytest.mark.usefixtures("three_keys")
def test_a_row_that_opens_and_is_not_the_current_one_is_found(management_env: dict[str, str]) -> None:
    """Two keys of one user and service, exchanged with all that belongs to a value: Vault has nothing against it."""
    columns = "encrypted_key, key_version, last_4_chars"
    execute(management_env, text("CREATE TABLE kept AS SELECT * FROM api_keys"))
    execute(management_env, text("UPDATE api_keys SET value_uuid = hex(randomblob(16)) WHERE id < 3"))
    for one, other in ((1, 2), (2, 1)):
        taken = f"SELECT value_uuid, {columns} FROM kept WHERE id = {other}"  # noqa: S608
        execute(management_env, text(f"UPDATE api_keys SET (value_uuid, {columns}) = ({taken}) WHERE id = {one}"))  # noqa: S608
    execute(management_env, text("DROP TABLE kept"))
    code, findings = doctor(management_env)
    assert (code, wrong(findings)) == (1, {"values": "failed"})
    found = "2 of 3 keys with another value or other settings than the audit log says, such as key 1"
    assert findings["values"]["found"] == found


@pytest.mark.usefixtures("three_keys")
@pytest.mark.parametrize("changed", ['{"endpoint":"https://evil.openai.azure.com"}', "no JSON", ""])
def test_a_row_with_other_settings_is_found(management_env: dict[str, str], changed: str) -> None:
    execute(management_env, update(api_keys).where(api_keys.c.id == 2).values(settings=changed))
    code, findings = doctor(management_env)
    assert (code, wrong(findings)) == (1, {"values": "failed"})
    assert findings["values"]["found"].endswith("such as key 2")


@pytest.mark.usefixtures("three_keys")
def test_a_database_of_another_deployment_is_noticed(management_env: dict[str, str]) -> None:
    execute(management_env, update(deployment).values(uuid=uuid4()))
    code, findings = doctor(management_env)
    assert code == 1
    assert wrong(findings) == {"sentinel": "failed", "sample": "failed"}


@pytest.mark.usefixtures("three_keys")
@pytest.mark.parametrize(
    ("harm", "failing"),
    [
        ("DELETE FROM deployment", "sentinel"),
        ("DROP TABLE deployment", "sentinel"),
        ("ALTER TABLE api_keys RENAME COLUMN key_version TO version", "sentinel"),
        ("UPDATE api_keys SET value_uuid = 'no uuid at all' WHERE id = 2", "sample"),
        ("UPDATE api_keys SET encrypted_key = CAST(x'7661756c743a7631ff' AS TEXT)", "sample"),
    ],
)
def test_a_database_that_was_damaged_by_hand_is_a_failed_check_among_the_others(
    management_env: dict[str, str], file: Path, harm: str, failing: str
) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(harm)
        connection.commit()
    code, findings = doctor(management_env)
    assert (code, findings[failing]["state"]) == (1, "failed")
    assert "damaged" in findings[failing]["found"]
    assert findings["vault-policy"]["state"] == "ok"
    assert "undecryptable" in findings


def test_a_home_that_nobody_made_is_one_failed_check() -> None:
    code, findings = doctor(environment(), "--home", "/nonexistent")
    assert (code, wrong(findings)) == (1, {"configuration": "failed"})
    assert "keyman dev --home" in findings["configuration"]["found"]


def test_a_home_is_not_held_against_a_role_whose_login_it_does_not_keep(tmp_path: Path) -> None:
    assert keyman("doctor", "--home", str(tmp_path), "--role", "rotator", env=environment()).code == 2


def test_results_go_to_standard_output_and_the_count_does_not() -> None:
    done: Finished = keyman("doctor", env=environment())
    assert done.code == 1
    assert done.out.startswith("failed   configuration")
    assert done.err == "1 failed\n"


def test_a_home_is_examined_as_either_plane(
    tmp_path: Path, management_env: dict[str, str], rotated_vault: DisposableVault
) -> None:
    """What `keyman dev` keeps: the resolver's login is in a file of its own."""
    home = Home(tmp_path / "home")
    home.directory.mkdir(mode=0o700)
    kept = {name: value for name, value in management_env.items() if name.startswith("KEYMAN_")}
    home.write_settings(kept)
    role = "auth/approle/role/keyman-resolver"
    home.write_resolver_settings(
        kept
        | {
            "KEYMAN_VAULT_ROLE_ID": rotated_vault.root.ask("GET", f"{role}/role-id")["role_id"],
            "KEYMAN_VAULT_SECRET_ID": rotated_vault.root.ask("POST", f"{role}/secret-id", {})["secret_id"],
        }
    )
    for name in ("management", "resolver"):
        code, findings = doctor(environment(), "--home", str(home.directory), "--role", name)
        assert (code, findings["vault-policy"]["found"]) == (0, f"only that of keyman-{name}")
    home.resolver_file.chmod(0o644)
    assert doctor(environment(), "--home", str(home.directory))[0] == 1
