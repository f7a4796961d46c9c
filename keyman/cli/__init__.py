"""The command `keyman`. Results go to standard output, messages to standard error.

Exit codes: 0 done, 1 failed, 2 wrong usage. The module of a command is imported only when you call the command,
because importing Litestar takes half a second.
"""

from __future__ import annotations

import errno
import gc
import importlib
import io
import os
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple, NoReturn

import click
from click.shell_completion import CompletionItem

from keyman.cli.groups import Group
from keyman.errors import ConfigurationError, DatabaseUnavailable, KeymanError, MissingRight, Problem, RefusedStatement
from keyman.extras import SERVER
from keyman.version import __version__

CLI = ("httpx", "msgspec", "keyring")
"""Libraries of the commands that need only the extra [cli]."""


class Command(NamedTuple):
    """Where a command is, its summary, so that the help of keyman imports no command, and the libraries it needs."""

    target: str
    summary: str
    libraries: tuple[str, ...] = SERVER


OF_OWNERS = {
    "completion": Command(
        "keyman.cli.completion:command", "Print a script that completes keyman's commands in a shell.", ()
    ),
    "key": Command("keyman.cli.owner.key:group", "Your API keys.", CLI),
    "login": Command("keyman.cli.owner.login:login", "Sign in to a keyman.", CLI),
    "logout": Command(
        "keyman.cli.owner.login:logout", "Sign out: revoke the token of this machine, and remove it here.", CLI
    ),
    "open": Command("keyman.cli.owner.login:browse", "Open the page with your API keys in the browser.", CLI),
    "run": Command(
        "keyman.cli.owner.run:run",
        "Run a program that uses your keys through keyman's gateway: keyman run -- python app.py",
        CLI,
    ),
}
"""The commands of people who own keys."""

OF_OPERATORS = {
    "app": Command("keyman.cli.app:group", "Applications, which get users' keys from the resolver."),
    "audit": Command(
        "keyman.cli.audit:group", "The audit log: every change, and every time that an application asked for a key."
    ),
    "db": Command("keyman.cli.db:group", "The database's schema."),
    "dev": Command(
        "keyman.cli.dev:command", "Run all of keyman on this machine: a real Vault, a database and all planes."
    ),
    "doctor": Command(
        "keyman.cli.doctor:command",
        "Check Vault, the encryption key, the policies, the database, the clocks and the settings.",
    ),
    "rewrap": Command(
        "keyman.cli.rewrap:rewrap", "Rewrap every stored key with the newest version of the encryption key."
    ),
    "rotate": Command(
        "keyman.cli.rewrap:rotate", "Create a new version of the encryption key, then rewrap every stored key."
    ),
    "serve": Command("keyman.cli.serve:command", "Run one plane of keyman."),
    "services": Command(
        "keyman.cli.services:command",
        "List the services whose keys can be stored, and what the services file changes.",
    ),
    "token": Command("keyman.cli.token:group", "Personal access tokens."),
    "user": Command("keyman.cli.user:group", "The accounts of users."),
    "vault": Command("keyman.cli.vault:group", "Set up Vault for keyman, and issue credentials."),
}
"""The commands of those who run keyman."""

COMMANDS = OF_OWNERS | OF_OPERATORS


class _Lazy(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].target.partition(":")
        try:
            command: click.Command = getattr(import_late(module), attribute)
        except ModuleNotFoundError as fault:
            return _without_its_libraries(name, fault)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as fault:
            raise click.NoSuchCommand(fault.command_name, possibilities=COMMANDS, ctx=ctx) from None

    def summary(self, ctx: click.Context, name: str) -> str:
        is_there = all(find_spec(library) is not None for library in COMMANDS[name].libraries)
        return COMMANDS[name].summary if is_there else "(not installed)"

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        for heading, commands in (("Your keys", OF_OWNERS), ("Running keyman", OF_OPERATORS)):
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), self.summary(ctx, name)) for name in sorted(commands)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the name of a command without importing any."""
        names = [name for name in sorted(COMMANDS) if name.startswith(incomplete)]
        options = super().shell_complete(ctx, incomplete) if incomplete.startswith("-") else []
        return [*(CompletionItem(name, help=self.summary(ctx, name)) for name in names), *options]


def _without_its_libraries(name: str, fault: ModuleNotFoundError) -> click.Command:
    """Return a command that raises `fault` whatever its arguments are; `keyman --help` lists it beside the others."""

    def refuse() -> NoReturn:
        raise fault

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(name, callback=refuse, context_settings=anything, add_help_option=False)


def import_late(module: str) -> ModuleType:
    """Import a module without garbage collection, and exclude its objects from later collections.

    These objects live as long as the process. Collecting them takes a tenth of the import's time, and causes a pause
    at each later full collection.
    """
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="keyman", message="%(prog)s %(version)s")
def cli() -> None:
    """Users' API keys for LLM services, sealed by Vault."""


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a label need not fit the locale; JSON is always UTF-8
    try:
        cli(prog_name="keyman")
    except MissingRight:
        click.echo(
            "keyman: The database's user has no right to do this. Run the command as the user that owns the tables.",
            err=True,
        )
        sys.exit(1)
    except RefusedStatement as fault:
        click.echo(f"keyman: {fault}. The database is damaged, or is not a database of keyman.", err=True)
        sys.exit(1)
    except KeymanError as fault:
        # Commands raise a plain KeymanError. It, ConfigurationError and Problem say what is wrong and what to do, so a
        # traceback would add nothing. A MissingExtra passes: `keyman.__main__` says which one the command lacks.
        if type(fault) is not KeymanError and not isinstance(fault, ConfigurationError | Problem):
            raise
        kind = f" ({fault.kind})" if isinstance(fault, DatabaseUnavailable) and fault.kind else ""
        click.echo(f"keyman: {fault}{kind}", err=True)
        for error in getattr(fault, "errors", ()):
            click.echo(f"  {error.field}: {error.message}" if error.field else f"  {error.message}", err=True)
        sys.exit(1)
    except UnicodeEncodeError:  # here, because a program for `keyman run` and a path may be any bytes
        click.echo("keyman: An argument has bytes that are no text here. Write it in UTF-8.", err=True)
        sys.exit(2)
    except SystemExit:
        _flush()
        raise
    except OSError as fault:
        _flush()
        if fault.errno == errno.ENOSPC:  # without a buffer (PYTHONUNBUFFERED) _flush has nothing to write
            _not_written()
        raise
    except KeyboardInterrupt:
        sys.exit(130)  # the exit code of SIGINT in a shell; click's own message, "Aborted!", adds nothing


def _flush() -> None:
    """Flush standard output, and fail when that fails. Python would report it with a traceback, after the exit code."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _not_written()


def _not_written() -> NoReturn:
    click.echo("keyman: The result could not be written to standard output.", err=True)
    os._exit(1)
