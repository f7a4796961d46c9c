"""Writes files atomically."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

PRIVATE = 0o600
"""The mode of a file that the user of keyman's image writes and reads."""

SHARED = 0o444
"""The mode of a file that the user of another image reads. Only one service mounts its volume and can read it."""


def write(path: Path, content: bytes, mode: int) -> None:
    """Replace the file atomically: neither a reader nor a killed job leaves or sees half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def password(path: Path, mode: int) -> str:
    """Return the password in the file. The first call creates it. It needs no quoting in a URL or elsewhere."""
    if not path.exists():
        write(path, secrets.token_urlsafe(32).encode(), mode)
    return path.read_text()
