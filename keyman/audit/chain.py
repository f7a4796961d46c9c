"""The hash chain: what is hashed of an entry, and how the hash of an entry covers the one before.

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
    """Return the hash before the first entry of a chain.

    It differs for each deployment, so entries of another do not fit.
    """
    return hashlib.sha256(f"keyman audit|v1|{deployment}|{chain}".encode()).digest()


def line(previous: bytes, entry: Mapping[str, object]) -> bytes:
    """Return the bytes that are hashed, given the columns of an entry. `hash` is not one of them."""
    told = {name: _plain(value) for name, value in entry.items() if value is not None and name != "hash"}
    return msgspec.json.encode({**told, "previous": previous.hex()}, order="deterministic")


def _plain(value: object) -> object:
    """Return the text or number that is stored for a value of keyman's own types."""
    if isinstance(value, str):
        return str(value)
    return int(value) if isinstance(value, int) else value


def digest(previous: bytes, entry: Mapping[str, object]) -> bytes:
    """Return the hash of an entry, 32 bytes."""
    return hashlib.sha256(line(previous, entry)).digest()
