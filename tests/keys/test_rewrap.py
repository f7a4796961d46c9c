"""Rewrapping: every value that opens gets the newest version, and nothing else changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import delete, select, text, update

from keyman.config.vault import VaultSettings
from keyman.errors import KeymanError, VaultReason, VaultUnavailable
from keyman.ids import KeyId, UserId
from keyman.keys import rewrap
from keyman.keys.deployment import Deployment, deployment
from keyman.keys.rewrap import CHUNK, IN_FLIGHT, RefusedKey, behind, oldest_version
from keyman.keys.tables import api_keys
from keyman.storage.statements import scalar
from keyman.storage.transactions import Database, Unchecked
from keyman.vault.cipher import Sealed
from keyman.vault.login import VaultClient
from keyman.vault.rotation import MAX_BATCH, Bound, KeyRotation
from tests.keys.conftest import Stock
from tests.support.waiting import becomes

pytestmark = pytest.mark.anyio


class Interrupted(KeyRotation):
    """Vault as it is; between its answer and the storing of it, something happens, once."""

    def __init__(self, client: VaultClient, settings: VaultSettings, happens: Callable[[], Awaitable[object]]) -> None:
        super().__init__(client, settings)
        self._happens: Callable[[], Awaitable[object]] | None = happens

    async def rewrap(self, items: Sequence[Bound]) -> list[Sealed | None]:
        results = await super().rewrap(items)
        happens, self._happens = self._happens, None
        if happens is not None:
            await happens()
        return results


async def rows_of(stock: Stock) -> dict[int, Any]:
    async with stock.db.read() as connection:
        return {row.id: row for row in await connection.execute(select(api_keys))}


async def exchange(stock: Stock, one: int, other: int) -> None:
    """Two rows' ciphertexts change places."""
    rows = await rows_of(stock)
    async with stock.db.write(Unchecked.OPERATOR) as connection:
        for here, there in ((one, other), (other, one)):
            await connection.execute(
                update(api_keys).where(api_keys.c.id == here).values(encrypted_key=rows[there].encrypted_key)
            )


async def test_every_row_comes_to_the_newest_version_and_holds_what_it_held(stock: Stock) -> None:
    await stock.store(CHUNK + MAX_BATCH + 7)
    before = await rows_of(stock)
    await stock.rotate()
    assert await behind(stock.db, 2) == {1: len(before)}
    settled: list[int] = []
    summary = await stock.rewrap(report=settled.append).run()
    assert (summary.latest, summary.rewrapped, summary.refused) == (2, len(before), [])
    assert sum(settled) == len(before)
    assert await stock.versions() == {2}
    assert await stock.opened() == stock.plaintexts
    after = await rows_of(stock)
    for key, row in after.items():
        changed = {name for name, value in row._mapping.items() if value != before[key]._mapping[name]}
        assert changed == {"encrypted_key", "key_version"}  # `updated_at` is not among them, nor the value uuid
    assert await behind(stock.db, 2) == {}
    assert await oldest_version(stock.db) == 2


async def test_a_second_run_finds_nothing_and_changes_nothing(stock: Stock) -> None:
    await stock.store(3)
    await stock.rotate()
    await stock.rewrap().run()
    before = await rows_of(stock)
    assert (await stock.rewrap().run()).rewrapped == 0
    assert await rows_of(stock) == before


async def test_an_empty_database_has_nothing_to_rewrap_and_no_oldest_version(stock: Stock) -> None:
    await stock.rotate()
    assert (await stock.rewrap().run()).rewrapped == 0
    assert await oldest_version(stock.db) is None


