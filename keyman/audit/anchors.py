"""An anchor records where each chain of the audit log ended at one moment.

It is a few KB of JSON and contains no secret. It proves something only if it is kept outside the database, where nobody
who can write to the database can change it. A signature, by a Transit key that no process of keyman uses, proves that
the anchor was not created later.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated
from uuid import UUID

import msgspec

from keyman.audit.chain import Head
from keyman.clock import now
from keyman.errors import ConfigurationError, raise_alone
from keyman.ids import MAX_ID

MAX_SIZE = 1_000_000
"""The maximum size of an anchor file, in bytes."""


Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)]


class AnchoredHead(msgspec.Struct, omit_defaults=True):
    """The end of a chain when the anchor was created. The entries after `base`, up to `sequence`, existed then."""

    chain: Count
    sequence: Annotated[int, msgspec.Meta(ge=1, le=MAX_ID)]
    hash: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    base: Count = 0


class Anchor(msgspec.Struct, omit_defaults=True):
    """The ends of the chains at the time `at`. `signature` is Vault's signature of `signed_part`."""

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
    """Read an anchor. Raises ConfigurationError if the file is not an anchor, or if it is of another deployment."""
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
        raise_alone(
            ConfigurationError(f"{path} is not an anchor. Give a file with the output of `keyman audit anchor`.")
        )
    if anchor.deployment != deployment:
        raise ConfigurationError(f"The anchor {path} belongs to another deployment than this database.")
    return anchor
