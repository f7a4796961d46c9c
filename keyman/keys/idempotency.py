"""`Idempotency-Key`: a repeated POST gets the first answer again.

The body contains a plaintext. So keyman stores only its HMAC, with the client's idempotency key as the HMAC key, and
only a hash of that key. An attacker with the database cannot test a guess of the body without guessing the key too.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple, TypeVar

import msgspec
from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.clock import now
from keyman.errors import Conflict, FieldError, IdempotencyMismatch, InvalidRequest, raise_alone
from keyman.ids import UserId
from keyman.keys.tables import idempotency
from keyman.storage.group import gathered
from keyman.storage.statements import Command, Query
from keyman.storage.transactions import Database
from keyman.storage.types import UtcTime

T = TypeVar("T")

LIFETIME = timedelta(hours=24)

MAX_LENGTH = 255
"""The maximum number of characters of an Idempotency-Key."""

PATTERN = r"^[\x20-\x7e]+$"
"""Printable ASCII, for the parser and for the OpenAPI document."""


@dataclass(frozen=True)
class IdempotencyKey:
    """The idempotency key of a client and its request, as hashes."""

    user_id: UserId
    key_hash: bytes
    fingerprint: bytes

    @classmethod
    def parse(cls, header: str, user_id: UserId, body: bytes) -> IdempotencyKey:
        """Parse the header. Raises InvalidRequest for a key that is empty, too long or not printable ASCII."""
        if len(header) > MAX_LENGTH or not re.fullmatch(PATTERN, header):
            raise InvalidRequest.at(FieldError("Idempotency-Key", "must be 1 to 255 printable ASCII characters"))
        secret = header.encode()
        return cls(
            user_id,
            hashlib.sha256(b"keyman idempotency key\0" + secret).digest(),
            hmac.digest(secret, body, "sha256"),
        )


async def find(db: Database, key: IdempotencyKey, kind: type[T]) -> T | None:
    """Return the first answer, which is of this kind, or None if there was none in the last 24 hours.

    Raises IdempotencyMismatch. Raises Conflict if the stored answer was damaged: to carry the request out again would
    store a second key.
    """
    async with db.read() as connection:
        row = await _FIND.first(connection, user_id=key.user_id, key_hash=key.key_hash, ended_before=now() - LIFETIME)
    if row is None:
        return None
    if not hmac.compare_digest(row.fingerprint, key.fingerprint):
        raise IdempotencyMismatch(
            "This Idempotency-Key was used with another body in the last 24 hours. Use a new one for a new request."
        )
    try:
        return msgspec.json.decode(row.response, type=kind)
    except (msgspec.MsgspecError, UnicodeError):
        raise_alone(
            Conflict(
                "This request was carried out before, but its answer can no longer be read. Look for the key in the "
                "list."
            )
        )


async def keep(connection: AsyncConnection, key: IdempotencyKey, answer: object) -> None:
    """Store the first answer, in the transaction of the change itself.

    Raises IntegrityError when the same key was stored at the same moment. The transaction is then rolled back, and
    `find` returns the answer.
    """
    await gathered(connection, _keep_all, (key, answer))


async def _keep_all(connection: AsyncConnection, kept: Sequence[tuple[IdempotencyKey, object]]) -> list[None]:
    moment = now()
    await _FORGET.execute_many(
        connection,
        [{"of_user": key.user_id, "of_hash": key.key_hash, "ended_before": moment - LIFETIME} for key, _ in kept],
    )
    await _KEEP.execute_many(
        connection,
        [
            {
                "user_id": key.user_id,
                "key_hash": key.key_hash,
                "fingerprint": key.fingerprint,
                "response": msgspec.json.encode(answer).decode(),
                "created_at": moment,
            }
            for key, answer in kept
        ],
    )
    return [None] * len(kept)


class _Kept(NamedTuple):
    fingerprint: bytes
    response: str


_FIND = Query(
    select(idempotency.c.fingerprint, idempotency.c.response).where(
        idempotency.c.user_id == bindparam("user_id"),
        idempotency.c.key_hash == bindparam("key_hash"),
        idempotency.c.created_at > bindparam("ended_before", type_=UtcTime),
    ),
    _Kept,
)
_FORGET = Command(
    delete(idempotency).where(
        idempotency.c.user_id == bindparam("of_user"),
        idempotency.c.key_hash == bindparam("of_hash"),
        idempotency.c.created_at <= bindparam("ended_before", type_=UtcTime),
    )
)
_KEEP = Command(insert(idempotency))