async def test_what_vault_refuses_is_marked_and_listed_and_does_not_stop_the_rest(stock: Stock) -> None:
    ids = await stock.store(MAX_BATCH + 5)
    await exchange(stock, ids[0], ids[-1])
    before = await rows_of(stock)
    await stock.rotate()
    summary = await stock.rewrap().run()
    assert summary.refused == [RefusedKey(KeyId(key), UserId(1), "OPENAI") for key in (ids[0], ids[-1])]
    assert summary.rewrapped == len(ids) - 2
    after = await rows_of(stock)
    assert {key for key, row in after.items() if row.undecryptable} == {ids[0], ids[-1]}
    for key in (ids[0], ids[-1]):
        assert after[key].encrypted_key == before[key].encrypted_key
        assert after[key].updated_at == before[key].updated_at
    # They are tried again each time, and cleared once they open.
    assert (await stock.rewrap().run()).refused == summary.refused
    await exchange(stock, ids[0], ids[-1])
    healed = await stock.rewrap().run()
    assert (healed.rewrapped, healed.refused) == (2, [])
    assert not [row for row in (await rows_of(stock)).values() if row.undecryptable]
    assert await stock.opened() == stock.plaintexts


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_rows_are_locked_in_the_order_of_their_ids(stock: Stock) -> None:
    """Also those that Vault refuses: another run, which begins at a later row, may have locked it already."""
    first, second, third = await stock.store(3)
    await exchange(stock, first, third)
    await stock.rotate()
    other = Database(stock.url)
    begun = asyncio.Event()

    async def happens() -> None:
        begun.set()

    try:
        async with other.write(Unchecked.OPERATOR) as connection:
            await connection.execute(select(api_keys.c.id).where(api_keys.c.id == first).with_for_update())
            run = asyncio.create_task(stock.rewrap(Interrupted(stock.client(), stock.settings, happens)).run())
            await begun.wait()
            await becomes(lambda: _waits_for_a_lock(stock), "the run that waits for the first row")
            await connection.execute(select(api_keys.c.id).where(api_keys.c.id == second).with_for_update(nowait=True))
        summary = await run
    finally:
        await other.close()
    assert [key.id for key in summary.refused] == [first, third]
    assert summary.rewrapped == 1


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_each_row_stays_in_its_page(stock: Stock) -> None:
    """Then PostgreSQL writes to none of the indexes."""
    await stock.store(MAX_BATCH)
    pages = await _pages(stock)
    assert len(set(pages.values())) > 1
    for _ in range(2):
        await stock.rotate()
        assert (await stock.rewrap().run()).rewrapped == MAX_BATCH
        assert await _pages(stock) == pages


async def _pages(stock: Stock) -> dict[int, str]:
    """The page of each row, by the row's id."""
    async with stock.db.read() as connection:
        places = await connection.execute(text("SELECT id, ctid::text AS place FROM api_keys"))
        return {row.id: row.place.split(",")[0] for row in places}


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_a_replacement_wins_that_is_committed_while_the_run_waits_for_its_row(stock: Stock) -> None:
    first, second = await stock.store(2)
    await stock.rotate()
    [fresh] = await stock.store(1)
    new = (await rows_of(stock))[fresh]
    stock.plaintexts[second] = stock.plaintexts.pop(fresh)
    async with stock.db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(delete(api_keys).where(api_keys.c.id == fresh))
    other = Database(stock.url)
    try:
        async with other.write(Unchecked.OPERATOR) as connection:
            await connection.execute(
                update(api_keys)
                .where(api_keys.c.id == second)
                .values(encrypted_key=new.encrypted_key, key_version=new.key_version, value_uuid=new.value_uuid)
            )
            run = asyncio.create_task(stock.rewrap().run())
            await becomes(lambda: _waits_for_a_lock(stock), "the run that waits for the second row")
        await run
    finally:
        await other.close()
    rows = await rows_of(stock)
    assert (rows[second].encrypted_key, rows[second].value_uuid) == (new.encrypted_key, new.value_uuid)
    assert rows[first].key_version == 2
    assert await stock.opened() == stock.plaintexts


async def _waits_for_a_lock(stock: Stock) -> bool:
    async with stock.db.read() as connection:
        return bool(await _WAITING.one(connection))


_WAITING = scalar(
    text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"), int
)


async def test_a_row_that_was_marked_at_the_newest_version_is_tried_again(stock: Stock) -> None:
    [key] = await stock.store(1)
    async with stock.db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(api_keys).values(undecryptable=True))
    assert await behind(stock.db, 1) == {1: 1}
    assert (await stock.rewrap().run()).rewrapped == 1
    assert not (await rows_of(stock))[key].undecryptable


async def test_who_replaced_or_deleted_a_key_meanwhile_wins(stock: Stock) -> None:
    replaced, deleted, left = await stock.store(3)
    await stock.rotate()

    async def happens() -> None:
        [fresh] = await stock.store(1)
        new = (await rows_of(stock))[fresh]
        async with stock.db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(delete(api_keys).where(api_keys.c.id.in_([deleted, fresh])))
            await connection.execute(
                update(api_keys)
                .where(api_keys.c.id == replaced)
                .values(encrypted_key=new.encrypted_key, key_version=new.key_version, value_uuid=new.value_uuid)
            )
        stock.plaintexts[replaced] = stock.plaintexts.pop(fresh)
        del stock.plaintexts[deleted]

    await stock.rewrap(Interrupted(stock.client(), stock.settings, happens)).run()
    assert await stock.opened() == stock.plaintexts
    assert stock.plaintexts.keys() == {replaced, left}


