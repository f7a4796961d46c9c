"""`keyman.audit.listing`: a listing is complete, in order, and has only its owner's entries.

tests/storage/test_plans.py tests that it is read from an index.
"""

from __future__ import annotations

import itertools
import random
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert

from keyman.audit import listing
from keyman.audit.entries import Action, Actor
from keyman.audit.listing import CLOCKS_APART, ActionName, Filter
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.ids import UserId
from keyman.storage.paging import Slice
from keyman.storage.transactions import Database, Unchecked
from tests.audit.test_entries import add

pytestmark = pytest.mark.anyio

START = datetime(2026, 1, 1, tzinfo=UTC)
HASH = bytes(32)  # what is read by time and action is not verified
RESOLVES = (Action.KEY_RESOLVE, Action.KEY_RESOLVE_REFUSED, Action.KEY_RESOLVE_FAILED)


async def write(db: Database, *entries: tuple[int, datetime, Action]) -> list[tuple[int, datetime, Action]]:
    """Entries of owners, times and actions, in the order of their ids; what is returned has the ids."""
    rows = [
        {"user_id": owner, "at": at, "action": action, "actor": Actor.OPERATOR, "chain": 0, "sequence": n, "hash": HASH}
        for n, (owner, at, action) in enumerate(entries, 1)
    ]
    async with db.write(Unchecked.OPERATOR) as connection:
        for row in rows:
            await connection.execute(insert(audit_log).values(row))
    owners = {owner for owner, _, _ in entries}
    found = [entry for owner in owners for entry in (await listing.list_own(db, UserId(owner), Slice(len(rows)))).items]
    return [(entry.id, entry.at, entry.action) for entry in sorted(found, key=lambda entry: entry.id)]


async def listed(db: Database, owner: int, wanted: Filter, limit: int = 200) -> list[int]:
    """The ids of every page, newest first."""
    ids, cursor = list[int](), None
    while True:
        page = await listing.list_own(db, UserId(owner), Slice(limit, cursor), wanted)
        assert len(page.items) == limit or page.cursor is None
        ids += [entry.id for entry in page.items]
        cursor = page.cursor
        if cursor is None:
            return ids


async def test_a_filter_takes_what_it_says_and_its_pages_join_to_the_whole(db: Database) -> None:
    owner, other = await add(db, "ada@example.com"), await add(db, "eve@example.com")
    chance = random.Random(20261127)  # noqa: S311  # the same each time
    actions = (*RESOLVES, Action.LOGIN)
    clock = itertools.accumulate(chance.choice((0, 0.5, 60, 3600)) for _ in range(160))
    # Several processes write, and their clocks do not agree.
    times = [START + timedelta(seconds=passed + chance.uniform(-290, 290)) for passed in clock]
    written = [(owner if chance.random() < 0.7 else other, at, chance.choice(actions)) for at in times]
    own = [
        (entry, at, action)
        for (entry, at, action), (whose, _, _) in zip(await write(db, *written), written, strict=True)
        if whose == owner
    ]
    moments = [None, START, *chance.sample(times, 5), times[-1] + timedelta(days=1)]
    for wanted in itertools.product([(), RESOLVES[:1], RESOLVES, (Action.DISABLE, Action.LOGIN)], moments, moments):
        chosen = Filter(*wanted)
        expected = [
            entry
            for entry, at, action in reversed(own)
            if (not chosen.actions or action in chosen.actions)
            and (chosen.since is None or at >= chosen.since)
            and (chosen.until is None or at < chosen.until)
        ]
        assert await listed(db, owner, chosen) == expected, chosen
        if wanted[1:] == (None, None):
            for limit in (1, 7, len(expected), len(expected) + 1):
                assert await listed(db, owner, chosen, max(limit, 1)) == expected


async def test_since_is_inclusive_and_until_is_not_to_the_microsecond(db: Database) -> None:
    owner, tick = await add(db, "ada@example.com"), timedelta(microseconds=1)
    first, second = [
        entry for entry, _, _ in await write(db, *((owner, START + tick * n, Action.LOGIN) for n in (0, 1)))
    ]
    assert await listed(db, owner, Filter(since=START)) == [second, first]
    assert await listed(db, owner, Filter(since=START + tick)) == [second]
    assert await listed(db, owner, Filter(since=START + 2 * tick)) == []
    assert await listed(db, owner, Filter(until=START)) == []
    assert await listed(db, owner, Filter(until=START + tick)) == [first]
    assert await listed(db, owner, Filter(since=START + tick, until=START + tick)) == []
    assert await listed(db, owner, Filter(since=START + tick, until=START)) == []


async def test_clocks_that_differ_by_less_than_is_allowed_for_hide_nothing(db: Database) -> None:
    owner, apart = await add(db, "ada@example.com"), CLOCKS_APART - timedelta(seconds=1)
    # The second was written later, by a process whose clock is behind.
    ahead, behind = [
        entry for entry, _, _ in await write(db, (owner, START + apart, Action.LOGIN), (owner, START, Action.LOGOUT))
    ]
    for moment in (START, START + apart):
        assert await listed(db, owner, Filter(since=moment)) == [
            i for i in (behind, ahead) if moment == START or i == ahead
        ]
        assert await listed(db, owner, Filter(until=moment)) == [i for i in (behind,) if moment != START]


async def test_the_ends_of_time_can_be_asked_for(db: Database) -> None:
    owner = await add(db, "ada@example.com")
    ((entry, _, _),) = await write(db, (owner, now(), Action.LOGIN))
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    assert await listed(db, owner, Filter(since=first, until=last)) == [entry]
    assert await listed(db, owner, Filter(since=last, until=first)) == []


def test_every_action_can_be_named_and_nothing_else() -> None:
    assert [Action(ActionName.parse(action.value)) for action in Action] == list(Action)
    for wrong in ("key", "KEY.RESOLVE", "key.resolve ", "", None, 1, "nothing"):
        with pytest.raises(ValueError, match=r"^must be an action of the audit log, such as key\.resolve$"):
            ActionName.parse(wrong)


async def test_a_statement_is_built_once_for_each_shape_of_a_filter(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await add(db, "ada@example.com")
    later = START + timedelta(minutes=1)
    written = await write(
        db, *((owner, START, action) for action in (*RESOLVES, Action.LOGIN)), (owner, later, Action.LOGIN)
    )
    await listing.list_own(db, UserId(owner), Slice(), Filter(RESOLVES[:2], START, later))
    for user_id in (None, UserId(owner)):
        await listing.list_all(db, user_id, 9, Filter(RESOLVES, START))

    def built_again(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(listing, "select", built_again)
    both = Filter((Action.LOGIN, *RESOLVES[2:], Action.LOGIN), START, later + timedelta(minutes=1))
    assert await listed(db, owner, both, limit=1) == [
        entry for entry, _, action in reversed(written) if action in both.actions
    ]
    for user_id in (None, UserId(owner)):
        found = await listing.list_all(db, user_id, 9, Filter((Action.LOGIN,), later))
        assert [entry.id for entry in found] == [written[-1][0]]
        assert await listing.list_all(db, user_id, 1, Filter((Action.LOGIN,), START)) == found
