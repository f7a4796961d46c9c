"""`POST /v1/resolve`, and the authentication of applications."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from litestar import MediaType, Response, get, post
from litestar.background_tasks import BackgroundTask
from litestar.handlers import BaseRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import PathParameter

from keyman import errors
from keyman.errors import FieldError, NotFound
from keyman.http.body import read_json, takes
from keyman.http.guards import PUBLIC, Authentication, is_public, needs
from keyman.http.limit import RateLimit
from keyman.http.openapi import BODY_PROBLEMS, check_query, may_answer
from keyman.http.problems import KINDS
from keyman.http.requests import AnyConnection, AnyRequest, Injected
from keyman.identity.applications import ApplicationProof
from keyman.identity.principals import Principal
from keyman.keys import release as operations
from keyman.keys.release import Opener, Request, Resolved
from keyman.storage.transactions import Database

AUTHENTICATION = Authentication([ApplicationProof()], "Send the token of an application: Authorization: Bearer km_…")


async def limit_rate(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Count the request. This guard runs after `authenticate` and before the body is read. Raises RateLimited."""
    if is_public(handler):
        return
    limit: RateLimit = connection.app.state.limit
    caller: Principal = connection.user
    limit.take(caller.require_application().id)


class ResolvedKey(msgspec.Struct):
    """The shape of the answer, for the OpenAPI document. It has no instances: their `repr` would show the value."""

    key_id: int
    user_id: int
    service: str
    api_key: str
    expires_at: datetime | None
    settings: dict[str, str]


@post(
    "/v1/resolve",
    opt=needs(None) | takes(Request),
    guards=[check_query],
    status_code=200,
    tags=("Keys",),
    security=[{"token": []}],
    operation_id="resolveKey",
    summary="Get a key",
    description="Opens one value: the key with this id, or the newest active key of a user for a service. An audit "
    "entry is committed before the value is returned. A key that the application may not have gets the same 404 as one "
    "that does not exist.",
    responses={
        200: ResponseSpec(ResolvedKey, description="The key, with its value.", generate_examples=False),
        **may_answer(
            errors.Unauthenticated,
            errors.Forbidden,
            errors.NotFound,
            errors.Undecryptable,
            errors.RateLimited,
            errors.VaultUnavailable,
            *BODY_PROBLEMS,
            fault=FieldError("key_id", "must be an id: a whole number of at least 1"),
        ),
    },
)
async def resolve(
    request: AnyRequest,
    db: Injected[Database],
    opener: Injected[Opener],
    deployment: Injected[UUID],
    caller: Injected[Principal],
) -> Response[bytes]:
    # The transaction that writes the audit entry checks the caller. Nothing is read before it.
    asked = await read_json(request, Request, confirm=False)
    asked.check()
    resolved = await operations.resolve(db, opener, deployment, caller, asked)
    after = None
    if not resolved.is_noted:
        # It runs after the answer was sent, so that the answer does not wait for it.
        after = BackgroundTask(operations.note_use, db, caller, resolved.key_id)
    return Response(_to_json(resolved), media_type=MediaType.JSON, background=after)


def _to_json(resolved: Resolved) -> bytes:
    """Encode the answer. Only this function puts a stored value into an answer."""
    return msgspec.json.encode(
        {
            "key_id": resolved.key_id,
            "user_id": resolved.user_id,
            "service": resolved.service,
            "api_key": resolved.value.reveal(),
            "expires_at": resolved.expires_at,
            "settings": resolved.settings,
        }
    )


@get(
    "/problems/{slug:str}",
    opt=PUBLIC,
    guards=[check_query],
    media_type=MediaType.TEXT,
    tags=("Problems",),
    operation_id="explainProblem",
    response_description="The explanation.",
    summary="Explain a problem",
    description="Explains the problem that has this `type`: its title, its status and what to do, in plain text.",
    responses=may_answer(errors.InvalidRequest, errors.NotFound),
)
async def explain_problem(
    slug: Annotated[str, PathParameter(description="The last part of `type`.", examples=[Example(value="not-found")])],
) -> str:
    """Return the explanation of a problem as plain text. This plane has no HTML pages."""
    kind = KINDS.get(slug)
    if kind is None:
        raise NotFound("There is no problem of this type.")
    return f"{kind.problem.title}\n\n{kind.status} {slug}\n\n{kind.explanation}\n"
