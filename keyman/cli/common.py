"""The common part of the operators' commands: reading settings, and running with the database."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import click
from sqlalchemy.engine import URL

from keyman.cli.terminal import read_secret
from keyman.config.database import load_database_url
from keyman.dev.home import Home
from keyman.errors import ConfigurationError
from keyman.keys.deployment import Deployment
from keyman.logs import configure_logging
from keyman.storage.transactions import Database
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
    """Read a password from a prompt, twice, or from the first line of standard input. Raises ConfigurationError."""
    text = read_secret("password", "Password", twice=True).reveal()
    try:
        return NewPassword.parse(text)
    except ValueError as fault:
        raise ConfigurationError(f"The password {fault}.") from None


def parsed(kind: type[V], text: str, name: str) -> V:
    """Parse an argument as a type of `keyman.values`. Raises click.BadParameter (exit code 2) when it is invalid."""
    try:
        return kind.parse(text)
    except ValueError as fault:
        raise click.BadParameter(str(fault), param_hint=name) from None
