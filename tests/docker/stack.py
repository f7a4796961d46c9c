"""The stack of docker/compose.yaml as it runs, under a project name and ports of its own."""

from __future__ import annotations

import json
import os
import secrets
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from stack.certificates import authority, issue

from tests.docker import streams
from tests.support.http import free_port

DOCKER = Path(__file__).parents[2] / "docker"
IMAGES = DOCKER / "stand-ins" / "images.env"

PATIENCE = 120.0
"""Seconds: what has not happened by then does not happen."""

COMMAND_SECONDS = 300
"""For one command of Docker's: `up` waits for every service."""


@cache
def stack_absence() -> str | None:
    """None when an engine, Compose and the stack's images are there, else what is not, in one line."""
    try:
        for command in (["docker", "version"], ["docker", "compose", "version"]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            if done.returncode:
                return f"`{' '.join(command)}` fails: {(done.stderr.strip().splitlines() or ['?'])[0][:200]}"
        wanted = [line.partition("=")[2] for line in IMAGES.read_text().splitlines() if "_IMAGE=" in line]
        found = subprocess.run(
            ["docker", "image", "inspect", "--format", "found", *wanted],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Docker does not answer: {type(error).__name__}"
    if found.returncode:
        return "the stack's images are not on this machine: run docker/stand-ins/build"
    return None


@dataclass
class Stack:
    """A project of Compose. Its containers are found by service, and by number where a service has several.

    `directory` is for the files of the provider to which the gateway sends requests: the process of the test.
    """

    directory: Path
    project: str = field(default_factory=lambda: f"keyman-test-{secrets.token_hex(4)}")
    port: int = field(default_factory=free_port)
    prometheus_port: int = field(default_factory=free_port)
    gateway_port: int = field(default_factory=free_port)
    provider_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        (self.directory / "authority").mkdir()
        trusted = authority(self.directory / "authority")
        (self.directory / "authority" / "ca.crt").chmod(0o444)  # for the user of the container
        pair = issue(trusted, ["provider.test"])
        (self.directory / "provider.pem").write_bytes(pair.certificate_pem() + pair.key_pem())
        base_url = f"https://provider.test:{self.provider_port}"
        services = [{"service": "OPENAI", "base_url": base_url, "allow_private": True}]
        (self.directory / "services.json").write_text(json.dumps(services))
        (self.directory / "services.json").chmod(0o444)

    @property
    def address(self) -> str:
        return f"https://localhost:{self.port}"

    def run(self, *arguments: str, check: bool = True, text: str | None = None) -> str:
        """Run `docker …` and return what it printed. Raises AssertionError with what it said when it fails."""
        done = subprocess.run(
            ["docker", *arguments],
            capture_output=True,
            text=True,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            timeout=COMMAND_SECONDS,
            check=False,
            env=self._environment(),
        )
        if check and done.returncode:
            raise AssertionError(f"docker {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def compose(self, *arguments: str, check: bool = True, text: str | None = None) -> str:
        own = str(Path(__file__).with_name("provider.yaml"))
        files = ("--file", str(DOCKER / "compose.yaml"), "--file", own, "--env-file", str(IMAGES))
        return self.run("compose", "--project-name", self.project, *files, *arguments, check=check, text=text)

    def _environment(self) -> dict[str, str]:
        # Compose prefers variables to its files: what a developer has set is not to reach it.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KEYMAN_", "COMPOSE_"))}
        ports = {"KEYMAN_PORT": str(self.port), "PROMETHEUS_PORT": str(self.prometheus_port)}
        ports["KEYMAN_GATEWAY_PORT"] = str(self.gateway_port)
        return {**kept, **ports, "KEYMAN_PUBLIC_URL": self.address, "PROVIDER_FILES": str(self.directory)}

    def streams(self, certificate: Path, token: str, user_id: int) -> streams.Scene:
        """The way through the gateway's proxy, with TLS, to a provider in this process. `certificate` is the CA."""
        provider = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        provider.load_cert_chain(self.directory / "provider.pem")
        return streams.Scene(
            self.gateway_port,
            {"authorization": f"Bearer {token}", "keyman-user": str(user_id)},
            self.provider_port,
            self.python("gateway", "import socket; print(socket.gethostbyname('provider.test'))"),
            ssl.create_default_context(cafile=str(certificate)),
            provider,
        )

    def up(self) -> None:
        """Everything of the stack, and Prometheus."""
        try:
            self.compose("up", "--detach", "--quiet-pull")
            self.compose("up", "--detach", "prometheus")
        except AssertionError as error:
            error.add_note(self.compose("logs", "--tail", "20", check=False))
            raise
        hardened = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
        inside = ("--network", f"{self.project}_applications", "--name", self._application, "--entrypoint", "python3")
        sleeping = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit()); signal.pause()"
        self.run("run", "--rm", "--detach", *hardened, *inside, "keyman-stand-in/keyman", "-c", sleeping)

    def down(self, *options: str) -> None:
        """What `up` made, but for the data."""
        self.run("rm", "--force", self._application, check=False)
        self.compose("--profile", "monitoring", "down", "--timeout", "10", *options)

    @property
    def _application(self) -> str:
        return f"{self.project}-application"

    def containers(self) -> dict[str, dict[str, Any]]:
        """Each container by service and number (`management-2`), as the engine describes it."""
        ids = self.run("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={self.project}").split()
        found: list[dict[str, Any]] = json.loads(self.run("inspect", *ids))
        return {container["Name"].removeprefix(f"/{self.project}-"): container for container in found}

    def python(self, service: str, code: str, *, index: int = 1) -> str:
        """What Python code prints in a running container of keyman's."""
        return self.compose("exec", "-T", "--index", str(index), service, "python3", "-c", code).strip()

    def keyman(self, *arguments: str) -> str:
        """What a command of keyman's prints in the management container."""
        return self.compose("exec", "-T", "management", "python3", "-m", "keyman", *arguments).strip()

    def operator(self, *arguments: str) -> str:
        """What a command of keyman's prints as the user that owns the tables."""
        return self.compose("run", "--rm", "-T", "--no-deps", "migrate", *arguments).strip()

    def application(self, code: str) -> str:
        """What Python code prints in a container that is only on the network of the applications."""
        return self.run("exec", self._application, "python3", "-c", code).strip()

    def crash(self, container: str) -> None:
        """End a container's process from outside, which the engine did not ask for; return when it runs again.

        `docker kill` would be somebody's wish, which the engine respects: it would not start it again.
        """
        before = self.containers()[container]
        kill = f"import os, signal; os.kill({before['State']['Pid']}, signal.SIGKILL)"
        # root in the machine's own process table, and one capability, to signal other users' processes.
        outside = ("--pid", "host", "--user", "0:0", "--cap-drop", "ALL", "--cap-add", "KILL", "--network", "none")
        self.run("run", "--rm", *outside, "--entrypoint", "python3", "keyman-stand-in/keyman", "-c", kill)

        def again() -> bool:
            now = self.containers()[container]
            return now["RestartCount"] > before["RestartCount"] and bool(now["State"]["Running"])

        eventually(again, f"{container} runs again")

    def logs(self) -> str:
        return self.compose("logs", "--no-color")


@contextmanager
def running_stack(directory: Path) -> Iterator[Stack]:
    """The whole stack, up on entry; gone with its volumes on exit."""
    stack = Stack(directory)
    try:
        stack.up()
        yield stack
    finally:
        stack.down("--volumes")


@contextmanager
def browser(stack: Stack, directory: Path) -> Iterator[httpx.Client]:
    """A client that trusts the stack's own authority and no other."""
    certificate = directory / "ca.crt"
    stack.compose("cp", "proxy:/public/ca.crt", str(certificate))
    context = ssl.create_default_context(cafile=str(certificate))
    with httpx.Client(base_url=stack.address, verify=context, timeout=20, http2=False) as client:
        yield client


def eventually(check: Callable[[], object], what: str) -> None:
    """Return once `check` gives something true; a refused connection, or a failed command, is not yet."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if check():
                return
        except (httpx.TransportError, AssertionError) as error:
            last: object = error
        else:
            last = None
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE:.0f} s: {what} ({last})")
        time.sleep(0.3)
