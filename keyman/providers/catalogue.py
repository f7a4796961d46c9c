"""The catalogue: the services whose keys can be stored. keyman ships some, and an operator can add others.

The prefixes are from the providers' own documentation. They are used for only two things: for the mask (`masking`), and
to refuse a key that a user has entered for the wrong service (`recognition`).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Self

import msgspec

from keyman.errors import ConfigurationError
from keyman.values import JsonSchema


class Service(msgspec.Struct, frozen=True):
    """One service. Masks show `prefix`. Only keys of this service start with one of the `exclusive` prefixes."""

    service: str
    name: str
    prefix: str | None = None
    exclusive: tuple[str, ...] = ()


class ServiceInfo(msgspec.Struct):
    """A service in the list of services."""

    service: str
    name: str


SHIPPED = (
    Service("OPENAI", "OpenAI", "sk-", ("sk-proj-", "sk-svcacct-", "sk-admin-")),
    Service("ANTHROPIC", "Anthropic", "sk-ant-", ("sk-ant-",)),
    Service("GOOGLE", "Google Gemini", "AIza", ("AIza",)),
    Service("AZURE_OPENAI", "Azure OpenAI"),
    Service("MISTRAL", "Mistral AI"),
    Service("COHERE", "Cohere"),
    Service("GROQ", "Groq", "gsk_", ("gsk_",)),
    Service("XAI", "xAI", "xai-", ("xai-",)),
    Service("DEEPSEEK", "DeepSeek", "sk-"),
    Service("PERPLEXITY", "Perplexity", "pplx-", ("pplx-",)),
    Service("TOGETHER", "Together AI", "tgp_v1_", ("tgp_v1_",)),
    Service("OPENROUTER", "OpenRouter", "sk-or-", ("sk-or-",)),
    Service("HUGGINGFACE", "Hugging Face", "hf_", ("hf_",)),
    Service("REPLICATE", "Replicate", "r8_", ("r8_",)),
    Service("FIREWORKS", "Fireworks AI", "fw_", ("fw_",)),
)

_SLUG = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_PREFIX = re.compile(r"[!-~]{2,16}")


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
    """The shipped services, then those of the operator. They replace shipped ones that have the same identifier."""

    def __init__(self, added: Iterable[Service] = ()) -> None:
        services = {service.service: service for service in (*SHIPPED, *added)}
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
        return [ServiceInfo(service.service, service.name) for service in self._services.values()]

    def name(self, service: str) -> str:
        """Return the name of a service, or its identifier if the operator has removed it from the catalogue."""
        known = self._services.get(service)
        return known.name if known is not None else service

    def prefix(self, service: str) -> str:
        """Return the public prefix of a service's keys, or an empty text if it has none or is not in the catalogue."""
        known = self._services.get(service)
        return (known.prefix or "") if known is not None else ""

    def prefixes(self) -> dict[str, str]:
        """Return the public prefix of the keys of each service, or an empty text if it has none."""
        return {service.service: service.prefix or "" for service in self._services.values()}

    def exclusive_prefixes(self) -> dict[str, str]:
        """Return each prefix that only one service uses, with the identifier of this service."""
        return {prefix: service.service for prefix, service in self._exclusive.items()}


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
    known = Service.__struct_fields__
    if isinstance(entry, dict) and not entry.keys() <= set(known):
        raise ValueError(f"it has an unknown field; the known fields are {', '.join(known)}")
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
    return service
