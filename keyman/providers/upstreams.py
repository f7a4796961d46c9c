"""Where each shipped service is: its base URL, how it takes a key, and what the gateway sends there.

The values are from the documentation of the providers. An operator can change each in the services file. Nobody can
delete, upload, train or manage an organisation through the gateway, unless an operator adds the path.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec

from keyman.providers.paths import PathRule

BEARER = "bearer"
"""The `auth` of a service that takes its key as `Authorization: Bearer`."""

ENDPOINT_URL = "{endpoint}"
"""The base URL of a service whose keys name it in their settings."""


class Check(msgspec.Struct, frozen=True):
    """The request of a live check, which reads and costs nothing. It has a `path` below the base URL, or a `url`."""

    method: str = "GET"
    path: str | None = None
    url: str | None = None


class Upstream(msgspec.Struct, frozen=True):
    """Where the gateway sends the requests for a service.

    `{name}` in `base_url` stands for a setting of the key. `auth` is `bearer`, or the name of the header for the key.
    `headers` are sent unless the client sends its own. `paths` are the entries of the allow-list.
    """

    base_url: str
    paths: tuple[str, ...] = ()
    auth: str = BEARER
    check: Check | None = None
    allow_private: bool = False
    headers: tuple[tuple[str, str], ...] = ()

    def rules(self) -> list[PathRule]:
        return [PathRule.parse(entry) for entry in self.paths]

    @property
    def may_be_private(self) -> bool:
        """True if the service may be at an address that is not public, because its operator says so or writes one."""
        return self.allow_private or is_private_address(urlsplit(self.base_url).hostname or "")

    @property
    def parameters(self) -> tuple[str, ...]:
        """The settings that a key needs before its base URL is known."""
        return tuple(part.partition("}")[0] for part in self.base_url.split("{")[1:])


def is_private_address(host: str) -> bool:
    """Return True for a host that is written as an address, and not a public one."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def _posts(*paths: str) -> tuple[str, ...]:
    return tuple(f"POST {path}" for path in paths)


def _gets(*paths: str) -> tuple[str, ...]:
    return tuple(f"GET {path}" for path in paths)


def _models(base: str = "/v1") -> tuple[str, ...]:
    return _gets(f"{base}/models", f"{base}/models/{{model}}")


