"""Collects the items of many callers into batches, so that one round trip serves all of them."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from keyman.errors import KeymanError
from keyman.extras import require_server

require_server()

T = TypeVar("T")
R = TypeVar("R")


class BatchRefused(KeymanError):
    """A whole batch was refused, and the item that caused this is unknown. Each item may succeed by itself."""


class BatcherClosed(KeymanError):
    """An item was submitted to a batcher that is closed."""


@dataclass(eq=False, slots=True)
class _Waiting(Generic[T, R]):
    item: T
    result: asyncio.Future[R]
    timer: asyncio.TimerHandle | None = None

    def settle(self, outcome: R | Exception) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.result.done():  # the caller gave up
            return
        if isinstance(outcome, Exception):
            self.result.set_exception(outcome)
        else:
            self.result.set_result(outcome)

    def __repr__(self) -> str:
        return "_Waiting(***)"  # an item can contain a plaintext


class Batcher(Generic[T, R]):
    """Passes the items of many callers to `run` in batches, and gives each caller its own result or exception.

    No item waits for a batch to fill. While fewer than `max_batches` are running, a submitted item starts a batch in
    the next iteration of the event loop. Later items wait until a batch ends. They are then sent together, in order, at
    most `max_batch` at once. If a caller gives up before its batch starts, its item is not passed to `run`.

    `run` takes the items of a batch and returns as many outcomes in the same order, each a result or the exception of
    that item. If it raises BatchRefused for several items, they are passed to it again one by one. If it raises
    anything else, or returns another number of outcomes, the batch fails. Then `failure` is called with that exception
    once for each caller, and returns the outcome of this caller. A shared exception object would collect the traceback
    frames of all callers.

    A batch is formed once `turn`, if given, has returned. Until then, more items can come. If it raises, the batch
    fails.

    `run` is called in an empty context: it works for all callers of a batch, so nothing that it logs or sends may
    have the request id of one of them. It must have its own timeout.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        failure: Callable[[BaseException], R | Exception],
        *,
        max_batch: int,
        max_batches: int,
        turn: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._turn = turn
        self._run = run
        self._failure = failure
        self._max_batch = max_batch
        self._max_batches = max_batches
        self._queue: deque[_Waiting[T, R]] = deque()
        self._under_way = 0
        self._workers: set[asyncio.Task[None]] = set()  # asyncio keeps only weak references to tasks
        self._is_closed = False

    def submit(self, item: T, patience: float | None = None) -> asyncio.Future[R]:
        """Return a future for the outcome of this item. Cancelling it affects no other caller. Raises BatcherClosed.

        If there is no outcome after `patience` seconds, it is what `failure` returns for a TimeoutError.
        This costs less than half of a timeout around the future.
        """
        if self._is_closed:
            raise BatcherClosed("This batcher is closed and takes no more items.")
        loop = asyncio.get_running_loop()
        waiting: _Waiting[T, R] = _Waiting(item, loop.create_future())
        if patience is not None:
            waiting.timer = loop.call_later(patience, self._end, waiting)
        self._queue.append(waiting)
        if self._under_way < self._max_batches:
            self._under_way += 1
            worker = asyncio.create_task(self._work(), context=contextvars.Context())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return waiting.result

    async def close(self) -> None:
        """Refuse new items, and wait until all submitted items have their outcomes."""
        self._is_closed = True
        while self._workers:
            await asyncio.wait(self._workers)

    def _end(self, waiting: _Waiting[T, R]) -> None:
        """Give up an item that has waited too long, unless its caller has gone."""
        if not waiting.result.done():
            waiting.settle(self._failure(TimeoutError()))

    async def _work(self) -> None:
        try:
            while self._queue:
                await self._await_turn()
                if batch := self._next_batch():
                    await self._carry_out(batch)
        finally:
            # Not in a done callback: an item that is submitted before the callback runs would never be sent.
            self._under_way -= 1

    async def _await_turn(self) -> None:
        """Return when the next batch is to be formed. If that fails, so do the items that wait for it."""
        if self._turn is None:
            return
        try:
            await self._turn()
        except BaseException as fault:
            self._fail(self._next_batch(), fault)
            if not isinstance(fault, Exception):
                raise

    def _next_batch(self) -> list[_Waiting[T, R]]:
        batch: list[_Waiting[T, R]] = []
        while self._queue and len(batch) < self._max_batch:
            waiting = self._queue.popleft()
            if not waiting.result.done():
                batch.append(waiting)
        return batch

    async def _carry_out(self, batch: list[_Waiting[T, R]]) -> None:
        """Settle every item of a batch, also if `run` fails. Then re-raises a BaseException such as CancelledError."""
        try:
            await self._settle(batch)
        except BaseException as fault:
            self._fail(batch, fault)
            if not isinstance(fault, Exception):
                raise

    def _fail(self, batch: Sequence[_Waiting[T, R]], fault: BaseException) -> None:
        for waiting in batch:
            waiting.settle(self._failure(fault))

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
