"""Metrics: every series is known from the start, and workers add up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from keyman.metrics import MULTIPROCESS_DIRECTORY, VAULT_OPERATIONS, Metrics

PACKAGE = Path(__file__).parents[1] / "keyman"


def _samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    found = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name == name:
                found[tuple(sample.labels.values())] = sample.value
    return found


def test_applications_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.vault_retries.inc()
    assert _samples(first, "keyman_vault_retries_total") == {(): 1}
    assert _samples(second, "keyman_vault_retries_total") == {(): 0}


def test_the_series_of_a_request_is_found_by_its_labels_once(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    metrics.observe_request("GET", "/livez", 200, 0.001)
    monkeypatch.setattr(metrics, "requests", None)
    metrics.observe_request("GET", "/livez", 200, 0.001)
    assert _samples(metrics, "keyman_http_request_seconds_count") == {("GET", "/livez", "200"): 2}


def test_an_operation_that_fails_is_measured_as_well() -> None:
    metrics = Metrics()
    with pytest.raises(ValueError, match="x"), metrics.vault_operation("encrypt"):
        raise ValueError("x")
    assert _samples(metrics, "keyman_vault_operation_seconds_count") == {("encrypt",): 1}


def test_every_operation_of_vault_is_counted_from_the_start() -> None:
    named: set[str] = set()
    for source in PACKAGE.rglob("*.py"):
        named |= set(re.findall(r'\.(?:call|count_failure)\(\s*"([\w-]+)"', source.read_text()))
    assert named == set(VAULT_OPERATIONS)


def test_every_metric_is_keymans_and_explains_itself() -> None:
    for family in Metrics().registry.collect():
        assert family.name.startswith("keyman_")
        assert family.documentation.endswith(".")


def test_several_processes_add_up(tmp_path: Path) -> None:
    code = (
        f"import os, sys; os.environ['{MULTIPROCESS_DIRECTORY}'] = sys.argv[1]\n"
        "from keyman.metrics import Metrics\n"
        "m = Metrics(); m.vault_retries.inc(3); m.in_progress += 1\n"
        "sys.stdout.write(m.render().decode())"
    )
    for turn in (1, 2):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path], capture_output=True, check=True, env={"PATH": os.environ["PATH"]}
        )
        assert f"keyman_vault_retries_total {3.0 * turn}" in done.stdout.decode()
        # The worker of the first turn has ended, so nothing of it is in progress any more.
        assert "keyman_http_requests_in_progress 1.0" in done.stdout.decode()
