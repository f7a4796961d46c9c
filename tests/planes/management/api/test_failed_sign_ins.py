"""Failed sign-ins in the audit log: the first one of a window and the total, and nothing for an unknown address."""

from __future__ import annotations

from asyncio import gather
from datetime import UTC, datetime, timedelta

import pytest
import time_machine

from keyman.audit.tables import audit_log
from keyman.identity import limits, throttle
from keyman.identity.limits import WINDOW
from keyman.identity.login import record_totals
from keyman.planes.management import housekeeping
from tests.planes.management.api.harness import ApiPlane, email_of, problem, statements
from tests.support.planes import PASSWORD

pytestmark = pytest.mark.anyio


async def fail(plane: ApiPlane, email: str, times: int = 1) -> None:
    for _ in range(times):
        body = {"email": email, "password": "wrong horse, wrong battery"}
        problem(await plane.client().post("/api/auth/login", json=body), "unauthenticated")


async def failures(plane: ApiPlane) -> list[str | None]:
    """The details of the entries about failed sign-ins, oldest first."""
    return [row.detail for row in await plane.rows(audit_log) if row.action == "account.login-failed"]


async def test_an_unknown_address_leaves_no_entry(api_plane: ApiPlane) -> None:
    for number in range(30):
        await fail(api_plane, f"nobody{number}@example.com")
    assert await api_plane.count(audit_log) == 0


async def test_the_first_failure_of_a_window_has_an_entry_and_the_total_another(api_plane: ApiPlane) -> None:
    ada = await api_plane.user()
    email = await email_of(ada)
    start = datetime.now(UTC)
    with time_machine.travel(start, tick=False) as clock:
        await fail(api_plane, email, 7)
        assert await failures(api_plane) == ["1 failed sign-in"]
        for moment in (timedelta(), WINDOW - timedelta(seconds=1)):
            clock.move_to(start + moment)
            await record_totals(api_plane.database)
            await housekeeping.sweep(api_plane.database)
        assert await failures(api_plane) == ["1 failed sign-in"]
        clock.move_to(start + WINDOW)
        await housekeeping.sweep(api_plane.database)
        await gather(*(record_totals(api_plane.database) for _ in range(3)))  # once, by whichever replica
        assert await failures(api_plane) == ["1 failed sign-in", "7 failed sign-ins in 15 minutes"]
        entries = [row for row in await api_plane.rows(audit_log) if row.action == "account.login-failed"]
        assert {row.user_id for row in entries} == {(await ada.get("/api/auth/me")).json()["id"]}


async def test_the_next_failure_records_the_total_before_it(api_plane: ApiPlane) -> None:
    email = await email_of(await api_plane.user())
    start = datetime.now(UTC)
    with time_machine.travel(start, tick=False) as clock:
        await fail(api_plane, email, 3)
        clock.move_to(start + WINDOW)
        await fail(api_plane, email)
        assert await failures(api_plane) == ["1 failed sign-in", "3 failed sign-ins in 15 minutes", "1 failed sign-in"]
        clock.move_to(start + 2 * WINDOW)
        await record_totals(api_plane.database)
        assert len(await failures(api_plane)) == 3, "the entry about one failure is the total"


async def test_a_success_between_failures_begins_no_other_window(api_plane: ApiPlane) -> None:
    email = await email_of(await api_plane.user())
    for _ in range(3):
        await fail(api_plane, email, limits.MAX_PER_ACCOUNT - 1)
        answer = await api_plane.client().post("/api/auth/login", json={"email": email, "password": PASSWORD})
        assert answer.status_code == 200
    assert await failures(api_plane) == ["1 failed sign-in"]


async def test_a_known_and_an_unknown_address_cost_the_same_number_of_statements(api_plane: ApiPlane) -> None:
    known = await email_of(await api_plane.user())
    for _ in range(3):
        counts = []
        for email in (known, "nobody@example.com"):
            with statements() as asked:
                await fail(api_plane, email)
            counts.append(len(asked))
        assert counts[0] == counts[1]


async def test_more_windows_than_fit_one_transaction_are_all_recorded(
    api_plane: ApiPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    emails = [await email_of(await api_plane.user()) for _ in range(3)]
    start = datetime.now(UTC)
    monkeypatch.setattr(throttle, "ENDED_AT_ONCE", 3)
    with time_machine.travel(start, tick=False) as clock:
        for email in emails:
            await fail(api_plane, email, 2)
        clock.move_to(start + timedelta(days=1))
        await record_totals(api_plane.database)
    assert (await failures(api_plane)).count("2 failed sign-ins in 15 minutes") == 3