async def test_a_row_sealed_before_the_rotation_and_stored_behind_the_run_is_not_missed(stock: Stock) -> None:
    first, *_ = await stock.store(3)
    await stock.rotate()

    async def happens() -> None:
        """A replacement that was sealed with the old version is committed only now, at an id that is past."""
        [late] = await stock.store(1, version=1)
        new = (await rows_of(stock))[late]
        async with stock.db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(delete(api_keys).where(api_keys.c.id == late))
            await connection.execute(
                update(api_keys)
                .where(api_keys.c.id == first)
                .values(encrypted_key=new.encrypted_key, key_version=1, value_uuid=new.value_uuid)
            )
        stock.plaintexts[first] = stock.plaintexts.pop(late)

    await stock.rewrap(Interrupted(stock.client(), stock.settings, happens)).run()
    assert await stock.versions() == {2}
    assert await stock.opened() == stock.plaintexts


class Lagging(KeyRotation):
    """A Vault behind whose answers are older than it said its key is, for ever."""

    async def rewrap(self, items: Sequence[Bound]) -> list[Sealed | None]:
        return [sealed and sealed._replace(key_version=1) for sealed in await super().rewrap(items)]


async def test_rows_that_stay_behind_whatever_is_done_end_the_run(stock: Stock) -> None:
    await stock.store(2)
    await stock.rotate()
    with pytest.raises(KeymanError, match="still at an older version"):
        await stock.rewrap(Lagging(stock.client(), stock.settings)).run()
    assert await stock.opened() == stock.plaintexts


async def test_two_runs_at_once_do_no_harm(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrap, "CHUNK", MAX_BATCH)
    await stock.store(MAX_BATCH * 3)
    await stock.rotate()
    summaries = await asyncio.gather(stock.rewrap().run(), stock.rewrap().run())
    assert [summary.refused for summary in summaries] == [[], []]
    assert await stock.versions() == {2}
    assert await stock.opened() == stock.plaintexts


async def test_a_run_that_is_stopped_has_lost_nothing_and_the_next_one_goes_on(
    stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrap, "CHUNK", MAX_BATCH)
    count = MAX_BATCH * (IN_FLIGHT + 3)
    await stock.store(count)
    await stock.rotate()
    task: asyncio.Task[Any]

    def stop(_settled: int) -> None:
        task.cancel()

    task = asyncio.create_task(stock.rewrap(report=stop).run())
    with pytest.raises(asyncio.CancelledError):
        await task
    remaining = sum((await behind(stock.db, 2)).values())
    assert 0 < remaining < count
    assert await stock.opened() == stock.plaintexts
    assert (await stock.rewrap().run()).rewrapped == remaining
    assert await stock.opened() == stock.plaintexts
    assert await stock.versions() == {2}


async def test_a_vault_that_goes_away_stops_the_run_and_marks_nothing(stock: Stock) -> None:
    await stock.store(2)
    await stock.rotate()
    gone = stock.client()

    async def happens() -> None:
        await gone.close()
        # A replacement keeps the run going for one more call, which finds nobody.
        await stock.store(1, version=1)

    with pytest.raises(VaultUnavailable):
        await stock.rewrap(Interrupted(gone, stock.settings, happens)).run()
    assert not [row for row in (await rows_of(stock)).values() if row.undecryptable]


