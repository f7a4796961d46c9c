"""The chart on the page Activity: how often each application used the keys of a user, day by day."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple

from keyman.audit.counting import Counts

DAYS = 14
"""Two weeks: a bar for each day is wide enough on a phone, and a week can be compared with the one before."""

NAMED = 5
"""The number of applications with a colour of their own, those with the most uses. `keyman.css` has one more."""

HEIGHT = 100
"""Of the highest bar, in units of the drawing, which stretches to its place."""

OWN = "Your access tokens"
OTHERS = "Other applications"


class Bar(NamedTuple):
    """A part of the bar of a day. `series` is the number of its colour; `y` and `height` are units of the drawing."""

    series: int
    name: str
    uses: int
    y: float
    height: float


class Day(NamedTuple):
    at: datetime
    bars: list[Bar]


class Series(NamedTuple):
    name: str
    uses: int


class Chart(NamedTuple):
    """Bars for DAYS days, the oldest first, and what each colour means. `most` is the number of uses of the highest."""

    days: list[Day]
    series: list[Series]
    uses: int
    most: int
    is_complete: bool

    @property
    def words(self) -> tuple[str, str]:
        """The names that are words of ours, to be translated, and not names of applications."""
        return OWN, OTHERS


def first_day(now: datetime) -> datetime:
    """Return where the chart begins: a midnight (UTC), so that each of its days is whole but the last."""
    return _midnight(now.astimezone(UTC).date() - timedelta(days=DAYS - 1))


def draw(counts: Counts, now: datetime) -> Chart:
    """Return the chart of these counts, which begin at `first_day`."""
    totals = Counter[str]()
    for each in counts.days:
        totals[each.application or OWN] += each.uses
    named = [name for name, _ in sorted(totals.items(), key=lambda pair: (-pair[1], pair[0]))[:NAMED]]
    by_day: dict[date, Counter[str]] = {}
    for each in counts.days:
        name = each.application or OWN
        by_day.setdefault(each.day, Counter())[name if name in named else OTHERS] += each.uses
    most = max((day.total() for day in by_day.values()), default=0)
    names = [*named, OTHERS] if len(totals) > NAMED else named
    start = first_day(now)
    return Chart(
        [
            Day(at, list(_stacked(by_day.get(at.date(), Counter()), names, most)))
            for at in (start + timedelta(days=n) for n in range(DAYS))
        ],
        [Series(name, sum(day[name] for day in by_day.values())) for name in names],
        totals.total(),
        most,
        counts.is_complete,
    )


def _stacked(uses: Counter[str], names: list[str], most: int) -> Iterable[Bar]:
    top = float(HEIGHT)
    for series, name in enumerate(names):
        if uses[name]:
            height = HEIGHT * uses[name] / most
            top -= height
            yield Bar(series, name, uses[name], round(top, 2), round(height, 2))


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
