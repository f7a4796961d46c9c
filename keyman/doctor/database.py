"""The database: its schema, its settings, and whether Vault's key is the one that sealed what is in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from sqlalchemy import false, func, select, text
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
from keyman.keys.deployment import SCHEMA_REVISION, Deployment
from keyman.keys.rewrap import behind, oldest_version
from keyman.keys.tables import api_keys
from keyman.migrations.rights import excess
from keyman.storage.transactions import Database
from keyman.storage.types import AnyRow
from keyman.vault.cipher import Context
from keyman.vault.guard import KeyGuard
from keyman.vault.login import VaultClient
from keyman.vault.rotation import Bound, KeyRotation

SAMPLE = 50
"""Rows of the newest and of the oldest that are tried: enough to notice a database of another day than Vault."""

OLDEST_POSTGRESQL = 130000
"""As `server_version_num`: older ones get no fixes any more."""

PAGE = 10_000
"""Keys that are looked at in one statement."""

BY_ITSELF = ("database", "schema", "database-settings", "database-rights", "database-clock", "values")
OF_THE_KEY = ("sentinel", "key-versions", "sample", "undecryptable")


async def examine(settings: Settings, db: Database, *, is_plane: bool) -> AsyncIterator[Finding]:
    """The database by itself. `is_plane`: it is looked at as the user of one, who must not have all rights."""
    async for finding in _to_the_end(_by_itself(settings, db, is_plane), BY_ITSELF):
        yield finding


async def examine_key(settings: VaultSettings, db: Database, client: VaultClient) -> AsyncIterator[Finding]:
    """What Vault's key makes of what is stored. For a role that may rewrap."""
    async for finding in _to_the_end(_of_the_key(settings, db, client), OF_THE_KEY):
        yield finding


async def _to_the_end(findings: AsyncIterator[Finding], checks: Sequence[str]) -> AsyncIterator[Finding]:
    """A finding for each check, whatever happens: what ends the looking is said by the check that it ended."""
    left = list(checks)
    try:
        async for finding in findings:
            left.remove(finding.check)
            yield finding
        return
    except ConfigurationError:  # of which `database` or `schema` has told
        for check in left:
            yield skipped(check, "the database cannot be read")
        return
    except DatabaseUnavailable as fault:
        found, remedy = f"the database cannot be used ({fault.kind or 'no answer'})", "look whether it runs"
    except VaultUnavailable as fault:
        found, remedy = VAULT_DETAILS[fault.reason], "see what the checks of Vault say"
    except (RefusedStatement, ValueError):  # the second of a value in a row that is none of its column's type
        found = "the database is damaged, was changed by hand, or is not keyman's"
        remedy = "keyman db check; restore a backup"
    yield failed(left[0], found, remedy)
    for check in left[1:]:
        yield skipped(check, "what stands above ended the looking")


async def _by_itself(settings: Settings, db: Database, is_plane: bool) -> AsyncIterator[Finding]:
    try:
        async with db.read() as connection:
            await connection.execute(text("SELECT 1"))
    except DatabaseUnavailable as fault:
        yield failed(
            "database",
            f"it cannot be used ({fault.kind or 'no answer'})",
            "look whether it runs, whether KEYMAN_DATABASE_URL is right, and what lies between",
        )
        for check in BY_ITSELF[1:]:
            yield skipped(check, "the database cannot be asked")
        return
    yield ok("database", "SQLite" if db.is_sqlite else "PostgreSQL")
    yield await _schema(settings)
    async with db.read() as connection:
        if db.is_sqlite:
            yield await _sqlite(connection)
            yield ok("database-rights", "whoever opens the file has all")
            yield ok("database-clock", "this machine's")
        else:
            yield await _postgresql(connection)
            yield await _rights(connection) if is_plane else ok("database-rights", "an operator's: not looked at")
            theirs = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
            yield clock("database-clock", (now() - theirs).total_seconds(), "its")
    yield await _values(db)


