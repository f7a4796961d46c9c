"""Sealing: one plaintext and its context in, one ciphertext out.

Values that wait in the same moment go to Vault in one batch. Nothing waits for a batch to fill: a value that arrives
while fewer than `MAX_BATCHES` are under way leaves at once, and those that arrive meanwhile leave together.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Sequence
from typing import NamedTuple, Protocol, TypeAlias
from uuid import UUID

from hvac.api.secrets_engines.transit import Transit

from keyman.batching import Batcher, BatchRefused
from keyman.config.vault import VaultSettings
from keyman.errors import VaultReason, VaultUnavailable, raise_alone
from keyman.secret import Secret
from keyman.telemetry import Metrics, frames, log
from keyman.vault.adapter import VaultFault, taken
from keyman.vault.guard import KeyGuard
from keyman.vault.login import VaultClient

MAX_BATCH = 200
"""Values in one call. OpenBao takes 1,000 JSON strings in a body, so 249 items of two fields at most."""

MAX_BATCHES = 2
"""Batches under way at once. One on its way and one being sealed keep Vault busy; more would be smaller."""


class Context(NamedTuple):
    """What a ciphertext is bound to; none of it ever changes, and with any other it does not open."""

    deployment: UUID
    user_id: int
    service: str
    value: UUID

    def encoded(self) -> str:
        """Base64 of the fixed layout `keyman|v1|<deployment>|<user id>|<service>|<value>`."""
        text = f"keyman|v1|{self.deployment}|{self.user_id}|{self.service}|{self.value}"
        return base64.b64encode(text.encode()).decode()


class Sealed(NamedTuple):
    """Vault's ciphertext (`vault:v<version>:<base64>`), the version of the key that made it, and the id by which
    Vault's own audit log knows the call; several values share one.
    """

    ciphertext: str
    key_version: int
    request_id: str | None


class Cipher(Protocol):
    """Seals values.

    An implementation fails closed: it raises VaultUnavailable, within a bound of time, when the value was not sealed
    by the right key under exactly this context; it never returns the plaintext, an empty text or another value's
    ciphertext; and nothing that it raises or logs holds the plaintext.
    """

    async def encrypt(self, plaintext: Secret, context: Context) -> Sealed: ...


Item: TypeAlias = dict[str, str]
"""A plaintext and a context, both in base64, as Transit takes them."""


class TransitCipher:
    """A Cipher on Vault's Transit engine."""

    def __init__(self, client: VaultClient, settings: VaultSettings, guard: KeyGuard, metrics: Metrics) -> None:
        self._client = client
        self._transit = Transit(client.adapter)
        self._settings = settings
        self._guard = guard
        self._metrics = metrics
        self._batcher = Batcher(self._encrypt, _failure, max_batch=MAX_BATCH, max_batches=MAX_BATCHES)

    async def encrypt(self, plaintext: Secret, context: Context) -> Sealed:
        sealing = self._batcher.submit({"plaintext": _encoded(plaintext), "context": context.encoded()})
        try:
            async with asyncio.timeout(self._settings.timeout):
                # Side by side: the check costs a single caller no time, and a value sealed by a key that turns out to
                # be the wrong one is thrown away.
                sealed, _ = await asyncio.gather(sealing, self._guard.verify())
        except TimeoutError:
            raise VaultUnavailable(VaultReason.TIMEOUT) from None
        return sealed

    async def close(self) -> None:
        """Return once nothing is under way. Whatever is asked for after that raises BatcherClosed."""
        await self._batcher.close()

    async def _encrypt(self, items: Sequence[Item]) -> list[Sealed | Exception]:
        """What became of each item, in order. Raises BatchRefused, and VaultUnavailable when none was tried."""
        self._metrics.vault_batch.observe(len(items))

        def request() -> Awaitable[Batch | None]:
            answer = self._transit.encrypt_data(
                self._settings.key, batch_input=list(items), mount_point=self._settings.mount
            )
            return batch_answer(answer, len(items))

        try:
            batch = await self._client.call("encrypt", request)
        except VaultUnavailable:
            raise
        except Exception as fault:
            log.error("vault's answer to encrypt was not understood", **frames(fault))
            raise
        if batch is None:
            raise BatchRefused("Vault refused the call, and does not say for which item.")
        return [sealed or VaultUnavailable(VaultReason.ERROR) for sealed in batch.sealed()]


def _failure(fault: BaseException) -> VaultUnavailable:
    """What one caller of a batch that failed gets."""
    if isinstance(fault, VaultUnavailable):
        return VaultUnavailable(fault.reason, retry_after=fault.retry_after or 5)
    return VaultUnavailable(VaultReason.ERROR)


def _encoded(plaintext: Secret) -> str:
    """Base64 of its UTF-8. Raises VaultUnavailable for a text that has none, which no parsed value is."""
    try:
        return base64.b64encode(plaintext.reveal().encode()).decode()
    except UnicodeEncodeError:
        raise_alone(VaultUnavailable(VaultReason.ERROR))  # the codec's own error holds the text


class Batch(NamedTuple):
    """Vault's answer to a batch: its results in order, and its own id of the call."""

    results: list[object]
    request_id: str | None

    def sealed(self) -> list[Sealed | None]:
        """The ciphertexts in order; None for each that is an error, or not understood."""
        return [self._sealed(result) for result in self.results]

    def _sealed(self, result: object) -> Sealed | None:
        if not isinstance(result, dict):
            return None
        ciphertext, version = result.get("ciphertext"), result.get("key_version")
        if result.get("error") or not isinstance(ciphertext, str) or not isinstance(version, int):
            return None
        if not ciphertext.startswith(f"vault:v{version}:"):
            return None
        return Sealed(ciphertext, version, self.request_id)


async def batch_answer(answer: Awaitable[object], count: int) -> Batch | None:
    """The answer to a batch of `count` items; None where Vault refused it as a whole (400), which does not say for
    which item. Raises VaultFault.
    """
    try:
        answered = await answer
        results = taken(answered, list, "data", "batch_results")
    except VaultFault as fault:
        if fault.status == 400:
            return None
        raise
    if len(results) != count:
        raise VaultFault(VaultReason.ERROR, 200)
    return Batch(results, request_id(answered))


def request_id(answer: object) -> str | None:
    """Vault's own id of a call, a uuid, from its answer; None where there is none that looks like it."""
    found = answer.get("request_id") if isinstance(answer, dict) else None
    return found if isinstance(found, str) and re.fullmatch(r"[0-9a-f-]{36}", found) else None
