"""Commands at a terminal, for what only a terminal shows: prompts, and what they do not echo."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.support.cli import KEYMAN
from tests.support.waiting import PATIENCE


class Terminal:
    """A command at a terminal of its own; its results go elsewhere."""

    def __init__(self, process: subprocess.Popen[bytes], end: int) -> None:
        self.process = process
        self._end = end
        self.screen = ""
        self._seen = 0

    def shows(self, text: str) -> None:
        """Return once the terminal shows `text`, after what it was waited for before."""
        deadline = time.monotonic() + PATIENCE
        start = self._seen
        while text not in self.screen[start:]:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} is not in {self.screen!r}"
            if not select.select([self._end], [], [], left)[0]:
                continue
            try:
                self.screen += os.read(self._end, 4096).decode()
            except OSError:  # the other end is closed
                assert text in self.screen[start:], self.screen
        self._seen = self.screen.index(text, start) + len(text)

    def types(self, text: str) -> None:
        os.write(self._end, text.encode())

    def types_bytes(self, content: bytes) -> None:
        os.write(self._end, content)

    def ends(self) -> int:
        return self.process.wait(PATIENCE)


@contextmanager
def terminal(*arguments: str, env: Mapping[str, str]) -> Iterator[Terminal]:
    """Start a command at a terminal. When the block ends, it is over."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [KEYMAN, *arguments],
        env=dict(env),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # the child has one thread
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
