"""The arithmetic of the comparison, and its tables."""

from __future__ import annotations

import pytest

from bench import speed
from bench.ratios import Ratio, figures, middle, share, table
from bench.speed import ALONE, FLOOR, KV, OBVIOUS, ONE, TRANSIT, post
from bench.wrk import Measured


def measured(rate: float, p50: float = 10.0, p99: float = 20.0, **cpu: float) -> Measured:
    return Measured(rate, p50, p99, 0, cpu)


def test_the_median_of_the_rounds_counts_and_refusals_add_up() -> None:
    rounds = [Measured(100, 5, 9, 1, {"a": 3}), Measured(300, 4, 8, 0, {"a": 1}), Measured(200, 6, 7, 2, {"a": 2})]
    assert middle(rounds) == Measured(200, 5, 8, 3, {"a": 2})


def test_a_share_of_nothing_is_nothing() -> None:
    assert share(3, 4) == 0.75
    assert share(3, 0) == 0


@pytest.mark.parametrize(
    ("ratio", "is_met"),
    [
        (Ratio("a", 1.2, 1.2), True),
        (Ratio("a", 1.19, 1.2), False),
        (Ratio("a", 2.5, 2.5, is_at_most=True), True),
        (Ratio("a", 2.51, 2.5, is_at_most=True), False),
        (Ratio("a", 0.0), True),
    ],
)
def test_a_goal_is_a_least_or_a_most(ratio: Ratio, is_met: bool) -> None:
    assert ratio.is_met is is_met


def test_the_table_has_a_line_for_each_ratio_and_names_what_is_missed() -> None:
    shown = table(
        [
            Ratio("fast", 1.25, 1.2, cpu={"worker": 591.4, "OpenBao": 2.0}),
            Ratio("slow", 3.0, 2.5, is_at_most=True),
        ]
    )
    assert shown.splitlines() == [
        "| ratio | now | goal | CPU µs a request |",
        "|---|---|---|---|",
        "| fast | 1.25 | ≥ 1.2 | worker 591 |",
        "| slow | 3 | ≤ 2.5 |  |",
        "",
        "Missed: slow.",
    ]
    assert table([Ratio("fast", 1.25, 1.2)]).endswith("Every goal is met.")


def test_a_line_of_figures_has_the_refusals() -> None:
    assert figures("POST", 32, Measured(1234.5, 4.04, 9.96, 7, {"worker": 600})) == (
        "| POST | 32 | 1,234 | 4.0 / 10.0 | 7 | worker 600 |"
    )


def test_every_ratio_of_the_comparison_is_computed() -> None:
    results = {(goal.whole, goal.clients): measured(100, floor=0) for goal in speed.goals(32, 256)}
    results |= {(goal.part, goal.clients): measured(100 * goal.goal, floor=0) for goal in speed.goals(32, 256)}
    results[FLOOR, 32] = measured(100, **{FLOOR: 90})
    results[post(ONE), 256] = measured(1500, **{ONE: 600})
    results[post(ONE), 32] = measured(80, p50=10, p99=25)
    results[post(ONE), ALONE], results[KV, ALONE] = measured(1, p50=6), measured(1, p50=2)
    found = speed.ratios(results, 32, 256, slowest=3)
    assert all(one.is_met for one in found)
    assert len(found) == len(speed.goals(32, 256)) + 3
    by_label = {one.label: one.value for one in found}
    assert by_label[f"{post(ONE)} ÷ {KV}, 256 clients"] == 15
    assert by_label[f"{post(ONE)} ÷ {OBVIOUS}, 256 clients"] == 15
    assert by_label[f"resolve ÷ {TRANSIT}, 32 clients"] == 0.25
    assert by_label[f"CPU of {FLOOR} ÷ CPU of the worker per POST, 256 clients"] == 0.15
    assert by_label["p99 ÷ p50 of POST a key, 32 clients"] == 2.5
    assert by_label[f"p50 of POST a key ÷ p50 of {KV}, 1 client"] == 3


def test_a_ratio_of_which_a_part_was_not_measured_is_left_out() -> None:
    assert speed.ratios({(KV, 32): measured(100)}, 32, 256, slowest=3) == []


def test_a_plane_is_named_after_its_database_and_workers() -> None:
    assert speed.planes([1, 2]) == {ONE: 1, "PostgreSQL, 2 workers": 2, "SQLite": None}
