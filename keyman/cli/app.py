"""`keyman app`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from keyman.cli.common import Duration, environment, home_option, json_option, parsed, print_rows, run
from keyman.clock import now
from keyman.config.settings import load_services_file
from keyman.identity import applications
from keyman.identity.applications import Registered
from keyman.providers.catalogue import Catalogue
from keyman.values import ApplicationName

MAX_OVERLAP = timedelta(days=30)
"""Longer than any roll-out; a token that should live on is not being rotated."""


@click.group("app")
def group() -> None:
    """Applications: what gets keys back from the resolver."""


@group.command("create")
@click.argument("name")
@click.option(
    "--service",
    "services",
    multiple=True,
    required=True,
    metavar="SERVICE",
    help="A service of the catalogue, such as OPENAI, whose keys it may have; may be given several times.",
)
@home_option
def create(name: str, services: tuple[str, ...], home: Path | None) -> None:
    """Register an application and print its token, alone, on standard output. It is not shown again."""
    wanted = parsed(ApplicationName, name, "NAME")
    known = {info.service for info in Catalogue.load(load_services_file(environment(home))).infos()}
    if not known.issuperset(services):
        raise click.BadParameter(f"known are {', '.join(sorted(known))}", param_hint="--service")
    registered = run(lambda db: applications.create(db, wanted, services), home)
    _print(registered, f"Registered {wanted} for {' '.join(registered.services)}.")


@group.command("rotate")
@click.argument("name")
@click.option(
    "--overlap",
    type=Duration(MAX_OVERLAP),
    default="24h",
    show_default=True,
    help="How long the tokens that there are stay valid; 0s ends them at once.",
)
@home_option
def rotate(name: str, overlap: timedelta, home: Path | None) -> None:
    """Make a new token and print it, alone, on standard output."""
    wanted = parsed(ApplicationName, name, "NAME")
    registered = run(lambda db: applications.rotate(db, wanted, overlap), home)
    ending = f"at {now() + overlap:%Y-%m-%d %H:%MZ}" if overlap else "now"
    _print(registered, f"Made a new token for {wanted}; what it had ends {ending}.")


@group.command("list")
@home_option
@json_option
def list_all(home: Path | None, as_json: bool) -> None:
    """List the applications, with the hints of their tokens and when one was last used."""
    columns = ("name", "services", "tokens", "created_at", "last_used_at", "disabled_at")
    print_rows(run(applications.list_all, home), columns, as_json=as_json)


@group.command("revoke")
@click.argument("name")
@home_option
def revoke(name: str, home: Path | None) -> None:
    """Shut an application out at once and for good, with all its tokens."""
    wanted = parsed(ApplicationName, name, "NAME")
    run(lambda db: applications.revoke(db, wanted), home)
    click.echo(f"Revoked {wanted}.", err=True)


def _print(registered: Registered, said: str) -> None:
    click.echo(registered.token.reveal())
    click.echo(said, err=True)
