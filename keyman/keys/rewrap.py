"""Rewraps stored ciphertexts with the newest version of Vault's key, while the planes keep running.

A row is behind if an older version of the key sealed it, or if it is marked `undecryptable`.

Each row is stored by compare-and-set on its value uuid and ciphertext, so that a replacement or deletion in the
meantime wins. Each chunk is committed separately. A run that ends early loses nothing, and the next one continues. Two
runs at the same time do some work twice at worst. `updated_at` stays, because nothing that a client sees has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from uuid import UUID

from sqlalchemy import ColumnElement, Integer, bindparam, func, or_, select, update

from keyman.audit.entries import OPERATOR, Action, Entry
from keyman.audit.log import record
from keyman.errors import KeymanError, RefusedStatement
from keyman.ids import KeyId, OwnerId, UserId
from keyman.keys.tables import api_keys
from keyman.storage.statements import Command, Query, optional
from keyman.storage.transactions import Database, Unchecked
from keyman.storage.types import Id
from keyman.vault.cipher import Context
from keyman.vault.guard import KeyGuard, SentinelStore, sentinel_context
from keyman.vault.rotation import MAX_BATCH, Bound, KeyRotation

IN_FLIGHT = 4
"""The number of chunks at the same time: while one is stored, Vault works on others. More do not make a run faster."""


PASSES = 10
"""The maximum number of passes over the table. The first one does the work. The others find the few rows that were
stored meanwhile. If some rows are still behind after that, more passes would not help, and the run would never end.
"""


class ReplaceableSentinel(SentinelStore, Protocol):
    """The storage of the sentinel, which can also replace it with the rewrapped sentinel."""

    async def replace_sentinel(self, before: str, ciphertext: str) -> None: ...


class RefusedKey(NamedTuple):
    """A key whose ciphertext Vault does not open. It is marked `undecryptable`."""

    id: KeyId
    user_id: UserId
    service: str


@dataclass
class Summary:
    """The result of a run: the number of rows that were rewrapped to `latest`, the keys that Vault refused, and the ids
    of damaged rows. The values of a damaged row are invalid, and a run does not change them.
    """

    latest: int
    rewrapped: int = 0
    refused: list[RefusedKey] = field(default_factory=list)
    damaged: set[int] = field(default_factory=set)


class Rewrap:
    """One run. `report` is called with the number of rows of each finished chunk."""

    def __init__(
        self,
        db: Database,
        store: ReplaceableSentinel,
        guard: KeyGuard,
        rotation: KeyRotation,
        report: Callable[[int], None] = lambda _settled: None,
    ) -> None:
        self._db = db
        self._store = store
        self._guard = guard
        self._rotation = rotation
        self._report = report
        self._paging = asyncio.Lock()
        self._after = 0

    async def run(self) -> Summary:
        """Rewrap every row that is behind, and the sentinel.

        Raises VaultUnavailable, DatabaseUnavailable, and KeymanError if rows are still behind after PASSES passes. The
        chunks that were finished before stay stored.
        """
        # With the wrong Vault or the wrong key, Vault would refuse every row.
        await self._guard.verify(0)
        summary = Summary((await self._rotation.versions()).latest)
        # Repeated until no row is behind: a value that was sealed just before the rotation may be stored only now.
        for _ in range(PASSES):
            if not await self._pass(summary):
                break
        else:
            raise KeymanError(
                "Some keys are still at an older version after several passes: another program writes to the database, "
                "or some rows contain values that keyman did not write. `keyman rewrap --dry-run` counts these keys."
            )
        await self._rewrap_sentinel()
        summary.refused.sort()
        counted = f"to version {summary.latest}: {summary.rewrapped} rewrapped, {len(summary.refused)} refused"
        await _tell(self._db, Action.VAULT_REWRAP, counted)
        return summary

    async def _pass(self, summary: Summary) -> bool:
        """Make one pass over the table. Return False if there was nothing to do."""
        self._after = 0
        skipped = {key.id for key in summary.refused}
        before = summary.rewrapped + len(summary.refused)

        async def work() -> None:
            while rows := await self._next(summary):
                if fresh := [row for row in rows if row.id not in skipped and _is_sound(row, summary)]:
                    await self._chunk(fresh, summary)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(IN_FLIGHT):
                    group.create_task(work())
        except* KeymanError as faults:
            raise faults.exceptions[0] from None
        return summary.rewrapped + len(summary.refused) > before

    async def _next(self, summary: Summary) -> Sequence[_Row]:
        """Return the next rows that are behind, in the order of their ids. Each row goes to only one worker.

        A row that cannot be read is added to the damaged ones and skipped.
        """
        limit = MAX_BATCH
        behind = _BEHIND_ON_SQLITE if self._db.is_sqlite else _BEHIND
        async with self._paging:
            while True:
                try:
                    async with self._db.read() as connection:
                        rows = await behind.rows.all(connection, after=self._after, latest=summary.latest, limit=limit)
                except RefusedStatement:  # from the driver for text that is not UTF-8, or from the column types
                    if limit > 1:
                        limit //= 2  # narrows the search for the row that cannot be read
                        continue
                    async with self._db.read() as connection:
                        damaged = await behind.lowest.one(connection, after=self._after, latest=summary.latest)
                    if damaged is not None:  # None if somebody has deleted it since
                        summary.damaged.add(damaged)
                        self._after = damaged
                    limit = MAX_BATCH
                    continue
                if rows:
                    self._after = rows[-1].id
                return rows

    async def _chunk(self, rows: Sequence[_Row], summary: Summary) -> None:
        items = [
            Bound(row.encrypted_key, Context(self._store.uuid, row.owner_id, row.service, row.value_uuid).encoded())
            for row in rows
        ]
        changes: list[dict[str, object]] = []
        refused: list[RefusedKey] = []
        for row, sealed in zip(rows, await self._rotation.rewrap(items), strict=True):
            to, version = (row.encrypted_key, row.key_version) if sealed is None else sealed[:2]
            as_read = {"of_id": row.id, "of_value": row.value_uuid, "of_ciphertext": row.encrypted_key}
            changes.append({**as_read, "to": to, "version": version, "is_refused": sealed is None})
            if sealed is None:
                refused.append(RefusedKey(row.id, row.user_id, row.service))
        if refused:
            await self._guard.verify(0)  # so that no row is marked if the key was replaced during this run
        # Rows are locked in the order of their ids, so that two runs at the same time never deadlock.
        async with self._db.write(Unchecked.OPERATOR) as connection:
            await _STORE.execute_many(connection, changes)
        summary.rewrapped += len(changes) - len(refused)
        summary.refused += refused
        self._report(len(rows))

    async def _rewrap_sentinel(self) -> None:
        """Rewrap the sentinel. Otherwise it would stop opening once its version is retired, as with a wrong key."""
        sentinel = await self._store.sentinel(refresh=True)
        if sentinel is None:
            return
        [sealed] = await self._rotation.rewrap([Bound(sentinel, sentinel_context(self._store.uuid))])
        if sealed is not None:
            await self._store.replace_sentinel(sentinel, sealed.ciphertext)


async def record_rotation(db: Database, version: int) -> None:
    """Write an audit entry about a new version of Vault's key. Raises DatabaseUnavailable."""
    await _tell(db, Action.VAULT_ROTATE, f"version {version}")


