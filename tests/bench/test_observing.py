"""`bench.observing` prints both times, with the limits of docs/reference/performance.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_log_line_and_the_measurement_of_a_request_are_timed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.observing", "--rounds", "1"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [line.split("|")[1:4] for line in done.stdout.splitlines() if "µs of" in line and "|" in line]
    assert [(label.strip(), goal.strip()) for label, _, goal in lines] == [
        ("µs of a log line", "≤ 20"),
        ("µs of a measurement", "≤ 10"),
    ]
    assert all(float(value) > 0 for _, value, _ in lines)
