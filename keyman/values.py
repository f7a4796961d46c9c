"""The value types of requests. Each value is parsed once, at the edge, into a type that is always valid.

`parse` takes a value from JSON. It returns the parsed value, or raises ValueError with a text for the sender; the text
never repeats what was sent. `decoding.decode` parses a whole body.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from typing import ClassVar, Protocol, Self, TypeAlias

import msgspec

from keyman.characters import DEFAULT_IGNORABLE, REFUSED_IN_ADDRESSES
from keyman.clock import now
from keyman.ids import MAX_ID
from keyman.patterns import APPLICATION_NAME, EMAIL, LABEL, REQUIRED_LABEL, SUBJECT
from keyman.secret import Secret

BRAILLE_BLANK = "\u2800"
"""A Braille pattern without dots: a symbol for Unicode, and blank."""

HALF_CHARACTERS = "must not contain half characters (lone surrogates)"


JsonSchema: TypeAlias = dict[str, object]


class Value(Protocol):
    """A type that a field of a body can have."""

    schema: ClassVar[JsonSchema]
    """The JSON Schema of what `parse` accepts, for the OpenAPI document."""

    @classmethod
    def parse(cls, raw: object) -> Self: ...


class Label(str):
    """The name that a user gives to a key or a token. One that shows nothing is empty."""

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
        return cls(text if _shows_something(text) else "")


class Purpose(str):
    """The reason that an application gives for a resolve. The key's owner can read it."""

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
    """A label that is not empty."""

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
        if not label:
            raise ValueError("must not be empty")
        return label


class ApplicationName(str):
    """The name of an application. Its characters are limited, so that no two names look the same."""

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
            raise ValueError(
                "must be 1 to 64 lower case letters, digits, '.', '_' or '-', and begin with a letter or digit"
            )
        return cls(text)


class Subject(str):
    """The name that an issuer gives to one of its users. It is never changed: two spellings are two users."""

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "pattern": SUBJECT,
        "examples": ["user-42"],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        text = _string(raw)
        if not 1 <= len(text) <= 255:
            raise ValueError("must be 1 to 255 characters long")
        if text.startswith(" ") or text.endswith(" "):
            raise ValueError("must not begin or end with a space")
        if not text.isprintable():  # a half character and each white space but the ordinary one are not printable
            raise ValueError("must not contain control characters, other invisible characters or unusual spaces")
        return cls(text)


class RowNumber(int):
    """The id of a row, in a body."""

    schema: ClassVar[JsonSchema] = {"type": "integer", "format": "int64", "minimum": 1, "maximum": MAX_ID}

    @classmethod
    def parse(cls, raw: object) -> Self:
        if not isinstance(raw, int) or isinstance(raw, bool) or not 1 <= raw <= MAX_ID:
            raise ValueError("must be an id: a whole number of at least 1")
        return cls(raw)


class SearchText(str):
    """A text to search for in labels."""

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
            raise ValueError("must not contain NUL")  # PostgreSQL does not accept it in text
        return cls(text)


class EmailAddress(str):
    """An e-mail address for sign-in, as its owner writes it. Two spellings of one address have the same `key`.

    It has no character that is invisible or a symbol, so that no two addresses look the same because of one.
    """

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        "type": "string",
        "maxLength": 254,
        "pattern": EMAIL,
        "examples": ["ada@example.com"],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        sent = _string(raw).strip()
        if len(sent) > 4 * 254:  # before composing it, whose time grows with the square of a row of combining marks
            raise ValueError("is too long for an e-mail address")
        text = unicodedata.normalize("NFC", sent)
        if not re.fullmatch(EMAIL, text):
            raise ValueError("must be an e-mail address, such as ada@example.com")
        if any(map(REFUSED_IN_ADDRESSES.holds, text)):
            raise ValueError("must not contain spaces, symbols or invisible characters; type the address by hand")
        if len(text) > 254:
            raise ValueError("is too long for an e-mail address")
        _encodable(text)
        return cls(text)

    @property
    def key(self) -> str:
        return unicodedata.normalize("NFC", self.casefold())


class NewPassword(Secret):
    """A password that a user sets."""

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
    """A password to verify. It can have any form, so that every wrong password gets the same answer."""

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
    """A moment in UTC. Its text is RFC 3339, to the microsecond."""

    schema: ClassVar[JsonSchema] = {"type": "string", "format": "date-time", "examples": ["2030-01-31T00:00:00Z"]}

    @classmethod
    def parse(cls, raw: object) -> Self:
        try:
            moment = msgspec.convert(_string(raw), datetime)
        except msgspec.ValidationError:
            raise ValueError("must be an RFC 3339 time, such as 2030-01-31T00:00:00Z") from None
        if moment.tzinfo is None:
            raise ValueError("must have a time zone: end it with Z or an offset such as +02:00")
        try:
            moment = moment.astimezone(UTC)
        except OverflowError:
            raise ValueError("is out of range") from None
        return cls.fromisoformat(moment.isoformat())

    def __str__(self) -> str:
        return self.isoformat().replace("+00:00", "Z")


class FutureTime(Instant):
    """A moment in the future, in UTC."""

    @classmethod
    def parse(cls, raw: object) -> Self:
        moment = super().parse(raw)
        if moment <= now():
            raise ValueError("must be in the future")
        return moment


def _string(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError("must be a string")
    return raw


def _shows_something(text: str) -> bool:
    """Return False for a text of characters that are blank or not displayed."""
    return any(not (one.isspace() or one == BRAILLE_BLANK or DEFAULT_IGNORABLE.holds(one)) for one in text)


def _plain(text: str) -> None:
    """Raises ValueError for a text that would be displayed as something else."""
    if not re.fullmatch(LABEL, text):
        raise ValueError("must not contain control characters or characters that change the writing direction")
    _encodable(text)


def _encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(HALF_CHARACTERS) from None
