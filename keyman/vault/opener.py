"""Opening: turns a ciphertext and its context into a plaintext. Only this module asks Vault to decrypt.

Each call has one value and is never a batch: when part of a batch fails, Vault's error contains the plaintexts of the
others. Vault answers 400 for a ciphertext of another row, and also for everything once its key was replaced. So before
a value counts as undecryptable, the sentinel must open.
"""

from __future__ import annotations

import asyncio
import base64
import hmac

from keyman.errors import Undecryptable, VaultReason, VaultUnavailable, raise_alone
from keyman.logs import log
from keyman.secret import Secret
from keyman.vault.adapter import VaultFault, extract
from keyman.vault.cipher import Context
from keyman.vault.guard import SENTINEL_PLAINTEXT, Guard, sentinel_context, wrong_key


class TransitOpener(Guard):
    """Opens values with Vault's Transit engine. It is also the guard of the plane that opens."""

    async def open(self, ciphertext: str, context: Context) -> Secret:
        deadline = asyncio.get_running_loop().time() + self._settings.timeout
        plaintext = await self._decrypt(ciphertext, context.encoded())  # which takes no longer than that
        if plaintext is None:
            try:
                async with asyncio.timeout_at(deadline):
                    # Check again: a good row must not be marked because of a short time with another Vault.
                    await self.verify(max_age=0)
                    plaintext = await self._decrypt(ciphertext, context.encoded())
            except TimeoutError:
                raise VaultUnavailable(VaultReason.TIMEOUT) from None
        if plaintext is None:
            raise Undecryptable("Vault can no longer open this key. Its owner must store it again.")
        return plaintext

    async def _check(self) -> VaultUnavailable | None:
        sentinel = await self._store.sentinel()
        if sentinel is None:
            log.info("there is no sentinel in the database yet: the management plane stores it at its first start")
            return VaultUnavailable(VaultReason.WRONG_KEY)
        try:
            if await self._opens(sentinel):
                return None
            # After a rotation, another process may have rewrapped the sentinel, and Vault may refuse older versions.
            newer = await self._store.sentinel(refresh=True)
            if newer is not None and newer != sentinel and await self._opens(newer):
                return None
        except VaultUnavailable as fault:
            return fault
        log.error("vault's key does not open the sentinel: another key, another Vault or another database")
        return wrong_key(self._client)

    async def _opens(self, sentinel: str) -> bool:
        opened = await self._decrypt(sentinel, sentinel_context(self._store.uuid))
        return opened is not None and hmac.compare_digest(opened.reveal().encode(), SENTINEL_PLAINTEXT.encode())

    async def _decrypt(self, ciphertext: str, context: str) -> Secret | None:
        """Return the plaintext, or None if Vault refuses the ciphertext with this context. Raises VaultUnavailable."""

        async def request() -> Secret | None:
            try:
                answer = await self._transit.decrypt_data(
                    self._settings.key, ciphertext, context=context, mount_point=self._settings.mount
                )
            except VaultFault as fault:
                if fault.status == 400:
                    return None
                raise
            return _decoded(extract(answer, str, "data", "plaintext"))

        return await self._client.call("decrypt", request)


def _decoded(plaintext: str) -> Secret:
    """Decode Vault's base64. Raises VaultFault without a context, because a codec's error contains its input."""
    try:
        return Secret(base64.b64decode(plaintext, validate=True).decode())
    except ValueError:
        raise_alone(VaultFault(VaultReason.ERROR, 200))
