"""The hash chain: what of an entry is hashed, and how one entry's hash covers the one before.

The line of an entry is JSON without white space, in UTF-8, its names in alphabetical order: every column that holds
something, as `keyman audit export` prints it, with `previous`, the hash of the entry before it in its chain. The hash
of an entry is the SHA-256 of its line. A column that is added later is not in the older lines, and changes none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from uuid import UUID

import msgspec


def genesis(deployment: UUID, chain: int) -> bytes:
    """What stands for the hash before the first entry of a chain: no other deployment's entries fit behind it."""
    return hashlib.sha256(f"keyman audit|v1|{deployment}|{chain}".encode()).digest()


def line(previous: bytes, entry: Mapping[str, object]) -> bytes:
    """What is hashed of an entry, given by its columns; `hash` is none of it."""
    told = {name: _plain(value) for name, value in entry.items() if value is not None and name != "hash"}
    return msgspec.json.encode({**told, "previous": previous.hex()}, order="deterministic")


def _plain(value: object) -> object:
    """The text or the number that a value of a type of keyman's own is stored as."""
    if isinstance(value, str):
        return str(value)
    return int(value) if isinstance(value, int) else value


def digest(previous: bytes, entry: Mapping[str, object]) -> bytes:
    """The hash of an entry, 32 bytes."""
    return hashlib.sha256(line(previous, entry)).digest()
