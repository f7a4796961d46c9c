"""Issuers: who names users. Each application of keyman's is one, and others are outside, such as identity providers."""

from __future__ import annotations

import re
from typing import ClassVar, Self

from keyman.identity.identities import APPLICATION_ISSUER
from keyman.patterns import APPLICATION_NAME
from keyman.values import ApplicationName, JsonSchema

OWN = "keyman:"
"""How the issuers begin that only keyman gives."""


class Issuer(str):
    """An issuer, which is compared byte for byte: `keyman:app:` and the name of an application, or one outside."""

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        "type": "string",
        "minLength": 1,
        "maxLength": 500,
        "pattern": r"^(?!keyman:)[!-~]+$|^keyman:app:[a-z0-9][a-z0-9._-]{0,63}$",
        "examples": ["https://id.example.com"],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        if not isinstance(raw, str):
            raise ValueError("must be a string")
        if not re.fullmatch("[!-~]{1,500}", raw):
            raise ValueError("must be 1 to 500 printable ASCII characters without spaces")
        named = raw.removeprefix(APPLICATION_ISSUER)
        if raw.startswith(OWN) and (named == raw or not re.fullmatch(APPLICATION_NAME, named)):
            raise ValueError("must be keyman:app: and the name of an application, if it begins with keyman:")
        return cls(raw)

    @classmethod
    def of(cls, application: ApplicationName) -> Self:
        """Return the issuer of an application's own users."""
        return cls(f"{APPLICATION_ISSUER}{application}")

    @property
    def application(self) -> str | None:
        """The name of the application, or None for an issuer outside."""
        return self.removeprefix(APPLICATION_ISSUER) if self.startswith(APPLICATION_ISSUER) else None
