"""Commits together: writes that wait at the same moment share one transaction, and so one wait for the disk.

An operation gives its work to `Together.write`, as a function of a connection. The work does not know whether it is in
a group. What happens to it:

1. The works that wait when a transaction can begin form a group. Nothing waits for a group to fill: a work that comes
   while no group works, and fewer than MAX_GROUPS are under way, is a group of its own at once.
2. The group begins a transaction, and checks with one query which of its members may still act.
3. The works run, in the order of their accounts or applications, so that two groups lock rows in the same order. One
   that fails does so by itself: `storage.group` says how. Then what the works left for the end with `later` is done for
   all of them at once.
4. The group commits, and its members get their results.

A member that cannot have its result in the group is carried out by itself, in a transaction of its own. That happens if
it would have to wait for a lock, if it is about the same thing as a member before it, and to all members if the group
fails before COMMIT is sent.

Once COMMIT is sent, nothing is sent again. If its answer is lost, `storage.committed` finds out what came of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.batching import Batcher
from keyman.errors import DatabaseUnavailable, Problem
from keyman.logs import log
from keyman.storage import driver
from keyman.storage.committed import identify, require_committed, take_noted
from keyman.storage.faults import CommitLost, RolledBack
from keyman.storage.group import Group, Member, Outcome, Spoiled, Work

R = TypeVar("R")

MAX_MEMBERS = 128
"""The most members of a group, so that a group holds its locks for a short time."""

MAX_GROUPS = 2
"""Groups at once on PostgreSQL: one waits for the disk while the other one works. SQLite has one writer.

Only one of them works at a time, so that no group waits for the locks of another one, but for its commit.
"""

GROUP_PATIENCE = 1.0
"""Seconds that a member waits for a lock before it leaves the group, because the others wait with it.

