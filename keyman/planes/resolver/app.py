"""Builds the resolver plane. It shares no code with the management plane's app.py.

This module and the gateway's import the opener, and no module imports this one: `keyman serve` loads it by name. So no
code of the management plane can reach a call that decrypts.
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
from keyman.http.credentials import for_issuers
from keyman.http.direct import Direct
from keyman.http.edge import Edge
from keyman.http.explained import explain_problem
from keyman.http.guards import Authentication, authenticate, require_rules
from keyman.http.limit import RateLimit
from keyman.http.requests import CALLER, EXCEPTION_HANDLERS, answer_options, from_state
from keyman.http.starting import Starting
from keyman.identity.application_tokens import ApplicationProof
from keyman.identity.fetching import Fetcher
from keyman.identity.workloads import WorkloadProof
from keyman.keys.probe import Probe
from keyman.keys.release import RESOLVE, Releasing
from keyman.keys.reports import PAUSE, TOO_MANY
from keyman.metrics import Metrics
from keyman.planes import assembly
from keyman.planes.resolver.document import openapi_document
from keyman.planes.resolver.routes import ADVICE, create_portal_link, limit_rate, report_key, resolve
from keyman.vault.opener import TransitOpener


def create_resolver(settings: Settings) -> Edge:
    """Return the resolver plane as an ASGI application.

    Its start-up raises ConfigurationError for a database that is not migrated. It can start without
    Vault, and without the database: then it answers 503 until that is back.
    """
    metrics = Metrics()
    users_audience = None if settings.jwt is None else settings.jwt.audience
    workloads = WorkloadProof(Fetcher(settings.jwt_ca_certificate), users_audience)
    litestar = Litestar(
        route_handlers=[*_DESCRIBED_ROUTES, *health.beside(settings), document.openapi_document],
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
                "authentication": Authentication([ApplicationProof(), workloads], ADVICE),
                "limit": RateLimit(settings.resolve_rate),
                "metrics": metrics,
                "report_limit": RateLimit(1 / PAUSE.total_seconds(), at_once=1, detail=TOO_MANY),
                "openapi": _document,
                "settings": settings,
                "workloads": workloads,
            }
        ),
    )
    require_rules(litestar)
    # A JWT of any issuer counts here: which applications there are stands in the database, and no cookie counts.
    return Edge(Starting(litestar, Direct(litestar)), settings, metrics, claim=for_issuers(lambda _issuer: True))


def from_environment() -> Edge:
    """Create the ASGI application of a worker of `keyman serve --plane resolver`."""
    return assembly.from_environment(create_resolver)


@asynccontextmanager
async def _lifespan(app: Litestar) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    async with assembly.opened(settings, app.state.metrics) as parts:
        parts.closing.push_async_callback(app.state.workloads.close)
        opener = TransitOpener(parts.client, settings.vault, parts.deployment)
        releasing = Releasing(parts.db, opener, parts.deployment.uuid, RESOLVE)
        probe = Probe(parts.db, "resolver")
        app.state.update({"db": parts.db, "guard": opener, "probe": probe, "releasing": releasing})
        await assembly.check_vault(opener)
        yield


@cache
def _document() -> bytes:
    """Return the OpenAPI document. It is created at the first request."""
    return openapi_document(_DESCRIBED_ROUTES, _DEPENDENCIES)


_DESCRIBED_ROUTES = [
    resolve,
    create_portal_link,
    report_key,
    explain_problem,
    health.livez,
    health.readyz,
]

_DEPENDENCIES = {
    **{name: from_state(name) for name in ("db", "guard", "metrics", "openapi", "probe", "releasing", "settings")},
    "caller": CALLER,
}
