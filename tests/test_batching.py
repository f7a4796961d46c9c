"""`keyman.batching`: what is in a batch, what each caller gets, and that one caller cannot fail the others."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence

import pytest

from keyman.batching import Batcher, BatcherClosed, BatchRefused

pytestmark = pytest.mark.anyio

CANARY = "kNrYcAnArY"

Outcome = str | Exception


class Failed(Exception):
    """What a caller of a batch that failed gets."""


def failure(fault: BaseException) -> Exception:
    return Failed(type(fault).__name__)


class Work:
    """What a batcher calls: it writes the batches down, and answers when it is let go."""

    def __init__(self, answer: Callable[[Sequence[str]], Sequence[Outcome]] | None = None) -> None:
        self.batches: list[list[str]] = []
        self.at_once = 0
        self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._answer = answer or (lambda items: [item.upper() for item in items])

    async def __call__(self, items: Sequence[str]) -> Sequence[Outcome]:
        self.batches.append(list(items))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            return self._answer(items)
        finally:
            self.at_once -= 1

    def batcher(self, max_batch: int = 3, max_batches: int = 2) -> Batcher[str, str]:
        return Batcher(self, failure, max_batch=max_batch, max_batches=max_batches)


async def turns(count: int = 5) -> None:
    """Let everything run that can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def outcomes(futures: Sequence[asyncio.Future[str]]) -> list[str | BaseException]:
    async with asyncio.timeout(10):
        return await asyncio.gather(*futures, return_exceptions=True)


def words(results: Sequence[object]) -> list[str]:
    """Results as they are, failures by their class and text."""
    return [f"{type(one).__name__}: {one}" if isinstance(one, BaseException) else str(one) for one in results]


# --- what leaves, and when


async def test_each_caller_gets_the_result_of_its_own_item() -> None:
    work = Work()
    batcher = work.batcher()
    futures = [batcher.submit(f"item-{number}") for number in range(20)]
    assert await outcomes(futures) == [f"ITEM-{number}" for number in range(20)]


async def test_items_leave_in_the_order_in_which_they_came() -> None:
    work = Work()
    batcher = work.batcher(max_batches=1)
    await outcomes([batcher.submit(str(number)) for number in range(10)])
    assert [item for batch in work.batches for item in batch] == [str(number) for number in range(10)]


async def test_a_batch_holds_no_more_than_its_limit() -> None:
    work = Work()
    batcher = work.batcher(max_batch=4, max_batches=1)
    await outcomes([batcher.submit(str(number)) for number in range(10)])
    assert [len(batch) for batch in work.batches] == [4, 4, 2]


async def test_no_more_batches_are_under_way_than_the_limit() -> None:
    work = Work()
    work.gate.clear()
    batcher = work.batcher(max_batch=1, max_batches=3)
    futures = [batcher.submit(str(number)) for number in range(10)]
    await turns()
    assert (work.at_once, len(work.batches)) == (3, 3)
    work.gate.set()
    await outcomes(futures)
    assert work.most_at_once == 3


async def test_an_item_leaves_at_once_while_few_are_under_way_and_the_rest_leave_together() -> None:
    work = Work()
    work.gate.clear()
    batcher = work.batcher(max_batches=2)
    first = batcher.submit("a")
    await turns()
    second = batcher.submit("b")
    await turns()
    rest = [batcher.submit(item) for item in "cde"]
    await turns()
    assert work.batches == [["a"], ["b"]]
    work.gate.set()
    assert await outcomes([first, second, *rest]) == ["A", "B", "C", "D", "E"]
    assert work.batches == [["a"], ["b"], ["c", "d", "e"]]


async def test_an_item_that_comes_when_a_batch_has_just_ended_is_not_left_behind() -> None:
    work = Work()
    batcher = work.batcher(max_batches=1)
    first = batcher.submit("first")

    async def at_the_end_of_the_first() -> str:
        await first  # wakes in the very turn of the loop in which the worker of the first is done
        return await batcher.submit("second")

    async with asyncio.timeout(10):
        assert await at_the_end_of_the_first() == "SECOND"


async def test_work_carries_nothing_of_the_context_of_the_caller_that_started_it() -> None:
    request = contextvars.ContextVar[str]("request", default="none")
    seen = []

    async def run(items: Sequence[str]) -> Sequence[Outcome]:
        seen.append(request.get())
        return items

    batcher = Batcher[str, str](run, failure, max_batch=3, max_batches=1)
    request.set("a request of the first caller")
    await batcher.submit("x")
    assert seen == ["none"]


