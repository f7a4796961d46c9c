"""Reads JSON bodies, which `keyman.values` decodes, and describes them in the OpenAPI document.

All faults of a body are reported at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from litestar.openapi.spec import Schema
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition

from keyman.decoding import Check, decode
from keyman.errors import FieldError, InvalidRequest, UnsupportedMediaType
from keyman.http.exchange import exchange_of
from keyman.http.requests import AnyRequest, read_body
from keyman.values import HALF_CHARACTERS

S = TypeVar("S", bound=msgspec.Struct)

MAX_BYTES = 64 * 1024
"""The maximum size of a body, as documented in docs/reference/api.md: a hundred times the longest key."""

TAKES = "keyman_takes"
"""The key for the model of the body in a route's `opt`."""


def takes(model: type[msgspec.Struct]) -> dict[str, object]:
    """Return the `opt` of a route whose handler reads this body, so that the OpenAPI document can describe it."""
    return {TAKES: model}


async def read_json(request: AnyRequest, model: type[S], check: Check | None = None, *, confirm: bool = True) -> S:
    """Return the decoded body of a request. `check` can check more than the single fields.

    Litestar would decode the body for a handler with a parameter `data`, but it stops at the first fault and repeats
    values in its messages. The body is not read before a handler calls this, so the guards have run by then. The limit
    `request_max_body_size` of the Litestar application applies.

    The caller is checked again, unless `confirm` is False; see `read_body`. Raises Unauthenticated, InvalidRequest with
    all faults, UnsupportedMediaType, and Litestar's RequestEntityTooLarge, which becomes
    PayloadTooLarge.
    """
    body = await read_body(request, confirm=confirm)
    if not body:
        raise InvalidRequest.at(FieldError("", "A JSON body is required."))
    check_media_type(exchange_of(request.scope).headers)
    try:
        raw = msgspec.json.decode(body)
    except RecursionError:
        raise InvalidRequest.at(FieldError("", "The body is nested too deeply.")) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        # The message of msgspec is not repeated, because it may quote the body.
        faults = _half_characters(model, body) or [FieldError("", "The body is not well-formed JSON in UTF-8.")]
        raise InvalidRequest.at(*faults) from None
    return decode(model, raw, check)


def check_media_type(headers: Mapping[str, str]) -> None:
    """Raise UnsupportedMediaType if the headers declare anything else than uncompressed JSON in UTF-8.

    Parameters other than the charset are ignored, because they have no meaning for JSON (RFC 8259, 11).
    """
    media_type, *parameters = (part.strip() for part in headers.get("content-type", "").lower().split(";"))
    charsets = {part.removeprefix("charset=").strip('"') for part in parameters if part.startswith("charset=")}
    if media_type != "application/json" or not charsets <= {"", "utf-8", "utf8"}:
        raise UnsupportedMediaType("The body's Content-Type must be application/json.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("A compressed body is not accepted.")


def _half_characters(model: type[msgspec.Struct], body: bytes) -> list[FieldError]:
    """Return an error for each field with a lone surrogate.

    msgspec rejects the whole body if it contains one, and does not name the field. Python's own decoder accepts them.
    """
    names = [field.encode_name for field in msgspec.structs.fields(model)]
    try:
        raw = json.loads(body.decode())
        return [FieldError(name, HALF_CHARACTERS) for name in names if name in raw and _is_half(raw[name])]
    except (ValueError, TypeError, RecursionError):
        return []


def _is_half(value: object) -> bool:
    return re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)) is not None


class ValueSchemas(OpenAPISchemaPlugin):
    """Describes the types of `keyman.values` in the OpenAPI document as the JSON from which they are parsed."""

    @staticmethod
    def is_plugin_supported_type(value: object) -> bool:
        return isinstance(value, type) and hasattr(value, "parse") and isinstance(getattr(value, "schema", None), dict)

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: object) -> Schema:
        names = {
            "writeOnly": "write_only",
            "minLength": "min_length",
            "maxLength": "max_length",
            "additionalProperties": "additional_properties",
            "maxProperties": "max_properties",
        }
        schema = field_definition.annotation.schema
        return Schema(**{names.get(name, name): value for name, value in schema.items()})
