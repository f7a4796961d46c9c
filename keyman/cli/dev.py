"""`keyman dev`."""

from __future__ import annotations

from pathlib import Path

import click

from keyman.dev.home import Home
from keyman.dev.run import run


@click.command("dev")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65534), help="The port to listen on.")
@click.option(
    "--home",
    envvar="KEYMAN_HOME",
    show_envvar=True,
    default=Path(".keyman"),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The directory for all data. It is created at the first start.",
)
def command(port: int, home: Path) -> None:
    """Run all of keyman on this machine: a real Vault, a database and all planes. For development only."""
    run(Home(home), port)
