"""`keyman.planes.management.web.chart` and `keyman.audit.counting`: uses by day and application."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import insert

from keyman.audit import counting
from keyman.audit.counting import Counts, DayCount
from keyman.audit.entries import Action, Actor
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.ids import MAX_ID, UserId
from keyman.keys.uses import RELEASES
from keyman.planes.management.web.chart import DAYS, HEIGHT, NAMED, OTHERS, OWN, draw, first_day
from keyman.storage.paging import Cursor
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import ApiPlane, store
from tests.planes.management.web.moves import ACTIVITY
from tests.support.rows import entry

pytestmark = pytest.mark.anyio

BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
TODAY = NOON.date()


def count(uses: int, application: str | None = "chat", day: date = TODAY) -> DayCount:
    return DayCount(day, application, uses)


def test_the_chart_has_every_day_and_ends_today() -> None:
    chart = draw(Counts([count(1)], is_complete=True), NOON)
    assert [day.at.date() for day in chart.days] == [TODAY - timedelta(days=n) for n in reversed(range(DAYS))]
    assert [len(day.bars) for day in chart.days] == [0] * (DAYS - 1) + [1]
    assert first_day(NOON) == chart.days[0].at == datetime(2026, 11, 11, tzinfo=UTC)


def test_bars_stand_on_each_other_and_the_highest_fills_the_chart() -> None:
    yesterday = TODAY - timedelta(days=1)
    chart = draw(Counts([count(30), count(10, "batch"), count(20, day=yesterday)], is_complete=True), NOON)
    before, last = (chart.days[n].bars for n in (-2, -1))
    assert [(bar.name, bar.y, bar.height) for bar in last] == [("chat", 25, 75), ("batch", 0, 25)]
    assert [(bar.name, bar.y, bar.height) for bar in before] == [("chat", 50, 50)]
    assert sum(bar.height for bar in last) == HEIGHT
    assert (chart.uses, chart.most) == (60, 40)
    assert chart.series == [("chat", 50), ("batch", 10)]


def test_only_the_busiest_have_a_colour_and_the_others_share_one() -> None:
    named = [count(100 - n, f"app-{n}") for n in range(NAMED)]
    chart = draw(Counts([*named, count(3, "x"), count(4, "y")], is_complete=False), NOON)
    assert [series.name for series in chart.series] == [*(each.application for each in named), OTHERS]
    assert chart.series[-1].uses == 7
    assert [bar.series for bar in chart.days[-1].bars] == list(range(NAMED + 1))
    assert not chart.is_complete


def test_own_tokens_are_one_of_them_and_nothing_is_no_chart() -> None:
    assert draw(Counts([count(2, None)], is_complete=True), NOON).series == [(OWN, 2)]
    empty = draw(Counts([], is_complete=True), NOON)
    assert (empty.uses, empty.most, empty.series) == (0, 0, [])


async def test_uses_are_counted_by_day_and_application_of_this_user(shared: ApiPlane) -> None:
    ada, eve = await shared.user(), await shared.user()
    user_id = UserId((await ada.get("/api/auth/me")).json()["id"])
    moment = now()
    since = first_day(moment)
    told = [
        (Action.KEY_RESOLVE, "chat", since - timedelta(seconds=1), user_id),
        (Action.KEY_RESOLVE, "chat", since, user_id),
        (Action.KEY_USE, "chat", since + timedelta(hours=23, minutes=59), user_id),
        (Action.KEY_USE, None, since + timedelta(hours=1), user_id),
        (Action.KEY_RESOLVE_REFUSED, "chat", moment, user_id),
        (Action.KEY_RESOLVE, "batch", moment, user_id),
        (Action.KEY_RESOLVE, "chat", moment, (await eve.get("/api/auth/me")).json()["id"]),
    ]
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        for action, application, at, whose in told:
            row = entry(action, application=application, at=at, user_id=whose)
            await connection.execute(insert(audit_log).values(row))
    counts = await counting.by_day(shared.database, user_id, RELEASES, since)
    assert counts.is_complete
    assert sorted(counts.days, key=str) == sorted(
        [
            DayCount(since.date(), "chat", 2),
            DayCount(since.date(), None, 1),
            DayCount(moment.date(), "batch", 1),
        ],
        key=str,
    )


async def test_more_than_the_limit_is_said(shared: ApiPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = await shared.user()
    key = await store(ada)
    about = {"user_id": (await ada.get("/api/auth/me")).json()["id"], "key_id": key["id"], "application": "chat"}
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        for _ in range(3):
            await connection.execute(insert(audit_log).values(entry(Action.KEY_RESOLVE, at=now(), **about)))
    words = "Only the newest uses are counted."
    assert words not in (await ada.get(ACTIVITY, headers=BROWSER)).text
    monkeypatch.setattr(counting, "MAX_COUNTED", 3)
    assert words in (await ada.get(ACTIVITY, headers=BROWSER)).text


async def test_the_chart_is_also_a_table_and_comes_before_the_first_page_only(shared: ApiPlane) -> None:
    ada = await shared.user()
    assert "<figure" not in (await ada.get(ACTIVITY, headers=BROWSER)).text
    key = await store(ada)
    about = {"user_id": (await ada.get("/api/auth/me")).json()["id"], "key_id": key["id"]}
    used = [("never", Actor.APPLICATION)] * 2 + [(None, Actor.TOKEN)]
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        for application, actor in used:
            row = entry(Action.KEY_USE, at=now(), application=application, actor=actor, **about)
            await connection.execute(insert(audit_log).values(row))
    page = (await ada.get(ACTIVITY, headers=BROWSER)).text
    assert "Uses of your keys in the last 14 days: 3. Most on one day: 3." in page
    assert len(re.findall(r'<rect class="series-\d" x=', page)) == 2
    assert "style=" not in page.partition("<figure")[2].partition("</figure>")[0]  # the policy allows none
    assert re.findall(r'<t[dh][^>]* class="name">(.*?)</t[dh]><td[^>]*>(\d+)<', page) == [("never", "2"), (OWN, "1")]
    german = (await ada.get(ACTIVITY, headers={**BROWSER, "Accept-Language": "de"})).text
    assert ' class="name">never</t' in german  # the name of an application is no word of ours
    assert ' class="name">Ihre Zugriffstoken</t' in german
    assert "<figure" not in (await ada.get(f"{ACTIVITY}?cursor={Cursor(MAX_ID)}", headers=BROWSER)).text
