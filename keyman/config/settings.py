"""Settings: read once from the environment into a frozen value; every bad variable is named at once.

No message repeats a value: a mistyped secret is still a secret.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar, get_args
from urllib.parse import SplitResult, urlsplit

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from keyman.errors import ConfigurationError
from keyman.secret import Secret

T = TypeVar("T")

VaultAuth = Literal["approle", "kubernetes", "jwt", "token", "agent"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DRIVERS = ("sqlite+aiosqlite", "postgresql+asyncpg")

POSTGRESQL_PARAMETERS = frozenset({"host", "port", "ssl", "passfile", "target_session_attrs", "krbsrvname"})
"""What may follow the `?` of a PostgreSQL URL: of what asyncpg takes, what is text. It fails on any other at each
connection, long after the start.
"""

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

LOG_LEVELS = ("debug", "info", "warning", "error")

SECRET_ID = "KEYMAN_VAULT_SECRET_ID"  # noqa: S105  # a variable's name
WRAPPED_SECRET_ID = "KEYMAN_VAULT_WRAPPED_SECRET_ID"  # noqa: S105  # likewise
"""Of the second a start makes the first, for the workers that it starts."""

KUBERNETES_JWT_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
"""Where Kubernetes puts a pod's own service account token."""

MAX_FILE_BYTES = 64 * 1024
"""A file named by a `…_FILE` variable holds one secret; a larger one is a mistake (a device, a log)."""


@dataclass(frozen=True)
class VaultSettings:
    """How to reach Vault and log in to it. `timeout` is in seconds, for one whole operation with its retries.

    An AppRole has a secret ID or a wrapped one, which `vault.wrapping.unwrap` exchanges once for a secret ID.
    """

    address: str
    auth: VaultAuth = "approle"
    namespace: str | None = None
    ca_certificate: Path | None = None
    role_id: str | None = None
    secret_id: Secret | None = None
    wrapped_secret_id: Secret | None = None
    role: str | None = None
    jwt_file: Path | None = None
    token: Secret | None = None
    mount: str = "transit"
    key: str = "keyman"
    timeout: float = 5.0


@dataclass(frozen=True)
class Settings:
    """Everything that a plane of keyman is told from outside."""

    database_url: URL
    vault: VaultSettings
    public_url: str | None = None
    signup_open: bool = False
    services_file: Path | None = None
    trusted_proxies: tuple[Network, ...] = field(default=())
    resolve_rate: float = 100.0  # requests a second of one application, for one process of the resolver
    log_format: Literal["json", "console"] = "json"
    log_level: str = "info"

    @property
    def cookies_are_secure(self) -> bool:
        """False only where browsers reach keyman by plain http on a loopback address."""
        if self.public_url is None:
            return True
        parts = urlsplit(self.public_url)
        return not (parts.scheme == "http" and is_loopback(parts.hostname or ""))

    @property
    def is_https(self) -> bool:
        return self.public_url is not None and self.public_url.startswith("https://")


def is_loopback(host: str) -> bool:
    """True for `localhost`, names below it, and loopback addresses."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load(environ: Mapping[str, str], read_services: Callable[[Path], object] | None = None) -> Settings:
    """Read every setting of a plane; raises ConfigurationError naming every variable at fault.

    `read_services` raises ValueError for a file of services that is not right: what is in one, settings do not know.
    """
    reader = _Reader(environ)
    database_url = reader.required("KEYMAN_DATABASE_URL", _database_url, secret=True)
    vault = _vault(reader)
    settings = {
        "public_url": reader.optional("KEYMAN_PUBLIC_URL", _public_url),
        "signup_open": reader.optional("KEYMAN_SIGNUP", _one_of("open", "closed")) == "open",
        "services_file": reader.optional("KEYMAN_SERVICES_FILE", _file_for(read_services)),
        "trusted_proxies": reader.optional("KEYMAN_TRUSTED_PROXIES", _networks) or (),
        "resolve_rate": reader.optional("KEYMAN_RESOLVE_RATE", _rate) or 100.0,
        "log_format": reader.optional("KEYMAN_LOG_FORMAT", _one_of("json", "console")) or "json",
        "log_level": reader.optional("KEYMAN_LOG_LEVEL", _one_of(*LOG_LEVELS)) or "info",
    }
    reader.finish()
    assert database_url is not None
    assert vault is not None
    return Settings(database_url=database_url, vault=vault, **settings)  # type: ignore[arg-type]  # parsed above


def load_database_url(environ: Mapping[str, str]) -> URL:
    """The database alone, for commands that never ask Vault; raises ConfigurationError."""
    reader = _Reader(environ)
    url = reader.required("KEYMAN_DATABASE_URL", _database_url, secret=True)
    reader.finish()
    assert url is not None
    return url


def load_services_file(environ: Mapping[str, str]) -> Path | None:
    """The file of more services alone, for commands that need the catalogue; raises ConfigurationError."""
    reader = _Reader(environ)
    path = reader.optional("KEYMAN_SERVICES_FILE", _existing_file)
    reader.finish()
    return path


def load_vault(environ: Mapping[str, str], auth: VaultAuth | None = None) -> VaultSettings:
    """Vault alone, for an operator's commands; raises ConfigurationError. `auth` is how to log in, whatever is set."""
    reader = _Reader(environ)
    vault = _vault(reader, auth)
    reader.finish()
    assert vault is not None
    return vault


