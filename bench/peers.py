"""Installs what keyman is compared with, each into a separate environment in the user's cache directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import click

INSTALL_TIMEOUT = 900.0
"""Seconds for some 150 packages on a slow line."""


def install(package: str, version: str, *others: str) -> Path:
    """Return the directory of a package's commands, and install it with the others first if it is not there.

    Raises ClickException.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"\[.*\]", "", package)
    directory = cache / "keyman-bench" / f"{name}-{version}"
    done = directory / "installed"
    if not done.exists():
        click.echo(f"Installing {name} {version} into {directory} …", err=True)
        try:
            venv.create(directory, with_pip=True, clear=True)
            _run([directory / "bin" / "python", "-m", "pip", "install", "-q", f"{package}=={version}", *others])
        except (OSError, subprocess.SubprocessError) as fault:
            raise click.ClickException(f"{name} {version} could not be installed: {fault}") from None
        done.touch()
    return directory / "bin"


def _run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT, stdin=subprocess.DEVNULL, stdout=sys.stderr)  # noqa: S603  # the command is ours
