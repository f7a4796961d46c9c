"""Builds the management plane. Only this module knows all of its parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide
from litestar.types import ControllerRouterHandler

from keyman.config.identity import JwtSettings
from keyman.config.settings import Settings
from keyman.errors import Unauthenticated
from keyman.http import health
from keyman.http.body import MAX_BYTES, ValueSchemas
from keyman.http.credentials import KnowsIssuer, for_issuers
from keyman.http.direct import Direct
from keyman.http.edge import Edge
from keyman.http.guards import Authentication, authenticate, provide_origin, require_rules
from keyman.http.limit import limit_writes, writes_per_minute
from keyman.http.openapi import check_query
from keyman.http.requests import CALLER, EXCEPTION_HANDLERS, Routes, answer_options, from_state
from keyman.http.sites import Cors
from keyman.http.starting import Starting
from keyman.identity.jwt import JwtProof, keys_of
from keyman.identity.key_sets import KeySource
from keyman.identity.passwords import Passwords
from keyman.identity.personal_tokens import TokenProof
from keyman.identity.provider import Provider
from keyman.identity.sessions import SessionProof
from keyman.keys.probe import Probe
from keyman.keys.sealing import Sealer
from keyman.metrics import Metrics
from keyman.planes import assembly
from keyman.planes.management import housekeeping, web
from keyman.planes.management.api.accounts import PASSWORD_ROUTES, AuthController, TokenController
from keyman.planes.management.api.applications import ApplicationController
from keyman.planes.management.api.audit import list_audit
from keyman.planes.management.api.batch import create_keys
from keyman.planes.management.api.checks import check_key
from keyman.planes.management.api.keys import KeyController, list_services
from keyman.planes.management.checks import Gateway
from keyman.planes.management.document import openapi_document
from keyman.planes.management.web.pages import Pages
from keyman.planes.management.web.strays import Strays
from keyman.providers.catalogue import Catalogue
from keyman.vault.cipher import TransitCipher
from keyman.vault.duplicates import TransitFingerprints
from keyman.vault.guard import KeyGuard

ADVICE = "Send an access token (Authorization: Bearer km_…), or sign in."
NO_JWTS = (
    "A JWT does not count here, because this keyman accepts none. "
    "Send an access token (Authorization: Bearer km_…), "
    "or ask the operator to set KEYMAN_JWT_ISSUER and KEYMAN_JWT_AUDIENCE."
)


def create_app(settings: Settings, *, passwords: Passwords | None = None) -> Edge:
    """Return the management plane as an ASGI application.

    Its start-up raises ConfigurationError for a database that is not migrated. It starts without the database, and
    answers 503 until that is back. It starts without Vault, and everything that does not need Vault works. `passwords`
    replaces the production parameters of Argon2id.
    """
    metrics = Metrics()
    catalogue = Catalogue.load(settings.services_file)
    provider = None if settings.oidc is None else Provider(settings.oidc, settings.pages_url or "")
    pages = Pages(settings, provider)
    services = tuple(info.service for info in catalogue.infos())
    keys = None if settings.jwt is None else keys_of(settings.jwt, settings.jwt_ca_certificate)
    litestar = Litestar(
        route_handlers=[*_described_routes(), *health.beside(settings), web.router()],
        dependencies=_DEPENDENCIES,
        before_request=answer_options,
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[_lifespan],
        logging_config=None,
        openapi_config=None,
        request_max_body_size=MAX_BYTES,
        state=State(
            {
                "authentication": _authentication(settings, keys),
                "catalogue": catalogue,
                "gateway": None if settings.checks is None else Gateway(settings.checks),
                "issuer_keys": keys,
                "metrics": metrics,
                "openapi": partial(_document, services, settings.session_cookie, settings.root_path),
                "pages": pages,
                "passwords": passwords or Passwords(),
                "provider": provider,
                "settings": settings,
                "write_limit": writes_per_minute(settings.max_writes),
            }
        ),
        type_decoders=[(ValueSchemas.is_plugin_supported_type, lambda wanted, raw: wanted.parse(raw))],
    )
    require_rules(litestar)
    app = Starting(litestar, Strays(litestar, Direct(litestar)))
    cors = Cors(settings.cors_origins, PASSWORD_ROUTES)
    return Edge(
        app, settings, metrics, pages.problem, cors, settings.root_path, for_issuers(_knows_issuer(settings.jwt))
    )


def _knows_issuer(jwt: JwtSettings | None) -> KnowsIssuer | None:
    return None if jwt is None else lambda claim: claim == jwt.issuer


def _authentication(settings: Settings, keys: KeySource | None) -> Authentication:
    """Return who can call, in the order in which a request is asked. If it has a token, its cookie is ignored."""
    if settings.jwt is None or keys is None:
        return Authentication([TokenProof(), SessionProof()], ADVICE, lambda: Unauthenticated(NO_JWTS))
    return Authentication([TokenProof(), JwtProof(settings.jwt, keys), SessionProof()], ADVICE)


def from_environment() -> Edge:
    """Create the ASGI application of a worker of `keyman serve`."""
    return assembly.from_environment(create_app)


@asynccontextmanager
async def _lifespan(app: Litestar) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    metrics: Metrics = app.state.metrics
    async with assembly.opened(settings, metrics) as parts:
        guard = KeyGuard(parts.client, settings.vault, parts.deployment)
        cipher = TransitCipher(parts.client, settings.vault, guard, metrics)
        parts.closing.push_async_callback(cipher.close)
        if app.state.issuer_keys is not None:
            parts.closing.push_async_callback(app.state.issuer_keys.close)
        fingerprints = None
        if settings.duplicates_on:
            fingerprints = TransitFingerprints(parts.client, settings.vault)
            parts.closing.push_async_callback(fingerprints.close)
        sealer = Sealer(cipher, parts.deployment.uuid, app.state.catalogue, fingerprints)
        app.state.update({"db": parts.db, "probe": Probe(parts.db, "management"), "guard": guard, "sealer": sealer})
        sweeper = asyncio.create_task(housekeeping.run(parts.db))
        parts.closing.callback(sweeper.cancel)
        totals = asyncio.create_task(housekeeping.record_totals(parts.db))
        parts.closing.callback(totals.cancel)
        if app.state.provider is not None:
            discovery = asyncio.create_task(app.state.provider.prepare())
            parts.closing.push_async_callback(app.state.provider.close)
            parts.closing.callback(discovery.cancel)
        await assembly.check_vault(guard)
        # Only now: if anything above fails, the plane is opened again, and needs the threads.
        parts.closing.callback(app.state.passwords.close)
        yield


def _described_routes() -> list[ControllerRouterHandler]:
    """Return new routes of the OpenAPI document at each call, because a route belongs to one application."""
    api = Routes(
        "/api",
        route_handlers=[
            AuthController,
            TokenController,
            KeyController,
            create_keys,
            check_key,
            ApplicationController,
            list_services,
            list_audit,
        ],
        guards=[authenticate, limit_writes, check_query],
        dependencies={"caller": CALLER, "origin": Provide(provide_origin)},
    )
    return [api, health.livez, health.readyz]


@cache
def _document(services: tuple[str, ...], session_cookie: str, root_path: str) -> bytes:
    """Return the OpenAPI document. It is created at the first request, because that takes a tenth of a second."""
    return openapi_document(_described_routes(), _DEPENDENCIES, services, session_cookie, root_path)


_DEPENDENCIES = {
    name: from_state(name)
    for name in (
        *("catalogue", "db", "gateway", "guard", "metrics", "openapi"),
        *("pages", "passwords", "probe", "sealer", "settings"),
    )
}
