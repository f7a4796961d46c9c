"""`keyman db`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from keyman import migrations
from keyman.cli.common import database_url, home_option
from keyman.migrations.rights import Planes


@click.group("db")
def group() -> None:
    """The database's schema."""


@group.command("upgrade")
@click.option("--management", metavar="USER", help="PostgreSQL's user of the management plane.")
@click.option("--resolver", metavar="USER", help="PostgreSQL's user of the resolver plane.")
@home_option
def upgrade(management: str | None, resolver: str | None, home: Path | None) -> None:
    """Bring the schema to what this keyman needs; may be run again and again.

    With --management and --resolver, these two users get the rights that their planes need, and lose all others: the
    management plane can then register no application, and neither can change the trail. Run it so as the user that
    owns the tables, each time.
    """
    if (management is None) != (resolver is None):
        raise click.UsageError("Give both --management and --resolver, or neither.")
    planes = Planes(management, resolver) if management is not None and resolver is not None else None
    before, after = asyncio.run(migrations.upgrade(database_url(home), planes))
    message = f"Already at {after}." if before == after else f"Upgraded from {before or 'empty'} to {after}."
    click.echo(message, err=True)
    if planes is not None:
        click.echo(f"{planes.management} and {planes.resolver} have the rights of their planes.", err=True)


@group.command("check")
@home_option
def check(home: Path | None) -> None:
    """Compare the schema with what this keyman needs; exit 1 when they differ."""
    differences = asyncio.run(migrations.differences(database_url(home)))
    for difference in differences:
        click.echo(difference)
    if differences:
        click.echo("The schema is not as it must be. Run: keyman db upgrade", err=True)
        sys.exit(1)
    click.echo("The schema is as it must be.", err=True)
