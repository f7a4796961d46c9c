"""Private files: only their owner can read them, and none is a link or belongs to somebody else."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_private(path: Path, flags: int) -> int:
    """Open a file that only its owner can read, and return its descriptor.

    Raises OSError, also for a symbolic link and for a file of another user.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid() or not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "not a file of this user")
    return descriptor


def read_private(path: Path) -> bytes:
    """Return the content of a private file. Raises OSError as `open_private` does."""
    with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
        return file.read()


def write_private(path: Path, content: str) -> None:
    """Write a file that only its owner can read. A crash leaves either the whole new file or the old one."""
    temporary = path.with_suffix(".new")
    # A file keeps its mode when it is opened again, and others may be able to read one that a crash left.
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:  # whatever the locale is
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
