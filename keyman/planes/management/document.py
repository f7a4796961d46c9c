"""The OpenAPI document of the management plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from litestar.di import Provide
from litestar.openapi.spec import SecurityScheme, Tag
from litestar.types import ControllerRouterHandler

from keyman.config.settings import Settings
from keyman.http.document import Words, describe

DESCRIPTION = """\
Users store their API keys for LLM services here. Vault seals each value when it arrives. No answer of this API contains
a value.

Every error is `application/problem+json` (RFC 9457), with a `type` that leads to a page about it. Every answer has
`X-Request-ID`. Times are RFC 3339 in UTC. Unknown fields and query parameters are refused, and a body can have at most
64 KiB, or 1 MiB with several keys. An unsafe request that a browser sends for a page of another site is refused with
403, unless an access token authenticates it.
"""

TAGS = (
    Tag("Keys", "The API keys of users: sealed values, shown by their masks."),
    Tag("Applications", "Those that may use the keys of a user, who can block each of them."),
    Tag("Access tokens", "For scripts: `Authorization: Bearer km_…`, with scopes and an expiry."),
    Tag("Account", "Sign-up, sign-in, passwords. A session may do everything that its user may."),
    Tag("Audit log", "The changes to an account and the uses of its keys, with time, caller and address."),
    Tag("Health", "Checks, for the platform that runs keyman."),
)


_KEY = {
    "id": 1,
    "service": "OPENAI",
    "name": "Production chat",
    "last_4_chars": "sk-...1234",
    "status": "active",
    "created_at": "2023-10-27T10:00:00Z",
    "updated_at": "2023-10-27T10:00:00Z",
    "expires_at": None,
    "last_used_at": None,
    "last_used_by": None,
    "settings": {},
    "check": None,
    "default": False,
}
_TOKEN = {
    "id": 3,
    "name": "CI pipeline",
    "scopes": ["keys:read", "keys:write"],
    "hint": "km_...sC8C",
    "created_at": "2023-10-27T10:00:00Z",
    "expires_at": "2030-01-31T00:00:00Z",
    "last_used_at": None,
}
_GATEWAY_USE = {
    "url": "https://gateway.example.com/openai/v1",
    "url_variable": "OPENAI_BASE_URL",
    "token_variable": "OPENAI_API_KEY",
}
EXAMPLES: Mapping[str, object] = {
    "Account": {"id": 7, "email": "ada@example.com", "created_at": "2023-10-27T10:00:00Z"},
    "AuditEntry": {
        "id": 12,
        "at": "2023-10-27T10:00:00Z",
        "action": "key.create",
        "actor": "token",
        "actor_token_id": 3,
        "token_id": None,
        "key_id": 1,
        "service": "OPENAI",
        "request_id": "9f3c1d0e5b7a4c2f8e6d0b1a2c3d4e5f",
        "address": "203.0.113.7",
        "application": None,
        "purpose": None,
        "reason": None,
        "detail": None,
    },
    "BatchEntry": {"status": 201, "key": _KEY},
    "Change": {"name": "Staging chat", "disabled": True},
    "ChangePassword": {
        "current_password": "correct horse battery staple",
        "new_password": "the stable has another battery",
    },
    "CreatedToken": {**_TOKEN, "token": "km_0000000000000000000000000000002C8GjS"},
    "DeleteAccount": {"current_password": "correct horse battery staple"},
    "KeyCheck": {
        "verdict": "accepted",
        "checked_at": "2023-10-27T10:00:00Z",
        "detail": "The provider accepts this key.",
        "by": "keyman",
    },
    "KeyInfo": _KEY,
    "NewKey": {"service": "OPENAI", "api_key": "sk-hq2v9mXbT0c7eUKwN4Rd1234", "name": "Production chat"},
    "NewKeys": {
        "keys": [
            {"service": "OPENAI", "api_key": "sk-hq2v9mXbT0c7eUKwN4Rd1234", "name": "Production chat"},
            {"service": "MISTRAL", "api_key": "x7Pq2LmWn9Rt4Ks8"},
        ]
    },
    "NewToken": {"name": "CI pipeline", "scopes": ["keys:read"], "expires_at": "2030-01-31T00:00:00Z"},
    "PermittedApplication": {
        "id": 3,
        "name": "chat-backend",
        "services": ["OPENAI"],
        "last_used_at": "2023-10-27T10:00:00Z",
        "blocked": False,
    },
    "GatewayUse": _GATEWAY_USE,
    "Readiness": {"status": "ok", "checks": {"database": "ok", "vault": "ok"}},
    "Replacement": {"api_key": "sk-Zt81LqoPw5aYc3hVn6Xe9876"},
    "ServiceInfo": {
        "service": "AWS_BEDROCK",
        "name": "Amazon Bedrock",
        "console_url": "https://console.aws.amazon.com/bedrock/home#/api-keys",
        "settings": {
            "type": "object",
            "properties": {"region": {"type": "string", "title": "Region", "maxLength": 32}},
            "additionalProperties": False,
        },
        "forwarded": True,
        "checked": True,
        "prefixes": ["ABSK", "bedrock-api-key-"],
        "exclusive_prefixes": ["ABSKQmVkcm9ja0FQ", "bedrock-api-key-"],
        "gateway": _GATEWAY_USE,
    },
    "TokenInfo": _TOKEN,
}
"""An example of each shape, as JSON."""


WORDS = Words(
    title="keyman",
    description=DESCRIPTION,
    tags=TAGS,
    security={
        "token": SecurityScheme(
            type="http",
            scheme="bearer",
            bearer_format="km_…",
            description="A personal access token, `km_` and 36 base62 characters, or a JSON Web Token of the issuer "
            "that the operator has set.",
        ),
        "session": SecurityScheme(
            type="apiKey",
            security_scheme_in="cookie",
            name=Settings.cookie_name,
            description="The session cookie. Sign-up and sign-in set it. A page of another origin cannot use it.",
        ),
    },
    examples=EXAMPLES,
)


def openapi_document(
    routes: Sequence[ControllerRouterHandler],
    dependencies: Mapping[str, Provide],
    services: Sequence[str],
    session_cookie: str,
    root_path: str,
) -> bytes:
    """Return the OpenAPI 3.1 document of these routes, this catalogue and this session cookie, as JSON."""
    document = describe(routes, dependencies, WORDS)
    document.json["components"]["securitySchemes"]["session"]["name"] = session_cookie
    document.json["servers"] = [{"url": root_path or "/"}]
    document.schemas["NewKey"]["properties"]["service"]["enum"] = list(services)
    # Their entries are decoded one by one.
    document.schemas["NewKeys"]["properties"]["keys"]["items"] = {"$ref": "#/components/schemas/NewKey"}
    # The defaults of these fields are for answers that were kept before there were any.
    document.schemas["KeyInfo"]["required"] += ["settings", "check", "default"]
    return document.encoded()