def _vault(reader: _Reader, auth: str | None = None) -> VaultSettings | None:
    fallback = "VAULT_ADDR" if reader.has("VAULT_ADDR") and not reader.has("KEYMAN_VAULT_ADDR") else None
    address = reader.required(fallback or "KEYMAN_VAULT_ADDR", _address)
    auth = auth or reader.optional("KEYMAN_VAULT_AUTH", _one_of(*get_args(VaultAuth))) or "approle"
    values: dict[str, object] = {
        "namespace": reader.optional("KEYMAN_VAULT_NAMESPACE", _path_part),
        "ca_certificate": reader.optional("KEYMAN_VAULT_CACERT", _certificate_file),
        "mount": reader.optional("KEYMAN_VAULT_MOUNT", _path_part) or "transit",
        "key": reader.optional("KEYMAN_VAULT_KEY", _path_part) or "keyman",
        "timeout": reader.optional("KEYMAN_VAULT_TIMEOUT", _seconds) or 5.0,
    }
    if auth == "approle":
        values["role_id"] = reader.required("KEYMAN_VAULT_ROLE_ID", _text, secret=True)
        if reader.has_secret(WRAPPED_SECRET_ID):
            reader.excluded(SECRET_ID, by=WRAPPED_SECRET_ID)
            values["wrapped_secret_id"] = reader.required(WRAPPED_SECRET_ID, _secret, secret=True)
            values["role"] = reader.optional("KEYMAN_VAULT_ROLE", _path_part)
        else:
            values["secret_id"] = reader.required(SECRET_ID, _secret, secret=True)
    elif auth == "token":
        values["token"] = reader.required("KEYMAN_VAULT_TOKEN", _secret, secret=True)
    elif auth in ("kubernetes", "jwt"):
        values["role"] = reader.required("KEYMAN_VAULT_ROLE", _path_part)
        if auth == "kubernetes" and not reader.has("KEYMAN_VAULT_JWT_FILE"):
            values["jwt_file"] = KUBERNETES_JWT_FILE
        else:
            values["jwt_file"] = reader.required("KEYMAN_VAULT_JWT_FILE", _existing_file)
    if address is None:
        return None
    return VaultSettings(address=address, auth=auth, **values)  # type: ignore[arg-type]  # each parsed above


