"""The catalogue: the services whose keys can be stored. keyman ships some, and an operator can add others."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Self

import msgspec

from keyman.errors import ConfigurationError
from keyman.providers.masking import mask
from keyman.providers.services import SHIPPED, Service
from keyman.providers.settings import Setting
from keyman.values import JsonSchema


class ServiceInfo(msgspec.Struct):
    """A service in the list of services.

    `settings` is a JSON Schema. `forwarded` is True if the gateway serves it, and `checked` if live checks know it.
    """

    service: str
    name: str
    console_url: str | None
    settings: JsonSchema
    forwarded: bool
    checked: bool


_SLUG = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_PREFIX = re.compile(r"[!-~]{2,16}")
_CONSOLE = re.compile(r"https://[!-~]{1,500}")

ENTRY = ("service", "name", "prefix", "exclusive", "console_url")
"""The fields of an entry in the operator's file."""

_DEFAULTS: Mapping[str, object] = {"prefix": None, "exclusive": (), "console_url": None}


class ServiceSlug(str):
    """The identifier of a service in a request."""

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        "type": "string",
        "pattern": "^[A-Z][A-Z0-9_]{0,63}$",
        "examples": ["OPENAI"],
        "description": "One of the services of `GET /api/services`.",
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Check only the form. `recognition.check_new_key` checks that the service exists."""
        if not isinstance(raw, str):
            raise ValueError("must be a string")
        if not _SLUG.fullmatch(raw):
            raise ValueError("must be a service of the catalogue, in upper case; GET /api/services lists them")
        return cls(raw)


class Catalogue:
    """The shipped services, then those of the operator.

    A service of the operator with the identifier of a shipped one changes that one: what its entry does not give stays.
    """

    def __init__(self, added: Iterable[Service] = ()) -> None:
        services = {service.service: service for service in SHIPPED}
        services |= {service.service: _merged(services.get(service.service), service) for service in added}
        self._services = services
        self._exclusive = {prefix: service for service in services.values() for prefix in service.exclusive}

    @classmethod
    def load(cls, path: Path | None) -> Catalogue:
        """Load the catalogue with the services of a JSON or TOML file.

        Raises ConfigurationError, which names the invalid entry.
        """
        try:
            return cls() if path is None else cls(read_services(path))
        except ValueError as fault:
            raise ConfigurationError(f"KEYMAN_SERVICES_FILE {fault}") from None

    def __contains__(self, service: str) -> bool:
        return service in self._services

    def infos(self) -> list[ServiceInfo]:
        return [
            ServiceInfo(
                service.service,
                service.name,
                service.console_url,
                service.settings_schema(),
                forwarded=False,
                checked=False,
            )
            for service in self._services.values()
        ]

    def find(self, service: str) -> Service | None:
        """Return a service, or None if it is not in the catalogue."""
        return self._services.get(service)

    def name(self, service: str) -> str:
        """Return the name of a service, or its identifier if the operator has removed it from the catalogue."""
        known = self._services.get(service)
        return known.name if known is not None else service

    def prefixes(self, service: str) -> tuple[str, ...]:
        """Return the public prefixes of a service's keys: none if it has none, or is not in the catalogue."""
        known = self._services.get(service)
        return known.prefixes if known is not None else ()

    def settings(self, service: str) -> tuple[Setting, ...]:
        """Return the settings that a key for this service can have."""
        known = self._services.get(service)
        return known.settings if known is not None else ()

    def takes_json(self, service: str) -> bool:
        """Return True if a service takes a JSON credential instead of a key."""
        known = self._services.get(service)
        return known is not None and known.credential is not None

    def mask(self, service: str, value: str) -> str:
        """Return the mask of a value for this service."""
        known = self._services.get(service)
        if known is not None and known.credential is not None:
            return known.credential.mask(value)
        return mask(value, self.prefix_of(service, value))

    def prefix_of(self, service: str, value: str) -> str:
        """Return the longest public prefix of this service that the value has, or an empty text."""
        return max((prefix for prefix in self.prefixes(service) if value.startswith(prefix)), key=len, default="")

    def taker(self, credential: Mapping[str, object]) -> Service | None:
        """Return the service that takes such a JSON credential, or None."""
        taken = (one for one in self._services.values() if one.credential and one.credential.fits(credential))
        return next(taken, None)

    def exclusive_prefixes(self) -> dict[str, str]:
        """Return each prefix that only one service uses, with the identifier of this service."""
        return {prefix: service.service for prefix, service in self._exclusive.items()}


def _merged(shipped: Service | None, added: Service) -> Service:
    if shipped is None:
        return added
    given = {name: value for name in ENTRY if (value := getattr(added, name)) != _DEFAULTS.get(name)}
    if "prefix" in given:
        given["other_prefixes"] = ()
    return msgspec.structs.replace(shipped, **given)


def read_services(path: Path) -> list[Service]:
    """Read the services of a JSON or TOML file.

    Raises ValueError. Its text describes the fault and quotes nothing from the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError):
        raise ValueError("names a file that cannot be read as JSON, or as TOML if its name ends in .toml") from None
    entries = content.get("services") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise ValueError('must contain a list of services, in TOML as "[[services]]"')
    return [_entry(number, entry) for number, entry in enumerate(entries, 1)]


def _entry(number: int, entry: object) -> Service:
    try:
        return _service(entry)
    except ValueError as fault:
        raise ValueError(f"has an invalid entry {number}: {fault}") from None


def _service(entry: object) -> Service:
    if isinstance(entry, dict) and not entry.keys() <= set(ENTRY):
        raise ValueError(f"it has an unknown field; the known fields are {', '.join(ENTRY)}")
    try:
        service = msgspec.convert(entry, Service)
    except msgspec.ValidationError as fault:
        raise ValueError(str(fault)) from None
    if not _SLUG.fullmatch(service.service):
        raise ValueError("service must be 1 to 64 upper case letters, digits and _, and start with a letter")
    if not 0 < len(service.name) <= 100:
        raise ValueError("name must be 1 to 100 characters long")
    prefixes = [*service.exclusive, *([service.prefix] if service.prefix is not None else [])]
    if not all(_PREFIX.fullmatch(prefix) for prefix in prefixes):
        # With a longer prefix, every mask would show too much of the value.
        raise ValueError("a prefix must be 2 to 16 printable ASCII characters, without spaces")
    if service.console_url is not None and not _CONSOLE.fullmatch(service.console_url):
        raise ValueError("console_url must be an address that begins with https://")
    return service
