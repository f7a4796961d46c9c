"""`keyman serve`."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import tempfile
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import click
from granian import Granian
from granian.constants import Interfaces, Loops
from granian.log import LogLevels

from keyman.cli import imported
from keyman.cli.common import run
from keyman.config.settings import Settings, load
from keyman.config.vault import SECRET_ID, WRAPPED_SECRET_ID, VaultSettings
from keyman.loopback import is_loopback
from keyman.processes import PARENT, check_port
from keyman.providers.catalogue import read_services
from keyman.telemetry import MULTIPROCESS_DIRECTORY, configure_logging, log

DRAIN_SECONDS = 12
"""How long a worker may finish the requests it has: longer than the longest, which waits for Vault and the database."""


PLANES = {"management": "keyman.planes.management.app", "resolver": "keyman.planes.resolver.app"}
"""Where each plane is put together. A process imports one of them: the management plane has no code that decrypts."""


@click.command("serve")
@click.option(
    "--plane",
    type=click.Choice(list(PLANES)),
    default="management",
    show_default=True,
    help="Which half of keyman this process is.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="The port to listen on.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes that answer.")
def command(plane: str, host: str, port: int, workers: int) -> None:
    """Run one plane of keyman, set up by KEYMAN_… variables."""
    settings = load(os.environ, read_services)
    check_port(host, port)
    run(_nothing, None)  # that the database is there and migrated
    configure_logging(settings.log_format, settings.log_level)
    _warn(settings, plane, host)
    _unwrap(settings, f"keyman-{plane}")
    with tempfile.TemporaryDirectory(prefix="keyman-metrics-") as directory:
        if workers > 1:
            os.environ[MULTIPROCESS_DIRECTORY] = directory
        os.environ[PARENT] = str(os.getpid())
        # A worker that starts afresh sees these variables in time; a forked one would share what this process has open.
        multiprocessing.set_start_method("spawn", force=True)
        Granian(
            "keyman",
            address=host,
            port=port,
            interface=Interfaces.ASGI,
            loop=Loops.uvloop,
            workers=workers,
            websockets=False,
            log_level=LogLevels.warning,
            log_dictconfig={"handlers": {}, "loggers": {"_granian": {"propagate": True}}},
            respawn_failed_workers=True,
            workers_kill_timeout=DRAIN_SECONDS,
        ).serve(target_loader=partial(load_application, PLANES[plane]), wrap_loader=False)


def load_application(module: str) -> Any:
    """What a worker answers with. Given to granian as a function, because its own loader looks for modules in the
    current directory first; imported here, because the parent has no need of it.
    """
    return imported(module).from_environment()


def _unwrap(settings: Settings, role: str) -> None:
    """Take a wrapped secret ID, which can be done once, for every worker that is to come: each finds it where it would
    be had it been given unwrapped.
    """
    if settings.vault.wrapped_secret_id is None:
        return
    # What speaks to Vault takes as long to import as the rest; the workers do it, and this process for this alone.
    unwrapped: VaultSettings = asyncio.run(imported("keyman.vault.wrapping").unwrap(settings.vault, role))
    assert unwrapped.secret_id is not None
    for name in (WRAPPED_SECRET_ID, f"{WRAPPED_SECRET_ID}_FILE"):
        os.environ.pop(name, None)
    os.environ[SECRET_ID] = unwrapped.secret_id.reveal()


def _warn(settings: Settings, plane: str, host: str) -> None:
    vault = urlsplit(settings.vault.address)
    if vault.scheme == "http" and not is_loopback(vault.hostname or ""):
        log.warning("Vault is reached without TLS: whoever can read the network reads every key that passes")
    if plane == "resolver":
        if not is_loopback(host):
            log.warning(
                "The resolver answers with keys: let applications alone reach it, and by TLS or a private network"
            )
        return
    if settings.public_url is None:
        log.warning("KEYMAN_PUBLIC_URL is not set: browsers keep the session cookie on https only")


async def _nothing(_db: object) -> None:
    return None
