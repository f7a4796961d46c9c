"""Finds the service of a value by what stands in it, or by the name of its variable, such as `OPENAI_API_KEY`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Protocol

from keyman.providers.credentials import looks_like_json, parse_object


class Named(Protocol):
    """A service, of which only the identifier matters here."""

    @property
    def service(self) -> str: ...


class Known(Protocol):
    """The services that there are: the catalogue, or what a client knows of it."""

    def __contains__(self, service: str) -> bool: ...

    def services(self) -> Iterable[Named]: ...

    def exclusive_prefixes(self) -> Mapping[str, str]: ...

    def claim_on(self, value: str) -> str: ...

    def prefix_of(self, service: str, value: str) -> str: ...

    def taker(self, credential: Mapping[str, object]) -> Named | None: ...


OTHER_NAMES = {
    "AWS_BEARER_TOKEN_BEDROCK": "AWS_BEDROCK",
    "BEDROCK": "AWS_BEDROCK",
    "AZURE": "AZURE_OPENAI",
    "CLAUDE": "ANTHROPIC",
    "CO": "COHERE",
    "GEMINI": "GOOGLE",
    "GOOGLE_APPLICATION_CREDENTIALS": "GOOGLE_VERTEX",
    "GROK": "XAI",
    "HF": "HUGGINGFACE",
    "HUGGING_FACE": "HUGGINGFACE",
    "HUGGINGFACEHUB": "HUGGINGFACE",
    "OLLAMA": "OLLAMA_CLOUD",
    "PPLX": "PERPLEXITY",
    "TOGETHERAI": "TOGETHER",
    "VERTEX": "GOOGLE_VERTEX",
}
"""Words by which the providers' own SDKs and documents call a service in the name of a variable."""

_SECRET_WORDS = frozenset({"KEY", "APIKEY", "TOKEN", "SECRET", "PAT", "CREDENTIALS", "BEDROCK"})


def service_of(catalogue: Known, name: str, value: str) -> str:
    """Return the service to which a value belongs, or an empty text if it is not known.

    A value that certainly belongs to one service counts more than the name of its variable.
    """
    if looks_like_json(value):
        given = parse_object(value)
        taker = catalogue.taker(given) if given is not None else None
        return taker.service if taker is not None else ""
    claim = catalogue.claim_on(value)
    return catalogue.exclusive_prefixes()[claim] if claim else _named(catalogue, name)


def may_be_key(catalogue: Known, name: str, value: str) -> bool:
    """Return True if a value with this name may be a key, so that a person should decide.

    Others are settings, such as `PORT` and `DATABASE_URL`. A value without a name is what somebody has pasted as a key.
    """
    if not value:
        return False
    if looks_like_json(value):
        return bool(service_of(catalogue, name, value)) or not name
    if not name or catalogue.claim_on(value) or _begins_as_a_key(catalogue, value):
        return True
    return _words(name)[-1] in _SECRET_WORDS and "://" not in value


def _begins_as_a_key(catalogue: Known, value: str) -> bool:
    return any(catalogue.prefix_of(service.service, value) for service in catalogue.services())


def _named(catalogue: Known, name: str) -> str:
    """Return the service that the name of a variable names, the one with the longest name if there are several."""
    words = f"_{'_'.join(_words(name))}_"
    known = {service.service: service.service for service in catalogue.services()}
    known |= {word: service for word, service in OTHER_NAMES.items() if service in catalogue}
    found = [word for word in known if f"_{word}_" in words]
    return known[max(found, key=len)] if found else ""


def _words(name: str) -> list[str]:
    """Return the words of a name in upper case: those of `openaiApiKey` are OPENAI, API and KEY."""
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return re.findall(r"[A-Z0-9]+", spaced.upper()) or [""]
