"""The values that requests are made of: each is parsed once, at the edge, into a type that cannot be wrong.

A `parse` takes whatever JSON held and returns the value or raises ValueError with a sentence for the person who sent
it; the sentence never repeats what was sent. `decode` does so for a whole body and reports every field at once.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import ClassVar, Protocol, Self, TypeAlias, TypeVar, cast

import msgspec

from keyman.clock import now
from keyman.errors import FieldError, InvalidRequest
from keyman.ids import MAX_ID
from keyman.secret import Secret

S = TypeVar("S", bound=msgspec.Struct)

CONTROL = r"\u0000-\u001f\u007f-\u009f\u2028\u2029"
"""Control characters, and those that end a line or a paragraph, for a class of a regular expression."""

BIDIRECTIONAL = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Characters that change the direction of what follows: with them a label shows as something it is not."""

SPACE = r"\u0020\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
"""White space of every script, spelt out: the shorthand is not the same in Python and in JSON Schema."""

# The patterns are ECMAScript's and Python's alike, so that the OpenAPI document says just what is parsed.
LABEL = rf"^[^{CONTROL}{BIDIRECTIONAL}]*$"
REQUIRED_LABEL = rf"^[^{CONTROL}{BIDIRECTIONAL}]*[^{CONTROL}{BIDIRECTIONAL}{SPACE}][^{CONTROL}{BIDIRECTIONAL}]*$"
# RFC 5321, 4.5.3.1: 64 before the @; 254 in all. Nothing invisible: two addresses must not look alike for it.
_VISIBLE = rf"[^@{CONTROL}{BIDIRECTIONAL}{SPACE}\u200b-\u200d\u2060\ufeff]"
EMAIL = rf"^{_VISIBLE}{{1,64}}@{_VISIBLE}+$"


APPLICATION_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"

HALF_CHARACTERS = "must not hold half characters (lone surrogates)"


JsonSchema: TypeAlias = dict[str, object]


class Value(Protocol):
    """A type that a field of a body can have."""

    schema: ClassVar[JsonSchema]
    """JSON Schema of what `parse` takes, for the OpenAPI document."""

    @classmethod
    def parse(cls, raw: object) -> Self: ...


class Label(str):
    """What a person calls a key or a token."""

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        "type": "string",
        "maxLength": 100,
        "pattern": LABEL,
        "examples": ["Production chat"],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        text = _string(raw)
        if len(text) > 100:
            raise ValueError("must be at most 100 characters long")
        _plain(text)
        return cls(text)


class Purpose(str):
    """What an application says it needs a key for; the key's owner reads it."""

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        "type": "string",
        "maxLength": 200,
        "pattern": LABEL,
        "examples": ["Answer to a chat"],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        text = _string(raw)
        if len(text) > 200:
            raise ValueError("must be at most 200 characters long")
        _plain(text)
        return cls(text)


class RequiredLabel(Label):
    """A label that says something."""

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        **Label.schema,
        "minLength": 1,
        "pattern": REQUIRED_LABEL,
        "examples": ["CI pipeline"],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        label = super().parse(raw)
        if not re.fullmatch(REQUIRED_LABEL, label):
            raise ValueError("must not be empty")
        return label


class ApplicationName(str):
    """What an operator calls an application: one spelling, so that no two look alike."""

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        "type": "string",
        "pattern": APPLICATION_NAME,
        "examples": ["chat-backend"],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        text = _string(raw)
        if not re.fullmatch(APPLICATION_NAME, text):
            raise ValueError("must be 1 to 64 lower case letters, digits, '.', '_' and '-', a letter or digit first")
        return cls(text)


class RowNumber(int):
    """The id of a row, in a body."""

    schema: ClassVar[JsonSchema] = {"type": "integer", "format": "int64", "minimum": 1, "maximum": MAX_ID}

    @classmethod
    def parse(cls, raw: object) -> Self:
        if not isinstance(raw, int) or isinstance(raw, bool) or not 1 <= raw <= MAX_ID:
            raise ValueError("must be an id: a whole number from 1 on")
        return cls(raw)


class SearchText(str):
    """What to look for in labels."""

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        "type": "string",
        "maxLength": 100,
        "pattern": r"^[^\u0000]*$",
        "examples": ["prod"],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        text = _string(raw)
        if len(text) > 100:
            raise ValueError("must be at most 100 characters long")
        if "\0" in text:
            raise ValueError("must not hold NUL")  # PostgreSQL takes it in no text
        return cls(text)


