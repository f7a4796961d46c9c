"""Work that comes one item at a time and is done in batches: one round trip for many callers."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from keyman.errors import KeymanError

T = TypeVar("T")
R = TypeVar("R")


class BatchRefused(KeymanError):
    """A batch was refused as a whole, and nothing says for which item: each may fare differently by itself."""


class BatcherClosed(KeymanError):
    """An item was submitted to a batcher that is closed."""


@dataclass(eq=False)
class _Waiting(Generic[T, R]):
    item: T
    result: asyncio.Future[R]

    def settle(self, outcome: R | Exception) -> None:
        if self.result.done():  # the caller gave up
            return
        if isinstance(outcome, Exception):
            self.result.set_exception(outcome)
        else:
            self.result.set_result(outcome)

    def __repr__(self) -> str:
        return "_Waiting(***)"  # an item can hold a plaintext


class Batcher(Generic[T, R]):
    """Hands the items of many callers to `run` in batches, and gives each caller its own result or its own failure.

    Nothing waits for a batch to fill: an item that is submitted while fewer than `max_batches` are under way leaves in
    the next turn of the loop, and those that come meanwhile leave together, first come first, at most `max_batch` at
    once. An item whose caller has given up before its batch left is not handed to `run`.

    `run` takes the items of a batch and returns as many outcomes in the same order, each a result or the exception of
    that item. If it raises BatchRefused for several items, they are handed to it again one by one. If it raises
    anything else, or returns another number of outcomes, the batch fails. Then `failure` is called with that exception
    once for each caller and makes the exception that this caller gets; an exception object that several tasks raise
    would gather the frames of all of them.

    `run` is called in an empty context: it works for all callers of a batch, so nothing that it logs or sends may
    carry the request id of one of them. It must have a bound of time of its own.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        failure: Callable[[BaseException], Exception],
        *,
        max_batch: int,
        max_batches: int,
    ) -> None:
        self._run = run
        self._failure = failure
        self._max_batch = max_batch
        self._max_batches = max_batches
        self._queue: deque[_Waiting[T, R]] = deque()
        self._under_way = 0
        self._workers: set[asyncio.Task[None]] = set()  # a task that nobody refers to may be collected
        self._is_closed = False

    def submit(self, item: T) -> asyncio.Future[R]:
        """What `run` makes of this item. Cancel it to give up, which harms no other caller. Raises BatcherClosed."""
        if self._is_closed:
            raise BatcherClosed("This batcher is closed and takes no more items.")
        waiting = _Waiting[T, R](item, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._under_way < self._max_batches:
            self._under_way += 1
            worker = asyncio.create_task(self._work(), context=contextvars.Context())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return waiting.result

    async def close(self) -> None:
        """Take no more items, and return once those that were submitted have their outcomes."""
        self._is_closed = True
        while self._workers:
            await asyncio.wait(self._workers)

    async def _work(self) -> None:
        try:
            while batch := self._next_batch():
                await self._carry_out(batch)
        finally:
            # Here, not when the task is seen to be done: an item that comes in between would wait for nobody.
            self._under_way -= 1

    def _next_batch(self) -> list[_Waiting[T, R]]:
        batch: list[_Waiting[T, R]] = []
        while self._queue and len(batch) < self._max_batch:
            waiting = self._queue.popleft()
            if not waiting.result.done():
                batch.append(waiting)
        return batch

    async def _carry_out(self, batch: list[_Waiting[T, R]]) -> None:
        """Settle a batch, whatever happens. Raises what is no Exception, such as CancelledError, after that."""
        try:
            await self._settle(batch)
        except BaseException as fault:
            for waiting in batch:
                waiting.settle(self._failure(fault))
            if not isinstance(fault, Exception):
                raise

    async def _settle(self, batch: list[_Waiting[T, R]]) -> None:
        try:
            outcomes = await self._run([waiting.item for waiting in batch])
        except BatchRefused:
            if len(batch) == 1:
                raise
            for waiting in batch:
                if not waiting.result.done():
                    await self._carry_out([waiting])
            return
        if len(outcomes) != len(batch):
            raise ValueError(f"{len(outcomes)} outcomes for {len(batch)} items")
        for waiting, outcome in zip(batch, outcomes, strict=True):
            waiting.settle(outcome)
