"""Decodes a whole body into a struct whose fields have value types, and reports every invalid field at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TypeVar, cast

import msgspec
from msgspec.structs import FieldInfo

from keyman.errors import FieldError, InvalidRequest
from keyman.values import Value

S = TypeVar("S", bound=msgspec.Struct)

Check = Callable[[Mapping[str, object]], Iterable[FieldError]]
"""Checks parsed fields against each other or against the state of keyman, and yields an error for each fault."""


def decode(model: type[S], raw: object, check: Check | None = None, whole: str = "body") -> S:
    """Return the struct that `raw`, decoded JSON, describes. Raises InvalidRequest, which names every fault.

    `whole` is what messages call it.
    """
    if not isinstance(raw, dict):
        raise InvalidRequest.at(FieldError("", "The body must be a JSON object."))
    fields = _fields_of(model)
    decoded = _decode_whole(model, raw) if raw.keys() <= fields.keys() else None
    if decoded is None:
        values, errors = _decode_each(fields, raw, whole)
    else:
        values, errors = {fields[name].name: getattr(decoded, fields[name].name) for name in raw}, []
    if check is not None:
        errors += check(values)
    if errors:
        raise InvalidRequest.at(*errors)
    return model(**values) if decoded is None else decoded


@cache
def _fields_of(model: type[msgspec.Struct]) -> Mapping[str, FieldInfo]:
    """Return the fields of a model by their names in JSON. To work them out takes longer than to decode a body."""
    return {field.encode_name: field for field in msgspec.structs.fields(model)}


def _decode_whole(model: type[S], raw: Mapping[str, object]) -> S | None:
    """Return the struct, or None if a field is invalid: msgspec stops at the first one."""
    try:
        return msgspec.convert(raw, model, dec_hook=_parse)
    except msgspec.ValidationError:
        return None


def _decode_each(
    fields: Mapping[str, FieldInfo], raw: Mapping[str, object], whole: str
) -> tuple[dict[str, object], list[FieldError]]:
    """Return the values of the valid fields, and an error for each fault."""
    errors: list[FieldError] = []
    values: dict[str, object] = {}
    for name, field in fields.items():
        if name not in raw:
            if field.required:
                errors.append(FieldError(name, "is missing"))
            continue
        try:
            values[field.name] = _field(field.type, raw[name])
        except ValueError as fault:
            errors.append(FieldError(name, _message(fault)))
    unknown = len(raw.keys() - fields.keys())
    if unknown:
        # Do not repeat their names: a name can be a key that was pasted in the wrong place.
        counted = "an unknown field" if unknown == 1 else f"{unknown} unknown fields"
        errors.append(FieldError("", f"The {whole} has {counted}; the known fields are {', '.join(fields)}."))
    return values, errors


def _field(kind: object, raw: object) -> object:
    try:
        return msgspec.convert(raw, kind, dec_hook=_parse)
    except msgspec.ValidationError as fault:
        if isinstance(fault.__cause__, ValueError):
            raise ValueError(_message(fault.__cause__)) from None
        # msgspec's message for a wrong type names only types. Its other messages may repeat the value.
        message = str(fault).partition(" - at ")[0]
        if message.startswith("Expected `bool`"):
            raise ValueError("must be true or false") from None
        if message.startswith("Expected `array` of length <="):
            raise ValueError(f"must have at most {message.rpartition(' ')[2]} entries") from None
        if message.startswith("Expected `array` of length"):
            raise ValueError("must have at least one entry") from None
        if message.startswith("Expected `array`"):
            raise ValueError("must be a list") from None
        raise ValueError("is of the wrong type") from None


def _parse(kind: type, raw: object) -> object:
    return cast("type[Value]", kind).parse(raw)


def _message(fault: ValueError) -> str:
    """Return the message of a value type. `str(fault)` would turn a Sentence into a plain text."""
    (message,) = fault.args
    return message if isinstance(message, str) else str(fault)
