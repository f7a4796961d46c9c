"""Setting up: makes what is missing, repairs what differs, and does not touch what it cannot repair."""

from secrets import token_hex
from typing import Any

import pytest
from hvac.api.auth_methods.token import Token

from keyman.config.vault import VaultSettings
from keyman.errors import ConfigurationError, VaultReason
from keyman.metrics import Metrics
from keyman.vault.adapter import AsyncAdapter, VaultFault, none_if_missing
from keyman.vault.guard import KEY_PROPERTIES
from keyman.vault.provision import (
    POLICIES,
    ROLE_SETTINGS,
    ROLES,
    issue_credentials,
    policies_directory,
    policy,
    provision,
)
from tests.vault.bench import ROLE, Bench, a_context

ROLE_PATH = f"/v1/auth/approle/role/{ROLE}"
POLICY_PATH = f"/v1/sys/policies/acl/{ROLE}"


async def state_of(bench: Bench) -> dict[str, Any]:
    """All that provisioning may touch, as Vault tells it."""
    settings, admin = bench.settings, bench.admin
    return {
        "mounts": sorted((await admin.get("/v1/sys/mounts"))["data"]),
        "key": await none_if_missing(admin.get(f"/v1/{settings.mount}/keys/{settings.key}")) and (await key_of(bench)),
        "policy": (await none_if_missing(admin.get(POLICY_PATH)) or {}).get("data"),
        "role": (await none_if_missing(admin.get(ROLE_PATH)) or {}).get("data"),
    }


async def key_of(bench: Bench) -> Any:
    return (await bench.transit.read_key(bench.settings.key, mount_point=bench.settings.mount))["data"]


# --- From nothing, and again


@pytest.mark.anyio
async def test_from_nothing_everything_is_made_and_named(embedded_bench: Bench) -> None:
    namespace = f"fresh-{token_hex(4)}"  # holds neither login method nor policy nor role
    await embedded_bench.admin.post(f"/v1/sys/namespaces/{namespace}", json={})
    settings = VaultSettings(address=embedded_bench.vault.address, namespace=namespace, mount="seals", key="one")
    admin = AsyncAdapter(settings, Metrics())
    admin.token = embedded_bench.vault.root_token
    try:
        changes = await provision(admin, settings)
        again = await provision(admin, settings)
        key = (await admin.get("/v1/seals/keys/one"))["data"]
    finally:
        await admin.close()
        await embedded_bench.admin.delete(f"/v1/sys/namespaces/{namespace}")
    assert changes == [
        "mounted the Transit engine at seals/",
        "created the key one: aes256-gcm96, derived, not exportable, no plaintext backup",
        "enabled the AppRole login at auth/approle/",
        *(f"wrote the policy {name}" for name in POLICIES),
        "created the key one-duplicates: aes256-gcm96, derived, not exportable, no plaintext backup",
        *(f"created the AppRole {role}" for role in ROLES),
    ]
    assert again == []
    assert {name: key[name] for name in KEY_PROPERTIES} == KEY_PROPERTIES
    assert key["deletion_allowed"] is False


@pytest.mark.anyio
async def test_a_second_run_changes_nothing(bench: Bench) -> None:
    before = await state_of(bench)
    assert await provision(bench.admin, bench.settings) == []
    assert await state_of(bench) == before


@pytest.mark.anyio
async def test_a_second_run_leaves_what_was_sealed(bench: Bench) -> None:
    context, place = a_context(), {"mount_point": bench.settings.mount}
    sealed = await bench.transit.encrypt_data(bench.settings.key, "eA==", context=context.encoded(), **place)
    await bench.transit.rotate_key(bench.settings.key, **place)
    assert await provision(bench.admin, bench.settings) == []
    assert (await key_of(bench))["latest_version"] == 2
    assert await bench.opened(sealed["data"]["ciphertext"], context) == "x"


# --- What differs


