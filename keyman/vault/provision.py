"""The set-up of Vault: the Transit mount, the key, the policies of `vault-policies/` and an AppRole for each.

`plan` only reads; `provision` carries out the plan. You can run both any number of times: they create what is missing
and update policies and roles that differ. They never change a key with wrong properties, because these cannot be
changed, and because replacing the key would lose every value.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from string import Template
from typing import NamedTuple

from hvac.api.auth_methods.approle import AppRole
from hvac.api.secrets_engines.transit import Transit
from hvac.api.system_backend import Auth, Mount, Policies

from keyman.config.vault import VaultSettings
from keyman.errors import ConfigurationError
from keyman.secret import Secret
from keyman.vault.adapter import REQUEST_ID_HEADER, AsyncAdapter, VaultFault, extract, none_if_missing
from keyman.vault.guard import KEY_PROPERTIES

ROLES = ("keyman-management", "keyman-resolver", "keyman-gateway", "keyman-rotator")
"""Each role has a policy file and an AppRole with its name."""

POLICIES = (*ROLES, "keyman-admin")
"""keyman-admin has no AppRole: an administrator uses their own login, and no role remains that could set up Vault."""

ROLE_SETTINGS: Mapping[str, object] = {
    "token_ttl": 3600,  # seconds; the process renews it at two thirds
    "token_max_ttl": 86400,  # a stolen token expires within a day, however often it is renewed
    "token_period": 0,  # with a period, a token could be renewed forever
    "token_type": "service",  # a batch token can be neither renewed nor revoked
    "token_no_default_policy": True,  # the token has only the rights of the policy file
    "bind_secret_id": True,
}
"""The settings of every AppRole. Others (uses, TTL of a secret ID, networks) stay as an operator has set them."""

ROTATOR_SETTINGS: Mapping[str, object] = {
    "token_max_ttl": 3600,
    "secret_id_ttl": 86400,  # seconds; a rotation takes minutes, and nobody needs its secret ID a week later
}
"""Further settings of the rotator. The secret ID of a plane does not expire, because a restart needs it at any time."""


class AppRoleCredentials(NamedTuple):
    role_id: str
    secret_id: Secret


def policies_directory() -> Path:
    """Return `vault-policies/`: inside the package when it is installed, beside it in a working tree."""
    packaged = Path(__file__).parent / "policies"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "vault-policies"


def policy(name: str, settings: VaultSettings) -> str:
    """Return the HCL of a policy for this mount, this key, and the namespace and mount of the login."""
    text = (policies_directory() / f"{name}.hcl").read_text()
    text = Template(text).substitute(mount=settings.mount, key=settings.key)
    return re.sub(
        r'^path "([^"]+)"', lambda found: f'path "{settings.policy_path(found[1])}"', text, flags=re.MULTILINE
    )


def capabilities(name: str, settings: VaultSettings) -> dict[str, set[str]]:
    """Return the capabilities that a policy grants, by path. It only parses the format of `vault-policies/`."""
    blocks = re.findall(r'^path "([^"]+)" \{\s*capabilities\s*=\s*\[([^\]]*)\]', policy(name, settings), re.MULTILINE)
    return {path: set(re.findall(r'"(\w+)"', held)) for path, held in blocks}


class Change(NamedTuple):
    """One change to Vault: its description, the current difference, and the function that makes the change."""

    description: str
    difference: Sequence[str]
    apply: Callable[[], Awaitable[object]]


class Networks(NamedTuple):
    """The networks, in CIDR notation, from which an AppRole may log in and use its token."""

    role: str
    cidrs: tuple[str, ...]


async def plan(admin: AsyncAdapter, settings: VaultSettings, networks: Sequence[Networks] = ()) -> list[Change]:
    """Return the changes that set up Vault for keyman, in order; empty when there is nothing to change.

    A role that `networks` does not name keeps its networks. The token of `admin` must be allowed to read. Raises
    ConfigurationError when an existing mount or key is of another kind, VaultFault when Vault refuses a call.
    """
    changes = [
        *await _mount(admin, settings),
        *await _key(admin, settings, settings.key),
        *await _app_role_method(admin),
        *await _audited_header(admin),
    ]
    for name in POLICIES:
        changes += await _policy(admin, settings, name)
    changes += await _duplicates_key(admin, settings)
    bound = dict(networks)
    for role in ROLES:
        changes += await _role(admin, role, bound.get(role))
    return changes


async def provision(admin: AsyncAdapter, settings: VaultSettings) -> list[str]:
    """Carry out the plan with `admin`'s token, and return a description of each change. Raises like `plan`."""
    changes = await plan(admin, settings)
    for change in changes:
        await change.apply()
    return [change.description for change in changes]


