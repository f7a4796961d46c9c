"""`/api/keys/{id}/check`."""

from __future__ import annotations

from litestar import Response, post
from litestar.params import FromPath

from keyman import errors
from keyman.http.guards import needs
from keyman.http.openapi import CALLER_PROBLEMS, ETAG, SECURITY, may_answer
from keyman.http.requests import Injected, RowId
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.ids import KeyId
from keyman.keys.schemas import KeyInfo
from keyman.planes.management import checks
from keyman.planes.management.checks import Gateway
from keyman.storage.transactions import Database


@post(
    "/keys/{key_id:str}/check",
    opt=needs(Scope.KEYS_WRITE),
    security=SECURITY,
    status_code=200,
    tags=("Keys",),
    operation_id="checkKey",
    response_description="The key with its new `check`.",
    summary="Check whether a key works",
    description="The gateway opens the value and sends the provider one request that only reads and costs nothing. The "
    "verdict changes neither `status` nor which key is used. If the key is replaced first, the verdict is not "
    "stored. A key can be checked once in 10 seconds, and the keys of an account 30 times in an hour.",
    response_headers=[ETAG],
    responses=may_answer(
        errors.NotFound,
        errors.Conflict,
        errors.Undecryptable,
        errors.RateLimited,
        errors.GatewayUnavailable,
        *CALLER_PROBLEMS,
    ),
)
async def check_key(
    key_id: FromPath[RowId],
    db: Injected[Database],
    gateway: Injected[Gateway | None],
    caller: Injected[Principal],
) -> Response[KeyInfo]:
    key = await checks.check(db, gateway, caller, KeyId(key_id))
    return Response(key, headers={"ETag": key.etag})
