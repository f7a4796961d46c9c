"""Checks of Vault with the login of one role: whether it answers, what the token may do, and the encryption key.

The checks only read, and rewrap without using the results. They seal, open, store and rotate nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple

from keyman.clock import now
from keyman.config.vault import VaultSettings
from keyman.doctor.findings import Finding, failed, ok, skipped, warning
from keyman.errors import VAULT_DETAILS, ConfigurationError, VaultReason, VaultUnavailable
from keyman.vault import inspection, wrapping
from keyman.vault.adapter import VaultFault
from keyman.vault.guard import KEY_PROPERTIES
from keyman.vault.inspection import Health, TokenInfo
from keyman.vault.login import VaultClient
from keyman.vault.provision import capabilities

OLDEST_VAULT = (1, 12)
"""The first version of HashiCorp's Vault that has everything keyman uses. OpenBao started at 2.0."""

CLOCKS_MAY_DIFFER = 5
"""Seconds before a warning. The expiry of tokens and keys is compared with this machine's clock."""

CLOCKS_MUST_NOT_DIFFER = 60
"""Seconds before a failure. Wrapped secret IDs are only valid for minutes."""

SOON = 300
"""Seconds. A token that expires sooner and cannot be renewed will soon be a fault."""

NOT_TAKEN = "a wrapped secret ID can be unwrapped only once, and is kept for the start that needs it"

FORBIDDEN_PATHS: Mapping[str, str] = {
    "{mount}/decrypt/{key}": "decrypt",
    "{mount}/encrypt/{key}": "encrypt",
    "{mount}/keys/{key}": "change the key",
    "{mount}/keys/{key}/rotate": "rotate the key",
    "{mount}/keys/{key}/config": "configure the key",
    "{mount}/keys/{key}/trim": "destroy old versions of the key",
    "{mount}/export/encryption-key/{key}": "export the key",
    "{mount}/export/encryption-key/{key}/1": "export a version of the key",
    "{mount}/byok-export/keyman-doctor-probe/{key}": "export the key under another",
    "{mount}/backup/{key}": "back up the key",
    "{mount}/restore/{key}": "replace the key with another",
    "{mount}/datakey/plaintext/{key}": "create plaintext data keys",
    "{mount}/encrypt/keyman-doctor-probe": "encrypt with other keys",
    "{mount}/decrypt/keyman-doctor-probe": "decrypt with other keys",
    "{mount}/keys/keyman-doctor-probe": "create other keys",
    "sys/policies/acl/keyman-doctor-probe": "write policies",
    "sys/policies/acl/keyman-management": "rewrite the management plane's policy",
    "sys/policies/acl/keyman-resolver": "rewrite the resolver's policy",
    "sys/policies/acl/keyman-gateway": "rewrite the gateway's policy",
    "sys/policies/acl/keyman-rotator": "rewrite the rotator's policy",
    "sys/policy/keyman-management": "rewrite policies by their old path",
    "sys/mounts/keyman-doctor-probe": "mount engines",
    "sys/remount": "move engines",
    "sys/namespaces/keyman-doctor-probe": "create namespaces",
    "sys/audit/keyman-doctor-probe": "change what Vault audits",
    "sys/auth/keyman-doctor-probe": "enable auth methods",
    "sys/raw/core": "read Vault's storage",
    "sys/storage/raft/snapshot": "copy Vault's storage",
    "sys/seal": "seal Vault",
    "auth/approle/role/keyman-resolver/secret-id": "issue the resolver's credentials",
    "auth/approle/role/keyman-resolver/custom-secret-id": "choose the resolver's credentials",
    "auth/approle/role/keyman-gateway/secret-id": "issue the gateway's credentials",
    "auth/approle/role/keyman-gateway/custom-secret-id": "choose the gateway's credentials",
    "auth/approle/role/keyman-management/secret-id": "issue the management plane's credentials",
    "auth/approle/role/keyman-management": "give the management plane other policies",
    "auth/approle/role/keyman-resolver": "give the resolver other policies",
    "auth/approle/role/keyman-gateway": "give the gateway other policies",
    "auth/approle/role/keyman-rotator": "give the rotator other policies",
    "auth/approle/role/keyman-doctor-probe": "create roles",
    "auth/token/create": "create tokens",
    "auth/token/create/keyman-doctor-probe": "create tokens of a role",
    "auth/token/create-orphan": "create tokens that outlive it",
    "identity/entity": "give policies to identities",
    "identity/group": "give policies to groups",
    "secret/data/keyman-doctor-probe": "use other secrets",
}
"""Paths that a token must have no rights on, and what it could do there.

Names with `probe` do not exist. No request is ever made to these paths: Vault is only asked for the token's rights.
"""


