"""What each role may do: every cell of the table in `vault-policies/README.md`, and paths that are not in it.

Each request is made with the role's own token. Allowed means that Vault does anything but refuse it with 403 (or with
405 for any caller); it may well find that a request without a body makes no sense.
"""

from __future__ import annotations

import base64
import re
from itertools import product
from typing import Any

import pytest

from keyman.config.vault import VaultSettings
from keyman.metrics import Metrics
from keyman.secret import Secret
from keyman.vault.adapter import AsyncAdapter
from keyman.vault.provision import (
    POLICIES,
    ROLES,
    capabilities,
    issue_credentials,
    policies_directory,
    policy,
    provision,
)
from tests.vault.bench import Bench, a_context

NEEDED = {"GET": {"read"}, "LIST": {"list"}, "POST": {"create", "update"}, "DELETE": {"delete"}}
"""The capabilities of which an operation needs one. Vault tells create from update by whether there is something."""

BESIDE = """
${mount}/keys  ${mount}/keys/other  ${mount}/encrypt/other  ${mount}/decrypt/other  ${mount}/rewrap/other
${mount}/encrypt/${key}/x  ${mount}/decrypt  ${mount}/keys/${key}/trim  ${mount}/keys/${key}/import
${mount}/keys/${key}/import_version  ${mount}/keys/other/rotate  ${mount}/keys/other/config
${mount}/datakey/plaintext/${key}  ${mount}/datakey/wrapped/${key}  ${mount}/hmac/${key}  ${mount}/sign/${key}
${mount}/verify/${key}  ${mount}/export/encryption-key/${key}  ${mount}/export/encryption-key/${key}/1
${mount}/backup/${key}  ${mount}/restore  ${mount}/restore/${key}  ${mount}/random  ${mount}/hash
${mount}/cache-config  ${mount}/wrapping_key  ${mount}/config/keys
other-${mount}/encrypt/${key}  other-${mount}/decrypt/${key}  ${mount}-other/decrypt/${key}
sys/mounts/${mount}/tune  sys/mounts/other  sys/remount  sys/auth/approle/tune  sys/auth/userpass  sys/policies/acl
sys/policies/acl/other  sys/policies/acl/default  sys/policies/acl/root  sys/policy  sys/policy/keyman-management
sys/seal  sys/audit  sys/audit/file  sys/audit-hash/file  sys/config/cors  sys/leases/lookup
sys/leases/revoke  sys/rotate  sys/capabilities  sys/capabilities-accessor
sys/storage/raft/snapshot  sys/storage/raft/configuration  sys/quotas/rate-limit/x  sys/plugins/catalog
auth/token/create  auth/token/create-orphan  auth/token/lookup  auth/token/renew  auth/token/revoke
auth/token/roles/x  auth/token/accessors  auth/approle/role  auth/approle/role/other
auth/approle/role/other/secret-id  auth/approle/tidy/secret-id
identity/entity  identity/oidc/token/x  cubbyhole/x  secret/data/x
"""
"""What a role might be thought to reach: the neighbours of what the table grants, and what ends in a plaintext."""


REFUSED = (403, 405)


def table() -> dict[str, dict[str, set[str]]]:
    """The README's table: path, role, capabilities."""
    readme = (policies_directory() / "README.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in re.findall(r"^\|.*\|$", readme, re.MULTILINE)
    ]
    (head,) = [row for row in rows if row[0] == "path" and "management" in row]
    cells = rows[rows.index(head) + 2 :]
    cells = cells[: next(number for number, row in enumerate(cells) if len(row) != len(head))]
    return {
        row[0].strip("`"): {f"keyman-{n}": set(c.split()) for n, c in zip(head[1:], row[1:], strict=True)}
        for row in cells
    }


def concrete(path: str, settings: VaultSettings) -> str:
    return path.replace("${mount}", settings.mount).replace("${key}", settings.key).replace("*", "probe")