async def _tell(db: Database, action: Action, detail: str) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        await record(connection, Entry(action, OPERATOR, detail=detail))


async def behind(db: Database, latest: int) -> Mapping[int, int]:
    """Return the number of rows that a run would try to rewrap, by the key version that sealed them."""
    async with db.read() as connection:
        return {row.key_version: row.total for row in await _COUNT_BEHIND.all(connection, latest=latest)}


async def oldest_version(db: Database) -> int | None:
    """Return the oldest key version of all stored keys; None when no key is stored."""
    async with db.read() as connection:
        return await _OLDEST.one(connection)


class _Row(NamedTuple):
    id: KeyId
    owner_id: OwnerId
    user_id: UserId
    service: str
    value_uuid: UUID
    encrypted_key: str
    key_version: int


class _Behind(NamedTuple):
    """Queries for the next rows that are behind, and for the lowest id of them. SQLite needs other ones."""

    rows: Query[_Row]
    lowest: Query[KeyId | None]


class _Count(NamedTuple):
    key_version: int
    total: int


# Rows that are marked are tried again at every version: the right Vault may be back.
_IS_BEHIND = or_(api_keys.c.key_version < bindparam("latest"), api_keys.c.undecryptable)


def _behind(is_wanted: ColumnElement[bool]) -> _Behind:
    following = select(*_READ).where(api_keys.c.id > bindparam("after", type_=Id), is_wanted)
    return _Behind(
        Query(following.order_by(api_keys.c.id).limit(bindparam("limit", type_=Integer)), _Row),
        optional(following.with_only_columns(func.min(api_keys.c.id)), KeyId),
    )


_READ = (
    api_keys.c.id,
    api_keys.c.owner_id,
    api_keys.c.user_id,
    api_keys.c.service,
    api_keys.c.value_uuid,
    api_keys.c.encrypted_key,
    api_keys.c.key_version,
)


_BEHIND = _behind(_IS_BEHIND)
# SQLite accepts a text in a column of numbers, and sorts it above all numbers.
_BEHIND_ON_SQLITE = _behind(or_(_IS_BEHIND, func.typeof(api_keys.c.key_version) != "integer"))
_COUNT_BEHIND = Query(
    select(api_keys.c.key_version, func.count().label("total"))
    .where(_IS_BEHIND)
    .group_by(api_keys.c.key_version)
    .order_by(api_keys.c.key_version),
    _Count,
)
_OLDEST = optional(select(func.min(api_keys.c.key_version)), int)


def _is_sound(row: _Row, summary: Summary) -> bool:
    """Return True if the values have the types that keyman writes. Otherwise add the row to the damaged ones."""
    sound = all(isinstance(value, kind) for value, kind in zip(row, (int, int, int, str, UUID, str, int), strict=True))
    if not sound:
        summary.damaged.add(row.id)
    return sound


# A refused row keeps its ciphertext, and is marked.
_STORE = Command(
    update(api_keys)
    .where(
        api_keys.c.id == bindparam("of_id"),
        api_keys.c.value_uuid == bindparam("of_value"),
        api_keys.c.encrypted_key == bindparam("of_ciphertext"),
    )
    .values(encrypted_key=bindparam("to"), key_version=bindparam("version"), undecryptable=bindparam("is_refused"))
)
