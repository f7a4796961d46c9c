"""The files of a SQLite database: whether they are still those that keyman opened, and the space beside them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from keyman.errors import KeymanError

MIN_FREE_BYTES = 64 * 1024 * 1024
"""The space that must be free for keyman to be ready. SQLite needs it for the `-wal` file and for checkpoints."""


class FilesReplaced(KeymanError, OSError):
    """A file of the database was removed or replaced while keyman had it open."""


class DiskFull(KeymanError, OSError):
    """Too little space is free on the disk of the database."""


class Files:
    """The file of a database and its `-wal` file.

    An open connection continues to use a file that was removed or replaced. What it writes there is lost at the end of
    the process; only if every process of keyman stops by itself does SQLite copy the `-wal` file into the database.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._wal = file.with_name(f"{file.name}-wal")
        self._identities: dict[Path, tuple[int, int]] = {}
        self._connection: sqlite3.Connection | None = None

    @property
    def exists(self) -> bool:
        return self._file.exists()

    def check(self) -> None:
        """Raise FilesReplaced if a file that was seen before is another one, and OSError if there is no database."""
        self._compare(self._file, self._file.stat())
        try:
            found = self._wal.stat()
        except FileNotFoundError:
            if self._wal in self._identities:
                raise FilesReplaced("the -wal file of the database was removed") from None
            return
        if self._connection is not None:
            self._compare(self._wal, found)

    def keep_open(self) -> None:
        """Keep a connection open until `close`, so that SQLite itself never removes the `-wal` file.

        SQLite removes it when the last connection closes. Call this while another connection is open in WAL mode.
        """
        if self._connection is not None:
            return
        connection = self._open(0)
        try:
            # A connection opens the -wal file when it first reads.
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        except sqlite3.Error:  # busy: the next transaction tries again
            connection.close()
        else:
            self._connection = connection
            self.check()

    def truncate_log(self, patience: float) -> bool:
        """Copy the `-wal` file into the database, and cut it to nothing. It keeps the pages of deleted rows until then.

        Return False if a reader or a writer was in the way for `patience` seconds. Raises sqlite3.Error.
        """
        with closing(self._open(patience)) as connection:
            (is_busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not is_busy

    def require_space(self) -> None:
        """Raise DiskFull unless MIN_FREE_BYTES are free for a user other than root."""
        found = os.statvfs(self._file.parent)
        if found.f_bavail * found.f_frsize < MIN_FREE_BYTES:
            raise DiskFull(f"less than {MIN_FREE_BYTES >> 20} MiB are free")

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
            self._identities.pop(self._wal, None)

    def _open(self, patience: float) -> sqlite3.Connection:
        address = f"file:{quote(str(self._file))}?mode=rw"
        return sqlite3.connect(address, uri=True, check_same_thread=False, timeout=patience, isolation_level=None)

    def _compare(self, path: Path, found: os.stat_result) -> None:
        identity = (found.st_dev, found.st_ino)
        if self._identities.setdefault(path, identity) != identity:
            raise FilesReplaced("a file of the database was replaced")
