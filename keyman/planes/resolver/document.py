"""The OpenAPI document of the resolver plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from litestar.di import Provide
from litestar.openapi.spec import SecurityScheme, Tag
from litestar.types import ControllerRouterHandler

from keyman.http.document import Words, describe

WORDS = Words(
    title="keyman resolver",
    description="""\
Applications get the API keys of their users here, one value per request. Only applications inside your network should
reach it.

Every error is `application/problem+json` (RFC 9457), with a `type` that leads to a text about it. Every answer has
`X-Request-ID`. Times are RFC 3339 in UTC. Unknown fields and query parameters are refused, and a body can have at most
64 KiB. A request that a browser sends for a page of another site is refused with 403, unless an application token
authenticates it.
""",
    tags=(
        Tag("Keys", "The API keys that users have stored, for applications."),
        Tag("Portal links", "Links that lead users of an application to the pages on which they manage their keys."),
        Tag("Problems", "Explanations of the errors."),
        Tag("Health", "Checks, for the platform that runs keyman."),
    ),
    security={
        "token": SecurityScheme(
            type="http",
            scheme="bearer",
            bearer_format="km_…",
            description="The token of an application, `km_` and 36 base62 characters, from `keyman app create`.",
        )
    },
    examples={
        "Readiness": {"status": "ok", "checks": {"database": "ok", "vault": "ok"}},
        "Request": {"user_id": 7, "service": "OPENAI", "purpose": "Answer to a chat"},
        "Report": {"key_id": 1, "outcome": "refused"},
        "ResolvedKey": {
            "key_id": 1,
            "user_id": 7,
            "service": "OPENAI",
            "api_key": "sk-hq2v9mXbT0c7eUKwN4Rd1234",
            "expires_at": None,
            "settings": {},
        },
        "NewLink": {"subject": "user-42", "return_url": "https://app.example.com/settings", "name": "Ada"},
        "Link": {
            "url": "https://keys.example.com/portal/qVb0eTzK2n8sLxWf5rYd3hJc7mGa1uPo9iEk4tXw6vA",
            "expires_at": "2030-01-31T00:05:00Z",
            "user_id": 7,
        },
    },
)

ONE_OF_THREE_WAYS = [
    {"required": ["key_id"], "properties": {"user_id": False, "subject": False, "issuer": False, "service": False}},
    {"required": ["user_id", "service"], "properties": {"key_id": False, "subject": False, "issuer": False}},
    {"required": ["subject", "service"], "properties": {"key_id": False, "user_id": False}},
]
"""The three ways to name a key, as `Request.check` requires."""


def openapi_document(routes: Sequence[ControllerRouterHandler], dependencies: Mapping[str, Provide]) -> bytes:
    """Return the OpenAPI 3.1 document of these routes, as JSON."""
    document = describe(routes, dependencies, WORDS)
    document.schemas["Request"]["oneOf"] = ONE_OF_THREE_WAYS
    return document.encoded()
