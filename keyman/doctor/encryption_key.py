"""Checks of the stored values with Vault's encryption key: whether it is the key that sealed them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import func, select

from keyman.config.vault import VaultSettings
from keyman.doctor.findings import Finding, failed, ok, skipped, to_the_end, warning
from keyman.errors import (
    VAULT_DETAILS,
    VaultReason,
    VaultUnavailable,
)
from keyman.ids import KeyId, OwnerId
from keyman.keys.deployment import Deployment
from keyman.keys.rewrap import behind, oldest_version
from keyman.keys.tables import api_keys
from keyman.quantities import quantity
from keyman.storage.statements import Query, optional, scalar
from keyman.storage.transactions import Database
from keyman.vault.cipher import Context
from keyman.vault.guard import KeyGuard
from keyman.vault.login import VaultClient
from keyman.vault.rotation import Bound, KeyRotation

SAMPLE = 50
"""How many of the newest and of the oldest rows are tried.

This is enough to notice that the database and Vault were restored from backups of different days.
"""

OF_THE_KEY = ("sentinel", "key-versions", "sample", "undecryptable")


async def examine(settings: VaultSettings, db: Database, client: VaultClient) -> AsyncIterator[Finding]:
    """Check the stored values with Vault's encryption key. The role must be allowed to rewrap."""
    async for finding in to_the_end(_of_the_key(settings, db, client), OF_THE_KEY):
        yield finding


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
            f"Vault is at {versions.latest}; {quantity(late, 'key')} at an older version, the oldest {oldest}",
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
            f"{quantity(count, 'key')} marked, because Vault did not open the value",
            "run keyman rewrap to try again and list what does not open; owners can replace it",
        )
    return ok("undecryptable", "none are marked")


class _Sample(NamedTuple):
    id: KeyId
    owner_id: OwnerId
    service: str
    value_uuid: UUID
    encrypted_key: str


_SAMPLE = select(
    api_keys.c.id, api_keys.c.owner_id, api_keys.c.service, api_keys.c.value_uuid, api_keys.c.encrypted_key
).where(~api_keys.c.undecryptable)
_OLDEST = Query(_SAMPLE.order_by(api_keys.c.id).limit(SAMPLE), _Sample)
_NEWEST = Query(_SAMPLE.order_by(api_keys.c.id.desc()).limit(SAMPLE), _Sample)
_NEWEST_VERSION = optional(select(func.max(api_keys.c.key_version)), int)
_COUNT_UNDECRYPTABLE = scalar(select(func.count()).select_from(api_keys).where(api_keys.c.undecryptable), int)
