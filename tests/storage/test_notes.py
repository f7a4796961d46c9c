"""Notes that wait at the same moment: one transaction, one note for each row, and nobody waits for them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from unittest import mock

import pytest
from sqlalchemy import select
from sqlalchemy.engine import URL

from keyman.clock import now
from keyman.identity.standing import HolderLock
from keyman.identity.tables import users
from keyman.keys import release
from keyman.keys.tables import api_keys
from keyman.storage import driver, last_use, notes
from keyman.storage.transactions import Database, Unchecked
from tests.support.rows import add, add_owner

pytestmark = pytest.mark.anyio

KEYS = 20


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a note is skipped otherwise."""
    monkeypatch.setattr(notes, "NOTE_PATIENCE", 5.0)


async def fill(db: Database) -> list[int]:
    await add_owner(db)
    async with db.write(Unchecked.OPERATOR) as connection:
        return [await add(connection, "api_keys") or 0 for _ in range(KEYS)]


async def note(db: Database, key_id: int, application: str) -> None:
    moment = now()
    await db.note_together(
        Unchecked.LAST_USE,
        release._NOTE_USE,
        about=key_id,
        of_id=key_id,
        moment=moment,
        **last_use.bounds(moment),
        used_by=application,
    )


async def test_the_last_uses_of_many_keys_are_noted_together(db: Database) -> None:
    ids = await fill(db)
    with mock.patch.object(driver, "commit", wraps=driver.commit) as commit:
        await asyncio.gather(*(note(db, key_id, f"app {key_id}") for key_id in [*ids, *ids]))
    assert commit.call_count <= 2  # a first note can be by itself
    async with db.read() as connection:
        rows = (await connection.execute(select(api_keys.c.id, api_keys.c.last_used_at, api_keys.c.last_used_by))).all()
    assert {row.id: row.last_used_by for row in rows} == {key_id: f"app {key_id}" for key_id in ids}
    assert all(now() - row.last_used_at < timedelta(minutes=1) for row in rows)


async def test_a_caller_makes_one_note_at_a_time(db: Database) -> None:
    """Each would wait for the one before, and then find nothing to do."""
    await fill(db)
    parameters = {"of_id": 1, "moment": now(), **last_use.bounds(now()), "stale_at": now(), "used_by": "-"}
    with mock.patch.object(driver, "commit", wraps=driver.commit) as commit:
        await asyncio.gather(*(db.note(HolderLock(users, 1), release._NOTE_USE, **parameters) for _ in range(10)))
        assert commit.call_count == 1
        await db.note(HolderLock(users, 1), release._NOTE_USE, **parameters)
        assert commit.call_count == 2


async def test_notes_are_skipped_together_where_a_row_is_locked(
    postgresql: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "NOTE_PATIENCE", 0.05)
    db = Database(postgresql)
    ids = await fill(db)
    async with db.write(Unchecked.OPERATOR) as holder:
        await holder.execute(select(api_keys.c.id).where(api_keys.c.id == ids[3]).with_for_update())
        async with asyncio.timeout(10):
            await asyncio.gather(*(note(db, key_id, "app") for key_id in ids))
    async with db.read() as connection:
        assert set((await connection.execute(select(api_keys.c.last_used_at))).scalars()) == {None}
    await db.close()
