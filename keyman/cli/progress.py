"""The progress of a long command: on a terminal a bar with rate and time left, elsewhere a line for each tenth."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Advance(Protocol):
    """Reports that `count` more items are done."""

    def __call__(self, count: int, /) -> None: ...


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        # rich knows no speed before the second report, and a short command has only one.
        since_start = task.completed / task.elapsed if task.completed and task.elapsed else None
        return Text(_rate(task.finished_speed or task.speed or since_start))


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Show on standard error how many of `total` items are done. There can be more than `total`.

    When `total` is 0, nothing is shown.
    """
    if total == 0:
        yield lambda _count: None
    elif sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        yield _lines(what, total)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _lines(what: str, total: int) -> Advance:
    started = monotonic()
    done = tenths = 0

    def advance(count: int) -> None:
        nonlocal done, tenths
        done += count
        if done * 10 // total <= tenths:
            return
        tenths = done * 10 // total
        speed = done / max(monotonic() - started, 0.001)
        left = max(total - done, 0) / speed
        click.echo(f"{what}: {done:,} of {total:,}, {_rate(speed)}, {left:.0f} s left", err=True)

    return advance


def _rate(speed: float | None) -> str:
    return "" if speed is None else f"{speed:,.0f} per second"
