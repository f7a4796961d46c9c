"""keyman as its users run it: commands as processes of their own, watched from outside and always ended.

Every wait here is bounded by `PATIENCE`, which measures no speed: it is for a machine that does much at once.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import httpx
from sqlalchemy import select, true
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from keyman.config.vault import VaultSettings
from keyman.dev import embedded
from keyman.keys.deployment import deployment
from keyman.keys.tables import api_keys
from keyman.processes import die_with_parent, spawn, stop
from keyman.vault import provision
from tests.support.planes import PASSWORD

PATIENCE = 40.0
"""Seconds: what has not happened by then does not happen."""

NO_TLS = httpx.create_ssl_context(verify=False)
"""For whoever is asked by `http://`, that is, all but a few: `verify=NO_TLS`. A client makes a context in any case, and
reading the machine's certificate authorities for it takes 18 ms of a processor, at each look of one that waits.
"""

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


def keyman(
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
    """For `preexec_fn`: root, too, is refused what a file's mode refuses to its owner."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, out of the bounding set
        _LIBC.prctl(24, capability)


_LIBC = ctypes.CDLL(None)


def until(condition: Callable[[], object], what: str = "what was waited for") -> None:
    """Return once `condition()` is true; AssertionError after PATIENCE."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < PATIENCE, f"{what} did not come"
        # Who looks too often slows down what is waited for. This loses a twentieth of the wait at the most.
        time.sleep(min(0.01 + waited / 20, 0.1))


async def becomes(condition: Callable[[], Awaitable[object]], what: str = "what was waited for") -> None:
    """The same for a condition that is awaited."""
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        await asyncio.sleep(0.02)


def free_port() -> int:
    """A port on loopback that nobody has, and neither the next one, for the resolver of `keyman dev`.

    Below those that the kernel gives to outgoing connections (32768 and up, ip(7)): one of them would take it before
    it is used. No two calls of a process give the same.
    """
    while True:
        port = random.randrange(12000, 32000, 2)  # noqa: S311
        if port not in _given and is_free(port) and is_free(port + 1):
            _given.add(port)
            return port


_given: set[int] = set()


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def processes(mark: str | Path) -> dict[int, str]:
    """The living processes, this one aside, whose command line or environment holds `mark`: id and command line."""
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


def end_processes(mark: str | Path) -> None:
    """Kill what is left of a test, so that it does no harm to the next one."""
    for pid in processes(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Live:
    """A command under way, the first of a process group of its own, as a shell would start it."""

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
        """What a terminal does on Ctrl-C."""
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


def dev_parts(running: Live) -> DevParts:
    """Once all of them are there."""

    def find() -> DevParts | None:
        below = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(running.pid)}
        vaults = [pid for pid, command in below.items() if b"config.json" in command]
        services = [pid for pid, command in below.items() if b"\0management\0" in command]
        resolvers = [pid for pid, command in below.items() if b"\0resolver\0" in command]
        workers = [worker for service in services for worker in workers_of(service)]
        if not (vaults and services and workers and resolvers and workers_of(resolvers[0])):
            return None
        return DevParts(running.pid, vaults[0], services[0], workers[0], resolvers[0])

    until(find, "the parts of keyman dev")
    parts = find()
    assert parts is not None
    return parts


class Service(NamedTuple):
    """A `keyman serve` under way, and where it answers."""

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
    given = {"KEYMAN_PUBLIC_URL": url, "KEYMAN_SIGNUP": "open", **env, "TMPDIR": str(directory)}
    command = ("serve", "--port", str(port), *arguments)
    with live(*command, env=given, directory=directory / "output", mark=directory, **options) as running:
        service = Service(running, url)
        if ready:
            until(lambda: service.is_ready() or running.process.poll() is not None, "readiness")
            assert running.process.poll() is None, running.err
        yield service


class Root:
    """A Vault with its root token: sees everything, and opens what keyman cannot."""

    def __init__(self, address: str, token: str) -> None:
        self._client = _client(f"{address}/v1/", **{"X-Vault-Token": token})

    @classmethod
    def of_home(cls, home: Path) -> Root:
        """The Vault of a running `keyman dev`."""
        keys = json.loads((home / "vault" / "keys.json").read_bytes())
        return cls(settings_of(home)["KEYMAN_VAULT_ADDR"], keys["root_token"])

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        """The `data` of the answer, None where there is none. Raises httpx.HTTPStatusError."""
        answer = self._client.request(method, path, json=body)
        answer.raise_for_status()
        return answer.json().get("data") if answer.content else None

    def ask_token(self, properties: Mapping[str, object]) -> str:
        """A new token with these properties."""
        answer = self._client.request("POST", "auth/token/create", json=properties).raise_for_status()
        token: str = answer.json()["auth"]["client_token"]
        return token

    def wraps(self, path: str, ttl: str = "60s") -> str:
        """What a POST to `path` gives, behind a wrapping token."""
        answer = self._client.request("POST", path, headers={"X-Vault-Wrap-TTL": ttl}).raise_for_status()
        token: str = answer.json()["wrap_info"]["token"]
        return token

    def opens(self, ciphertext: str, context: str, mount: str = "transit") -> str | None:
        """The plaintext under exactly this context, None when there is none."""
        body = {"ciphertext": ciphertext, "context": base64.b64encode(context.encode()).decode()}
        try:
            data = self.ask("POST", f"{mount}/decrypt/keyman", body)
        except httpx.HTTPStatusError as fault:
            if fault.response.status_code == 400:
                return None
            raise
        return base64.b64decode(data["plaintext"]).decode()

    def opens_all(self, keys: Iterable[StoredKey], mount: str = "transit") -> dict[int, str | None]:
        """What each key holds, by id; None where it does not open."""
        opened: dict[int, str | None] = {}
        remaining = list(keys)
        while remaining:
            part, remaining = remaining[:100], remaining[100:]
            items = [
                {"ciphertext": key.ciphertext, "context": base64.b64encode(key.context.encode()).decode()}
                for key in part
            ]
            # 400 when one of them does not open, with the results all the same.
            answer = self._client.post(f"{mount}/decrypt/keyman", json={"batch_input": items})
            for key, result in zip(part, answer.json()["data"]["batch_results"], strict=True):
                failed = bool(result.get("error"))
                opened[key.id] = None if failed else base64.b64decode(result["plaintext"]).decode()
        return opened


class Victim:
    """A Vault set up for keyman, to be harmed: frozen, killed, sealed; and mended, at the address that it had."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server = asyncio.run(embedded.start(directory))
        self._process = self._server.process
        self.root = Root(self._server.address, self._server.root_token.reveal())
        self.settings = asyncio.run(self.provisioned())

    @property
    def port(self) -> int:
        return int(self._server.address.rpartition(":")[2])

    async def provisioned(self, role: str = "keyman-management", **settings: Any) -> VaultSettings:
        """Set it up, again or for another mount, and log in with a new secret."""
        wanted = VaultSettings(address=self._server.address, **settings)
        admin = self._server.admin()
        try:
            await provision.provision(admin, wanted)
            issued = await provision.issue_credentials(admin, role)
        finally:
            await admin.close()
        return replace(wanted, role_id=issued.role_id, secret_id=issued.secret_id)

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def seal(self) -> None:
        self.root.ask("PUT", "sys/seal")

    def unseal(self) -> None:
        keys = json.loads((self._directory / "keys.json").read_bytes())
        self.root.ask("PUT", "sys/unseal", {"key": keys["unseal_key"]})
        until(lambda: self._health() == 200, "an unsealed Vault")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        """Start what was killed; it is sealed."""
        command: list[str | Path] = [
            embedded.binary(),
            "server",
            "-config",
            self._directory / "config.json",
            "-log-level",
            "warn",
        ]
        with (self._directory / "server.log").open("ab") as output:
            self._process = spawn(command, {"HOME": str(self._directory)}, output=output.fileno())
        until(lambda: self._health() is not None, "Vault")

    def mend(self) -> None:
        """Whatever was done to it, it serves again."""
        self.thaw()
        if self._process.poll() is not None:
            self.start()
        if self._health() != 200:
            self.unseal()

    def close(self) -> None:
        self.thaw()
        stop(self._process)

    def _health(self) -> int | None:
        try:
            return httpx.get(f"{self._server.address}/v1/sys/health", verify=NO_TLS).status_code
        except httpx.TransportError:
            return None