async def issue_credentials(admin: AsyncAdapter, role: str) -> AppRoleCredentials:
    """Return the role ID of an AppRole and a new secret ID. Raises VaultFault; ConfigurationError without the role."""
    approle, mount = AppRole(admin), admin.settings.approle_mount
    role_id = await _role_id(approle, role, mount)
    secret_id = extract(await approle.generate_secret_id(role, mount_point=mount), str, "data", "secret_id")
    return AppRoleCredentials(role_id, Secret(secret_id))


async def issue_wrapped_credentials(admin: AsyncAdapter, role: str, wrap_ttl: int) -> AppRoleCredentials:
    """Do the same with a response-wrapped secret ID: a token that can be unwrapped once, within `wrap_ttl` seconds.

    Raises like `issue_credentials`.
    """
    approle, mount = AppRole(admin), admin.settings.approle_mount
    role_id = await _role_id(approle, role, mount)
    wrapping = await approle.generate_secret_id(role, wrap_ttl=wrap_ttl, mount_point=mount)
    return AppRoleCredentials(role_id, Secret(extract(wrapping, str, "wrap_info", "token")))


async def _role_id(approle: AppRole, role: str, mount: str) -> str:
    answer = await none_if_missing(approle.read_role_id(role, mount_point=mount))
    if answer is None:
        raise ConfigurationError(f"There is no AppRole {role} yet. First run: keyman vault setup")
    return extract(answer, str, "data", "role_id")


async def _mount(admin: AsyncAdapter, settings: VaultSettings) -> list[Change]:
    mounts = extract(await Mount(admin).list_mounted_secrets_engines(), dict, "data")
    existing = mounts.get(f"{settings.mount}/")
    if existing is None:
        return [
            Change(
                f"mounted the Transit engine at {settings.mount}/",
                (),
                lambda: Mount(admin).enable_secrets_engine("transit", path=settings.mount),
            )
        ]
    if existing["type"] != "transit":
        raise ConfigurationError(
            f"{settings.mount}/ is already mounted, as {existing['type']}: choose another KEYMAN_VAULT_MOUNT"
        )
    return []


async def _key(admin: AsyncAdapter, settings: VaultSettings, name: str) -> list[Change]:
    existing = await none_if_missing(Transit(admin).read_key(name, mount_point=settings.mount))
    if existing is None:
        return [_create_key(admin, settings, name)]
    wrong = [property_ for property_, value in KEY_PROPERTIES.items() if existing["data"].get(property_) != value]
    if wrong:
        raise ConfigurationError(
            f"The key {name} exists with wrong properties ({', '.join(wrong)}), which cannot be changed. "
            "Nothing was done. Set KEYMAN_VAULT_KEY to the name of another key."
        )
    return []


async def _duplicates_key(admin: AsyncAdapter, settings: VaultSettings) -> list[Change]:
    """Plan the key of the fingerprints, after the policies.

    A token with the policy keyman-admin of an earlier version may not read this key until the policies are written.
    The key is then taken for missing: Vault leaves one that exists as it is.
    """
    try:
        return await _key(admin, settings, settings.duplicates_key)
    except VaultFault as fault:
        if fault.status != 403:
            raise
    return [_create_key(admin, settings, settings.duplicates_key)]


