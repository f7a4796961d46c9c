"""Where a run keeps its files: in memory if there is enough, because it makes hundreds of databases and servers.

On a disk, the file system takes a fifth of the processor time of the whole suite.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")  # noqa: S108  # Linux' file system in memory, open to everybody as /tmp is

ENOUGH = 4 << 30
"""Bytes that have to be free: five times what a run was seen to take. A container has 64 MiB by default."""


def use(variables: dict[str, str] | os._Environ[str] = os.environ, memory: Path = MEMORY) -> None:
    """Make all temporary files from here on in memory, also those of the run's workers.

    A developer's own TMPDIR stays.
    """
    if "TMPDIR" not in variables and is_roomy(memory):
        variables["TMPDIR"] = str(memory)
        tempfile.tempdir = None  # looked up again at the next use


def is_roomy(memory: Path) -> bool:
    """Return True if it is writable, programs in it can run, and both it and the machine have room."""
    try:
        system = os.statvfs(memory)
        available = Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]
    except (OSError, IndexError):
        return False
    free = min(system.f_bavail * system.f_frsize, int(available) * 1024)
    return os.access(memory, os.W_OK | os.X_OK) and not system.f_flag & os.ST_NOEXEC and free >= ENOUGH
