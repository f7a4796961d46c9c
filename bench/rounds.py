"""Measures targets in turns, so that what else happens on the machine happens to all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import click

from bench import wrk
from bench.ratios import FIGURES, figures, middle
from bench.servers import Machine
from bench.wrk import Measured, Target

WARM_UP = 1
"""Seconds of load before the first round, for connections, caches and plans."""

Plan = Mapping[tuple[str, int], Callable[[], Target]]
"""What to measure in a round, by its label and the number of clients. The function is called for each measurement."""

Results = Mapping[tuple[str, int], Measured]


def measure(machine: Machine, plan: Plan, seconds: int, rounds: int) -> Results:
    """Measure everything `rounds` times, print the medians, and return them."""
    for (_, clients), make in plan.items():
        wrk.measure(make(), clients, WARM_UP, machine.servers, machine.directory)
    measured: dict[tuple[str, int], list[Measured]] = {place: [] for place in plan}
    for _ in range(rounds):
        for (label, clients), make in plan.items():
            one = wrk.measure(make(), clients, seconds, machine.servers, machine.directory)
            measured[label, clients].append(one)
    results = {place: middle(found) for place, found in measured.items()}
    click.echo(FIGURES)
    for (label, clients), one in results.items():
        click.echo(figures(label, clients, one))
    return results


def always(target: Target) -> Callable[[], Target]:
    return lambda: target
