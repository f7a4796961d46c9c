"""`keyman serve`."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from math import ceil
from pathlib import Path
from socket import socket
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click
from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels

from keyman.cli import import_late
from keyman.cli.common import run
from keyman.config.metrics import METRICS_LISTEN
from keyman.config.settings import Settings, load
from keyman.config.vault import SECRET_ID, WRAPPED_SECRET_ID, VaultSettings
from keyman.doctor.configuration import unsafe
from keyman.errors import ConfigurationError, DatabaseUnavailable
from keyman.handover import Handover, receive
from keyman.http.metrics import open_listener, served
from keyman.http.worker import READ_TIMEOUT, Listener, Worker
from keyman.logs import configure_logging, frames, log
from keyman.memory import protect
from keyman.metrics import MULTIPROCESS_DIRECTORY
from keyman.processes import PARENT, check_port, raise_file_limit
from keyman.providers.file import read_services

if TYPE_CHECKING:
    from keyman.http.edge import Edge  # it imports Litestar, which the parent process does not need

FINISH_SECONDS = 12
"""Seconds in which a worker that has stopped accepting may finish its requests. The longest request waits for Vault and
the database, for less.
"""

MAX_CONNECTIONS = 4_096
"""Connections of one worker that are open at once. The next ones wait to be accepted. Strangers can open connections
without sending anything, so this is many more than the requests that a worker answers at once.
"""

OTHER_FILES = 256
"""Files of a worker beside them: the database's and Vault's connections, modules while they are imported, logs."""

FILES_OF_A_CONNECTION = {"gateway": 2}
"""The gateway opens a connection to a provider for each request, beside that of its client. Others open none."""

HTTP1 = HTTP1Settings(header_read_timeout=5_000, max_buffer_size=64 * 1024)
"""How long a connection may take to send the headers of a request, in milliseconds, and what a request line with its
headers may have, in bytes. The time also counts between two requests, so a connection that sends nothing ends. Headers
of up to twice of what `http/edge.py` allows still get its answer; for longer ones the server's own is empty.

