"""The works of a group: what happens to them within the transaction that they share. See `storage.together`.

A work is a coroutine that waits for nothing but its statements. First, all works run without savepoints, so that a
group costs little more than its statements. They take turns only where they call `gathered`: a work that does so waits
until every other one has ended or does so, too, and then one call serves all of them.

If a work raises before it has changed anything, its caller gets the exception, and the others go on. Anything else that
fails raises Spoiled, because what one work did cannot be undone without the others. The group then begins again in
another transaction, in which the works run one after the other, each within a savepoint.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from time import monotonic
from types import coroutine
from typing import Any, NamedTuple, TypeVar, cast

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.errors import KeymanError, raise_alone
from keyman.storage import driver
from keyman.storage.committed import Transaction
from keyman.storage.faults import FAULTS

T = TypeVar("T")
R = TypeVar("R")

Work = Callable[[AsyncConnection], Coroutine[Any, Any, R]]
Finish = Callable[[AsyncConnection, Sequence[T]], Awaitable[None]]
Gather = Callable[[AsyncConnection, Sequence[T]], Awaitable[Sequence[R | Exception]]]

GROUP_TIME = 2.0
"""Seconds after which a group of a slow database begins no further work: the rest is carried out one by one."""

_GROUP = "keyman_group"
"""The name of the group in the notes of a connection."""


class Spoiled(KeymanError):
    """A work failed, and what it did cannot be undone without what the others did."""


class Outcome(Enum):
    """What became of a work that has no result."""

    BY_ITSELF = "by itself"  # its caller carries the work out, in a transaction of its own


@dataclass(eq=False)
class Member:
    """A work of a group. `about` is what it reads that the work of another member could write."""

    work: Work[object]
    about: int | None
    outcome: object = Outcome.BY_ITSELF
    """The result of the work, an exception, or BY_ITSELF."""
    has_changed: bool = False
    is_blocked: bool = False
    """One of its statements failed, but not on a constraint. It may have waited for a lock."""


@dataclass(eq=False)
class Group:
    """A transaction that several works share, as far as it has come."""

    has_savepoints: bool
    transaction: Transaction | None = None
    is_filled: bool = False
    """COMMIT may have been sent. What fails from here on, whatever it is, says nothing of what is stored."""
    current: Member | None = None
    """The member whose work runs now."""
    left: list[tuple[Member, Finish[Any], Any]] = field(default_factory=list)

    async def carry_out(self, connection: AsyncConnection, members: Sequence[Member]) -> None:
        """Carry out the works, and what they leave for the end. Set the outcomes. Raises Spoiled."""
        driver.notes_of(connection)[_GROUP] = self
        try:
            await (_one_by_one if self.has_savepoints else _interleave)(connection, self, members)
        finally:
            if not connection.invalidated:
                del driver.notes_of(connection)[_GROUP]
        for run in dict.fromkeys(run for _, run, _ in self.left):
            await run(connection, [item for _, whose, item in self.left if whose is run])

    def leave(self, run: Finish[T], items: Sequence[T]) -> None:
        """Keep these items of the current member for the end."""
        assert self.current is not None, "`later` is for works"
        self.left += [(self.current, run, item) for item in items]

    def drop(self, member: Member) -> None:
        """Forget what this member left for the end."""
        self.left = [one for one in self.left if one[0] is not member]


async def later(connection: AsyncConnection, run: Finish[T], items: Sequence[T]) -> None:
    """Call `run` with these items as the last step of the transaction, with those of the other works of the group.

    Outside a group, call it now. The work of another member must not read what `run` writes: see `about`.
    """
    group = _group_of(connection)
    if group is None:
        await run(connection, items)
    else:
        group.leave(run, items)


async def gathered(connection: AsyncConnection, run: Gather[T, R], item: T) -> R:
    """Return what `run` returns for this item. It is called with the items of all works of the group that wait for it.

    It returns as many results as there are items, in their order. One of them can be an exception, which is raised in
    its work: `run` must then have changed nothing for this item. Outside a group, it is called with this item.
    """
    group = _group_of(connection)
    if group is None or group.has_savepoints:
        (result,) = await run(connection, [item])
    else:
        result = await _Call(run, item)
    if isinstance(result, Exception):
        raise result
    return result


def _group_of(connection: AsyncConnection) -> Group | None:
    return cast("Group | None", driver.notes_of(connection).get(_GROUP))


async def _one_by_one(connection: AsyncConnection, group: Group, members: Sequence[Member]) -> None:
    """Carry out the works one after the other, each within a savepoint."""
    deadline = monotonic() + GROUP_TIME
    for member in members:
        if monotonic() > deadline:
            return
        group.current = member
        await driver.savepoint(connection)
        try:
            member.outcome = await member.work(connection)
        except Exception as fault:
            if connection.invalidated:
                raise
            await driver.roll_back_to_savepoint(connection)
            group.drop(member)
            if not _may_have_waited(fault):
                member.outcome = fault
        else:
            await driver.release_savepoint(connection)


class _Waiting(NamedTuple):
    """A work that waits for a call of `gathered`."""

    member: Member
    work: Coroutine[Any, Any, object]
    call: _Call


async def _interleave(connection: AsyncConnection, group: Group, members: Sequence[Member]) -> None:
    """Carry out the works without savepoints, and their calls of `gathered` together. Raises Spoiled."""
    deadline = monotonic() + GROUP_TIME
    driver.take_changed(connection)  # of the transaction that the connection had before
    works = [(member, member.work(connection)) for member in members]
    try:
        steps = [await _step(connection, group, member, work) for member, work in works if monotonic() <= deadline]
        while waiting := [step for step in steps if step is not None]:
            results = await _call(connection, waiting)
            steps = [await _step(connection, group, one.member, one.work, results[one.member]) for one in waiting]
    finally:
        for _, work in works:
            work.close()


async def _step(
    connection: AsyncConnection, group: Group, member: Member, work: Coroutine[Any, Any, object], result: object = None
) -> _Waiting | None:
    """Continue a work until it calls `gathered`, and return that call, or None at its end. Raises Spoiled."""
    group.current = member
    try:
        reached = await _advance(work, result)
    except Exception as fault:
        if connection.invalidated:
            raise
        member.has_changed |= driver.take_changed(connection)
        if member.has_changed or isinstance(fault, FAULTS):
            member.is_blocked = _may_have_waited(fault)
            raise_alone(Spoiled())
        group.drop(member)
        member.outcome = fault
        return None
    member.has_changed |= driver.take_changed(connection)
    if isinstance(reached, _Call):
        return _Waiting(member, work, reached)
    member.outcome = reached.result
    return None


async def _call(connection: AsyncConnection, waiting: Sequence[_Waiting]) -> dict[Member, object]:
    """Make the calls for which works wait, and return the result of each. Raises Spoiled."""
    results: dict[Member, object] = {}
    for run in dict.fromkeys(one.call.run for one in waiting):
        served = [one for one in waiting if one.call.run is run]
        try:
            found = await run(connection, [one.call.item for one in served])
        except Exception:
            if connection.invalidated:
                raise
            raise_alone(Spoiled())
        has_changed = driver.take_changed(connection)
        for one, result in zip(served, found, strict=True):
            one.member.has_changed |= has_changed and not isinstance(result, Exception)
            results[one.member] = result
    return results


class _Call:
    """A call of `gathered`."""

    def __init__(self, run: Gather[Any, Any], item: object) -> None:
        self.run, self.item = run, item

    def __await__(self) -> Generator[_Call, Any, Any]:
        return (yield self)


class _Ended(NamedTuple):
    result: object


@coroutine
def _advance(work: Coroutine[Any, Any, object], result: object) -> Generator[Any, Any, _Call | _Ended]:
    """Continue a work with the result of its last `_Call`, until its next one or its end.

    The event loop gets whatever else the work waits for.
    """
    resume, value = work.send, result
    while True:
        try:
            awaited = resume(value)
        except StopIteration as end:
            return _Ended(end.value)
        if isinstance(awaited, _Call):
            return awaited
        try:
            resume, value = work.send, (yield awaited)
        except BaseException as fault:  # noqa: BLE001  # such as a cancellation: it is for the work
            resume, value = work.throw, fault


def _may_have_waited(fault: Exception) -> bool:
    """Return True for a fault of the database that a member may not meet by itself, such as the wait for a lock."""
    return isinstance(fault, FAULTS) and not isinstance(fault, IntegrityError)
