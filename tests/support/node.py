"""Programs of npm: the certified OpenID provider `oidc-provider` as a process on loopback, and tools for OpenAPI.

`npm ci` installs each set from its lock file, once for each version of that file, into the virtual environment.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.cli import environment
from tests.support.waiting import PATIENCE

SOURCE = Path(__file__).parent / "oidc-provider"
OPENAPI_TOOLS = Path(__file__).parent / "openapi-tools"
INSTALL = 300
"""Seconds for `npm ci`, which downloads 9 MB for the provider, and 60 MB for the tools."""


class NotInstalled(Exception):
    """npm cannot install what is wanted."""


def node_absence(source: Path = SOURCE) -> str | None:
    """None if there is Node, and what the directory locks is or can be installed; else the reason in one line."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        return f"no {' and no '.join(missing)} on the PATH"
    try:
        installed(source)
    except NotInstalled as fault:
        return str(fault)
    return None


def installed(source: Path = SOURCE) -> Path:
    """Install what the directory locks, unless it is, and return where `node_modules` is. Raises NotInstalled."""
    files = [source / name for name in ("package.json", "package-lock.json")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    place = Path(sys.prefix) / f"{source.name}-{digest[:12]}"
    if not (place / "node_modules").exists():
        with TemporaryDirectory(dir=sys.prefix, prefix=f"{source.name}-") as made:
            for file in files:
                shutil.copy(file, made)
            _install(Path(made) / "node_modules")
            place.mkdir(exist_ok=True)
            with suppress(OSError):  # another process was quicker
                (Path(made) / "node_modules").rename(place / "node_modules")
    return place


def _install(place: Path) -> None:
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(command, cwd=place.parent, capture_output=True, text=True, timeout=INSTALL, check=False)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"npm ci did not end within {INSTALL} s") from None
    if done.returncode != 0:
        raise NotInstalled(f"npm ci failed: {' '.join(done.stderr.split())[:200]}")


@dataclass
class NodeProvider:
    """A provider at one address, which starts again with another key. `client` is what it knows of keyman."""

    port: int
    directory: Path
    client: Mapping[str, object]
    _process: subprocess.Popen[str] | None = field(default=None)
    _starts: int = 0

    @property
    def issuer(self) -> str:
        return f"http://localhost:{self.port}"

    def start(self, algorithm: str) -> None:
        """Start with a new key for an algorithm. Its sessions are gone."""
        self.stop()
        self._starts += 1
        kid = f"key-{self._starts}"
        given = {"issuer": self.issuer, "port": self.port, "algorithm": algorithm, "kid": kid, "client": self.client}
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                ["node", "server.js", json.dumps(given)],
                cwd=self.directory,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def stop(self) -> None:
        if self._process is None:
            return
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()  # it ends with its standard input
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        self._process = None

    def log(self) -> str:
        return self._log.read_text()

    @property
    def _log(self) -> Path:
        return self.directory / "provider.log"


@contextmanager
def node_provider(port: int, directory: Path, client: Mapping[str, object]) -> Iterator[NodeProvider]:
    """A provider that is not started. `directory` is the test's own."""
    place = directory / "provider"
    place.mkdir()
    shutil.copy(SOURCE / "server.js", place)
    shutil.copy(SOURCE / "package.json", place)
    (place / "node_modules").symlink_to(installed() / "node_modules")
    provider = NodeProvider(port, place, client)
    try:
        yield provider
    finally:
        provider.stop()
