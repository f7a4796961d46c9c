"""Secret: a string that cannot be printed or serialised by accident."""

from __future__ import annotations

import hmac
from typing import NoReturn


class Secret:
    """A plaintext, a token or a password.

    `repr`, `str` and `format` show a mask. Serialisers have no encoder for it, and pickling raises TypeError. Only
    `reveal()` returns the value, so a search for this name finds every place that uses one.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    __hash__ = None  # type: ignore[assignment]  # secrets do not belong in sets and dictionaries

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be serialised")
