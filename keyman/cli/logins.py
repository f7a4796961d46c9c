"""How the commands that work on Vault log in to it. Apart from `common.py`, for the others need none of this."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from keyman.cli.common import environment
from keyman.config.settings import Settings, load
from keyman.config.vault import VaultSettings, load_vault
from keyman.dev import embedded
from keyman.dev.home import Home
from keyman.errors import ConfigurationError, VaultReason
from keyman.telemetry import Metrics, configure_logging
from keyman.vault.adapter import AsyncAdapter, VaultFault
from keyman.vault.provision import issue_credentials

T = TypeVar("T")


def admin_settings(home: Path | None) -> VaultSettings:
    """Vault with an administrator's token: KEYMAN_VAULT_TOKEN, or that of the Vault which `keyman dev` keeps.

    Raises ConfigurationError.
    """
    variables = dict(environment(home))
    if home is not None:
        variables["KEYMAN_VAULT_TOKEN"] = embedded.root_token(Home(home).vault).reveal()
    return load_vault(variables, auth="token")


def rotator_settings(home: Path | None) -> Settings:
    """The database, and Vault with a login that may rotate and rewrap: as the variables say, or as the rotator of the
    Vault which `keyman dev` keeps. Raises ConfigurationError.
    """
    settings = load(environment(home))
    if home is None:
        return settings
    try:
        issued = as_admin(admin_settings(home), lambda admin: issue_credentials(admin, "keyman-rotator"))
    except ConfigurationError as fault:
        raise ConfigurationError(f"{fault} Does keyman dev run with this home?") from None
    vault = replace(settings.vault, auth="approle", role_id=issued.role_id, secret_id=issued.secret_id)
    return replace(settings, vault=vault)


ADMIN_NEEDS = "what the policy vault-policies/keyman-admin.hcl allows"


def as_admin(settings: VaultSettings, work: Callable[[AsyncAdapter], Awaitable[T]], needs: str = ADMIN_NEEDS) -> T:
    """Do `work` with the administrator's token. Raises ConfigurationError, also for what Vault refuses: it says then
    what the token `needs`.
    """

    async def do() -> T:
        assert settings.token is not None  # `admin_settings` requires it
        admin = AsyncAdapter(settings, Metrics())
        admin.token = settings.token.reveal()
        try:
            return await work(admin)
        finally:
            await admin.close()

    configure_logging("console", "critical")  # what is wrong is said once, by the error
    try:
        return asyncio.run(do())
    except VaultFault as fault:
        raise ConfigurationError(_explained(fault, needs)) from None


def _explained(fault: VaultFault, needs: str) -> str:
    if fault.reason is VaultReason.FORBIDDEN:
        return f"Vault refuses KEYMAN_VAULT_TOKEN: it has expired, or may not do this. It needs {needs}."
    return fault.explained()