# --- what fails


async def test_an_item_that_fails_leaves_the_others_their_results() -> None:
    def answer(items: Sequence[str]) -> Sequence[Outcome]:
        return [KeyError(item) if item == "bad" else item for item in items]

    batcher = Work(answer).batcher()
    results = await outcomes([batcher.submit(item) for item in ("a", "bad", "b")])
    assert words(results) == ["a", "KeyError: 'bad'", "b"]


async def test_a_batch_that_is_refused_as_a_whole_is_tried_one_by_one() -> None:
    def answer(items: Sequence[str]) -> Sequence[Outcome]:
        if "bad" in items:
            raise BatchRefused("one of them is bad")
        return items

    work = Work(answer)
    batcher = work.batcher()
    results = await outcomes([batcher.submit(item) for item in ("a", "bad", "b")])
    assert words(results) == ["a", "Failed: BatchRefused", "b"]
    assert work.batches == [["a", "bad", "b"], ["a"], ["bad"], ["b"]]


async def test_a_single_item_that_is_refused_is_not_tried_again() -> None:
    def answer(_items: Sequence[str]) -> Sequence[Outcome]:
        raise BatchRefused("no")

    work = Work(answer)
    batcher = work.batcher()
    assert words(await outcomes([batcher.submit("bad")])) == ["Failed: BatchRefused"]
    assert work.batches == [["bad"]]


@pytest.mark.parametrize("returned", [[], ["a", "b", "c", "d"]])
async def test_another_number_of_outcomes_is_a_failure_of_every_caller(returned: list[str]) -> None:
    batcher = Work(lambda _items: returned).batcher()
    results = await outcomes([batcher.submit(item) for item in "abc"])
    assert words(results) == ["Failed: ValueError"] * 3


async def test_a_batch_that_fails_gives_each_caller_an_exception_of_its_own() -> None:
    def answer(_items: Sequence[str]) -> Sequence[Outcome]:
        raise ConnectionError("down")

    work = Work(answer)
    batcher = work.batcher()
    results = await outcomes([batcher.submit(item) for item in "abc"])
    assert words(results) == ["Failed: ConnectionError"] * 3
    assert len({id(one) for one in results}) == 3
    assert work.batches == [["a", "b", "c"]]


async def test_a_batcher_goes_on_after_a_batch_has_failed() -> None:
    def answer(items: Sequence[str]) -> Sequence[Outcome]:
        if "bad" in items:
            raise ConnectionError("down")
        return items

    batcher = Work(answer).batcher(max_batches=1)
    assert words(await outcomes([batcher.submit("bad")])) == ["Failed: ConnectionError"]
    assert words(await outcomes([batcher.submit("good")])) == ["good"]


async def test_a_worker_that_is_cancelled_leaves_no_caller_of_its_batch_waiting() -> None:
    work = Work()
    work.gate.clear()
    batcher = work.batcher()
    futures = [batcher.submit(item) for item in "ab"]
    await turns()
    for worker in list(batcher._workers):
        worker.cancel()
    assert words(await outcomes(futures)) == ["Failed: CancelledError"] * 2
    work.gate.set()
    assert await batcher.submit("c") == "C"


async def test_a_worker_that_is_cancelled_amid_single_items_leaves_no_caller_waiting() -> None:
    async def run(items: Sequence[str]) -> Sequence[Outcome]:
        if len(items) > 1:
            raise BatchRefused("one of them is bad")
        if items[0] == "b":
            await asyncio.Event().wait()
        return items

    batcher = Batcher[str, str](run, failure, max_batch=3, max_batches=1)
    futures = [batcher.submit(item) for item in "abc"]
    await turns()
    for worker in list(batcher._workers):
        worker.cancel()
    assert words(await outcomes(futures)) == ["a", "Failed: CancelledError", "Failed: CancelledError"]


# --- who gives up


