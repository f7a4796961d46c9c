"""Measures what every request pays for its measurement and its log line, in CPU time.

    .venv/bin/python -m bench.observing [--rounds 9]

The counts are kept in files, as those of workers are, and the lines are JSON at level `info`, as in production. They go
to a file. Only the CPU time of this process counts, and only the best round.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import click

from bench.ratios import Ratio, table
from bench.timing import best

STEPS = 5_000
"""Requests in a round."""

LINE, MEASUREMENT = 20.0, 10.0
"""The most microseconds of one log line, and of one measurement."""


@click.command()
@click.option("--rounds", default=9, show_default=True)
def main(rounds: int) -> None:
    """Print both times with their limits."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # prometheus_client reads it when it is imported
        from keyman import logs  # noqa: PLC0415  # after the variable
        from keyman.metrics import Metrics  # noqa: PLC0415  # likewise

        metrics, lines = Metrics(), logs.LineLog()
        with (Path(directory) / "log").open("w") as stream:
            logs.configure_logging("json", "info", stream)
            logs.REQUEST_ID.set("0" * 32)
            line = best(
                lambda: lines.log(
                    logging.INFO, "request", method="POST", route="/api/keys", status=201, duration_ms=1.25, user_id=7
                ),
                STEPS,
                rounds,
            )
        measurement = best(lambda: metrics.observe_request("POST", "/api/keys", 201, 0.00125), STEPS, rounds)
    click.echo(
        table(
            [
                Ratio("µs of a log line", line, LINE, is_at_most=True),
                Ratio("µs of a measurement", measurement, MEASUREMENT, is_at_most=True),
            ]
        )
    )


if __name__ == "__main__":
    main()