class EmailAddress(str):
    """An address to sign in with, as its owner spells it. `key` tells whether two spellings are one address."""

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        "type": "string",
        "maxLength": 254,
        "pattern": EMAIL,
        "examples": ["ada@example.com"],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        text = unicodedata.normalize("NFC", _string(raw).strip())
        if not re.fullmatch(EMAIL, text):
            raise ValueError("must be an e-mail address, such as ada@example.com")
        if len(text) > 254:
            raise ValueError("is too long for an e-mail address")
        _encodable(text)
        return cls(text)

    @property
    def key(self) -> str:
        return unicodedata.normalize("NFC", self.casefold())


class NewPassword(Secret):
    """A password that somebody chooses."""

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        "type": "string",
        "format": "password",
        "minLength": 10,
        "maxLength": 256,
        "writeOnly": True,
        "examples": ["correct horse battery staple"],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        text = _string(raw)
        if not 10 <= len(text) <= 256:
            raise ValueError("must be 10 to 256 characters long")
        _encodable(text)
        return cls(text)


class GivenPassword(Secret):
    """A password that is to be compared: of any form, so that the answer to a wrong one is always the same."""

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        "type": "string",
        "format": "password",
        "maxLength": 256,
        "writeOnly": True,
        "examples": ["correct horse battery staple"],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        text = _string(raw)
        if len(text) > 256:
            raise ValueError("must be at most 256 characters long")
        _encodable(text)
        return cls(text)


class Instant(datetime):
    """A moment, in UTC. As text it is RFC 3339 again, to the microsecond."""

    schema: ClassVar[JsonSchema] = {"type": "string", "format": "date-time", "examples": ["2030-01-31T00:00:00Z"]}

    @classmethod
    def parse(cls, raw: object) -> Self:
        try:
            moment = msgspec.convert(_string(raw), datetime)
        except msgspec.ValidationError:
            raise ValueError("must be an RFC 3339 time, such as 2030-01-31T00:00:00Z") from None
        if moment.tzinfo is None:
            raise ValueError("must say its time zone: end it with Z or an offset such as +02:00")
        try:
            moment = moment.astimezone(UTC)
        except OverflowError:
            raise ValueError("is too far away") from None
        return cls.fromisoformat(moment.isoformat())

    def __str__(self) -> str:
        return self.isoformat().replace("+00:00", "Z")


class FutureTime(Instant):
    """A moment that is still to come, in UTC."""

    @classmethod
    def parse(cls, raw: object) -> Self:
        moment = super().parse(raw)
        if moment <= now():
            raise ValueError("must be in the future")
        return moment


Check = Callable[[Mapping[str, object]], Iterable[FieldError]]
"""Looks at the fields that were parsed, and says what is wrong between them or against what the application knows."""


def decode(model: type[S], raw: object, check: Check | None = None) -> S:
    """The struct that `raw`, decoded JSON, describes. Raises InvalidRequest with everything that is at fault."""
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
            errors.append(FieldError(field.encode_name, str(fault)))
    unknown = len(raw.keys() - {field.encode_name for field in fields})
    if unknown:
        # Their names are not repeated: a key pasted in the wrong place is a name then.
        known = ", ".join(field.encode_name for field in fields)
        counted = "an unknown field" if unknown == 1 else f"{unknown} unknown fields"
        errors.append(FieldError("", f"The body holds {counted}; known are {known}."))
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
            raise ValueError(str(fault.__cause__)) from None
        # msgspec's words for a wrong type name types alone; its words for anything else may repeat the value.
        message = str(fault).partition(" - at ")[0]
        if message.startswith("Expected `bool`"):
            raise ValueError("must be true or false") from None
        if message.startswith("Expected `array` of length"):
            raise ValueError("must be a list that is not empty") from None
        if message.startswith("Expected `array`"):
            raise ValueError("must be a list") from None
        raise ValueError("is of the wrong type") from None


def _string(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError("must be a string")
    return raw


def _plain(text: str) -> None:
    """Raises ValueError for what would show as something it is not."""
    if not re.fullmatch(LABEL, text):
        raise ValueError("must not hold control characters or characters that change the writing direction")
    _encodable(text)


def _encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(HALF_CHARACTERS) from None
