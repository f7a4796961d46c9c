"""Groups of commands, whose help shows each summary whole, and commands that repeat no argument."""

from __future__ import annotations

import re

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


NO_ARGUMENT = (
    "A key, a token or a password is never an argument: others on this machine can read it, and your shell keeps it. "
    "If you typed one, replace it. Leave it out, and it is asked for; or give it on standard input."
)


class AsksForSecret(click.Command):
    """A command that asks for a secret. If there are too many arguments, one may be that secret: it is not repeated."""

    allow_extra_args = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        if ctx.args and not ctx.resilient_parsing:  # which a shell does for completion, while somebody types
            raise click.UsageError(NO_ARGUMENT, ctx)
        return rest


class KeyNumber(click.ParamType[int]):
    """A parameter type for the number of a key. What is none may be a key, so it is not repeated."""

    name = "number"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if not (re.fullmatch("[0-9]{1,19}", text) and 0 < int(text) < 2**63):
            self.fail("must be the number of a key, as `keyman key list` shows it.", param, ctx)
        return int(text)
