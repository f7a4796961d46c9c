"""The requests that are under way: how many of whom, and whether each caller may still act.

A request can take minutes, and a caller can be revoked meanwhile. So the callers of all open requests of a process are
checked once a second: with one query for each kind of credential, one for the owners of the keys, and one for the
applications that these have blocked.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from math import inf
from time import monotonic

from keyman.errors import (
    KeymanError,
    NotFound,
    Overloaded,
    RateLimited,
    Unauthenticated,
    raise_alone,
)
from keyman.http.connections import Peer
from keyman.identity.active_accounts import find_active
from keyman.identity.principals import Principal
from keyman.identity.standing import Standing
from keyman.ids import UserId
from keyman.keys.consent import find_blocks
from keyman.keys.release import MISSING
from keyman.logs import frames, log
from keyman.storage.transactions import Database

INTERVAL = 0.7
"""Seconds between two checks, so that with the query a request of a revoked caller ends within a second."""

GRACE = 10.0
"""Seconds for which requests go on while the database does not answer. Then nobody knows, and they end."""

_TOO_MANY = "Too many requests of this caller are under way. Wait until one has ended."


class Left(KeymanError):
    """The client has closed its connection."""


class Stream:
    """One request that is under way. `end` ends it, with the problem that answers it if the answer has not begun.

    `peer` is the client as the connection has it, if the server says so.
    """

    def __init__(self, caller: Principal, owner_id: UserId, peer: Peer | None) -> None:
        self.caller = caller
        self.owner_id = owner_id
        self.peer = peer
        self._refusal: KeymanError | None = None
        self._is_ended = False
        self._task: asyncio.Task[object] | None = None

    def end(self, refusal: KeymanError) -> None:
        """End the stream, from another task than the one that does its work."""
        if not self._is_ended:
            self._is_ended, self._refusal = True, refusal
            if self._task is not None:
                self._task.cancel()

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work, unless or until the stream is ended. Raises the problem with which it was ended.

        The work is done in the caller's task, as within `asyncio.timeout`: that task is cancelled, and goes on here.
        """
        self._require_open()
        task = self._task = asyncio.current_task()
        assert task is not None, "requests are served by tasks"
        try:
            await work()
        except asyncio.CancelledError:
            if task.cancelling() <= 1:
                self._require_open()
            raise  # somebody else cancelled the task
        finally:
            self._task = None
            if self._is_ended:
                task.uncancel()

    def _require_open(self) -> None:
        if self._refusal is not None:
            raise_alone(self._taken())

    def _taken(self) -> KeymanError:
        """Return the refusal, and forget it: its traceback will refer to this stream."""
        refusal, self._refusal = self._refusal, None
        assert refusal is not None
        return refusal


class Streams:
    """The requests that are under way in this process, at most `most` of each caller.

    After SIGTERM they may take `drain` seconds. `is_draining` says whether it came; the plane sets it.
    """

    def __init__(self, most: int, drain: float) -> None:
        self.is_draining: Callable[[], bool] = lambda: False
        self._most = most
        self._drain = drain
        self._count: Counter[tuple[str, int]] = Counter()
        self._open: set[Stream] = set()
        self._clients: set[Peer] = set()

    @contextmanager
    def place(self, caller: tuple[str, int]) -> Iterator[None]:
        """Count a request of this caller. Raises RateLimited for one too many."""
        if self._count[caller] >= self._most:
            raise RateLimited(_TOO_MANY, retry_after=1)
        self._count[caller] += 1
        try:
            yield
        finally:
            self._count[caller] -= 1
            if not self._count[caller]:
                del self._count[caller]

    @contextmanager
    def opened(self, caller: Principal, owner_id: UserId, peer: Peer | None) -> Iterator[Stream]:
        """Watch a request until it has ended."""
        stream = Stream(caller, owner_id, peer)
        self._open.add(stream)
        if peer is not None:
            self._clients.add(peer)
        try:
            yield stream
        finally:
            self._open.discard(stream)

    def take_clients(self) -> set[Peer]:
        """Return the clients of which a request was opened since the last call. The worker calls it every second."""
        taken, self._clients = self._clients, set()
        return taken

    def end_all(self, refusal: KeymanError) -> None:
        for stream in self._open:
            stream.end(refusal)

    def end_left(self, peers: set[Peer]) -> None:
        """End the requests of these clients, which have closed their connections.

        The server says so only while the body of the request is read, and it is not while the provider takes nothing.
        """
        if not peers:
            return
        for stream in self._open:
            if stream.peer in peers:
                stream.end(Left("The client has left."))

    async def watch(self, db: Database) -> None:
        """End the requests of callers that may no longer act, and those with keys of owners who are disabled or have
        blocked the application. It never returns.
        """
        known = monotonic()
        stops_at = inf
        while True:
            await asyncio.sleep(INTERVAL)
            if self.is_draining():
                stops_at = min(stops_at, monotonic() + self._drain)
            if monotonic() >= stops_at:
                self.end_all(Overloaded("This process stops. Send the request again."))
            streams = list(self._open)
            if not streams:
                known = monotonic()
                continue
            try:
                await _check(db, streams)
                known = monotonic()
            except Exception as fault:  # noqa: BLE001  # if this task ended, nobody would be watched any more
                if monotonic() - known >= GRACE:
                    log.error("requests under way are ended: their callers cannot be checked", **frames(fault))
                    self.end_all(Overloaded("The database cannot be asked whether you may still do this."))


async def _check(db: Database, streams: list[Stream]) -> None:
    of_kind: defaultdict[Standing, list[Stream]] = defaultdict(list)
    for stream in streams:
        if stream.caller.grounds is None:
            stream.end(Unauthenticated("Sign in again."))
        else:
            of_kind[stream.caller.grounds.standing].append(stream)
    for standing, same in of_kind.items():
        grounds = [stream.caller.grounds for stream in same if stream.caller.grounds is not None]
        for stream, refusal in zip(same, await standing.confirm_all_now(db, grounds), strict=True):
            if refusal is not None:
                stream.end(refusal)
    active = await find_active(db, {stream.owner_id for stream in streams})
    for stream in streams:
        if stream.owner_id not in active:
            stream.end(Unauthenticated("The account of the key was disabled."))
    await _check_blocks(db, [stream for stream in streams if stream.caller.application is not None])


async def _check_blocks(db: Database, streams: list[Stream]) -> None:
    """End the requests of applications that the owner of the key has blocked."""
    if not streams:
        return
    blocks = await find_blocks(db, {stream.owner_id for stream in streams})
    for stream in streams:
        application = stream.caller.application
        if application is not None and (stream.owner_id, application.id) in blocks:
            stream.end(NotFound(MISSING))
