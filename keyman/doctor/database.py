"""Checks of the database: its schema, its settings, and whether Vault has the encryption key that sealed its values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, false, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman import migrations
from keyman.audit.log import current_value
from keyman.clock import now
from keyman.config.settings import Settings
from keyman.config.vault import VaultSettings
from keyman.doctor.findings import Finding, failed, ok, skipped, warning
from keyman.doctor.vault import clock
from keyman.errors import (
    VAULT_DETAILS,
    ConfigurationError,
    DatabaseUnavailable,
    RefusedStatement,
    VaultReason,
    VaultUnavailable,
)
from keyman.ids import KeyId, OwnerId
from keyman.keys.deployment import SCHEMA_REVISION, Deployment
from keyman.keys.rewrap import behind, oldest_version
from keyman.keys.tables import api_keys
from keyman.migrations.rights import excess
from keyman.storage.statements import Query, optional, scalar
from keyman.storage.transactions import Database
from keyman.storage.types import Id
from keyman.vault.cipher import Context
from keyman.vault.guard import KeyGuard
from keyman.vault.login import VaultClient
from keyman.vault.rotation import Bound, KeyRotation

SAMPLE = 50
"""How many of the newest and of the oldest rows are tried.

This is enough to notice that the database and Vault were restored from backups of different days.
"""

OLDEST_POSTGRESQL = 130000
"""The oldest `server_version_num` that still gets fixes."""

PAGE = 10_000
"""Keys that one statement reads."""

BY_ITSELF = ("database", "schema", "database-settings", "database-rights", "database-clock", "values")
OF_THE_KEY = ("sentinel", "key-versions", "sample", "undecryptable")


async def examine(settings: Settings, db: Database, *, is_plane: bool) -> AsyncIterator[Finding]:
    """Check the database without Vault. With `is_plane`, the user is that of a plane, who must not have all rights."""
    async for finding in _to_the_end(_by_itself(settings, db, is_plane), BY_ITSELF):
        yield finding


async def examine_key(settings: VaultSettings, db: Database, client: VaultClient) -> AsyncIterator[Finding]:
    """Check the stored values with Vault's encryption key. The role must be allowed to rewrap."""
    async for finding in _to_the_end(_of_the_key(settings, db, client), OF_THE_KEY):
        yield finding


async def _to_the_end(findings: AsyncIterator[Finding], checks: Sequence[str]) -> AsyncIterator[Finding]:
    """Yield a finding for each check, in any case. An exception becomes the finding of the check that raised it."""
    left = list(checks)
    try:
        async for finding in findings:
            left.remove(finding.check)
            yield finding
        return
    except ConfigurationError:  # the finding `database` or `schema` has reported it
        for check in left:
            yield skipped(check, "the database cannot be read")
        return
    except DatabaseUnavailable as fault:
        found, remedy = f"the database cannot be used ({fault.kind or 'no answer'})", "check that it runs"
    except VaultUnavailable as fault:
        found, remedy = VAULT_DETAILS[fault.reason], "see the results of the checks of Vault"
    except (RefusedStatement, ValueError):  # ValueError: a value in a row does not fit the type of its column
        found = "the database is damaged, was changed by hand, or is not a database of keyman"
        remedy = "run keyman db check; restore a backup"
    yield failed(left[0], found, remedy)
    for check in left[1:]:
        yield skipped(check, "the failure above ended the checks")


