"""Rewraps stored ciphertexts with the newest version of Vault's key, while the planes keep running.

Each row is stored by compare-and-set on its value uuid and ciphertext, so that a replacement or deletion in the
meantime wins. Each chunk is committed separately: a run that ends early loses nothing, the next one continues, and two
at the same time do some work twice at worst. `updated_at` stays, because nothing that a client sees has changed.
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
from keyman.storage.transactions import Database
from keyman.storage.types import Id
from keyman.vault.cipher import Context
from keyman.vault.guard import KeyGuard, SentinelStore, sentinel_context
from keyman.vault.rotation import MAX_BATCH, Bound, KeyRotation

IN_FLIGHT = 4
"""Chunks at the same time: while one is stored, Vault works on others. More do not make it faster."""


PASSES = 10
"""Rounds over the table. The first does the work; the others find the few rows that were stored meanwhile. If some are
still behind after that, more rounds would not help, and the run would never end.
"""


class ReplaceableSentinel(SentinelStore, Protocol):
    """The storage of the sentinel, which can replace it by the same sentinel with another key version."""

    async def replace_sentinel(self, before: str, ciphertext: str) -> None: ...


class RefusedKey(NamedTuple):
    """A key whose ciphertext Vault does not open. It is marked `undecryptable`."""

    id: KeyId
    user_id: UserId
    service: str


@dataclass
class Summary:
    """The result of a run: how many rows were rewrapped to `latest`, which ones Vault refused, and the ids of damaged
    rows, whose values are invalid and which are not changed.
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
        """Rewrap every row that is behind, and the sentinel. Raises VaultUnavailable and DatabaseUnavailable; what was
        done until then is stored; KeymanError where rows stay behind for good.
        """
        # With another Vault or another key, every row would look damaged.
        await self._guard.verify(0)
        summary = Summary((await self._rotation.versions()).latest)
        # Again, until there is nothing: what was sealed just before the rotation may be stored only now.
        for _ in range(PASSES):
            if not await self._pass(summary):
                break
        else:
            raise KeymanError(
                "Some keys are still at an older version however often they are rewrapped: something else writes them "
                "as well, or the database holds them in a form that is not keyman's. `keyman rewrap --dry-run` counts "
                "them."
            )
        await self._rewrap_sentinel()
        summary.refused.sort()
        counted = f"to version {summary.latest}: {summary.rewrapped} rewrapped, {len(summary.refused)} refused"
        await _tell(self._db, Action.VAULT_REWRAP, counted)
        return summary

    async def _pass(self, summary: Summary) -> bool:
        """Go over the table once; False when there was nothing to do."""
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
        """The next rows that are behind, in the order of their ids; each goes to one worker.

        A row that cannot be read is added to the damaged ones and passed over.
        """
        limit = MAX_BATCH
        behind = _BEHIND_ON_SQLITE if self._db.is_sqlite else _BEHIND
        async with self._paging:
            while True:
                try:
                    async with self._db.read() as connection:
                        rows = await behind.rows.all(connection, after=self._after, latest=summary.latest, limit=limit)
                except RefusedStatement:  # by the driver, for text that is not UTF-8, or by the column types
                    if limit > 1:
                        limit //= 2  # closer to the one that it is
                        continue
                    async with self._db.read() as connection:
                        damaged = await behind.lowest.one(connection, after=self._after, latest=summary.latest)
                    if damaged is not None:  # else somebody has deleted it since
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
        rewrapped: list[dict[str, object]] = []
        refused: list[dict[str, object]] = []
        for row, sealed in zip(rows, await self._rotation.rewrap(items), strict=True):
            as_read = {"of_id": row.id, "of_value": row.value_uuid, "of_ciphertext": row.encrypted_key}
            if sealed is None:
                refused.append(as_read)
            else:
                rewrapped.append(as_read | {"to": sealed.ciphertext, "version": sealed.key_version})
        if refused:
            await self._guard.verify(0)  # no row is marked for a key that was exchanged under this run
        # Rows are locked in the order of their ids, so that two runs wait for each other and never crosswise.
        async with self._db.write() as connection:
            if rewrapped:
                await _STORE.execute_many(connection, rewrapped)
            if refused:
                await _MARK.execute_many(connection, refused)
        summary.rewrapped += len(rewrapped)
        marked = {entry["of_id"] for entry in refused}
        summary.refused += [RefusedKey(row.id, row.user_id, row.service) for row in rows if row.id in marked]
        self._report(len(rows))

    async def _rewrap_sentinel(self) -> None:
        """Rewrap the sentinel. Otherwise, once old versions are retired, the key would look like another one."""
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
    async with db.write() as connection:
        await record(connection, Entry(action, OPERATOR, detail=detail))


async def behind(db: Database, latest: int) -> Mapping[int, int]:
    """Return how many rows a run would try, by the key version that sealed them."""
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
    """The next rows that are behind, and the lowest id among all of them; on SQLite other rows than on PostgreSQL."""

    rows: Query[_Row]
    lowest: Query[KeyId | None]


class _Count(NamedTuple):
    key_version: int
    total: int


# Rows that are marked are tried again, whatever their version: the right Vault may be back.
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
# SQLite takes a text for a number, and sorts it above all numbers.
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
    """Return False for a row whose values are of other types than keyman writes, and add it to the damaged ones."""
    sound = all(isinstance(value, kind) for value, kind in zip(row, (int, int, int, str, UUID, str, int), strict=True))
    if not sound:
        summary.damaged.add(row.id)
    return sound


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
_MARK = Command(update(api_keys).where(*_AS_READ).values(undecryptable=True))
