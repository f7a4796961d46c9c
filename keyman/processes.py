"""Child processes that do not outlive their parent, and the ports that they listen on."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from keyman.errors import ConfigurationError
from keyman.extras import require_server
from keyman.handover import PIPE, send
from keyman.memory import forbid_core_dumps

require_server()

PR_SET_PDEATHSIG = 1
"""`prctl(2)`: the option that sets the signal for the death of the parent. Only Linux has it."""

PARENT = "_KEYMAN_PARENT"
"""The variable with the process id of the parent, for the workers of `keyman serve`."""

STOP_TIMEOUT = 15.0
"""Seconds between SIGTERM and SIGKILL, and those of draining: longer than any request may take."""

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(parent: int, death_signal: signal.Signals) -> None:
    """Let the kernel send `death_signal` to this process when `parent` (its parent's id) dies, even by SIGKILL.

    It works only on Linux. If the parent is already dead, this process ends at once.
    """
    if _libc is None:
        return
    _libc.prctl(PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        os._exit(1)


def spawn(
    command: Sequence[str | Path],
    environ: Mapping[str, str],
    *,
    output: int | None = None,
    handed: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child in its own session, so that Ctrl-C reaches only the parent, which then stops the child in order.

    If the parent dies first, the child gets SIGTERM. It leaves no core dump. Call this from the main thread, because
    the kernel takes the thread that started a child as its parent. `output` is a file descriptor for its standard
    output and error. `handed` are variables with secrets for a `keyman serve`.
    """
    if handed is None:
        return _start(command, environ, output)
    readable, writable = os.pipe()
    try:
        child = _start(command, {**environ, PIPE: str(readable)}, output, readable)
    except BaseException:
        os.close(writable)
        raise
    finally:
        os.close(readable)
    send(writable, handed)
    return child


def _start(
    command: Sequence[str | Path], environ: Mapping[str, str], output: int | None, *descriptors: int
) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    return subprocess.Popen(  # noqa: S603  # commands are ours
        [str(part) for part in command],
        env=dict(environ),
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=partial(_prepare, parent),  # noqa: PLW1509  # single-threaded here
    )


def _prepare(parent: int) -> None:
    """Prepare a child between its start and its program."""
    forbid_core_dumps()
    die_with_parent(parent, signal.SIGTERM)


def stop(process: subprocess.Popen[bytes], drain: float = 0.0) -> None:
    """Terminate a process, which drains for `drain` seconds. Kill it if it does not end within STOP_TIMEOUT more."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(drain + STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def raise_file_limit(wanted: int) -> int:
    """Raise how many files this process and its children may open, up to `wanted`. Returns how many they may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft


def check_port(host: str, port: int, remedy: str = "choose another with --port") -> None:
    """Raises ConfigurationError when nothing can listen there, with the `remedy` for a port that is taken.

    The server's own message would be a long traceback.
    """
    try:
        bound(host, port).close()
    except (OSError, UnicodeError) as fault:
        if is_taken(fault):
            message = f"Port {port} on {host} is in use, or not allowed for this user: {remedy}"
        else:
            message = f"{host} is not an address of this machine: choose another with --host"
        raise ConfigurationError(message) from None


def bound(host: str, port: int) -> socket.socket:
    """Return a socket with this address. Raises OSError, or UnicodeError for a name that is none."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def is_taken(fault: OSError | UnicodeError) -> bool:
    """Return whether an address is this machine's, and its port in use or not allowed for this user."""
    return getattr(fault, "errno", None) in (errno.EADDRINUSE, errno.EACCES)
