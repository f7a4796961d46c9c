"""Commits together: what a group stores, what its members get, and what is true when the database goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import aiosqlite
import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Actor, Entry, Origin
from keyman.audit.log import record
from keyman.errors import DatabaseUnavailable, NotFound, RefusedStatement, Unauthenticated
from keyman.identity.tables import throttle
from keyman.keys.probe import probes
from keyman.storage import committed, driver, engine, together, transactions
from keyman.storage.faults import CommitLost
from keyman.storage.group import Work, gathered, later
from keyman.storage.statements import Command, scalar
from keyman.storage.transactions import Database, Unchecked
from tests.support.database import PostgresServer
from tests.support.groups import groups_go_well
from tests.support.rows import add, count, row

pytestmark = pytest.mark.anyio

MEMBERS = 100

_ADD = Command(insert(throttle))
_COUNT = scalar(select(func.count()).select_from(throttle), int)
_MISSPELLED = Command(text("SELECT nonsense"))
_PATIENCE = scalar(select(func.current_setting("lock_timeout")), str)
_LOCK_PROBE = scalar(select(probes.c.plane).limit(1).with_for_update(), str)
_SLEEP = scalar(select(func.pg_sleep(0.3)), object)
_END = scalar(select(func.pg_terminate_backend(func.pg_backend_pid())), bool)


@dataclass(frozen=True)
class By:
    """An authority that may act, or not, and counts the checks of groups."""

    may_act: bool = True
    rank: int = 1
    kind_of_check: Hashable = "test"

    async def confirm(self, connection: AsyncConnection) -> None:
        if not self.may_act:
            raise Unauthenticated("no longer")

    async def confirm_together(self, connection: AsyncConnection, all_of: Sequence[By]) -> list[Exception | None]:
        return [None if each.may_act else Unauthenticated("no longer") for each in all_of]


def storing(result: int, **values: Any) -> Work[int]:
    stored = {**row("throttle"), "attempts": result, **values}

    async def work(connection: AsyncConnection) -> int:
        await _ADD.execute(connection, **stored)
        return result

    return work


async def all_of(db: Database, *works: Work[Any], by: By | None = None) -> list[Any]:
    return await asyncio.gather(*(db.together(by or By(), work) for work in works), return_exceptions=True)


@asynccontextmanager
async def commits() -> AsyncIterator[list[None]]:
    """One for each COMMIT of the block."""
    commit, counted = driver.commit, list[None]()

    async def counting(connection: AsyncConnection) -> None:
        counted.append(None)
        await commit(connection)

    with mock.patch.object(driver, "commit", counting):
        yield counted


async def test_writes_that_wait_together_share_a_commit_and_each_gets_its_result(db: Database) -> None:
    async with commits() as counted:
        assert await all_of(db, *(storing(number) for number in range(MEMBERS))) == [*range(MEMBERS)]
    assert len(counted) == 1
    assert await count(db, "throttle") == MEMBERS


async def test_a_group_has_a_maximum(db: Database) -> None:
    async with commits() as counted:
        await all_of(db, *(storing(number) for number in range(together.MAX_MEMBERS + 1)))
    assert len(counted) == 2
    assert await count(db, "throttle") == together.MAX_MEMBERS + 1


async def test_a_member_that_fails_fails_by_itself(db: Database) -> None:
    same = row("throttle")["bucket"]

    async def refuse(connection: AsyncConnection) -> None:
        await _ADD.execute(connection, **row("throttle"))
        raise NotFound("There is nothing with this id.")

    async def misspell(connection: AsyncConnection) -> None:
        await _ADD.execute(connection, **row("throttle"))
        await _MISSPELLED.execute(connection)

    outcomes = await all_of(
        db,
        storing(1, bucket=same),
        refuse,
        storing(2, bucket=same),  # not unique
        storing(-3),  # against a CHECK
        storing(4, ends_at="never"),  # of another type
        misspell,
        storing(7),
    )
    assert [outcome if isinstance(outcome, int) else type(outcome) for outcome in outcomes[:4]] == [
        1,
        NotFound,
        IntegrityError,
        IntegrityError,
    ]
    assert isinstance(outcomes[4], RefusedStatement)
    assert isinstance(outcomes[5], RefusedStatement)
    assert outcomes[6] == 7
    assert await count(db, "throttle") == 2
    assert await all_of(db, storing(1)) == [1]


async def test_a_member_that_may_no_longer_act_does_nothing(db: Database) -> None:
    by = [By(may_act=number % 3 > 0) for number in range(9)]
    works = [db.together(each, storing(1)) for each in by]
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    assert [isinstance(outcome, Unauthenticated) for outcome in outcomes] == [not each.may_act for each in by]
    assert await count(db, "throttle") == 6


async def test_what_is_left_for_the_end_is_done_once_and_not_for_members_that_failed(db: Database) -> None:
    done: list[list[int]] = []

    async def finish(_connection: AsyncConnection, items: Sequence[int]) -> None:
        done.append([*items])

    def leaving(item: int, *, fails: bool) -> Work[None]:
        async def work(connection: AsyncConnection) -> None:
            await later(connection, finish, [item])
            if fails:
                raise NotFound("no")

        return work

    await all_of(db, leaving(1, fails=False), leaving(2, fails=True), leaving(3, fails=False))
    assert done == [[1, 3]]
    async with db.write(Unchecked.OPERATOR) as connection:
        await later(connection, finish, [4])
        assert done[-1] == [4]


async def test_works_run_in_the_order_of_their_callers(db: Database) -> None:
    """Two groups that lock the rows of the same callers in different orders would wait for each other."""
    ran: list[tuple[int, int | None]] = []

    def running(rank: int, about: int | None) -> Work[None]:
        async def work(_connection: AsyncConnection) -> None:
            ran.append((rank, about))

        return work

    came = [(3, None), (1, 7), (2, None), (1, 4), (3, 5), (1, None)]
    await asyncio.gather(*(db.together(By(rank=rank), running(rank, about), about=about) for rank, about in came))
    assert ran == [(1, None), (1, 4), (1, 7), (2, None), (3, None), (3, 5)]


@contextmanager
def beginnings() -> Iterator[list[None]]:
    """One for each transaction that begins in the block."""
    begin, counted = driver.begin, list[None]()

    async def counting(*arguments: Any) -> None:
        counted.append(None)
        await begin(*arguments)

    with mock.patch.object(driver, "begin", counting):
        yield counted


async def test_a_refusal_before_any_change_costs_the_others_nothing(db: Database) -> None:
    async def refuse(connection: AsyncConnection) -> None:
        await _COUNT.one(connection)
        await later(connection, _fail, [1])
        raise NotFound("There is nothing with this id.")

    with beginnings() as counted:
        outcomes = await all_of(db, storing(1), refuse, storing(3))
    assert [outcomes[0], type(outcomes[1]), outcomes[2]] == [1, NotFound, 3]
    assert len(counted) == 1


async def _fail(_connection: AsyncConnection, _items: Sequence[object]) -> None:
    raise AssertionError("its work has failed")


async def test_a_group_whose_member_fails_begins_again_once(db: Database) -> None:
    with beginnings() as counted:
        outcomes = await all_of(db, *(storing(number) for number in range(50)), storing(-3))
    assert outcomes[:50] == [*range(50)]
    assert isinstance(outcomes[50], IntegrityError)
    assert len(counted) == 2
    assert await count(db, "throttle") == 50


# --- gathered


class Adding:
    """Adds rows for all works that ask for it at the same time, and refuses odd numbers."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    async def __call__(self, connection: AsyncConnection, numbers: Sequence[int]) -> list[int | Exception]:
        self.calls.append([*numbers])
        if even := [number for number in numbers if number % 2 == 0]:
            await _ADD.execute_many(connection, [{**row("throttle"), "attempts": number} for number in even])
        return [NotFound(f"{number}") if number % 2 else 10 * number for number in numbers]

    def work(self, *numbers: int) -> Work[list[int]]:
        async def add_all(connection: AsyncConnection) -> list[int]:
            return [await gathered(connection, self, number) for number in numbers]

        return add_all


