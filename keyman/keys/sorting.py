"""The parameters of a list of keys: how it is sorted, which keys it has, and where a page of it begins."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from enum import StrEnum
from typing import ClassVar, NamedTuple, Self

from keyman.ids import MAX_ID
from keyman.keys.schemas import Status
from keyman.providers.verdicts import Verdict
from keyman.storage.paging import PLAIN_CURSOR, Cursor

MAX_CURSOR = 2048
"""Characters of a cursor. One with the longest label has fewer."""


class Sort(StrEnum):
    """An order of keys. In an ascending one, keys without a label or a use come first.

    Labels are compared without case, by their code points, and keys that are equal by their age.
    """

    OLDEST = "created"
    NEWEST = "-created"
    BY_NAME = "name"
    BY_NAME_DESCENDING = "-name"
    BY_USE = "used"
    BY_USE_DESCENDING = "-used"

    @property
    def is_descending(self) -> bool:
        return self.startswith("-")


class SortName(str):
    """An order in a query parameter."""

    __slots__ = ()
    schema: ClassVar[dict[str, object]] = {
        "type": "string",
        "enum": [sort.value for sort in Sort],
        "default": Sort.NEWEST.value,
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        if not isinstance(raw, str) or raw not in list(Sort):
            raise ValueError("must be created, name or used, or the same after a hyphen for a descending order")
        return cls(raw)


class StatusName(str):
    """A status in a query parameter."""

    __slots__ = ()
    schema: ClassVar[dict[str, object]] = {"type": "string", "enum": [status.value for status in Status]}

    @classmethod
    def parse(cls, raw: object) -> Self:
        if not isinstance(raw, str) or raw not in list(Status):
            raise ValueError("must be active, disabled, expired or undecryptable")
        return cls(raw)


class VerdictName(str):
    """A verdict in a query parameter."""

    __slots__ = ()
    schema: ClassVar[dict[str, object]] = {"type": "string", "enum": [verdict.value for verdict in Verdict]}

    @classmethod
    def parse(cls, raw: object) -> Self:
        if not isinstance(raw, str) or raw not in list(Verdict):
            raise ValueError("must be a verdict, such as accepted or refused")
        return cls(raw)


class Flag(str):
    """A yes or no in a query parameter."""

    __slots__ = ()
    schema: ClassVar[dict[str, object]] = {"type": "string", "enum": ["true", "false"], "default": "false"}

    @classmethod
    def parse(cls, raw: object) -> Self:
        if raw not in ("true", "false"):
            raise ValueError("must be true or false")
        return cls(raw)


class Selection(NamedTuple):
    """Which keys of an owner a list has, in which order. An empty `text` searches for nothing.

    `named` are the services whose names contain the text.
    """

    service: str | None = None
    text: str = ""
    named: tuple[str, ...] = ()
    status: Status | None = None
    verdict: Verdict | None = None
    sort: Sort = Sort.NEWEST

    @property
    def is_plain(self) -> bool:
        """Return True for all keys, newest first."""
        return self == Selection()

    @property
    def fingerprint(self) -> bytes:
        """What the cursors of this list have in common with no other list. Those of a plain list have nothing."""
        if self.is_plain:
            return b""
        asked = (self.service, self.text, self.status, self.verdict, self.sort)
        return hashlib.sha256(json.dumps(asked).encode()).digest()[:8]


class KeyCursor(Cursor):
    """Where a page of a list of keys begins, and of which list.

    In text it is base64url of the id, the fingerprint of the list, and the value by which the list is sorted. A cursor
    of a plain list has only the id.
    """

    schema: ClassVar[dict[str, object]] = {
        "type": "string",
        "pattern": f"{PLAIN_CURSOR}|^[A-Za-z0-9_-]{{22,{MAX_CURSOR}}}$",
        "examples": ["AAAAAAAAAAo"],
    }
    of: bytes = b""
    value: str = ""

    @classmethod
    def at(cls, number: int, of: bytes, value: str = "") -> Self:
        cursor = cls(number)
        cursor.of, cursor.value = of, value
        return cursor

    @classmethod
    def parse(cls, raw: object) -> Self:
        if not isinstance(raw, str) or not re.fullmatch(f"[A-Za-z0-9_-]{{22,{MAX_CURSOR}}}", raw):
            return super().parse(raw)
        try:
            content = base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4))
            value = content[16:].decode()
        except ValueError:
            content, value = b"", "\0"
        cursor = cls.at(int.from_bytes(content[:8], "big"), content[8:16], value)
        if not 0 < cursor <= MAX_ID or "\0" in value or str(cursor) != raw:
            raise ValueError("must be a cursor from a Link header")
        return cursor

    def __str__(self) -> str:
        if not self.of:
            return super().__str__()
        content = struct.pack(">q", self) + self.of + self.value.encode()
        return base64.urlsafe_b64encode(content).decode().rstrip("=")
