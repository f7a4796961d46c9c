"""What an application reports of a key that it got."""

from __future__ import annotations

from datetime import timedelta
from secrets import token_hex
from typing import Any

import pytest
import time_machine
from sqlalchemy import update

from keyman.clock import now
from keyman.http.limit import RateLimit
from keyman.identity import applications
from keyman.identity.tables import applications as application_table
from keyman.keys import reports
from keyman.storage.transactions import Unchecked
from keyman.values import ApplicationName
from tests.planes.management.api.harness import problem, same_but_for_the_request_id
from tests.planes.resolver.pair import App, Owner, Pair
from tests.planes.resolver.test_portal import disable

pytestmark = pytest.mark.anyio


async def report(app: App, key_id: int, outcome: str = "refused") -> Any:
    return await app.client.post("/v1/report", json={"key_id": key_id, "outcome": outcome})


async def shown(owner: Owner, key_id: int) -> Any:
    return (await owner.client.get(f"/api/keys/{key_id}")).json()["check"]


async def resolved(pair: Pair) -> tuple[Owner, App, int]:
    owner, app = await pair.owner(), await pair.app()
    key_id = await owner.key()
    await app.gets(key_id=key_id)
    return owner, app, key_id


async def test_a_report_is_stored_with_an_entry_and_shown_to_the_owner(shared_pair: Pair) -> None:
    owner, app, key_id = await resolved(shared_pair)
    answer = await report(app, key_id, "no-credit")
    assert (answer.status_code, answer.content) == (204, b"")
    check = await shown(owner, key_id)
    assert (check["verdict"], check["by"]) == ("no-credit", app.name)
    assert (await shared_pair.told(app)) == [("key.resolve", None), ("key.report", None)]
    assert (await shared_pair.entries(app))[-1].detail == "no-credit"


async def test_an_application_that_has_not_resolved_the_key_gets_the_404_of_an_unknown_one(shared_pair: Pair) -> None:
    owner, _, key_id = await resolved(shared_pair)
    other = await shared_pair.app()
    unknown = await report(other, 999_999)
    problem(unknown, "not-found")
    assert same_but_for_the_request_id(await report(other, key_id), unknown)
    assert await shown(owner, key_id) is None


