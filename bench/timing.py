"""The processor time of a step that is too short to be measured once."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time


def best(step: Callable[[], object], steps: int, rounds: int) -> float:
    """Return the microseconds of this process for one step, in the best of several rounds of so many steps."""
    found = []
    for _ in range(rounds):
        began = process_time()
        for _ in range(steps):
            step()
        found.append((process_time() - began) / steps * 1e6)
    return min(found)
