"""The resolver plane, put together; beside the management plane's app.py, and nothing of it.

This module alone imports the opener, and nothing imports this module: whoever serves it finds it by name. So no code
of the management plane leads to a call that decrypts.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

from litestar import Litestar, Request
from litestar.datastructures import State
from litestar.di import Provide

from keyman.config.settings import Settings, load
from keyman.errors import Problem
from keyman.http import health
from keyman.http.body import CHECKS, MAX_BYTES
from keyman.http.edge import ASGIApp, Edge
from keyman.http.limit import RateLimit
from keyman.http.openapi import check_query
from keyman.http.requests import EXCEPTION_HANDLERS, answer_options, from_state
from keyman.identity.applications import Application
from keyman.keys.deployment import Deployment
from keyman.planes.resolver.routes import authenticate, explain_problem, resolve
from keyman.processes import PARENT, die_with_parent
from keyman.storage.transactions import Database
from keyman.telemetry import Metrics, configure_logging
from keyman.vault.login import VaultClient
from keyman.vault.opener import TransitOpener


def create_resolver(settings: Settings) -> Edge:
    """The resolver plane as an ASGI application.

    Its start-up raises ConfigurationError for a database that is not migrated. Vault is not needed to start.
    """
    metrics = Metrics()
    litestar = Litestar(
        route_handlers=[resolve, explain_problem, health.livez, health.readyz, health.metrics],
        guards=[authenticate, check_query],
        dependencies={
            **{name: from_state(name) for name in ("db", "deployment", "guard", "metrics", "opener")},
            "application": Provide(_application),
        },
        before_request=answer_options,
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[_lifespan],
        logging_config=None,
        openapi_config=None,
        request_max_body_size=MAX_BYTES,
        state=State({"limit": RateLimit(settings.resolve_rate), "metrics": metrics, "settings": settings, CHECKS: {}}),
    )
    return Edge(cast("ASGIApp", litestar), settings, metrics)


def from_environment() -> Edge:
    """What a worker process of `keyman serve --plane resolver` runs; its parent has checked the settings."""
    die_with_parent(int(os.environ[PARENT]), signal.SIGKILL)
    settings = load(os.environ)
    configure_logging(settings.log_format, settings.log_level)
    return create_resolver(settings)


@asynccontextmanager
async def _lifespan(app: Litestar) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    metrics: Metrics = app.state.metrics
    async with AsyncExitStack() as stack:
        db = Database(settings.database_url, metrics)
        stack.push_async_callback(db.close)
        deployment = await Deployment.load(db)
        client = VaultClient(settings.vault, metrics)
        stack.push_async_callback(client.close)
        opener = TransitOpener(client, settings.vault, deployment)
        app.state.update({"db": db, "deployment": deployment.uuid, "guard": opener, "opener": opener})
        with contextlib.suppress(Problem):  # what is wrong is in the log, and in /readyz
            await opener.verify()
        yield


async def _application(request: Request[Any, Any, Any]) -> Application:
    application: Application = request.user
    return application
