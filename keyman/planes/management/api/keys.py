"""`/api/keys*` and `/api/services`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from litestar import Controller, Response, delete, get, patch, post, put
from litestar.params import FromPath, HeaderParameter, QueryParameter

from keyman import errors
from keyman.config.settings import Settings
from keyman.http.body import check_media_type, read_json, takes
from keyman.http.exchange import exchange_of
from keyman.http.guards import needs
from keyman.http.openapi import (
    BODY_PROBLEMS,
    CALLER_PROBLEMS,
    ETAG,
    LINK,
    LOCATION,
    REPLAYED,
    SECURITY,
    TOTAL_COUNT,
    linked,
    may_answer,
)
from keyman.http.requests import AnyRequest, Injected, RowId, read_body
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.ids import KeyId
from keyman.keys import idempotency, listing, operations, selecting
from keyman.keys.idempotency import IdempotencyKey
from keyman.keys.operations import IfMatch
from keyman.keys.schemas import Change, KeyInfo, NewKey, Replacement, Status
from keyman.keys.sealing import Sealer
from keyman.keys.sorting import Flag, KeyCursor, Sort, SortName, StatusName, VerdictName
from keyman.providers.catalogue import Catalogue, ServiceInfo, ServiceSlug
from keyman.providers.recognition import check_new_key, check_shown
from keyman.providers.verdicts import Verdict
from keyman.storage.paging import UNSAID, Limit, Slice
from keyman.storage.transactions import Database
from keyman.values import SearchText

IfMatchHeader = Annotated[
    str | None,
    HeaderParameter(
        name="If-Match",
        description="An `ETag` of this key: keyman changes the key only if the key still has it. Without this header, "
        "the last write wins.",
    ),
]
IdempotencyKeyHeader = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        min_length=1,
        max_length=idempotency.MAX_LENGTH,
        pattern=idempotency.PATTERN,
        description=(
            "1 to 255 printable ASCII characters, preferably a random UUID. For 24 hours, the same key with the same "
            "body gives the first answer again."
        ),
    ),
]


async def replay(request: AnyRequest) -> Response[KeyInfo] | None:
    """Return the first answer again, or None if there is none.

    It runs before the body is parsed, because a field, such as an expiry, may have been valid the first time and not
    now.
    """
    headers = exchange_of(request.scope).headers
    if "idempotency-key" in headers:
        check_media_type(headers)  # the same bytes with another media type are another request
    retry = await _retry_of(request)
    first = await idempotency.find(request.app.state.db, retry, KeyInfo) if retry is not None else None
    return None if first is None else _created(first, replayed=True)


async def _retry_of(request: AnyRequest) -> IdempotencyKey | None:
    header = exchange_of(request.scope).headers.get("idempotency-key")
    if header is None:
        return None
    caller: Principal = request.user
    return IdempotencyKey.parse(header, caller.user_id, await read_body(request))


def _created(key: KeyInfo, *, replayed: bool) -> Response[KeyInfo]:
    headers = {"Location": f"/api/keys/{key.id}", "ETag": key.etag}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    return Response(key, status_code=201, headers=headers)


class KeyController(Controller):
    path = "/keys"
    tags = ("Keys",)

    @post(
        opt=needs(Scope.KEYS_WRITE) | takes(NewKey),
        security=SECURITY,
        before_request=replay,
        status_code=201,
        operation_id="createKey",
        response_description="The key as it is stored.",
        summary="Store a key",
        description="Seals the value in Vault. It is never shown again, here or anywhere else in this API.",
        response_headers=[ETAG, LOCATION, REPLAYED],
        responses=may_answer(
            errors.Conflict,
            errors.IdempotencyMismatch,
            errors.RateLimited,
            errors.VaultUnavailable,
            *CALLER_PROBLEMS,
            *BODY_PROBLEMS,
        ),
    )
    async def create(
        self,
        request: AnyRequest,
        db: Injected[Database],
        sealer: Injected[Sealer],
        catalogue: Injected[Catalogue],
        caller: Injected[Principal],
        settings: Injected[Settings],
        idempotency_key: IdempotencyKeyHeader = None,
    ) -> Response[KeyInfo]:
        # The transaction that stores the key checks the caller. Only `replay` reads before it, and checks, too.
        new = await read_json(request, NewKey, check_new_key(catalogue), confirm=False)
        retry, most = await _retry_of(request), settings.max_keys
        key, replayed = await operations.create(db, sealer, caller, new, retry, max_keys=most)
        return _created(key, replayed=replayed)

    @get(
        opt=needs(Scope.KEYS_READ),
        security=SECURITY,
        operation_id="listKeys",
        response_description="A page of keys.",
        summary="List the keys",
        description="The caller's own keys, newest first or as `sort` says. Works while Vault is sealed or down. The "
        "`Link` to the next page keeps all parameters; its cursor is valid only with the same `sort` and filters.",
        response_headers=[LINK, TOTAL_COUNT],
        responses=may_answer(*CALLER_PROBLEMS),
    )
    async def list_own(
        self,
        db: Injected[Database],
        catalogue: Injected[Catalogue],
        caller: Injected[Principal],
        service: Annotated[ServiceSlug | None, QueryParameter(description="Only keys of this service.")] = None,
        status: Annotated[StatusName | None, QueryParameter(description="Only keys that have this status now.")] = None,
        check: Annotated[
            VerdictName | None, QueryParameter(description="Only keys whose last `check` has this verdict.")
        ] = None,
        q: Annotated[
            SearchText | None,
            QueryParameter(
                description="Only keys with this text in their label, in the name of their service or in their last "
                "four characters, whatever the case."
            ),
        ] = None,
        sort: Annotated[
            SortName | None,
            QueryParameter(
                description="The order, with `-` in front for a descending one. Keys without a label or a use come "
                "first in an ascending one. Without it, the newest come first."
            ),
        ] = None,
        count: Annotated[
            Flag | None, QueryParameter(description="`true` adds the header `Keyman-Total-Count`, for all pages.")
        ] = None,
        limit: Annotated[Limit, QueryParameter(description="The maximum number of keys on a page.")] = UNSAID,
        cursor: Annotated[
            KeyCursor | None, QueryParameter(description="Copy it from the `Link` header of the previous page.")
        ] = None,
    ) -> Response[list[KeyInfo]]:
        named = selecting.services_named(catalogue, q or "")
        in_status = None if status is None else Status(status)
        verdict = None if check is None else Verdict(check)
        order = Sort.NEWEST if sort is None else Sort(sort)
        page = await listing.list_own(
            db, caller, Slice(limit, cursor), service, q, named=named, status=in_status, verdict=verdict, sort=order
        )
        asked = {"service": service, "status": status, "check": check, "q": q, "sort": sort, "count": count}
        answer = linked(page, "/api/keys", {**asked, "limit": limit})
        if count == "true":
            total = await listing.count_own(db, caller, service, q, named=named, status=in_status, verdict=verdict)
            answer.headers["Keyman-Total-Count"] = str(total)
        return answer

    @get(
        "/{key_id:str}",
        opt=needs(Scope.KEYS_READ),
        security=SECURITY,
        operation_id="getKey",
        response_description="The key.",
        summary="Show a key",
        description="The metadata and the mask of a key. Works while Vault is sealed or down.",
        response_headers=[ETAG],
        responses=may_answer(errors.NotFound, *CALLER_PROBLEMS),
    )
    async def get(
        self, key_id: FromPath[RowId], db: Injected[Database], caller: Injected[Principal]
    ) -> Response[KeyInfo]:
        return _with_etag(await operations.get(db, caller, KeyId(key_id)))

    @put(
        "/{key_id:str}",
        opt=needs(Scope.KEYS_WRITE) | takes(Replacement),
        security=SECURITY,
        operation_id="replaceKey",
        response_description="The key with its new mask.",
        summary="Replace a key's value",
        description="The service does not change. An omitted field keeps its value, but an expiry that has passed is "
        "cleared. `null` clears a name or an expiry. `settings` replace the stored ones as a whole.",
        response_headers=[ETAG],
        responses=may_answer(
            errors.NotFound,
            errors.Conflict,
            errors.PreconditionFailed,
            errors.RateLimited,
            errors.VaultUnavailable,
            *CALLER_PROBLEMS,
            *BODY_PROBLEMS,
        ),
    )
    async def replace(
        self,
        key_id: FromPath[RowId],
        request: AnyRequest,
        db: Injected[Database],
        sealer: Injected[Sealer],
        catalogue: Injected[Catalogue],
        caller: Injected[Principal],
        if_match: IfMatchHeader = None,
    ) -> Response[KeyInfo]:
        replacement = await read_json(request, Replacement, partial(check_shown, catalogue))
        return _with_etag(
            await operations.replace(db, sealer, catalogue, caller, KeyId(key_id), replacement, IfMatch.parse(if_match))
        )

    @patch(
        "/{key_id:str}",
        opt=needs(Scope.KEYS_WRITE) | takes(Change),
        security=SECURITY,
        operation_id="changeKey",
        response_description="The key as it is now.",
        summary="Rename, pause or limit a key, choose it, or change its settings",
        description="Changes the metadata. `null` clears a name or an expiry. `settings` replace the stored ones as a "
        "whole; a member that decides where the key is sent can be changed only together with the key. `default` "
        "chooses the key that applications get for this service as long as it is active, in place of the one before. "
        "Does not need Vault.",
        response_headers=[ETAG],
        responses=may_answer(
            errors.NotFound,
            errors.Conflict,
            errors.PreconditionFailed,
            errors.RateLimited,
            *CALLER_PROBLEMS,
            *BODY_PROBLEMS,
        ),
    )
    async def change(
        self,
        key_id: FromPath[RowId],
        request: AnyRequest,
        db: Injected[Database],
        catalogue: Injected[Catalogue],
        caller: Injected[Principal],
        if_match: IfMatchHeader = None,
    ) -> Response[KeyInfo]:
        change = await read_json(request, Change, partial(check_shown, catalogue))
        return _with_etag(
            await operations.change(db, catalogue, caller, KeyId(key_id), change, IfMatch.parse(if_match))
        )

    @delete(
        "/{key_id:str}",
        opt=needs(Scope.KEYS_WRITE),
        security=SECURITY,
        status_code=204,
        operation_id="deleteKey",
        response_description="The key is deleted.",
        summary="Delete a key",
        description="Deletes the row and its ciphertext. Does not need Vault.",
        responses=may_answer(errors.NotFound, errors.PreconditionFailed, errors.RateLimited, *CALLER_PROBLEMS),
    )
    async def remove(
        self,
        key_id: FromPath[RowId],
        db: Injected[Database],
        caller: Injected[Principal],
        if_match: IfMatchHeader = None,
    ) -> None:
        await operations.remove(db, caller, KeyId(key_id), IfMatch.parse(if_match))


@get(
    "/services",
    opt=needs(Scope.KEYS_READ),
    security=SECURITY,
    tags=("Keys",),
    operation_id="listServices",
    response_description="The catalogue.",
    summary="List the services",
    description="The catalogue: the values that `service` can have, with the name to show for each, the page where its "
    "users find their keys, and the JSON Schema of `settings`. `gateway` is how programs use it at the gateway.",
    responses=may_answer(*CALLER_PROBLEMS),
)
async def list_services(catalogue: Injected[Catalogue], settings: Injected[Settings]) -> list[ServiceInfo]:
    return catalogue.infos(settings.gateway_public_url)


def _with_etag(key: KeyInfo) -> Response[KeyInfo]:
    return Response(key, headers={"ETag": key.etag})
