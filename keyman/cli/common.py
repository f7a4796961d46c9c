"""The common part of the commands: reading settings, printing results, running with the database."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import click
import msgspec
from sqlalchemy.engine import URL

from keyman.config.database import load_database_url
from keyman.dev.home import Home
from keyman.errors import ConfigurationError
from keyman.keys.deployment import Deployment
from keyman.storage.transactions import Database
from keyman.telemetry import configure_logging
from keyman.values import NewPassword, Value

T = TypeVar("T")
V = TypeVar("V", bound=Value)
C = TypeVar("C", bound=Callable[..., object])


def home_option(command: C) -> C:
    return click.option(
        "--home",
        envvar="KEYMAN_HOME",
        show_envvar=True,
        type=click.Path(path_type=Path, file_okay=False),
        help="Use the settings, database and Vault that `keyman dev` keeps in this directory.",
    )(command)


def json_option(command: C) -> C:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


class Duration(click.ParamType[timedelta]):
    """A parameter type for a number and a unit, such as 24h, up to `longest`."""

    name = "duration"

    def __init__(self, longest: timedelta) -> None:
        self._longest = longest

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        shape = re.fullmatch(r"([0-9]{1,7})([smhd])", str(value))
        if shape is None:
            self.fail("must be a number and a unit, such as 90s, 30m, 24h or 7d", param, ctx)
        duration = timedelta(**{_UNITS[shape[2]]: int(shape[1])})
        if duration > self._longest:
            self.fail(f"must be at most {self._longest.days}d", param, ctx)
        return duration


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def environment(home: Path | None) -> Mapping[str, str]:
    """Return the variables of this process, or those that `keyman dev` keeps in `home`. Raises ConfigurationError."""
    return os.environ if home is None else Home(home).environment()


def database_url(home: Path | None) -> URL:
    """Return the address of the database. Raises ConfigurationError."""
    given = environment(home)
    if home is None and not any(name.startswith("KEYMAN_DATABASE_URL") for name in given):
        raise ConfigurationError(
            "KEYMAN_DATABASE_URL is not set (nor KEYMAN_DATABASE_URL_FILE). To work on what `keyman dev` runs, add "
            "--home with its directory, such as --home .keyman, or set KEYMAN_HOME."
        )
    return load_database_url(given)


def run(work: Callable[[Database], Awaitable[T]], home: Path | None) -> T:
    """Run `work` with the database, which must be migrated. Raises ConfigurationError and DatabaseUnavailable."""

    async def do() -> T:
        db = Database(database_url(home))
        try:
            await Deployment.load(db)
            return await work(db)
        finally:
            await db.close()

    configure_logging("console", "error")
    return asyncio.run(do())


def new_password() -> NewPassword:
    """Read a password from a prompt, twice, or from the first line of standard input.

    It is never an argument, because every user of the machine can read the arguments of a process. Raises
    ConfigurationError.
    """
    if sys.stdin is None:
        raise ConfigurationError("There is no standard input to read the password from.")
    try:
        if sys.stdin.isatty():
            text = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        else:
            # The bytes, because in another locale the text would be another password than the one of a browser.
            text = sys.stdin.buffer.readline().decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigurationError("The password must be UTF-8 text.") from None
    try:
        return NewPassword.parse(text)
    except ValueError as fault:
        raise ConfigurationError(f"The password {fault}.") from None


def require_confirmation(question: str) -> None:
    """Ask at the terminal, and end the command with exit code 1 if the answer is no.

    Raises ConfigurationError if there is no terminal: a script says --yes.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigurationError("There is no terminal to ask for confirmation. Add --yes if you are sure.")
    click.confirm(question, abort=True, err=True)


def parsed(kind: type[V], text: str, name: str) -> V:
    """Parse an argument as a type of `keyman.values`. Raises click.BadParameter (exit code 2) when it is invalid."""
    try:
        return kind.parse(text)
    except ValueError as fault:
        raise click.BadParameter(str(fault), param_hint=name) from None


def print_rows(rows: Sequence[msgspec.Struct], columns: Sequence[str], *, as_json: bool) -> None:
    """Print a list on standard output: aligned columns, or JSON with every field."""
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
        return
    table = [[name.upper().replace("_", " ") for name in columns]]
    table += [[_cell(getattr(row, name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, list):
        value = " ".join(str(part) for part in value) or "-"
    # Escape the other characters, because a terminal would obey them.
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in str(value))
