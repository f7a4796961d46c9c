"""The catalogue: the services whose keys can be stored. keyman ships some, and an operator can add others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Self

import msgspec

from keyman.errors import ConfigurationError
from keyman.providers.file import SLUG, read_services
from keyman.providers.masking import mask
from keyman.providers.services import SHIPPED, Service
from keyman.providers.settings import Setting
from keyman.providers.snippets import snippets
from keyman.values import JsonSchema


class GatewayUse(msgspec.Struct):
    """How programs use a service at the gateway: the base URL for its SDK, and the variables from which the SDK itself
    reads this URL and the token. They are None if it reads none.
    """

    url: str
    url_variable: str | None
    token_variable: str | None


class ServiceInfo(msgspec.Struct):
    """A service in the list of services.

    `settings` is a JSON Schema. `forwarded` is True if the gateway serves it, and `checked` if live checks know it.
    Masks show the `prefixes`; only keys of this service begin with one of the `exclusive_prefixes`. `gateway` is None
    if the gateway does not serve it, or its address is not known.
    """

    service: str
    name: str
    console_url: str | None
    settings: JsonSchema
    forwarded: bool
    checked: bool
    prefixes: tuple[str, ...]
    exclusive_prefixes: tuple[str, ...]
    gateway: GatewayUse | None


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
        if not SLUG.fullmatch(raw):
            raise ValueError("must be a service of the catalogue, in upper case; GET /api/services lists them")
        return cls(raw)


class Catalogue:
    """The shipped services, then those of the operator. One with the identifier of a shipped one replaces that."""

    def __init__(self, added: Iterable[Service] = ()) -> None:
        services = {service.service: service for service in SHIPPED}
        services |= {service.service: service for service in added}
        self._services = services
        self._exclusive = {prefix: one.service for one in services.values() for prefix in one.exclusive}
        self._claims = tuple(self._exclusive)
        known = sorted({prefix for one in services.values() for prefix in one.prefixes}, key=len, reverse=True)
        # Not within a word: `task-` has the prefix `sk-`.
        self._prefixed = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, known))})([\w-]+)", re.ASCII)

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

    def infos(self, gateway: str | None = None) -> list[ServiceInfo]:
        """Return all services, with how they are used at the gateway with this address."""
        return [
            ServiceInfo(
                service.service,
                service.name,
                service.console_url,
                service.settings_schema(),
                forwarded=service.upstream is not None,
                checked=service.upstream is not None and service.upstream.check is not None,
                prefixes=service.prefixes,
                exclusive_prefixes=service.exclusive,
                gateway=_use_at(gateway, service),
            )
            for service in self._services.values()
        ]

    def find(self, service: str) -> Service | None:
        """Return a service, or None if it is not in the catalogue."""
        return self._services.get(service)

    def services(self) -> Iterable[Service]:
        return self._services.values()

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
        return _longest(value, self.prefixes(service))

    def after_prefixes(self, text: str) -> Iterator[str]:
        """Yield the letters, digits, hyphens and underscores that stand behind each public prefix in a text."""
        return (found[1] for found in self._prefixed.finditer(text))

    def taker(self, credential: Mapping[str, object]) -> Service | None:
        """Return the service that takes such a JSON credential, or None."""
        taken = (one for one in self._services.values() if one.credential and one.credential.fits(credential))
        return next(taken, None)

    def exclusive_prefixes(self) -> Mapping[str, str]:
        """Return each prefix that only one service uses, with the identifier of this service."""
        return self._exclusive

    def claim_on(self, value: str) -> str:
        """Return the longest prefix of the value that only one service uses, or an empty text."""
        return _longest(value, self._claims)


def _use_at(gateway: str | None, service: Service) -> GatewayUse | None:
    lines = None if gateway is None else snippets(service, gateway)
    return None if lines is None else GatewayUse(lines.url, lines.url_variable, lines.token_variable)


def _longest(value: str, prefixes: tuple[str, ...]) -> str:
    """Return the longest of these prefixes that the value has, or an empty text."""
    if not value.startswith(prefixes):
        return ""
    return max((prefix for prefix in prefixes if value.startswith(prefix)), key=len)
