"""`POST /v1/resolve`, and who may send it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from litestar import MediaType, Response, get, post
from litestar.background_tasks import BackgroundTask
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath

from keyman.errors import NotFound, Unauthenticated
from keyman.http.body import read_json, takes
from keyman.http.edge import exchange_of
from keyman.http.guards import PUBLIC, bearer_token, is_public, needs
from keyman.http.limit import RateLimit
from keyman.http.problems import KINDS
from keyman.http.requests import AnyRequest, Injected
from keyman.identity import applications
from keyman.identity.applications import Application
from keyman.keys import release as operations
from keyman.keys.release import Opener, Request, Resolved
from keyman.storage.transactions import Database


async def authenticate(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """A guard, before the body is read: set the request's user to an Application, and count its request.

    Raises Unauthenticated, RateLimited.
    """
    if is_public(handler):
        return
    exchange = exchange_of(connection.scope)
    token = bearer_token(connection)
    if token is None:
        raise Unauthenticated("Send the token of an application: Authorization: Bearer km_…")
    db: Database = connection.app.state.db
    application = await applications.by_token(db, token, exchange.request_id, exchange.address)
    exchange.application_id = application.id
    limit: RateLimit = connection.app.state.limit
    limit.take(application.id)
    connection.scope["user"] = application


@post("/v1/resolve", opt=needs(None) | takes(Request), status_code=200)
async def resolve(
    request: AnyRequest,
    db: Injected[Database],
    opener: Injected[Opener],
    deployment: Injected[UUID],
    application: Injected[Application],
) -> Response[bytes]:
    asked = await read_json(request, Request)
    asked.check()
    resolved = await operations.resolve(db, opener, deployment, application, asked)
    after = None
    if not resolved.is_noted:
        # After the answer has left: it does not wait for a note.
        after = BackgroundTask(operations.note_use, db, application, resolved.key_id)
    return Response(_told(resolved), media_type=MediaType.JSON, background=after)


def _told(resolved: Resolved) -> bytes:
    """The answer: the one place where a stored value comes out."""
    return msgspec.json.encode(
        {
            "key_id": resolved.key_id,
            "user_id": resolved.user_id,
            "service": resolved.service,
            "api_key": resolved.value.reveal(),
            "expires_at": resolved.expires_at,
        }
    )


@get("/problems/{slug:str}", opt=PUBLIC, media_type=MediaType.TEXT)
async def explain_problem(slug: FromPath[str]) -> str:
    """What the `type` of a problem leads to. This plane has no pages."""
    kind = KINDS.get(slug)
    if kind is None:
        raise NotFound("There is no problem of this type.")
    return f"{kind.problem.title}\n\n{kind.status} {slug}\n\n{kind.explanation}\n"
