"""Housekeeping, on a real SQLite and a real PostgreSQL: what has ended goes, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select
from sqlalchemy.engine import URL

from keyman.errors import DatabaseUnavailable
from keyman.identity.sessions import SESSION_IDLE
from keyman.identity.tables import sessions, throttle
from keyman.keys.idempotency import LIFETIME
from keyman.keys.tables import idempotency
from keyman.planes.management import housekeeping
from keyman.storage.transactions import Database, Unchecked
from tests.support.rows import add, add_owner, count, row, table

pytestmark = pytest.mark.anyio

MOMENT = datetime(2026, 6, 1, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)
SWEPT = ("sessions", "throttle", "idempotency")


@pytest.fixture
async def db_with_owner(database: URL, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """With one account, at a moment that does not pass."""
    monkeypatch.setattr(housekeeping, "now", lambda: MOMENT)
    made = Database(database)
    await add_owner(made)
    yield made
    await made.close()


async def fill(db: Database, name: str, rows: list[dict[str, Any]]) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(insert(table(name)), rows)


async def test_exactly_what_has_ended_is_removed(db_with_owner: Database) -> None:
    later, long_ago = MOMENT + TICK, MOMENT - timedelta(days=400)
    seen = MOMENT - SESSION_IDLE
    kept = {
        "sessions": [row("sessions", created_at=long_ago, last_seen_at=seen + TICK, expires_at=later)],
        "throttle": [row("throttle", ends_at=later)],
        "idempotency": [row("idempotency", created_at=MOMENT - LIFETIME + TICK)],
    }
    ended = {
        "sessions": [
            row("sessions", last_seen_at=later, expires_at=MOMENT),
            row("sessions", last_seen_at=seen, expires_at=later),
            row("sessions", last_seen_at=long_ago, expires_at=long_ago),
        ],
        "throttle": [row("throttle", ends_at=MOMENT), row("throttle", ends_at=long_ago)],
        "idempotency": [row("idempotency", created_at=MOMENT - LIFETIME), row("idempotency", created_at=long_ago)],
    }
    proof = {"sessions": sessions.c.id_hash, "throttle": throttle.c.bucket, "idempotency": idempotency.c.key_hash}
    for name in SWEPT:
        await fill(db_with_owner, name, kept[name] + ended[name])
    for _ in range(2):
        await housekeeping.sweep(db_with_owner)
        for name in SWEPT:
            async with db_with_owner.read() as connection:
                left = (await connection.execute(select(proof[name]))).scalars().all()
            assert left == [one[proof[name].name] for one in kept[name]], name


async def test_what_does_not_end_is_not_deleted(db_with_owner: Database) -> None:
    long_ago = MOMENT - timedelta(days=4000)
    async with db_with_owner.write(Unchecked.OPERATOR) as connection:
        await add(connection, "api_keys", created_at=long_ago, updated_at=long_ago, expires_at=long_ago)
        await add(connection, "api_tokens", created_at=long_ago, expires_at=long_ago, last_used_at=long_ago)
        await add(connection, "audit_log", at=long_ago)
    await housekeeping.sweep(db_with_owner)
    assert [await count(db_with_owner, name) for name in ("users", "api_keys", "api_tokens", "audit_log")] == [
        1,
        1,
        1,
        1,
    ]


@settings(max_examples=15)
@given(st.lists(st.booleans(), max_size=25))
async def test_as_many_batches_as_it_takes(db_with_owner: Database, has_ended: list[bool]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(housekeeping, "BATCH", 5)
        async with db_with_owner.write(Unchecked.OPERATOR) as connection:
            await connection.execute(delete(throttle))
        if has_ended:
            await fill(
                db_with_owner, "throttle", [row("throttle", ends_at=MOMENT + TICK * (not ended)) for ended in has_ended]
            )
        await housekeeping.sweep(db_with_owner)
        assert await count(db_with_owner, "throttle") == has_ended.count(False)


async def test_more_than_one_batch_of_each_is_removed(db_with_owner: Database) -> None:
    number = 2 * housekeeping.BATCH + 100
    for name, ended in (
        ("sessions", {"expires_at": MOMENT}),
        ("throttle", {"ends_at": MOMENT}),
        ("idempotency", {"created_at": MOMENT - LIFETIME}),
    ):
        await fill(db_with_owner, name, [row(name, **ended) for _ in range(number)])
    async with db_with_owner.write(Unchecked.OPERATOR) as connection:
        await add(connection, "sessions", last_seen_at=MOMENT, expires_at=MOMENT + TICK)
    await housekeeping.sweep(db_with_owner)
    assert [await count(db_with_owner, name) for name in SWEPT] == [1, 0, 0]


async def test_idempotency_keys_that_several_owners_chose_alike_are_all_removed(
    db_with_owner: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "BATCH", 3)
    async with db_with_owner.write(Unchecked.OPERATOR) as connection:
        owners = [1, *[await add(connection, "users") for _ in range(3)]]
    rows = [
        row("idempotency", user_id=owner, key_hash=bytes([n]) * 32, created_at=MOMENT - LIFETIME)
        for n in range(4)
        for owner in owners
    ]
    await fill(db_with_owner, "idempotency", rows)
    await housekeeping.sweep(db_with_owner)
    assert await count(db_with_owner, "idempotency") == 0


async def test_replicas_that_sweep_at_once_do_no_harm(database: URL, db_with_owner: Database) -> None:
    other = Database(database)
    await fill(db_with_owner, "throttle", [row("throttle", ends_at=MOMENT + TICK * (n % 2)) for n in range(3000)])
    outcomes = await asyncio.gather(
        *(housekeeping.sweep(replica) for replica in (db_with_owner, other, db_with_owner)), return_exceptions=True
    )
    # Two at the same moment may get an error to retry. At least one of them succeeds.
    assert None in outcomes
    assert {type(outcome) for outcome in outcomes} <= {type(None), DatabaseUnavailable}
    await housekeeping.sweep(db_with_owner)
    assert await count(db_with_owner, "throttle") == 1500
    await other.close()


async def test_a_round_waits_for_no_lock_while_it_holds_others(
    postgresql: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt to sign in locks two rows of `throttle`, one after the other. A round must not hold the second one
    while it waits for the first one.
    """
    monkeypatch.setattr(housekeeping, "now", lambda: MOMENT)
    db = Database(postgresql)
    try:
        await add_owner(db)
        rows = {
            "sessions": [row("sessions", expires_at=MOMENT) for _ in range(2)],
            "throttle": [row("throttle", ends_at=MOMENT) for _ in range(2)],
            "idempotency": [row("idempotency", created_at=MOMENT - LIFETIME) for _ in range(2)],
        }
        for name in SWEPT:
            await fill(db, name, rows[name])
            async with db.write(Unchecked.OPERATOR) as connection:
                # The last one in the order of the table, so that a round has locked the first one before.
                one = f"SELECT ctid FROM {name} ORDER BY ctid DESC LIMIT 1 FOR UPDATE"  # noqa: S608  # of this test
                await connection.exec_driver_sql(one)
                async with asyncio.timeout(60):
                    await housekeeping.sweep(db)
            assert await count(db, name) == 1
            await housekeeping.sweep(db)
            assert await count(db, name) == 0
    finally:
        await db.close()


async def test_a_round_that_fails_does_not_end_the_rounds(
    db_with_owner: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []
    sweep = housekeeping.sweep
    enough = asyncio.Event()

    async def failing_at_first(given: Database) -> None:
        rounds.append(len(rounds))
        if len(rounds) == 1:
            raise DatabaseUnavailable
        if len(rounds) == 2:
            raise RuntimeError("a mistake of ours")
        await sweep(given)
        enough.set()

    monkeypatch.setattr(housekeeping, "INTERVAL", 0.01)
    monkeypatch.setattr(housekeeping, "sweep", failing_at_first)
    await fill(db_with_owner, "throttle", [row("throttle", ends_at=MOMENT)])
    task = asyncio.create_task(housekeeping.run(db_with_owner))
    async with asyncio.timeout(60):
        await enough.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await count(db_with_owner, "throttle") == 0
