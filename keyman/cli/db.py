"""`keyman db`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from keyman import migrations
from keyman.cli.common import database_url, home_option


@click.group("db")
def group() -> None:
    """The database's schema."""


@group.command("upgrade")
@home_option
def upgrade(home: Path | None) -> None:
    """Bring the schema to what this keyman needs; may be run again and again."""
    before, after = asyncio.run(migrations.upgrade(database_url(home)))
    message = f"Already at {after}." if before == after else f"Upgraded from {before or 'empty'} to {after}."
    click.echo(message, err=True)


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
