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


class Turn:
    """The place of one request in a backlog. It is in none before `enter`."""

    __slots__ = ("_backlog", "_is_counted")

    def __init__(self) -> None:
        self._backlog: Backlog | None = None
        self._is_counted = False

    def enter(self, backlog: Backlog) -> None:
        """Count in this backlog from now on. Raises Overloaded."""
        self._backlog = backlog
        self.resume()

    def pause(self) -> None:
        """Count no longer, until `resume`."""
        if self._is_counted and self._backlog is not None:
            self._is_counted = False
            self._backlog.leave()

    def resume(self) -> None:
        """Count again. Raises Overloaded."""
        if not self._is_counted and self._backlog is not None:
            self._backlog.enter()
            self._is_counted = True

    def end(self) -> None:
        """Count no longer, and not again."""
        self.pause()
        self._backlog = None
