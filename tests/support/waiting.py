"""Bounded waits. Every wait of the tests ends after PATIENCE."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

PATIENCE = 40.0
"""Seconds: what has not happened by then does not happen."""


def until(condition: Callable[[], object], what: str = "what was waited for") -> None:
    """Return once `condition()` is true; AssertionError after PATIENCE."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < PATIENCE, f"{what} did not come"
        # Who looks too often slows down what is waited for. This loses a twentieth of the wait at the most.
        time.sleep(min(0.01 + waited / 20, 0.1))


async def becomes(condition: Callable[[], Awaitable[object]], what: str = "what was waited for") -> None:
    """The same for a condition that is awaited."""
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        await asyncio.sleep(0.02)