async def token_of(bench: Bench, name: str, **options: Any) -> str:
    """A token with only this policy: of the role's AppRole, or made for what has none."""
    if name in ROLES:
        role_id, secret_id = await issue_credentials(bench.admin, name)
        body = {"role_id": role_id, "secret_id": secret_id.reveal()}
        answer = await bench.admin.post("/v1/auth/approle/login", json=body)
    else:
        made = {"policies": [name], "no_default_policy": True, "ttl": "10m", **options}
        answer = await bench.admin.post("/v1/auth/token/create", json=made)
    assert answer["auth"]["policies"] == [name]
    token: str = answer["auth"]["client_token"]
    return token


async def status(bench: Bench, token: str, method: str, path: str, body: object = None) -> int:
    url, headers = f"{bench.settings.address}/v1/{path}", {"X-Vault-Token": token}
    async with bench.admin.session.request(
        method, url, headers=headers, json=body if method == "POST" else None
    ) as answer:
        return answer.status


def test_the_table_names_every_path_of_every_policy_and_no_other() -> None:
    settings = VaultSettings(address="x", mount="${mount}", key="${key}")
    granted = {(path, name): held for name in POLICIES for path, held in capabilities(name, settings).items()}
    said = {(path, name): held for path, row in table().items() for name, held in row.items() if held}
    assert said == granted
    assert {name for row in table().values() for name in row} == set(POLICIES)


@pytest.mark.anyio
@pytest.mark.parametrize("name", POLICIES)
async def test_a_role_may_do_what_the_table_says_and_nothing_else(bench: Bench, name: str) -> None:
    token = await token_of(bench, name)
    wrong, cells = [], 0
    for path, method in product(table(), NEEDED):
        held = table()[path][name]
        if path == "auth/token/revoke-self" and method == "POST":
            continue  # at the end
        is_allowed = bool(held & NEEDED[method])
        answer = await status(bench, token, method, concrete(path, bench.settings), {})
        cells += 1
        if (answer not in REFUSED) != is_allowed:
            wrong.append((method, path, answer))
    for path, method in product(BESIDE.split(), NEEDED):
        answer = await status(bench, token, method, concrete(path, bench.settings), {})
        cells += 1
        if answer not in REFUSED:
            wrong.append((method, path, answer))
    assert wrong == []
    assert cells > 250
    assert await status(bench, token, "POST", "auth/token/revoke-self") == 204
    assert await status(bench, token, "GET", "auth/token/lookup-self") == 403


@pytest.mark.anyio
async def test_sealing_makes_no_key_that_is_missing(bench: Bench) -> None:
    token = await token_of(bench, "keyman-management")
    await bench.delete_key()
    body = {"plaintext": "eA==", "context": a_context().encoded()}
    path = f"{bench.settings.mount}/encrypt/{bench.settings.key}"
    assert await status(bench, token, "POST", path, body) == 403


@pytest.mark.anyio
async def test_the_resolver_opens_one_value_with_its_context_and_with_nothing_else(bench: Bench) -> None:
    context = a_context()
    sealed = (await (await bench.warm_cipher()).encrypt(Secret("sk-c4n4ry"), context)).ciphertext
    token, path = await token_of(bench, "keyman-resolver"), f"{bench.settings.mount}/decrypt/{bench.settings.key}"
    one = {"ciphertext": sealed, "context": context.encoded()}
    resolver = AsyncAdapter(bench.settings, Metrics())
    resolver.token = token
    try:
        answer = await resolver.post(f"/v1/{path}", json=one)
    finally:
        await resolver.close()
    assert base64.b64decode(answer["data"]["plaintext"]) == b"sk-c4n4ry"
    assert await status(bench, token, "POST", path, {**one, "context": a_context().encoded()}) == 400
    for more in ({"batch_input": [one]}, {"nonce": ""}, {"associated_data": ""}, {"reference": "x"}, {"x": 1}):
        assert await status(bench, token, "POST", path, {**one, **more}) == 403, more
        assert await status(bench, token, "POST", path, more) == 403, more