class _Reader:
    """Takes variables one by one and keeps what is wrong with each until `finish`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._faults: list[str] = []

    def has(self, name: str) -> bool:
        # An empty variable is how compose files and shells say "not set".
        return bool(self._environ.get(name))

    def has_secret(self, name: str) -> bool:
        return self.has(name) or self.has(f"{name}_FILE")

    def excluded(self, name: str, *, by: str) -> None:
        """A fault where `name` is set beside `by`, which takes its place."""
        if self.has_secret(name):
            self._faults.append(f"{name} and {by} are both set; keep one")

    def required(self, name: str, parse: Callable[[str], T], *, secret: bool = False) -> T | None:
        if not (self.has_secret(name) if secret else self.has(name)):
            self._faults.append(f"{name} is not set" + (f" (nor {name}_FILE)" if secret else ""))
            return None
        return self.optional(name, parse, secret=secret)

    def optional(self, name: str, parse: Callable[[str], T], *, secret: bool = False) -> T | None:
        try:
            text = self._text(name, secret=secret)
            return None if text is None else parse(text)
        except ValueError as fault:
            self._faults.append(f"{name} {fault}")
            return None

    def _text(self, name: str, *, secret: bool) -> str | None:
        if not (secret and self.has(f"{name}_FILE")):
            return self._environ.get(name) or None
        if self.has(name):
            raise ValueError(f"and {name}_FILE are both set; keep one")
        try:
            with Path(self._environ[f"{name}_FILE"]).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise ValueError("_FILE names a file that is too large to be one secret")
            text = content.decode().strip()
        except (OSError, UnicodeDecodeError):
            # `from None`: the error's own text would repeat the path, or bytes of the file.
            raise ValueError("_FILE names a file that cannot be read as text") from None
        if not text:
            raise ValueError("_FILE names an empty file")
        return text

    def finish(self) -> None:
        if self._faults:
            lines = "".join(f"\n  {fault}" for fault in self._faults)
            raise ConfigurationError(f"The settings are not right:{lines}")


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text.lower()

    return parse


def _text(text: str) -> str:
    return text


def _secret(text: str) -> Secret:
    return Secret(text.strip())


def _database_url(text: str) -> URL:
    try:
        url = make_url(text.strip())
    except (ArgumentError, ValueError):
        raise ValueError(f"is not a database URL; it starts with {' or '.join(DRIVERS)}") from None
    if url.drivername not in DRIVERS:
        raise ValueError(f"must start with {' or '.join(DRIVERS)}")
    if not url.database or url.database == ":memory:":
        raise ValueError("must name a database; one in memory would lose every key")
    _check_parameters(url)
    return url


def _check_parameters(url: URL) -> None:
    if url.get_backend_name() == "sqlite":
        if url.query:
            raise ValueError("takes nothing after a '?' for SQLite")
        return
    if "sslmode" in url.query:
        raise ValueError("says sslmode, which asyncpg spells ssl: ?ssl=require")
    if not url.query.keys() <= POSTGRESQL_PARAMETERS:
        known = ", ".join(sorted(POSTGRESQL_PARAMETERS))
        raise ValueError(f"has a parameter after the '?' that is not known here; known are {known}")
    if url.query.get("ssl", "require") not in SSL_MODES:
        raise ValueError(f"says ssl, which must be one of {', '.join(SSL_MODES)}")


def _split(text: str) -> SplitResult:
    parts = urlsplit(text)
    _ = parts.port  # raises ValueError when it is not a number
    return parts


def _address(text: str) -> str:
    try:
        parts = _split(text.strip())
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise ValueError("must be an http or https URL with a host and without credentials or a query")
    return text.strip().rstrip("/")


def _public_url(text: str) -> str:
    address = _address(text)
    if urlsplit(address).path:
        raise ValueError("must be a bare origin such as https://keys.example.com, without a path")
    return address


def _path_part(text: str) -> str:
    # hvac puts these into URLs as they are, `..` included.
    parts = text.strip("/").split("/")
    if not all(part and part.strip(".") and all(c.isalnum() or c in "-_." for c in part) for part in parts):
        raise ValueError("may hold letters, digits, '-', '_', '.' and '/' only")
    return "/".join(parts)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("must be a number of seconds") from None
    if not 0.1 <= value <= 60:
        raise ValueError("must be between 0.1 and 60 seconds")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("must be a number of requests a second") from None
    if not 0.1 <= value <= 100_000:
        raise ValueError("must be between 0.1 and 100000 requests a second")
    return value


def _existing_file(text: str) -> Path:
    path = Path(text)
    try:
        is_file = path.is_file()
    except OSError:  # a name that is too long, a directory that may not be entered
        raise ValueError("names a file that cannot be reached") from None
    if not is_file:
        raise ValueError("names a file that does not exist")
    return path


def _certificate_file(text: str) -> Path:
    path = _existing_file(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except OSError:  # OpenSSL's own errors are of this class
        raise ValueError("names a file that cannot be read as certificates in PEM") from None
    return path


def _file_for(read: Callable[[Path], object] | None) -> Callable[[str], Path]:
    def parse(text: str) -> Path:
        path = _existing_file(text)
        if read is not None:
            read(path)
        return path

    return parse


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("must be a comma-separated list of addresses or networks (CIDR)") from None
