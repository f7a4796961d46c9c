"""Builds the gateway plane. It shares no code with the app.py of the other planes.

This module and the resolver's import the opener, and no module imports this one: `keyman serve` loads it by name.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial

from litestar import Litestar
from litestar.datastructures import State

from keyman.config.settings import Settings
from keyman.http import document, health
from keyman.http.body import MAX_BYTES
from keyman.http.direct import Direct
from keyman.http.edge import Edge
from keyman.http.explained import explain_problem
from keyman.http.guards import Authentication, authenticate, require_rules
from keyman.http.requests import CALLER, EXCEPTION_HANDLERS, answer_options, from_state
from keyman.http.starting import Starting
from keyman.identity.fetching import Fetcher
from keyman.identity.jwt import keys_of
from keyman.identity.principals import Proof
from keyman.identity.workloads import WorkloadProof
from keyman.keys.probe import Probe
from keyman.keys.release import USE, Releasing
from keyman.metrics import Metrics
from keyman.planes import assembly
from keyman.planes.gateway.callers import ADVICE, JwtOfAnybody, TokenOfAnybody, claimed
from keyman.planes.gateway.checking import Checker, check_key
from keyman.planes.gateway.document import openapi_document
from keyman.planes.gateway.forwarding import Forwarder
from keyman.planes.gateway.measures import Measures
from keyman.planes.gateway.problems import render
from keyman.planes.gateway.services import forwarded
from keyman.planes.gateway.streams import Streams
from keyman.providers.catalogue import Catalogue
from keyman.vault.opener import TransitOpener

BODY_PAUSE = 30.0
"""Seconds between two parts of a body."""


def create_gateway(settings: Settings) -> Edge:
    """Return the gateway plane as an ASGI application.

    Raises ConfigurationError for an invalid services file. Its start-up raises ConfigurationError for a database that
    is not migrated. It can start without Vault, and without the database: then it answers 503 until that is back.
    """
    metrics = Metrics()
    jwt, gateway = settings.jwt, settings.gateway
    keys = None if jwt is None else keys_of(jwt, settings.jwt_ca_certificate)
    workloads = WorkloadProof(Fetcher(settings.jwt_ca_certificate), None if jwt is None else jwt.audience)
    catalogue = Catalogue.load(settings.services_file)
    proofs: list[Proof] = [TokenOfAnybody(gateway), JwtOfAnybody(gateway, jwt, keys, workloads)]
    streams = Streams(gateway.concurrency, settings.drain + gateway.drain)
    litestar = Litestar(
        route_handlers=[*_DESCRIBED_ROUTES, *health.beside(settings), document.openapi_document],
        guards=[authenticate],
        dependencies=_DEPENDENCIES,
        before_request=answer_options,
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[_lifespan],
        logging_config=None,
        openapi_config=None,
        request_max_body_size=MAX_BYTES,
        state=State(
            {
                "authentication": Authentication(proofs, ADVICE),
                "metrics": metrics,
                "openapi": cache(partial(openapi_document, _DESCRIBED_ROUTES, _DEPENDENCIES, catalogue)),
                "settings": settings,
            }
        ),
    )
    require_rules(litestar)
    measures = Measures(metrics.registry, [one.service for one in catalogue.services() if one.upstream is not None])
    forwarder = Forwarder(Direct(litestar), catalogue, proofs, gateway, streams, measures)
    by_name = {found.service.service: found for found in forwarded(catalogue).values()}
    litestar.state["checker"] = Checker(by_name, forwarder.upstreams)
    litestar.state.update({"forwarder": forwarder, "streams": streams, "closing": [workloads, keys]})
    app = Starting(litestar, forwarder)
    edge = Edge(app, settings, metrics, claim=claimed, problem=render, body_pause=BODY_PAUSE)
    streams.is_draining = lambda: edge.is_draining
    edge.clients_left = streams.end_left
    edge.passed_on_for = streams.take_clients
    return edge


def from_environment() -> Edge:
    """Create the ASGI application of a worker of `keyman serve --plane gateway`."""
    return assembly.from_environment(create_gateway)


@asynccontextmanager
async def _lifespan(app: Litestar) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    forwarder: Forwarder = app.state.forwarder
    streams: Streams = app.state.streams
    async with assembly.opened(settings, app.state.metrics) as parts:
        for part in app.state.closing:
            if part is not None:
                parts.closing.push_async_callback(part.close)
        opener = TransitOpener(parts.client, settings.vault, parts.deployment)
        app.state.update({"db": parts.db, "guard": opener, "probe": Probe(parts.db, "gateway")})
        forwarder.releasing = Releasing(parts.db, opener, parts.deployment.uuid, USE)
        app.state["releasing"] = forwarder.releasing
        parts.closing.push_async_callback(forwarder.upstreams.close)
        await forwarder.upstreams.open()
        watching = asyncio.create_task(streams.watch(parts.db))
        parts.closing.push_async_callback(_cancelled, watching)
        await assembly.check_vault(opener)
        yield


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


_DESCRIBED_ROUTES = [check_key, explain_problem, health.livez, health.readyz]

_DEPENDENCIES = {
    **{
        name: from_state(name)
        for name in ("checker", "db", "guard", "metrics", "openapi", "probe", "releasing", "settings")
    },
    "caller": CALLER,
}
