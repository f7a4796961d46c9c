"""`keyman db`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from keyman import migrations
from keyman.cli.common import database_url, home_option
from keyman.cli.groups import Group
from keyman.migrations.rights import Planes


@click.group("db", cls=Group)
def group() -> None:
    """The database's schema."""


@group.command("upgrade")
@click.option("--management", metavar="USER", help="The PostgreSQL user of the management plane.")
@click.option("--resolver", metavar="USER", help="The PostgreSQL user of the resolver plane.")
@click.option("--gateway", metavar="USER", help="The PostgreSQL user of the gateway plane, if you use it.")
@home_option
def upgrade(management: str | None, resolver: str | None, gateway: str | None, home: Path | None) -> None:
    """Upgrade the schema to the version that this keyman needs. You can run this any number of times.

    With --management and --resolver, these users get exactly the rights that their planes need, and so does the user
    of --gateway. The management plane can then not register applications, and no plane can change the audit log. Give
    the options at every upgrade, and run it as the user that owns the tables.
    """
    if (management is None) != (resolver is None):
        raise click.UsageError("Give both --management and --resolver, or neither.")
    if gateway is not None and management is None:
        raise click.UsageError("Give --gateway together with --management and --resolver.")
    planes = Planes(management, resolver, gateway) if management is not None and resolver is not None else None
    before, after = asyncio.run(migrations.upgrade(database_url(home), planes))
    message = f"Already at {after}." if before == after else f"Upgraded from {before or 'empty'} to {after}."
    click.echo(message, err=True)
    if planes is not None:
        *others, last = planes.rights()
        click.echo(f"{', '.join(others)} and {last} now have the rights of their planes.", err=True)


@group.command("check")
@home_option
def check(home: Path | None) -> None:
    """Compare the schema with the one that this keyman needs. The exit code is 1 when they differ."""
    differences = asyncio.run(migrations.differences(database_url(home)))
    for difference in differences:
        click.echo(difference)
    if differences:
        click.echo("The schema is not up to date. Run: keyman db upgrade", err=True)
        sys.exit(1)
    click.echo("The schema is up to date.", err=True)
