"""Groups of commands, whose help shows each summary whole."""

from __future__ import annotations

import click


class Group(click.Group):
    """A group that wraps the summaries of its commands over several lines, where click would cut them off."""

    def summary(self, ctx: click.Context, name: str) -> str:
        """Return the summary of a command: the first sentence of its help."""
        command = self.get_command(ctx, name)
        return "" if command is None else command.get_short_help_str(limit=1_000)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self.summary(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
