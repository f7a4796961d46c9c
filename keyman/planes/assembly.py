"""Opens and closes the parts that every plane needs."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from keyman.config.settings import Settings, load
from keyman.errors import Problem
from keyman.http.edge import Edge
from keyman.keys.deployment import Deployment
from keyman.logs import configure_logging
from keyman.metrics import Metrics
from keyman.processes import PARENT, die_with_parent
from keyman.storage.transactions import Database
from keyman.vault.guard import Guard
from keyman.vault.login import VaultClient


@dataclass(frozen=True)
class Parts:
    """The parts of a running plane. Additions to `closing` are closed before the client and the database."""

    db: Database
    deployment: Deployment
    client: VaultClient
    closing: AsyncExitStack


@asynccontextmanager
async def opened(settings: Settings, metrics: Metrics) -> AsyncIterator[Parts]:
    """Open the database and a client of Vault. At the end, close both and the added parts, in reverse order.

    Raises ConfigurationError for a database that is not migrated. A plane can start without Vault.
    """
    async with AsyncExitStack() as stack:
        db = Database(settings.database_url, metrics)
        stack.push_async_callback(db.close)
        deployment = await Deployment.load(db)
        client = VaultClient(settings.vault, metrics)
        stack.push_async_callback(client.close)
        yield Parts(db, deployment, client, stack)


async def check_vault(guard: Guard) -> None:
    """Log in to Vault and check the encryption key, before the first request. The log and `/readyz` show a fault."""
    with contextlib.suppress(Problem):
        await guard.verify()


def from_environment(create: Callable[[Settings], Edge]) -> Edge:
    """Create the plane of a worker process of `keyman serve`, whose parent has checked the settings."""
    # Otherwise a worker whose parent was killed, even during the worker's start, would keep running and block the port.
    die_with_parent(int(os.environ[PARENT]), signal.SIGKILL)
    settings = load(os.environ)
    configure_logging(settings.log_format, settings.log_level)
    plane = create(settings)
    _collect_seldom()
    return plane


COLLECT_AFTER = (10_000, 20, 50)
"""The thresholds of Python's garbage collector. Its own, (700, 10, 10), take a tenth of a busy worker's processor time
and pauses of up to 30 ms: what 256 requests hold at the same moment is young, and is looked at each time.
"""


def _collect_seldom() -> None:
    """Exclude what lives as long as the process from garbage collection, and collect the rest less often.

    Requests leave nothing for the collector: they are freed at their end.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
