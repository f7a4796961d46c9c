"""The real PgBouncer in front of a test's PostgreSQL, in transaction mode and else with its default settings.

Tests that use it are marked `slow` and call `require_proxies("pgbouncer")` first.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import URL

from tests.support.database import as_server_user, server_user
from tests.support.http import free_port
from tests.support.waiting import until

_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"


class Pooler:
    """A PgBouncer that runs between `start` and `stop`, always on the same `port`."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.log = directory / "pgbouncer.log"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("pgbouncer", path=_PATH)
        assert program is not None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, self._directory / "pgbouncer.ini"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **as_server_user(self._directory),
            )
        until(self._accepts, "PgBouncer")

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)  # it ends at once, and so does every connection
        self._process.wait()
        self._process = None

    def _accepts(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text(errors="replace")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def pgbouncer(server: URL, **settings: str) -> Iterator[tuple[Pooler, URL]]:
    """Run a PgBouncer in front of the server of a URL. Yields it, and the URL of the same database through it.

    `settings` are lines of its section `[pgbouncer]`. The user of the URL can log in, and nobody else.
    """
    directory = Path(tempfile.mkdtemp(prefix="keyman-pgbouncer-"))
    pooler = Pooler(directory)
    given = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(pooler.port),
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": str(directory / "users"),
        "pool_mode": "transaction",
        **settings,
    }
    lines = "".join(f"{name} = {value}\n" for name, value in given.items())
    target = f"* = host={server.host} port={server.port}"
    (directory / "pgbouncer.ini").write_text(f"[databases]\n{target}\n[pgbouncer]\n{lines}")
    (directory / "users").write_text(f'"{server.username}" "{server.password}"\n')
    if user := server_user():
        for path in (directory, *directory.iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)
    try:
        pooler.start()
        yield pooler, server.set(port=pooler.port, query={})
    finally:
        pooler.stop()
        shutil.rmtree(directory)
