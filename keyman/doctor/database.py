"""Checks of the database: its schema, its settings, and whether its rows hold what the audit log names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import bindparam, false, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman import migrations
from keyman.audit.log import current_settings, current_value
from keyman.clock import now
from keyman.config.settings import Settings
from keyman.doctor.findings import Finding, failed, ok, skipped, to_the_end, warning
from keyman.doctor.vault import clock
from keyman.errors import (
    ConfigurationError,
    DatabaseUnavailable,
)
from keyman.ids import KeyId
from keyman.keys.deployment import SCHEMA_REVISION
from keyman.keys.settings import has_current_settings
from keyman.keys.tables import api_keys
from keyman.migrations.rights import GATEWAY, MANAGEMENT, RESOLVER, excess, missing
from keyman.quantities import quantity
from keyman.storage.statements import Query, scalar
from keyman.storage.transactions import Database
from keyman.storage.types import Id

OLDEST_POSTGRESQL = 130000
"""The oldest `server_version_num` that still gets fixes."""

PAGE = 10_000
"""Keys that one statement reads."""

BY_ITSELF = ("database", "schema", "database-settings", "database-rights", "database-clock", "values")


RIGHTS = {"management": MANAGEMENT, "resolver": RESOLVER, "gateway": GATEWAY}


async def examine(settings: Settings, db: Database, plane: str | None) -> AsyncIterator[Finding]:
    """Check the database without Vault. `plane` names the plane whose rights the user must have, and no others."""
    async for finding in to_the_end(_by_itself(settings, db, plane), BY_ITSELF):
        yield finding


async def _by_itself(settings: Settings, db: Database, plane: str | None) -> AsyncIterator[Finding]:
    try:
        async with db.read() as connection:
            await _ANSWERS.one(connection)
    except DatabaseUnavailable as fault:
        yield failed(
            "database",
            f"it cannot be used ({fault.kind or 'no answer'})",
            _remedy(fault.kind),
        )
        for check in BY_ITSELF[1:]:
            yield skipped(check, "the database cannot be used")
        return
    yield ok("database", "SQLite" if db.is_sqlite else "PostgreSQL")
    yield await _schema(settings)
    async with db.read() as connection:
        if db.is_sqlite:
            yield await _sqlite(connection)
            yield ok("database-rights", "SQLite has none; the mode of the file decides")
            yield ok("database-clock", "this machine's")
        else:
            yield await _postgresql(connection)
            yield await _rights(connection, plane) if plane else ok("database-rights", "not checked for an operator")
            theirs = await _CLOCK.one(connection)
            yield clock("database-clock", (now() - theirs).total_seconds(), "its")
    yield await _values(db)


def _remedy(kind: str) -> str:
    if "(28" in kind:  # SQLSTATE class 28: the server refuses the user or the password
        return (
            "check the user and the password in KEYMAN_DATABASE_URL: percent-encode the characters @ : / % ? # in "
            "them, or set KEYMAN_DATABASE_PASSWORD"
        )
    if "SSL" in kind:
        return "set KEYMAN_DATABASE_CACERT to the CA that signed the database's certificate, and check the host's name"
    return "check that it runs, that KEYMAN_DATABASE_URL is correct, and the network in between"


async def _schema(settings: Settings) -> Finding:
    try:
        differences = await migrations.differences(settings.database_url)
    except (DatabaseUnavailable, ConfigurationError) as fault:
        return failed("schema", str(fault), "run the version of keyman that it belongs to, or restore an older backup")
    if not differences:
        return ok("schema", f"at {SCHEMA_REVISION}, which this keyman needs")
    more = f" (and {len(differences) - 1} more; keyman db check lists them)" if len(differences) > 1 else ""
    return failed("schema", f"{differences[0]}{more}", "run keyman db upgrade")


async def _sqlite(connection: AsyncConnection) -> Finding:
    mode = await _JOURNAL_MODE.one(connection)
    version = await _SQLITE_VERSION.one(connection)
    if mode != "wal":
        return warning(
            "database-settings",
            f"journal mode {mode}: readers and the writer block each other",
            "start keyman serve, which turns WAL on; if that does not help, move the file to a local disk",
        )
    return ok("database-settings", f"SQLite {version}, WAL, one machine only")


async def _postgresql(connection: AsyncConnection) -> Finding:
    async def setting(name: str) -> str:
        return await _SETTINGS[name].one(connection)

    wrong = []
    if int(await setting("server_version_num")) < OLDEST_POSTGRESQL:
        wrong.append("its version no longer gets fixes")
    if await setting("timezone") != "UTC":
        wrong.append("the time zone of keyman's sessions is not UTC")
    if await setting("server_encoding") != "UTF8":
        wrong.append("its encoding is not UTF8")
    if "off" in (await setting("fsync"), await setting("full_page_writes")):
        wrong.append("fsync or full_page_writes is off: a power failure can destroy the database")
    if await setting("synchronous_commit") == "off":
        wrong.append("synchronous_commit is off: a crash can lose keys whose storing was confirmed")
    version = await setting("server_version")
    if wrong:
        return failed("database-settings", f"PostgreSQL {version}: {'; '.join(wrong)}", "change postgresql.conf")
    encrypted = await _USES_TLS.first(connection)
    how = "TLS" if encrypted else "no TLS"
    return ok("database-settings", f"PostgreSQL {version}, UTC, durable, {how}")


async def _rights(connection: AsyncConnection, plane: str) -> Finding:
    """Check that this user has all rights of its plane, and that it cannot register an application.

    An attacker with the right to register one could resolve keys.
    """
    too_few = await connection.run_sync(missing, RIGHTS[plane])
    if too_few:
        return failed(
            "database-rights",
            f"this user lacks rights that the {plane} plane needs: {', '.join(too_few)}",
            f"as the user that owns the tables, run keyman db upgrade {_users(plane)}, with the users of the planes",
        )
    too_much = await connection.run_sync(excess, plane)
    if too_much:
        return warning(
            "database-rights",
            f"this user has rights that the {plane} plane does not need: {', '.join(too_much)}",
            f"create a user for each plane, and run keyman db upgrade {_users(plane)}",
        )
    return ok(
        "database-rights",
        f"all that the {plane} plane needs; no right to register applications or change the audit log",
    )


def _users(plane: str) -> str:
    """The options of `keyman db upgrade` that name the users. Only the gateway's own user shows that there is one."""
    known = "--management USER --resolver USER"
    return f"{known} --gateway USER" if plane == "gateway" else f"{known} (and --gateway USER if you have a gateway)"