def _create_key(admin: AsyncAdapter, settings: VaultSettings, name: str) -> Change:
    create = partial(
        Transit(admin).create_key,
        name,
        derived=True,
        exportable=False,
        allow_plaintext_backup=False,
        key_type="aes256-gcm96",
        mount_point=settings.mount,
    )
    return Change(f"created the key {name}: aes256-gcm96, derived, not exportable, no plaintext backup", (), create)


async def _app_role_method(admin: AsyncAdapter) -> list[Change]:
    methods = extract(await Auth(admin).list_auth_methods(), dict, "data")
    mount = admin.settings.approle_mount
    existing = methods.get(f"{mount}/")
    if existing is None:
        enable = partial(Auth(admin).enable_auth_method, "approle", path=mount)
        return [Change(f"enabled the AppRole login at auth/{mount}/", (), enable)]
    if existing["type"] != "approle":
        raise ConfigurationError(
            f"auth/{mount}/ is already enabled, as {existing['type']}: choose another KEYMAN_VAULT_AUTH_MOUNT"
        )
    return []


async def _audited_header(admin: AsyncAdapter) -> list[Change]:
    """Let Vault's audit log show the id of keyman's request.

    The setting is global, outside any namespace. It is skipped when the token may not change it, because nothing else
    depends on it.
    """
    if admin.settings.login_namespace:
        return []
    path = f"/v1/sys/config/auditing/request-headers/{REQUEST_ID_HEADER}"
    try:
        existing = extract(await admin.request("get", path), dict, "data")
    except VaultFault as fault:
        if fault.status not in (400, 404):  # these mean that the header is not configured yet
            return []
        existing = {}
    if any(one == {"hmac": False} for one in existing.values()):
        return []
    description = f"let Vault's audit log show the header {REQUEST_ID_HEADER} without HMAC"
    return [Change(description, (), lambda: admin.request("put", path, json={"hmac": False}))]


async def _policy(admin: AsyncAdapter, settings: VaultSettings, name: str) -> list[Change]:
    wanted = policy(name, settings)
    answer = await none_if_missing(Policies(admin).read_acl_policy(name))
    existing = None if answer is None else extract(answer, str, "data", "policy")
    if existing == wanted:
        return []
    lines = difflib.unified_diff((existing or "").splitlines(), wanted.splitlines(), "in Vault", f"{name}.hcl", n=1)
    return [
        Change(
            f"{'wrote' if existing is None else 'updated'} the policy {name}",
            () if existing is None else [line.rstrip("\n") for line in lines],
            lambda: Policies(admin).create_or_update_acl_policy(name, wanted),
        )
    ]


async def _role(admin: AsyncAdapter, role: str, cidrs: Sequence[str] | None) -> list[Change]:
    wanted = {**ROLE_SETTINGS, **(ROTATOR_SETTINGS if role == "keyman-rotator" else {}), "token_policies": [role]}
    if cidrs is not None:
        wanted |= {"token_bound_cidrs": list(cidrs), "secret_id_bound_cidrs": list(cidrs)}
    approle, mount = AppRole(admin), admin.settings.approle_mount
    answer = await none_if_missing(approle.read_role(role, mount_point=mount))
    existing = {} if answer is None else extract(answer, dict, "data")
    differing = [name for name, value in wanted.items() if not _same(name, existing.get(name), value)]
    if not differing:
        return []
    return [
        Change(
            f"{'created' if answer is None else 'updated'} the AppRole {role}",
            [] if answer is None else [f"{name}: {existing.get(name)} -> {wanted[name]}" for name in differing],
            lambda: approle.create_or_update_approle(role, mount_point=mount, **wanted),
        )
    ]


def _same(name: str, existing: object, wanted: object) -> bool:
    """Compare two values. Vault writes a network of one address without its prefix length, and no networks as null."""
    if name.endswith("_cidrs"):
        return _networks(existing) == _networks(wanted)
    return existing == wanted


def _networks(found: object) -> set[IPv4Network | IPv6Network]:
    return {ip_network(str(one)) for one in found} if isinstance(found, list) else set()
