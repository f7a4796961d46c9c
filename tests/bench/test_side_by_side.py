"""The command: its options, and what it says where a program is missing."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from bench.side_by_side import main

PARTS = ("speed", "limits", "rewrap", "large", "barbican", "pooled", "stalled")


def test_each_part_of_the_comparison_is_a_command() -> None:
    assert set(main.commands) == set(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_describes_its_options(part: str) -> None:
    result = CliRunner().invoke(main, [part, "--help"])
    assert result.exit_code == 0
    assert "default:" in result.output


@pytest.mark.parametrize("clients", ["", "32,", "0", "many", "32,-1"])
def test_clients_are_whole_numbers(clients: str) -> None:
    result = CliRunner().invoke(main, ["speed", "--clients", clients])
    assert result.exit_code == 2
    assert "must be" in result.output


@pytest.mark.parametrize("part", [part for part in PARTS if part not in ("rewrap", "stalled")])
def test_a_part_that_needs_wrk_starts_nothing_without_it(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    result = CliRunner().invoke(main, [part])
    assert result.exit_code == 1
    assert "apt-get install wrk" in result.output
