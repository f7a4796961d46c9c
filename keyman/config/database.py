"""The group `KEYMAN_DATABASE_…`: which database, and how to connect to it.

`read_database_url` returns one URL that says all of it, so that whatever opens a connection needs only the URL. What
the other variables say, and what platforms write differently, becomes a parameter after its `?`:

    ssl             one of SSL_MODES
    channel_binding `require`, if the URL given has it. asyncpg cannot do it, see `_mode`
    sslrootcert     the path of the CA's certificate, or SYSTEM_CAS
    password_file   the path of a file with the password, which is read again for each new connection
    search_path     the schemas in which PostgreSQL looks for a table
    pooled          one of POOLED, `auto` without it: whether connections go through a pooler such as PgBouncer
    host, port, passfile, target_session_attrs, krbsrvname   as asyncpg takes them
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from keyman.config.reader import Reader, certificate_file, one_of, text

SCHEMES = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgresql+asyncpg": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}
"""What a URL may begin with, and the driver that it means. Platforms write `postgres://` and `postgresql://`."""

PASSED_ON = frozenset({"host", "port", "passfile", "target_session_attrs", "krbsrvname"})
"""Parameters of a PostgreSQL URL that asyncpg takes as they are: those that are text.

With any other parameter asyncpg fails at each connection, long after the start.
"""

POSTGRESQL_PARAMETERS = PASSED_ON | {"ssl", "sslmode", "sslrootcert", "channel_binding", "options", "pgbouncer"}
"""The parameters that may follow the `?` of a PostgreSQL URL."""

POOLED = ("auto", "on", "off")

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
"""From the weakest to the strongest."""

UNVERIFIED = SSL_MODES[:3]
"""The modes with which a connection may be without TLS, and which verify nothing."""

DOES_NOT_VERIFY = "does not verify the server; write sslmode=verify-full"

SYSTEM_CAS = "system"
"""As with libpq, `sslrootcert=system` means the CAs of the system, and verifies the server's name."""

_SEARCH_PATH = r"\s*(?:-c\s*|--)search_path=((?:[^\s\\]|\\.)+)\s*"

ENCODE = "percent-encode the characters @ : / % ? # in the user and the password, or set KEYMAN_DATABASE_PASSWORD"


def read_database_url(reader: Reader) -> URL | None:
    """Read `KEYMAN_DATABASE_URL` and the variables that add to it, into one URL.

    Returns None, and records a fault, when a variable is missing or invalid.
    """
    url = reader.required("KEYMAN_DATABASE_URL", _database_url, secret=True)
    password = reader.optional("KEYMAN_DATABASE_PASSWORD", text, secret=True)
    password_file = reader.file_of("KEYMAN_DATABASE_PASSWORD")
    certificate = reader.optional("KEYMAN_DATABASE_CACERT", certificate_file)
    pooled = reader.optional("KEYMAN_DATABASE_POOLED", one_of(*POOLED))
    if url is None:
        return None
    if url.get_backend_name() == "sqlite":
        for name, value in (("PASSWORD", password), ("CACERT", certificate), ("POOLED", pooled)):
            if value is not None:
                reader.refuse(f"KEYMAN_DATABASE_{name}", "is only for PostgreSQL, and KEYMAN_DATABASE_URL names SQLite")
        return url
    if pooled is not None:
        url = url.update_query_dict({"pooled": pooled})
    if password_file is not None:
        url = url.update_query_dict({"password_file": str(password_file)})
    elif password is not None:
        url = url.set(password=password)
    return url if certificate is None else _with_certificate(reader, url, certificate)


def load_database_url(environ: Mapping[str, str]) -> URL:
    """Read only the database's URL, for commands that do not use Vault. Raises ConfigurationError."""
    reader = Reader(environ)
    url = read_database_url(reader)
    reader.finish()
    assert url is not None
    return url


def _with_certificate(reader: Reader, url: URL, certificate: Path) -> URL:
    """Return the URL with the CA's certificate. Without a mode in the URL, the server is verified fully."""
    if url.query.get("ssl") in UNVERIFIED:
        reader.refuse("KEYMAN_DATABASE_CACERT", f"is set, but the sslmode in KEYMAN_DATABASE_URL {DOES_NOT_VERIFY}")
    return url.update_query_dict({"ssl": "verify-full", **url.query, "sslrootcert": str(certificate)})


