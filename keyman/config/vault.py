"""The group `KEYMAN_VAULT_…`: Vault's address, how to log in to it, and which encryption key to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from keyman.config import reader as parsers
from keyman.config.network import address
from keyman.config.reader import Reader
from keyman.secret import Secret

VaultAuth = Literal["approle", "kubernetes", "jwt", "token", "agent"]

SECRET_ID = "KEYMAN_VAULT_SECRET_ID"  # noqa: S105  # a variable's name
WRAPPED_SECRET_ID = "KEYMAN_VAULT_WRAPPED_SECRET_ID"  # noqa: S105  # likewise
"""At start, keyman exchanges the wrapped secret ID for a secret ID, which its workers use."""

KUBERNETES_JWT_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
"""Where Kubernetes puts a pod's own service account token."""


@dataclass(frozen=True)
class VaultSettings:
    """How to reach Vault and log in to it. `timeout` is in seconds, for one whole operation including retries.

    An AppRole has a secret ID or a wrapped one, which `vault.wrapping.unwrap` exchanges once for a secret ID.
    `credential_file` is the file that the secret ID or the token came from. Each login reads it again, so that you can
    replace it while keyman runs.
    """

    address: str
    auth: VaultAuth = "approle"
    namespace: str | None = None
    auth_namespace: str | None = None
    auth_mount: str | None = None
    ca_certificate: Path | None = None
    role_id: str | None = None
    secret_id: Secret | None = None
    wrapped_secret_id: Secret | None = None
    role: str | None = None
    jwt_file: Path | None = None
    token: Secret | None = None
    credential_file: Path | None = None
    mount: str = "transit"
    key: str = "keyman"
    timeout: float = 5.0

    @property
    def login_namespace(self) -> str:
        """The namespace of the login, its token and its policies: empty for the root namespace."""
        return (self.namespace or "") if self.auth_namespace is None else self.auth_namespace

    @property
    def duplicates_key(self) -> str:
        """The key with which Vault computes fingerprints of values."""
        return f"{self.key}-duplicates"

    @property
    def approle_mount(self) -> str:
        """Where AppRole is mounted."""
        return self.auth_mount or "approle"

    def policy_path(self, path: str) -> str:
        """Return how a policy names a path of `vault-policies/`, where AppRole is at `approle/`.

        A policy stands in the namespace of the login. There, what lies in a namespace below is named with the
        namespace in front, such as `team/transit/encrypt/keyman`.
        """
        below = (self.namespace or "").removeprefix(self.login_namespace).lstrip("/")
        if below and (path == "sys/mounts" or path.startswith(("sys/mounts/", f"{self.mount}/"))):
            return f"{below}/{path}"
        for parent in ("auth/", "sys/auth/"):
            if f"{path}/".startswith(f"{parent}approle/"):
                return f"{parent}{self.approle_mount}{path[len(parent) + len('approle') :]}"
        return path


def load_vault(environ: Mapping[str, str]) -> VaultSettings:
    """Read only Vault's variables, for an operator's commands. They log in with a token, whatever the variables say.

    Raises ConfigurationError.
    """
    reader = Reader(environ)
    vault = read_vault(reader, "token")
    reader.finish()
    assert vault is not None
    return vault


def read_vault(reader: Reader, auth: VaultAuth | None = None) -> VaultSettings | None:
    """Read Vault's variables. Returns None, and records a fault, when its address is missing or invalid."""
    where = reader.required(_own_or_vaults(reader, "KEYMAN_VAULT_ADDR"), address)
    method = auth or _method(reader.optional("KEYMAN_VAULT_AUTH", parsers.one_of(*get_args(VaultAuth))))
    read: dict[str, object] = {
        "auth": method,
        "namespace": (namespace := reader.optional(_own_or_vaults(reader, "KEYMAN_VAULT_NAMESPACE"), _path)),
        "auth_namespace": reader.optional("KEYMAN_VAULT_AUTH_NAMESPACE", partial(_namespace_of_login, namespace)),
        "auth_mount": reader.optional("KEYMAN_VAULT_AUTH_MOUNT", _auth_mount),
        "ca_certificate": reader.optional(_own_or_vaults(reader, "KEYMAN_VAULT_CACERT"), parsers.certificate_file),
        "mount": reader.optional("KEYMAN_VAULT_MOUNT", _path),
        "key": reader.optional("KEYMAN_VAULT_KEY", _path),
        "timeout": reader.optional("KEYMAN_VAULT_TIMEOUT", parsers.number(0.1, 60, "seconds")),
        **_credentials(reader, method),
    }
    if where is None:
        return None
    # A variable that is not set keeps the default of VaultSettings.
    given = {name: value for name, value in read.items() if value is not None}
    return VaultSettings(where, **given)  # type: ignore[arg-type]  # each value was parsed for its field


def _own_or_vaults(reader: Reader, own: str) -> str:
    """Return keyman's variable, or that of Vault's own command line where only that one is set."""
    vaults = own.removeprefix("KEYMAN_")
    return vaults if reader.has(vaults) and not reader.has(own) else own


def _method(name: str | None) -> VaultAuth:
    known: dict[str | None, VaultAuth] = {method: method for method in get_args(VaultAuth)}
    return known.get(name, VaultSettings.auth)


def _credentials(reader: Reader, method: VaultAuth) -> dict[str, object]:
    """Read the variables that this auth method needs."""
    if method == "approle":
        return {
            "role_id": reader.required("KEYMAN_VAULT_ROLE_ID", parsers.text, secret=True),
            **_secret_id(reader),
        }
    if method == "token":
        token = reader.required("KEYMAN_VAULT_TOKEN", parsers.secret, secret=True)
        return {"token": token, "credential_file": reader.file_of("KEYMAN_VAULT_TOKEN")}
    if method in ("kubernetes", "jwt"):
        role = reader.required("KEYMAN_VAULT_ROLE", _path)
        if method == "kubernetes" and not reader.has("KEYMAN_VAULT_JWT_FILE"):
            return {"role": role, "jwt_file": KUBERNETES_JWT_FILE}
        return {"role": role, "jwt_file": reader.required("KEYMAN_VAULT_JWT_FILE", parsers.existing_file)}
    return {}


def _secret_id(reader: Reader) -> dict[str, object]:
    if not reader.has_secret(WRAPPED_SECRET_ID):
        secret_id = reader.required(SECRET_ID, parsers.secret, secret=True)
        return {"secret_id": secret_id, "credential_file": reader.file_of(SECRET_ID)}
    reader.exclude(SECRET_ID, by=WRAPPED_SECRET_ID)
    return {
        "wrapped_secret_id": reader.required(WRAPPED_SECRET_ID, parsers.secret, secret=True),
        "role": reader.optional("KEYMAN_VAULT_ROLE", _path),
    }


def _path(raw: str) -> str:
    # hvac inserts these into URLs unchanged, including `..`.
    parts = raw.strip("/").split("/")
    if not all(part and part.strip(".") and all(c.isalnum() or c in "-_." for c in part) for part in parts):
        raise ValueError("may contain only letters, digits, '-', '_', '.' and '/'")
    return "/".join(parts)


def _auth_mount(raw: str) -> str:
    return _path(raw.strip("/").removeprefix("auth/"))


def _namespace_of_login(namespace: str | None, raw: str) -> str:
    login = "" if raw.strip("/") in ("", "root") else _path(raw)
    if login and not f"{namespace or ''}/".startswith(f"{login}/"):
        # A token of Vault works in its own namespace and in those below, nowhere else.
        raise ValueError("must be KEYMAN_VAULT_NAMESPACE or a namespace above it ('/' is the root namespace)")
    return login