async def test_a_resolve_of_an_older_value_or_of_over_an_hour_ago_does_not_count(
    shared_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, app, key_id = await resolved(shared_pair)
    await owner.client.put(f"/api/keys/{key_id}", json={"api_key": "sk-another-value-1234"})
    assert (await report(app, key_id)).status_code == 404
    await app.gets(key_id=key_id)
    assert (await report(app, key_id)).status_code == 204
    owner, app, key_id = await resolved(shared_pair)
    monkeypatch.setattr(reports, "RESOLVED_WITHIN", timedelta())
    assert (await report(app, key_id)).status_code == 404


async def test_another_process_counts_the_reports_that_were_stored(
    shared_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, app, key_id = await resolved(shared_pair)
    assert (await report(app, key_id)).status_code == 204
    monkeypatch.setattr(RateLimit, "take", lambda *_: None)  # what it counts is in the memory of one process
    problem(await report(app, key_id), "rate-limited")


async def test_a_new_value_after_the_report_forgets_it(shared_pair: Pair) -> None:
    owner, app, key_id = await resolved(shared_pair)
    await report(app, key_id)
    await owner.client.put(f"/api/keys/{key_id}", json={"api_key": "sk-another-value-1234"})
    assert await shown(owner, key_id) is None


@pytest.mark.parametrize("by", ["keyman", "use"])
async def test_a_newer_verdict_of_a_check_or_of_use_stays(shared_pair: Pair, by: str) -> None:
    owner, app, key_id = await resolved(shared_pair)
    newer = {"check_verdict": "accepted", "check_detail": "x", "checked_by": by}
    await shared_pair.change(key_id, **newer, checked_at=now())
    assert (await report(app, key_id)).status_code == 204
    assert (await shown(owner, key_id))["verdict"] == "accepted"
    assert await shared_pair.told(app) == [("key.resolve", None)]
    owner, app, key_id = await resolved(shared_pair)
    await shared_pair.change(key_id, **newer, checked_at=now() - timedelta(minutes=1))
    assert (await report(app, key_id)).status_code == 204
    assert (await shown(owner, key_id))["verdict"] == "refused"


async def test_a_newer_report_of_another_application_is_replaced(shared_pair: Pair) -> None:
    owner, app, key_id = await resolved(shared_pair)
    await shared_pair.change(key_id, check_verdict="accepted", check_detail="x", checked_by="other", checked_at=now())
    assert (await report(app, key_id)).status_code == 204
    assert (await shown(owner, key_id))["verdict"] == "refused"


async def test_one_report_in_10_seconds_for_each_application_and_key(shared_pair: Pair) -> None:
    owner, app, key_id = await resolved(shared_pair)
    assert (await report(app, key_id)).status_code == 204
    again = await report(app, key_id, "accepted")
    problem(again, "rate-limited")
    assert 1 <= int(again.headers["retry-after"]) <= 10
    other_key = await owner.key()
    await app.gets(key_id=other_key)
    assert (await report(app, other_key)).status_code == 204
    other = await shared_pair.app()
    await other.gets(key_id=key_id)
    assert (await report(other, key_id, "accepted")).status_code == 204
    assert (await shown(owner, key_id))["verdict"] == "accepted"


async def test_a_clock_that_ran_ahead_keeps_no_report_out(sqlite_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a report nor a check from the future, and a resolve from the future counts only for its hour."""
    monkeypatch.setattr(RateLimit, "take", lambda *_: None)  # it measures time without that clock
    start = now()
    with time_machine.travel(start + timedelta(days=1), tick=False) as clock:
        owner, app, key_id = await resolved(sqlite_pair)
        assert (await report(app, key_id, "accepted")).status_code == 204
        await sqlite_pair.change(key_id, checked_by="keyman")
        clock.move_to(start + timedelta(minutes=5))
        problem(await report(app, key_id), "not-found")
        await app.gets(key_id=key_id)
        assert (await report(app, key_id)).status_code == 204
        assert (await shown(owner, key_id))["verdict"] == "refused"


async def test_an_application_that_the_owner_has_blocked_gets_404(shared_pair: Pair) -> None:
    owner, app, key_id = await resolved(shared_pair)
    listed = (await owner.client.get("/api/applications")).json()
    (application_id,) = [one["id"] for one in listed if one["name"] == app.name]
    assert (await owner.client.put(f"/api/applications/{application_id}/block")).status_code == 204
    problem(await report(app, key_id), "not-found")
    assert await shown(owner, key_id) is None


async def test_a_key_of_a_disabled_owner_gets_the_404_of_an_unknown_one(shared_pair: Pair) -> None:
    owner, app, key_id = await resolved(shared_pair)
    unknown = await report(app, 999_999)
    await disable(shared_pair.resolver.database, owner.id)
    assert same_but_for_the_request_id(await report(app, key_id), unknown)
    row = await shared_pair.row(key_id)
    assert row.check_verdict is None
    assert await shared_pair.told(app) == [("key.resolve", None)]


async def test_an_application_with_a_reserved_name_from_before_gets_403(shared_pair: Pair) -> None:
    owner, app, key_id = await resolved(shared_pair)
    async with shared_pair._operator.write(Unchecked.OPERATOR) as connection:
        renamed = update(application_table).where(application_table.c.name == app.name).values(name="keyman")
        await connection.execute(renamed)
    problem(await report(app, key_id), "forbidden")
    assert await shown(owner, key_id) is None


@pytest.mark.parametrize("outcome", ["no-permission", "unreachable", "REFUSED", "", None, 1])
async def test_other_outcomes_are_400(shared_pair: Pair, outcome: Any) -> None:
    _, app, key_id = await resolved(shared_pair)
    answer = await app.client.post("/v1/report", json={"key_id": key_id, "outcome": outcome})
    problem(answer, "invalid-request", "outcome")


async def test_the_application_for_checks_gets_403_on_every_route(shared_pair: Pair) -> None:
    owner = await shared_pair.owner()
    key_id = await owner.key()
    registered = await applications.create(shared_pair._operator, ApplicationName(f"checks-{token_hex(4)}"), ())
    client = shared_pair.resolver.bearer(registered.token.reveal())
    for path, body in (
        ("/v1/resolve", {"key_id": key_id}),
        ("/v1/report", {"key_id": key_id, "outcome": "refused"}),
        ("/v1/portal-links", {"subject": "user-42"}),
    ):
        problem(await client.post(path, json=body), "forbidden")
    assert await shown(owner, key_id) is None
