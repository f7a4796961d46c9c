"""`keyman audit`: list, export, verify, anchor and prune the audit log."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import click
import msgspec

from keyman.audit import anchors, export, listing, retention, verification
from keyman.audit.anchors import Anchor
from keyman.audit.chain import Head
from keyman.audit.entries import Action
from keyman.audit.listing import Filter
from keyman.audit.verification import Verified
from keyman.cli.common import home_option, parsed, run
from keyman.cli.groups import Group
from keyman.cli.progress import progress
from keyman.cli.signatures import KeyName, check_signatures, sign, signing_key_option
from keyman.cli.terminal import Duration, json_option, print_rows
from keyman.clock import now
from keyman.errors import KeymanError, raise_alone
from keyman.identity.selection import find_chosen
from keyman.keys.deployment import Deployment
from keyman.quantities import quantity
from keyman.storage.statements import UnreadableRow
from keyman.storage.transactions import Database
from keyman.values import EmailAddress, Instant

LONGEST = timedelta(days=36500)

SHOWN = 50
"""The maximum number of breaks that are printed. An audit log that was replaced as a whole has one at every entry."""


@click.group("audit", cls=Group)
def group() -> None:
    """The audit log: every change, and every time that an application asked for a key."""


@group.command("list")
@click.option("--user", "email", metavar="EMAIL", help="Only entries of this account.")
@click.option(
    "--action",
    type=click.Choice([action.value for action in Action]),
    metavar="ACTION",
    help="Only entries with this action.",
)
@click.option("--since", metavar="TIME", help="Only entries from this time on, such as 2030-01-31T00:00:00Z.")
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1, 10000), help="How many entries to list."
)
@home_option
@json_option
def list_all(
    email: str | None, action: str | None, since: str | None, limit: int, home: Path | None, as_json: bool
) -> None:
    """List the newest entries, oldest first."""
    address = None if email is None else parsed(EmailAddress, email, "--user")
    moment = None if since is None else parsed(Instant, since, "--since")

    async def work(db: Database) -> list[listing.OperatorEntry]:
        user_id = None
        if address is not None:
            async with db.read() as connection:
                user_id = await find_chosen(connection, address)
        wanted = Filter(() if action is None else (Action(action),), moment)
        return await listing.list_all(db, user_id, limit, wanted)

    columns = ("id", "at", "user_id", "actor", "action", "key_id", "service", "application", "reason", "request_id")
    with _report_unreadable():
        rows = run(work, home)
    print_rows(rows, columns, as_json=as_json)


@group.command("export")
@click.option("--since", metavar="TIME", help="Only entries from this time on, such as 2030-01-31T00:00:00Z.")
@home_option
def print_all(since: str | None, home: Path | None) -> None:
    """Print every entry as a line of JSON, chain by chain, with its hash and the hash of the entry before it."""
    moment = None if since is None else parsed(Instant, since, "--since")

    async def work(db: Database) -> int:
        count = 0
        async for text in export.lines(db, moment):
            click.echo(text)
            count += 1
        return count

    with _report_unreadable():
        count = run(work, home)
    click.echo(f"Exported {_entries(count)}.", err=True)


@group.command("verify")
@click.option(
    "--anchor",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file with the output of `keyman audit anchor`. Can be repeated. Each entry that the anchor names must "
    "still exist, unchanged.",
)
@signing_key_option
@home_option
@json_option
def verify(files: tuple[Path, ...], signing_key: str | None, home: Path | None, as_json: bool) -> None:
    """Recompute the hash chain and report every broken entry. The planes keep running meanwhile.

    Without an anchor, this detects changes by somebody who did not recompute the hashes of the entries that follow.
    With an anchor, it detects every change to entries from before the anchor.
    """
    if signing_key is not None and not files:
        raise click.UsageError("--signing-key checks the signatures of anchors: give --anchor, too")
    found, anchored = run(lambda db: _verify(db, files), home)
    if signing_key is not None:
        check_signatures(anchored, files, signing_key, home)
    if as_json:
        _print_json(found)
    _conclude(found, files, as_json=as_json)
    unchecked = [anchor for anchor in anchored if anchor.signature is not None and signing_key is None]
    if unchecked:
        click.echo("The anchor's signature was not checked. To check it, give its key with --signing-key.", err=True)


@group.command("anchor")
@click.option(
    "--sign",
    "signing_key",
    type=KeyName(),
    metavar="KEY",
    help="Sign the anchor with this key in Vault. The key is created if it does not exist.",
)
@home_option
def anchor(signing_key: str | None, home: Path | None) -> None:
    """Verify the chain and print where it ends.

    Keep the output where nobody who can write to the database can change it.
    """

    async def work(db: Database) -> Anchor:
        deployment = (await Deployment.load(db)).uuid
        found = await _verified(db, deployment)
        _refuse(found)
        return anchors.create(deployment, found.heads)

    made = run(work, home)
    if signing_key is not None:
        made.signature = sign(made, signing_key, home)
    click.echo(made.to_json())


@group.command("prune")
@click.option("--older-than", required=True, type=Duration(LONGEST), help="The minimum age of an entry, such as 400d.")
@click.option(
    "--anchor",
    "file",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file with the output of `keyman audit anchor`. Entries after the anchor are not removed.",
)
@signing_key_option
@click.option("--dry-run", is_flag=True, help="Count the entries that would be removed, and change nothing.")
@home_option
def prune(older_than: timedelta, file: Path, signing_key: str | None, dry_run: bool, home: Path | None) -> None:
    """Remove entries that are old enough and anchored. The remaining entries still verify.

    The entries are removed permanently, so export them first. An audit log that does not verify is not changed.
    """

    async def load_anchor(db: Database) -> Anchor:
        return anchors.load(file, (await Deployment.load(db)).uuid)

    if signing_key is not None:
        check_signatures([run(load_anchor, home)], [file], signing_key, home)

    async def work(db: Database) -> retention.Pruned:
        found, [anchored] = await _verify(db, [file])
        _refuse(found)
        cuts = await retention.prunable(db, now() - older_than, anchored.parsed_heads())
        total = sum(cut.entries for cut in cuts)
        if dry_run:
            return retention.Pruned(total, 0)
        with progress("Pruning", total) as advance:
            return await retention.prune(db, cuts, advance)

    pruned = run(work, home)
    if dry_run:
        click.echo(f"{_entries(pruned.entries)} would be removed.", err=True)
        return
    again = f" The current values of {quantity(pruned.carried, 'key')} were recorded again." if pruned.carried else ""
    click.echo(f"Removed {_entries(pruned.entries)}.{again}", err=True)


def _entries(count: int) -> str:
    return quantity(count, "entry", "entries")


@contextmanager
def _report_unreadable() -> Iterator[None]:
    try:
        yield
    except UnreadableRow:
        raise_alone(KeymanError("An entry is invalid. Run `keyman audit verify` to see which one."))


async def _verify(db: Database, files: Sequence[Path]) -> tuple[Verified, list[Anchor]]:
    deployment = (await Deployment.load(db)).uuid
    anchored = [anchors.load(file, deployment) for file in files]
    heads = [head for anchor in anchored for head in anchor.parsed_heads()]
    return await _verified(db, deployment, heads), anchored


async def _verified(db: Database, deployment: UUID, anchored: Sequence[Head] = ()) -> Verified:
    with progress("Verifying", await verification.count(db)) as advance:
        return await verification.verify(db, deployment, anchored, advance)


def _refuse(found: Verified) -> None:
    if found.breaks:
        raise KeymanError(
            "The audit log does not verify. It is evidence, so nothing was changed. See `keyman audit verify`."
        )


def _conclude(found: Verified, files: Sequence[Path], *, as_json: bool) -> None:
    """Print the breaks, unless they were printed as JSON, and the result. Exits with 1 if there is a break."""
    if not as_json:
        _print_breaks(found)
    if found.pruned:
        click.echo(
            f"{len(found.pruned)} of the anchored entries were pruned after that. A newer anchor covers more.", err=True
        )
    if found.pruned_since:
        click.echo(
            f"The audit log says that {_entries(found.pruned_since)} from before the anchor "
            f"{'was' if found.pruned_since == 1 else 'were'} pruned after it was taken. If no operator did that, "
            "somebody has removed them.",
            err=True,
        )
    if found.breaks:
        count = quantity(len(found.breaks), "break")
        click.echo(
            f"The audit log is broken: {count} in {_entries(found.entries)}. Do not change the "
            "database, and compare it with an export or a backup.",
            err=True,
        )
        sys.exit(1)
    if unheld := found.unheld():
        raise KeymanError(
            f"The anchored entries of {quantity(len(unheld), 'chain')} no longer exist, so the anchor proves nothing "
            "there. Give an anchor that was taken after they were pruned."
        )
    held = ""
    if files:
        held = " All anchored entries exist, unchanged." if found.held else " The anchor names no entries."
    chains = f" in {len(found.heads)} chains" if len(found.heads) > 1 else ""
    click.echo(f"Verified {_entries(found.entries)}{chains}: every hash is correct.{held}", err=True)


def _print_breaks(found: Verified) -> None:
    for one in found.breaks[:SHOWN]:
        which = f"entry {one.entry_id}" if one.entry_id is not None else "no entry"
        click.echo(f"chain {one.chain}, place {one.sequence} ({which}): {one.what}")
    if len(found.breaks) > SHOWN:
        click.echo(f"… and {len(found.breaks) - SHOWN:,} more. --json prints all of them.")


def _print_json(found: Verified) -> None:
    shown = {
        "entries": found.entries,
        "breaks": [one._asdict() for one in found.breaks],
        "heads": [{**head._asdict(), "hash": head.hash.hex()} for head in found.heads],
        "pruned_since_anchor": found.pruned_since,
        "chains_without_anchor": sorted(found.unheld()),
    }
    click.echo(msgspec.json.format(msgspec.json.encode(shown), indent=2))
