"""`keyman run`: a program that uses your keys through the gateway, without having one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence

import click

from keyman.cli.owner import completing
from keyman.cli.owner.offered import Offered
from keyman.cli.owner.server import Server, find_server, require_safe, server_url, url_option
from keyman.client import Service
from keyman.client.management import TOKEN
from keyman.errors import KeymanError
from keyman.providers.snippets import VARIABLES

RIVALS = {"GEMINI_API_KEY": ("GOOGLE_API_KEY",), "ANTHROPIC_API_KEY": ("ANTHROPIC_AUTH_TOKEN",)}
"""Variables that an SDK would use in place of, or beside, the one that is set. They are removed."""

MISSING, UNUSABLE = 127, 126
"""The exit codes of a shell for a command that does not exist, and for one that cannot be run."""


@click.command(
    "run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}, no_args_is_help=True
)
@click.option(
    "--service",
    "named",
    multiple=True,
    metavar="SERVICE",
    shell_complete=completing.services,
    help="Set the variables of this service. Can be repeated.  [default: all that you have an active key for]",
)
@click.option("--show", is_flag=True, help="Print which variables it would set, and run nothing.")
@url_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(named: tuple[str, ...], show: bool, url: str | None, command: tuple[str, ...]) -> None:
    """Run a program that uses your keys through keyman's gateway: keyman run -- python app.py

    It sets the variables from which the SDKs read their address and their key. The program gets your token of keyman in
    place of a key, so no key leaves keyman. Its exit code becomes that of keyman.
    """
    if not command and not show:
        raise click.UsageError("Give the command to run, such as: keyman run -- python app.py")
    server = find_server(url)
    given = _variables(server, named)
    if show:
        for name, value in given.items():
            click.echo(f"{name}={value if value != server.token.reveal() else f'(your token for {server.url})'}")
        return
    _execute(command, {**_without_rivals(os.environ, given), **given})


def _variables(server: Server, named: Sequence[str]) -> dict[str, str]:
    """Return the variables to set. Raises KeymanError if there is none."""
    with server.client() as client:
        services = client.services()
        if all(service.gateway is None for service in services):
            raise KeymanError(
                f"{server.url} does not say where its gateway is. Its operator sets KEYMAN_GATEWAY_PUBLIC_URL."
            )
        if named:
            offered = Offered(services)
            wanted = [offered.find(name) for name in named]
        else:
            owned = {key.service for key in client.keys(status="active")}
            wanted = [service for service in services if service.service in owned]
    if not wanted:
        raise KeymanError("You have no active key. Add one: keyman key add")
    return dict(_of_services(wanted, server, is_chosen=bool(named)))


def _of_services(wanted: Sequence[Service], server: Server, *, is_chosen: bool) -> Iterable[tuple[str, str]]:
    """Yield the variables of the services. Where several have the same, it is for the first one.

    Raises KeymanError if a service that somebody chose has none, or if none has one.
    """
    by_variable: dict[str, Service] = {}
    for service in wanted:
        use = service.gateway
        if use is None or use.url_variable is None or use.token_variable is None:
            why = "is not served by the gateway" if use is None else f"has no SDK with such variables; use {use.url}"
            if is_chosen:
                raise KeymanError(f"{service.name} {why}.")
            click.echo(f"keyman: {service.name} {why}.", err=True)
            continue
        first = by_variable.setdefault(use.url_variable, service)
        if first is not service:
            say = f"{use.url_variable} is that of {first.name}. For {service.name}: --service {service.service}"
            if is_chosen:
                raise KeymanError(f"{say}, without {first.service}")
            click.echo(f"keyman: {say}", err=True)
            continue
        require_safe(server_url(use.url))
        yield _checked(use.url_variable), use.url
        yield _checked(use.token_variable), server.token.reveal()
    if not by_variable:
        raise KeymanError("None of your keys can be used like this. See Use it on the page of your keys: keyman open")


def _checked(name: str) -> str:
    """Return the name of a variable. Raises KeymanError for one that no SDK has for its address or its key.

    A server must not choose which libraries the program loads, or where it installs them from.
    """
    if name not in VARIABLES:
        raise KeymanError(
            "The server names a variable that is none of an SDK's, so nothing was run. If the server is newer than "
            "this command, install its version."
        )
    return name


def _without_rivals(environ: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    rivals = {rival for name in given for rival in RIVALS.get(name, ())} | {TOKEN, f"{TOKEN}_FILE"}
    return {name: value for name, value in environ.items() if name not in rivals}


def _execute(command: Sequence[str], environ: Mapping[str, str]) -> None:
    """Become the command, which so gets all signals, and whose exit code is the one of this process."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and a program would inherit that
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(command[0], list(command), dict(environ))  # noqa: S606  # what the user typed, without a shell
    except FileNotFoundError:
        click.echo(f"keyman: There is no command {command[0]}.", err=True)
        raise SystemExit(MISSING) from None
    except (OSError, ValueError):
        click.echo(f"keyman: {command[0]} cannot be run.", err=True)
        raise SystemExit(UNUSABLE) from None
