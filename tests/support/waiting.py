"""Bounded waits. Every wait of the tests ends after PATIENCE."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

PATIENCE = 60.0
"""Seconds. It measures no speed: it is for a machine that does much at once."""


def until(condition: Callable[[], object], what: str = "what was waited for") -> None:
    """Return once `condition()` is true; AssertionError after PATIENCE."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < PATIENCE, f"{what} did not come"
        # Who looks too often slows down what is waited for. This loses a twentieth of the wait at the most.
        time.sleep(min(0.01 + waited / 20, 0.1))


def freeze(pid: int) -> None:
    """Stop a process where it stands, and return once all its threads have stopped: until then it could answer."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    until(lambda: all(_state(task) in "TtZX" for task in tasks.iterdir()), "the stop of a process")


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"  # this thread has ended


async def becomes(condition: Callable[[], object], what: str = "what was waited for") -> None:
    """Do the same without blocking the loop. `condition` may be a coroutine function."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if await found if isinstance(found, Awaitable) else found:
            return
        assert time.monotonic() < deadline, f"{what} did not come"
        await asyncio.sleep(0.02)
