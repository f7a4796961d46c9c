"""Creates certificates and passwords, each in the volume of its user."""

from __future__ import annotations

from pathlib import Path

from stack.certificates import Pair, authority, is_current, issue
from stack.files import PRIVATE, SHARED, password, write

DATABASE_USERS = {
    "migration": "keyman_owner",
    "management": "keyman_management",
    "resolver": "keyman_resolver",
    "gateway": "keyman_gateway",
}
"""The users of the database, by volume. docker/postgres/roles.sh creates them."""


def prepare(volumes: Path, hosts: list[str]) -> None:
    """Create what is missing, and renew certificates that expire soon or are for other hosts.

    `hosts` is what clients call the two proxies with TLS. May be run again and again; what is current is left as it is.
    """
    trusted = authority(volumes / "authority")
    write(volumes / "public" / "ca.crt", trusted.certificate_pem(), SHARED)
    _certificate(trusted, volumes / "vault" / "tls.pem", ["vault", "localhost", "127.0.0.1"])
    for proxy in ("proxy", "gateway-proxy"):
        _certificate(trusted, volumes / proxy / "tls.pem", hosts)
    password(volumes / "grafana" / "admin_password", SHARED)
    password(volumes / "database" / "superuser_password", SHARED)
    for volume, user in DATABASE_USERS.items():
        # PostgreSQL reads each password from a separate volume, and each user reads only its own.
        word = password(volumes / "database" / f"{user}_password", SHARED)
        write(
            volumes / volume / "database_url", f"postgresql+asyncpg://{user}:{word}@database/keyman".encode(), PRIVATE
        )


def _certificate(trusted: Pair, path: Path, names: list[str]) -> None:
    """Return a certificate followed by its key, for one file, so that the two always belong together."""
    if path.exists() and is_current(path.read_bytes(), trusted, names):
        return
    pair = issue(trusted, names)
    write(path, pair.certificate_pem() + pair.key_pem(), SHARED)