async def _by_itself(settings: Settings, db: Database, is_plane: bool) -> AsyncIterator[Finding]:
    try:
        async with db.read() as connection:
            await _ANSWERS.one(connection)
    except DatabaseUnavailable as fault:
        yield failed(
            "database",
            f"it cannot be used ({fault.kind or 'no answer'})",
            "check that it runs, that KEYMAN_DATABASE_URL is correct, and the network in between",
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
            yield await _rights(connection) if is_plane else ok("database-rights", "not checked for an operator")
            theirs = await _CLOCK.one(connection)
            yield clock("database-clock", (now() - theirs).total_seconds(), "its")
    yield await _values(db)


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


async def _rights(connection: AsyncConnection) -> Finding:
    """Check that this user cannot register an application: an attacker with its rights could then resolve keys."""
    too_much = await connection.run_sync(excess)
    if too_much:
        return warning(
            "database-rights",
            f"this user has rights that no plane needs: {', '.join(too_much)}",
            "create a user for each plane, and run keyman db upgrade with --management and --resolver",
        )
    return ok("database-rights", "this user cannot register applications or change audit entries")


async def _values(db: Database) -> Finding:
    """Check that each row holds the value that the audit log names. The resolver opens no other."""
    count, after, wrong = 0, KeyId(0), list[KeyId]()
    while True:
        async with db.read() as connection:
            rows = await _CURRENT.all(connection, after=after)
        count += len(rows)
        wrong += [row.id for row in rows if not row.is_current]
        if len(rows) < PAGE:
            break
        after = rows[-1].id
    if wrong:
        return failed(
            "values",
            f"{len(wrong):,} of {count:,} keys hold another value than the audit log says, such as key {wrong[0]}",
            "rows were restored or exchanged by hand, or the audit log was changed: run keyman audit verify. The "
            "resolver opens none of these keys. Restore the rows, or ask their owners to store them again",
        )
    return ok("values", f"all {count:,} keys hold the value that the audit log says" if count else "no keys are stored")


async def _of_the_key(settings: VaultSettings, db: Database, client: VaultClient) -> AsyncIterator[Finding]:
    rotation = KeyRotation(client, settings)
    deployment = await Deployment.load(db)
    oldest = await oldest_version(db)  # read before the sentinel, which is stored before the first key
    if await deployment.sentinel() is None:
        yield _no_sentinel(is_new=oldest is None)
        for check in OF_THE_KEY[1:]:
            yield skipped(check, "without a sentinel it is not known which encryption key is the right one")
        return
    reason = await _refusal(KeyGuard(client, settings, deployment))
    if reason is None:
        yield ok("sentinel", "Vault's key opens it")
    elif reason is VaultReason.WRONG_KEY:
        yield failed(
            "sentinel",
            "Vault's key does not open it",
            "Vault and database do not belong together: see the checks below for which one is wrong",
        )
    else:
        yield failed("sentinel", VAULT_DETAILS[reason], "see the results of the checks of Vault")
        for check in OF_THE_KEY[1:]:
            yield skipped(check, "Vault cannot be used")
        return
    yield await _versions(db, rotation)
    yield await _sample(db, deployment, rotation)
    yield await _undecryptable(db)


def _no_sentinel(*, is_new: bool) -> Finding:
    if is_new:
        return warning("sentinel", "none yet", "run keyman serve once: it creates one when it first reaches Vault")
    return failed(
        "sentinel",
        "missing, but keys are stored: it is not known which key sealed them, and keyman stores no further keys",
        "restore the database from a backup that has it: the database was restored in part, or changed by hand",
    )


async def _refusal(guard: KeyGuard) -> VaultReason | None:
    try:
        await guard.verify(0)
    except VaultUnavailable as fault:
        return fault.reason
    return None


async def _versions(db: Database, rotation: KeyRotation) -> Finding:
    versions, oldest = await rotation.versions(), await oldest_version(db)
    async with db.read() as connection:
        newest = await _NEWEST_VERSION.one(connection)
    if oldest is None or newest is None:
        return ok("key-versions", f"Vault is at {versions.latest}; no keys are stored")
    if newest > versions.latest:
        return failed(
            "key-versions",
            f"keys are sealed with version {newest}, but Vault's newest version is {versions.latest}: Vault is older "
            "than the database",
            "restore Vault from a backup that was made after its last rotation",
        )
    if oldest < versions.min_decryption:
        return failed(
            "key-versions",
            f"keys are sealed with version {oldest}, but Vault opens none below {versions.min_decryption}",
            f"set min_decryption_version to {oldest}, run keyman rewrap, then raise it again",
        )
    late = sum((await behind(db, versions.latest)).values())
    if late:
        return warning(
            "key-versions",
            f"Vault is at {versions.latest}; {late:,} keys have an older version, the oldest {oldest}",
            "run keyman rewrap",
        )
    return ok("key-versions", f"all keys are at version {versions.latest}, the newest")


async def _sample(db: Database, deployment: Deployment, rotation: KeyRotation) -> Finding:
    """Rewrap a sample and discard the results. A value that does not open was moved, or is from another backup."""
    async with db.read() as connection:
        found = {row.id: row for query in (_OLDEST, _NEWEST) for row in await query.all(connection)}
    rows = list(found.values())
    if not rows:
        return ok("sample", "no keys are stored")
    items = [
        Bound(row.encrypted_key, Context(deployment.uuid, row.owner_id, row.service, row.value_uuid).encoded())
        for row in rows
    ]
    refused = [row.id for row, sealed in zip(rows, await rotation.rewrap(items), strict=True) if sealed is None]
    if refused:
        return failed(
            "sample",
            f"{len(refused)} of {len(rows)} do not open, such as key {refused[0]}",
            "after a restore, Vault and database are from different days; otherwise rows were changed by hand. keyman "
            "rewrap marks all that do not open. If none open, Vault has another encryption key with the same name. "
            "See Backup and restore in docs/guide/operator.md",
        )
    return ok("sample", f"all {len(rows)} that were tried open")


async def _undecryptable(db: Database) -> Finding:
    async with db.read() as connection:
        count = await _COUNT_UNDECRYPTABLE.one(connection)
    if count:
        return warning(
            "undecryptable",
            f"{count:,} keys are marked, because Vault did not open them",
            "run keyman rewrap to try them again and list them; their owners can replace them",
        )
    return ok("undecryptable", "none are marked")


class _Current(NamedTuple):
    id: KeyId
    is_current: bool


class _Sample(NamedTuple):
    id: KeyId
    owner_id: OwnerId
    service: str
    value_uuid: UUID
    encrypted_key: str


_IS_KNOWN = ~api_keys.c.undecryptable  # those that are marked have a check of their own
_CURRENT = Query(
    select(
        api_keys.c.id,
        func.coalesce(current_value(api_keys.c.id) == api_keys.c.value_uuid, false()).label("is_current"),
    )
    .where(_IS_KNOWN, api_keys.c.id > bindparam("after", type_=Id))
    .order_by(api_keys.c.id)
    .limit(PAGE),
    _Current,
)
_SAMPLE = select(
    api_keys.c.id, api_keys.c.owner_id, api_keys.c.service, api_keys.c.value_uuid, api_keys.c.encrypted_key
).where(_IS_KNOWN)
_OLDEST = Query(_SAMPLE.order_by(api_keys.c.id).limit(SAMPLE), _Sample)
_NEWEST = Query(_SAMPLE.order_by(api_keys.c.id.desc()).limit(SAMPLE), _Sample)
_NEWEST_VERSION = optional(select(func.max(api_keys.c.key_version)), int)
_COUNT_UNDECRYPTABLE = scalar(select(func.count()).select_from(api_keys).where(api_keys.c.undecryptable), int)
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
