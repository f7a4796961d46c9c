"""Where Vault is asked to log in, and files that are replaced while keyman runs."""

from __future__ import annotations

import json
import os
from io import StringIO
from pathlib import Path
from secrets import token_hex

import httpx
import pytest

from keyman.config.vault import VaultSettings
from keyman.doctor.findings import State
from keyman.doctor.vault import MANAGEMENT, examine
from keyman.errors import ConfigurationError, VaultReason
from keyman.secret import Secret
from keyman.vault import wrapping
from keyman.vault.provision import capabilities, issue_credentials, issue_wrapped_credentials, plan
from tests.support.http import NO_TLS
from tests.vault.bench import ROLE, Bench, a_context, bench_at, own_token, read_key, refusal, tls_vault

pytestmark = pytest.mark.anyio

# --- namespaces and mounts


async def _namespaces(bench: Bench, *names: str) -> str:
    """Make these namespaces, each inside the one before, and return the path of the last."""
    path = ""
    for name in names:
        headers = {"X-Vault-Token": bench.vault.root_token, "X-Vault-Namespace": path}
        async with httpx.AsyncClient(base_url=bench.vault.address, headers=headers, verify=NO_TLS) as client:
            (await client.post(f"/v1/sys/namespaces/{name}", json={})).raise_for_status()
        path = f"{path}/{name}".lstrip("/")
    return path


async def _seals_and_is_found_in_order(bench: Bench) -> None:
    """Seal with the role's own login, and let doctor look at everything."""
    cipher = bench.cipher()
    context = a_context()
    sealed = await cipher.encrypt(Secret("sk-c4n4ry"), context)
    assert await bench.opened(sealed.ciphertext, context) == "sk-c4n4ry"
    found = [finding async for finding in examine(bench.client(), bench.settings, MANAGEMENT)]
    assert {finding.check: finding.found for finding in found if finding.state is not State.OK} == {}
    assert await plan(bench.admin, bench.admin.settings) == []


@pytest.mark.parametrize("login", ["", "parent", "same"])
@pytest.mark.parametrize("mount", [None, "machines"])
async def test_the_login_may_be_mounted_elsewhere_and_in_a_namespace_above(
    embedded_bench: Bench, login: str, mount: str | None
) -> None:
    # As in HCP Vault, whose users own the namespace `admin` and make others below it.
    admin = f"admin-{token_hex(4)}"
    team = await _namespaces(embedded_bench, admin, "team")
    of_login = {"": "", "parent": admin, "same": None}[login]
    async with bench_at(embedded_bench.vault, namespace=team, auth_namespace=of_login, auth_mount=mount) as bench:
        await _seals_and_is_found_in_order(bench)
        token = await own_token(bench.client())
        assert token["path"] == f"auth/{mount or 'approle'}/login"
        assert token.get("namespace_path", "").strip("/") == (team if of_login is None else of_login)


async def test_a_wrapped_secret_id_is_of_the_configured_mount(embedded_bench: Bench) -> None:
    async with bench_at(embedded_bench.vault, auth_mount="machines") as bench:
        issued = await issue_wrapped_credentials(bench.admin, ROLE, 60)
        wrapped = bench.with_settings(secret_id=None, wrapped_secret_id=issued.secret_id).settings
        unwrapped = await wrapping.unwrap(wrapped, ROLE)
        assert (await own_token(bench.with_settings(secret_id=unwrapped.secret_id).client()))["policies"] == [ROLE]
        other = bench.with_settings(auth_mount=None, secret_id=None, wrapped_secret_id=issued.secret_id).settings
        with pytest.raises(ConfigurationError):
            await wrapping.unwrap(other, ROLE)


