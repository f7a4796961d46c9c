"""JSON credentials: a service may take a JSON object instead of a key, such as Google's service-account file."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

MAX_CREDENTIAL = 16 * 1024
"""The maximum number of bytes of a JSON credential: a service-account file has about 2,400."""


class Credential(msgspec.Struct, frozen=True):
    """The form of a JSON credential: its required members, which are texts, and the one whose end its mask shows."""

    members: tuple[str, ...]
    shown_by: str

    def fits(self, given: Mapping[str, object]) -> bool:
        has_members = all(isinstance(value := given.get(name), str) and value for name in self.members)
        return has_members and re.fullmatch(r"[!-~]{8,200}", str(given[self.shown_by])) is not None

    def mask(self, value: str) -> str:
        """Return the mask of a credential that fits."""
        return f"...{str((parse_object(value) or {}).get(self.shown_by, ''))[-4:]}"


SERVICE_ACCOUNT = Credential(("type", "private_key_id", "private_key", "client_email"), "private_key_id")


def looks_like_json(text: str) -> bool:
    """Return True for a text that begins as a JSON object does. No key of a service begins with a brace."""
    return text.lstrip().startswith("{")


def parse_object(text: str) -> Mapping[str, object] | None:
    """Return the JSON object in this text, or None if it is not one."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
