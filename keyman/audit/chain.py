"""The hash chain: the hash of each entry covers the hash of the entry before it.

The hash of an entry is the SHA-256 of its line. The line is JSON in UTF-8, without white space, with the names in
alphabetical order. It contains every column except `hash` that is not null, as `keyman audit export` prints it, and
`previous`, the hash of the entry before it in its chain. A column that a later version adds is null in older entries,
so their lines and hashes do not change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple
from uuid import UUID

import msgspec


def genesis(deployment: UUID, chain: int) -> bytes:
    """Return the hash that is `previous` for the first entry of a chain.

    It differs for each deployment, so entries of another deployment do not verify here.
    """
    return hashlib.sha256(f"keyman audit|v1|{deployment}|{chain}".encode()).digest()


def line(previous: bytes, entry: Mapping[str, object]) -> bytes:
    """Return the bytes that are hashed for an entry, given its columns. The column `hash` is left out."""
    told = {name: _plain(value) for name, value in entry.items() if value is not None and name != "hash"}
    return msgspec.json.encode({**told, "previous": previous.hex()}, order="deterministic")


def _plain(value: object) -> object:
    """Return the plain string or integer for a value of keyman's own types, and any other value unchanged."""
    if isinstance(value, str):
        return str(value)
    return int(value) if isinstance(value, int) else value


def digest(previous: bytes, entry: Mapping[str, object]) -> bytes:
    """Return the hash of an entry: 32 bytes."""
    return hashlib.sha256(line(previous, entry)).digest()


class Head(NamedTuple):
    """The place of an entry in its chain, and its hash, which covers all entries before it, back to `base`.

    `base` is the place of the last entry that was pruned, 0 if none was.
    """

    chain: int
    sequence: int
    hash: bytes
    base: int = 0
