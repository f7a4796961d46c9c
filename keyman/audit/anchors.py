"""Anchors: where each chain ended at a moment. Keep them where nobody who can write to the database can change them.

An anchor is a few KB of JSON and contains nothing secret. Its signature, by a Transit key that no process of keyman
uses, proves that it was not made later. An anchor proves something only if it is kept outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated
from uuid import UUID

import msgspec

from keyman.audit.verification import Head
from keyman.clock import now
from keyman.errors import ConfigurationError, raise_alone
from keyman.ids import MAX_ID

MAX_SIZE = 1_000_000
"""The maximum size in bytes of an anchor's file."""


Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)]


class AnchoredHead(msgspec.Struct, omit_defaults=True):
    """The end of a chain. The entries after `base` existed at that moment."""

    chain: Count
    sequence: Annotated[int, msgspec.Meta(ge=1, le=MAX_ID)]
    hash: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    base: Count = 0


class Anchor(msgspec.Struct, omit_defaults=True):
    """The ends of the chains at `at`. `signature` is Vault's signature of `signed_part`."""

    deployment: UUID
    at: datetime
    heads: list[AnchoredHead]
    signature: str | None = None

    def signed_part(self) -> bytes:
        unsigned = msgspec.structs.replace(self, signature=None)
        return msgspec.json.encode(unsigned, order="deterministic")

    def parsed_heads(self) -> list[Head]:
        return [Head(head.chain, head.sequence, bytes.fromhex(head.hash), head.base) for head in self.heads]

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2)


def create(deployment: UUID, heads: Sequence[Head]) -> Anchor:
    """Return an anchor of chains that were verified up to `heads`."""
    ends = [AnchoredHead(head.chain, head.sequence, head.hash.hex(), head.base) for head in heads if head.sequence]
    return Anchor(deployment, now(), ends)


def load(path: Path, deployment: UUID) -> Anchor:
    """Read an anchor. Raises ConfigurationError when the file is not an anchor, or is of another deployment."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SIZE + 1)
    except OSError as fault:
        raise ConfigurationError(f"The anchor {path} cannot be read: {fault.strerror}.") from None
    try:
        if len(text) > MAX_SIZE:
            raise ValueError
        anchor = msgspec.json.decode(text, type=Anchor)
        anchor.parsed_heads()
    except (ValueError, RecursionError):
        raise_alone(ConfigurationError(f"{path} is no anchor: give a file that `keyman audit anchor` has printed."))
    if anchor.deployment != deployment:
        raise ConfigurationError(f"The anchor {path} is of another deployment than this database.")
    return anchor
