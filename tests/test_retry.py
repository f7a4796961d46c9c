"""Retries: how `Retry-After` is read, and that every pause is bounded."""

from __future__ import annotations

from itertools import pairwise
from math import inf
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyman.retry import ATTEMPTS, FIRST_PAUSE, parse_retry_after, pause_after


@pytest.mark.parametrize(("header", "seconds"), [("0", 0), ("1", 1), ("007", 7), ("99999", 99_999)])
def test_a_small_number_is_taken_as_seconds(header: str, seconds: int) -> None:
    assert parse_retry_after(header) == seconds


@pytest.mark.parametrize(
    "header",
    [None, "", "soon", "-1", "+1", "1.5", " 1", "1_0", "100000", "9" * 30, "١", "²", "Wed, 21 Oct 2026 07:28:00 GMT"],
)
def test_any_other_header_counts_as_none(header: str | None) -> None:
    assert parse_retry_after(header) is None


@given(st.text())
def test_no_header_raises_or_asks_for_more_than_a_day_and_a_bit(header: str) -> None:
    seconds = parse_retry_after(header)
    assert seconds is None or 0 <= seconds < 100_000


def test_each_pause_is_about_twice_the_one_before() -> None:
    for failed in range(1, ATTEMPTS):
        middle = FIRST_PAUSE * 2 ** (failed - 1)
        pauses = [pause_after(failed, deadline=inf) for _ in range(50)]
        assert all(pause is not None and middle / 2 <= pause <= middle * 1.5 for pause in pauses)
        assert any(one != other for one, other in pairwise(pauses)), "no jitter"


@pytest.mark.parametrize("attempts", [1, 2, ATTEMPTS])
def test_after_the_last_attempt_the_failure_stands(attempts: int) -> None:
    found = [pause_after(failed, deadline=inf, attempts=attempts) is None for failed in range(1, attempts + 2)]
    assert found == [False] * (attempts - 1) + [True, True]


def test_retry_after_makes_a_pause_longer_and_never_shorter() -> None:
    assert pause_after(1, deadline=inf, retry_after=30) == 30
    pause = pause_after(1, deadline=inf, retry_after=0)
    assert pause is not None
    assert pause >= FIRST_PAUSE / 2


@given(st.integers(1, ATTEMPTS - 1), st.none() | st.integers(0, 99_999), st.floats(-5, 5))
def test_no_pause_reaches_the_deadline(failed: int, retry_after: int | None, seconds: float) -> None:
    pause = pause_after(failed, deadline=monotonic() + seconds, retry_after=retry_after)
    assert pause is None or 0 < pause < seconds
