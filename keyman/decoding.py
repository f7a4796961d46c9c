"""Decodes a whole body into a struct whose fields have value types, and reports every invalid field at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar, cast

import msgspec

from keyman.errors import FieldError, InvalidRequest
from keyman.values import Value

S = TypeVar("S", bound=msgspec.Struct)

Check = Callable[[Mapping[str, object]], Iterable[FieldError]]
"""Checks parsed fields against each other or against the state of keyman, and yields an error for each fault."""


def decode(model: type[S], raw: object, check: Check | None = None) -> S:
    """Return the struct that `raw`, decoded JSON, describes. Raises InvalidRequest, which names every fault."""
    if not isinstance(raw, dict):
        raise InvalidRequest.at(FieldError("", "The body must be a JSON object."))
    fields = msgspec.structs.fields(model)
    errors: list[FieldError] = []
    values: dict[str, object] = {}
    for field in fields:
        if field.encode_name not in raw:
            if field.required:
                errors.append(FieldError(field.encode_name, "is missing"))
            continue
        try:
            values[field.name] = _field(field.type, raw[field.encode_name])
        except ValueError as fault:
            errors.append(FieldError(field.encode_name, _message(fault)))
    unknown = len(raw.keys() - {field.encode_name for field in fields})
    if unknown:
        # Do not repeat their names: a name can be a key that was pasted in the wrong place.
        known = ", ".join(field.encode_name for field in fields)
        counted = "an unknown field" if unknown == 1 else f"{unknown} unknown fields"
        errors.append(FieldError("", f"The body has {counted}; the known fields are {known}."))
    if check is not None:
        errors += check(values)
    if errors:
        raise InvalidRequest.at(*errors)
    return model(**values)


def _field(kind: object, raw: object) -> object:
    try:
        return msgspec.convert(raw, kind, dec_hook=lambda wanted, value: cast("type[Value]", wanted).parse(value))
    except msgspec.ValidationError as fault:
        if isinstance(fault.__cause__, ValueError):
            raise ValueError(_message(fault.__cause__)) from None
        # msgspec's message for a wrong type names only types. Its other messages may repeat the value.
        message = str(fault).partition(" - at ")[0]
        if message.startswith("Expected `bool`"):
            raise ValueError("must be true or false") from None
        if message.startswith("Expected `array` of length"):
            raise ValueError("must have at least one entry") from None
        if message.startswith("Expected `array`"):
            raise ValueError("must be a list") from None
        raise ValueError("is of the wrong type") from None


def _message(fault: ValueError) -> str:
    """Return the message of a value type. `str(fault)` would turn a Sentence into a plain text."""
    (message,) = fault.args
    return message if isinstance(message, str) else str(fault)
