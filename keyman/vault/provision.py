"""Setting Vault up: the Transit mount, the key, the policies of `vault-policies/` and an AppRole for each.

`plan` looks and changes nothing; `provision` carries out what it found. Both may be run again and again: what is
missing is made, policies and roles that differ are updated, and a key that is not as it must be is not touched, for
changing a key's nature is not possible and replacing it loses every value.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
from keyman.vault.adapter import REQUEST_ID_HEADER, AsyncAdapter, VaultFault, none_if_missing, taken
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
"""What every AppRole is set to. The rest (uses, life of a secret ID, networks) stays as an operator has narrowed it."""

ROTATOR_SETTINGS: Mapping[str, object] = {
    "token_max_ttl": 3600,
    "secret_id_ttl": 86400,  # seconds: a rotation is a job of minutes, and nobody restarts it next week
}
"""What the rotator's is set to beside that. A plane's secret ID has no end of its own: a restart at night needs it."""


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


def capabilities(name: str, settings: VaultSettings) -> dict[str, set[str]]:
    """What a policy grants, by path. For the files in `vault-policies/`, whose blocks begin alike, not for any HCL."""
    blocks = re.findall(r'^path "([^"]+)" \{\s*capabilities\s*=\s*\[([^\]]*)\]', policy(name, settings), re.MULTILINE)
    return {path: set(re.findall(r'"(\w+)"', held)) for path, held in blocks}


class Change(NamedTuple):
    """One thing that is not as it must be: what is done about it, how it differs now, and the doing."""

    description: str
    difference: Sequence[str]
    apply: Callable[[], Awaitable[object]]


class Networks(NamedTuple):
    """From where an AppRole may log in and its token be used: networks in CIDR notation."""

    role: str
    cidrs: tuple[str, ...]


async def plan(admin: AsyncAdapter, settings: VaultSettings, networks: Sequence[Networks] = ()) -> list[Change]:
    """What has to be changed for Vault to be as keyman needs it, in order; empty when nothing has.

    A role that `networks` does not name keeps those it has. `admin` carries a token that may look. Raises
    ConfigurationError where an existing mount or key is of another kind, VaultFault when Vault refuses.
    """
    changes = [
        *await _mount(admin, settings),
        *await _key(admin, settings),
        *await _app_role_method(admin),
        *await _audited_header(admin),
    ]
    for name in POLICIES:
        changes += await _policy(admin, settings, name)
    bound = dict(networks)
    for role in ROLES:
        changes += await _role(admin, role, bound.get(role))
    return changes


async def provision(admin: AsyncAdapter, settings: VaultSettings, networks: Sequence[Networks] = ()) -> list[str]:
    """Carry out the plan with `admin`'s token; return what was changed, a line each. Raises like `plan`."""
    changes = await plan(admin, settings, networks)
    for change in changes:
        await change.apply()
    return [change.description for change in changes]


async def issue_credentials(admin: AsyncAdapter, role: str) -> AppRoleCredentials:
    """The id of an AppRole with a new secret id. Raises VaultFault, ConfigurationError where there is no such role."""
    approle = AppRole(admin)
    role_id = await _role_id(approle, role)
    secret_id = taken(await approle.generate_secret_id(role), str, "data", "secret_id")
    return AppRoleCredentials(role_id, Secret(secret_id))


async def issue_wrapped_credentials(admin: AsyncAdapter, role: str, wrap_ttl: int) -> AppRoleCredentials:
    """The same with the secret id response-wrapped: what stands in its place is a token that gives it out once, within
    `wrap_ttl` seconds. Raises likewise.
    """
    approle = AppRole(admin)
    role_id = await _role_id(approle, role)
    wrapping = await approle.generate_secret_id(role, wrap_ttl=wrap_ttl)
    return AppRoleCredentials(role_id, Secret(taken(wrapping, str, "wrap_info", "token")))


