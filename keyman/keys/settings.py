"""The settings of stored keys. They are stored in clear, and decide where a key is sent.

So the audit entry that names the current value of a key also has a hash of its settings. Settings that somebody has
changed in the database are refused like a value that is not current.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Protocol
from uuid import UUID

import msgspec

NONE = "{}"
"""The stored text of no settings."""


class HasSettings(Protocol):
    """The settings of a row, and the hash of them in the audit log."""

    @property
    def settings(self) -> str: ...
    @property
    def current_settings(self) -> str | None: ...


class HasCurrent(HasSettings, Protocol):
    """What a row has, and what the audit log says that it has."""

    @property
    def value_uuid(self) -> UUID: ...
    @property
    def current_value(self) -> UUID | None: ...


def to_text(settings: Mapping[str, str]) -> str:
    """Return the text to store: JSON without white space, with the names in alphabetical order."""
    return msgspec.json.encode(dict(settings), order="deterministic").decode()


_DECODER = msgspec.json.Decoder(dict[str, str])
"""Made once, which takes ten times as long as to decode the settings of a key."""


def from_text(text: str) -> dict[str, str] | None:
    """Return the stored settings, or None if they were damaged: keyman has not written this text.

    SQLite also stores bytes in a column of texts.
    """
    try:
        return _DECODER.decode(text) if isinstance(text, str) else None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def settings_hash(text: str) -> str:
    """Return the SHA-256 of the stored text, in hex, for the audit log."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def has_current_settings(row: HasSettings) -> bool:
    """Return True if the settings can be read, and are those that the audit log names.

    An entry from before keys had settings has no hash. Then the key has none.
    """
    if from_text(row.settings) is None:
        return False
    return settings_hash(row.settings) == (row.current_settings or _HASH_OF_NONE)


def is_current(row: HasCurrent) -> bool:
    """Return True if value and settings are those that the audit log names."""
    return row.value_uuid == row.current_value and has_current_settings(row)


_HASH_OF_NONE = settings_hash(NONE)