async def test_no_call_goes_on_after_one_has_failed(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls of one chunk are at Vault at the same time."""
    monkeypatch.setattr(rewrap, "MAX_BATCH", 1)
    monkeypatch.setattr(rewrap, "CHUNK", 4)
    await stock.store(4)
    await stock.rotate()
    gone = stock.client()
    await gone.close()
    begun, ended = list[Bound](), list[Bound]()

    class Slow(KeyRotation):
        async def rewrap(self, items: Sequence[Bound]) -> list[Sealed | None]:
            begun.extend(items)
            if len(begun) == 4:
                return await KeyRotation(gone, stock.settings).rewrap(items)
            try:
                await asyncio.Event().wait()
            finally:
                ended.extend(items)
            return await super().rewrap(items)

    with pytest.raises(VaultUnavailable):
        await stock.rewrap(Slow(stock.client(), stock.settings)).run()
    assert set(ended) == set(begun[:3])
    assert await stock.versions() == {1}


async def test_another_key_of_the_same_name_marks_nothing(stock: Stock) -> None:
    await stock.store(2)
    before = await rows_of(stock)
    await make_another_key(stock)
    with pytest.raises(VaultUnavailable) as caught:
        await stock.rewrap().run()
    assert caught.value.reason is VaultReason.WRONG_KEY
    assert await rows_of(stock) == before


async def test_a_key_exchanged_under_the_run_marks_nothing(stock: Stock) -> None:
    await stock.store(MAX_BATCH * 2)
    await stock.rotate()
    before = await rows_of(stock)

    class Exchanged(KeyRotation):
        async def rewrap(self, items: Sequence[Bound]) -> list[Sealed | None]:
            async with lock:
                if not exchanged:
                    await make_another_key(stock)
                    exchanged.append(True)
            return await super().rewrap(items)

    lock, exchanged = asyncio.Lock(), list[bool]()
    with pytest.raises(VaultUnavailable) as caught:
        await stock.rewrap(Exchanged(stock.client(), stock.settings)).run()
    assert caught.value.reason is VaultReason.WRONG_KEY
    assert await rows_of(stock) == before


async def make_another_key(stock: Stock) -> None:
    await stock.admin.post(f"{stock.path('keys')}/config", json={"deletion_allowed": True})
    await stock.admin.delete(stock.path("keys"))
    await stock.admin.post(stock.path("keys"), json={"derived": True, "type": "aes256-gcm96"})


async def test_a_service_that_runs_goes_on_when_the_old_version_is_retired(stock: Stock) -> None:
    """The sentinel it remembers is of the old version, which Vault then refuses; the stored one is of the new."""
    service = stock.guard(deployment=await Deployment.load(stock.db))
    await service.verify(0)
    await stock.store(1)
    await stock.rotate()
    await stock.rewrap().run()
    async with stock.db.read() as connection:
        sentinel = (await connection.execute(select(deployment.c.sentinel))).scalar_one()
    assert sentinel.startswith("vault:v2:")
    await stock.admin.post(f"{stock.path('keys')}/config", json={"min_decryption_version": 2})
    await service.verify(0)
    await stock.guard(deployment=await Deployment.load(stock.db)).verify(0)
    assert await stock.opened() == stock.plaintexts


async def test_what_was_sealed_with_a_retired_version_is_marked_until_it_is_allowed_again(stock: Stock) -> None:
    [old] = await stock.store(1)
    await stock.rotate()
    await stock.rewrap().run()
    [late] = await stock.store(1, version=1)
    await stock.admin.post(f"{stock.path('keys')}/config", json={"min_decryption_version": 2})
    assert [key.id for key in (await stock.rewrap().run()).refused] == [late]
    await stock.admin.post(f"{stock.path('keys')}/config", json={"min_decryption_version": 1})
    assert (await stock.rewrap().run()).rewrapped == 1
    assert await stock.opened() == {key: stock.plaintexts[key] for key in (old, late)}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # PostgreSQL refuses such values
@pytest.mark.parametrize(
    "harm",
    [
        "value_uuid = 'c4n4ry'",
        "value_uuid = x'00'",
        "service = x'4f'",
        "service = CAST(x'ff' AS TEXT)",
        "key_version = 'c4n4ry'",
        "key_version = x'01'",
    ],
)
async def test_a_row_that_cannot_be_read_is_named_and_the_others_are_rewrapped(stock: Stock, harm: str) -> None:
    await stock.store(5)
    await stock.rotate()
    async with stock.db.write(Unchecked.OPERATOR) as connection:
        damaged = (
            await connection.execute(select(api_keys.c.id).order_by(api_keys.c.id).offset(2).limit(1))
        ).scalar_one()
        await connection.exec_driver_sql(f"UPDATE api_keys SET {harm} WHERE id = {damaged}")  # noqa: S608  # both are of this test
    summary = await stock.rewrap().run()
    assert (summary.rewrapped, summary.refused, summary.damaged) == (4, [], {damaged})
