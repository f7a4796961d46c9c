"""Builds the resolver plane. It shares no code with the management plane's app.py.

Only this module imports the opener, and no module imports this one: `keyman serve` loads it by name. So no code of the
management plane can reach a call that decrypts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

from litestar import Litestar
from litestar.datastructures import State

from keyman.config.settings import Settings
from keyman.http import document, health
from keyman.http.body import MAX_BYTES
from keyman.http.direct import Direct
from keyman.http.edge import Edge
from keyman.http.guards import authenticate, require_rules
from keyman.http.limit import RateLimit
from keyman.http.requests import CALLER, EXCEPTION_HANDLERS, answer_options, from_state
from keyman.http.starting import Starting
from keyman.keys.probe import Probe
from keyman.planes import assembly
from keyman.planes.resolver.document import openapi_document
from keyman.planes.resolver.routes import AUTHENTICATION, explain_problem, limit_rate, resolve
from keyman.telemetry import Metrics
from keyman.vault.opener import TransitOpener


def create_resolver(settings: Settings) -> Edge:
    """Return the resolver plane as an ASGI application.

    Its start-up raises ConfigurationError for a database that is not migrated. It can start without
    Vault, and without the database: then it answers 503 until that is back.
    """
    metrics = Metrics()
    litestar = Litestar(
        route_handlers=[*_DESCRIBED_ROUTES, document.openapi_document],
        guards=[authenticate, limit_rate],
        dependencies=_DEPENDENCIES,
        before_request=answer_options,
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[_lifespan],
        logging_config=None,
        openapi_config=None,
        request_max_body_size=MAX_BYTES,
        state=State(
            {
                "authentication": AUTHENTICATION,
                "limit": RateLimit(settings.resolve_rate),
                "metrics": metrics,
                "openapi": _document,
                "settings": settings,
            }
        ),
    )
    require_rules(litestar)
    return Edge(Starting(litestar, Direct(litestar)), settings, metrics)


def from_environment() -> Edge:
    """Create the ASGI application of a worker of `keyman serve --plane resolver`."""
    return assembly.from_environment(create_resolver)


@asynccontextmanager
async def _lifespan(app: Litestar) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    async with assembly.opened(settings, app.state.metrics) as parts:
        opener = TransitOpener(parts.client, settings.vault, parts.deployment)
        app.state.update({"probe": Probe(parts.db, "resolver")})
        app.state.update({"db": parts.db, "deployment": parts.deployment.uuid, "guard": opener, "opener": opener})
        await assembly.check_vault(opener)
        yield


@cache
def _document() -> bytes:
    """Return the OpenAPI document. It is created at the first request."""
    return openapi_document(_DESCRIBED_ROUTES, _DEPENDENCIES)


_DESCRIBED_ROUTES = [resolve, explain_problem, health.livez, health.readyz, health.metrics]

_DEPENDENCIES = {
    **{name: from_state(name) for name in ("db", "deployment", "guard", "metrics", "openapi", "opener", "probe")},
    "caller": CALLER,
}