async def test_a_mount_of_another_method_is_refused_before_anything_is_changed(embedded_bench: Bench) -> None:
    mount = f"people-{token_hex(4)}"
    await embedded_bench.admin.post(f"/v1/sys/auth/{mount}", json={"type": "userpass"})
    with pytest.raises(ConfigurationError, match="as userpass: choose another KEYMAN_VAULT_AUTH_MOUNT"):
        async with bench_at(embedded_bench.vault, auth_mount=mount):
            pass


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("transit/encrypt/keyman", "team/transit/encrypt/keyman"),
        ("sys/mounts/transit", "team/sys/mounts/transit"),
        ("sys/mounts", "team/sys/mounts"),
        ("auth/approle/role/keyman-*", "auth/machines/role/keyman-*"),
        ("sys/auth/approle", "sys/auth/machines"),
        ("auth/approle-other/role", "auth/approle-other/role"),
        ("auth/token/renew-self", "auth/token/renew-self"),
        ("sys/policies/acl/keyman-*", "sys/policies/acl/keyman-*"),
        ("transit-other/encrypt/x", "transit-other/encrypt/x"),
    ],
)
def test_a_policy_names_what_lies_below_with_its_namespace(path: str, expected: str) -> None:
    settings = VaultSettings("x", namespace="admin/team", auth_namespace="admin", auth_mount="machines")
    assert settings.policy_path(path) == expected
    assert VaultSettings("x", namespace="admin/team").policy_path(path) == path


def test_the_management_plane_may_only_seal_in_any_namespace() -> None:
    settings = VaultSettings("x", namespace="admin/team", auth_namespace="admin")
    assert "admin/team/transit/decrypt/keyman" not in (held := capabilities("keyman-management", settings))
    assert held["team/transit/encrypt/keyman"] == {"update"}
    assert not any("decrypt" in path for path in held)


# --- files that are replaced


def _replace(path: Path, text: str) -> None:
    """Replace a file as platforms do: with a rename."""
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)


async def test_a_secret_id_that_is_replaced_in_its_file_is_used_at_the_next_login(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "secret_id"
    assert bench.settings.secret_id is not None
    file.write_text(bench.settings.secret_id.reveal() + "\n")
    client = bench.with_settings(credential_file=file).client()
    await read_key(client, bench)
    used = {"secret_id": bench.settings.secret_id.reveal()}
    await bench.admin.post(f"/v1/auth/approle/role/{ROLE}/secret-id/destroy", json=used)
    await bench.revoke(client.adapter.token)
    _, fresh = await issue_credentials(bench.admin, ROLE)
    _replace(file, fresh.reveal())
    await read_key(client, bench)


async def test_a_token_that_is_replaced_in_its_file_is_used_when_the_old_one_ends(bench: Bench, tmp_path: Path) -> None:
    async def token() -> str:
        made = await bench.admin.post("/v1/auth/token/create", json={"policies": [ROLE], "ttl": "1h"})
        return str(made["auth"]["client_token"])

    first, file = await token(), tmp_path / "token"
    file.write_text(first)
    client = bench.with_settings(auth="token", token=Secret(first), credential_file=file).client()
    await read_key(client, bench)
    await bench.revoke(first)
    _replace(file, await token() + "\n")
    await read_key(client, bench)


@pytest.mark.parametrize("content", [None, "", "\xff"])
async def test_a_credential_file_that_cannot_be_read_is_a_refused_login_and_one_line(
    bench: Bench, tmp_path: Path, logged: StringIO, content: str | None
) -> None:
    file = tmp_path / "secret_id"
    if content is not None:
        file.write_bytes(content.encode("latin-1"))
    assert await refusal(read_key(bench.with_settings(credential_file=file).client(), bench)) == VaultReason.LOGIN
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    reasons = [line["why"] for line in lines if "credential for Vault's login" in line["event"]]
    assert len(reasons) == 1
    assert reasons[0].startswith("KEYMAN_VAULT_SECRET_ID_FILE names")
    assert str(file) not in logged.getvalue()


async def test_a_ca_that_is_replaced_in_its_file_is_trusted_without_a_restart(
    embedded_bench: Bench, tmp_path: Path
) -> None:
    authority, other = await embedded_bench.authority(tmp_path), await embedded_bench.authority(tmp_path)
    file = tmp_path / "ca.pem"
    file.write_text(other.certificate.read_text())
    async with (
        tls_vault(authority, tmp_path) as vault,
        bench_at(vault, ca_certificate=authority.certificate) as bench,
    ):
        client = bench.with_settings(ca_certificate=file).client()
        assert await refusal(read_key(client, bench)) == VaultReason.UNTRUSTED
        _replace(file, "no certificate")  # a file that is being written; the old one counts
        assert await refusal(read_key(client, bench)) == VaultReason.UNTRUSTED
        _replace(file, authority.certificate.read_text())
        await read_key(client, bench)
        # A CA that is withdrawn is trusted no more, over connections that are open either.
        _replace(file, other.certificate.read_text())
        assert await refusal(read_key(client, bench)) == VaultReason.UNTRUSTED
