"""`keyman vault`, as transcripts, on a Vault for this file where nothing is set up."""

from __future__ import annotations

import asyncio
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import httpx
import pytest

from keyman.dev import embedded
from keyman.dev.embedded import EmbeddedVault
from keyman.vault.provision import POLICIES, ROLES
from tests.cli.test_common import failed
from tests.cli.transcript import keyman
from tests.support.cli import Finished, environment
from tests.support.http import NO_TLS
from tests.support.vault import RootClient

SETUP = ("vault", "setup")


@pytest.fixture(scope="module")
def untouched_vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedVault]:
    started = asyncio.run(embedded.start(tmp_path_factory.mktemp("untouched")))
    yield started
    started.close()


@pytest.fixture
def untouched_root(untouched_vault: EmbeddedVault) -> RootClient:
    return RootClient(untouched_vault.address, untouched_vault.root_token.reveal())


@pytest.fixture
def admin(untouched_vault: EmbeddedVault) -> dict[str, str]:
    """The variables of an operator who sets up a mount of the test's own."""
    return environment(
        KEYMAN_VAULT_ADDR=untouched_vault.address,
        KEYMAN_VAULT_TOKEN=untouched_vault.root_token.reveal(),
        KEYMAN_VAULT_MOUNT=f"seals-{token_hex(4)}",
    )


@pytest.fixture(scope="module")
def unset_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedVault]:
    """For the one test that sees everything being made."""
    started = asyncio.run(embedded.start(tmp_path_factory.mktemp("unset-up")))
    yield started
    started.close()


def test_from_nothing_a_dry_run_shows_everything_and_changes_nothing_and_a_run_does_it(
    unset_up: EmbeddedVault,
) -> None:
    env = environment(KEYMAN_VAULT_ADDR=unset_up.address, KEYMAN_VAULT_TOKEN=unset_up.root_token.reveal())
    assert "keyman vault setup" in failed(keyman("vault", "secret-id", "keyman-rotator", env=env))
    everything = [
        "mounted the Transit engine at transit/",
        "created the key keyman: aes256-gcm96, derived, not exportable, no plaintext backup",
        "enabled the AppRole login at auth/approle/",
        "let Vault's audit log show the header X-Request-ID without HMAC",
        *(f"wrote the policy {name}" for name in POLICIES),
        "created the key keyman-duplicates: aes256-gcm96, derived, not exportable, no plaintext backup",
        *(f"created the AppRole {role}" for role in ROLES),
    ]
    for _ in range(2):
        shown = keyman(*SETUP, "--dry-run", env=env)
        assert (shown.code, shown.out.splitlines()) == (0, everything)
        assert shown.err == "Dry run. Without --dry-run, these changes would be made:\n"
    done = keyman(*SETUP, env=env)
    assert (done.code, done.out.splitlines()) == (0, everything)
    assert keyman(*SETUP, env=env) == Finished(0, "", "No changes: Vault is set up for keyman.\n")
    nothing = "No changes: Vault is set up for keyman.\n"
    assert keyman(*SETUP, "--dry-run", env=env) == Finished(0, "", nothing)


def test_what_differs_is_shown_line_by_line_before_it_is_repaired(
    admin: dict[str, str], untouched_root: RootClient
) -> None:
    assert keyman(*SETUP, env=admin).code == 0
    rules = untouched_root.ask("GET", "sys/policies/acl/keyman-resolver")["policy"]
    widened = rules.replace('["update"]', '["update", "sudo"]', 1)
    untouched_root.ask("PUT", "sys/policies/acl/keyman-resolver", {"policy": widened})
    untouched_root.ask(
        "POST", "auth/approle/role/keyman-rotator", {"token_max_ttl": 0, "token_policies": ["keyman-admin"]}
    )
    shown = keyman(*SETUP, "--dry-run", env=admin).out
    assert "updated the policy keyman-resolver" in shown
    assert re.search(r'^    -.*"sudo"', shown, re.MULTILINE)
    assert re.search(r'^    \+.*\["update"\]$', shown, re.MULTILINE)
    assert "    token_max_ttl: 0 -> 3600\n" in shown
    assert "    token_policies: ['keyman-admin'] -> ['keyman-rotator']\n" in shown
    assert keyman(*SETUP, env=admin).out == shown
    assert untouched_root.ask("GET", "sys/policies/acl/keyman-resolver")["policy"] == rules


