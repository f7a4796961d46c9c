"""Limits the requests that wait in a process, so that one more gets an answer at once instead of after a long wait."""

from __future__ import annotations

from keyman.errors import Overloaded

LIVENESS = "/livez"
"""Always answered: a platform ends a process that does not answer here, and that would help nobody."""


class Backlog:
    """Counts the requests that wait in this process for an answer, `most` at once.

    A request counts while keyman works on it, and not while keyman waits for its client. So clients that send a body
    slowly, or do not read the answer, do not keep others out: other limits end them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting = 0

    def enter(self) -> None:
        """Count one more. Raises Overloaded, and then it is not counted."""
        if self._waiting >= self._most:
            raise Overloaded
        self._waiting += 1

    def leave(self) -> None:
        self._waiting -= 1