class Role(NamedTuple):
    """A role to check: the name of its policy, whether it may read the key, and whether a plane uses it."""

    name: str
    reads_key: bool
    plane: str | None


MANAGEMENT = Role("keyman-management", reads_key=True, plane="management")
RESOLVER = Role("keyman-resolver", reads_key=False, plane="resolver")
GATEWAY = Role("keyman-gateway", reads_key=False, plane="gateway")
ROTATOR = Role("keyman-rotator", reads_key=True, plane=None)


async def examine(client: VaultClient, settings: VaultSettings, role: Role) -> AsyncIterator[Finding]:
    """Check Vault, its clock, the login, the token, its policy and the properties of the key."""
    health = await _health(settings)
    if isinstance(health, Finding):
        yield health
        for check in ("vault-clock", "vault-login", "vault-token", "vault-policy", "vault-key"):
            yield skipped(check, "Vault cannot be used")
        return
    yield _reachable(health)
    yield _clock(health)
    if settings.wrapped_secret_id is not None:
        yield await _wrapping(settings, role)
        for check in ("vault-token", "vault-policy", "vault-key"):
            yield skipped(check, NOT_TAKEN)
        return
    try:
        token = await inspection.own_token(client)
    except VaultUnavailable as fault:
        yield failed("vault-login", VAULT_DETAILS[fault.reason], _login_remedy(settings, fault.reason))
        for check in ("vault-token", "vault-policy", "vault-key"):
            yield skipped(check, "there is no login")
        return
    yield ok("vault-login", f"logged in by {settings.auth}")
    yield _token(token, settings)
    try:
        yield _policy(await inspection.own_capabilities(client, _paths(settings, role)), token, settings, role)
    except VaultUnavailable as fault:
        yield warning(
            "vault-policy",
            f"the token's rights cannot be read: {VAULT_DETAILS[fault.reason]}",
            "update the policies: keyman vault setup",
        )
    yield await _key(client, settings, role)


async def _health(settings: VaultSettings) -> Health | Finding:
    try:
        health = await inspection.health(settings)
    except VaultFault as fault:
        return failed(
            "vault",
            fault.explained(),
            "check that it runs, that KEYMAN_VAULT_ADDR and KEYMAN_VAULT_CACERT are correct, and the network between",
        )
    if not health.initialized:
        return failed("vault", "not initialised", "run vault operator init, then keyman vault setup")
    if health.sealed:
        return failed("vault", "sealed: nothing can be stored or read", "run vault operator unseal")
    return health


def _reachable(health: Health) -> Finding:
    version = health.version
    known = tuple(int(part) for part in version.split("+", maxsplit=1)[0].split(".")[:2] if part.isdigit())
    if len(known) == 2 and known < OLDEST_VAULT:
        return warning("vault", f"unsealed, version {version}", "upgrade Vault: keyman is tested with newer versions")
    return ok("vault", f"unsealed, version {version}{', a standby' if health.standby else ''}")


def _clock(health: Health) -> Finding:
    theirs = health.server_time_utc
    if theirs is None:
        return skipped("vault-clock", "Vault does not report its time")
    return clock("vault-clock", now().timestamp() - theirs, "Vault's")


def clock(check: str, difference: float, whose: str) -> Finding:
    """Check a clock. `difference` is in seconds, and positive when this machine's clock is ahead."""
    if abs(difference) <= CLOCKS_MAY_DIFFER:
        return ok(check, f"agrees with {whose} within {CLOCKS_MAY_DIFFER} s")
    side = "ahead of" if difference > 0 else "behind"
    found, remedy = f"{abs(difference):.0f} s {side} {whose}", "synchronise the clocks of all machines with NTP"
    return (failed if abs(difference) > CLOCKS_MUST_NOT_DIFFER else warning)(check, found, remedy)


async def _wrapping(settings: VaultSettings, role: Role) -> Finding:
    try:
        await wrapping.check(settings, role.name)
    except ConfigurationError as fault:
        return failed("vault-login", str(fault), 'see "A wrapped secret ID" in docs/reference/configuration.md')
    return ok("vault-login", f"the wrapped secret ID is for {settings.role or role.name}, and still valid")