async def test_works_that_call_the_same_function_are_served_by_one_call(db: Database) -> None:
    adding = Adding()
    with beginnings() as counted:
        outcomes = await all_of(db, adding.work(2, 4), storing(1), adding.work(6), adding.work(8, 10, 12))
    assert outcomes == [[20, 40], 1, [60], [80, 100, 120]]
    assert adding.calls == [[2, 6, 8], [4, 10], [12]]
    assert len(counted) == 1
    assert await count(db, "throttle") == 7


async def test_a_call_can_refuse_one_work(db: Database) -> None:
    adding = Adding()
    outcomes = await all_of(db, adding.work(2), adding.work(4, 5), adding.work(6))
    assert [outcomes[0], type(outcomes[1]), outcomes[2]] == [[20], NotFound, [60]]
    assert await count(db, "throttle") == 2, "what the refused work had added before is undone"


async def test_a_call_that_fails_is_made_for_each_work_by_itself(db: Database) -> None:
    adding = Adding()
    outcomes = await all_of(db, adding.work(2), adding.work(-4), storing(3))
    assert [outcomes[0], type(outcomes[1]), outcomes[2]] == [[20], IntegrityError, 3]
    assert await count(db, "throttle") == 2


async def test_a_call_outside_a_group_is_made_at_once(db: Database) -> None:
    adding = Adding()
    async with db.write(Unchecked.OPERATOR) as connection:
        assert await adding.work(2, 4)(connection) == [20, 40]
    assert adding.calls == [[2], [4]]


