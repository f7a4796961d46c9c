"""The group `KEYMAN_DATABASE_…`: which database, and what may follow the `?` of its URL."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from keyman.config.reader import Reader

DRIVERS = ("sqlite+aiosqlite", "postgresql+asyncpg")

POSTGRESQL_PARAMETERS = frozenset({"host", "port", "ssl", "passfile", "target_session_attrs", "krbsrvname"})
"""The parameters that may follow the `?` of a PostgreSQL URL: those of asyncpg that are text.

With any other parameter asyncpg fails at each connection, long after the start.
"""

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def read_database_url(reader: Reader) -> URL | None:
    """Read `KEYMAN_DATABASE_URL`. Returns None, and records a fault, when it is missing or invalid."""
    return reader.required("KEYMAN_DATABASE_URL", _database_url, secret=True)


def load_database_url(environ: Mapping[str, str]) -> URL:
    """Read only the database's URL, for commands that do not use Vault. Raises ConfigurationError."""
    reader = Reader(environ)
    url = read_database_url(reader)
    reader.finish()
    assert url is not None
    return url


def _database_url(raw: str) -> URL:
    try:
        url = make_url(raw.strip())
    except (ArgumentError, ValueError):
        raise ValueError(f"is not a database URL; it starts with {' or '.join(DRIVERS)}") from None
    if url.drivername not in DRIVERS:
        raise ValueError(f"must start with {' or '.join(DRIVERS)}")
    if not url.database or url.database == ":memory:":
        raise ValueError("must name a database; a database in memory would lose every key")
    _check_parameters(url)
    return url


def _check_parameters(url: URL) -> None:
    if url.get_backend_name() == "sqlite":
        if url.query:
            raise ValueError("must not have a '?' and parameters for SQLite")
        return
    if "sslmode" in url.query:
        raise ValueError("has the parameter sslmode, which asyncpg calls ssl; write ?ssl=require")
    if not url.query.keys() <= POSTGRESQL_PARAMETERS:
        known = ", ".join(sorted(POSTGRESQL_PARAMETERS))
        raise ValueError(f"has an unknown parameter after the '?'; the known ones are {known}")
    if url.query.get("ssl", "require") not in SSL_MODES:
        raise ValueError(f"has an invalid parameter ssl; it must be one of {', '.join(SSL_MODES)}")
