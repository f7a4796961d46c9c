"""Settings: read once from the environment into a frozen value. One error names every invalid variable.

Each default stands in one place: the class that holds the setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from sqlalchemy.engine import URL

from keyman.config import network
from keyman.config.checks import OF_CHECKS, CheckSettings, read_checks
from keyman.config.database import read_database_url
from keyman.config.gateway import OF_GATEWAY, GatewaySettings, read_gateway
from keyman.config.identity import OF_JWT, JwtSettings, read_jwt
from keyman.config.metrics import METRICS_LISTEN, Listen, listen
from keyman.config.network import Network
from keyman.config.oidc import OF_OIDC, OidcSettings, read_oidc
from keyman.config.reader import Reader, certificate_file, existing_file, number, one_of, whole_number
from keyman.config.vault import VaultSettings, read_vault
from keyman.loopback import is_loopback

LOG_LEVELS = ("debug", "info", "warning", "error")

OF_BOTH_PLANES = OF_JWT | {
    "KEYMAN_PUBLIC_URL",  # the resolver makes portal links with it
    "KEYMAN_ROOT_PATH",
    "KEYMAN_TRUSTED_PROXIES",
    "KEYMAN_MAX_QUEUE",
    "KEYMAN_DRAIN",
    METRICS_LISTEN,
    "KEYMAN_LOG_FORMAT",
    "KEYMAN_LOG_LEVEL",
}
"""The variables that all planes use, beside those of the database and of Vault."""

OF_MANAGEMENT = frozenset(
    {
        "KEYMAN_SIGNUP",
        "KEYMAN_PASSWORDS",
        "KEYMAN_SERVICES_FILE",
        "KEYMAN_COOKIE_NAME",
        "KEYMAN_CORS_ORIGINS",
        "KEYMAN_HSTS",
        "KEYMAN_MAX_KEYS",
        "KEYMAN_MAX_WRITES",
        "KEYMAN_DUPLICATES",
        "KEYMAN_GATEWAY_PUBLIC_URL",
        *OF_OIDC,
        *OF_CHECKS,
    }
)
"""The variables that only the management plane uses."""

OF_RESOLVER = frozenset({"KEYMAN_RESOLVE_RATE"})
"""The variables that only the resolver uses."""

OF_THE_GATEWAY = OF_GATEWAY | {"KEYMAN_SERVICES_FILE"}
"""The variables that the gateway uses beside those of all planes."""

METRICS_ON_PLANE = "_KEYMAN_METRICS_ON_PLANE"
"""The variable by which `keyman dev` lets a plane answer `/metrics` on its own port."""

ReadServices = Callable[[Path], object]
"""Checks the services file, and raises ValueError when it is invalid."""


@dataclass(frozen=True)
class Settings:
    """Every setting of a plane.

    `resolve_rate` is in requests per second: the limit of one application in one resolver process. `max_keys` is the
    number of keys that one owner can have, and `max_writes` the number of writes a minute of one account in one
    process; 0 is no limit. `max_queue` is the number of requests that can wait in one process.
    `gateway_public_url` is the address at which people's own programs reach the gateway.
    `drain` is in seconds: how long a plane goes on accepting connections after SIGTERM. Without `metrics_listen`, the
    metrics are served on the plane's address in `keyman.config.metrics.DEFAULTS`.
    """

    database_url: URL
    vault: VaultSettings
    public_url: str | None = None
    signup_open: bool = False
    passwords_on: bool = True
    services_file: Path | None = None
    trusted_proxies: tuple[Network, ...] = ()
    resolve_rate: float = 100.0
    max_keys: int = 1000
    max_writes: int = 300
    duplicates_on: bool = True
    max_queue: int = 512
    drain: float = 5.0
    metrics_listen: Listen | None = None
    metrics_on_plane: bool = False
    oidc: OidcSettings | None = None
    gateway_public_url: str | None = None
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    checks: CheckSettings | None = None
    log_format: Literal["json", "console"] = "json"
    log_level: str = "info"
    root_path: str = ""
    cookie_name: str = "keyman_session"
    cors_origins: frozenset[str] = frozenset()
    jwt: JwtSettings | None = None
    jwt_ca_certificate: Path | None = None
    hsts: str = "max-age=63072000"  # two years, without includeSubDomains: the names below it may be other people's

    @property
    def cookies_are_secure(self) -> bool:
        """False only when browsers reach keyman over plain http on a loopback address."""
        if self.public_url is None:
            return True
        parts = urlsplit(self.public_url)
        return not (parts.scheme == "http" and is_loopback(parts.hostname or ""))

    @property
    def is_https(self) -> bool:
        """True when browsers reach keyman over https."""
        return self.public_url is not None and urlsplit(self.public_url).scheme == "https"

    @property
    def public_origin(self) -> str | None:
        """The public URL as browsers send it in `Origin`."""
        return None if self.public_url is None else network.without_default_port(self.public_url)

    @property
    def pages_url(self) -> str | None:
        """The address below which browsers find the pages, without a slash at its end."""
        return None if self.public_url is None else f"{self.public_url}{self.root_path}"

    @property
    def session_cookie(self) -> str:
        """The name of the session cookie.

        A browser accepts the prefix `__Host-` only from this host over https, so no neighbour can plant such a cookie.
        Below a root path the cookie is for that path, which that prefix forbids.
        """
        if not self.is_https:
            return self.cookie_name
        return f"__Secure-{self.cookie_name}" if self.root_path else f"__Host-{self.cookie_name}"


def load(environ: Mapping[str, str], read_services: ReadServices | None = None) -> Settings:
    """Read every setting of a plane. Raises ConfigurationError, which names every invalid variable.

    `read_services` is a parameter because this package does not know what a services file contains.
    """
    reader = Reader(environ)
    database_url = read_database_url(reader)
    vault = read_vault(reader)
    read = _read_own(reader, read_services)
    if read["oidc"] is not None and not reader.has("KEYMAN_PUBLIC_URL"):
        reader.refuse("KEYMAN_OIDC_ISSUER", "needs KEYMAN_PUBLIC_URL, to which the provider sends browsers back")
    reader.finish()
    assert database_url is not None
    assert vault is not None
    # A variable that is not set keeps the default of Settings.
    given = {name: value for name, value in read.items() if value is not None}
    given["metrics_on_plane"] = METRICS_ON_PLANE in environ
    return Settings(database_url, vault, **given)  # type: ignore[arg-type]  # each value was parsed for its field


def check_own(environ: Mapping[str, str], read_services: ReadServices | None = None) -> None:
    """Check the variables of the planes without those of the database and of Vault. Raises ConfigurationError."""
    reader = Reader(environ)
    _read_own(reader, read_services)
    reader.finish()


def _read_own(reader: Reader, read_services: ReadServices | None) -> dict[str, object]:
    """Read every setting but the database and Vault, by its field. None is one that is not set, or invalid."""
    signup = reader.optional("KEYMAN_SIGNUP", one_of("open", "closed"))
    passwords = reader.optional("KEYMAN_PASSWORDS", one_of("on", "off"))
    duplicates = reader.optional("KEYMAN_DUPLICATES", one_of("on", "off"))
    jwt, oidc = read_jwt(reader), read_oidc(reader)
    if jwt is not None and oidc is not None and jwt.audience == oidc.client_id:
        reader.refuse("KEYMAN_JWT_AUDIENCE", "must not be KEYMAN_OIDC_CLIENT_ID: an ID token is no access token")
    return {
        "public_url": reader.optional("KEYMAN_PUBLIC_URL", network.public_url),
        "signup_open": None if signup is None else signup == "open",
        "passwords_on": None if passwords is None else passwords == "on",
        "services_file": reader.optional("KEYMAN_SERVICES_FILE", _file_for(read_services)),
        "trusted_proxies": reader.optional("KEYMAN_TRUSTED_PROXIES", network.networks),
        "root_path": reader.optional("KEYMAN_ROOT_PATH", network.root_path),
        "cookie_name": reader.optional("KEYMAN_COOKIE_NAME", network.cookie_name),
        "cors_origins": reader.optional("KEYMAN_CORS_ORIGINS", network.origins),
        "jwt": jwt,
        "jwt_ca_certificate": reader.optional("KEYMAN_JWT_CACERT", certificate_file),
        "hsts": reader.even_empty("KEYMAN_HSTS", network.hsts),
        "resolve_rate": reader.optional("KEYMAN_RESOLVE_RATE", number(0.1, 100_000, "requests a second")),
        "max_keys": reader.optional("KEYMAN_MAX_KEYS", whole_number(0, 1_000_000, "keys")),
        "max_writes": reader.optional("KEYMAN_MAX_WRITES", whole_number(0, 1_000_000, "writes a minute")),
        "duplicates_on": None if duplicates is None else duplicates == "on",
        "max_queue": reader.optional("KEYMAN_MAX_QUEUE", whole_number(1, 100_000, "requests")),
        "drain": reader.optional("KEYMAN_DRAIN", number(0, 300, "seconds")),
        "metrics_listen": reader.optional(METRICS_LISTEN, listen),
        "log_format": reader.optional("KEYMAN_LOG_FORMAT", one_of("json", "console")),
        "log_level": reader.optional("KEYMAN_LOG_LEVEL", one_of(*LOG_LEVELS)),
        "oidc": oidc,
        "gateway_public_url": reader.optional("KEYMAN_GATEWAY_PUBLIC_URL", network.public_url),
        "gateway": read_gateway(reader),
        "checks": read_checks(reader),
    }


def load_services_file(environ: Mapping[str, str]) -> Path | None:
    """Read only `KEYMAN_SERVICES_FILE`, for commands that need the catalogue. Raises ConfigurationError."""
    reader = Reader(environ)
    path = reader.optional("KEYMAN_SERVICES_FILE", existing_file)
    reader.finish()
    return path


def _file_for(read: ReadServices | None) -> Callable[[str], Path]:
    def parse(raw: str) -> Path:
        path = existing_file(raw)
        if read is not None:
            read(path)
        return path

    return parse
