"""`keyman.audit.retention`: pruning removes only old, anchored entries; the rest verify and name each key's value."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.engine import URL

from keyman.audit import retention
from keyman.audit.entries import NO_VALUE, OPERATOR, Action, Entry
from keyman.audit.log import current_value, record
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.ids import KeyId, UserId
from keyman.keys.tables import api_keys
from keyman.storage.transactions import Database, Unchecked
from tests.audit.conftest import Trail
from tests.support.rows import add, add_owner

pytestmark = pytest.mark.anyio

LATER = timedelta(days=1)


async def prune(kept: Trail, **age: Any) -> retention.Pruned:
    """Everything up to now, anchored now, unless it is younger than `age`."""
    heads = (await kept.verified()).heads
    before = now() - timedelta(**age) if age else now() + LATER
    return await retention.prune(kept.db, await retention.prunable(kept.db, before, heads))


async def tell(kept: Trail, key_id: int, value: UUID, action: Action = Action.KEY_REPLACE) -> None:
    async with kept.db.write(Unchecked.OPERATOR) as connection:
        await record(connection, Entry(action, OPERATOR, key_id=KeyId(key_id), service="OPENAI", value_uuid=value))


async def current(kept: Trail, key_id: int) -> UUID | None:
    async with kept.db.read() as connection:
        return (await connection.execute(select(current_value(key_id)))).scalar_one()


async def test_what_is_old_and_anchored_goes_and_the_rest_verifies(bent: Trail) -> None:
    before = {row.id for row in await bent.rows()}
    heads = (await bent.verified()).heads
    await bent.write(10)
    newer = {row.id for row in await bent.rows()} - before
    pruned = await retention.prune(bent.db, await retention.prunable(bent.db, now() + LATER, heads))
    assert pruned == (len(before), 0)
    left = await bent.rows()
    assert newer <= {row.id for row in left}
    assert not before & {row.id for row in left}
    assert {row.action for row in left if row.id not in newer} == {Action.TRAIL_PRUNE}
    found = await bent.verified(heads)
    assert (found.breaks, found.pruned) == ([], [])  # they are where the chains begin
    await bent.write(5)
    assert await bent.broken() == []


async def test_what_is_not_old_enough_stays(bent: Trail) -> None:
    rows = await bent.rows()
    assert await prune(bent, days=1) == (0, 0)
    assert await bent.rows() == rows


async def test_an_entry_that_is_newer_keeps_what_follows_it(bent: Trail) -> None:
    """Clocks of two processes do not agree: a chain ends where the first one begins that is to be kept."""
    rows = await bent.longest()
    moment = rows[4].at
    heads = (await bent.verified()).heads
    cuts = {cut.chain: cut for cut in await retention.prunable(bent.db, moment, heads)}
    assert cuts[rows[0].chain] == (rows[0].chain, 4, 4)


async def test_it_is_pruned_again_and_again(bent: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    monkeypatch.setattr(retention, "PAUSE", 0)
    for _ in range(3):
        old = (await bent.verified()).heads
        await prune(bent)
        await bent.write(12)
        found = await bent.verified(old)
        assert found.breaks == []
    # An anchor from before says of what is gone that it is.
    await prune(bent)
    assert (await bent.verified(old)).pruned != []


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # PostgreSQL's writers go to another chain
async def test_who_writes_to_sqlite_meanwhile_does_not_wait_until_all_is_pruned(
    bent: Trail, database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    find, holds = retention._current, asyncio.Event()

    async def slowly(*given: Any) -> object:
        holds.set()
        await asyncio.sleep(0.3)
        return await find(*given)

    monkeypatch.setattr(retention, "_current", slowly)
    pruning = asyncio.create_task(prune(bent))
    await holds.wait()
    service = Database(database)  # a process of its own: it waits in SQLite
    async with service.write(Unchecked.OPERATOR) as connection:
        await record(connection, Entry(Action.ENABLE, OPERATOR))
    assert not pruning.done()
    await pruning
    await service.close()
    assert await bent.broken() == []


async def test_a_second_pruning_that_somebody_hides_is_found(bent: Trail) -> None:
    await prune(bent)
    await bent.write(60)
    rows = [row for row in await bent.longest() if row.action != Action.TRAIL_PRUNE]
    first = [row for row in await bent.rows(audit_log.c.chain == rows[0].chain) if row.sequence <= rows[3].sequence]
    await bent.remove(*[row.id for row in first])
    await bent.end(rows[0].chain, base_sequence=rows[3].sequence, base_hash=rows[3].hash)
    (found,) = await bent.broken()
    assert found == (
        1,
        None,
        f"entries missing at the beginning of the chain, whose pruning no entry records: {rows[3].sequence}",
    )


async def test_what_a_key_holds_is_said_again(kept: Trail) -> None:
    old, value = uuid4(), uuid4()
    await tell(kept, 1, old, Action.KEY_CREATE)
    await tell(kept, 1, value)
    await tell(kept, 2, uuid4(), Action.KEY_CREATE)
    await tell(kept, 2, NO_VALUE, Action.KEY_DELETE)
    assert (await prune(kept)).carried in (1, 2)  # of the deleted one, if its chain goes before that of its value
    assert await current(kept, 1) == value
    assert await current(kept, 2) in (None, NO_VALUE)
    for _ in range(3):
        await prune(kept)
        assert await current(kept, 1) == value
        assert await current(kept, 2) in (None, NO_VALUE)
        assert await kept.broken() == []
    carried = await kept.rows(audit_log.c.action == Action.TRAIL_CARRY)
    assert [row.key_id for row in carried if row.value_uuid != NO_VALUE] == [1]


async def test_what_is_said_again_does_not_overrule_what_came_after(kept: Trail) -> None:
    old, value = uuid4(), uuid4()
    await tell(kept, 1, old, Action.KEY_CREATE)
    heads = (await kept.verified()).heads
    await tell(kept, 1, value)
    await retention.prune(kept.db, await retention.prunable(kept.db, now() + LATER, heads))
    assert await current(kept, 1) == value
    # As when a key is replaced while its older entry goes: that one is said again though it is not current any more.
    async with kept.db.write(Unchecked.OPERATOR) as connection:
        await record(connection, Entry(Action.TRAIL_CARRY, OPERATOR, key_id=KeyId(1), value_uuid=old, as_of=1))
    assert await current(kept, 1) == value


async def test_no_older_value_comes_back_whichever_chain_goes_first(kept: Trail) -> None:
    chance = [uuid4() for _ in range(60)]
    for value in chance:
        await tell(kept, 1, value)
    await tell(kept, 1, NO_VALUE, Action.KEY_DELETE)
    heads = (await kept.verified()).heads
    for cut in await retention.prunable(kept.db, now() + LATER, heads):
        await retention.prune(kept.db, [cut])
        assert await current(kept, 1) in (None, NO_VALUE)


async def test_replacing_deleting_and_pruning_at_once_leave_a_valid_audit_log(
    kept: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    monkeypatch.setattr(retention, "PAUSE", 0.0)
    await add_owner(kept.db)
    async with kept.db.write(Unchecked.OPERATOR) as connection:
        ids = [await add(connection, "api_keys") or 0 for _ in range(4)]
    writing = len(ids)

    async def replace(key_id: int) -> None:
        """As keyman does: the row, then the entry, in one transaction."""
        nonlocal writing
        for _ in range(25):
            value = uuid4()
            async with kept.db.write(Unchecked.OPERATOR) as connection:
                await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(value_uuid=value))
                await record(
                    connection, Entry(Action.KEY_REPLACE, OPERATOR, UserId(1), key_id=KeyId(key_id), value_uuid=value)
                )
        if key_id == ids[-1]:
            async with kept.db.write(Unchecked.OPERATOR) as connection:
                await connection.execute(delete(api_keys).where(api_keys.c.id == key_id))
                await record(
                    connection, Entry(Action.KEY_DELETE, OPERATOR, UserId(1), key_id=KeyId(key_id), value_uuid=NO_VALUE)
                )
        writing -= 1

    gone: list[int] = []

    async def prune_on() -> None:
        while writing:
            gone.append((await prune(kept)).entries)

    await asyncio.gather(prune_on(), *(replace(key_id) for key_id in ids))
    assert sum(gone) > 0
    assert await kept.broken() == []
    async with kept.db.read() as connection:
        held = {
            row.id: row.value_uuid for row in await connection.execute(select(api_keys.c.id, api_keys.c.value_uuid))
        }
    assert [await current(kept, key_id) for key_id in ids[:-1]] == [held[key_id] for key_id in ids[:-1]]
    assert await current(kept, ids[-1]) in (None, NO_VALUE)
