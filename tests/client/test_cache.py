"""The cache: it is bounded in number and time, and never outlives a value."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import time_machine

from keyman.client.cache import MAX_ENTRIES, MAX_TTL, Cache, Wanted
from keyman.client.shapes import Resolved

MOMENT = datetime(2026, 11, 27, 12, tzinfo=UTC)


def key(number: int, expires_at: datetime | None = None) -> tuple[Wanted, Resolved]:
    return Wanted(number, None, None), Resolved("sk-value", number, 7, "OPENAI", expires_at)


def test_the_least_recently_used_goes_first() -> None:
    cache = Cache(60, 2)
    for number in (1, 2):
        cache.keep(*key(number), cache.epoch())
    assert cache.get(key(1)[0])
    cache.keep(*key(3), cache.epoch())
    assert [number for number in (1, 2, 3) if cache.get(key(number)[0])] == [1, 3]
    assert len(cache) == 2


def test_a_value_does_not_outlive_its_expiry() -> None:
    """Also when the machine slept meanwhile, which the monotonic clock does not count."""
    cache = Cache(60, 2)
    with time_machine.travel(MOMENT, tick=False) as clock:
        wanted, resolved = key(1, MOMENT + timedelta(seconds=5))
        cache.keep(wanted, resolved, cache.epoch())
        clock.shift(4)
        assert cache.get(wanted) is resolved
        clock.shift(1)
        assert cache.get(wanted) is None
        assert len(cache) == 0
        cache.keep(wanted, resolved, cache.epoch())
        assert len(cache) == 0


def test_its_time_runs_from_when_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("keyman.client.cache.monotonic", lambda: now[0])
    cache = Cache(10, 2)
    asked = cache.epoch()
    now[0] = 8.0
    cache.keep(*key(1), asked)
    now[0] = 9.9
    assert cache.get(key(1)[0])
    now[0] = 10.0
    assert cache.get(key(1)[0]) is None


def test_what_is_shown_of_it_is_a_number() -> None:
    cache = Cache(10, 2)
    cache.keep(*key(1), cache.epoch())
    assert repr(cache) == "<Cache of 1>"


@pytest.mark.parametrize(
    ("ttl", "entries"), [(-1, 1), (MAX_TTL + 1, 1), (float("nan"), 1), (1, 0), (1, MAX_ENTRIES + 1)]
)
def test_a_cache_without_a_bound_is_refused(ttl: float, entries: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        Cache(ttl, entries)