async def _values(db: Database) -> Finding:
    """Check that each row holds the value and the settings that the audit log names. The resolver opens no other."""
    count, after, wrong = 0, KeyId(0), list[KeyId]()
    while True:
        async with db.read() as connection:
            rows = await _CURRENT.all(connection, after=after)
        count += len(rows)
        wrong += [row.id for row in rows if not (row.has_value and has_current_settings(row))]
        if len(rows) < PAGE:
            break
        after = rows[-1].id
    if wrong:
        return failed(
            "values",
            f"{len(wrong):,} of {quantity(count, 'key')} with another value or other settings than the audit log says, "
            f"such as key {wrong[0]}",
            "rows were restored or exchanged by hand, or the audit log was changed: run keyman audit verify. The "
            "resolver opens none of these keys. Restore the rows, or ask their owners to store them again",
        )
    all_right = f"{quantity(count, 'key')}, with the values and the settings that the audit log says"
    return ok("values", all_right if count else "no keys are stored")


class _Current(NamedTuple):
    id: KeyId
    has_value: bool
    settings: str
    current_settings: str | None


_IS_KNOWN = ~api_keys.c.undecryptable  # those that are marked have a check of their own
_CURRENT = Query(
    select(
        api_keys.c.id,
        func.coalesce(current_value(api_keys.c.id) == api_keys.c.value_uuid, false()).label("has_value"),
        api_keys.c.settings,
        current_settings(api_keys.c.id).label("current_settings"),
    )
    .where(_IS_KNOWN, api_keys.c.id > bindparam("after", type_=Id))
    .order_by(api_keys.c.id)
    .limit(PAGE),
    _Current,
)
_CLOCK = scalar(select(func.clock_timestamp()), datetime)
_ANSWERS = scalar(text("SELECT 1"), int)
_JOURNAL_MODE = scalar(text("PRAGMA journal_mode"), str)
_SQLITE_VERSION = scalar(text("SELECT sqlite_version()"), str)
_USES_TLS = scalar(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"), bool)
_SETTINGS = {
    name: scalar(text(f"SHOW {name}"), str)
    for name in (
        "fsync",
        "full_page_writes",
        "server_encoding",
        "server_version",
        "server_version_num",
        "synchronous_commit",
        "timezone",
    )
}
