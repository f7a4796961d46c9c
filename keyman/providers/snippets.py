"""Ready lines with which somebody uses a key through the gateway: for curl, for Python, and as environment variables.

A line names the token by a variable, so no line has a secret. The names of classes, arguments and variables are those
of the providers' own SDKs. Where a provider has none of its own, or recommends that of OpenAI, it is OpenAI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # they need the server, and the command line needs only the names of variables
    from keyman.providers.services import Service
    from keyman.providers.upstreams import Upstream

VARIABLE = "KEYMAN_TOKEN"
"""The variable that has the token in every line."""

CHAT = "chat/completions"


class Sdk(NamedTuple):
    """How to use an SDK. `{url}` is the address of the service at the gateway, and `path` follows it for this SDK.

    `variables` are those that it reads itself, for the address and the token. There are none where it does not read the
    address: it would send the token to the provider.
    """

    python: str
    variables: tuple[str, str] | None
    path: str = ""


class Snippets(NamedTuple):
    """The base URL of a service at the gateway, as its SDK takes it, and the lines that use it. A text is empty where
    nothing is known.

    `url_variable` and `token_variable` are the names of the variables that the SDK reads itself.
    """

    url: str
    curl: str
    python: str
    variables: str
    url_variable: str | None = None
    token_variable: str | None = None


def snippets(service: Service, gateway: str) -> Snippets | None:
    """Return the lines for a service, or None if the gateway at this address does not forward to it."""
    if service.upstream is None:
        return None
    url = f"{gateway}/{service.slug}"
    sdk = _SDKS.get(service.service) or _openai(service.upstream)
    if sdk is None:
        return Snippets(url, _curl(service.upstream, url), "", "")
    base = f"{url}{sdk.path}"
    python = sdk.python.format(url=base, env=f'os.environ["{VARIABLE}"]')
    curl = _curl(service.upstream, url)
    if sdk.variables is None:
        return Snippets(base, curl, python, "")
    of_url, of_token = sdk.variables
    return Snippets(base, curl, python, f'export {of_url}="{base}"\nexport {of_token}="${VARIABLE}"', of_url, of_token)


def _curl(upstream: Upstream, url: str) -> str:
    """Return a call that reads and needs nothing to be filled in, or else a request to a model."""
    header = f'-H "Authorization: Bearer ${VARIABLE}"'
    plain = [entry.partition(" ")[::2] for entry in upstream.paths if "{" not in entry]
    reads = next((path for method, path in plain if method == "GET"), None)
    if reads is not None:
        return f"curl {url}{reads} {header}"
    asks = next((path for method, path in plain if method == "POST" and path.endswith(CHAT)), None)
    if asks is None:
        return ""
    body = '{"model": "MODEL", "messages": [{"role": "user", "content": "Hello"}]}'
    return f"curl {url}{asks} {header} \\\n  -H \"Content-Type: application/json\" -d '{body}'"


def _openai(upstream: Upstream) -> Sdk | None:
    """Return OpenAI's SDK for a service with an API like OpenAI's, or None."""
    ends = f"/{CHAT}"
    paths = [path for method, _, path in (entry.partition(" ") for entry in upstream.paths) if method == "POST"]
    bases = [path.removesuffix(ends) for path in paths if path.endswith(ends) and "{" not in path]
    if not bases:
        return None
    lists = f"GET {bases[0]}/models" in upstream.paths
    call = _MODELS if lists else _HELLO
    python = f'import os\nfrom openai import OpenAI\n\nclient = OpenAI(base_url="{{url}}", api_key={{env}})\n{call}'
    return Sdk(python, _OF_OPENAI, bases[0])


_OF_OPENAI = ("OPENAI_BASE_URL", "OPENAI_API_KEY")


_MODELS = "print([model.id for model in client.models.list()])"
_HELLO = (
    "answer = client.chat.completions.create(\n"
    '    model="MODEL", messages=[{{"role": "user", "content": "Hello"}}]\n'
    ")\n"
    "print(answer.choices[0].message.content)"
)

_SDKS: Mapping[str, Sdk] = {
    "ANTHROPIC": Sdk(
        "import os\nfrom anthropic import Anthropic\n\n"
        f'client = Anthropic(base_url="{{url}}", api_key={{env}})\n{_MODELS}',
        ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"),
    ),
    "GOOGLE": Sdk(
        "import os\nfrom google import genai\n\n"
        'client = genai.Client(api_key={env}, http_options={{"base_url": "{url}"}})\n'
        "print([model.name for model in client.models.list()])",
        ("GOOGLE_GEMINI_BASE_URL", "GEMINI_API_KEY"),
    ),
    "MISTRAL": Sdk(
        "import os\nfrom mistralai import Mistral\n\n"
        'client = Mistral(server_url="{url}", api_key={env})\n'
        "print([model.id for model in client.models.list().data])",
        None,
    ),
    "COHERE": Sdk(
        "import os\nimport cohere\n\n"
        'client = cohere.ClientV2(base_url="{url}", api_key={env})\n'
        "print([model.name for model in client.models.list().models])",
        ("CO_API_URL", "CO_API_KEY"),
    ),
    "GROQ": Sdk(
        "import os\nfrom groq import Groq\n\n"
        'client = Groq(base_url="{url}", api_key={env})\n'
        "print([model.id for model in client.models.list().data])",
        ("GROQ_BASE_URL", "GROQ_API_KEY"),
    ),
    "REPLICATE": Sdk(
        'import os\nimport replicate\n\nclient = replicate.Client(base_url="{url}", api_token={env})\n'
        'print(client.run("OWNER/MODEL", input={{"prompt": "Hello"}}))',
        None,
    ),
}
"""By service, where the provider's own SDK differs from OpenAI's."""

VARIABLES = frozenset({*_OF_OPENAI, *(name for sdk in _SDKS.values() for name in sdk.variables or ())})
"""All variables from which SDKs read their address and their token."""
