"""Sealing: one plaintext and its context in, one ciphertext out.

Values that wait in the same moment go to Vault in one batch. Nothing waits for a batch to fill: a value that arrives
while fewer than `MAX_BATCHES` are under way leaves at once, and those that arrive meanwhile leave together.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import re
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from hvac.api.secrets_engines.transit import Transit

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


@dataclass(eq=False)
class _Waiting:
    plaintext: str  # base64
    context: str  # base64
    result: asyncio.Future[Sealed]

    def __repr__(self) -> str:
        return "_Waiting(***)"


class TransitCipher:
    """A Cipher on Vault's Transit engine."""

    def __init__(self, client: VaultClient, settings: VaultSettings, guard: KeyGuard, metrics: Metrics) -> None:
        self._client = client
        self._transit = Transit(client.adapter)
        self._settings = settings
        self._guard = guard
        self._metrics = metrics
        self._queue: deque[_Waiting] = deque()
        self._sending = 0
        self._senders: set[asyncio.Task[None]] = set()  # a task that nobody refers to may be collected

    async def encrypt(self, plaintext: Secret, context: Context) -> Sealed:
        waiting = _Waiting(_encoded(plaintext), context.encoded(), asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._sending < MAX_BATCHES:
            self._sending += 1
            # In no request's context: it sends for whoever waits, and Vault's log must not call it all the first one's.
            sender = asyncio.create_task(self._send_queue(), context=contextvars.Context())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        try:
            async with asyncio.timeout(self._settings.timeout):
                # Side by side: the check costs a single caller no time, and a value sealed by a key that turns out to
                # be the wrong one is thrown away.
                sealed, _ = await asyncio.gather(waiting.result, self._guard.verify())
        except TimeoutError:
            raise VaultUnavailable(VaultReason.TIMEOUT) from None
        return sealed

    async def _send_queue(self) -> None:
        try:
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]
                batch = [waiting for waiting in batch if not waiting.result.done()]  # who gave up is not sealed
                if batch:
                    await self._send(batch)
        finally:
            # Here, not when the task is seen to be done: a value that comes in between would wait for nobody.
            self._sending -= 1

    async def _send(self, batch: list[_Waiting]) -> None:
        """Seal a batch and give each waiting caller its own result or its own failure. Raises nothing."""
        try:
            items = await self._encrypt([{"plaintext": one.plaintext, "context": one.context} for one in batch])
        except VaultUnavailable as fault:
            for waiting in batch:
                # An exception object a caller: each is raised, and gathers frames, in a task of its own.
                _settle(waiting, VaultUnavailable(fault.reason, retry_after=fault.retry_after or 5))
        except BaseException as fault:
            for waiting in batch:
                _settle(waiting, VaultUnavailable(VaultReason.ERROR))
            if not isinstance(fault, Exception):
                raise
            log.error("vault's answer to encrypt was not understood", **frames(fault))
        else:
            for waiting, item in zip(batch, items, strict=True):
                _settle(waiting, item if item is not None else VaultUnavailable(VaultReason.ERROR))

    async def _encrypt(self, items: list[dict[str, str]]) -> list[Sealed | None]:
        """The sealed items in order, None for each that Vault refused. Raises VaultUnavailable when none was tried."""
        self._metrics.vault_batch.observe(len(items))

        def request() -> Awaitable[Batch | None]:
            answer = self._transit.encrypt_data(self._settings.key, batch_input=items, mount_point=self._settings.mount)
            return batch_answer(answer, len(items))

        batch = await self._client.call("encrypt", request)
        if batch is None:
            # Vault refused the call as a whole, and does not say for which item.
            if len(items) == 1:
                return [None]
            return [sealed for item in items for sealed in await self._encrypt([item])]
        return batch.sealed()


def _encoded(plaintext: Secret) -> str:
    """Base64 of its UTF-8. Raises VaultUnavailable for a text that has none, which no parsed value is."""
    try:
        return base64.b64encode(plaintext.reveal().encode()).decode()
    except UnicodeEncodeError:
        raise_alone(VaultUnavailable(VaultReason.ERROR))  # the codec's own error holds the text


class Batch(NamedTuple):
    """Vault's answer to a batch: its results in order, and its own id of the call."""

    results: list[Any]
    request_id: str | None

    def sealed(self) -> list[Sealed | None]:
        """The ciphertexts in order; None for each that is an error, or not understood."""
        return [self._sealed(result) for result in self.results]

    def _sealed(self, result: Any) -> Sealed | None:
        if not isinstance(result, dict):
            return None
        ciphertext, version = result.get("ciphertext"), result.get("key_version")
        if result.get("error") or not isinstance(ciphertext, str) or not isinstance(version, int):
            return None
        if not ciphertext.startswith(f"vault:v{version}:"):
            return None
        return Sealed(ciphertext, version, self.request_id)


async def batch_answer(answer: Awaitable[Any], count: int) -> Batch | None:
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


def request_id(answer: Any) -> str | None:
    """Vault's own id of a call, a uuid, from its answer; None where there is none that looks like it."""
    found = answer.get("request_id") if isinstance(answer, dict) else None
    return found if isinstance(found, str) and re.fullmatch(r"[0-9a-f-]{36}", found) else None


def _settle(waiting: _Waiting, outcome: Sealed | VaultUnavailable) -> None:
    if waiting.result.done():
        return
    if isinstance(outcome, Sealed):
        waiting.result.set_result(outcome)
    else:
        waiting.result.set_exception(outcome)
