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
from typing import NamedTuple, Protocol, TypeAlias
from uuid import UUID

from sqlalchemy import Column, ColumnElement, Integer, Text, Uuid, any_, bindparam, func, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY

from keyman.audit.entries import OPERATOR, Action, Entry
from keyman.audit.log import record
from keyman.errors import KeymanError, RefusedStatement
from keyman.ids import KeyId, OwnerId, UserId
from keyman.keys.tables import api_keys
from keyman.storage.arrays import as_arrays, given_rows
from keyman.storage.statements import Command, Query, optional, scalar
from keyman.storage.transactions import Database, Unchecked
from keyman.storage.types import Id
from keyman.vault.cipher import Context, Sealed
from keyman.vault.guard import KeyGuard, SentinelStore, sentinel_context
from keyman.vault.rotation import MAX_BATCH, Bound, KeyRotation

CHUNK = 4 * MAX_BATCH
"""Rows that are read, and then stored, together. Their batches are at Vault at the same time."""

IN_FLIGHT = 3
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
        limit = CHUNK
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
                    limit = CHUNK
                    continue
                if rows:
                    self._after = rows[-1].id
                return rows

    async def _chunk(self, rows: Sequence[_Row], summary: Summary) -> None:
        changed: list[_Change] = []
        marked: list[_Change] = []
        refused: list[RefusedKey] = []
        for row, sealed in zip(rows, await self._rewrapped(rows), strict=True):
            change: _Change = {"of_id": row.id, "of_value": row.value_uuid, "of_ciphertext": row.encrypted_key}
            if sealed is None:
                marked.append(change)
                refused.append(RefusedKey(row.id, row.user_id, row.service))
            else:
                change["to"], change["version"] = sealed.ciphertext, sealed.key_version
                changed.append(change)
        if refused:
            await self._guard.verify(0)  # so that no row is marked if the key was replaced during this run
        await self._save([row.id for row in rows], changed, marked)
        summary.rewrapped += len(changed)
        summary.refused += refused
        self._report(len(rows))

    async def _rewrapped(self, rows: Sequence[_Row]) -> list[Sealed | None]:
        items = [
            Bound(row.encrypted_key, Context(self._store.uuid, row.owner_id, row.service, row.value_uuid).encoded())
            for row in rows
        ]
        batches = [items[start : start + MAX_BATCH] for start in range(0, len(items), MAX_BATCH)]
        try:
            async with asyncio.TaskGroup() as group:  # if one call fails, the others end
                calls = [group.create_task(self._rotation.rewrap(batch)) for batch in batches]
        except* KeymanError as faults:
            raise faults.exceptions[0] from None
        return [sealed for call in calls for sealed in call.result()]

    async def _save(self, ids: Sequence[KeyId], changed: Sequence[_Change], marked: Sequence[_Change]) -> None:
        async with self._db.write(Unchecked.OPERATOR) as connection:
            if self._db.is_sqlite:
                await _STORE.execute_many(connection, changed)
            else:
                # Rows are locked in the order of their ids, so that two runs at the same time never deadlock. What
                # follows may change them in any order.
                await _LOCK.one(connection, ids=ids)
                await _STORE_TOGETHER.execute(connection, **as_arrays(_CHANGES.c.keys(), changed))
            await _MARK.execute_many(connection, marked)

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


_Change: TypeAlias = dict[str, object]
"""The row that was read: `of_id`, `of_value` and `of_ciphertext`. If it is rewrapped, also what it gets: `to` and
`version`."""


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


_KINDS = (int, int, int, str, UUID, str, int)
"""The types of the values of a `_Row`."""


def _is_sound(row: _Row, summary: Summary) -> bool:
    """Return True if the values have the types that keyman writes. Otherwise add the row to the damaged ones."""
    sound = all(map(isinstance, row, _KINDS))
    if not sound:
        summary.damaged.add(row.id)
    return sound


# A row is changed only if it still has the value and the ciphertext that were read.
_AS_READ = (
    api_keys.c.id == bindparam("of_id"),
    api_keys.c.value_uuid == bindparam("of_value"),
    api_keys.c.encrypted_key == bindparam("of_ciphertext"),
)
_STORE = Command(
    update(api_keys)
    .where(*_AS_READ)
    .values(encrypted_key=bindparam("to"), key_version=bindparam("version"), undecryptable=False)
)
# A refused row keeps its ciphertext.
_MARK = Command(update(api_keys).where(*_AS_READ).values(undecryptable=True))

_LOCK = scalar(
    select(func.count()).select_from(
        select(api_keys.c.id)
        .where(api_keys.c.id == any_(bindparam("ids", type_=ARRAY(Id))))
        .order_by(api_keys.c.id)
        .with_for_update(key_share=True)
        .subquery("locked")
    ),
    int,
)
# What `_STORE` does, for all rows of a chunk at once: that takes PostgreSQL half the time for each of them.
_CHANGES = given_rows(
    [
        Column("of_id", Id),
        Column("of_value", Uuid),
        Column("of_ciphertext", Text),
        Column("to", Text),
        Column("version", Integer),
    ]
)
_STORE_TOGETHER = Command(
    update(api_keys)
    .where(
        # This follows from the join. Without it, PostgreSQL may read the whole table.
        api_keys.c.id == any_(bindparam("all_of_id", type_=ARRAY(Id))),
        api_keys.c.id == _CHANGES.c.of_id,
        api_keys.c.value_uuid == _CHANGES.c.of_value,
        api_keys.c.encrypted_key == _CHANGES.c.of_ciphertext,
    )
    .values(encrypted_key=_CHANGES.c.to, key_version=_CHANGES.c.version, undecryptable=False)
)
