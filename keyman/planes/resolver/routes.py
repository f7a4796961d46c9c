"""`POST /v1/resolve`, `POST /v1/portal-links`, `POST /v1/report`, and the authentication of applications."""

from __future__ import annotations

from datetime import datetime

import msgspec
from litestar import MediaType, Response, post
from litestar.background_tasks import BackgroundTask
from litestar.handlers import BaseRouteHandler
from litestar.openapi.datastructures import ResponseSpec

from keyman import errors
from keyman.config.settings import Settings
from keyman.errors import FieldError
from keyman.http.body import read_json, takes
from keyman.http.guards import is_public, needs
from keyman.http.limit import RateLimit
from keyman.http.openapi import BODY_PROBLEMS, check_query, may_answer
from keyman.http.requests import AnyConnection, AnyRequest, Injected
from keyman.identity import portal
from keyman.identity.portal import Link, NewLink
from keyman.identity.principals import Principal
from keyman.keys.release import Released, Releasing, note_use, release
from keyman.keys.reports import Report, report
from keyman.keys.request import Request
from keyman.storage.transactions import Database

ADVICE = "Send the token of an application: Authorization: Bearer km_…"


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
    subject: str | msgspec.UnsetType = msgspec.UNSET


@post(
    "/v1/resolve",
    opt=needs(None) | takes(Request),
    guards=[check_query],
    status_code=200,
    tags=("Keys",),
    security=[{"token": []}],
    operation_id="resolveKey",
    summary="Get a key",
    description="Opens one value: the key with this id, or the one of a user for a service, which is the default if "
    "that is active, or else the newest active one. You name the user by `user_id`, or by your own `subject`, which "
    "the answer then repeats. An audit entry is committed before the value is returned. A key that the application "
    "may not have gets the same 404 as one that does not exist.",
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
    releasing: Injected[Releasing],
    caller: Injected[Principal],
) -> Response[bytes]:
    # The transaction that writes the audit entry checks the caller. Nothing is read before it.
    asked = await read_json(request, Request, confirm=False)
    asked.check()
    resolved = await release(releasing, caller, asked)
    after = None
    if not resolved.is_noted:
        # It runs after the answer was sent, so that the answer does not wait for it.
        after = BackgroundTask(note_use, releasing.db, caller, resolved.key_id)
    return Response(_to_json(resolved), media_type=MediaType.JSON, background=after)


@post(
    "/v1/portal-links",
    opt=needs(None) | takes(NewLink),
    guards=[check_query],
    status_code=201,
    tags=("Portal links",),
    security=[{"token": []}],
    operation_id="createPortalLink",
    summary="Create a portal link",
    description="Creates a link with which a user of the application can manage their API keys, without an account of "
    "their own. Redirect the user's browser to `url` at once: the link can be used once, within five minutes. The user "
    "is created at the first use of a `subject`, which is the application's own name for the user. `email` and `name` "
    "are only shown. Without `return_url`, the pages lead back to the first one that the application has.",
    response_description="The link. It is not shown again.",
    responses=may_answer(
        errors.Unauthenticated,
        errors.Forbidden,
        errors.NotFound,
        errors.Conflict,
        errors.RateLimited,
        *BODY_PROBLEMS,
        fault=FieldError("subject", "is missing"),
    ),
)
async def create_portal_link(
    request: AnyRequest, db: Injected[Database], settings: Injected[Settings], caller: Injected[Principal]
) -> Link:
    # The transaction that stores the link checks the caller.
    wanted = await read_json(request, NewLink, confirm=False)
    return await portal.create_link(db, caller, wanted, settings.pages_url)


@post(
    "/v1/report",
    opt=needs(None) | takes(Report),
    guards=[check_query],
    status_code=204,
    tags=("Keys",),
    security=[{"token": []}],
    operation_id="reportKey",
    summary="Report what came of a key",
    description="Says what the provider said of a key that this application resolved within the last hour, and that "
    "still has the same value. Its owner sees it. It never replaces the verdict of a check or of a request through the "
    "gateway that is newer than the resolve. Otherwise, a key gets the same 404 as one that does not exist.",
    response_description="The report counts, unless something newer is known.",
    responses=may_answer(
        errors.Unauthenticated,
        errors.Forbidden,
        errors.NotFound,
        errors.RateLimited,
        *BODY_PROBLEMS,
        fault=FieldError("key_id", "is missing"),
    ),
)
async def report_key(request: AnyRequest, db: Injected[Database], caller: Injected[Principal]) -> None:
    # The transaction that stores the report checks the caller.
    said = await read_json(request, Report, confirm=False)
    limit: RateLimit = request.app.state.report_limit
    await report(db, caller, said, lambda: limit.take(hash((caller.require_application().id, said.key_id))))


def _to_json(resolved: Released) -> bytes:
    """Encode the answer. Only this function puts a stored value into an answer."""
    asked_with = {} if resolved.subject is None else {"subject": resolved.subject}
    return msgspec.json.encode(
        {
            "key_id": resolved.key_id,
            "user_id": resolved.user_id,
            "service": resolved.service,
            "api_key": resolved.value.reveal(),
            "expires_at": resolved.expires_at,
            "settings": resolved.settings,
            **asked_with,
        }
    )
