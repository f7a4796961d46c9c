"""Opens connections to PostgreSQL: with which password, which TLS and which start-up parameters."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlencode

import asyncpg
from sqlalchemy.engine import URL

from keyman.config.database import SYSTEM_CAS
from keyman.config.reader import read_secret_file

OURS = ("ssl", "sslrootcert", "channel_binding", "password_file", "search_path")
"""The parameters of a URL of `keyman.config.database` that this module handles. asyncpg gets the others."""

VERIFYING = ("verify-ca", "verify-full")


class Connector:
    """Opens connections to the database of a URL. The result of a call is a new connection.

    Files are read again for each connection, so that a password or a CA can be replaced while keyman runs. `settings`
    are the start-up parameters of each session.
    """

    def __init__(self, url: URL, settings: dict[str, str]) -> None:
        given = {name: str(url.query[name]) for name in OURS if name in url.query}
        self._mode = given.get("ssl")
        self._authorities = given.get("sslrootcert")
        self._password_file = Path(given["password_file"]) if "password_file" in given else None
        search_path = {"search_path": given["search_path"]} if "search_path" in given else {}
        self._settings = settings | search_path

    async def __call__(self, **options: object) -> asyncpg.Connection:
        """Open a connection. `options` are those of `asyncpg.connect`. Raises asyncpg's errors and OSError."""
        password = {} if self._password_file is None else {"password": _read_password(self._password_file)}
        return await asyncpg.connect(**(options | password | self._tls()), server_settings=self._settings)

    def _tls(self) -> dict[str, object]:
        """Return asyncpg's options for TLS."""
        if self._mode is None:
            return {}
        if self._authorities not in (None, SYSTEM_CAS):
            # asyncpg takes a certificate only in a DSN. Everything else in `options` counts more than the DSN.
            return {"dsn": f"postgresql://?{urlencode({'sslmode': self._mode, 'sslrootcert': self._authorities})}"}
        if self._mode in VERIFYING and (self._authorities == SYSTEM_CAS or not _has_root_certificate()):
            return {"ssl": _system_context()}
        return {"ssl": self._mode}


def _read_password(file: Path) -> str:
    try:
        return read_secret_file(file)
    except ValueError:
        # The file is being replaced, or is missing. keyman tries again with the next connection.
        raise OSError("the file with the database's password cannot be read") from None


def _has_root_certificate() -> bool:
    """Return True if the home directory has the file in which libpq and asyncpg look for a CA."""
    try:
        return (Path.home() / ".postgresql" / "root.crt").exists()
    except (OSError, RuntimeError):  # there is no home directory, or this user may not look into it
        return False


def _system_context() -> ssl.SSLContext:
    """Return a context that verifies the server against the CAs of the system, which asyncpg never does.

    It always checks the server's name: anyone can get a certificate of these CAs for some name.
    """
    # Not ssl.create_default_context: it writes the keys of each connection to the file that SSLKEYLOGFILE names.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    context.set_alpn_protocols(["postgresql"])
    return context
