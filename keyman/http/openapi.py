"""Shared by the JSON routes: pages of a listing, the check of a query, and the answers in the OpenAPI document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import urlencode

from litestar import Response
from litestar.datastructures import ResponseHeader
from litestar.handlers import BaseRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import QueryParameter

from keyman import errors
from keyman.errors import FieldError, Internal, InvalidRequest, Problem
from keyman.http import problems
from keyman.http.problems import KINDS, ProblemBody
from keyman.http.requests import AnyConnection
from keyman.storage.paging import Page

T = TypeVar("T")

BODY_PROBLEMS = (errors.InvalidRequest, errors.PayloadTooLarge, errors.UnsupportedMediaType)
"""The problems that a request with a body can get."""

SECURITY: list[dict[str, list[str]]] = [{"token": []}, {"session": []}]
"""The security of a route that needs a caller, for the OpenAPI document: a token or a session."""

CALLER_PROBLEMS = (errors.InvalidRequest, errors.Unauthenticated, errors.Forbidden)
"""The problems that a request that needs a caller can get. InvalidRequest is for its query."""


def linked(page: Page[T], path: str, query: Mapping[str, object]) -> Response[list[T]]:
    """Return a page of a listing, with a relative (RFC 3986) `Link` to the next page if there is one (RFC 8288)."""
    headers = {}
    if page.cursor is not None:
        asked = {name: str(value) for name, value in query.items() if value is not None}
        headers["Link"] = f'<{path}?{urlencode({**asked, "cursor": str(page.cursor)})}>; rel="next"'
    return Response(page.items, headers=headers)


async def check_query(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Raise InvalidRequest for a query with a parameter that the route does not have, or with one twice. It is a guard.

    If keyman ignored a misspelt filter, the answer would look as if everything matched the filter.
    """
    if not connection.scope["query_string"]:
        return
    parameters = handler.parsed_fn_signature.parameters
    known = [name for name, field in parameters.items() if isinstance(field.kwarg_definition, QueryParameter)]
    sent = Counter(name for name, _ in connection.query_params.multi_items())
    faults = [FieldError(name, "is given more than once") for name in known if sent[name] > 1]
    if sent.keys() - set(known):
        # Their names are not repeated, like those of unknown fields.
        takes = f"the known ones are {', '.join(known)}" if known else "this address has no parameters"
        faults.append(FieldError("", f"The query contains an unknown parameter; {takes}."))
    if faults:
        raise InvalidRequest.at(*faults)


_REQUEST_ID = "9f3c1d0e5b7a4c2f8e6d0b1a2c3d4e5f"


_FAULT = FieldError("api_key", "must be 8 to 8,192 characters long")


def may_answer(*kinds: type[Problem], fault: FieldError = _FAULT) -> dict[int, ResponseSpec]:
    """Return the problems of an operation for the OpenAPI document, with those that every operation can return.

    `fault` is the example of an invalid field.
    """
    by_status: dict[int, list[type[Problem]]] = {}
    # Two Authorization headers are a bad request everywhere.
    everywhere: tuple[type[Problem], ...] = (
        errors.InvalidRequest,
        errors.HeadersTooLarge,
        errors.DatabaseUnavailable,
        errors.Overloaded,
        Internal,
    )
    for kind in dict.fromkeys((*kinds, *everywhere)):
        by_status.setdefault(KINDS[kind.slug].status, []).append(kind)
    return {status: _documented(status, kinds, fault) for status, kinds in sorted(by_status.items())}


def _documented(status: int, kinds: list[type[Problem]], fault: FieldError) -> ResponseSpec:
    return ResponseSpec(
        data_container=ProblemBody,
        media_type=problems.MEDIA_TYPE,
        description="; ".join(f"`{kind.slug}`: {kind.title}" for kind in kinds),
        generate_examples=False,
        examples=[
            Example(
                id=kind.slug,
                summary=kind.title,
                value={
                    "type": f"/problems/{kind.slug}",
                    "title": kind.title,
                    "status": status,
                    "detail": "One field is invalid." if kind is InvalidRequest else kind.title + ".",
                    "request_id": _REQUEST_ID,
                    **({"errors": [fault._asdict()]} if kind is InvalidRequest else {}),
                },
            )
            for kind in kinds
        ],
    )


ETAG = ResponseHeader(
    name="ETag",
    description="Changes when something changes that the owner can change. Send it back as If-Match.",
    documentation_only=True,
)
LOCATION = ResponseHeader(name="Location", description="Where the new resource is.", documentation_only=True)
LINK = ResponseHeader(
    name="Link",
    description='`<…>; rel="next"` if there is a next page (RFC 8288).',
    documentation_only=True,
)
TOTAL_COUNT = ResponseHeader(
    name="Keyman-Total-Count",
    description="With `count=true`: the number of keys on all pages.",
    documentation_only=True,
)
REPLAYED = ResponseHeader(
    name="Idempotent-Replayed",
    description="`true` if this answer repeats the first answer to this Idempotency-Key.",
    documentation_only=True,
)
SET_COOKIE = ResponseHeader(name="Set-Cookie", description="The session cookie.", documentation_only=True)
