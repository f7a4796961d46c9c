"""Fingerprints of values, which show that a user has stored the same value before.

A fingerprint is an HMAC-SHA-256 by Vault, with a key for nothing else. So nobody can test a guess of a value with only
the database. It covers the owner and the service: two users with the same value have different fingerprints.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Sequence
from time import monotonic
from typing import Protocol
from uuid import UUID

from keyman.batching import Batcher
from keyman.config.vault import VaultSettings
from keyman.errors import VaultReason, VaultUnavailable
from keyman.logs import frames, log
from keyman.secret import Secret
from keyman.vault.adapter import extract
from keyman.vault.login import VaultClient

MAX_BATCH = 200
"""Values in one call, as many as are sealed in one."""

MAX_BATCHES = 2
"""Batches that run at once, as for sealing."""

PAUSE = 30.0
"""Seconds after a failure in which Vault is not asked. An installation whose policy is older than this has no right to
ask, and would otherwise make a call for nothing at each write.
"""

SIZE = 32
"""Bytes of a fingerprint."""


class Fingerprints(Protocol):
    """Computes fingerprints.

    `start` begins at once, so that the value can be sealed at the same time. The result is None if an implementation
    cannot compute it, and never an exception: a key is stored with or without one. Nothing that it logs contains the
    value.
    """

    def start(self, deployment: UUID, owner_id: int, service: str, value: Secret) -> Awaitable[bytes | None]: ...


class TransitFingerprints:
    """Fingerprints by Vault's Transit engine."""

    def __init__(self, client: VaultClient, settings: VaultSettings) -> None:
        self._client = client
        self._settings = settings
        self._batcher = Batcher[dict[str, str], bytes | None](
            self._compute, self._pause, max_batch=MAX_BATCH, max_batches=MAX_BATCHES
        )
        self._silent_until = float("-inf")

    def start(self, deployment: UUID, owner_id: int, service: str, value: Secret) -> Awaitable[bytes | None]:
        if monotonic() < self._silent_until:
            nothing: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
            nothing.set_result(None)
            return nothing
        item = {"input": base64.b64encode(_message(deployment, owner_id, service, value)).decode()}
        return self._batcher.submit(item, self._settings.timeout)

    async def close(self) -> None:
        """Wait for the batches that are running. A later `start` raises BatcherClosed."""
        await self._batcher.close()

    def _pause(self, _fault: BaseException) -> None:
        """Do not ask for a while. The fault is in Vault's metrics."""
        self._silent_until = monotonic() + PAUSE

    async def _compute(self, items: Sequence[dict[str, str]]) -> Sequence[bytes | None]:
        path = f"/v1/{self._settings.mount}/hmac/{self._settings.duplicates_key}/sha2-256"

        async def request() -> object:
            return await self._client.adapter.post(path, json={"batch_input": list(items)})

        answer = await self._client.call("hmac", request)
        try:
            return [_parse(result) for result in extract(answer, list, "data", "batch_results")]
        except Exception as fault:
            log.error("vault's answer to hmac was not understood", **frames(fault))
            raise


def _message(deployment: UUID, owner_id: int, service: str, value: Secret) -> bytes:
    """Return what a fingerprint is computed of: five parts, each after its length in four bytes."""
    text = ("keyman|dup|v1", str(deployment), str(owner_id), service, value.reveal())
    # An error of the codec would contain the value, so a lone surrogate is encoded, too.
    parts = [part.encode(errors="surrogatepass") for part in text]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _parse(result: object) -> bytes:
    """Return the digest in `vault:v<version>:<base64>`. Raises VaultUnavailable."""
    found = result.get("hmac") if isinstance(result, dict) else None
    try:
        digest = base64.b64decode(str(found).rpartition(":")[2], validate=True)
    except ValueError:
        digest = b""
    if len(digest) != SIZE:
        raise VaultUnavailable(VaultReason.ERROR)
    return digest
