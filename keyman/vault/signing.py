"""Signatures of Transit over what keyman hands out: the anchors of the trail. No plane's policy reaches the key."""

from __future__ import annotations

import base64

from hvac.api.secrets_engines.transit import Transit

from keyman.config.vault import VaultSettings
from keyman.errors import ConfigurationError
from keyman.vault.adapter import AsyncAdapter, VaultFault, none_if_missing, taken


class Signer:
    """Signs with one key, with a token that may."""

    def __init__(self, adapter: AsyncAdapter, settings: VaultSettings, key: str) -> None:
        self._transit = Transit(adapter)
        self._settings = settings
        self._key = key

    async def create_key(self) -> bool:
        """Make the key, ed25519 and not exportable, unless it is there; True when it was made. Raises VaultFault, and
        ConfigurationError where a key of that name cannot sign.
        """
        existing = await none_if_missing(self._transit.read_key(self._key, mount_point=self._settings.mount))
        if existing is not None:
            if not taken(existing, bool, "data", "supports_signing"):
                raise ConfigurationError(f"The key {self._key} exists and cannot sign: name another.")
            return False
        await self._transit.create_key(
            self._key, exportable=False, key_type="ed25519", mount_point=self._settings.mount
        )
        return True

    async def sign(self, message: bytes) -> str:
        """`vault:v<version>:<base64>`. Raises VaultFault."""
        encoded = base64.b64encode(message).decode()
        answer = await self._transit.sign_data(self._key, encoded, mount_point=self._settings.mount)
        return taken(answer, str, "data", "signature")

    async def is_signature(self, message: bytes, signature: str) -> bool:
        """Raises VaultFault when Vault does not say."""
        encoded = base64.b64encode(message).decode()
        try:
            answer = await self._transit.verify_signed_data(
                self._key, encoded, signature=signature, mount_point=self._settings.mount
            )
        except VaultFault as fault:
            if fault.status == 400:  # no signature at all, or of a version that is not there
                return False
            raise
        return taken(answer, bool, "data", "valid")
