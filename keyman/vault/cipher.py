"""Sealing: turns a plaintext and its context into a ciphertext.

Values that wait at the same moment go to Vault in one batch. No value waits for a batch to fill: while fewer than
`MAX_BATCHES` batches are running, a value is sent at once. Values that arrive later wait and are sent together.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeAlias
from uuid import UUID

from hvac.api.secrets_engines.transit import Transit

from keyman.batching import Batcher, BatchRefused
from keyman.config.vault import VaultSettings
from keyman.errors import VaultReason, VaultUnavailable, raise_alone
from keyman.logs import frames, log
from keyman.metrics import Metrics
from keyman.secret import Secret
from keyman.vault.adapter import VaultFault, extract
from keyman.vault.guard import KeyGuard
from keyman.vault.login import VaultClient

MAX_BATCH = 200
"""Values in one call. OpenBao takes 1,000 JSON strings in a body, so 249 items of two fields at most."""

MAX_BATCHES = 2
"""Batches that run at once. One in transit and one being sealed keep Vault busy; more batches would be smaller."""


class Context(NamedTuple):
    """The context of a ciphertext. It never changes, and Vault does not open the ciphertext with another one."""

    deployment: UUID
    owner_id: int
    service: str
    value: UUID

    def encoded(self) -> str:
        """Return base64 of the fixed layout `keyman|v1|<deployment>|<owner id>|<service>|<value>`."""
        text = f"keyman|v1|{_text(self.deployment)}|{self.owner_id}|{self.service}|{self.value}"
        return base64.b64encode(text.encode()).decode()


@lru_cache(maxsize=4)
def _text(deployment: UUID) -> str:
    """Return a uuid as text. It is remembered: a process has one deployment, and the text takes as long as the rest."""
    return str(deployment)


class Sealed(NamedTuple):
    """A sealed value: Vault's ciphertext (`vault:v<version>:<base64>`), the key version that made it, and the id of the
    call in Vault's own audit log. The values of one batch share this id.
    """

    ciphertext: str
    key_version: int
    request_id: str | None


class Cipher(Protocol):
    """Seals values.

    An implementation fails closed. It raises VaultUnavailable, within a limited time, unless the value was sealed by
    the right key with exactly this context. It never returns the plaintext, an empty text or another value's
    ciphertext. Nothing that it raises or logs contains the plaintext.
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
        item = {"plaintext": _encoded(plaintext), "context": context.encoded()}
        sealing = self._batcher.submit(item, self._settings.timeout)
        if self._guard.is_fresh():
            return await sealing
        try:
            async with asyncio.timeout(self._settings.timeout):
                # In parallel, so that the check takes no extra time. If it finds the wrong key, the sealed value is
                # discarded.
                sealed, _ = await asyncio.gather(sealing, self._guard.verify())
        except TimeoutError:
            raise VaultUnavailable(VaultReason.TIMEOUT) from None
        return sealed

    async def close(self) -> None:
        """Wait for the batches that are running. A later `encrypt` raises BatcherClosed."""
        await self._batcher.close()

    async def _encrypt(self, items: Sequence[Item]) -> list[Sealed | Exception]:
        """Return the result of each item, in order. Raises BatchRefused, and VaultUnavailable when Vault tried none."""
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
            raise BatchRefused("Vault refused the call, and does not say because of which item.")
        return [sealed or VaultUnavailable(VaultReason.ERROR) for sealed in batch.sealed()]


def _failure(fault: BaseException) -> VaultUnavailable:
    """Return the exception for one caller of a batch that failed."""
    if isinstance(fault, VaultUnavailable):
        return VaultUnavailable(fault.reason, retry_after=fault.retry_after or 5)
    if isinstance(fault, TimeoutError):
        return VaultUnavailable(VaultReason.TIMEOUT)
    return VaultUnavailable(VaultReason.ERROR)


def _encoded(plaintext: Secret) -> str:
    """Return base64 of the UTF-8 text. Raises VaultUnavailable for a lone surrogate, which no parsed value has."""
    try:
        return base64.b64encode(plaintext.reveal().encode()).decode()
    except UnicodeEncodeError:
        raise_alone(VaultUnavailable(VaultReason.ERROR))  # the codec's error contains the text


class Batch(NamedTuple):
    """Vault's answer to a batch: the results in order, and Vault's id of the call."""

    results: list[object]
    request_id: str | None

    def sealed(self) -> list[Sealed | None]:
        """Return the ciphertexts in order, None for each result that is an error or has an unknown form."""
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
    """Return the answer to a batch of `count` items, or None when Vault refused the whole batch (400).

    Vault does not say because of which item. Raises VaultFault.
    """
    try:
        answered = await answer
        results = extract(answered, list, "data", "batch_results")
    except VaultFault as fault:
        if fault.status == 400:
            return None
        raise
    if len(results) != count:
        raise VaultFault(VaultReason.ERROR, 200)
    return Batch(results, request_id(answered))


def request_id(answer: object) -> str | None:
    """Return Vault's id of a call, a uuid, from its answer; None when there is none or it has another form."""
    found = answer.get("request_id") if isinstance(answer, dict) else None
    return found if isinstance(found, str) and re.fullmatch(r"[0-9a-f-]{36}", found) else None
