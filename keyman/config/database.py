"""The group `KEYMAN_DATABASE_…`: which database, and what may follow the `?` of its URL."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from keyman.config.reader import Reader

DRIVERS = ("sqlite+aiosqlite", "postgresql+asyncpg")

POSTGRESQL_PARAMETERS = frozenset({"host", "port", "ssl", "passfile", "target_session_attrs", "krbsrvname"})
"""What may follow the `?` of a PostgreSQL URL: the text parameters of asyncpg. It fails on any other at each
connection, long after the start.
"""

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def read_database_url(reader: Reader) -> URL | None:
    """Read `KEYMAN_DATABASE_URL`; None when it is at fault."""
    return reader.required("KEYMAN_DATABASE_URL", _database_url, secret=True)


def load_database_url(environ: Mapping[str, str]) -> URL:
    """Read only the database's URL, for commands that never ask Vault. Raises ConfigurationError."""
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
        raise ValueError(f"has an unknown parameter after the '?'; known are {known}")
    if url.query.get("ssl", "require") not in SSL_MODES:
        raise ValueError(f"says ssl, which must be one of {', '.join(SSL_MODES)}")
