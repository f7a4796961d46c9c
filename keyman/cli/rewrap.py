"""`keyman rotate` and `keyman rewrap`: the versions of the encryption key."""

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
from keyman.keys.rewrap import Rewrap, Summary, behind, oldest_version, record_rotation
from keyman.logs import configure_logging
from keyman.metrics import Metrics
from keyman.quantities import quantity
from keyman.storage.transactions import Database
from keyman.vault.guard import KeyGuard
from keyman.vault.login import VaultClient
from keyman.vault.rotation import KeyRotation
from keyman.vault.wrapping import unwrap

T = TypeVar("T")

STOPPED = "The keys that were rewrapped until then are stored. Run `keyman rewrap` to continue."


class _Parts(NamedTuple):
    settings: Settings
    db: Database
    deployment: Deployment
    guard: KeyGuard
    rotation: KeyRotation


@click.command("rotate")
@home_option
def rotate(home: Path | None) -> None:
    """Create a new version of the encryption key, then rewrap every stored key. The planes keep running meanwhile."""

    async def work(parts: _Parts) -> Summary:
        await parts.guard.verify(0)
        versions = await parts.rotation.rotate()
        click.echo(f"New values are now sealed with version {versions.latest} of the encryption key.", err=True)
        await record_rotation(parts.db, versions.latest)
        return await _rewrap(parts)

    _finish(_run(work, home))


@click.command("rewrap")
@click.option("--dry-run", is_flag=True, help="Count the stored keys with an old key version, and change nothing.")
@home_option
def rewrap(dry_run: bool, home: Path | None) -> None:
    """Rewrap every stored key with the newest version of the encryption key. The planes keep running meanwhile.

    You can stop this and start it again, and it can run twice at the same time. A key that Vault does not open is
    marked undecryptable and listed on standard output, and the exit code is 1. Nobody sees a value.
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
    click.echo(f"{quantity(sum(counted.values()), 'key')} to rewrap. The newest version is {latest}.", err=True)


async def _rewrap(parts: _Parts) -> Summary:
    latest = (await parts.rotation.versions()).latest
    total = sum((await behind(parts.db, latest)).values())
    with progress("Rewrapping", total) as advance:
        try:
            summary = await Rewrap(parts.db, parts.deployment, parts.guard, parts.rotation, advance).run()
        except (VaultUnavailable, DatabaseUnavailable) as fault:
            raise KeymanError(f"{_describe(fault)} {STOPPED}") from None
    for key in summary.refused:
        click.echo(f"key {key.id} of user {key.user_id} ({key.service}): Vault does not open it")
    for key_id in sorted(summary.damaged):
        click.echo(f"key {key_id}: its row is damaged")
    click.echo(f"Rewrapped {quantity(summary.rewrapped, 'key')} to version {summary.latest}.", err=True)
    if not summary.damaged:  # the version that a damaged row needs is not known
        await _advise(parts, summary)
    return summary


async def _advise(parts: _Parts, summary: Summary) -> None:
    """Print which old key versions can be retired, and what that means for backups."""
    oldest, allowed = await oldest_version(parts.db), (await parts.rotation.versions()).min_decryption
    needed = summary.latest if oldest is None else oldest
    vault = parts.settings.vault
    config = f"vault write {vault.mount}/keys/{vault.key}/config min_decryption_version"
    if summary.refused and needed < allowed:
        click.echo(
            f"Vault opens nothing below version {allowed}, but some stored keys were sealed with version {needed}. Run "
            f"the command below, run `keyman rewrap` again, and then raise the number to {summary.latest}:\n"
            f"    {config}={needed}",
            err=True,
        )
    if needed <= allowed:
        return
    click.echo(
        f"No stored key needs a version below {needed}. Vault still opens versions from {allowed} on. To retire the "
        "old versions, wait until `keyman rewrap --dry-run` counts 0 keys, then run:\n"
        f"    {config}={needed}\n"
        "After that, Vault does not open backups of the database from before this run, unless you lower the number "
        "again.",
        err=True,
    )


def _finish(summary: Summary) -> None:
    if summary.refused:
        click.echo(
            f"Vault did not open {quantity(len(summary.refused), 'key')}, now marked undecryptable. Owners can replace "
            "or delete such a key. If you restored Vault from a backup, a newer backup may open it.",
            err=True,
        )
    if summary.damaged:
        click.echo(
            f"Damaged, and not changed: {quantity(len(summary.damaged), 'row')}. Restore from a backup.",
            err=True,
        )
    if summary.refused or summary.damaged:
        sys.exit(1)


def _run(work: Callable[[_Parts], Awaitable[T]], home: Path | None) -> T:
    configure_logging("console", "critical")  # the error reports the fault; the log would repeat it
    try:
        return asyncio.run(_with_parts(work, rotator_settings(home)))
    except (VaultUnavailable, DatabaseUnavailable) as fault:
        raise KeymanError(_describe(fault)) from None
    except KeyboardInterrupt:
        click.echo(f"Stopped. {STOPPED}", err=True)
        sys.exit(130)  # the exit code of SIGINT in a shell


def _describe(fault: VaultUnavailable | DatabaseUnavailable) -> str:
    """Return the text for an operator. The error's own text is for the sender of a request."""
    if isinstance(fault, VaultUnavailable):
        needed = " This command needs the login of keyman-rotator." if fault.reason is VaultReason.FORBIDDEN else ""
        return f"{VAULT_DETAILS[fault.reason]}{needed}"
    return f"The database cannot be used ({fault.kind or 'it did not confirm the commit'})."


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
