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
"""Longer than any roll-out. An old token that is needed for longer is not being rotated."""


@click.group("app")
def group() -> None:
    """Applications, which get users' keys from the resolver."""


@group.command("create")
@click.argument("name")
@click.option(
    "--service",
    "services",
    multiple=True,
    required=True,
    metavar="SERVICE",
    help="A service of the catalogue, such as OPENAI, whose keys the application may get. Can be repeated.",
)
@home_option
def create(name: str, services: tuple[str, ...], home: Path | None) -> None:
    """Register an application and print only its token on standard output. The token is not shown again."""
    wanted = parsed(ApplicationName, name, "NAME")
    known = {info.service for info in Catalogue.load(load_services_file(environment(home))).infos()}
    if not known.issuperset(services):
        raise click.BadParameter(f"the known services are {', '.join(sorted(known))}", param_hint="--service")
    registered = run(lambda db: applications.create(db, wanted, services), home)
    _print(registered, f"Registered {wanted} for {' '.join(registered.services)}.")


@group.command("rotate")
@click.argument("name")
@click.option(
    "--overlap",
    type=Duration(MAX_OVERLAP),
    default="24h",
    show_default=True,
    help="How long the existing tokens stay valid. 0s ends them at once.",
)
@home_option
def rotate(name: str, overlap: timedelta, home: Path | None) -> None:
    """Create a new token and print only the token on standard output."""
    wanted = parsed(ApplicationName, name, "NAME")
    registered = run(lambda db: applications.rotate(db, wanted, overlap), home)
    ending = f"at {now() + overlap:%Y-%m-%d %H:%MZ}" if overlap else "now"
    _print(registered, f"Created a new token for {wanted}. Its old tokens end {ending}.")


@group.command("list")
@home_option
@json_option
def list_all(home: Path | None, as_json: bool) -> None:
    """List the applications, with the hints of their tokens and the time of the last use."""
    columns = ("name", "services", "tokens", "created_at", "last_used_at", "disabled_at")
    print_rows(run(applications.list_all, home), columns, as_json=as_json)


@group.command("revoke")
@click.argument("name")
@home_option
def revoke(name: str, home: Path | None) -> None:
    """Revoke an application and all its tokens, at once and permanently."""
    wanted = parsed(ApplicationName, name, "NAME")
    run(lambda db: applications.revoke(db, wanted), home)
    click.echo(f"Revoked {wanted}.", err=True)


def _print(registered: Registered, message: str) -> None:
    click.echo(registered.token.reveal())
    click.echo(message, err=True)
