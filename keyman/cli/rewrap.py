"""`keyman rotate` and `keyman rewrap`: the versions of Vault's key."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar

import click

from keyman.cli.common import home_option
from keyman.cli.logins import rotator_settings
from keyman.cli.progress import progress
from keyman.config.settings import Settings
from keyman.errors import VAULT_DETAILS, DatabaseUnavailable, KeymanError, VaultReason, VaultUnavailable
from keyman.keys.deployment import Deployment
from keyman.keys.rewrap import Rewrap, Summary, behind, oldest_version, tell_rotation
from keyman.storage.transactions import Database
from keyman.telemetry import Metrics, configure_logging
from keyman.vault.guard import KeyGuard
from keyman.vault.login import VaultClient
from keyman.vault.rotation import KeyRotation
from keyman.vault.wrapping import unwrap

T = TypeVar("T")

STOPPED = "What was rewrapped until then is stored; run `keyman rewrap` to go on."


class _Parts(NamedTuple):
    settings: Settings
    db: Database
    deployment: Deployment
    guard: KeyGuard
    rotation: KeyRotation


@click.command("rotate")
@home_option
def rotate(home: Path | None) -> None:
    """Make a new version of Vault's key, then bring every stored key to it. The service goes on meanwhile."""

    async def work(parts: _Parts) -> Summary:
        await parts.guard.verify(0)
        versions = await parts.rotation.rotate()
        click.echo(f"From now on everything is sealed with version {versions.latest} of the key.", err=True)
        await tell_rotation(parts.db, versions.latest)
        return await _rewrap(parts)

    _finish(_run(work, home))


@click.command("rewrap")
@click.option("--dry-run", is_flag=True, help="Count what is behind, and change nothing.")
@home_option
def rewrap(dry_run: bool, home: Path | None) -> None:
    """Bring every stored key to the newest version of Vault's key. The service goes on meanwhile.

    May be stopped and started again, and run twice at once. A key that Vault does not open is marked undecryptable and
    listed on standard output; the exit code is 1 then. Nobody sees a value.
    """
    if dry_run:
        _run(_count, home)
    else:
        _finish(_run(_rewrap, home))


async def _count(parts: _Parts) -> None:
    latest = (await parts.rotation.versions()).latest
    counted = await behind(parts.db, latest)
    for version, count in counted.items():
        click.echo(f"{count:,} at version {version}" + (", marked undecryptable" if version == latest else ""))
    click.echo(f"{sum(counted.values()):,} to be rewrapped; the newest version is {latest}.", err=True)


async def _rewrap(parts: _Parts) -> Summary:
    latest = (await parts.rotation.versions()).latest
    total = sum((await behind(parts.db, latest)).values())
    with progress("Rewrapping", total) as advance:
        try:
            summary = await Rewrap(parts.db, parts.deployment, parts.guard, parts.rotation, advance).run()
        except (VaultUnavailable, DatabaseUnavailable) as fault:
            raise KeymanError(f"{_said(fault)} {STOPPED}") from None
    for key in summary.refused:
        click.echo(f"key {key.id} of user {key.user_id} ({key.service}): Vault does not open it")
    for key_id in sorted(summary.damaged):
        click.echo(f"key {key_id}: its row is damaged")
    click.echo(f"Rewrapped {summary.rewrapped:,} to version {summary.latest}.", err=True)
    if not summary.damaged:  # nobody knows which version a damaged row needs
        await _advise(parts, summary)
    return summary


async def _advise(parts: _Parts, summary: Summary) -> None:
    """Which old versions nothing needs any more, and what retiring them means."""
    oldest, allowed = await oldest_version(parts.db), (await parts.rotation.versions()).min_decryption
    needed = summary.latest if oldest is None else oldest
    vault = parts.settings.vault
    config = f"vault write {vault.mount}/keys/{vault.key}/config min_decryption_version"
    if summary.refused and needed < allowed:
        click.echo(
            f"Vault opens nothing below version {allowed}, and keys are stored that were sealed with {needed}. Let it, "
            f"run `keyman rewrap` again, and raise it to {summary.latest} afterwards:\n    {config}={needed}",
            err=True,
        )
    if needed <= allowed:
        return
    click.echo(
        f"No stored key needs a version below {needed}; Vault still opens those from {allowed} on. To retire them, "
        "once `keyman rewrap --dry-run` counts nothing:\n"
        f"    {config}={needed}\n"
        "Backups of the database from before this run do not open then, unless it is lowered again.",
        err=True,
    )


def _finish(summary: Summary) -> None:
    if summary.refused:
        click.echo(
            f"{len(summary.refused):,} could not be opened and are marked undecryptable: their owners see it, and can "
            "replace or delete them. If Vault was restored from a backup, a newer one may open them.",
            err=True,
        )
    if summary.damaged:
        click.echo(
            f"{len(summary.damaged):,} rows are damaged and were left as they are: restore them from a backup.",
            err=True,
        )
    if summary.refused or summary.damaged:
        sys.exit(1)


def _run(work: Callable[[_Parts], Awaitable[T]], home: Path | None) -> T:
    configure_logging("console", "critical")  # what is wrong is said once, by the error
    try:
        return asyncio.run(_with_parts(work, rotator_settings(home)))
    except (VaultUnavailable, DatabaseUnavailable) as fault:
        raise KeymanError(_said(fault)) from None
    except KeyboardInterrupt:
        click.echo(f"Stopped. {STOPPED}", err=True)
        sys.exit(130)  # as a shell counts it


def _said(fault: VaultUnavailable | DatabaseUnavailable) -> str:
    """Their own words speak of a request that stored nothing."""
    if isinstance(fault, VaultUnavailable):
        needed = " It takes the login of keyman-rotator." if fault.reason is VaultReason.FORBIDDEN else ""
        return f"{VAULT_DETAILS[fault.reason]}{needed}"
    return f"The database cannot be used ({fault.kind or 'it did not confirm'})."


async def _with_parts(work: Callable[[_Parts], Awaitable[T]], settings: Settings) -> T:
    db, metrics = Database(settings.database_url), Metrics()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(db.close)
        deployment = await Deployment.load(db)
        vault = await unwrap(settings.vault, "keyman-rotator")
        client = VaultClient(vault, metrics)
        stack.push_async_callback(client.close)
        guard = KeyGuard(client, vault, deployment)
        return await work(_Parts(settings, db, deployment, guard, KeyRotation(client, vault)))
