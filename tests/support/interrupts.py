"""Ctrl-C in tests, independent of the shell that started the run."""

from __future__ import annotations

import signal


def take_interrupts() -> None:
    """Handle SIGINT as Python does by default, in this process and in those that it starts.

    A background job of a non-interactive shell (`make test &` in a script) inherits an ignored SIGINT. Its children
    would inherit that too, and tests that send Ctrl-C to them would wait for nothing.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
