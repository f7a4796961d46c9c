"""What Vault says of itself, of a token and of the key. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hvac.api.auth_methods.token import Token
from hvac.api.secrets_engines.transit import Transit

from keyman.config.vault import VaultSettings
from keyman.telemetry import Metrics
from keyman.vault.adapter import AsyncAdapter, none_if_missing, taken
from keyman.vault.login import VaultClient

HEALTH_STATES = ("standbycode", "sealedcode", "uninitcode", "drsecondarycode", "performancestandbycode")
"""Parameters of `sys/health`: the status of each state, which is an error otherwise."""


async def health(settings: VaultSettings) -> dict[str, Any]:
    """`sys/health`, without a token, in whatever state. Raises VaultFault."""
    # Not in a namespace: the health is the server's.
    adapter = AsyncAdapter(replace(settings, namespace=None), Metrics())
    try:
        return taken(await adapter.get("/v1/sys/health", params=dict.fromkeys(HEALTH_STATES, "200")), dict)
    finally:
        await adapter.close()


async def own_token(client: VaultClient) -> dict[str, Any]:
    """What Vault knows of the client's token, its policies and its life. Raises VaultUnavailable."""

    async def lookup() -> dict[str, Any]:
        return taken(await Token(client.adapter).lookup_self(), dict, "data")

    return await client.call("lookup", lookup)


def policies(token: Mapping[str, Any]) -> set[str]:
    """The names of all policies that count for a token as `own_token` has it: its own and those of its identity."""
    elsewhere = token.get("external_namespace_policies") or {}
    lists = [token.get("policies"), token.get("identity_policies"), *elsewhere.values()]
    return {str(name) for names in lists for name in names or ()}


async def own_capabilities(client: VaultClient, paths: Iterable[str]) -> dict[str, set[str]]:
    """What the client's token may do at each path; an empty set for nothing. Raises VaultUnavailable."""
    asked = list(dict.fromkeys(paths))

    async def ask() -> dict[str, set[str]]:
        answer = taken(await client.adapter.post("/v1/sys/capabilities-self", json={"paths": asked}), dict, "data")
        return {path: set(taken(answer, list, path)) - {"deny"} for path in asked}

    return await client.call("capabilities", ask)


async def key_properties(client: VaultClient, settings: VaultSettings) -> dict[str, Any] | None:
    """What the key is, None where there is none. Raises VaultUnavailable."""

    async def read() -> dict[str, Any] | None:
        answer = await none_if_missing(Transit(client.adapter).read_key(settings.key, settings.mount))
        return None if answer is None else taken(answer, dict, "data")

    return await client.call("read-key", read)
