"""Commands of keyman as processes of their own, as users run them. Every process ends with its test."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy.engine import URL

from keyman.config.vault import VaultSettings
from keyman.processes import die_with_parent
from tests.support.http import NO_TLS, free_port
from tests.support.waiting import PATIENCE, until

KEYMAN = Path(sys.executable).with_name("keyman")
"""The command as it is installed beside the interpreter of the tests."""


DEVELOPMENT_MARK = "Ctrl-C stops it"
"""The end of what `keyman dev` prints once it is ready."""


class Finished(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def environment(**variables: str) -> dict[str, str]:
    """What a command sees: a PATH, a language, and nothing of the developer's own."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": "/nonexistent", **variables}


def run_keyman(
    *arguments: str | Path, env: Mapping[str, str] | None = None, stdin: str | bytes = "", **options: Any
) -> Finished:
    """Run a command to its end."""
    done = subprocess.run(
        [KEYMAN, *arguments],
        env=environment() if env is None else dict(env),
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


def without_privilege() -> None:
    """For `preexec_fn`: make file modes hold for root, too."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, out of the bounding set
        _LIBC.prctl(24, capability)


_LIBC = ctypes.CDLL(None)


def processes(mark: str | Path) -> dict[int, str]:
    """The running processes, except this one, with `mark` in the command line or environment: id and command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            command, variables = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            # The command line of what has ended and was not waited for yet is empty.
            if command and os.fsencode(mark) in command + variables:
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def children(pid: int) -> list[int]:
    """The ids of the children of a process; empty when it is gone."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def workers_of(service: int) -> list[int]:
    """The workers among the children of a `keyman serve`; multiprocessing keeps a helper of its own beside them."""
    found = []
    for pid in children(service):
        with suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def environments_below(parent: int) -> dict[int, bytes]:
    """What the processes below one were started with."""
    found = {}
    for pid in children(parent):
        try:
            found[pid] = Path(f"/proc/{pid}/environ").read_bytes()
        except PermissionError:
            pytest.skip("/proc: only root sees what a process of keyman was started with")
        except ProcessLookupError:
            continue  # it has ended
        found |= environments_below(pid)
    return found


def core_limits(pid: int) -> list[str]:
    """The soft and the hard limit of a process's core dumps."""
    (line,) = (line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file" in line)
    return line.split()[4:6]


ANOTHER_KEYMAN = "raise SystemExit('this is not keyman')"
"""The source of a package that a process of keyman must not import."""


def another_keyman(parent: Path) -> Path:
    """Make a directory to start keyman in, which holds ANOTHER_KEYMAN."""
    package = parent / "package"
    (package / "keyman").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "keyman" / "__init__.py").write_text(ANOTHER_KEYMAN)
    return package


def has_ended(pid: int) -> bool:
    """Whether a process that is no child of this one has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def end_processes(mark: str | Path) -> None:
    """Kill the processes that a test left."""
    for pid in processes(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Live:
    """A running command in a process group of its own, as a shell starts it."""

    def __init__(self, arguments: list[str | Path], env: Mapping[str, str], directory: Path, **options: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        number = sum(1 for _ in directory.glob("*.err"))
        self._out, self._err = directory / f"{number}.out", directory / f"{number}.err"
        # When the test process is killed, this ends as well.
        tester = os.getpid()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [KEYMAN, *arguments],
                env={"TMPDIR": str(directory), **env},  # what a killed command leaves goes with the test's directory
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                process_group=0,
                preexec_fn=lambda: die_with_parent(tester, signal.SIGTERM),  # noqa: PLW1509  # the child has one thread
                **options,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def send_group(self, number: signal.Signals) -> None:
        """Signal the whole group, as a terminal does on Ctrl-C."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def says(self, text: str) -> None:
        """Return once `text` stands on standard error."""
        until(lambda: text in self.err or self.process.poll() is not None, text)
        assert text in self.err, f"ended with {self.process.returncode}, having said\n{self.err}"

    def wait(self) -> Finished:
        """Wait for the end."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end, having said\n{self.err}") from None
        return Finished(code, self.out, self.err)

    def end(self, number: signal.Signals = signal.SIGTERM) -> Finished:
        """Send a signal to the process and wait for its end."""
        self.send(number)
        return self.wait()


@contextmanager
def live(
    *arguments: str | Path, env: Mapping[str, str], directory: Path, mark: str | Path, **options: Any
) -> Iterator[Live]:
    """Start a command; when the block ends, nothing that carries `mark` is left."""
    running = Live(list(arguments), env, directory, **options)
    try:
        yield running
    finally:
        running.send_group(signal.SIGKILL)
        running.process.wait()
        end_processes(mark)


@contextmanager
def dev(
    home: Path, port: int, *, env: Mapping[str, str] | None = None, ready: bool = True, **options: Any
) -> Iterator[Live]:
    """`keyman dev`, ready or just started. What it writes is kept beside its home."""
    arguments = ("dev", "--home", home, "--port", str(port))
    # The mark is passed on to what it starts; paths in URLs are spelt in another way.
    given = {**(environment() if env is None else env), "MARK": str(home)}
    output = home.with_name(f"{home.name}-output")
    with live(*arguments, env=given, directory=output, mark=home, **options) as running:
        if ready:
            running.says(DEVELOPMENT_MARK)
        yield running


class DevParts(NamedTuple):
    """The processes of a `keyman dev`."""

    supervisor: int
    vault: int
    service: int
    worker: int
    resolver: int
    gateway: int


def dev_parts(running: Live) -> DevParts:
    """Wait until all parts run, and return them."""

    def find() -> DevParts | None:
        below = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(running.pid)}
        vaults = [pid for pid, command in below.items() if b"config.json" in command]
        services = [pid for pid, command in below.items() if b"\0management\0" in command]
        resolvers = [pid for pid, command in below.items() if b"\0resolver\0" in command]
        gateways = [pid for pid, command in below.items() if b"\0gateway\0" in command]
        workers = [worker for service in services for worker in workers_of(service)]
        if not (vaults and services and workers and all(map(workers_of, (*resolvers, *gateways)))):
            return None
        if not (resolvers and gateways):
            return None
        return DevParts(running.pid, vaults[0], services[0], workers[0], resolvers[0], gateways[0])

    until(find, "the parts of keyman dev")
    parts = find()
    assert parts is not None
    return parts


class Service(NamedTuple):
    """A running `keyman serve` and its URL."""

    live: Live
    url: str

    @property
    def workers(self) -> list[int]:
        return workers_of(self.live.pid)

    def readiness(self) -> dict[str, Any] | None:
        """What `/readyz` says, None while nobody answers."""
        try:
            answer: dict[str, Any] = httpx.get(f"{self.url}/readyz", timeout=PATIENCE, verify=NO_TLS).json()
        except httpx.TransportError:
            return None
        return answer

    def is_ready(self) -> bool:
        readiness = self.readiness()
        return readiness is not None and readiness["status"] == "ok"

    @property
    def metrics_url(self) -> str:
        """Where its parent process serves the metrics, as it says at its start."""
        (url,) = (line["url"] for line in self.log() if line["event"] == "metrics are served")
        return str(url)

    def metrics(self) -> str:
        """What its parent process says of its workers."""
        answer = httpx.get(self.metrics_url, timeout=PATIENCE, verify=NO_TLS)
        assert answer.status_code == 200, answer.text
        return answer.text

    def log(self) -> list[dict[str, Any]]:
        """Its log lines so far."""
        return [json.loads(line) for line in self.live.err.splitlines()]


@contextmanager
def serve(
    env: Mapping[str, str], directory: Path, *arguments: str, ready: bool = True, **options: Any
) -> Iterator[Service]:
    """`keyman serve`, ready or just started. `directory` is the test's own and marks its processes."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    given = {
        "KEYMAN_PUBLIC_URL": url,
        "KEYMAN_SIGNUP": "open",
        "KEYMAN_MAX_WRITES": "0",
        "KEYMAN_METRICS_LISTEN": "127.0.0.1:0",
        **env,
        "TMPDIR": str(directory),
    }
    command = ("serve", "--port", str(port), *arguments)
    with live(*command, env=given, directory=directory / "output", mark=directory, **options) as running:
        service = Service(running, url)
        if ready:
            until(lambda: service.is_ready() or running.process.poll() is not None, "readiness")
            assert running.process.poll() is None, running.err
        yield service


def variables(vault: VaultSettings, database: URL) -> dict[str, str]:
    """The variables that `keyman serve` needs."""
    assert vault.role_id is not None
    assert vault.secret_id is not None
    return environment(
        KEYMAN_DATABASE_URL=database.render_as_string(hide_password=False),
        KEYMAN_VAULT_ADDR=vault.address,
        KEYMAN_VAULT_ROLE_ID=vault.role_id,
        KEYMAN_VAULT_SECRET_ID=vault.secret_id.reveal(),
        KEYMAN_DRAIN="0",  # a test ends without waiting
    )


def settings_of(home: Path) -> dict[str, str]:
    """The variables that `keyman dev` stored for its service and for the operator's commands."""
    lines = (home / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))
