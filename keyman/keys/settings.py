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

from keyman.storage.statements import UnreadableRow

NONE = "{}"
"""The stored text of no settings."""


class HasCurrent(Protocol):
    """What a row has, and what the audit log says that it has."""

    @property
    def value_uuid(self) -> UUID: ...
    @property
    def settings(self) -> str: ...
    @property
    def current_value(self) -> UUID | None: ...
    @property
    def current_settings(self) -> str | None: ...


def to_text(settings: Mapping[str, str]) -> str:
    """Return the text to store: JSON without white space, with the names in alphabetical order."""
    return msgspec.json.encode(dict(settings), order="deterministic").decode()


def from_text(text: str) -> dict[str, str]:
    """Return the stored settings. Raises UnreadableRow for a text that keyman has not written."""
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise UnreadableRow("the settings of a key cannot be read") from None


def settings_hash(text: str) -> str:
    """Return the SHA-256 of the stored text, in hex, for the audit log."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def has_current_settings(row: HasCurrent) -> bool:
    """Return True if the settings are those that the audit log names.

    An entry from before keys had settings has no hash. Then the key has none.
    """
    return settings_hash(row.settings) == (row.current_settings or _HASH_OF_NONE)


def is_current(row: HasCurrent) -> bool:
    """Return True if value and settings are those that the audit log names."""
    return row.value_uuid == row.current_value and has_current_settings(row)


_HASH_OF_NONE = settings_hash(NONE)
