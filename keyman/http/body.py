"""Bodies: JSON, decoded by `keyman.values`, every fault reported at once; and their place in the OpenAPI document."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from litestar.dto import AbstractDTO
from litestar.openapi.spec import Reference, Schema
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition

from keyman import values
from keyman.errors import FieldError, InvalidRequest, UnsupportedMediaType

T = TypeVar("T", bound=msgspec.Struct)

MAX_BYTES = 64 * 1024
"""Of a body: the contract's number, a hundred times the longest key."""

CHECKS = "body_checks"
"""Where the application's state keeps what is checked beyond the fields themselves: a mapping from model to Check."""


class JsonBody(AbstractDTO[T]):
    """`dto=JsonBody[Model]` on a handler whose `data` is a Model."""

    @classmethod
    def create_for_field_definition(cls, *args: Any, **kwargs: Any) -> None:
        """Litestar's own decoding is not used: it stops at the first fault, and repeats values in its messages."""

    @classmethod
    def generate_field_definitions(cls, model_type: type[Any]) -> Any:
        raise NotImplementedError

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        return False

    @classmethod
    def create_openapi_schema(
        cls, field_definition: FieldDefinition, handler_id: str, schema_creator: Any
    ) -> Reference | Schema:
        schema: Reference | Schema = schema_creator.for_field_definition(
            FieldDefinition.from_annotation(cls.model_type, name="data")
        )
        return schema

    def decode_bytes(self, value: bytes) -> T:
        """Raises UnsupportedMediaType, and InvalidRequest with everything that is at fault."""
        check_media_type(self.asgi_connection.headers)
        model: type[T] = self.model_type
        try:
            raw = msgspec.json.decode(value)
        except RecursionError:
            raise InvalidRequest.at(FieldError("", "The body is nested too deeply.")) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            # msgspec's own message says where, and may quote what is there.
            faults = _half_characters(model, value) or [FieldError("", "The body is not well-formed JSON in UTF-8.")]
            raise InvalidRequest.at(*faults) from None
        return values.decode(model, raw, self.asgi_connection.app.state[CHECKS].get(model))


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
    def is_plugin_supported_type(value: Any) -> bool:
        return isinstance(value, type) and hasattr(value, "parse") and isinstance(getattr(value, "schema", None), dict)

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:
        names = {"writeOnly": "write_only", "minLength": "min_length", "maxLength": "max_length"}
        schema = field_definition.annotation.schema
        return Schema(**{names.get(name, name): value for name, value in schema.items()})
