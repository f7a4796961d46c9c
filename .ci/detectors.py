"""What the secrets check of `make lint` and of the pre-commit hook knows beyond detect-secrets' own detectors.

`.secrets.baseline` names this file and its classes. The check runs from the root of the repository and with keyman
installed: the shape of a token and the prefixes of the services come from keyman itself.
"""

from __future__ import annotations

import re
from collections.abc import Generator

from detect_secrets.plugins.base import BasePlugin

from keyman.errors import Unauthenticated
from keyman.identity.tokens import CHECK_CHARACTERS, PREFIX, RANDOM_CHARACTERS, Token
from keyman.providers.services import SHIPPED

KEY_LENGTH = 32
"""Characters after the prefix. Providers' keys have 32 or more (Together's and Hugging Face's among the shortest); the
values in keyman's tests are shorter on purpose.
"""

_TOKEN = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{RANDOM_CHARACTERS + CHECK_CHARACTERS}}}")

# Vault's tokens since 1.10, then OpenBao's. OpenBao's needs a digit, or it would match names in code, as in `s.name`.
_VAULT_TOKEN = re.compile(
    r"\bhv[sbr]\.[\w-]{24,}"
    r"|(?<![\w.])[sbr]\.(?=[A-Za-z]*[0-9])[0-9A-Za-z]{24}(?!\w)"
)


def _provider_keys() -> re.Pattern[str]:
    """Dashes may follow a prefix of one service only. A shared prefix, such as `sk-`, also begins ordinary words."""
    exclusive = {prefix for service in SHIPPED for prefix in service.exclusive}
    shared = {service.prefix for service in SHIPPED if service.prefix} - exclusive
    return re.compile(
        rf"(?<![0-9A-Za-z])(?:(?:{'|'.join(sorted(exclusive))})[\w-]{{{KEY_LENGTH},}}"
        rf"|(?:{'|'.join(sorted(shared))})[0-9A-Za-z]{{{KEY_LENGTH},}})",
        re.ASCII,
    )


_PROVIDER_KEY = _provider_keys()


class KeymanTokenDetector(BasePlugin):
    """Finds personal access tokens and application tokens. The check characters leave no doubt."""

    secret_type = "keyman token"  # noqa: S105 - a name for people, not a secret

    def analyze_string(self, string: str) -> Generator[str, None, None]:
        for found in _TOKEN.findall(string):
            try:
                Token.parse(found)
            except Unauthenticated:
                continue
            yield found


class VaultTokenDetector(BasePlugin):
    """Finds tokens of Vault and OpenBao."""

    secret_type = "Vault token"  # noqa: S105 - a name for people, not a secret

    def analyze_string(self, string: str) -> Generator[str, None, None]:
        yield from _VAULT_TOKEN.findall(string)


class ProviderKeyDetector(BasePlugin):
    """Finds API keys of the services in the shipped catalogue, as far as a prefix gives them away."""

    secret_type = "API key of an LLM service"  # noqa: S105 - a name for people, not a secret

    def analyze_string(self, string: str) -> Generator[str, None, None]:
        yield from _PROVIDER_KEY.findall(string)
