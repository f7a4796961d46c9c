"""What commands print and ask, with the libraries of the [cli] extra only."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import click
import msgspec

from keyman.errors import ConfigurationError
from keyman.secret import Secret

C = TypeVar("C", bound=Callable[..., object])


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


def is_terminal() -> bool:
    """Return whether there is somebody to ask."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_secret(what: str, prompt: str, *, twice: bool = False) -> Secret:
    """Read a secret from a prompt that does not show it, or from the first line of standard input.

    It is never an argument, because every user of the machine can read the arguments of a process. `what` names it in
    errors. Raises ConfigurationError.
    """
    if sys.stdin is None:
        raise ConfigurationError(f"There is no standard input to read the {what} from.")
    if is_terminal():
        return _ask_secret(what, prompt, twice=twice)
    # The bytes, because in another locale the text would be another password than the one of a browser.
    return as_text(sys.stdin.buffer.readline(), what)


def _ask_secret(what: str, prompt: str, *, twice: bool) -> Secret:
    """Read a secret from a prompt. Raises ConfigurationError for bytes that are no text in the terminal's encoding."""
    try:
        return Secret(click.prompt(prompt, hide_input=True, confirmation_prompt=twice, err=True))
    except UnicodeDecodeError:
        fault = ConfigurationError(f"The {what} must be text in the encoding of this terminal, which should be UTF-8.")
    raise fault  # here, because the other error holds the bytes


def as_text(given: bytes, what: str) -> Secret:
    """Return bytes of standard input as text without a line break at its end. Raises ConfigurationError."""
    try:
        return Secret(given.decode().rstrip("\r\n"))
    except UnicodeDecodeError:
        fault = ConfigurationError(f"The {what} must be UTF-8 text.")
    raise fault  # here, because the other error holds the bytes


def require_confirmation(question: str) -> None:
    """Ask at the terminal, and end the command with exit code 1 if the answer is no.

    Raises ConfigurationError if there is no terminal: a script says --yes.
    """
    if not is_terminal():
        raise ConfigurationError("There is no terminal to ask for confirmation. Add --yes if you are sure.")
    click.confirm(question, abort=True, err=True)


def print_rows(rows: Sequence[msgspec.Struct], columns: Sequence[str], *, as_json: bool) -> None:
    """Print a list on standard output: aligned columns, or JSON with every field."""
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
        return
    table = [[name.upper().replace("_", " ") for name in columns]]
    table += [[cell(getattr(row, name)) for name in columns] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    for line in table:
        padded = (text + " " * (width - _width(text)) for text, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _width(text: str) -> int:
    """Return how many columns a terminal needs: two for a wide character of East Asia, none for a combining one."""
    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    return len(text) + wide - sum(unicodedata.combining(one) > 0 for one in text)


def cell(value: object) -> str:
    """Return a value as it is shown in a table or on a line."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, list):
        value = " ".join(str(part) for part in value) or "-"
    # Escape the other characters, because a terminal would obey them.
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in str(value))