def _login_remedy(settings: VaultSettings, reason: VaultReason) -> str:
    if reason is not VaultReason.LOGIN:
        return "see docs/guide/operator.md for this cause"
    if settings.auth == "approle":
        return "issue a new secret ID with keyman vault secret-id ROLE, and check that the role ID is of the same role"
    if settings.auth == "token":
        return "use a valid token that has only the policy of its role; a root token is refused"
    return f"check that the role, and what {settings.auth} verifies, match Vault's configuration"


def _token(token: TokenInfo, settings: VaultSettings) -> Finding:
    seconds, is_renewable = token.ttl, bool(token.renewable)
    if not seconds:
        return failed("vault-token", "it never expires", "give it a TTL, so that a stolen token expires by itself")
    life = f"expires in {seconds} s, {'renewable' if is_renewable else 'not renewable'}"
    if settings.auth == "token" and not is_renewable:
        return (failed if seconds < SOON else warning)(
            "vault-token", f"{life}, and keyman cannot log in again", "use AppRole, Kubernetes or JWT, which can"
        )
    if token.num_uses:
        return failed("vault-token", f"{life}, with a limited number of uses", "set token_num_uses to 0 on the role")
    return ok("vault-token", life)


def _paths(settings: VaultSettings, role: Role) -> list[str]:
    """Return the paths where the token should have rights, and those where it should have none."""
    return [*capabilities(role.name, settings), *_probes(settings)]


def _probes(settings: VaultSettings) -> dict[str, str]:
    named = {path.format(mount=settings.mount, key=settings.key): what for path, what in FORBIDDEN_PATHS.items()}
    return {settings.policy_path(path): what for path, what in named.items()}


def _policy(held: Mapping[str, set[str]], token: TokenInfo, settings: VaultSettings, role: Role) -> Finding:
    """Check the token's rights, and its policies: another policy could allow something that is not in the probes."""
    wanted, probes = capabilities(role.name, settings), _probes(settings)
    missing = [f"{' '.join(sorted(lacks))} on {path}" for path in wanted if (lacks := wanted[path] - held[path])]
    excess = {path: more for path in held if (more := held[path] - wanted.get(path, set()))}
    if excess:
        can = [
            f"can {probes[path]}" if path in probes else f"{' '.join(sorted(excess[path]))} on {path}"
            for path in excess
        ]
        return failed(
            "vault-policy",
            f"too much: this token {', '.join(can)}",
            f"give it only the policy {role.name}, as in vault-policies/{role.name}.hcl: keyman vault setup",
        )
    if missing:
        return failed(
            "vault-policy",
            f"too little: it lacks {', '.join(missing)}",
            "update the policies with keyman vault setup, and check KEYMAN_VAULT_MOUNT and KEYMAN_VAULT_KEY",
        )
    if others := sorted(token.all_policies() - {role.name}):
        # `default` is a policy of Vault itself, and most auth methods add it.
        return (warning if others == ["default"] else failed)(
            "vault-policy",
            f"the token also has {', '.join(others)}: this may allow more than these checks can find",
            f"give it only the policy {role.name}: check its role, and the groups and the entity that it belongs to",
        )
    return ok("vault-policy", f"only that of {role.name}")


async def _key(client: VaultClient, settings: VaultSettings, role: Role) -> Finding:
    if not role.reads_key:
        return skipped("vault-key", f"{role.name} may not read it; doctor checks it as the management plane")
    try:
        data = await inspection.key_properties(client, settings)
    except VaultUnavailable as fault:
        return failed("vault-key", VAULT_DETAILS[fault.reason], "see the result of vault-policy")
    if data is None:
        return failed(
            "vault-key",
            "missing: nothing that is stored can be opened",
            "restore Vault from a backup. Only if no key was ever stored, create it: keyman vault setup",
        )
    wrong = [name for name, value in KEY_PROPERTIES.items() if data.get(name) != value]
    if wrong:
        return failed(
            "vault-key",
            f"wrong properties: {', '.join(wrong)}",
            "these cannot be changed: restore the right key, or set up another and name it in KEYMAN_VAULT_KEY",
        )
    if data.get("deletion_allowed"):
        return warning(
            "vault-key",
            "it can be deleted, and every stored value would be lost",
            f"vault write {settings.mount}/keys/{settings.key}/config deletion_allowed=false",
        )
    return ok("vault-key", "aes256-gcm96, derived, not exportable, no plaintext backup")
