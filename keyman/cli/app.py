"""`keyman app`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from keyman.cli.app_jwt import of_users, workload_of
from keyman.cli.common import environment, home_option, parsed, run
from keyman.cli.groups import Group
from keyman.cli.terminal import Duration, json_option, print_rows
from keyman.clock import now
from keyman.config.identity import WORKLOAD_AUDIENCE
from keyman.config.settings import load_services_file
from keyman.identity import applications, audiences
from keyman.identity.applications import Registered, Users
from keyman.identity.identities import APPLICATION_ISSUER
from keyman.identity.issuers import Issuer
from keyman.identity.return_urls import ReturnUrl
from keyman.providers.catalogue import Catalogue
from keyman.values import ApplicationName

MAX_OVERLAP = timedelta(days=30)
"""Longer than any roll-out. An old token that is needed for longer is not being rotated."""


@click.group("app", cls=Group)
def group() -> None:
    """Applications, which get users' keys from the resolver."""


@group.command("create")
@click.argument("name")
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="SERVICE",
    help="A service of the catalogue, such as OPENAI, whose keys the application may get. Can be repeated.",
)
@click.option(
    "--checks",
    is_flag=True,
    help="The management plane asks the gateway for live checks as this application. It gets no keys: no --service.",
)
@click.option("--portal", is_flag=True, help="The application may ask for portal links. Needs --return-url.")
@click.option(
    "--return-url",
    "return_urls",
    multiple=True,
    metavar="URL",
    help="Where the pages lead back to the application: an https URL. Can be repeated; the first is the default.",
)
@click.option(
    "--issuer",
    "issuers",
    multiple=True,
    metavar="ISSUER",
    help="Serve only the users of this issuer. Can be repeated; the first is the default.",
)
@click.option("--jwt-issuer", metavar="URL", help="The application logs in with a JWT of this issuer; it has no token.")
@click.option("--jwt-subject", metavar="SUBJECT", help="The claim sub of that JWT.")
@click.option("--jwt-audience", metavar="AUDIENCE", help=f"The audience in that JWT. [default: {WORKLOAD_AUDIENCE}]")
@click.option("--jwt-jwks-url", metavar="URL", help="Where the issuer publishes its keys, if it cannot be discovered.")
@click.option(
    "--jwt-jwks-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file with the keys of the issuer. They are stored with the application.",
)
@home_option
def create(
    name: str,
    services: tuple[str, ...],
    checks: bool,
    portal: bool,
    return_urls: tuple[str, ...],
    issuers: tuple[str, ...],
    home: Path | None,
    **jwt: object,
) -> None:
    """Register an application and print only its token on standard output. The token is not shown again.

    With --jwt-issuer and --jwt-subject it has no token, and nothing is printed there.
    """
    if checks == bool(services):
        raise click.UsageError("Give either --service or --checks.")
    if checks and (portal or issuers or any(jwt.values())):
        raise click.UsageError("With --checks, give no other option: such an application gets no keys of users.")
    if portal != bool(return_urls):
        raise click.UsageError("Give --portal and --return-url together.")
    wanted = parsed(ApplicationName, name, "NAME")
    known = {info.service for info in Catalogue.load(load_services_file(environment(home))).infos()}
    if not known.issuperset(services):
        raise click.BadParameter(f"the known services are {', '.join(sorted(known))}", param_hint="--service")
    users = Users(
        tuple(parsed(Issuer, issuer, "--issuer") for issuer in issuers),
        tuple(parsed(ReturnUrl, url, "--return-url") for url in return_urls),
    )
    for issuer in issuers:
        if not issuer.startswith(("https://", "http://", APPLICATION_ISSUER)):
            click.echo(f"Warning: the issuer {issuer} is no URL. It must equal the claim iss byte for byte.", err=True)
    if portal and issuers and not issuers[0].startswith(APPLICATION_ISSUER):
        click.echo(
            f"Warning: portal links name users of {issuers[0]}, also those who have not come from there yet. Put "
            f"--issuer {APPLICATION_ISSUER}{wanted} first unless you want this.",
            err=True,
        )
    workload = workload_of(jwt, environment(home))
    if workload is not None:
        if run(lambda db: audiences.is_of_users(db, workload.audience), home):
            raise of_users()
        run(lambda db: applications.create_workload(db, wanted, services, users, workload), home)
        click.echo(f"Registered {wanted} for {' '.join(dict.fromkeys(services))}. It logs in with a JWT.", err=True)
        return
    registered = run(lambda db: applications.create(db, wanted, services, users), home)
    _print(registered, f"Registered {wanted} for {'live checks' if checks else ' '.join(registered.services)}.")


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
    columns = (
        *("name", "services", "tokens", "created_at", "last_used_at", "disabled_at", "issuers", "return_urls"),
        *("jwt_issuer", "jwt_subject"),
    )
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
