"""Tokens: `km_`, 30 random base62 characters, and 6 check characters.

The random part has 178 bits. The check is the CRC-32 (IEEE 802.3) of its ASCII bytes, as a base62 number with leading
zeros; the alphabet is 0-9, A-Z, a-z. So a secret scanner can recognise a token without a server. The database stores
the SHA-256 of a token: 178 bits need no slow hash and no salt.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib
from enum import StrEnum
from functools import lru_cache
from typing import ClassVar, Self

from keyman.errors import Unauthenticated
from keyman.secret import Secret

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
PREFIX = "km_"
RANDOM_CHARACTERS = 30
CHECK_CHARACTERS = 6

_SHAPE = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{RANDOM_CHARACTERS}}})([0-9A-Za-z]{{{CHECK_CHARACTERS}}})")


class Scope(StrEnum):
    """A permission of a personal access token. A session has all of them."""

    KEYS_READ = "keys:read"
    KEYS_WRITE = "keys:write"
    TOKENS_MANAGE = "tokens:manage"
    AUDIT_READ = "audit:read"
    KEYS_USE = "keys:use"


ALL_SCOPES = frozenset(Scope)
DEFAULT_SCOPES = frozenset({Scope.KEYS_READ, Scope.KEYS_WRITE})


class ScopeName(str):
    """A scope in a request."""

    __slots__ = ()
    schema: ClassVar[dict[str, object]] = {"type": "string", "enum": [scope.value for scope in Scope]}

    @classmethod
    def parse(cls, raw: object) -> Self:
        if raw not in [scope.value for scope in Scope]:
            raise ValueError(f"may contain only {', '.join(Scope)}")
        return cls(raw)


class Token(Secret):
    """A personal access token or an application token. Anyone who has it can act as its user or application."""

    __slots__ = ()

    @classmethod
    def generate(cls) -> Self:
        random = "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARACTERS))
        return cls(f"{PREFIX}{random}{_check(random)}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a token. Raises Unauthenticated for a text that cannot be a token of keyman. Uses no database."""
        shape = _SHAPE.fullmatch(text)
        if shape is None or _check(shape[1]) != shape[2]:
            raise Unauthenticated("This is not an access token of keyman, or it was not copied completely.")
        return cls(text)

    def digest(self) -> bytes:
        """Return the stored form: SHA-256, 32 bytes."""
        return hashlib.sha256(self.reveal().encode()).digest()

    def hint(self) -> str:
        """Return the part that a list shows. Its four characters are from the check, and reveal 24 of 178 bits."""
        return f"{PREFIX}...{self.reveal()[-4:]}"


_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]
"""The digits of a check, two at a time: every request has one to compute."""


def _check(random: str) -> str:
    high, low = divmod(zlib.crc32(random.encode()), len(_PAIRS))
    highest, middle = divmod(high, len(_PAIRS))
    return _PAIRS[highest] + _PAIRS[middle] + _PAIRS[low]


def scopes_text(scopes: frozenset[Scope]) -> str:
    """Return the scopes as they are stored: in the order of Scope, with spaces between them."""
    return " ".join(scope for scope in Scope if scope in scopes)


@lru_cache(maxsize=64)  # keyman writes few of the orders of four words
def parse_scopes(text: str) -> frozenset[Scope]:
    return frozenset(Scope(word) for word in text.split())
