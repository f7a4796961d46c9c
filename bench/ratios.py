"""Ratios of measurements, their goals, and the tables that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from bench.wrk import Measured

SHOWN_FROM = 5.0
"""Microseconds a request from which on the processor time of a server is shown: an idle one uses less."""


class Ratio(NamedTuple):
    """A ratio and its goal: the least that it may be or, with `is_at_most`, the most. Without a goal, any will do."""

    label: str
    value: float
    goal: float | None = None
    is_at_most: bool = False
    cpu: Mapping[str, float] = {}

    @property
    def is_met(self) -> bool:
        if self.goal is None:
            return True
        return self.value <= self.goal if self.is_at_most else self.value >= self.goal


def middle(rounds: Sequence[Measured]) -> Measured:
    """Return the medians of several rounds of a measurement. `refused` is the sum."""
    return Measured(
        median(one.rate for one in rounds),
        median(one.p50 for one in rounds),
        median(one.p99 for one in rounds),
        sum(one.refused for one in rounds),
        {name: median(one.cpu.get(name, 0.0) for one in rounds) for name in rounds[0].cpu},
    )


def share(part: float, whole: float) -> float:
    """Return `part / whole`, or 0 if nothing was measured."""
    return part / whole if whole else 0.0


def table(ratios: Sequence[Ratio]) -> str:
    """Return a table with a line for each ratio, and a last line that says which goals are missed."""
    lines = ["| ratio | now | goal | CPU µs a request |", "|---|---|---|---|"]
    lines += [f"| {one.label} | {one.value:.3g} | {_goal(one)} | {used(one.cpu)} |" for one in ratios]
    missed = [one.label for one in ratios if not one.is_met]
    return "\n".join([*lines, "", f"Missed: {'; '.join(missed)}." if missed else "Every goal is met."])


def figures(label: str, clients: int, measured: Measured) -> str:
    """Return a line of the table whose head is FIGURES."""
    latency = f"{measured.p50:.1f} / {measured.p99:.1f}"
    return f"| {label} | {clients} | {measured.rate:,.0f} | {latency} | {measured.refused} | {used(measured.cpu)} |"


FIGURES = """\
| | clients | a second here | p50 / p99 ms | refused | CPU µs a request |
|---|---|---|---|---|---|"""


def used(cpu: Mapping[str, float]) -> str:
    """Return the processor time of each server that did something."""
    return ", ".join(f"{name} {micro:,.0f}" for name, micro in cpu.items() if micro >= SHOWN_FROM)


def _goal(ratio: Ratio) -> str:
    if ratio.goal is None:
        return ""
    return f"{'≤' if ratio.is_at_most else '≥'} {ratio.goal:g}"
