"""`keyman completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")

VARIABLE = "_KEYMAN_COMPLETE"
"""The variable with which a shell asks keyman for words. It is click's rule for the name."""


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print a script that completes keyman's commands in a shell.

    \b
    bash: eval "$(keyman completion bash)" in ~/.bashrc
    zsh:  eval "$(keyman completion zsh)" in ~/.zshrc
    fish: keyman completion fish > ~/.config/fish/completions/keyman.fish
    """
    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(context.find_root().command, {}, "keyman", VARIABLE).source())
