"""What commands about keys take: a value, a service, an expiry, settings."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import click

from keyman.cli.terminal import Duration, as_text, is_terminal, read_secret
from keyman.client import Service
from keyman.errors import ConfigurationError
from keyman.secret import Secret

C = TypeVar("C", bound=Callable[..., object])

MAX_VALUE = 64 * 1024
"""Bytes that are read from standard input: four times as much as the longest value, a JSON credential."""


def read_value() -> Secret:
    """Read a value from a prompt that does not show it, or from standard input: its first line, or all of a JSON file.

    `pass` prints more lines after a password, so others do not count. Raises ConfigurationError.
    """
    if is_terminal():
        value = read_secret("key", "API key")
        if value.reveal().lstrip().startswith("{"):
            raise ConfigurationError("A prompt takes one line only. Give a JSON file on standard input: … < FILE")
        return value
    if sys.stdin is None:
        raise ConfigurationError("There is no standard input to read the key from.")
    text = as_text(sys.stdin.buffer.read(MAX_VALUE), "key")
    if not text.reveal().strip():
        raise ConfigurationError("Standard input is empty: there is no key in it.")
    return text if text.reveal().lstrip().startswith("{") else Secret(_LINE_BREAK.split(text.reveal().lstrip())[0])


_LINE_BREAK = re.compile(r"[\r\n]")
"""What ends a line. For `str.splitlines` an invisible character within a key does too, and would cut the key."""


class Moment(click.ParamType[datetime]):
    """A parameter type for a time with its zone, such as 2030-01-31T00:00:00Z, or a date, whose start in UTC counts."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail("must be a time such as 2030-01-31T00:00:00Z, or a date such as 2030-01-31", param, ctx)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def expiry_options(command: C) -> C:
    for decorate in (
        click.option(
            "--expires-in",
            metavar="DURATION",
            type=Duration(timedelta(days=3650)),
            help="After how long the key expires, such as 90d.",
        ),
        click.option(
            "--expires-at", metavar="TIME", type=Moment(), help="When the key expires, such as 2030-01-31T00:00:00Z."
        ),
    ):
        command = decorate(command)
    return command


def expiry(expires_at: datetime | None, expires_in: timedelta | None) -> datetime | None:
    """Return when a key expires, or None if nothing is said. Raises click.UsageError if both are given."""
    if expires_at is not None and expires_in is not None:
        raise click.UsageError("Give --expires-at or --expires-in, not both.")
    return expires_at if expires_in is None else datetime.now(UTC) + expires_in


def settings_option(command: C) -> C:
    return click.option(
        "--setting",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        help="A setting of the key, such as endpoint=https://… for AZURE_OPENAI. Can be repeated.",
    )(command)


def parse_settings(service: Service, given: Sequence[str]) -> dict[str, str]:
    """Return the settings. Raises click.BadParameter for one that keys of this service do not have."""
    properties = service.settings.get("properties")
    known = list(properties) if isinstance(properties, dict) else []
    found = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator:
            raise click.BadParameter("must be NAME=VALUE.", param_hint="--setting")
        if name not in known:
            has = f"has only: {', '.join(known)}" if known else "has none"
            raise click.BadParameter(f"A key of {service.service} {has}.", param_hint="--setting")
        found[name] = value
    return found
