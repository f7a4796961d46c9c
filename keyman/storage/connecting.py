"""Opens connections to PostgreSQL: with which password, which TLS, and which parameters of the session.

A direct connection has its parameters from its start on, and prepared statements. A pooler in transaction mode, such as
PgBouncer, gives each transaction some connection of its own. So a session has no state there: keyman sets the
parameters in each transaction, and prepares only unnamed statements, within a transaction.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

import asyncpg
from sqlalchemy.engine import URL

from keyman.config.database import SYSTEM_CAS
from keyman.config.reader import read_secret_file
from keyman.errors import KeymanError

OURS = ("ssl", "sslrootcert", "channel_binding", "password_file", "search_path", "pooled")
"""The parameters of a URL of `keyman.config.database` that this module handles. asyncpg gets the others."""

START_UP_REFUSED = "08P01"
"""SQLSTATE of a pooler that does not know a start-up parameter."""

_IDLE = "idle_in_transaction_session_timeout"
_CHECK = f"SELECT 1 / (current_setting('{_IDLE}')::interval = interval '{{}} ms')::integer"
"""Fails with 22012 if the start-up parameters do not count. As one simple query, it also works through any pooler."""

VERIFYING = ("verify-ca", "verify-full")


class PoolerFound(KeymanError):
    """A connection that was to be direct goes through a pooler."""


class PooledConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection through a pooler. Each transaction begins with `settings`, statements of SQL, in the same query."""

    settings = ""

    async def execute(
        self,
        query: str,
        *args: object,
        timeout: float | None = None,  # noqa: ASYNC109  # asyncpg's own parameter
    ) -> str:
        if not query.startswith("BEGIN"):
            return str(await super().execute(query, *args, timeout=timeout))
        try:
            begin, _, more = query.partition(";")  # what the caller sets counts more
            return str(await super().execute(f"{begin}; {self.settings} {more}", timeout=timeout))
        except asyncpg.PostgresError:
            # The pooler's connection may have an open transaction now, which asyncpg does not know.
            self.terminate()
            raise


def is_pooled(url: URL) -> bool | None:
    """Return whether a URL's connections go through a pooler, or None if keyman finds out."""
    return {"on": True, "off": False}.get(str(url.query.get("pooled")))


class Connector:
    """Opens connections to the database of a URL. The result of a call is a new connection.

    Files are read again for each connection, so that a password or a CA can be replaced while keyman runs. `settings`
    are the parameters of each session. With `pooled`, they are set in each transaction.
    """

    def __init__(self, url: URL, settings: Mapping[str, str], *, pooled: bool) -> None:
        self._pooled = pooled
        self._detects = not pooled and is_pooled(url) is None
        self._found = False
        given = {name: str(url.query[name]) for name in OURS if name in url.query}
        self._mode = given.get("ssl")
        self._authorities = given.get("sslrootcert")
        self._password_file = Path(given["password_file"]) if "password_file" in given else None
        self._search_path = given.get("search_path")
        self._settings = settings

    async def __call__(self, **options: object) -> asyncpg.Connection:
        """Open a connection. `options` are those of `asyncpg.connect`.

        Raises asyncpg's errors and OSError, and PoolerFound if there is a pooler which the URL says nothing about.
        """
        password = {} if self._password_file is None else {"password": _read_password(self._password_file)}
        options = options | password | self._tls()
        return await (self._open_pooled(options) if self._pooled else self._open(options))

    async def _open(self, options: dict[str, object]) -> asyncpg.Connection:
        if self._found:
            raise PoolerFound
        search_path = {} if self._search_path is None else {"search_path": self._search_path}
        try:
            connection = await asyncpg.connect(**options, server_settings={**self._settings, **search_path})
            if self._detects:
                try:
                    await connection.execute(_CHECK.format(self._settings[_IDLE]))
                except BaseException:  # also a cancellation: nobody else knows this connection
                    connection.terminate()
                    raise
        except asyncpg.PostgresError as fault:
            if self._detects and fault.sqlstate in (START_UP_REFUSED, "22012"):
                self._found = True
                raise PoolerFound from None
            raise
        return connection

    async def _open_pooled(self, options: dict[str, object]) -> asyncpg.Connection:
        connection = await asyncpg.connect(**options, statement_cache_size=0, connection_class=PooledConnection)
        local = [f"SET LOCAL {name} = '{value}';" for name, value in self._settings.items()]
        if self._search_path is not None:
            local.append(f"SELECT set_config('search_path', {_literal(self._search_path)}, true);")
        connection.settings = " ".join(local)
        return connection

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


def _literal(word: str) -> str:
    doubled = word.replace("'", "''").replace("\\", "\\\\")
    return f"E'{doubled}'"


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
