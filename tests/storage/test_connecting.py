"""Connections to PostgreSQL: TLS, passwords and start-up parameters, on a real server with TLS."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url

from keyman import migrations
from keyman.config.database import load_database_url
from keyman.errors import ConfigurationError, DatabaseUnavailable
from keyman.keys.deployment import SCHEMA_REVISION
from keyman.migrations.rights import Planes
from keyman.storage.connecting import Connector
from keyman.storage.statements import scalar
from keyman.storage.transactions import Database
from tests.config.test_settings import CERTIFICATE
from tests.support.database import PostgresServer, postgres_absence, postgres_server
from tests.support.needs import require

pytestmark = pytest.mark.anyio

_ENCRYPTED = scalar(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"), bool)
_SEARCH_PATH = scalar(text("SHOW search_path"), str)
_SCHEMA = scalar(text("SELECT current_schema()"), str)


class TlsServer(NamedTuple):
    """A PostgreSQL with TLS, and the certificate that is its own CA."""

    server: PostgresServer
    ca: Path
    database: URL


@pytest.fixture(scope="module")
def tls_server() -> Iterator[TlsServer]:
    require("postgres", postgres_absence() or (None if shutil.which("openssl") else "openssl is not installed"))
    with postgres_server() as server:
        ca = server.enable_tls()
        yield TlsServer(server, ca, make_url(server.create_database("keyman")))


class Account(NamedTuple):
    """A database user, and variables that name it. `{host}` is `localhost`, as in the certificate."""

    server: PostgresServer
    name: str
    password: str

    def url(self, query: str = "", *, host: str = "localhost", password: str | None = None) -> str:
        word = self.password if password is None else password
        return f"postgres://{self.name}:{word}@{host}:{self.server.port}/keyman{query}"

    def set_password(self, password: str) -> None:
        doubled = password.replace("'", "''")
        self.server.execute(f"ALTER ROLE {self.name} PASSWORD '{doubled}'")

    def disconnect(self) -> None:
        """End every connection of this user, as a server does that restarts."""
        mine = f"usename = '{self.name}'"
        self.server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE " + mine)  # noqa: S608  # ours


@pytest.fixture
def tls_account(tls_server: TlsServer) -> Account:
    found = Account(tls_server.server, f"user_{token_hex(6)}", token_hex(16))
    found.server.execute(f"CREATE ROLE {found.name} LOGIN PASSWORD '{found.password}'")
    return found


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home directory without `.postgresql/root.crt`."""
    monkeypatch.setenv("HOME", str(tmp_path))


async def encrypted(**variables: str) -> bool:
    """Connect, and return whether the connection has TLS."""
    db = Database(load_database_url({f"KEYMAN_DATABASE_{name}": variables[name] for name in variables}))
    try:
        async with db.read() as connection:
            return await _ENCRYPTED.one(connection)
    finally:
        await db.close()


async def refusal(**variables: str) -> str:
    """Return what keeps keyman from connecting."""
    with pytest.raises(DatabaseUnavailable) as raised:
        await encrypted(**variables)
    return raised.value.kind


async def test_the_urls_of_platforms_connect_with_tls(tls_account: Account) -> None:
    assert await encrypted(URL=tls_account.url("?sslmode=require&channel_binding=require"))
    assert await encrypted(URL=tls_account.url("?sslmode=require"))
    assert await encrypted(URL=tls_account.url())  # `prefer`, as with PostgreSQL's own programs
    assert not await encrypted(URL=tls_account.url("?sslmode=disable"))


async def test_a_ca_verifies_certificate_and_name_without_a_file_in_the_home_directory(
    tls_account: Account, tls_server: TlsServer, tmp_path: Path
) -> None:
    ca = str(tls_server.ca)
    for query in ("", "?sslmode=verify-full", f"?sslmode=verify-full&sslrootcert={ca}", "?sslmode=verify-ca"):
        assert await encrypted(URL=tls_account.url(query), CACERT=ca)
    assert await encrypted(URL=tls_account.url(f"?sslmode=verify-full&sslrootcert={ca}"))
    assert await refusal(URL=tls_account.url(host="127.0.0.1"), CACERT=ca) == "SSLCertVerificationError"
    assert await encrypted(URL=tls_account.url("?sslmode=verify-ca", host="127.0.0.1"), CACERT=ca)
    other = tmp_path / "other.pem"
    other.write_text(CERTIFICATE)
    assert await refusal(URL=tls_account.url(), CACERT=str(other)) == "SSLCertVerificationError"


@pytest.mark.parametrize("mode", ["verify-full", "verify-ca"])
async def test_without_a_ca_those_of_the_system_count(
    mode: str, tls_account: Account, tls_server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tls_account.url(f"?sslmode={mode}")
    assert await refusal(URL=url) == "SSLCertVerificationError"
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_server.ca))  # as if the system knew this CA
    assert await encrypted(URL=url)
    assert await encrypted(URL=tls_account.url("?sslrootcert=system"))
    # A public CA gives anyone a certificate for some name.
    assert await refusal(URL=tls_account.url(f"?sslmode={mode}", host="127.0.0.1")) == "SSLCertVerificationError"


async def test_the_file_of_libpq_in_the_home_directory_still_counts(
    tls_account: Account, tls_server: TlsServer, tmp_path: Path
) -> None:
    (tmp_path / ".postgresql").mkdir()
    shutil.copy(tls_server.ca, tmp_path / ".postgresql" / "root.crt")
    assert await encrypted(URL=tls_account.url("?sslmode=verify-full"))


