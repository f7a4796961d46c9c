"""Checks that a value can be a key, and recognises a key of another service.

A value without a known prefix is never refused, because providers change their formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Self

from keyman.errors import FieldError, Sentence
from keyman.providers.catalogue import Catalogue
from keyman.providers.masking import IS_MASK, is_mask
from keyman.providers.pasted import check_pasted
from keyman.secret import Secret
from keyman.values import Check, JsonSchema

MAX_KEY = 8192
"""The maximum number of characters of a key: short-term keys of Amazon Bedrock have over 1,000."""

MAX_CREDENTIAL = 16 * 1024
"""The maximum number of bytes of a JSON credential: a service-account file has about 2,400."""


class ProviderKey(Secret):
    """An API key of any provider, which keyman stores sealed."""

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        "type": "string",
        "format": "password",
        "minLength": 8,
        "maxLength": MAX_KEY,
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
        check_pasted(text)
        if not all("!" <= c <= "~" for c in text):
            raise ValueError(
                "must contain only printable ASCII characters, without white space; if you copied it from a document, "
                "copy it again from the provider's page"
            )
        if not 8 <= len(text) <= MAX_KEY:
            raise ValueError("must be 8 to 8,192 characters long")
        return cls(text)


def check_new_key(catalogue: Catalogue) -> Check:
    """Return a check of the parsed fields of a NewKey, for what the type of a single field cannot check."""

    def check(values: Mapping[str, object]) -> Iterator[FieldError]:
        yield from check_label(values)
        service, value = values.get("service"), values.get("api_key")
        if isinstance(service, str) and service not in catalogue:
            yield FieldError("service", "is not a service of the catalogue; GET /api/services lists them")
        elif isinstance(service, str) and isinstance(value, Secret):
            yield from check_value(catalogue, service, value.reveal())

    return check


def check_label(values: Mapping[str, object]) -> Iterator[FieldError]:
    """Yield a fault if the label contains the value. Labels are shown, and stored in clear."""
    label, value = values.get("name"), values.get("api_key")
    if isinstance(label, str) and isinstance(value, Secret) and value.reveal() in label:
        yield FieldError("name", "must not contain the key itself, because labels are shown")


def check_value(catalogue: Catalogue, service: str, value: str) -> Iterator[FieldError]:
    """Yield a fault if this value is certainly not a key of this service."""
    if is_mask(value):
        yield FieldError("api_key", IS_MASK)
        return
    prefix = catalogue.prefix(service)
    own = prefix if value.startswith(prefix) else ""
    owners = catalogue.exclusive_prefixes()
    claim = max((begin for begin in owners if value.startswith(begin)), key=len, default="")
    # The service's own prefix wins if it is as long: an operator may add a second service with keys like Anthropic's.
    if len(claim) > len(own) and owners[claim] != service:
        yield FieldError(
            "api_key",
            Sentence(
                "looks like a key of {owner}, not of {mine}: choose that service instead",
                owner=catalogue.name(owners[claim]),
                mine=catalogue.name(service),
            ),
        )
