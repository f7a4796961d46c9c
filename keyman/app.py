"""The management plane, put together. Nothing else knows all of its parts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import msgspec
from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme, Tag

from keyman import __version__, housekeeping
from keyman.accounts.passwords import Passwords
from keyman.api import health, reference
from keyman.api.accounts import AuthController, TokenController
from keyman.api.audit import list_audit
from keyman.api.authentication import SESSION_COOKIE, authenticate, provide_caller, provide_origin
from keyman.api.body import CHECKS, MAX_BYTES, ValueSchemas
from keyman.api.common import EXCEPTION_HANDLERS, answer_options
from keyman.api.keys import KeyController, list_services
from keyman.config import Settings, load
from keyman.db import Database
from keyman.deployment import Deployment
from keyman.edge import ASGIApp, Edge
from keyman.errors import Problem
from keyman.keys.schemas import NewKey
from keyman.keys.sealing import Sealer
from keyman.keys.services import Catalogue
from keyman.processes import die_with_parent
from keyman.telemetry import Metrics, configure_logging
from keyman.vault.cipher import TransitCipher
from keyman.vault.guard import KeyGuard
from keyman.vault.login import VaultClient

DESCRIPTION = """\
Users leave their API keys for LLM services here. A value goes in once and is sealed by Vault; no answer of this API
ever holds one. Every error is `application/problem+json` (RFC 9457) with a type that explains itself.
"""


def create_app(settings: Settings, *, passwords: Passwords | None = None) -> Edge:
    """The management plane as an ASGI application.

    Its start-up raises ConfigurationError for a database that is not migrated. Vault is not needed to start: what can
    be done without it works. `passwords` replaces the production parameters of Argon2id.
    """
    metrics = Metrics()
    catalogue = Catalogue.load(settings.services_file)
    api = Router(
        "/api",
        route_handlers=[AuthController, TokenController, KeyController, list_services, list_audit],
        guards=[authenticate],
        dependencies={"caller": Provide(provide_caller), "origin": Provide(provide_origin)},
        security=[{"token": []}, {"session": []}],
    )
    litestar = Litestar(
        route_handlers=[
            api,
            health.livez,
            health.readyz,
            health.metrics,
            reference.problem_index,
            reference.problem_page,
            reference.reference,
            reference.openapi_document,
            reference.static_files,
        ],
        dependencies={
            name: Provide(_from_state(name), sync_to_thread=False)
            for name in ("catalogue", "db", "guard", "metrics", "openapi", "passwords", "sealer", "settings")
        },
        exception_handlers=EXCEPTION_HANDLERS,
        before_request=answer_options,
        lifespan=[_lifespan],
        logging_config=None,
        openapi_config=OpenAPIConfig(
            title="keyman",
            version=__version__,
            description=DESCRIPTION,
            path="/-/openapi",  # Litestar's own pages are not used, and load from other hosts
            render_plugins=[],
            use_handler_docstrings=False,
            tags=[Tag(name) for name in ("Keys", "Access tokens", "Account", "Trail", "Health")],
            components=Components(
                security_schemes={
                    "token": SecurityScheme(
                        type="http",
                        scheme="bearer",
                        bearer_format="km_…",
                        description="A personal access token, `km_` and 36 base62 characters.",
                    ),
                    "session": SecurityScheme(
                        type="apiKey",
                        security_scheme_in="cookie",
                        name=SESSION_COOKIE,
                        description="Set by sign-up and sign-in; may do everything that its owner may.",
                    ),
                }
            ),
        ),
        plugins=[ValueSchemas()],
        request_max_body_size=MAX_BYTES,
        state=State(
            {
                "catalogue": catalogue,
                "metrics": metrics,
                "passwords": passwords or Passwords(),
                "settings": settings,
                CHECKS: {NewKey: catalogue.check_new_key},
            }
        ),
        type_decoders=[(ValueSchemas.is_plugin_supported_type, lambda wanted, raw: wanted.parse(raw))],
    )
    litestar.state.openapi = msgspec.json.encode(litestar.openapi_schema.to_schema())
    return Edge(cast("ASGIApp", litestar), settings, metrics)


def from_environment() -> Edge:
    """What a worker process of `keyman serve` runs; its parent has checked the settings."""
    # A worker whose parent was killed would go on answering, and hold the port.
    die_with_parent(os.getppid(), signal.SIGKILL)
    settings = load(os.environ)
    configure_logging(settings.log_format, settings.log_level)
    return create_app(settings)


@asynccontextmanager
async def _lifespan(app: Litestar) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    metrics: Metrics = app.state.metrics
    async with AsyncExitStack() as stack:
        db = Database(settings.database_url, metrics)
        stack.push_async_callback(db.close)
        stack.callback(app.state.passwords.close)
        deployment = await Deployment.load(db)
        client = VaultClient(settings.vault, metrics)
        stack.push_async_callback(client.close)
        guard = KeyGuard(client, settings.vault, deployment)
        cipher = TransitCipher(client, settings.vault, guard, metrics)
        app.state.update({"db": db, "guard": guard, "sealer": Sealer(cipher, deployment.uuid, app.state.catalogue)})
        sweeper = asyncio.create_task(housekeeping.run(db))
        stack.callback(sweeper.cancel)
        await _first_look(guard)
        yield


async def _first_look(guard: KeyGuard) -> None:
    """Log in and check the key before the first request; what is wrong is in the log, and in /readyz."""
    with contextlib.suppress(Problem):
        await guard.verify()


def _from_state(name: str) -> Callable[[State], Any]:
    def provide(state: State) -> Any:
        return state[name]

    return provide