@contextmanager
def victim_at(directory: Path) -> Iterator[Victim]:
    victim = Victim(directory)
    try:
        yield victim
    finally:
        victim.close()


def variables(vault: VaultSettings, database: URL) -> dict[str, str]:
    """What a `keyman serve` needs to be told."""
    assert vault.role_id is not None
    assert vault.secret_id is not None
    return environment(
        KEYMAN_DATABASE_URL=database.render_as_string(hide_password=False),
        KEYMAN_VAULT_ADDR=vault.address,
        KEYMAN_VAULT_ROLE_ID=vault.role_id,
        KEYMAN_VAULT_SECRET_ID=vault.secret_id.reveal(),
    )


def settings_of(home: Path) -> dict[str, str]:
    """What `keyman dev` wrote down for its service and for the operator's commands."""
    lines = (home / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


class StoredKey(NamedTuple):
    """A row of `api_keys` with what it is bound to."""

    id: int
    user_id: int
    service: str
    mask: str
    ciphertext: str
    deployment: UUID
    value: UUID

    @property
    def context(self) -> str:
        return f"keyman|v1|{self.deployment}|{self.user_id}|{self.service}|{self.value}"


async def stored_keys(url: URL) -> dict[int, StoredKey]:
    """Every key of a database, by id, as it lies there."""
    engine = create_async_engine(url, poolclass=NullPool)
    columns = (api_keys.c.id, api_keys.c.user_id, api_keys.c.service, api_keys.c.last_4_chars)
    sealed = (api_keys.c.encrypted_key, deployment.c.uuid, api_keys.c.value_uuid)
    try:
        async with engine.connect() as connection:
            rows = await connection.execute(select(*columns, *sealed).join_from(api_keys, deployment, true()))
            return {row.id: StoredKey(*row) for row in rows}
    finally:
        await engine.dispose()


def keys_of_home(home: Path) -> dict[int, StoredKey]:
    return asyncio.run(stored_keys(URL.create("sqlite+aiosqlite", database=str(home / "keyman.db"))))


def sign_up(url: str, email: str) -> httpx.Client:
    """A browser with the session of a new account."""
    client = _client(url)
    answer = client.post("/api/auth/signup", json={"email": email, "password": PASSWORD})
    assert answer.status_code == 201, answer.text
    return client


def script(url: str, token: str) -> httpx.Client:
    """A client with an access token."""
    return _client(url, Authorization=f"Bearer {token}")


def _client(url: str, **headers: str) -> httpx.Client:
    # A connection a request: a test ends without connections that somebody would have to close.
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=url, timeout=PATIENCE, limits=limits, headers=headers, verify=NO_TLS)


@asynccontextmanager
async def slow_road(port: int, seconds: float) -> AsyncIterator[int]:
    """A port on loopback that leads to another one, where every answer comes `seconds` late."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await asyncio.sleep(delay)
                writer.write(data)
                await writer.drain()
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        with suppress(asyncio.CancelledError):  # the block ends: so does this
            await asyncio.gather(carry(reader, back, 0), carry(there, writer, seconds))
        back.close()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
