"""Checks that a value can be a key, and recognises a key of another service.

A value without a known prefix is never refused, because providers change their formats.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import ClassVar, Self

from keyman.decoding import Check
from keyman.errors import FieldError, Sentence
from keyman.providers import settings
from keyman.providers.catalogue import Catalogue
from keyman.providers.credentials import MAX_CREDENTIAL, Credential, looks_like_json, parse_object
from keyman.providers.masking import IS_MASK, is_mask
from keyman.providers.pasted import bare, check_pasted, unusual_characters
from keyman.providers.services import Service
from keyman.providers.settings import KeySettings
from keyman.secret import Secret
from keyman.values import JsonSchema

MIN_KEY = 8
"""The minimum number of characters of a key. Shorter texts would be words that a label may have."""

MAX_KEY = 8192
"""The maximum number of characters of a key: short-term keys of Amazon Bedrock have over 1,000."""

MIN_RANDOM = 16
"""The minimum number of letters and digits behind a prefix, for a text that looks like a key. Keys have 20 or more."""

_CHANGES = re.compile(r"(?<=[a-z])[A-Z0-9]|(?<=[A-Z])[a-z0-9]|(?<=[0-9])[A-Za-z]")
"""Where small letters, capitals and digits take turns."""


class ProviderKey(Secret):
    """An API key of any provider, or a JSON credential, which keyman stores sealed.

    White space around a key is stripped. A JSON credential is stored as it was sent.
    """

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        "type": "string",
        "format": "password",
        "minLength": 8,
        "maxLength": MAX_CREDENTIAL,
        "pattern": r"^(\{[\s\S]*|[\x21-\x7e]{1,8192})$",
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
        if looks_like_json(text):
            if len(raw.encode(errors="surrogatepass")) > MAX_CREDENTIAL:
                raise ValueError("must be at most 16 KiB long")
            return cls(raw)
        check_pasted(text)
        if unusual_characters(text):
            raise ValueError(
                "must contain only printable ASCII characters, without white space; if you copied it from a document, "
                "copy it again from the provider's page"
            )
        if not MIN_KEY <= len(text) <= MAX_KEY:
            raise ValueError("must be 8 to 8,192 characters long")
        return cls(text)


def check_new_key(catalogue: Catalogue, beside: Collection[str] = ()) -> Check:
    """Return a check of the parsed fields of a NewKey, for what the type of a single field cannot check.

    `beside` are the `texts_of` the values that are sent with it. Label and settings have none of them either.
    """

    def check(values: Mapping[str, object]) -> Iterator[FieldError]:
        yield from check_shown(catalogue, values, beside)
        service, value, given = values.get("service"), values.get("api_key"), values.get("settings")
        if not isinstance(service, str):
            return
        if service not in catalogue:
            yield FieldError("service", "is not a service of the catalogue; GET /api/services lists them")
            return
        if isinstance(value, Secret):
            yield from check_value(catalogue, service, value.reveal())
        if isinstance(given, KeySettings):
            yield from check_settings(catalogue, service, given)

    return check


def check_settings(catalogue: Catalogue, service: str, given: Mapping[str, str]) -> Iterator[FieldError]:
    """Yield a fault for each invalid member of the settings of a key for this service."""
    known = catalogue.find(service)
    yield from settings.check_settings(
        catalogue.name(service), known.settings if known else (), known.allowed_hosts if known else (), given
    )


def check_label(
    catalogue: Catalogue, values: Mapping[str, object], beside: Collection[str] = ()
) -> Iterator[FieldError]:
    """Yield a fault if the label has a key: the value, one of those beside it, or what looks like another one.

    Labels are shown, and stored in clear.
    """
    label, own = values.get("name"), _own(values)
    if not isinstance(label, str):
        return
    if own and own in label:
        yield FieldError("name", "must not contain the key itself, because labels are shown")
    elif any(text in label for text in beside):
        yield FieldError("name", "must not contain another key, because labels are shown")
    elif has_key(catalogue, label):
        yield FieldError(
            "name", "must not contain what looks like a key, because labels are shown; write what the key is for"
        )


def check_shown(
    catalogue: Catalogue, values: Mapping[str, object], beside: Collection[str] = ()
) -> Iterator[FieldError]:
    """Yield a fault if the label or a setting has a key, as `check_label` does. Settings are shown, too."""
    yield from check_label(catalogue, values, beside)
    given, own = values.get("settings"), _own(values)
    keys = [own, *beside] if own else beside
    for member, text in given.items() if isinstance(given, KeySettings) else ():
        if has_key(catalogue, text, keys):
            yield FieldError(f"settings.{member}", "must not contain a key, because settings are shown")


def has_key(catalogue: Catalogue, text: str, keys: Collection[str] = ()) -> bool:
    """Return True if a text that is shown has one of these keys, or what looks like one: the prefix of a provider and
    a long random rest.
    """
    return any(key in text for key in keys) or any(map(_is_random, catalogue.after_prefixes(text)))


def _is_random(rest: str) -> bool:
    """Return True unless a person would write this behind a prefix: words have few changes, and labels short words."""
    count = sum(map(str.isalnum, rest))
    return count >= MIN_RANDOM and 4 * len(_CHANGES.findall(rest)) >= count


def _own(values: Mapping[str, object]) -> str:
    """Return the value that is to be stored, or an empty text."""
    value = values.get("api_key")
    return value.reveal() if isinstance(value, Secret) else ""


def texts_of(values: Iterable[str]) -> frozenset[str]:
    """Return these values, and each without what stands around it: a value that is refused for that is a key too."""
    return frozenset(text for value in values for text in (value.strip(), bare(value)) if len(text) >= MIN_KEY)


def check_value(catalogue: Catalogue, service: str, value: str) -> Iterator[FieldError]:
    """Yield a fault if this value is certainly not a key of this service."""
    known = catalogue.find(service)
    if known is not None and known.credential is not None:
        yield from _check_credential(known, known.credential, value)
    elif looks_like_json(value):
        yield from _check_json(catalogue, service, value)
    elif is_mask(value):
        yield FieldError("api_key", IS_MASK)
    else:
        own = catalogue.prefix_of(service, value)
        claim = catalogue.claim_on(value)
        # The service's own prefix wins if it is as long: an operator may add a second service with keys like
        # Anthropic's.
        if len(claim) > len(own) and (owner := catalogue.exclusive_prefixes()[claim]) != service:
            yield _of_another(catalogue, owner, service)


def unusual_beginning(catalogue: Catalogue, service: str, value: Secret) -> Sentence | None:
    """Return a sentence for a person if the keys of this service usually begin in another way than this value."""
    prefixes = catalogue.prefixes(service)
    if not prefixes or catalogue.takes_json(service) or catalogue.prefix_of(service, value.reveal()):
        return None
    usual = ", ".join(prefixes)
    return Sentence("{service} keys begin with {prefixes}.", service=catalogue.name(service), prefixes=usual)


def _check_credential(service: Service, credential: Credential, value: str) -> Iterator[FieldError]:
    """Yield a fault if this value is not a JSON credential of this form."""
    given = parse_object(value)
    if given is None or not credential.fits(given):
        members = ", ".join(credential.members)
        yield FieldError(
            "api_key",
            Sentence(
                "must be the whole JSON file from {service}, an object with {members}; paste the file as it is",
                service=service.name,
                members=members,
            ),
        )


def _check_json(catalogue: Catalogue, service: str, value: str) -> Iterator[FieldError]:
    """Yield the fault of a JSON object that was given to a service that takes a key."""
    given = parse_object(value)
    owner = catalogue.taker(given) if given is not None else None
    if owner is not None:
        yield _of_another(catalogue, owner.service, service)
    else:
        yield FieldError("api_key", "is JSON, or has brackets around it; paste only the key in it")


def _of_another(catalogue: Catalogue, owner: str, mine: str) -> FieldError:
    return FieldError(
        "api_key",
        Sentence(
            "looks like a key of {owner}, not of {mine}: choose that service instead",
            owner=catalogue.name(owner),
            mine=catalogue.name(mine),
        ),
    )
