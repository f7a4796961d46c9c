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
from types import ModuleType
from typing import NoReturn

import click

from keyman.errors import ConfigurationError, DatabaseUnavailable, KeymanError, MissingRight, Problem, RefusedStatement
from keyman.version import __version__

COMMANDS = {
    "app": "keyman.cli.app:group",
    "audit": "keyman.cli.audit:group",
    "db": "keyman.cli.db:group",
    "doctor": "keyman.cli.doctor:command",
    "dev": "keyman.cli.dev:command",
    "rewrap": "keyman.cli.rewrap:rewrap",
    "rotate": "keyman.cli.rewrap:rotate",
    "serve": "keyman.cli.serve:command",
    "token": "keyman.cli.token:group",
    "user": "keyman.cli.user:group",
    "vault": "keyman.cli.vault:group",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        try:
            command: click.Command = getattr(import_late(module), attribute)
        except ModuleNotFoundError as fault:
            return _without_its_libraries(name, fault)
        return command


def _without_its_libraries(name: str, fault: ModuleNotFoundError) -> click.Command:
    """Return a command that raises `fault` whatever its arguments are; `keyman --help` lists it beside the others."""

    def refuse() -> NoReturn:
        raise fault

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(
        name, callback=refuse, short_help="(not installed)", context_settings=anything, add_help_option=False
    )


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