def test_a_role_is_bound_to_networks_once_and_keeps_them(admin: dict[str, str], untouched_root: RootClient) -> None:
    keyman(*SETUP, env=admin)
    bound = keyman(*SETUP, "--cidr", "keyman-resolver=127.0.0.1/32,10.0.0.0/8", env=admin)
    assert bound.out.splitlines()[0] == "updated the AppRole keyman-resolver"
    for arguments in ((), ("--cidr", "keyman-resolver=10.0.0.0/8, 127.0.0.1/32")):
        assert keyman(*SETUP, *arguments, env=admin) == Finished(0, "", "No changes: Vault is set up for keyman.\n")
    role = untouched_root.ask("GET", "auth/approle/role/keyman-resolver")
    for name in ("token_bound_cidrs", "secret_id_bound_cidrs"):
        assert {one.removesuffix("/32") for one in role[name]} == {"10.0.0.0/8", "127.0.0.1"}
    freed = keyman(*SETUP, "--cidr", "keyman-resolver=", env=admin)
    assert freed.out.splitlines()[0] == "updated the AppRole keyman-resolver"
    assert not untouched_root.ask("GET", "auth/approle/role/keyman-resolver")["token_bound_cidrs"]


def test_a_login_from_elsewhere_is_refused_once_the_role_is_bound(admin: dict[str, str], tmp_path: Path) -> None:
    keyman(*SETUP, "--cidr", "keyman-rotator=192.0.2.0/24", env=admin)
    assert keyman("vault", "secret-id", "keyman-rotator", "--directory", tmp_path, env=admin).code == 0
    assert _login(admin["KEYMAN_VAULT_ADDR"], tmp_path).status_code in (400, 403)
    keyman(*SETUP, "--cidr", "keyman-rotator=127.0.0.0/8", env=admin)
    assert keyman("vault", "secret-id", "keyman-rotator", "--directory", tmp_path, env=admin).code == 0
    assert _login(admin["KEYMAN_VAULT_ADDR"], tmp_path).status_code == 200
    keyman(*SETUP, "--cidr", "keyman-rotator=", env=admin)


def _login(address: str, directory: Path) -> httpx.Response:
    body = {name: (directory / name).read_text().strip() for name in ("role_id", "secret_id")}
    return httpx.post(f"{address}/v1/auth/approle/login", json=body, verify=NO_TLS)


@pytest.mark.parametrize(
    "wrong", ["keyman-admin=10.0.0.0/8", "keyman-resolver=10.0.0.1/8", "keyman-resolver=x", "=", "keyman-resolver"]
)
def test_networks_that_are_none_are_wrong_usage(admin: dict[str, str], wrong: str) -> None:
    assert keyman(*SETUP, "--cidr", wrong, env=admin).code == 2


def test_a_role_that_is_bound_twice_in_one_run_is_wrong_usage(admin: dict[str, str]) -> None:
    twice = ("--cidr", "keyman-resolver=10.0.0.0/8", "--cidr", "keyman-resolver=192.0.2.0/24")
    done = keyman(*SETUP, *twice, env=admin)
    assert done.code == 2
    assert "give each role once" in done.err


def test_a_secret_id_is_handed_over_wrapped_and_opens_once(admin: dict[str, str], untouched_root: RootClient) -> None:
    keyman(*SETUP, env=admin)
    issued = keyman("vault", "secret-id", "keyman-management", "--wrap-ttl", "60", env=admin)
    assert (issued.code, issued.err) == (0, "It can be unwrapped once, within 60 s.\n")
    given = dict(line.split("=", 1) for line in issued.out.splitlines())
    assert list(given) == ["KEYMAN_VAULT_ROLE_ID", "KEYMAN_VAULT_WRAPPED_SECRET_ID"]
    wrapping = {"X-Vault-Token": given["KEYMAN_VAULT_WRAPPED_SECRET_ID"]}
    address = f"{admin['KEYMAN_VAULT_ADDR']}/v1/sys/wrapping/unwrap"
    secret = httpx.post(address, headers=wrapping, verify=NO_TLS).json()["data"]["secret_id"]
    assert httpx.post(address, headers=wrapping, verify=NO_TLS).status_code == 400
    login = untouched_root.ask("POST", "auth/approle/role/keyman-management/secret-id/lookup", {"secret_id": secret})
    assert login["secret_id_num_uses"] == 0
    listed = json.loads(keyman("vault", "secret-id", "keyman-management", "--json", env=admin).out)
    assert listed["role_id"] == given["KEYMAN_VAULT_ROLE_ID"]
    assert listed["wrap_ttl"] == 300


def test_a_secret_id_is_written_to_files_that_only_their_owner_reads(admin: dict[str, str], tmp_path: Path) -> None:
    keyman(*SETUP, env=admin)
    directory = tmp_path / "new" / "resolver"
    done = keyman("vault", "secret-id", "keyman-resolver", "--directory", directory, env=admin)
    assert done == Finished(0, "", "Wrote role_id and secret_id of keyman-resolver.\n")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == {"role_id": 0o600, "secret_id": 0o600}
    assert _login(admin["KEYMAN_VAULT_ADDR"], directory).json()["auth"]["policies"] == ["keyman-resolver"]
    taken = tmp_path / "file"
    taken.write_text("")
    refused = keyman("vault", "secret-id", "keyman-resolver", "--directory", taken / "below", env=admin)
    assert "give another directory with --directory" in failed(refused)