Only HTTP/1.1 is served: in HTTP/2, 90 KB can be 90,000 headers, and the server has no time limit for a silent
connection. A proxy in front can speak HTTP/2.
"""

PLANES = {
    "management": "keyman.planes.management.app",
    "resolver": "keyman.planes.resolver.app",
    "gateway": "keyman.planes.gateway.app",
}
"""The module that builds each plane. A process imports only one, so the management plane has no code that decrypts."""


@click.command("serve")
@click.option(
    "--plane",
    type=click.Choice(list(PLANES)),
    default="management",
    show_default=True,
    help="The plane that this process runs.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="The port to listen on.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="The number of processes.")
def command(plane: str, host: str, port: int, workers: int) -> None:
    """Run one plane of keyman. KEYMAN_… variables configure it."""
    receive()
    settings = load(os.environ, read_services)
    check_port(host, port)
    away = _check_database()
    configure_logging(settings.log_format, settings.log_level)
    if away is not None:
        log.error("the database is away: the plane answers 503 until it is back", kind=away.kind)
    _warn(settings, plane, host)
    is_gateway = plane == "gateway"
    read_timeout = settings.gateway.timeout if is_gateway else READ_TIMEOUT
    listener = Listener(port, _room_for_connections(plane), settings.drain, read_timeout, always_drains=is_gateway)
    metrics = open_listener(settings.metrics_listen, plane, port)
    _unwrap(settings, f"keyman-{plane}")
    finish = FINISH_SECONDS + (settings.gateway.drain if is_gateway else 0)
    with nullcontext() if metrics is None else _counting(metrics):
        _serve(PLANES[plane], host, workers, listener, Handover.take(), finish)


@contextmanager
def _counting(metrics: socket) -> Iterator[None]:
    """Let workers that are started in this block write their counts to files, and serve the sum."""
    with ExitStack() as stack:
        try:
            directory = stack.enter_context(TemporaryDirectory(prefix="keyman-metrics-"))
        except OSError:
            raise ConfigurationError(
                f"The directory for temporary files cannot be written to: set TMPDIR to another, or {METRICS_LISTEN} "
                "to off"
            ) from None
        os.environ[MULTIPROCESS_DIRECTORY] = directory
        stack.enter_context(served(metrics, Path(directory)))
        yield


def _serve(module: str, host: str, workers: int, listener: Listener, handover: Handover, finish: float) -> None:
    """Start the workers of a plane, which load `module`, and return when they have ended.

    `finish` is how many seconds a worker that has stopped accepting has for the requests that it has.
    """
    os.environ[PARENT] = str(os.getpid())
    # A spawned worker reads these variables at its start, and gets the others through its own pipe. A forked one
    # would share this process's open connections.
    multiprocessing.set_start_method("spawn", force=True)
    Granian(
        "keyman",
        address=host,
        port=listener.port,
        interface=Interfaces.ASGI,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        http1_settings=HTTP1,
        backlog=MAX_CONNECTIONS,
        backpressure=listener.limit,
        workers=workers,
        websockets=False,
        log_level=LogLevels.warning,
        log_dictconfig={"handlers": {}, "loggers": {"_granian": {"propagate": True}}},
        respawn_failed_workers=True,
        workers_kill_timeout=ceil(listener.drain + finish),
    ).serve(target_loader=partial(load_application, module, handover, listener), wrap_loader=False)


def load_application(module: str, handover: Handover, listener: Listener) -> Callable[..., object]:
    """Return the application that a worker serves.

    Granian calls this function, because its own loader looks for modules in the current directory first. The import is
    here because the parent process does not need the module.
    """
    protect()
    handover.put()
    try:
        plane: Edge = import_late(module).from_environment()
    except Exception as fault:  # noqa: BLE001  # multiprocessing would print a traceback with the message
        configure_logging("json", "info")
        said = {"found": str(fault)} if isinstance(fault, ConfigurationError) else frames(fault)
        log.error("the worker cannot start", **said)
        sys.exit(1)
    return Worker(plane, listener)


def _room_for_connections(plane: str) -> int:
    """Raise the limit of open files. Returns the connections that fit, and warns if they are not MAX_CONNECTIONS."""
    each = FILES_OF_A_CONNECTION.get(plane, 1)
    wanted = each * MAX_CONNECTIONS + OTHER_FILES
    files = raise_file_limit(wanted)
    connections = max(min(MAX_CONNECTIONS, (files - OTHER_FILES) // each), 1)
    if connections < MAX_CONNECTIONS:
        log.warning(
            "few connections can be open at once",
            connections=connections,
            open_files=files,
            remedy=f"Allow {wanted} open files: ulimit -n, or LimitNOFILE= of systemd.",
        )
    return connections


def _unwrap(settings: Settings, role: str) -> None:
    """Unwrap a wrapped secret ID, which works only once, and pass it to the workers in KEYMAN_VAULT_SECRET_ID.

    Wait for Vault, if it is away.
    """
    if settings.vault.wrapped_secret_id is None:
        return
    # The Vault client takes as long to import as everything else, and this process needs it only here.
    unwrapped: VaultSettings = asyncio.run(
        import_late("keyman.vault.wrapping").unwrap_when_possible(settings.vault, role)
    )
    assert unwrapped.secret_id is not None
    for name in (WRAPPED_SECRET_ID, f"{WRAPPED_SECRET_ID}_FILE"):
        os.environ.pop(name, None)
    os.environ[SECRET_ID] = unwrapped.secret_id.reveal()


def _warn(settings: Settings, plane: str, host: str) -> None:
    """Log what doctor finds unsafe about this start."""
    for finding in unsafe(settings, plane, host):
        log.warning(finding.found, check=finding.check, remedy=finding.remedy)


def _check_database() -> DatabaseUnavailable | None:
    """Return the fault of a database that is away. Raises ConfigurationError for one that is not migrated."""
    try:
        run(_nothing, None)
    except DatabaseUnavailable as fault:
        return fault
    return None


async def _nothing(_db: object) -> None:
    return None
