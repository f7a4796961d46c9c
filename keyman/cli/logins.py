"""How the commands that work on Vault log in to it. Apart from `common.py`, for the others need none of this."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from keyman.cli.common import environment
from keyman.config import Settings, VaultSettings, load, load_vault
from keyman.errors import VAULT_DETAILS, ConfigurationError
from keyman.home import Home
from keyman.telemetry import Metrics
from keyman.vault import embedded
from keyman.vault.adapter import AsyncAdapter, VaultFault
from keyman.vault.provision import AppRoleCredentials, issue_credentials


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
    issued = asyncio.run(_rotator(admin_settings(home)))
    vault = replace(settings.vault, auth="approle", role_id=issued.role_id, secret_id=issued.secret_id)
    return replace(settings, vault=vault)


async def _rotator(settings: VaultSettings) -> AppRoleCredentials:
    assert settings.token is not None  # `admin_settings` requires it
    admin = AsyncAdapter(settings, Metrics())
    admin.token = settings.token.reveal()
    try:
        return await issue_credentials(admin, "keyman-rotator")
    except VaultFault as fault:
        raise ConfigurationError(f"{VAULT_DETAILS[fault.reason]} Does keyman dev run with this home?") from None
    finally:
        await admin.close()