def _openai(base: str = "/v1", more: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the paths of an API like OpenAI's: chat, those that `more` adds, and the list of models."""
    return _posts(*(f"{base}/{name}" for name in ("chat/completions", *more))) + _models(base)


_OF_OPENAI = ("completions", "responses", "embeddings", "moderations", "images/generations", "audio/{kind}")
_GOOGLE_VERBS = ("generateContent", "streamGenerateContent", "countTokens", "embedContent", "batchEmbedContents")


def _google(base: str) -> tuple[str, ...]:
    return _posts(*(f"{base}/models/{{model}}:{verb}" for verb in _GOOGLE_VERBS)) + _models(base)


_OF_DEPLOYMENTS = ("chat/completions", "completions", "embeddings", "images/generations", "audio/{kind}")

UPSTREAMS = {
    "OPENAI": Upstream("https://api.openai.com", _openai(more=_OF_OPENAI), check=Check(path="/v1/models")),
    "ANTHROPIC": Upstream(
        "https://api.anthropic.com",
        _posts("/v1/messages", "/v1/messages/count_tokens") + _models(),
        auth="x-api-key",
        check=Check(path="/v1/models"),
        headers=(("anthropic-version", "2023-06-01"),),
    ),
    "GOOGLE": Upstream(
        "https://generativelanguage.googleapis.com",
        _google("/v1beta") + _google("/v1"),
        auth="x-goog-api-key",
        check=Check(path="/v1/models"),
    ),
    "AZURE_OPENAI": Upstream(
        ENDPOINT_URL,
        _openai("/openai/v1", _OF_OPENAI) + _posts(*(f"/openai/deployments/{{name}}/{of}" for of in _OF_DEPLOYMENTS)),
        auth="api-key",
        check=Check(path="/openai/v1/models"),
    ),
    "MISTRAL": Upstream(
        "https://api.mistral.ai",
        _openai(more=("fim/completions", "embeddings", "moderations", "ocr")),
        check=Check(path="/v1/models"),
    ),
    "COHERE": Upstream(
        "https://api.cohere.com",
        _posts("/v2/chat", "/v2/embed", "/v2/rerank", "/v1/chat", "/v1/embed", "/v1/rerank", "/v1/tokenize")
        + _posts("/compatibility/v1/chat/completions", "/compatibility/v1/embeddings")
        + _models(),
        check=Check("POST", "/v1/check-api-key"),
    ),
    "GROQ": Upstream(
        "https://api.groq.com",
        _openai("/openai/v1", ("responses", "embeddings", "audio/{kind}")),
        check=Check(path="/openai/v1/models"),
    ),
    "XAI": Upstream(
        "https://api.x.ai",
        _openai(more=("responses", "embeddings", "images/generations", "messages")),
        check=Check(path="/v1/api-key"),
    ),
    "DEEPSEEK": Upstream(
        "https://api.deepseek.com",
        _posts("/chat/completions", "/v1/chat/completions", "/beta/completions", "/anthropic/v1/messages")
        + _gets("/models", "/v1/models", "/user/balance"),
        check=Check(path="/user/balance"),
    ),
    "PERPLEXITY": Upstream("https://api.perplexity.ai", _posts("/chat/completions")),
    "TOGETHER": Upstream(
        "https://api.together.xyz",
        _openai(more=("completions", "embeddings", "images/generations", "rerank", "audio/{kind}")),
        check=Check(path="/v1/models"),
    ),
    "OPENROUTER": Upstream(
        "https://openrouter.ai/api",
        (*_openai(more=("completions", "responses", "embeddings", "messages")), "GET /v1/key"),
        check=Check(path="/v1/key"),
    ),
    "HUGGINGFACE": Upstream(
        "https://router.huggingface.co",
        _openai(more=("responses",)) + _posts("/hf-inference/models/{owner}/{model}"),
        check=Check(url="https://huggingface.co/api/whoami-v2"),
    ),
    "REPLICATE": Upstream(
        "https://api.replicate.com",
        _posts("/v1/predictions", "/v1/models/{owner}/{model}/predictions", "/v1/predictions/{id}/cancel")
        + _gets("/v1/predictions/{id}", "/v1/models/{owner}/{model}", "/v1/account"),
        check=Check(path="/v1/account"),
    ),
    "FIREWORKS": Upstream(
        "https://api.fireworks.ai/inference",
        _openai(more=("completions", "responses", "embeddings", "messages")),
        check=Check(url="https://api.fireworks.ai/v1/accounts/fireworks/models"),
    ),
    "AWS_BEDROCK": Upstream(
        "https://bedrock-runtime.{region}.amazonaws.com",
        _posts("/model/{model}/converse", "/model/{model}/converse-stream")
        + _posts("/model/{model}/invoke", "/model/{model}/invoke-with-response-stream")
        + _posts("/openai/v1/chat/completions"),
        check=Check(url="https://bedrock.{region}.amazonaws.com/foundation-models"),
    ),
    "CEREBRAS": Upstream("https://api.cerebras.ai", _openai(more=("completions",)), check=Check(path="/v1/models")),
    "NVIDIA": Upstream("https://integrate.api.nvidia.com", _openai(more=("completions", "responses", "embeddings"))),
    "OLLAMA_CLOUD": Upstream(
        "https://ollama.com",
        _posts("/api/chat", "/api/generate", "/api/embed") + _gets("/api/tags") + _openai(),
    ),
}
"""By service. A service without an entry cannot be used through the gateway: GOOGLE_VERTEX needs a token that keyman
would have to mint from the service account.
"""
