"""The services that keyman ships, and what keyman knows of each.

The prefixes are from the providers' own documentation. They are used for only two things: for the mask (`masking`), and
to refuse a key that a user has entered for the wrong service (`recognition`).
"""

from __future__ import annotations

import msgspec

from keyman.providers.credentials import SERVICE_ACCOUNT, Credential
from keyman.providers.settings import API_VERSION, ENDPOINT, LOCATION, PROJECT, REGION, Setting
from keyman.providers.upstreams import UPSTREAMS, Upstream


class Service(msgspec.Struct, frozen=True):
    """One service.

    Masks show `prefix`, or one of the `other_prefixes`. Only keys of this service start with one of the `exclusive`
    prefixes. One that starts with a prefix of `admin` manages an organisation, and cannot use models: pages warn of it.
    If there is a `credential`, the service takes a JSON object instead of a key. `allowed_hosts` are hosts
    that `settings` may name: one that begins with a dot stands for all below it. Users find their keys at
    `console_url`. Without an `upstream`, the gateway does not serve it.
    """

    service: str
    name: str
    prefix: str | None = None
    exclusive: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()
    console_url: str | None = None
    other_prefixes: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    credential: Credential | None = None
    upstream: Upstream | None = None

    @property
    def slug(self) -> str:
        """The first segment of its paths at the gateway."""
        return self.service.lower().replace("_", "-")

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The public prefixes of its keys, which masks show."""
        return self.other_prefixes if self.prefix is None else (self.prefix, *self.other_prefixes)

    def settings_schema(self) -> dict[str, object]:
        """Return the JSON Schema of the settings of a key."""
        return {
            "type": "object",
            "properties": {setting.name: setting.schema(self.allowed_hosts) for setting in self.settings},
            "additionalProperties": False,
        }


_KNOWN = (
    Service(
        "OPENAI",
        "OpenAI",
        "sk-",
        ("sk-proj-", "sk-svcacct-", "sk-admin-"),
        ("sk-admin-",),
        console_url="https://platform.openai.com/api-keys",
    ),
    Service(
        "ANTHROPIC",
        "Anthropic",
        "sk-ant-",
        ("sk-ant-",),
        ("sk-ant-admin01-",),
        console_url="https://console.anthropic.com/settings/keys",
    ),
    Service(
        "GOOGLE",
        "Google Gemini",
        "AIza",
        ("AIza", "AQ."),
        console_url="https://aistudio.google.com/app/apikey",
        other_prefixes=("AQ.",),
    ),
    Service(
        "AZURE_OPENAI",
        "Azure OpenAI",
        console_url="https://portal.azure.com/",
        settings=(ENDPOINT, API_VERSION),
        allowed_hosts=(".openai.azure.com", ".services.ai.azure.com", ".cognitiveservices.azure.com"),
    ),
    Service("MISTRAL", "Mistral AI", console_url="https://console.mistral.ai/api-keys"),
    Service("COHERE", "Cohere", console_url="https://dashboard.cohere.com/api-keys"),
    Service("GROQ", "Groq", "gsk_", ("gsk_",), console_url="https://console.groq.com/keys"),
    Service("XAI", "xAI", "xai-", ("xai-",), console_url="https://console.x.ai/"),
    Service("DEEPSEEK", "DeepSeek", "sk-", console_url="https://platform.deepseek.com/api_keys"),
    Service("PERPLEXITY", "Perplexity", "pplx-", ("pplx-",), console_url="https://www.perplexity.ai/settings/api"),
    Service(
        "TOGETHER",
        "Together AI",
        "tgp_v1_",
        ("tgp_v1_",),
        console_url="https://api.together.ai/settings/api-keys",
    ),
    Service("OPENROUTER", "OpenRouter", "sk-or-", ("sk-or-",), console_url="https://openrouter.ai/settings/keys"),
    Service("HUGGINGFACE", "Hugging Face", "hf_", ("hf_",), console_url="https://huggingface.co/settings/tokens"),
    Service("REPLICATE", "Replicate", "r8_", ("r8_",), console_url="https://replicate.com/account/api-tokens"),
    Service(
        "FIREWORKS",
        "Fireworks AI",
        "fw_",
        ("fw_", "fpk_"),
        console_url="https://app.fireworks.ai/settings/users/api-keys",
        other_prefixes=("fpk_",),
    ),
    Service(
        "AWS_BEDROCK",
        "Amazon Bedrock",
        "ABSK",
        # The second half of the long one is base64 of `BedrockAPIKey-`, with which every long-term key begins.
        ("ABSKQmVkcm9ja0FQ", "bedrock-api-key-"),
        console_url="https://console.aws.amazon.com/bedrock/home#/api-keys",
        other_prefixes=("bedrock-api-key-",),
        settings=(REGION,),
    ),
    Service(
        "GOOGLE_VERTEX",
        "Google Vertex AI",
        console_url="https://console.cloud.google.com/iam-admin/serviceaccounts",
        settings=(PROJECT, LOCATION),
        credential=SERVICE_ACCOUNT,
    ),
    Service("CEREBRAS", "Cerebras", "csk-", ("csk-",), console_url="https://cloud.cerebras.ai/"),
    Service("NVIDIA", "NVIDIA", "nvapi-", ("nvapi-",), console_url="https://build.nvidia.com/settings/api-keys"),
    Service("OLLAMA_CLOUD", "Ollama Cloud", console_url="https://ollama.com/settings/keys"),
)

SHIPPED = tuple(msgspec.structs.replace(known, upstream=UPSTREAMS.get(known.service)) for known in _KNOWN)