@pytest.mark.anyio
async def test_a_policy_that_was_changed_is_written_again(bench: Bench) -> None:
    await bench.write_policy(f'path "{bench.settings.mount}/*" {{ capabilities = ["create", "read", "update"] }}')
    assert await provision(bench.admin, bench.settings) == [f"updated the policy {ROLE}"]
    assert (await bench.admin.get(POLICY_PATH))["data"]["policy"] == policy(ROLE, bench.settings)
    assert await provision(bench.admin, bench.settings) == []


@pytest.mark.anyio
async def test_a_policy_that_is_missing_is_written(bench: Bench) -> None:
    await bench.admin.delete(POLICY_PATH)
    assert await provision(bench.admin, bench.settings) == [f"wrote the policy {ROLE}"]


@pytest.mark.anyio
async def test_another_mount_or_key_reaches_the_policy(bench: Bench) -> None:
    other = bench.with_settings(key="other.key-1")
    changes = await provision(bench.admin, other.settings)
    assert f"updated the policy {ROLE}" in changes
    rules = (await bench.admin.get(POLICY_PATH))["data"]["policy"]
    for operation in ("encrypt", "rewrap", "keys"):
        assert f'path "{bench.settings.mount}/{operation}/other.key-1"' in rules
    await other.guard().verify()


@pytest.mark.anyio
async def test_a_mount_may_lie_deeper(bench: Bench) -> None:
    deeper = bench.with_settings(mount=f"team/{token_hex(4)}/transit")
    await provision(bench.admin, deeper.settings)
    try:
        await deeper.guard().verify()
    finally:
        await bench.admin.delete(f"/v1/sys/mounts/{deeper.settings.mount}")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "change",
    [
        {"token_policies": [ROLE, "root-like"]},
        {"token_policies": []},
        {"token_no_default_policy": False},
        {"token_ttl": 60},
        {"token_max_ttl": 0},
        {"token_period": 3600},  # with a period a token lives for ever
        {"token_type": "batch"},  # which can be neither renewed nor revoked
    ],
    ids=str,
)
async def test_a_role_that_was_changed_is_repaired(bench: Bench, change: dict[str, object]) -> None:
    before = (await bench.admin.get(ROLE_PATH))["data"]
    await bench.change_role(**change)
    assert await provision(bench.admin, bench.settings) == [f"updated the AppRole {ROLE}"]
    after = (await bench.admin.get(ROLE_PATH))["data"]
    assert {name: after[name] for name in change} == {name: before[name] for name in change}
    assert await provision(bench.admin, bench.settings) == []


@pytest.mark.anyio
async def test_a_role_asks_for_its_secret_again_and_keeps_what_an_operator_has_narrowed(bench: Bench) -> None:
    narrowed = {"token_bound_cidrs": ["127.0.0.0/8"], "secret_id_num_uses": 3}
    await bench.change_role(bind_secret_id=False, **narrowed)
    assert await provision(bench.admin, bench.settings) == [f"updated the AppRole {ROLE}"]
    role = (await bench.admin.get(ROLE_PATH))["data"]
    assert role["bind_secret_id"] is True
    assert {name: role[name] for name in narrowed} == narrowed


@pytest.mark.anyio
async def test_a_role_that_is_missing_is_made(bench: Bench) -> None:
    await bench.admin.delete(ROLE_PATH)
    assert await provision(bench.admin, bench.settings) == [f"created the AppRole {ROLE}"]