async def test_a_work_that_waits_for_something_else_is_carried_out(db: Database) -> None:
    """On SQLite it cannot be in a group, which runs on the thread of its connection."""

    async def dawdle(connection: AsyncConnection) -> int:
        await asyncio.sleep(0)
        return await storing(2)(connection)

    assert await all_of(db, storing(1), dawdle, storing(3)) == [1, 2, 3]
    assert await count(db, "throttle") == 3


async def test_a_group_is_handed_to_the_thread_of_sqlite_once(sqlite: URL) -> None:
    db, handed = Database(sqlite), list[object]()
    await all_of(db, storing(1))
    execute = aiosqlite.Connection._execute

    async def counting(self: aiosqlite.Connection, function: Any, *arguments: Any, **named: Any) -> Any:
        handed.append(function)
        return await execute(self, function, *arguments, **named)  # type: ignore[no-untyped-call]  # aiosqlite does not type it

    with mock.patch.object(aiosqlite.Connection, "_execute", counting):
        assert await all_of(db, *(storing(number) for number in range(MEMBERS))) == [*range(MEMBERS)]
    assert len(handed) == 3, "BEGIN, the group, COMMIT"
    await db.close()


async def test_members_about_the_same_thing_are_not_in_one_group(db: Database) -> None:
    async with commits() as counted:
        await asyncio.gather(*(db.together(By(), storing(1), about=number // 2) for number in range(6)))
    assert len(counted) == 4  # of the group, and of the second of each pair
    assert await count(db, "throttle") == 6


@pytest.mark.parametrize("pooled", ["on", "off"])
async def test_a_group_waits_for_a_lock_for_a_moment_only(postgresql: URL, pooled: str) -> None:
    db = Database(postgresql.update_query_dict({"pooled": pooled}))

    async def ask(connection: AsyncConnection) -> str:
        return await _PATIENCE.one(connection)

    assert await all_of(db, ask, ask) == [f"{together.GROUP_PATIENCE:.0f}s"] * 2
    async with db.write(Unchecked.OPERATOR) as connection:
        assert await _PATIENCE.one(connection) == f"{engine.BUSY_TIMEOUT:.0f}s"
    await db.close()


async def test_a_member_that_would_wait_for_a_lock_does_so_by_itself(postgresql: URL) -> None:
    db, held = Database(postgresql), row("throttle")
    async with db.write(Unchecked.OPERATOR) as holder:
        await _ADD.execute(holder, **held)
        works = [storing(1), storing(2, bucket=held["bucket"]), storing(3)]
        first, second, third = [asyncio.create_task(db.together(By(), work)) for work in works]
        assert [await first, await third] == [1, 3]
        assert not second.done()
    with pytest.raises(IntegrityError):
        await second
    await db.close()


async def test_a_group_waits_for_the_end_of_a_chain_as_long_as_a_member_would_by_itself(postgresql: URL) -> None:
    db = Database(postgresql)
    entry = Entry(Action.LOGIN_FAILED, Origin(Actor.ANONYMOUS))

    async def work(connection: AsyncConnection) -> None:
        await record(connection, entry)

    with beginnings() as counted:
        async with db.write(Unchecked.OPERATOR) as holder:
            await holder.execute(text("SELECT * FROM audit_chains FOR UPDATE"))
            acting = [asyncio.create_task(db.together(By(), work)) for _ in range(3)]
            await asyncio.sleep(2 * together.GROUP_PATIENCE)
        await asyncio.gather(*acting)
    assert len(counted) == 2, "of the holder, and of the group"
    assert await count(db, "audit_log") == 3
    await db.close()


async def test_a_group_that_cannot_begin_fails_as_its_members_would(db: Database) -> None:
    with mock.patch.object(driver, "begin", side_effect=OSError):
        outcomes = await all_of(db, *(storing(number) for number in range(MEMBERS)))
    assert {type(outcome) for outcome in outcomes} == {DatabaseUnavailable}
    assert await count(db, "throttle") == 0


async def test_a_caller_that_gives_up_takes_nobody_along(db: Database) -> None:
    tasks = [asyncio.create_task(db.together(By(), storing(number))) for number in range(10)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 9


# --- PostgreSQL goes away


async def test_a_connection_that_is_lost_before_commit_stores_every_member_once(postgresql: URL) -> None:
    """The members are carried out one by one. The one that ends the connection is refused, and nobody else."""
    db = Database(postgresql)

    async def end(connection: AsyncConnection) -> None:
        await _END.one(connection)

    works = [storing(number) for number in range(MEMBERS)]
    outcomes = await all_of(db, *works[:50], end, *works[50:])
    assert outcomes[:50] + outcomes[51:] == [*range(MEMBERS)]
    assert isinstance(outcomes[50], DatabaseUnavailable)
    assert await count(db, "throttle") == MEMBERS
    await db.close()


@asynccontextmanager
async def losing_the_answer(*, is_sent: bool, after: int = 0) -> AsyncIterator[None]:
    """The next COMMIT is sent, or not, and its connection ends before the answer comes. `after` others come first."""
    commit, came = driver.commit, list[None]()

    async def lose(connection: AsyncConnection) -> None:
        came.append(None)
        if len(came) != after + 1:
            await commit(connection)
            return
        if is_sent:
            await commit(connection)
        driver.raw_of(connection).terminate()
        raise ConnectionResetError

    with mock.patch.object(driver, "commit", lose):
        yield


async def test_what_fails_after_commit_makes_no_member_try_again(postgresql: URL) -> None:
    """Such as the return of the connection to the pool. A second attempt would store everything twice."""
    db, end, failed = Database(postgresql), driver.end, list[None]()

    async def fail(connection: AsyncConnection) -> None:
        await end(connection)
        if not failed:
            failed.append(None)
            raise OSError

    async with commits() as counted:
        with mock.patch.object(driver, "end", fail):
            assert await all_of(db, *(storing(number) for number in range(MEMBERS))) == [*range(MEMBERS)]
    assert len(counted) == len(failed) == 1
    assert await count(db, "throttle") == MEMBERS
    await db.close()


@pytest.mark.parametrize("is_sent", [True, False])
async def test_what_came_of_a_commit_whose_answer_is_lost_is_asked(postgresql: URL, is_sent: bool) -> None:
    db = Database(postgresql)
    async with losing_the_answer(is_sent=is_sent):
        outcomes = await all_of(db, *(storing(number) for number in range(MEMBERS)))
    if is_sent:
        assert outcomes == [*range(MEMBERS)]
    else:
        assert {type(outcome) for outcome in outcomes} == {DatabaseUnavailable}
        assert {outcome.detail for outcome in outcomes} == {committed.STORED_NOTHING}
        assert len({id(outcome) for outcome in outcomes}) == MEMBERS
    assert await count(db, "throttle") == (MEMBERS if is_sent else 0)
    await db.close()


@pytest.mark.parametrize("is_sent", [True, False])
async def test_a_member_by_itself_asks_too(postgresql: URL, is_sent: bool) -> None:
    db = Database(postgresql)
    # The first COMMITs are that of the group, which its only member has left, and that of the holder.
    async with losing_the_answer(is_sent=is_sent, after=2):
        async with db.write(Unchecked.OPERATOR) as holder:
            held = row("throttle")
            await _ADD.execute(holder, **held)
            await holder.execute(text("DELETE FROM throttle"))
            waiting = asyncio.create_task(db.together(By(), storing(1, bucket=held["bucket"])))
            await asyncio.sleep(2 * together.GROUP_PATIENCE)
        (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
    assert await count(db, "throttle") == is_sent
    assert outcome == 1 if is_sent else isinstance(outcome, DatabaseUnavailable)
    await db.close()


async def test_where_nobody_can_be_asked_nobody_knows(postgresql: URL) -> None:
    db = Database(postgresql)

    async def ask(*_: object) -> None:
        return None

    async with losing_the_answer(is_sent=True):
        with (
            mock.patch.object(committed, "ask", ask),
            mock.patch.object(committed, "ASKING_TIME", 0.2),
        ):
            outcomes = await all_of(db, storing(1), storing(2))
    assert {type(outcome) for outcome in outcomes} == {CommitLost}
    assert "may or may not be stored" in outcomes[0].detail
    assert "Idempotency-Key" in outcomes[0].detail
    await db.close()


async def test_a_group_is_known_by_its_own_transaction(postgresql: URL) -> None:
    """The audit log notes the transaction that it writes in. A group without an entry must not take the last one."""
    db = Database(postgresql)
    seen = list[committed.Transaction | None]()

    async def required(_read: object, own: committed.Transaction | None, _fault: Exception) -> None:
        seen.append(own)

    async with db.write(Unchecked.OPERATOR) as connection:
        noted = await committed.identify(connection)
        assert noted is not None
        committed.note(connection, noted)
    with mock.patch.object(together, "require_committed", required):
        async with losing_the_answer(is_sent=True):
            await all_of(db, storing(1), storing(2))
    (own,) = seen
    assert own is not None
    assert own.id != noted.id
    await db.close()


async def test_the_status_of_another_server_is_not_believed(postgresql: URL) -> None:
    """After a failover, the ids of lost transactions are given to others."""
    db = Database(postgresql)
    async with db.write(Unchecked.OPERATOR) as connection:
        own = await committed.identify(connection)
        await add(connection, "throttle")
    assert own is not None
    assert await committed.ask(db.read, own, 5) == committed.COMMITTED
    assert await committed.ask(db.read, own._replace(server="00000099"), 5) is None
    assert await committed.ask(db.read, own._replace(id="99999999"), 5) is None
    await db.close()


_RENAME = "ALTER FUNCTION pg_catalog.pg_walfile_name(pg_lsn) RENAME TO walfile_name"
_RAISE = "BEGIN RAISE feature_not_supported; END"
UNTOLD = {
    "missing": [_RENAME],
    "refused": ["REVOKE EXECUTE ON FUNCTION pg_walfile_name(pg_lsn) FROM PUBLIC"],
    "unsupported": [
        _RENAME,
        f"CREATE FUNCTION public.pg_walfile_name(pg_lsn) RETURNS text LANGUAGE plpgsql AS '{_RAISE}'",
    ],
}
"""What makes a server keep its timeline to itself, as managed ones do."""


@pytest.mark.parametrize("reason", UNTOLD)
async def test_a_server_that_does_not_tell_its_timeline_is_known_by_its_start(
    postgresql: URL, postgres: PostgresServer, reason: str
) -> None:
    postgres.execute_all(UNTOLD[reason], str(postgresql.database))
    db = Database(postgresql)
    with groups_go_well():
        assert await all_of(db, *(storing(number) for number in range(MEMBERS))) == [*range(MEMBERS)]
    async with losing_the_answer(is_sent=True):
        assert await all_of(db, storing(1), storing(2)) == [1, 2]
    async with db.write(Unchecked.OPERATOR) as connection:
        own = await committed.identify(connection)
        await add(connection, "throttle")
    assert own is not None
    assert not own.has_timeline
    assert await committed.ask(db.read, own, 5) == committed.COMMITTED
    assert await committed.ask(db.read, own._replace(server="another start"), 5) is None
    await db.close()


async def test_no_group_waits_for_what_another_one_of_its_process_does(postgresql: URL) -> None:
    """Otherwise one busy account, of which each write locks the same row, would have each group done again."""
    with mock.patch.object(transactions, "GROUP_PATIENCE", 0.05):
        db = Database(postgresql)
    begun = asyncio.Event()

    async def work(connection: AsyncConnection) -> None:
        await _LOCK_PROBE.first(connection)
        begun.set()
        await _SLEEP.first(connection)

    with groups_go_well():
        first = asyncio.create_task(db.together(By(), work))
        await begun.wait()
        await asyncio.gather(first, db.together(By(), work), db.together(By(kind_of_check="other"), work))
    await db.close()


async def test_what_comes_while_a_group_works_is_one_group(postgresql: URL) -> None:
    db, begun = Database(postgresql), asyncio.Event()

    async def work(connection: AsyncConnection) -> None:
        begun.set()
        await _SLEEP.first(connection)

    async with commits() as counted:
        first = asyncio.create_task(db.together(By(), work))
        await begun.wait()
        others = []
        for number in range(10):
            others.append(asyncio.create_task(db.together(By(), storing(number))))
            await asyncio.sleep(0)
        given_up = asyncio.create_task(db.together(By(), storing(10)))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(first, *others)
    assert len(counted) == 2
    assert await count(db, "throttle") == 10
    await db.close()