def _database_url(raw: str) -> URL:
    scheme, _, rest = raw.partition("://")
    if scheme not in SCHEMES:
        raise ValueError(f"must start with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    if scheme.startswith("postgres") and rest.count("@") > 1:
        raise ValueError(f"has more than one '@'; {ENCODE}")
    try:
        unquote(raw, errors="strict")  # SQLAlchemy replaces what is not UTF-8
        url = make_url(raw).set(drivername=SCHEMES[scheme])
    except (ArgumentError, ValueError):
        raise ValueError(f"is not a database URL; {ENCODE}") from None
    if not url.database or url.database == ":memory:":
        raise ValueError("must name a database; a database in memory would lose every key")
    if url.get_backend_name() == "postgresql":
        return url.set(query=_parameters(url))
    if url.query:
        raise ValueError("must not have a '?' and parameters for SQLite")
    return url


def _parameters(url: URL) -> dict[str, str | tuple[str, ...]]:
    """Return the parameters of a PostgreSQL URL as this module's first lines describe them. Raises ValueError."""
    if not url.query.keys() <= POSTGRESQL_PARAMETERS:
        known = ", ".join(sorted(POSTGRESQL_PARAMETERS))
        raise ValueError(f"has an unknown parameter after the '?'; the known ones are {known}")
    parameters = {name: value for name, value in url.query.items() if name in PASSED_ON}
    mode, authorities = _mode(url), _authorities(url)
    if authorities is not None:
        if mode in UNVERIFIED:
            raise ValueError(f"has a parameter sslrootcert, but its sslmode {DOES_NOT_VERIFY}")
        mode = "verify-full" if mode is None or authorities == SYSTEM_CAS else mode
        parameters["sslrootcert"] = authorities
    if mode is not None:
        parameters["ssl"] = mode
    if url.query.get("channel_binding") == "require":
        parameters["channel_binding"] = "require"
    if "pgbouncer" in url.query:
        if url.query["pgbouncer"] != "true":
            raise ValueError("has an invalid parameter pgbouncer; it must be true")
        parameters["pooled"] = "on"
    if "options" in url.query:
        parameters["search_path"] = _search_path(url.query["options"])
    return parameters


def _mode(url: URL) -> str | None:
    """Return the TLS mode of a URL: of `sslmode`, as PostgreSQL's own programs call it, or of asyncpg's `ssl`.

    asyncpg cannot do channel binding. If a URL requires it, keyman at least requires TLS. `keyman serve` warns unless
    the server is verified, which protects from the same attack.
    """
    given = {url.query[name] for name in ("ssl", "sslmode") if name in url.query}
    if not given <= set(SSL_MODES) or len(given) > 1:
        raise ValueError(f"has an invalid parameter sslmode; it must be one of {', '.join(SSL_MODES)}")
    mode = str(given.pop()) if given else None
    binding = url.query.get("channel_binding", "prefer")
    if binding not in ("disable", "prefer", "require"):
        raise ValueError("has an invalid parameter channel_binding; it must be one of disable, prefer, require")
    if binding == "require" and (mode is None or mode in UNVERIFIED):
        return "require"
    return mode


def _authorities(url: URL) -> str | None:
    """Return SYSTEM_CAS or the path of a file with certificates, or None when the URL has no `sslrootcert`."""
    authorities = url.query.get("sslrootcert")
    if authorities in (None, SYSTEM_CAS):
        return None if authorities is None else SYSTEM_CAS
    try:
        return str(certificate_file(str(authorities)))
    except ValueError as fault:
        raise ValueError(f"has a parameter sslrootcert that {fault}") from None


def _search_path(options: str | tuple[str, ...]) -> str:
    """Return the schemas of `-csearch_path=…` or `-c search_path=…`. libpq escapes spaces in them by a backslash."""
    shape = re.fullmatch(_SEARCH_PATH, options) if isinstance(options, str) else None
    if shape is None:
        raise ValueError("has a parameter options that is not -csearch_path=…; keyman takes no other option")
    return re.sub(r"\\(.)", r"\1", shape[1])
