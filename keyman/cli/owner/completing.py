"""Completes the names of services in a shell: those that keyman ships, because no server is asked for a word."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from keyman.providers.services import SHIPPED


def services(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the services whose names begin with `incomplete`, in whatever case, with `-` or `_`."""
    begun = incomplete.upper().replace("-", "_")
    return [CompletionItem(one.service, help=one.name) for one in SHIPPED if one.service.startswith(begun)]
