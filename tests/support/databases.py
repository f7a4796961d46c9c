"""SQLite databases of tests."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import URL

from keyman.storage.engine import create_private_file


def sqlite_at(file: Path) -> URL:
    """The URL of a file, whatever its name."""
    return URL.create("sqlite+aiosqlite", database=str(file))


def copied(file: Path, target: Path) -> URL:
    """A copy of a database that nobody has open, its owner's alone as keyman makes one."""
    url = sqlite_at(target)
    create_private_file(url)
    target.write_bytes(file.read_bytes())
    return url