async def _schema(settings: Settings) -> Finding:
    try:
        differences = await migrations.differences(settings.database_url)
    except (DatabaseUnavailable, ConfigurationError) as fault:
        return failed("schema", str(fault), "run the keyman that it belongs to, or restore a backup from before")
    if not differences:
        return ok("schema", f"at {SCHEMA_REVISION}, as this keyman needs it")
    more = f" (and {len(differences) - 1} more; keyman db check lists them)" if len(differences) > 1 else ""
    return failed("schema", f"{differences[0]}{more}", "keyman db upgrade")


async def _sqlite(connection: AsyncConnection) -> Finding:
    mode = (await connection.execute(text("PRAGMA journal_mode"))).scalar_one()
    version = (await connection.execute(text("SELECT sqlite_version()"))).scalar_one()
    if mode != "wal":
        return warning(
            "database-settings",
            f"journal mode {mode}: readers and the writer wait for each other",
            "start keyman serve, which turns WAL on; if it stays so, put the file on a local disk, where WAL works",
        )
    return ok("database-settings", f"SQLite {version}, WAL, one machine only")


async def _postgresql(connection: AsyncConnection) -> Finding:
    async def shown(name: str) -> str:
        return str((await connection.execute(text(f"SHOW {name}"))).scalar_one())

    wrong = []
    if int(await shown("server_version_num")) < OLDEST_POSTGRESQL:
        wrong.append("its version gets no fixes any more")
    if await shown("timezone") != "UTC":
        wrong.append("the time zone of keyman's sessions is not UTC")
    if await shown("server_encoding") != "UTF8":
        wrong.append("its encoding is not UTF8")
    if "off" in (await shown("fsync"), await shown("full_page_writes")):
        wrong.append("fsync or full_page_writes is off: a power cut can destroy it")
    if await shown("synchronous_commit") == "off":
        wrong.append("synchronous_commit is off: a crash forgets keys that were acknowledged")
    version = await shown("server_version")
    if wrong:
        return failed("database-settings", f"PostgreSQL {version}: {'; '.join(wrong)}", "set them in postgresql.conf")
    encrypted = (
        await connection.execute(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
    ).scalar_one_or_none()
    how = "TLS" if encrypted else "no TLS"
    return ok("database-settings", f"PostgreSQL {version}, UTC, durable, {how}")


async def _rights(connection: AsyncConnection) -> Finding:
    """That this process's user cannot register an application: whoever takes it over would have what that may have."""
    too_much = await connection.run_sync(excess)
    if too_much:
        return warning(
            "database-rights",
            f"this user may do what no plane has to: {', '.join(too_much)}",
            "give each plane a user of its own, and run keyman db upgrade with --management and --resolver",
        )
    return ok("database-rights", "this user can register no application and change no entry of the trail")


async def _values(db: Database) -> Finding:
    """Whether each row holds the value that the trail says: the resolver opens no other."""
    is_current = func.coalesce(current_value(api_keys.c.id) == api_keys.c.value_uuid, false())
    known = ~api_keys.c.undecryptable  # those that are marked have a check of their own
    statement = select(api_keys.c.id, is_current.label("is_current")).where(known).order_by(api_keys.c.id).limit(PAGE)
    count, after, wrong = 0, 0, list[int]()
    while True:
        async with db.read() as connection:
            rows = (await connection.execute(statement.where(api_keys.c.id > after))).all()
        count += len(rows)
        wrong += [row.id for row in rows if not row.is_current]
        if len(rows) < PAGE:
            break
        after = rows[-1].id
    if wrong:
        return failed(
            "values",
            f"{len(wrong):,} of {count:,} keys hold another value than the trail says, such as key {wrong[0]}",
            "rows were put back or exchanged by hand, or the trail was bent: keyman audit verify; the resolver opens "
            "none of them. Restore the rows, or have their owners store them again",
        )
    return ok("values", f"all {count:,} keys hold what the trail says" if count else "no keys are stored")


async def _of_the_key(settings: VaultSettings, db: Database, client: VaultClient) -> AsyncIterator[Finding]:
    rotation = KeyRotation(client, settings)
    deployment = await Deployment.load(db)
    oldest = await oldest_version(db)  # before the sentinel, which is stored before the first key
    if await deployment.sentinel() is None:
        yield _no_sentinel(is_new=oldest is None)
        for check in OF_THE_KEY[1:]:
            yield skipped(check, "nothing says which key is the right one")
        return
    reason = await _refusal(KeyGuard(client, settings, deployment))
    if reason is None:
        yield ok("sentinel", "Vault's key opens it")
    elif reason is VaultReason.WRONG_KEY:
        yield failed(
            "sentinel", "Vault's key does not open it", "find which of Vault and database is not of here, below"
        )
    else:
        yield failed("sentinel", VAULT_DETAILS[reason], "see what the checks of Vault say")
        for check in OF_THE_KEY[1:]:
            yield skipped(check, "Vault cannot be asked")
        return
    yield await _versions(db, rotation)
    yield await _sample(db, deployment, rotation)
    yield await _undecryptable(db)


def _no_sentinel(*, is_new: bool) -> Finding:
    if is_new:
        return warning("sentinel", "none yet", "start keyman serve once: it makes one when it first reaches Vault")
    return failed(
        "sentinel",
        "there is none, and keys are stored: nothing says which key sealed them, and keyman stores no more",
        "restore the database from a backup that has it: it was restored in part, or changed by hand",
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
        newest: int | None = (await connection.execute(select(func.max(api_keys.c.key_version)))).scalar_one()
    if oldest is None or newest is None:
        return ok("key-versions", f"Vault is at {versions.latest}; no keys are stored")
    if newest > versions.latest:
        return failed(
            "key-versions",
            f"keys are sealed with version {newest}, and Vault knows none above {versions.latest}: it is the older one",
            "restore Vault from a backup that was taken after its last rotation",
        )
    if oldest < versions.min_decryption:
        return failed(
            "key-versions",
            f"keys are sealed with version {oldest}, and Vault opens none below {versions.min_decryption}",
            f"set min_decryption_version to {oldest}, run keyman rewrap, and raise it again",
        )
    late = sum((await behind(db, versions.latest)).values())
    if late:
        return warning(
            "key-versions",
            f"Vault is at {versions.latest}, {late:,} keys are behind; the oldest at {oldest}",
            "keyman rewrap",
        )
    return ok("key-versions", f"all keys are at version {versions.latest}, the newest")


async def _sample(db: Database, deployment: Deployment, rotation: KeyRotation) -> Finding:
    """Rewraps and throws away: what does not open is of another day, or was moved by hand."""
    columns = (
        api_keys.c.id,
        api_keys.c.user_id,
        api_keys.c.service,
        api_keys.c.value_uuid,
        api_keys.c.encrypted_key,
    )
    statement = select(*columns).where(~api_keys.c.undecryptable).limit(SAMPLE)
    found: dict[int, AnyRow] = {}
    async with db.read() as connection:
        for order in (api_keys.c.id, api_keys.c.id.desc()):
            found |= {row.id: row for row in await connection.execute(statement.order_by(order))}
    rows: Sequence[AnyRow] = list(found.values())
    if not rows:
        return ok("sample", "no keys are stored")
    items = [
        Bound(row.encrypted_key, Context(deployment.uuid, row.user_id, row.service, row.value_uuid).encoded())
        for row in rows
    ]
    refused = [row.id for row, sealed in zip(rows, await rotation.rewrap(items), strict=True) if sealed is None]
    if refused:
        return failed(
            "sample",
            f"{len(refused)} of {len(rows)} do not open, such as key {refused[0]}",
            "after a restore: Vault and database are of different days, or rows were changed by hand; keyman rewrap "
            "marks all that do not open. If none open: another key of the same name; see Backup and restore in "
            "docs/guide/operator.md",
        )
    return ok("sample", f"all of {len(rows)} tried open")


async def _undecryptable(db: Database) -> Finding:
    statement = select(func.count()).select_from(api_keys).where(api_keys.c.undecryptable)
    async with db.read() as connection:
        count: int = (await connection.execute(statement)).scalar_one()
    if count:
        return warning(
            "undecryptable",
            f"{count:,} keys are marked: Vault did not open them",
            "keyman rewrap tries them again and lists them; their owners can replace them",
        )
    return ok("undecryptable", "none are marked")
