"""What the planes of `keyman dev` write: while they start, only what a person has to know."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from types import TracebackType
from typing import Self

CHUNK = 64 * 1024

HELD = 2_000
"""Lines that are kept for a start that fails. One that succeeds has some 30."""

CLOSING = 2.0
"""Seconds in which the rest is read, once all planes have ended. A process that one left could hold the pipe."""

_OF_INFORMATION = re.compile(
    rb"""(?:\x1b\[[0-9;]*m)*\[(?:\x1b\[[0-9;]*m)*(?:info|debug)\b|\{.*"level": ?"(?:info|debug)\""""
)
"""A line at level info or debug, as `logs` writes it: for people, with colours or without, or as JSON."""


class Output:
    """Passes on to standard error what the planes write to `descriptor`.

    Until `open`, lines at level info are held back. If it was never called, they are written at the end: they say what
    the planes did before one of them failed. Lines with one of the ids of `leave_out` are never written.
    """

    def __init__(self, *, is_open: bool) -> None:
        self._readable, self.descriptor = os.pipe()
        self._thread = threading.Thread(target=self._pass_on, daemon=True)
        self._is_open = is_open
        self._held: list[bytes] = []
        self._left_out: list[bytes] = []

    def start(self) -> None:
        """Begin to pass on, once all planes were started: a process with threads should not fork."""
        os.close(self.descriptor)
        self._thread.start()

    def leave_out(self, request_id: str) -> None:
        """Leave out the line of this request."""
        if request_id:
            self._left_out.append(request_id.encode())

    def open(self) -> None:
        """Pass on every line from now on."""
        self._is_open = True
        self._held.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, where: TracebackType | None
    ) -> None:
        """Write what is left. The planes have ended."""
        if self._thread.ident is None:
            os.close(self.descriptor)
            os.close(self._readable)
            return
        self._thread.join(CLOSING)
        for line in self._held:
            _write(line)

    def _pass_on(self) -> None:
        with os.fdopen(self._readable, "rb", buffering=CHUNK) as lines:
            for line in lines:
                if any(one in line for one in self._left_out):
                    continue
                if self._is_open or not _OF_INFORMATION.match(line):
                    _write(line)
                elif len(self._held) < HELD:
                    self._held.append(line)


def _write(line: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more; the planes go on
        sys.stderr.buffer.write(line)
        sys.stderr.flush()