async def test_a_ca_that_is_replaced_counts_from_the_next_connection_on(
    tls_account: Account, tls_server: TlsServer, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(CERTIFICATE)
    db = Database(load_database_url({"KEYMAN_DATABASE_URL": tls_account.url(), "KEYMAN_DATABASE_CACERT": str(ca)}))
    try:
        with pytest.raises(DatabaseUnavailable):
            async with db.read():
                pass
        shutil.copy(tls_server.ca, ca)
        async with db.read() as connection:
            assert await _ENCRYPTED.one(connection)
    finally:
        await db.close()


@pytest.mark.parametrize("special", [*"@:/%?# ", "%41", "@:/%?#&=+"])
async def test_a_password_may_contain_anything(special: str, tls_account: Account) -> None:
    word = f"before{special}after"
    tls_account.set_password(word)
    url = URL.create("postgresql", tls_account.name, word, "localhost", tls_account.server.port, "keyman")
    assert await encrypted(URL=url.render_as_string(hide_password=False))
    assert await encrypted(URL=tls_account.url(password="wrong"), PASSWORD=word)


async def test_a_password_that_is_rotated_counts_from_the_next_connection_on(
    tls_account: Account, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(f"{tls_account.password}\n")
    db = Database(
        load_database_url(
            {"KEYMAN_DATABASE_URL": tls_account.url(password=""), "KEYMAN_DATABASE_PASSWORD_FILE": str(file)}
        )
    )
    try:
        async with db.read() as connection:
            assert await _ENCRYPTED.one(connection)
        tls_account.set_password("new-word")
        tls_account.disconnect()
        with pytest.raises(DatabaseUnavailable) as raised:
            async with db.read():
                pass
        assert "28P01" in raised.value.kind
        file.unlink()  # while it is being replaced
        with pytest.raises(DatabaseUnavailable):
            async with db.read():
                pass
        file.write_text("new-word")
        async with db.read() as connection:
            assert await _ENCRYPTED.one(connection)
    finally:
        await db.close()


async def test_a_schema_of_its_own_is_used_by_upgrade_and_planes(tls_account: Account) -> None:
    schema = f"Schema of {tls_account.name}"
    tls_account.server.execute(f'CREATE SCHEMA "{schema}" AUTHORIZATION {tls_account.name}', "keyman")
    escaped = f'"{schema}"'.replace(" ", "\\ ")
    query = URL.create("x", database="x", query={"options": f"-csearch_path={escaped}"}).render_as_string()
    url = load_database_url({"KEYMAN_DATABASE_URL": tls_account.url(query[query.index("?") :])})
    planes = Planes(f"m_{tls_account.name}", f"r_{tls_account.name}", f"g_{tls_account.name}")
    for plane in planes:
        tls_account.server.execute(f"CREATE ROLE {plane} LOGIN PASSWORD '{tls_account.password}'")
    assert await migrations.upgrade(url, planes) == (None, SCHEMA_REVISION)
    assert await migrations.differences(url) == []
    assert tls_account.server.execute("SELECT to_regclass('public.api_keys') IS NULL", "keyman") == "t"
    for plane in planes:
        db = Database(url.set(username=plane))
        try:
            async with db.read() as connection:
                assert await _SEARCH_PATH.one(connection) == f'"{schema}"'
                assert await _SCHEMA.one(connection) == schema
        finally:
            await db.close()


async def test_a_user_without_rights_on_the_schema_is_answered_with_the_grant(
    tls_account: Account, tls_server: TlsServer
) -> None:
    name = f"db_{tls_account.name}"
    tls_account.server.create_database(name)
    tls_account.server.execute("ALTER SCHEMA public OWNER TO postgres", name)
    url = load_database_url({"KEYMAN_DATABASE_URL": tls_account.url()}).set(database=name)
    grant = f"GRANT USAGE, CREATE ON SCHEMA public TO {tls_account.name};"
    with pytest.raises(ConfigurationError) as raised:
        await migrations.upgrade(url)
    assert str(raised.value).endswith(grant)
    tls_account.server.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC", name)
    with pytest.raises(ConfigurationError) as raised:
        await migrations.upgrade(url)
    assert str(raised.value).endswith(grant)
    tls_account.server.execute(grant, name)
    assert await migrations.upgrade(url) == (None, SCHEMA_REVISION)
    # Tables that exist need no new right.
    tls_account.server.execute(f"REVOKE CREATE ON SCHEMA public FROM {tls_account.name}", name)
    assert await migrations.upgrade(url) == (SCHEMA_REVISION, SCHEMA_REVISION)


class Held(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection to a server that takes it, and then answers nothing."""

    opened: asyncio.Future[Held]

    async def execute(self, *_args: object, **_options: object) -> str:
        self.opened.set_result(self)
        await asyncio.get_running_loop().create_future()
        raise AssertionError("unreachable")


class Lost(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that fails right after it was opened, without an answer of the server."""

    opened: asyncio.Future[Lost]

    async def execute(self, *_args: object, **_options: object) -> str:
        self.opened.set_result(self)
        raise TimeoutError


@pytest.mark.parametrize("kind", [Held, Lost])
async def test_a_connection_that_is_given_up_while_it_is_checked_is_closed(
    kind: type[Held | Lost], postgresql: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "opened", asyncio.get_running_loop().create_future(), raising=False)
    connect = Connector(postgresql, {"idle_in_transaction_session_timeout": "30000"}, pooled=False)
    place = postgresql.translate_connect_args(username="user")
    task = asyncio.create_task(connect(**place, connection_class=kind))
    opened = await kind.opened
    task.cancel()
    with pytest.raises((asyncio.CancelledError, TimeoutError)):
        await task
    assert opened.is_closed()
