"""The OpenAPI document of the gateway plane: its own routes, and each path that it forwards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from litestar.di import Provide
from litestar.openapi.spec import SecurityScheme, Tag
from litestar.types import ControllerRouterHandler

from keyman import errors
from keyman.errors import Problem
from keyman.http.document import Document, Words, describe
from keyman.http.problems import KINDS, MEDIA_TYPE
from keyman.planes.gateway.services import Forwarded, forwarded
from keyman.providers.catalogue import Catalogue

WORDS = Words(
    title="keyman gateway",
    description="""\
Applications and users send requests to providers through the gateway, with API keys that only the provider sees. The
gateway puts the key into the request. The path, the query and the bodies are the provider's own, and this document
does not describe them: see the documentation of the provider.

An error of the gateway is `application/problem+json` (RFC 9457) with the header `Keyman-Error`. An answer without this
header is the provider's.
""",
    tags=(
        Tag("Providers", "The requests that the gateway forwards, by the first segment of the path."),
        Tag("Live checks", "For the management plane only: does a key work?"),
        Tag("Problems", "Explanations of the errors."),
        Tag("Health", "Checks, for the platform that runs keyman."),
    ),
    security={
        "token": SecurityScheme(
            type="http",
            scheme="bearer",
            bearer_format="km_…",
            description="The token or JWT of an application, or a personal access token or JWT of a user with the "
            "scope `keys:use`. It can also be in `x-api-key`, `x-goog-api-key` or `api-key`, where the SDK of the "
            "provider puts its key.",
        )
    },
    examples={
        "Readiness": {"status": "ok", "checks": {"database": "ok", "vault": "ok"}},
        "Wanted": {"key_id": 1},
        "Checked": {
            "verdict": "accepted",
            "checked_at": "2023-10-27T10:00:00Z",
            "detail": "The provider accepts this key.",
        },
    },
)

_ERROR: Mapping[str, Any] = {
    "type": "object",
    "description": "The same once more, as the SDKs of OpenAI and Anthropic read it.",
    "properties": {name: {"type": "string"} for name in ("message", "type", "code")},
    "required": ["message", "type", "code"],
}

_HEADERS = {
    "Keyman-User": ("An application's request: the id of the user whose key is used.", {"type": "integer"}),
    "Keyman-Subject": ("The same by the application's own name for the user.", {"type": "string"}),
    "Keyman-Issuer": ("With `Keyman-Subject`: another issuer than the default one.", {"type": "string"}),
    "Keyman-Key": ("The id of the key, instead of or beside the user.", {"type": "integer"}),
    "Keyman-Purpose": ("Goes to the audit log.", {"type": "string", "maxLength": 200}),
}

_PROBLEMS: tuple[type[Problem], ...] = (
    errors.InvalidRequest,
    errors.Unauthenticated,
    errors.Forbidden,
    errors.PathNotAllowed,
    errors.NotFound,
    errors.Conflict,
    errors.Undecryptable,
    errors.PayloadTooLarge,
    errors.RateLimited,
    errors.HeadersTooLarge,
    errors.Internal,
    errors.ProviderUnreachable,
    errors.ProviderAnswerRefused,
    errors.ProviderRedirected,
    errors.VaultUnavailable,
    errors.DatabaseUnavailable,
    errors.IssuerUnavailable,
    errors.Overloaded,
    errors.ProviderTimeout,
)
"""The problems that a forwarded request can get from the gateway itself."""


def openapi_document(
    routes: Sequence[ControllerRouterHandler], dependencies: Mapping[str, Provide], catalogue: Catalogue
) -> bytes:
    """Return the OpenAPI 3.1 document of these routes and of what the gateway forwards, as JSON."""
    document = describe(routes, dependencies, WORDS)
    document.schemas["ProblemBody"]["properties"]["error"] = _ERROR
    _add_forwarded(document, catalogue)
    return document.encoded()


def _add_forwarded(document: Document, catalogue: Catalogue) -> None:
    responses = _responses()
    document.json["components"] |= {"parameters": _parameters(), "responses": responses}
    for slug, found in forwarded(catalogue).items():
        for entry in found.upstream.paths:
            method, _, path = entry.partition(" ")
            operation = _operation(slug, found, method, path, responses)
            document.json["paths"].setdefault(f"/{slug}{path}", {})[method.lower()] = operation


def _operation(
    slug: str, found: Forwarded, method: str, path: str, responses: Mapping[str, object]
) -> Mapping[str, object]:
    of_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{([a-z_]+)\}", path)
    ]
    body = {"description": "What the provider takes.", "content": {"*/*": {"schema": {}}}}
    return {
        "tags": ["Providers"],
        "operationId": re.sub("[^A-Za-z0-9]+", "-", f"{slug} {method} {path}").strip("-"),
        "summary": f"{found.service.name}: {method} {path}",
        "description": f"Is forwarded to {found.service.name} with a stored key.",
        "security": [{"token": []}],
        "parameters": [*of_path, *({"$ref": f"#/components/parameters/{name}"} for name in _HEADERS)],
        **({} if method in ("GET", "DELETE") else {"requestBody": body}),
        "responses": {name: {"$ref": f"#/components/responses/{name}"} for name in responses},
    }


def _parameters() -> Mapping[str, object]:
    return {
        name: {"name": name, "in": "header", "description": description, "schema": schema}
        for name, (description, schema) in _HEADERS.items()
    }


def _responses() -> Mapping[str, object]:
    """Return the answers to a forwarded request, by status."""
    answer = {
        "description": "The provider's answer, which can have any status.",
        "headers": {
            "Keyman-Key-ID": {"description": "The id of the key that was used.", "schema": {"type": "integer"}},
            "Keyman-Request-ID": {"description": "The id of the request at keyman.", "schema": {"type": "string"}},
        },
        "content": {"*/*": {"schema": {}}},
    }
    return {"200": answer, **dict(_problems())}


def _problems() -> Iterator[tuple[str, object]]:
    by_status: dict[int, list[type[Problem]]] = {}
    for kind in _PROBLEMS:
        by_status.setdefault(KINDS[kind.slug].status, []).append(kind)
    for status, kinds in by_status.items():
        yield (
            str(status),
            {
                "description": "; ".join(f"`{kind.slug}`: {kind.title}" for kind in kinds),
                "headers": {
                    "Keyman-Error": {"description": "The type of the error.", "schema": {"type": "string"}},
                },
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}},
            },
        )