async def _role_id(approle: AppRole, role: str) -> str:
    answer = await none_if_missing(approle.read_role_id(role))
    if answer is None:
        raise ConfigurationError(f"There is no AppRole {role} yet. Run first: keyman vault setup")
    return taken(answer, str, "data", "role_id")


async def _mount(admin: AsyncAdapter, settings: VaultSettings) -> list[Change]:
    mounts = taken(await Mount(admin).list_mounted_secrets_engines(), dict, "data")
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
            f"{settings.mount}/ is mounted already, as {existing['type']}: choose another KEYMAN_VAULT_MOUNT"
        )
    return []


async def _key(admin: AsyncAdapter, settings: VaultSettings) -> list[Change]:
    transit = Transit(admin)
    existing = await none_if_missing(transit.read_key(settings.key, mount_point=settings.mount))
    if existing is None:
        return [
            Change(
                f"made the key {settings.key}: aes256-gcm96, derived, not exportable, no plaintext backup",
                (),
                lambda: transit.create_key(
                    settings.key,
                    derived=True,
                    exportable=False,
                    allow_plaintext_backup=False,
                    key_type="aes256-gcm96",
                    mount_point=settings.mount,
                ),
            )
        ]
    wrong = [name for name, value in KEY_PROPERTIES.items() if existing["data"].get(name) != value]
    if wrong:
        raise ConfigurationError(
            f"The key {settings.key} exists and is not as keyman needs it ({', '.join(wrong)}). Nothing was changed: "
            "name another with KEYMAN_VAULT_KEY, for a key's nature cannot be changed."
        )
    return []


async def _app_role_method(admin: AsyncAdapter) -> list[Change]:
    methods = taken(await Auth(admin).list_auth_methods(), dict, "data")
    if "approle/" in methods:
        return []
    return [Change("enabled the AppRole login at auth/approle/", (), lambda: Auth(admin).enable_auth_method("approle"))]


async def _audited_header(admin: AsyncAdapter) -> list[Change]:
    """Vault's audit log then says for which request of keyman's a call was made. That is said once for all namespaces,
    and by a token that may; it is left out where this one may not, for nothing else depends on it.
    """
    if admin.namespace:
        return []
    path = f"/v1/sys/config/auditing/request-headers/{REQUEST_ID_HEADER}"
    try:
        existing = taken(await admin.request("get", path), dict, "data")
    except VaultFault as fault:
        if fault.status not in (400, 404):  # as Vault says that it does not know the header
            return []
        existing = {}
    if any(one == {"hmac": False} for one in existing.values()):
        return []
    said = f"had Vault's audit log tell the header {REQUEST_ID_HEADER}, as it is"
    return [Change(said, (), lambda: admin.request("put", path, json={"hmac": False}))]


async def _policy(admin: AsyncAdapter, settings: VaultSettings, name: str) -> list[Change]:
    wanted = policy(name, settings)
    answer = await none_if_missing(Policies(admin).read_acl_policy(name))
    existing = None if answer is None else taken(answer, str, "data", "policy")
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
    answer = await none_if_missing(AppRole(admin).read_role(role))
    existing = {} if answer is None else taken(answer, dict, "data")
    differing = [name for name, value in wanted.items() if not _same(name, existing.get(name), value)]
    if not differing:
        return []
    return [
        Change(
            f"{'made' if answer is None else 'updated'} the AppRole {role}",
            [] if answer is None else [f"{name}: {existing.get(name)} -> {wanted[name]}" for name in differing],
            lambda: AppRole(admin).create_or_update_approle(role, **wanted),
        )
    ]


def _same(name: str, existing: object, wanted: object) -> bool:
    """Vault spells a network of one address without its length, and none as null."""
    if name.endswith("_cidrs"):
        return _networks(existing) == _networks(wanted)
    return existing == wanted


def _networks(found: object) -> set[IPv4Network | IPv6Network]:
    return {ip_network(str(one)) for one in found} if isinstance(found, list) else set()
