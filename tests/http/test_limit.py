"""The limit of each application: how much at once, how much after a while, and how long to wait."""

from __future__ import annotations

import pytest

from keyman.errors import RateLimited
from keyman.http import limit
from keyman.http.limit import BURST, REMEMBERED, RateLimit, writes_per_minute


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(limit, "monotonic", made)
    return made


def passed(limited: RateLimit, application_id: int = 1, most: int = 1000) -> int:
    """How many requests pass at this moment."""
    for count in range(most):
        try:
            limited.take(application_id)
        except RateLimited:
            return count
    return most


def test_a_burst_passes_and_then_as_many_as_the_rate_allows(clock: Clock) -> None:
    limited = RateLimit(10)
    assert passed(limited) == 10 * BURST
    for _ in range(3):
        clock.now += 0.5
        assert passed(limited) == 5
    clock.now += 3600
    assert passed(limited) == 10 * BURST


def test_each_application_has_its_own(clock: Clock) -> None:
    limited = RateLimit(10)
    assert [passed(limited, number) for number in (1, 2, 1, 3)] == [20, 20, 0, 20]


@pytest.mark.parametrize(("rate", "seconds"), [(10, 1), (1, 1), (0.1, 10), (0.25, 4), (100, 1)])
def test_after_the_wait_that_is_said_there_is_one_more(clock: Clock, rate: float, seconds: int) -> None:
    limited = RateLimit(rate)
    passed(limited)
    with pytest.raises(RateLimited) as caught:
        limited.take(1)
    assert caught.value.retry_after == seconds
    clock.now += seconds
    limited.take(1)


def test_the_lowest_rate_lets_one_through(clock: Clock) -> None:
    assert passed(RateLimit(0.1)) == 1


def test_who_is_refused_does_not_wait_longer_for_it(clock: Clock) -> None:
    limited = RateLimit(1)
    passed(limited)
    for _ in range(10):
        clock.now += 0.125
        assert passed(limited, most=1) == (1 if clock.now == 1001 else 0)


def test_writes_come_back_evenly_over_a_minute(clock: Clock) -> None:
    assert writes_per_minute(0) is None
    limited = writes_per_minute(300)
    assert limited is not None
    assert passed(limited) == 300
    for _ in range(6):
        clock.now += 10
        assert passed(limited) == 50


def test_what_is_only_counted_is_never_refused_and_makes_no_debt(clock: Clock) -> None:
    limited = RateLimit(1, 3)
    for _ in range(10):
        limited.count(1)
    assert passed(limited) == 0
    clock.now += 1
    assert passed(limited) == 1


def test_callers_that_have_their_whole_rate_again_are_forgotten(clock: Clock) -> None:
    limited = RateLimit(1, 2)
    for number in range(REMEMBERED):
        limited.take(number)
    clock.now += 1
    for number in (-1, -1):
        limited.take(number)
    assert limited._buckets.keys() == {-1}
    assert passed(limited, -1) == 0
