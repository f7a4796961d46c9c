"""Keeps the memory of keyman's processes out of core dumps, and away from other processes of the same user."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

if sys.platform != "win32":
    import resource

PR_SET_DUMPABLE = 4
"""`prctl(2)`: the option that says whether a process may be dumped and traced. Only Linux has it."""

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
"""Where Linux writes core dumps to: a file name, or `|` and a program."""


def protect() -> None:
    """Let nobody see the memory of this process: no core dump, no debugger, no `/proc/<pid>/environ`.

    Root can still read it. Call this first, before there is a secret. A program that this process starts inherits the
    limit, but not the other protection. Python would write the keys of TLS connections, such as those to Vault, to the
    file that SSLKEYLOGFILE names: the variable is removed.
    """
    os.environ.pop("SSLKEYLOGFILE", None)
    forbid_core_dumps()
    if sys.platform == "linux":
        # The kernel ignores the limit where core_pattern is a program, so the limit is not enough.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def forbid_core_dumps() -> None:
    """Set the limit of core dumps to 0 for good, for this process and those that it starts."""
    if sys.platform != "win32":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def dumps_go_to_a_program() -> bool:
    """Return whether the kernel pipes core dumps into a program, which gets them whatever the limit is."""
    try:
        return CORE_PATTERN.read_bytes().startswith(b"|")
    except OSError:
        return False
