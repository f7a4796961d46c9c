"""Secret: a string that does not leave by accident."""

from __future__ import annotations

import hmac
from typing import NoReturn


class Secret:
    """A plaintext, a token or a password on its way through the process.

    `repr`, `str` and `format` show a mask; serialisers have no encoder for it, copying through pickle is refused. The
    value comes out of `reveal()` alone, so that every place where it does can be found by name.
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

    __hash__ = None  # type: ignore[assignment]  # a set of secrets would be a table of them

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not serialised")
