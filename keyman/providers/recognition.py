"""What can be a key, and what tells that a value is a key of another service.

A value without a known prefix is never refused: providers change their formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Self

from keyman.errors import FieldError, Sentence
from keyman.providers.catalogue import Catalogue
from keyman.providers.masking import IS_MASK, is_mask
from keyman.secret import Secret
from keyman.values import Check, JsonSchema


class ProviderKey(Secret):
    """The value that keyman exists for, of any provider."""

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        "type": "string",
        "format": "password",
        "minLength": 8,
        "maxLength": 512,
        "pattern": r"^[\x21-\x7e]+$",
        "writeOnly": True,
        "examples": ["sk-hq2v9mXbT0c7eUKwN4Rd1234"],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        if not isinstance(raw, str):
            raise ValueError("must be a string")
        text = raw.strip()
        if not text:
            raise ValueError("must not be empty")
        if not all("!" <= c <= "~" for c in text):
            raise ValueError(
                "must contain only printable ASCII characters, without white space; if you copied it from a document, "
                "copy it again from the provider's page"
            )
        if is_mask(text):  # without a public prefix: shorter than any key
            raise ValueError(IS_MASK)
        if not 8 <= len(text) <= 512:
            raise ValueError("must be 8 to 512 characters long")
        return cls(text)


def check_new_key(catalogue: Catalogue) -> Check:
    """What finds out what is wrong with the parsed fields of a NewKey beyond their shapes."""

    def check(values: Mapping[str, object]) -> Iterator[FieldError]:
        yield from check_label(values)
        service, value = values.get("service"), values.get("api_key")
        if isinstance(service, str) and service not in catalogue:
            yield FieldError("service", "is not a service of the catalogue; GET /api/services lists them")
        elif isinstance(service, str) and isinstance(value, Secret):
            yield from check_value(catalogue, service, value.reveal())

    return check


def check_label(values: Mapping[str, object]) -> Iterator[FieldError]:
    """A label that holds the value would show it, and keep it in the database in clear."""
    label, value = values.get("name"), values.get("api_key")
    if isinstance(label, str) and isinstance(value, Secret) and value.reveal() in label:
        yield FieldError("name", "must not contain the key itself, because labels are shown")


def check_value(catalogue: Catalogue, service: str, value: str) -> Iterator[FieldError]:
    """Why this value cannot be a key of this service, if that is certain."""
    if is_mask(value, catalogue.prefixes().values()):
        yield FieldError("api_key", IS_MASK)
        return
    prefix = catalogue.prefix(service)
    own = prefix if value.startswith(prefix) else ""
    owners = catalogue.exclusive_prefixes()
    claim = max((begin for begin in owners if value.startswith(begin)), key=len, default="")
    # The service's own prefix counts when it says as much: an operator may add a second service like Anthropic.
    if len(claim) > len(own) and owners[claim] != service:
        yield FieldError(
            "api_key",
            Sentence(
                "looks like a key of {owner}, not of {mine}: choose that service instead",
                owner=catalogue.name(owners[claim]),
                mine=catalogue.name(service),
            ),
        )
