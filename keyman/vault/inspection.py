"""Reads Vault's health, the properties of a token, and the properties of the key. It changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import msgspec
from hvac.api.auth_methods.token import Token
from hvac.api.secrets_engines.transit import Transit

from keyman.config.vault import VaultSettings
from keyman.metrics import Metrics
from keyman.vault.adapter import AsyncAdapter, extract, none_if_missing, shaped
from keyman.vault.login import VaultClient

HEALTH_STATES = ("standbycode", "sealedcode", "uninitcode", "drsecondarycode", "performancestandbycode")
"""Parameters of `sys/health` that set the HTTP status of each state. Without them it would be an error status."""


class Health(msgspec.Struct):
    """`sys/health`. `server_time_utc` is in seconds."""

    initialized: bool = False
    sealed: bool = True
    standby: bool = False
    version: str = "unknown"
    server_time_utc: int | None = None


class TokenInfo(msgspec.Struct):
    """What Vault knows of a token. `ttl` is in seconds, 0 for one that never expires."""

    ttl: int = 0
    renewable: bool | None = None
    num_uses: int = 0
    policies: list[str] | None = None
    identity_policies: list[str] | None = None
    external_namespace_policies: dict[str, list[str] | None] | None = None

    def all_policies(self) -> set[str]:
        """The names of all policies that count for it: its own and those of its identity."""
        elsewhere = self.external_namespace_policies or {}
        lists = [self.policies, self.identity_policies, *elsewhere.values()]
        return {name for names in lists for name in names or ()}


async def health(settings: VaultSettings) -> Health:
    """Return `sys/health` in any state of Vault, without a token. Raises VaultFault."""
    # Without a namespace, because the health is that of the server.
    adapter = AsyncAdapter(replace(settings, namespace=None, auth_namespace=None), Metrics())
    try:
        return shaped(await adapter.get("/v1/sys/health", params=dict.fromkeys(HEALTH_STATES, "200")), Health)
    finally:
        await adapter.close()


async def own_token(client: VaultClient) -> TokenInfo:
    """Return what Vault knows about the client's token: its policies and its TTL. Raises VaultUnavailable."""

    async def lookup() -> TokenInfo:
        return shaped(await Token(client.adapter).lookup_self(), TokenInfo, "data")

    return await client.call("lookup", lookup)


async def own_capabilities(client: VaultClient, paths: Iterable[str]) -> dict[str, set[str]]:
    """Return the capabilities of the client's token at each path; an empty set for none. Raises VaultUnavailable."""
    asked = list(dict.fromkeys(paths))

    async def ask() -> dict[str, set[str]]:
        answer = extract(await client.adapter.post("/v1/sys/capabilities-self", json={"paths": asked}), dict, "data")
        return {path: set(extract(answer, list, path)) - {"deny"} for path in asked}

    return await client.call("capabilities", ask)


async def key_properties(client: VaultClient, settings: VaultSettings) -> dict[str, object] | None:
    """Return the properties of the key, or None when it does not exist. Raises VaultUnavailable."""

    async def read() -> dict[str, object] | None:
        answer = await none_if_missing(Transit(client.adapter).read_key(settings.key, settings.mount))
        return None if answer is None else extract(answer, dict, "data")

    return await client.call("read-key", read)
