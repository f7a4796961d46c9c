"""`python -m stack`, the command of the jobs in compose.yaml."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from stack import vault
from stack.prepare import prepare

VOLUMES = click.Path(path_type=Path, file_okay=False, exists=True)


@click.group()
def cli() -> None:
    """The jobs of keyman's stack."""


@cli.command("prepare")
@click.option("--host", "hosts", multiple=True, required=True, help="What browsers call the proxy.")
@click.argument("volumes", type=VOLUMES)
def prepare_command(hosts: tuple[str, ...], volumes: Path) -> None:
    """Certificates and passwords."""
    prepare(volumes, list(dict.fromkeys(hosts)))


@cli.command("vault-init")
@click.argument("keys", type=VOLUMES)
@click.argument("volumes", type=VOLUMES)
def vault_init_command(keys: Path, volumes: Path) -> None:
    """Initialise Vault, unseal it, set it up, write the credentials of each plane."""
    try:
        vault.initialise(keys, volumes)
    except vault.FAULTS as fault:
        raise click.ClickException(f"Vault refused or broke off: {type(fault).__name__}") from None


@cli.command("vault-unseal")
@click.option("--alive", type=click.Path(path_type=Path), required=True, help="Touched as long as this works.")
@click.argument("keys", type=VOLUMES)
def vault_unseal_command(alive: Path, keys: Path) -> None:
    """Unseal Vault whenever it is sealed."""
    # The first process of a container ignores signals for which it has no handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    vault.keep_unsealed(keys, alive)


if __name__ == "__main__":
    cli(prog_name="stack")
