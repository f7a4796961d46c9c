"""`vault-policies/terraform/` brings about what `keyman vault setup` does: the same policies, the same settings.

The files are read with a parser of HCL. Terraform or OpenTofu evaluates them where one is on the PATH, without the
provider for Vault, which is not available everywhere.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import hcl2
import pytest
from hcl2.utils import SerializationOptions

from keyman.config.vault import VaultSettings
from keyman.vault.guard import KEY_PROPERTIES
from keyman.vault.provision import POLICIES, ROLE_SETTINGS, ROLES, ROTATOR_SETTINGS, policy
from tests.support.needs import require

POLICY_FILES = Path(__file__).parents[2] / "vault-policies"
MODULE = POLICY_FILES / "terraform"

KEY_KIND = "vault_transit_secret_backend_key"

PLAIN = SerializationOptions(with_comments=False, explicit_blocks=False, strip_string_quotes=True)


def parsed(name: str) -> dict[str, Any]:
    with (MODULE / name).open() as file:
        return hcl2.load(file, serialization_options=PLAIN)


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    """The locals."""
    (block,) = parsed("locals.tf")["locals"]
    assert isinstance(block, dict)
    return block


@pytest.fixture(scope="module")
def resources() -> dict[str, dict[str, Any]]:
    """What a resource says, by its kind; there is one of each, but for the key of the fingerprints."""
    found = [(kind, *named.popitem()) for resource in parsed("main.tf")["resource"] for kind, named in resource.items()]
    by_kind = {kind: body for kind, name, body in found if name != "duplicates"}
    assert len(by_kind) == len(found) - 1
    return by_kind


def test_the_key_of_the_fingerprints_is_as_the_other_one() -> None:
    keys = [one["vault_transit_secret_backend_key"] for one in parsed("main.tf")["resource"] if KEY_KIND in one]
    found = {name: body for named in keys for name, body in named.items()}
    nature = {*KEY_PROPERTIES, "deletion_allowed"} - {"supports_encryption"}
    assert {name: found["duplicates"][name] for name in nature} == {name: found["keyman"][name] for name in nature}
    assert found["duplicates"]["name"] == "${var.key}-duplicates"


def test_the_roles_are_the_same_and_set_to_the_same(values: dict[str, Any]) -> None:
    assert values["role_settings"] == ROLE_SETTINGS
    assert values["rotator_settings"] == ROTATOR_SETTINGS
    assert set(values["roles"]) == set(ROLES)


def test_a_role_gets_every_setting_and_only_the_policy_of_its_own_name(resources: dict[str, dict[str, Any]]) -> None:
    role = resources["vault_approle_auth_backend_role"]
    for name in ROLE_SETTINGS:
        assert role[name] == f"${{each.value.{name}}}"
    for name in ROTATOR_SETTINGS.keys() - ROLE_SETTINGS.keys():
        assert role[name].startswith("${lookup(each.value,")
        assert name in role[name]
    assert role["token_policies"] == ["${vault_policy.keyman[each.key].name}"]
    assert role["token_bound_cidrs"] == role["secret_id_bound_cidrs"] == "${lookup(var.networks, each.key, null)}"
    assert role["backend"] == resources["vault_auth_backend"]["path"] == "approle"


def test_the_key_is_as_keyman_needs_it_and_is_not_destroyed(resources: dict[str, dict[str, Any]]) -> None:
    key = resources["vault_transit_secret_backend_key"]
    asked = {name: value for name, value in KEY_PROPERTIES.items() if name != "supports_encryption"}  # follows the type
    assert {name: key[name] for name in asked} == asked
    assert key["deletion_allowed"] is False
    for kind in ("vault_mount", "vault_transit_secret_backend_key"):
        (lifecycle,) = resources[kind]["lifecycle"]
        assert lifecycle["prevent_destroy"] is True


def test_the_mount_and_the_key_have_the_defaults_of_the_settings() -> None:
    declared = {name: body for variable in parsed("variables.tf")["variable"] for name, body in variable.items()}
    settings = VaultSettings(address="x")
    assert (declared["mount"]["default"], declared["key"]["default"]) == (settings.mount, settings.key)


def test_no_secret_comes_into_the_state(resources: dict[str, dict[str, Any]]) -> None:
    assert set(resources) == {
        "vault_mount",
        "vault_transit_secret_backend_key",
        "vault_policy",
        "vault_auth_backend",
        "vault_audit_request_header",
        "vault_approle_auth_backend_role",
    }


# --- with the binary


def terraform(*arguments: str, directory: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run it, or OpenTofu, without a word to anybody outside."""
    binary = shutil.which("terraform") or shutil.which("tofu")
    require("terraform", None if binary else "neither terraform nor tofu is on the PATH")
    assert binary is not None
    env = {"PATH": os.environ["PATH"], "HOME": str(directory), "CHECKPOINT_DISABLE": "1"}
    return subprocess.run(
        [binary, *arguments],
        cwd=directory,
        input=stdin,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def without_provider(tmp_path: Path) -> Path:
    """The part of the module that needs none, beside the policies."""
    directory = tmp_path / "terraform"
    directory.mkdir()
    for file in POLICY_FILES.glob("*.hcl"):
        shutil.copy(file, tmp_path)
    for name in ("locals.tf", "variables.tf"):
        shutil.copy(MODULE / name, directory)
    return directory


def test_the_files_are_formatted_as_terraform_formats_them(tmp_path: Path) -> None:
    copy = shutil.copytree(MODULE, tmp_path / "terraform")
    checked = terraform("fmt", "-check", "-diff", directory=copy)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_policies_and_roles_come_to_what_keyman_sets_up(without_provider: Path) -> None:
    given = ("-var", "mount=seals-eu", "-var", "key=user_keys.v1")
    asked = "jsonencode({ roles = local.roles, policies = local.policies })"
    evaluated = terraform("console", *given, directory=without_provider, stdin=asked)
    assert evaluated.returncode == 0, evaluated.stderr
    said = json.loads(json.loads(evaluated.stdout))
    settings = VaultSettings(address="x", mount="seals-eu", key="user_keys.v1")
    assert said["policies"] == {name: policy(name, settings) for name in POLICIES}
    of_rotator = {"keyman-rotator": ROTATOR_SETTINGS}
    assert said["roles"] == {name: {**ROLE_SETTINGS, **of_rotator.get(name, {})} for name in ROLES}


@pytest.mark.parametrize("networks", ['{"keyman-admin"=["10.0.0.0/8"]}', '{"keyman-resolver"=["everywhere"]}'])
def test_networks_of_a_role_that_there_is_not_or_that_are_none_are_refused(
    without_provider: Path, networks: str
) -> None:
    refused = terraform("console", "-var", f"networks={networks}", directory=without_provider, stdin="var.networks")
    assert "Invalid value for variable" in refused.stderr + refused.stdout