@pytest.mark.parametrize("command", [SETUP, (*SETUP, "--dry-run"), ("vault", "secret-id", "keyman-rotator")])
def test_a_token_that_may_not_and_a_vault_that_is_not_there_are_said(
    admin: dict[str, str], command: tuple[str, ...]
) -> None:
    garbage = "s.5up3rs3cr3tg4rb4ge"
    said = failed(keyman(*command, env={**admin, "KEYMAN_VAULT_TOKEN": garbage}))
    assert "Vault refuses KEYMAN_VAULT_TOKEN" in said
    assert "keyman-admin.hcl" in said
    assert garbage not in said
    said = failed(keyman(*command, env={**admin, "KEYMAN_VAULT_ADDR": "http://127.0.0.1:9"}))
    assert "Vault cannot be reached" in said
    assert admin["KEYMAN_VAULT_TOKEN"] not in said


def test_a_set_up_that_stops_half_way_says_where_and_goes_on_the_next_time(
    admin: dict[str, str], untouched_root: RootClient
) -> None:
    untouched_root.ask("PUT", "sys/policies/acl/half", {"policy": _HALF.replace("MOUNT", admin["KEYMAN_VAULT_MOUNT"])})
    token = untouched_root.ask_token({"policies": ["half"], "no_default_policy": True})
    done = keyman(*SETUP, env={**admin, "KEYMAN_VAULT_TOKEN": token})
    assert done.code == 1
    assert done.out == f"mounted the Transit engine at {admin['KEYMAN_VAULT_MOUNT']}/\n"
    assert done.err.startswith("This change failed, and no later one was made: created the key keyman: ")
    assert "Vault refuses KEYMAN_VAULT_TOKEN" in done.err
    assert keyman(*SETUP, env=admin).out.startswith("created the key keyman: ")


_HALF = """
path "sys/mounts" { capabilities = ["read"] }
path "sys/mounts/MOUNT" { capabilities = ["create", "update"] }
path "MOUNT/keys/keyman" { capabilities = ["read"] }
path "sys/auth" { capabilities = ["read"] }
path "sys/policies/acl/*" { capabilities = ["read"] }
path "auth/approle/role/*" { capabilities = ["read"] }
"""


def test_the_administrators_token_is_asked_for_and_nothing_else(admin: dict[str, str]) -> None:
    del admin["KEYMAN_VAULT_TOKEN"]
    said = failed(keyman(*SETUP, env={**admin, "KEYMAN_VAULT_AUTH": "approle"}))
    assert "KEYMAN_VAULT_TOKEN is not set (nor KEYMAN_VAULT_TOKEN_FILE)" in said
    assert "ROLE_ID" not in said


@pytest.mark.parametrize(("nature", "named"), [({"derived": False}, "derived"), ({"exportable": True}, "exportable")])
def test_a_key_of_another_nature_is_not_touched(
    admin: dict[str, str], untouched_root: RootClient, nature: dict[str, bool], named: str
) -> None:
    mount = admin["KEYMAN_VAULT_MOUNT"]
    untouched_root.ask("POST", f"sys/mounts/{mount}", {"type": "transit"})
    untouched_root.ask("POST", f"{mount}/keys/keyman", {"derived": True, "type": "aes256-gcm96", **nature})
    before = untouched_root.ask("GET", f"{mount}/keys/keyman")
    for arguments in (SETUP, (*SETUP, "--dry-run")):
        said = failed(keyman(*arguments, env=admin))
        assert f"({named})" in said
        assert "Nothing was done" in said
    assert untouched_root.ask("GET", f"{mount}/keys/keyman") == before


def test_the_policy_of_the_administrator_is_enough(admin: dict[str, str], untouched_root: RootClient) -> None:
    """From nothing at this mount, with only a token of keyman-admin."""
    keyman(*SETUP, env=admin)  # as Vault's owner, who hands the policy on
    token = untouched_root.ask_token({"policies": ["keyman-admin"], "no_default_policy": True})
    mount = admin["KEYMAN_VAULT_MOUNT"]
    untouched_root.ask("DELETE", f"sys/mounts/{mount}")
    untouched_root.ask("DELETE", "auth/approle/role/keyman-rotator")
    env = {**admin, "KEYMAN_VAULT_TOKEN": token}
    done = keyman(*SETUP, env=env)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == f"mounted the Transit engine at {mount}/"
    assert keyman("vault", "secret-id", "keyman-rotator", env=env).code == 0
