"""The real nginx and HAProxy in front of a plane: each as a process of its own, on a free port of loopback.

Tests that use them are marked `slow` and call `require_proxies()` first.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from keyman.processes import die_with_parent
from tests.support.http import free_port
from tests.support.needs import require
from tests.support.waiting import PATIENCE, until

_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
"""Debian installs servers outside the PATH of an ordinary user."""


class Proxy(NamedTuple):
    """A running proxy. `errors` is the file with what it writes: its log, too."""

    url: str
    pid: int
    errors: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


def require_proxies(*names: str) -> None:
    """Skip or fail the test when one of the programs is absent. Without names: nginx and HAProxy."""
    missing = [name for name in names or ("nginx", "haproxy") if _program(name) is None]
    require("proxies", f"{', '.join(missing)} is not installed" if missing else None)


@contextmanager
def nginx(directory: Path, upstream: str, *, location: str = "", server: str = "", http: str = "") -> Iterator[Proxy]:
    """nginx in front of `upstream`, an `http://host:port`.

    `location`, `server` and `http` are more directives for these blocks. `location /` passes every request on, over
    HTTP/1.1 and without other headers than those of `location`.
    """
    port = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    temporary = "".join(
        f"  {name}_temp_path {directory}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = directory / "nginx.conf"
    configuration.write_text(
        f"""\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
{temporary}  access_log off;
  {http}
  server {{
    listen 127.0.0.1:{port};
    {server}
    location / {{
      proxy_pass {upstream};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      {location}
    }}
  }}
}}
"""
    )
    # `-e`: without it nginx opens its compiled-in error log first, which only root may write.
    with _running(["nginx", "-e", "stderr", "-p", str(directory), "-c", str(configuration)], directory, port) as proxy:
        yield proxy


@contextmanager
def haproxy(
    directory: Path, upstream: str, *, frontend: str = "", backend: str = "", defaults: str = ""
) -> Iterator[Proxy]:
    """HAProxy in front of `upstream`, an `http://host:port`.

    `frontend`, `backend` and `defaults` are more lines for these sections; the timeouts are 30 s unless they say
    otherwise.
    """
    port = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    configuration = directory / "haproxy.cfg"
    configuration.write_text(
        f"""\
global
  maxconn 4000
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
{_indented(defaults)}
frontend front
  bind 127.0.0.1:{port}
  default_backend back
{_indented(frontend)}
backend back
  server keyman {urlsplit(upstream).netloc}
{_indented(backend)}
"""
    )
    with _running(["haproxy", "-db", "-f", str(configuration)], directory, port) as proxy:
        yield proxy


@contextmanager
def haproxy_with(directory: Path, text: str, port: int) -> Iterator[Proxy]:
    """HAProxy with a whole configuration, which binds `port` of loopback, such as the stack's own with other ports."""
    directory.mkdir(parents=True, exist_ok=True)
    configuration = directory / "haproxy.cfg"
    configuration.write_text(text)
    with _running(["haproxy", "-db", "-f", str(configuration)], directory, port) as proxy:
        yield proxy


def _indented(lines: str) -> str:
    return "".join(f"  {line.strip()}\n" for line in lines.splitlines() if line.strip())


def _program(name: str) -> str | None:
    return shutil.which(name, path=_PATH)


@contextmanager
def _running(command: list[str], directory: Path, port: int) -> Iterator[Proxy]:
    """Run a server until the block ends. It accepts connections when the block begins."""
    program = _program(command[0])
    assert program is not None, f"{command[0]} is not installed: call require_proxies() first"
    errors = directory / f"{command[0]}.err"
    tester = os.getpid()
    with errors.open("wb") as err:
        process = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=err,
            stderr=err,
            process_group=0,
            preexec_fn=lambda: die_with_parent(tester, signal.SIGKILL),  # noqa: PLW1509  # the child has one thread
        )
    try:
        until(lambda: process.poll() is not None or _accepts(port), f"{command[0]}'s port")
        assert process.poll() is None, errors.read_text()
        yield Proxy(f"http://127.0.0.1:{port}", process.pid, errors)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
