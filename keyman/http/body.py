"""Bodies: JSON, decoded by `keyman.values`, every fault reported at once; and their place in the OpenAPI document."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from litestar.openapi.spec import Schema
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition

from keyman import values
from keyman.errors import FieldError, InvalidRequest, UnsupportedMediaType
from keyman.http.requests import AnyRequest
from keyman.values import Check

S = TypeVar("S", bound=msgspec.Struct)

MAX_BYTES = 64 * 1024
"""Of a body, as docs/reference/api.md says: a hundred times the longest key."""

TAKES = "keyman_takes"
"""Where a route's `opt` keeps the model of its body."""


def takes(model: type[msgspec.Struct]) -> dict[str, object]:
    """For a route's `opt`: the body that its handler reads, so that the OpenAPI document can describe it."""
    return {TAKES: model}


async def read_json(request: AnyRequest, model: type[S], check: Check | None = None) -> S:
    """The body of a request. `check` looks at what goes beyond the fields themselves.

    Litestar would decode it for a handler that takes `data`, but it stops at the first fault and repeats values in its
    messages. Nothing is read before a handler calls this, so that the guards are through by then; the application's
    `request_max_body_size` bounds what is read.

    Raises InvalidRequest with everything that is at fault, UnsupportedMediaType, and Litestar's
    RequestEntityTooLarge, which becomes PayloadTooLarge.
    """
    body = await request.body()
    if not body:
        raise InvalidRequest.at(FieldError("", "A JSON body is required."))
    check_media_type(request.headers)
    try:
        raw = msgspec.json.decode(body)
    except RecursionError:
        raise InvalidRequest.at(FieldError("", "The body is nested too deeply.")) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        # msgspec's own message says where, and may quote what is there.
        faults = _half_characters(model, body) or [FieldError("", "The body is not well-formed JSON in UTF-8.")]
        raise InvalidRequest.at(*faults) from None
    return values.decode(model, raw, check)


def check_media_type(headers: Mapping[str, str]) -> None:
    """Raises UnsupportedMediaType for a body that is said to be anything but JSON in UTF-8 as it is. A parameter other
    than the charset means nothing for JSON (RFC 8259, 11).
    """
    media_type, *parameters = (part.strip() for part in headers.get("content-type", "").lower().split(";"))
    charsets = {part.removeprefix("charset=").strip('"') for part in parameters if part.startswith("charset=")}
    if media_type != "application/json" or not charsets <= {"", "utf-8", "utf8"}:
        raise UnsupportedMediaType("The body's Content-Type must be application/json.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("A compressed body is not accepted.")


def _half_characters(model: type[msgspec.Struct], body: bytes) -> list[FieldError]:
    """The fields for whose lone surrogates msgspec refuses a body as a whole; Python's own decoder takes them."""
    names = [field.encode_name for field in msgspec.structs.fields(model)]
    try:
        raw = json.loads(body.decode())
        return [FieldError(name, values.HALF_CHARACTERS) for name in names if name in raw and _is_half(raw[name])]
    except (ValueError, TypeError, RecursionError):
        return []


def _is_half(value: object) -> bool:
    return re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)) is not None


class ValueSchemas(OpenAPISchemaPlugin):
    """Shows the types of `keyman.values` in the OpenAPI document as the JSON that they are parsed from."""

    @staticmethod
    def is_plugin_supported_type(value: object) -> bool:
        return isinstance(value, type) and hasattr(value, "parse") and isinstance(getattr(value, "schema", None), dict)

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: object) -> Schema:
        names = {"writeOnly": "write_only", "minLength": "min_length", "maxLength": "max_length"}
        schema = field_definition.annotation.schema
        return Schema(**{names.get(name, name): value for name, value in schema.items()})