@pytest.mark.anyio
async def test_the_rotator_rotates_and_rewraps_in_batches(bench: Bench) -> None:
    context = a_context()
    sealed = (await (await bench.warm_cipher()).encrypt(Secret("x"), context)).ciphertext
    rotator = AsyncAdapter(bench.settings, Metrics())
    rotator.token = await token_of(bench, "keyman-rotator")
    mount, key = bench.settings.mount, bench.settings.key
    try:
        await rotator.post(f"/v1/{mount}/keys/{key}/rotate")
        items = [{"ciphertext": sealed, "context": context.encoded()}] * 3
        answer = await rotator.post(f"/v1/{mount}/rewrap/{key}", json={"batch_input": items})
        assert (await rotator.get(f"/v1/{mount}/keys/{key}"))["data"]["latest_version"] == 2
    finally:
        await rotator.close()
    for item in answer["data"]["batch_results"]:
        assert item["ciphertext"].startswith("vault:v2:")
        assert await bench.opened(item["ciphertext"], context) == "x"


@pytest.mark.anyio
async def test_an_admin_with_the_policy_of_an_earlier_version_adds_the_key_of_the_fingerprints(bench: Bench) -> None:
    fresh = bench.with_settings(mount=f"{bench.settings.mount}-earlier", key="fresh")
    settings = fresh.settings
    earlier = policy("keyman-admin", settings).replace("fresh-duplicates", "something-else")
    await bench.admin.put("/v1/sys/policies/acl/keyman-admin", json={"policy": earlier})
    admin = AsyncAdapter(settings, Metrics())
    admin.token = await token_of(bench, "keyman-admin")
    try:
        changes = await provision(admin, settings)
        assert [change for change in changes if "fresh-duplicates" in change]
        assert (await admin.get(f"/v1/{settings.mount}/keys/fresh-duplicates"))["data"]["exportable"] is False
        assert await provision(admin, settings) == []
    finally:
        await admin.close()


@pytest.mark.anyio
async def test_the_management_plane_only_computes_with_the_key_of_the_fingerprints(bench: Bench) -> None:
    token = await token_of(bench, "keyman-management")
    mount, key = bench.settings.mount, bench.settings.duplicates_key
    body = {"input": "eA==", "plaintext": "eA==", "context": "eA=="}
    assert await status(bench, token, "POST", f"{mount}/hmac/{key}/sha2-256", body) == 200
    for path in (f"hmac/{key}", f"hmac/{key}/sha2-512", f"encrypt/{key}", f"decrypt/{key}", f"verify/{key}/sha2-256"):
        assert await status(bench, token, "POST", f"{mount}/{path}", body) == 403, path
    for path in (f"keys/{key}", f"export/hmac-key/{key}", f"backup/{key}"):
        assert await status(bench, token, "GET", f"{mount}/{path}") == 403, path


@pytest.mark.anyio
async def test_the_admin_sets_everything_up_and_makes_no_key_of_another_nature(bench: Bench) -> None:
    fresh = bench.with_settings(mount=f"{bench.settings.mount}-fresh", key="fresh")
    for name in POLICIES:
        await bench.admin.put(f"/v1/sys/policies/acl/{name}", json={"policy": policy(name, fresh.settings)})
    admin = AsyncAdapter(fresh.settings, Metrics())
    admin.token = await token_of(bench, "keyman-admin")
    try:
        changes = await provision(admin, fresh.settings)
        assert any(change.startswith("mounted") for change in changes)
        assert any(change.startswith("created the key") for change in changes)
        assert await provision(admin, fresh.settings) == []
        for role in ROLES:
            assert (await issue_credentials(admin, role)).secret_id.reveal()
        keys = f"{fresh.settings.mount}/keys/fresh"
        for nature in ({"exportable": True}, {"derived": False}, {"type": "rsa-2048"}, {"convergent_encryption": True}):
            assert await status(fresh, admin.token, "POST", keys, {"derived": True, **nature}) == 403, nature
        for loosened in ({"exportable": True}, {"allow_plaintext_backup": True}, {"deletion_allowed": True}):
            assert await status(fresh, admin.token, "POST", f"{keys}/config", loosened) == 403, loosened
        assert await status(fresh, admin.token, "POST", f"{keys}/config", {"min_decryption_version": 1}) in (200, 204)
    finally:
        await admin.close()
        await bench.admin.delete(f"/v1/sys/mounts/{fresh.settings.mount}")