It is longer than a group of another process has its locks, even on a busy machine: otherwise a busy machine would have
to do the work of the group again, one member at a time.
"""


class SharedAuthority(Protocol):
    """An authority that can be checked together with others. See `storage.transactions.Authority`."""

    @property
    def kind_of_check(self) -> Hashable:
        """What the members of a group have in common: one query can check them all."""
        ...

    @property
    def rank(self) -> int:
        """The place of the caller in the order in which groups lock, such as the id of its account."""
        ...

    async def confirm(self, connection: AsyncConnection) -> None: ...

    async def confirm_together(self, connection: AsyncConnection, all_of: Sequence[Any]) -> Sequence[Exception | None]:
        """Check `all_of`, authorities of this class. Return, for each, what its `confirm` would raise, or None.

        What is None stays true until the transaction ends, by locks that are taken in one order by all groups.
        """
        ...


@dataclass(eq=False, kw_only=True)
class _Member(Member):
    by: SharedAuthority


class Together:
    """The groups of one database. `write` opens a transaction, given an authority, and `read` a connection.

    `begin` opens the transaction of a group. It waits for locks for GROUP_PATIENCE seconds, and checks nothing.
    """

    def __init__(
        self,
        write: Callable[[Any], AbstractAsyncContextManager[AsyncConnection]],
        begin: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        read: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        *,
        is_sqlite: bool,
    ) -> None:
        self._write, self._begin, self._read = write, begin, read
        self._at_once = 1 if is_sqlite else MAX_GROUPS
        self._filling = asyncio.Lock()
        self._batchers: dict[Hashable, Batcher[_Member, object]] = {}

    async def write(self, by: SharedAuthority, work: Work[R], *, about: int | None = None) -> R:
        """Carry a work out in a transaction, and return its result after the commit.

        `about` is what the work reads that the work of another member could write, such as the id of a key: no group
        has two members with the same. A work can be called more than once, but only one of the calls is committed. It
        waits for nothing but its statements, and must not catch a fault of the database. Raises DatabaseUnavailable,
        what the authority raises, and what the work raises.
        """
        outcome = await self._batcher(by.kind_of_check).submit(_Member(work, about, by=by))
        return await self.by_itself(by, work) if outcome is Outcome.BY_ITSELF else cast("R", outcome)

    async def by_itself(self, by: SharedAuthority, work: Work[R]) -> R:
        """Carry a work out as `write` does, but in a transaction of its own, in which it can lock as it likes."""
        transaction = None
        try:
            async with self._write(by) as connection:
                transaction = await identify(connection)
                result = await work(connection)
        except CommitLost as fault:
            await require_committed(self._read, transaction, fault)
        return result

    async def close(self) -> None:
        """Wait for the groups that are under way."""
        batchers, self._batchers = self._batchers, {}
        for batcher in batchers.values():
            await batcher.close()

    def _batcher(self, kind: Hashable) -> Batcher[_Member, object]:
        if kind not in self._batchers:
            self._batchers[kind] = Batcher(
                self._run, _failure, max_batch=MAX_MEMBERS, max_batches=self._at_once, turn=self._turn
            )
        return self._batchers[kind]

    async def _turn(self) -> None:
        """Wait until no group works. Those that would begin to wait meanwhile are members of the next one."""
        async with self._filling:
            pass

    async def _run(self, members: Sequence[_Member]) -> Sequence[object]:
        in_order = sorted(members, key=lambda member: (member.by.rank, member.about or 0))
        try:
            await self._carry_out(Group(has_savepoints=False), in_order)
        except Spoiled:
            await self._carry_out(Group(has_savepoints=True), in_order)
        return [member.outcome for member in members]

    async def _carry_out(self, group: Group, members: Sequence[_Member]) -> None:
        """Carry a group out, and set the outcomes of its members. Raises Spoiled if it is to begin again."""
        try:
            async with self._begin() as connection, self._filling:
                await driver.at_once(connection, lambda: _fill(connection, group, members))
                group.is_filled = True
        except Spoiled:
            raise
        except Exception as fault:  # noqa: BLE001  # of one member: the others must not fail with it
            if group.is_filled and not isinstance(fault, RolledBack):
                await require_committed(self._read, group.transaction, fault)
                return
            # Nothing is stored, and each member finds out by itself.
            log.info("group failed", members=len(members), fault=type(fault).__name__)
            for member in members:
                member.outcome = Outcome.BY_ITSELF


async def _fill(connection: AsyncConnection, group: Group, members: Sequence[_Member]) -> None:
    """Do all that the transaction of a group does between BEGIN and COMMIT."""
    take_noted(connection)
    await group.carry_out(connection, _admit(members, await _confirm(connection, members)))
    # The audit log notes the transaction with the entries, and each group but one that only notes uses has some.
    group.transaction = take_noted(connection) or await identify(connection)


async def _confirm(connection: AsyncConnection, members: Sequence[_Member]) -> Sequence[Exception | None]:
    """Return, for each member, None if it may act, or what its authority raises."""
    first = members[0].by
    if len(members) > 1:
        return await first.confirm_together(connection, [member.by for member in members])
    try:
        await first.confirm(connection)  # one statement less
    except Problem as refusal:
        return [refusal]
    return [None]


def _admit(members: Sequence[_Member], refusals: Sequence[Exception | None]) -> list[Member]:
    """Return the members that may act, and are about different things. Set the outcome of the others."""
    seen, admitted = set[int](), list[Member]()
    for member, refusal in zip(members, refusals, strict=True):
        member.outcome, member.has_changed = refusal or Outcome.BY_ITSELF, False
        if refusal is not None or member.is_blocked or member.about in seen:
            continue
        if member.about is not None:
            seen.add(member.about)
        admitted.append(member)
    return admitted


def _failure(fault: BaseException) -> Exception:
    """Return the exception for one member of a group that has failed. Each gets its own, which collects a traceback."""
    if isinstance(fault, DatabaseUnavailable) and not isinstance(fault, CommitLost):
        return DatabaseUnavailable(fault.detail, kind=fault.kind)
    return CommitLost()  # or keyman stops, and the group could have come to any point
