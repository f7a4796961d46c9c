"""Setting Vault up: the Transit mount, the key, the policies of `vault-policies/` and an AppRole for each.

`provision` may be run again and again: it makes what is missing, updates policies and roles that differ, and refuses
to touch a key that is not as it must be, for changing a key's nature is not possible and replacing it
loses every value.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import NamedTuple

from hvac.api.auth_methods.approle import AppRole
from hvac.api.secrets_engines.transit import Transit
from hvac.api.system_backend import Auth, Mount, Policies

from keyman.config import VaultSettings
from keyman.errors import ConfigurationError
from keyman.secret import Secret
from keyman.vault.adapter import AsyncAdapter, none_if_missing
from keyman.vault.guard import KEY_PROPERTIES

ROLES = ("keyman-management", "keyman-resolver", "keyman-rotator")
"""Each has a policy file and an AppRole of its name."""

POLICIES = (*ROLES, "keyman-admin")
"""Whoever sets Vault up logs in as themselves: no AppRole is left behind that could do it again."""

ROLE_SETTINGS: Mapping[str, object] = {
    "token_ttl": 3600,  # seconds; renewed at two thirds while the process lives
    "token_max_ttl": 86400,  # a stolen token is dead within a day, however often it is renewed
    "token_period": 0,  # with a period it would live for ever
    "token_type": "service",  # a batch token can be neither renewed nor revoked
    "token_no_default_policy": True,  # the policy file is all that the token may do
    "bind_secret_id": True,
}


class AppRoleCredentials(NamedTuple):
    role_id: str
    secret_id: Secret


def policies_directory() -> Path:
    """`vault-policies/`: inside the package once it is installed, beside it in a working tree."""
    packaged = Path(__file__).parent / "policies"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "vault-policies"


def policy(name: str, settings: VaultSettings) -> str:
    """The HCL of a policy for this mount and key."""
    text = (policies_directory() / f"{name}.hcl").read_text()
    return Template(text).substitute(mount=settings.mount, key=settings.key)


async def provision(admin: AsyncAdapter, settings: VaultSettings) -> list[str]:
    """Bring Vault to the state that keyman needs and return what was changed, a line each.

    `admin` carries a token that may do so. Raises ConfigurationError where an existing mount or key is of another
    kind, VaultFault when Vault refuses.
    """
    changes = [
        *await _mount(admin, settings),
        *await _key(admin, settings),
        *await _app_role_method(admin),
    ]
    for name in POLICIES:
        changes += await _policy(admin, settings, name)
    for role in ROLES:
        changes += await _role(admin, role)
    return changes


async def issue_credentials(admin: AsyncAdapter, role: str) -> AppRoleCredentials:
    """The id of an AppRole with a new secret id."""
    approle = AppRole(admin)
    role_id = (await approle.read_role_id(role))["data"]["role_id"]
    secret_id = (await approle.generate_secret_id(role))["data"]["secret_id"]
    return AppRoleCredentials(role_id, Secret(secret_id))


async def _mount(admin: AsyncAdapter, settings: VaultSettings) -> list[str]:
    mounts = (await Mount(admin).list_mounted_secrets_engines())["data"]
    existing = mounts.get(f"{settings.mount}/")
    if existing is None:
        await Mount(admin).enable_secrets_engine("transit", path=settings.mount)
        return [f"mounted the Transit engine at {settings.mount}/"]
    if existing["type"] != "transit":
        raise ConfigurationError(
            f"{settings.mount}/ is mounted already, as {existing['type']}: choose another KEYMAN_VAULT_MOUNT"
        )
    return []


async def _key(admin: AsyncAdapter, settings: VaultSettings) -> list[str]:
    transit = Transit(admin)
    existing = await none_if_missing(transit.read_key(settings.key, mount_point=settings.mount))
    if existing is None:
        await transit.create_key(
            settings.key,
            derived=True,
            exportable=False,
            allow_plaintext_backup=False,
            key_type="aes256-gcm96",
            mount_point=settings.mount,
        )
        return [f"made the key {settings.key}: aes256-gcm96, derived, not exportable, no plaintext backup"]
    wrong = [name for name, value in KEY_PROPERTIES.items() if existing["data"].get(name) != value]
    if wrong:
        raise ConfigurationError(
            f"The key {settings.key} exists and is not as keyman needs it ({', '.join(wrong)}). Nothing was changed: "
            "name another with KEYMAN_VAULT_KEY, for a key's nature cannot be changed."
        )
    return []


async def _app_role_method(admin: AsyncAdapter) -> list[str]:
    methods = (await Auth(admin).list_auth_methods())["data"]
    if "approle/" in methods:
        return []
    await Auth(admin).enable_auth_method("approle")
    return ["enabled the AppRole login at auth/approle/"]


async def _policy(admin: AsyncAdapter, settings: VaultSettings, name: str) -> list[str]:
    wanted = policy(name, settings)
    existing = await none_if_missing(Policies(admin).read_acl_policy(name))
    if existing is not None and existing["data"]["policy"] == wanted:
        return []
    await Policies(admin).create_or_update_acl_policy(name, wanted)
    return [f"{'wrote' if existing is None else 'updated'} the policy {name}"]


async def _role(admin: AsyncAdapter, role: str) -> list[str]:
    wanted = {**ROLE_SETTINGS, "token_policies": [role]}
    existing = await none_if_missing(AppRole(admin).read_role(role))
    if existing is not None and all(existing["data"].get(name) == value for name, value in wanted.items()):
        return []
    await AppRole(admin).create_or_update_approle(role, **wanted)
    return [f"{'made' if existing is None else 'updated'} the AppRole {role}"]
