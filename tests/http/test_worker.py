"""A worker of `keyman serve`, in the loop that the server uses: it hears every SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from keyman.config.settings import Settings
from keyman.http.edge import Edge
from keyman.http.exchange import Message
from keyman.http.worker import Listener, Worker
from keyman.planes.management.app import create_app
from tests.support.database import copied
from tests.support.http import free_port
from tests.support.planes import Vault
from tests.support.waiting import becomes

NEVER = 3_600.0
"""Seconds of draining that no test waits for: at their end a worker stops its process."""


@pytest.fixture
def plane_of_worker(provisioned: Vault, migrated_sqlite: Path, tmp_path: Path) -> Edge:
    database = copied(migrated_sqlite, tmp_path / "keyman.db")
    return create_app(Settings(database, provisioned.settings, public_url="http://127.0.0.1:8000"))


@pytest.fixture
def server_loop() -> Iterator[uvloop.Loop]:
    """The loop of a worker, and the signals of this process as before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGURG)}
    loop = uvloop.new_event_loop()
    try:
        yield loop
    finally:
        loop.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_during_the_start(loop: uvloop.Loop, started: asyncio.Future[None]) -> None:
    loop.call_soon(os.kill, os.getpid(), signal.SIGTERM)
    loop.run_until_complete(started)


def _stop_after_the_start(loop: uvloop.Loop, started: asyncio.Future[None]) -> None:
    loop.run_until_complete(started)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stop", [_stop_during_the_start, _stop_after_the_start])
def test_a_sigterm_is_heard_also_while_the_loop_does_not_run(
    stop: Callable[[uvloop.Loop, asyncio.Future[None]], None], plane_of_worker: Edge, server_loop: uvloop.Loop
) -> None:
    """The server runs its loop until the plane is open, and again to serve it. uvloop only notes a signal between."""
    worker = Worker(plane_of_worker, Listener(free_port(), 10, NEVER))
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    outbox: asyncio.Queue[Message] = asyncio.Queue()

    async def hears(word: str) -> None:
        await inbox.put({"type": f"lifespan.{word}"})
        assert (await outbox.get())["type"] == f"lifespan.{word}.complete"

    async def drains() -> None:
        await becomes(lambda: plane_of_worker.is_draining, "the drain")

    living = server_loop.create_task(worker({"type": "lifespan"}, inbox.get, outbox.put))
    stop(server_loop, server_loop.create_task(hears("startup")))
    server_loop.run_until_complete(drains())
    server_loop.run_until_complete(hears("shutdown"))
    server_loop.run_until_complete(living)
