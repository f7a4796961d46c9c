"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

PRIVATE = 0o600
"""For a file that is read by the user of keyman's image, whose jobs write it."""

SHARED = 0o444
"""For a file that another image's user reads. Its volume, which one service alone mounts, keeps it from all others."""


def write(path: Path, content: bytes, mode: int) -> None:
    """Replace the file; a reader, or a job that was killed, never sees half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def password(path: Path, mode: int) -> str:
    """The password in the file, drawn on the first call. It needs no quoting, in a URL or elsewhere."""
    if not path.exists():
        write(path, secrets.token_urlsafe(32).encode(), mode)
    return path.read_text()
