"""Settings → Activity: the audit log in words, by kind and by period."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import insert

from keyman.audit.entries import Action, Actor, Reason
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.errors import VaultReason
from keyman.planes.management.web.activity import (
    ACTIONS,
    ACTIVITY,
    KIND_NAMES,
    KINDS,
    PERIOD_NAMES,
    PERIODS,
    REASONS,
    View,
)
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import ApiPlane, store
from tests.support.rows import entry

pytestmark = pytest.mark.anyio

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Site": "same-origin"}


async def person(plane: ApiPlane) -> httpx.AsyncClient:
    client = await plane.user()
    client.headers.update(BROWSER)
    return client


async def id_of(client: httpx.AsyncClient) -> int:
    return int((await client.get("/api/auth/me")).json()["id"])


def said(page: httpx.Response) -> list[str]:
    """What happened, row by row."""
    assert page.status_code == 200, page.text
    cells = re.findall(r'<t[dh][^>]* class="label">(.*?)</t[dh]>', page.text)
    return [html.unescape(re.sub("<[^>]*>", " | ", cell)).strip(" |") for cell in cells]


def older(page: httpx.Response) -> str | None:
    found = re.search(r'<a href="([^"]*)" rel="next">', page.text)
    return html.unescape(found[1]) if found else None


def test_every_action_has_words_and_what_a_user_does_is_of_one_kind() -> None:
    assert ACTIONS.keys() == set(Action)
    of_nobody = ("application.", "vault.", "trail.")
    of_users = [action for action in Action if not action.startswith(of_nobody)]
    of_users += [Action.APPLICATION_BLOCK, Action.APPLICATION_UNBLOCK]
    assert sorted(action for kind in KINDS.values() for action in kind) == sorted(of_users)
    assert KINDS.keys() == KIND_NAMES.keys()
    assert PERIODS.keys() == PERIOD_NAMES.keys()


def test_every_reason_of_the_resolver_has_words() -> None:
    assert {*Reason, *VaultReason} == REASONS.keys()


async def test_a_kind_and_a_period_are_chosen_by_a_plain_form_and_kept_over_pages(shared: ApiPlane) -> None:
    ada = await person(shared)
    for _ in range(60):
        await store(ada)
    page = await ada.get(ACTIVITY, params={"kind": "keys-changed", "period": "week"})
    assert said(page) == ["Key added"] * 50
    for chosen in ("keys-changed", "week"):
        assert f'<option value="{chosen}" selected>' in page.text
    following = older(page)
    assert following is not None
    assert following.startswith(f"{ACTIVITY}?kind=keys-changed&period=week&cursor=")
    last = await ada.get(following)
    assert said(last) == ["Key added"] * 10  # and not that the account was created
    assert older(last) is None
    assert f'<a href="{ACTIVITY}?kind=keys-changed&amp;period=week">Newest</a>' in last.text
    assert said(await ada.get(ACTIVITY, params={"kind": "account", "period": ""})) == ["Account created"]


async def test_a_period_ends_now_and_what_is_older_is_left_out(shared: ApiPlane) -> None:
    ada = await person(shared)
    owner, moment = await id_of(ada), now()
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        # In the order of time, as an audit log is.
        for days in (31, 29, 8, 6, 2, 0.9):
            row = entry(Action.LOGIN, user_id=owner, at=moment - timedelta(days=days), actor=Actor.SESSION)
            await connection.execute(insert(audit_log).values(row))
    for period, count in (("day", 1), ("week", 3), ("month", 5), ("", 6)):
        assert said(await ada.get(ACTIVITY, params={"kind": "sign-ins", "period": period})) == ["Signed in"] * count


async def test_nothing_found_says_so_and_leads_to_everything(shared: ApiPlane) -> None:
    ada = await person(shared)
    page = await ada.get(ACTIVITY, params={"kind": "keys-used", "period": "day"})
    assert said(page) == []
    assert "Nothing of this kind happened in this period." in page.text
    assert f'<a href="{ACTIVITY}">Show all activity</a>' in page.text
    assert "Show all activity" not in (await ada.get(ACTIVITY)).text


@pytest.mark.parametrize("query", ["kind=x", "period=x", "cursor=x", "kind=%00", "kind=<b>", "kind=key.resolve", "x=1"])
async def test_a_query_that_means_nothing_shows_everything(sqlite_plane: ApiPlane, query: str) -> None:
    ada = await person(sqlite_plane)
    page = await ada.get(f"{ACTIVITY}?{query}")
    assert said(page) == ["Account created"]
    assert "<b>" not in page.text


async def test_a_page_that_is_out_of_the_period_by_now_leads_to_the_newest(shared: ApiPlane) -> None:
    ada = await person(shared)
    answer = await ada.get(f"{ACTIVITY}?kind=sign-ins&period=day&cursor=AAAAAAAAAAE")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{ACTIVITY}?kind=sign-ins&period=day")


async def test_an_application_is_shown_with_its_name_its_purpose_and_why_it_got_nothing(shared: ApiPlane) -> None:
    ada = await person(shared)
    key = await store(ada)
    about = {"user_id": await id_of(ada), "key_id": key["id"], "service": "OPENAI", "application": "chat-backend"}
    told: list[tuple[Action, str | None]] = [(Action.KEY_RESOLVE, None)]
    told += [(Action.KEY_RESOLVE_REFUSED, reason) for reason in (*REASONS, "of-a-later-version")]
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        for action, reason in told:
            row = entry(action, reason=reason, purpose="<b>chat</b> & more", **about)
            await connection.execute(insert(audit_log).values(row))
    page = await ada.get(ACTIVITY, params={"kind": "keys-used"})
    words = [*REASONS.values(), "of-a-later-version"]
    assert said(page) == [
        *(f"Key refused to an application | {why}" for why in reversed(words)),
        "Key given to an application",
    ]
    assert page.text.count("Application chat-backend") == len(told)
    assert page.text.count("“&lt;b&gt;chat&lt;/b&gt; &amp; more”") == len(told)
    assert "<b>" not in page.text


async def test_the_issuer_of_a_sign_in_is_shown_and_no_other_detail(shared: ApiPlane) -> None:
    ada = await person(shared)
    details = ("issuer https://id.example.com/<b>", "issuer", "issuer ", "1 failed sign-in", "portal of shop", None)
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        for detail in details:
            row = entry(Action.LOGIN, user_id=await id_of(ada), actor=Actor.SESSION, detail=detail)
            await connection.execute(insert(audit_log).values(row))
    shown = (await ada.get("/api/audit", params={"action": "account.login"})).json()
    assert [each["detail"] for each in shown] == list(reversed(details))
    page = await ada.get(ACTIVITY, params={"kind": "sign-ins"})
    assert re.findall(r'<span class="note">(.*?)</span>', page.text) == ["at https://id.example.com/&lt;b&gt;"]
    german = await ada.get(ACTIVITY, params={"kind": "sign-ins"}, headers={"Accept-Language": "de"})
    assert "bei https://id.example.com/" in german.text


def test_a_view_reads_what_it_writes() -> None:
    for kind in ("", *KINDS):
        for period in ("", *PERIODS):
            view = View(kind, period)
            query = dict(httpx.URL(view.url()).params)
            assert View.parse(query) == view
            assert view.is_filtered == bool(kind or period)