# --- What it refuses


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("properties", "named"),
    [
        ({"derived": False}, "derived"),
        ({"exportable": True}, "exportable"),
        ({"allow_plaintext_backup": True}, "allow_plaintext_backup"),
        ({"type": "chacha20-poly1305"}, "type"),
        ({"type": "ed25519"}, "type, supports_encryption"),
    ],
    ids=str,
)
async def test_a_key_of_another_nature_is_refused_and_nothing_touched(
    bench: Bench, properties: dict[str, object], named: str
) -> None:
    await bench.delete_key()
    await bench.make_key(**properties)
    await bench.admin.delete(POLICY_PATH)
    await bench.admin.delete(ROLE_PATH)
    before = await state_of(bench)
    with pytest.raises(ConfigurationError) as caught:
        await provision(bench.admin, bench.settings)
    assert f"({named})" in str(caught.value)
    assert "KEYMAN_VAULT_KEY" in str(caught.value)
    assert await state_of(bench) == before


@pytest.mark.anyio
async def test_a_mount_of_another_kind_is_refused_and_nothing_touched(bench: Bench) -> None:
    other = bench.with_settings(mount=f"kv-{token_hex(4)}")
    await bench.admin.post(f"/v1/sys/mounts/{other.settings.mount}", json={"type": "kv"})
    before = await state_of(bench)
    try:
        with pytest.raises(ConfigurationError) as caught:
            await provision(bench.admin, other.settings)
        assert await state_of(bench) == before
    finally:
        await bench.admin.delete(f"/v1/sys/mounts/{other.settings.mount}")
    assert f"{other.settings.mount}/ is already mounted, as kv" in str(caught.value)
    assert "KEYMAN_VAULT_MOUNT" in str(caught.value)


@pytest.mark.anyio
async def test_a_token_that_may_not_set_up_gets_a_fault_and_no_half_of_it(bench: Bench) -> None:
    client = bench.client()
    await client.call("lookup", Token(client.adapter).lookup_self)
    with pytest.raises(VaultFault) as caught:
        await provision(client.adapter, bench.settings)
    assert caught.value.reason == VaultReason.FORBIDDEN


# --- Credentials


@pytest.mark.anyio
async def test_credentials_are_new_each_time_and_all_of_them_work(bench: Bench) -> None:
    issued = [await issue_credentials(bench.admin, ROLE) for _ in range(2)]
    assert issued[0].role_id == issued[1].role_id
    assert issued[0].secret_id != issued[1].secret_id
    for role_id, secret_id in issued:
        seen = bench.with_settings(role_id=role_id, secret_id=secret_id)
        client = seen.client()
        token = (await client.call("lookup", Token(client.adapter).lookup_self))["data"]
        assert token["policies"] == [ROLE]
        assert token["creation_ttl"] == ROLE_SETTINGS["token_ttl"]
        assert token["renewable"] is True
        assert token["type"] == "service"
        assert secret_id.reveal() not in repr(issued)


# --- The policies as they are shipped


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_has_its_names_put_in(name: str) -> None:
    text = policy(name, VaultSettings(address="http://vault", mount="deep/er", key="k.1-2"))
    assert "${" not in text
    assert "$" not in text
    assert '"deep/er/' in text
    assert '/k.1-2"' in text


def test_every_policy_file_belongs_to_a_role() -> None:
    assert {path.stem for path in policies_directory().glob("*.hcl")} == set(POLICIES)


def test_the_management_policy_names_nothing_that_answers_with_a_plaintext() -> None:
    rules = [line for line in policy(ROLE, VaultSettings(address="x")).splitlines() if not line.startswith("#")]
    text = "\n".join(rules)
    for word in (
        "decrypt",
        "export",
        "backup",
        "datakey",
        "*",
        "+",
        "create",
        "sudo",
        "delete",
        "list",
        "patch",
        "sys/policies",
        "sys/mounts",
    ):
        assert word not in text
    paths = [line.split('"')[1] for line in rules if line.startswith("path")]
    assert paths == [
        "transit/encrypt/keyman",
        "transit/rewrap/keyman",
        "transit/hmac/keyman-duplicates/sha2-256",
        "transit/keys/keyman",
        "auth/token/lookup-self",
        "auth/token/renew-self",
        "auth/token/revoke-self",
        "sys/capabilities-self",
    ]