async def test_who_gives_up_before_its_batch_leaves_is_not_in_it_and_harms_nobody() -> None:
    work = Work()
    work.gate.clear()
    batcher = work.batcher(max_batch=2, max_batches=1)
    first = batcher.submit("a")
    await turns()
    waiting = [batcher.submit(item) for item in "bcdef"]
    waiting[0].cancel()
    waiting[3].cancel()
    work.gate.set()
    results = await outcomes([first, *waiting])
    assert [one for one in results if isinstance(one, str)] == ["A", "C", "D", "F"]
    assert work.batches == [["a"], ["c", "d"], ["f"]]


async def test_an_item_waits_no_longer_than_it_is_patient() -> None:
    work = Work()
    work.gate.clear()
    batcher = work.batcher(max_batches=1)
    sent, waits, stays = batcher.submit("a", 0.05), batcher.submit("b", 0.05), batcher.submit("c")
    late = batcher.submit("d", 0.05)  # in no batch yet
    async with asyncio.timeout(10):
        found = await asyncio.gather(sent, waits, late, return_exceptions=True)
    assert [str(one) for one in found if isinstance(one, Failed)] == ["TimeoutError"] * 3
    work.gate.set()
    assert await outcomes([stays]) == ["C"]
    assert work.batches == [["a", "b", "c"]]


async def test_nothing_is_said_of_an_item_whose_caller_has_gone() -> None:
    """Otherwise everybody who hangs up would leave a line in the log, that a lookup took too long."""
    work, said = Work(), list[BaseException]()
    work.gate.clear()

    def failure(fault: BaseException) -> Exception:
        said.append(fault)
        return Failed(type(fault).__name__)

    batcher = Batcher[str, str](work, failure, max_batch=1, max_batches=1)
    sent, queued = batcher.submit("a", 0.05), batcher.submit("b", 0.05)
    await turns()
    sent.cancel()
    queued.cancel()
    await asyncio.sleep(0.2)
    work.gate.set()
    await batcher.close()
    assert said == []


async def test_who_gives_up_while_its_batch_is_under_way_harms_nobody() -> None:
    work = Work()
    work.gate.clear()
    batcher = work.batcher()
    futures = [batcher.submit(item) for item in "abc"]
    await turns()
    futures[1].cancel()
    work.gate.set()
    results = await outcomes(futures)
    assert [one for one in results if isinstance(one, str)] == ["A", "C"]
    assert futures[1].cancelled()


async def test_who_gives_up_while_single_items_are_tried_is_passed_over() -> None:
    async def run(items: Sequence[str]) -> Sequence[Outcome]:
        seen.append(list(items))
        if len(items) > 1:
            raise BatchRefused("one of them is bad")
        futures[2].cancel()
        return items

    seen: list[list[str]] = []
    batcher = Batcher[str, str](run, failure, max_batch=3, max_batches=1)
    futures = [batcher.submit(item) for item in "abc"]
    await outcomes(futures)
    assert seen == [["a", "b", "c"], ["a"], ["b"]]


# --- the end


async def test_close_waits_for_what_was_submitted_and_takes_no_more() -> None:
    work = Work()
    work.gate.clear()
    batcher = work.batcher(max_batch=1, max_batches=1)
    futures = [batcher.submit(item) for item in "abc"]
    closing = asyncio.create_task(batcher.close())
    await turns()
    assert not closing.done()
    with pytest.raises(BatcherClosed):
        batcher.submit("late")
    work.gate.set()
    async with asyncio.timeout(10):
        await closing
    assert [future.result() for future in futures] == ["A", "B", "C"]
    await batcher.close()


async def test_close_of_a_batcher_that_did_nothing_returns() -> None:
    await Work().batcher().close()


async def test_what_waits_is_not_shown() -> None:
    work = Work()
    batcher = work.batcher()
    future = batcher.submit(CANARY)
    assert CANARY not in repr(batcher._queue) + repr(batcher._workers) + repr(batcher)
    await future


async def test_a_turn_that_fails_fails_the_items_that_wait_for_it_and_no_later_ones() -> None:
    work, faults = Work(), [OSError("down")]

    async def turn() -> None:
        await asyncio.sleep(0)
        if faults:
            raise faults.pop()

    batcher = Batcher(work, failure, max_batch=2, max_batches=1, turn=turn)
    futures = [batcher.submit(item) for item in "abc"]
    assert words(await outcomes(futures)) == ["Failed: OSError", "Failed: OSError", "C"]
    assert words(await outcomes([batcher.submit("d")])) == ["D"]
    assert work.batches == [["c"], ["d"]]
