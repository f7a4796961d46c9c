"""`POST /api/keys/batch`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import msgspec
from litestar import Response, post
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from keyman import errors
from keyman.config.settings import Settings
from keyman.decoding import Check, decode
from keyman.errors import FieldError, InvalidRequest, PayloadTooLarge, Problem, raise_alone
from keyman.http.body import check_media_type, read_json, takes
from keyman.http.exchange import exchange_of
from keyman.http.guards import needs
from keyman.http.limit import count_writes
from keyman.http.openapi import BODY_PROBLEMS, CALLER_PROBLEMS, REPLAYED, SECURITY, may_answer
from keyman.http.problems import ProblemBody, describe
from keyman.http.requests import AnyRequest, Injected, read_body
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.keys import batches, idempotency
from keyman.keys.batches import Outcome
from keyman.keys.idempotency import IdempotencyKey
from keyman.keys.schemas import KeyInfo, NewKey, NewKeys
from keyman.keys.sealing import Sealer
from keyman.planes.management.api.keys import IdempotencyKeyHeader
from keyman.providers.catalogue import Catalogue
from keyman.providers.recognition import check_new_key, texts_of
from keyman.storage.transactions import Database

MAX_BYTES = 1024 * 1024
"""The maximum size of a body, as documented in docs/reference/api.md: 50 JSON credentials of 16 KiB, and their rest."""

_CREATED = 201


class BatchEntry(msgspec.Struct, omit_defaults=True):
    """What came of one entry: the stored key, or the problem that a request for this entry would have got.

    `status` is the one that this request would have had.
    """

    status: int
    key: KeyInfo | None = None
    problem: ProblemBody | None = None


async def replay(request: AnyRequest) -> Response[list[BatchEntry]] | None:
    """Return the first answer again, or None if there is none, before the body is parsed."""
    headers = exchange_of(request.scope).headers
    if "idempotency-key" in headers:
        check_media_type(headers)  # the same bytes with another media type are another request
    retry = await _retry_of(request)
    return None if retry is None else await _first(request.app.state.db, retry)


async def _first(db: Database, retry: IdempotencyKey) -> Response[list[BatchEntry]] | None:
    first = await idempotency.find(db, retry, list[BatchEntry])
    return None if first is None else Response(first, headers={"Idempotent-Replayed": "true"})


async def _retry_of(request: AnyRequest) -> IdempotencyKey | None:
    header = exchange_of(request.scope).headers.get("idempotency-key")
    if header is None:
        return None
    caller: Principal = request.user
    # With the name of the route, because the same bytes are another request there.
    return IdempotencyKey.parse(header, caller.user_id, b"batch\0" + await _read(request))


async def _read(request: AnyRequest, *, confirm: bool = True) -> bytes:
    """Return the body, as `read_body` does. Raises PayloadTooLarge."""
    try:
        return await read_body(request, confirm=confirm)
    except RequestEntityTooLarge:
        raise_alone(PayloadTooLarge("The body is larger than 1 MiB."))


@post(
    "/keys/batch",
    opt=needs(Scope.KEYS_WRITE) | takes(NewKeys),
    security=SECURITY,
    tags=("Keys",),
    before_request=replay,
    request_max_body_size=MAX_BYTES,
    status_code=200,
    operation_id="createKeys",
    response_description="What came of each entry, in order: its key, or its problem.",
    summary="Store several keys",
    description="Stores 1 to 50 keys; the body can have 1 MiB. Each entry gets the status that a request for it would "
    "have got. What is wrong with one of them does not stop the others. If Vault cannot seal all of them, nothing is "
    "stored. The `Idempotency-Key` covers the whole request, entries that were refused included. Each entry counts as "
    "one write.",
    response_headers=[REPLAYED],
    responses=may_answer(
        errors.Conflict,
        errors.IdempotencyMismatch,
        errors.RateLimited,
        errors.VaultUnavailable,
        *CALLER_PROBLEMS,
        *BODY_PROBLEMS,
        fault=FieldError("keys", "must have at least one entry"),
    ),
)
async def create_keys(
    request: AnyRequest,
    db: Injected[Database],
    sealer: Injected[Sealer],
    catalogue: Injected[Catalogue],
    caller: Injected[Principal],
    settings: Injected[Settings],
    idempotency_key: IdempotencyKeyHeader = None,
) -> Response[list[BatchEntry]]:
    # As for a single key, the transaction checks the caller.
    await _read(request, confirm=False)
    sent = (await read_json(request, NewKeys, confirm=False)).keys
    check = check_new_key(catalogue, texts_of(_values_of(sent)))
    refused = count_writes(request, len(sent))
    entries = [refusal or _decoded(raw, check) for raw, refusal in zip(sent, refused, strict=True)]
    retry = await _retry_of(request)
    answer = partial(_answer, exchange_of(request.scope).request_id)
    found = await batches.create(db, sealer, caller, entries, answer, retry, max_keys=settings.max_keys)
    if found is not None:
        return Response(found)
    assert retry is not None
    first = await _first(db, retry)
    assert first is not None, "the same request was carried out a moment ago"
    return first


def _values_of(sent: Sequence[object]) -> Iterator[str]:
    """Yield the values of all entries, also of those that are refused: no label has one of them."""
    for raw in sent:
        if isinstance(raw, dict) and isinstance(value := raw.get("api_key"), str):
            yield value


def _decoded(raw: object, check: Check) -> NewKey | Problem:
    if not isinstance(raw, dict):
        return InvalidRequest.at(FieldError("", "An entry must be a JSON object."))
    try:
        return decode(NewKey, raw, check, "entry")
    except InvalidRequest as refusal:
        return refusal


def _answer(request_id: str, outcomes: Sequence[Outcome]) -> list[BatchEntry]:
    return [_entry(outcome, request_id) for outcome in outcomes]


def _entry(outcome: Outcome, request_id: str) -> BatchEntry:
    if isinstance(outcome, KeyInfo):
        return BatchEntry(_CREATED, key=outcome)
    problem = describe(outcome, request_id)
    problem.retry_after = outcome.retry_after
    return BatchEntry(problem.status, problem=problem)
