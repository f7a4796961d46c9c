"""Clients in a forked process, such as a worker of a server that creates its clients before it forks.

A forked process shares the sockets of its parent: if both used one, an answer could reach the wrong process. It also
inherits locks that a thread of the parent held, and no thread releases them.
"""

from __future__ import annotations

import os
import sys
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """Something with state that belongs to one process."""

    def _after_fork(self) -> None:
        """Replace that state in the new process. Close nothing: the parent still uses it."""


_known: WeakSet[Forkable] = WeakSet()


def reset_after_fork(part: Forkable) -> None:
    """Call `part._after_fork` in each process that is forked from this one, before any other code runs there."""
    _known.add(part)


def _reset() -> None:
    for part in list(_known):
        part._after_fork()


if sys.platform != "win32":  # Windows has no fork
    os.register_at_fork(after_in_child=_reset)
