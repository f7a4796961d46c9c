"""Guessing passwords is slow for one address and from one network, also with many requests at once."""

from __future__ import annotations

from asyncio import gather
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import time_machine
from argon2 import PasswordHasher

from keyman.identity import limits
from keyman.identity.passwords import Passwords
from keyman.identity.tables import throttle as throttle_table
from keyman.identity.tables import users
from keyman.identity.turns import MAX_PER_ACCOUNT, groups_of
from tests.planes.management.api.harness import (
    ApiPlane,
    api_plane_at,
    cookie_of,
    email_of,
    log_in,
    problem,
    same_but_for_the_request_id,
    state_of,
)
from tests.support.needs import quick_on
from tests.support.planes import PASSWORD, Vault

pytestmark = pytest.mark.anyio

WRONG = "wrong horse, wrong battery"


async def attempt(
    plane: ApiPlane, email: str, password: str = WRONG, address: str | None = None, **headers: str
) -> httpx.Response:
    client = plane.client(address=address, headers=headers)
    return await client.post("/api/auth/login", json={"email": email, "password": password})


@contextmanager
def busy(plane: ApiPlane, email: str) -> Iterator[None]:
    """Fill the queue with requests for this account, each from another network."""
    passwords: Passwords = state_of(plane).passwords
    with ExitStack() as places:
        for number in range(MAX_PER_ACCOUNT):
            places.enter_context(passwords._queue.place(groups_of(email, f"10.9.{number}.1")))
        yield


async def test_after_repeated_failures_an_address_is_refused_even_with_the_right_password(shared: ApiPlane) -> None:
    ada, eve = [await email_of(await shared.user()) for _ in range(2)]
    for _ in range(limits.MAX_PER_ACCOUNT):
        problem(await attempt(shared, ada), "unauthenticated")
    for password in (WRONG, PASSWORD):
        refused = await attempt(shared, ada, password)
        problem(refused, "rate-limited")
        assert 0 < int(refused.headers["retry-after"]) <= limits.WINDOW.total_seconds()
        assert "set-cookie" not in refused.headers
    problem(await attempt(shared, ada.upper(), PASSWORD), "rate-limited")
    assert (await attempt(shared, eve, PASSWORD)).status_code == 200


async def test_an_unknown_address_is_throttled_like_a_known_one(shared: ApiPlane) -> None:
    known, unknown = await email_of(await shared.user()), "nobody-at-all@example.com"
    with time_machine.travel(datetime.now(UTC), tick=False):
        for _ in range(limits.MAX_PER_ACCOUNT + 2):
            answers = [await attempt(shared, email) for email in (known, unknown)]
            assert same_but_for_the_request_id(*answers)
    problem(answers[0], "rate-limited")


async def test_the_wait_that_is_named_is_long_enough(shared: ApiPlane) -> None:
    ada = await email_of(await shared.user())
    start = datetime.now(UTC)
    with time_machine.travel(start, tick=False) as clock:
        for n in range(limits.MAX_PER_ACCOUNT):
            clock.move_to(start + timedelta(seconds=n))
            await attempt(shared, ada)
        wait = int((await attempt(shared, ada, PASSWORD)).headers["retry-after"])
        clock.shift(wait - 2)
        problem(await attempt(shared, ada, PASSWORD), "rate-limited")
        clock.shift(3)
        assert (await attempt(shared, ada, PASSWORD)).status_code == 200


@quick_on("sqlite", "shared")
async def test_a_clock_that_ran_ahead_keeps_nobody_out(shared: ApiPlane) -> None:
    """Not at sign-in, not at a password change, and no network at sign-in or sign-up."""
    session, address = await shared.user(), "198.51.100.44"
    ada, change = await email_of(session), {"current_password": WRONG, "new_password": PASSWORD}
    here = shared.client(address=address)
    start = datetime.now(UTC)
    with time_machine.travel(start + timedelta(days=1), tick=False) as clock:
        for n in range(limits.MAX_PER_NETWORK):
            await attempt(shared, ada if n <= limits.MAX_PER_ACCOUNT else f"ahead-{n}@example.com", address=address)
        for _ in range(limits.MAX_PER_ACCOUNT):
            await session.put("/api/auth/password", json=change)
        for n in range(limits.MAX_SIGNUPS_PER_NETWORK):
            body = {"email": f"early-{n}@example.com", "password": PASSWORD}
            await here.post("/api/auth/signup", json=body)
        problem(await attempt(shared, ada, PASSWORD, address=address), "rate-limited")
        clock.move_to(start)
        assert (await attempt(shared, ada, PASSWORD, address=address)).status_code == 200
        assert (await session.put("/api/auth/password", json={**change, "current_password": PASSWORD})).is_success
        assert (await here.post("/api/auth/signup", json={**body, "email": "on-time@example.com"})).status_code == 201
        # The window that the right clock has started is a whole one.
        for _ in range(limits.MAX_PER_ACCOUNT):
            problem(await attempt(shared, ada), "unauthenticated")
        refused = await attempt(shared, ada, PASSWORD)
        problem(refused, "rate-limited")
        assert int(refused.headers["retry-after"]) <= limits.WINDOW.total_seconds()


async def test_clocks_that_differ_a_little_share_a_window(shared: ApiPlane) -> None:
    ada = await email_of(await shared.user())
    start = datetime.now(UTC)
    with time_machine.travel(start, tick=False) as clock:
        for n in range(limits.MAX_PER_ACCOUNT):
            clock.move_to(start + timedelta(seconds=20 * (n % 2)))
            problem(await attempt(shared, ada), "unauthenticated")
        for seconds in (0, 20):
            clock.move_to(start + timedelta(seconds=seconds))
            problem(await attempt(shared, ada, PASSWORD), "rate-limited")


async def test_a_success_forgets_the_failures_before_it(shared: ApiPlane) -> None:
    ada = await email_of(await shared.user())
    for _ in range(3):
        for _ in range(limits.MAX_PER_ACCOUNT - 1):
            problem(await attempt(shared, ada), "unauthenticated")
        assert (await attempt(shared, ada, PASSWORD)).status_code == 200


async def test_successes_are_not_counted(shared: ApiPlane) -> None:
    ada = await email_of(await shared.user())
    for _ in range(2 * limits.MAX_PER_ACCOUNT):
        assert (await attempt(shared, ada, PASSWORD, address="192.0.2.77")).status_code == 200


@quick_on("sqlite", "shared")
async def test_failures_from_one_network_count_together_whatever_the_address(shared: ApiPlane) -> None:
    ada = await email_of(await shared.user())
    for n in range(limits.MAX_PER_NETWORK):
        problem(await attempt(shared, f"guess{n}@example.com", address="198.51.100.7"), "unauthenticated")
    for email, password in ((ada, PASSWORD), ("guess0@example.com", WRONG), ("guess-new@example.com", WRONG)):
        problem(await attempt(shared, email, password, address="198.51.100.7"), "rate-limited")
    # Nor do headers that anybody can write help.
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "True-Client-IP"):
        problem(await attempt(shared, ada, PASSWORD, "198.51.100.7", **{header: "203.0.113.9"}), "rate-limited")
    assert (await attempt(shared, ada, PASSWORD, address="198.51.100.8")).status_code == 200


@quick_on("sqlite", "shared")
async def test_an_ipv6_network_is_one_client(shared: ApiPlane) -> None:
    ada = await email_of(await shared.user())
    answers = await gather(*(attempt(shared, f"v6-{n}@example.com", address=f"2001:db8:1:2::{n:x}") for n in range(10)))
    assert {answer.status_code for answer in answers} == {401}
    for n in range(limits.MAX_PER_NETWORK - 10):
        await attempt(shared, f"v6-{n}@example.com", address=f"2001:db8:1:2:{n:x}::1")
    problem(await attempt(shared, ada, PASSWORD, address="2001:db8:1:2:ffff::1"), "rate-limited")
    assert (await attempt(shared, ada, PASSWORD, address="2001:db8:1:3::1")).status_code == 200


async def test_fifty_guesses_at_once_are_no_more_than_fifty_one_after_the_other(shared: ApiPlane) -> None:
    ada = await email_of(await shared.user())
    answers = await gather(*(attempt(shared, ada) for _ in range(50)))
    looked_at = [answer for answer in answers if answer.status_code == 401]
    assert len(looked_at) <= limits.MAX_PER_ACCOUNT
    for answer in answers:
        if answer not in looked_at:
            problem(answer, "rate-limited")
    # Those that were turned away unseen can come again, and there are still no more guesses than that.
    for _ in range(limits.MAX_PER_ACCOUNT - len(looked_at)):
        problem(await attempt(shared, ada), "unauthenticated")
    problem(await attempt(shared, ada, PASSWORD), "rate-limited")


async def test_two_replicas_count_together(
    api_plane: ApiPlane, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    url = api_plane.settings.database_url
    async with api_plane_at(url, provisioned.settings, Passwords(quick_passwords)) as replica:
        ada = await email_of(await api_plane.user())
        seen = 0
        for _ in range(5):
            answers = await gather(*(attempt(where, ada) for where in (api_plane, replica) * 10))
            assert {answer.status_code for answer in answers} <= {401, 429}
            seen += [answer.status_code for answer in answers].count(401)
        assert seen <= limits.MAX_PER_ACCOUNT
        for where in (api_plane, replica):
            problem(await attempt(where, ada, PASSWORD), "rate-limited")


async def test_guessing_the_current_password_in_a_session_is_slow_too(shared: ApiPlane) -> None:
    ada = await shared.user()
    body = {"current_password": WRONG, "new_password": "a perfectly good one"}
    for _ in range(limits.MAX_PER_ACCOUNT):
        problem(await ada.put("/api/auth/password", json=body), "invalid-request", "current_password")
    problem(await ada.put("/api/auth/password", json={**body, "current_password": PASSWORD}), "rate-limited")


@quick_on("sqlite", "shared")
async def test_strangers_cannot_keep_an_owner_from_changing_the_password(shared: ApiPlane) -> None:
    address = "198.51.100.70"
    ada = await shared.user()
    email = await email_of(ada)
    here = shared.client(address=address, headers={"Cookie": f"keyman_session={cookie_of(ada)}"})
    for n in range(limits.MAX_PER_NETWORK):
        await attempt(shared, email if n <= limits.MAX_PER_ACCOUNT else f"guess-{n}@example.com", address=address)
    problem(await attempt(shared, email, PASSWORD), "rate-limited")
    problem(await attempt(shared, "another@example.com", address=address), "rate-limited")
    change = {"current_password": PASSWORD, "new_password": "another horse, another battery"}
    assert (await here.put("/api/auth/password", json=change)).status_code == 204


async def test_sessions_and_tokens_go_on_while_an_address_is_throttled(shared: ApiPlane) -> None:
    ada = await shared.user()
    email, script = await email_of(ada), await shared.token(ada)
    for _ in range(limits.MAX_PER_ACCOUNT + 1):
        await attempt(shared, email)
    for client in (ada, script):
        assert (await client.get("/api/keys")).status_code == 200


async def test_accounts_made_from_one_network_are_counted(shared: ApiPlane) -> None:
    for n in range(limits.MAX_SIGNUPS_PER_NETWORK):
        client = shared.client(address="198.51.100.99")
        body = {"email": f"crowd{n}@example.com", "password": PASSWORD}
        assert (await client.post("/api/auth/signup", json=body)).status_code == 201
    counted = await shared.count(users)
    client = shared.client(address="198.51.100.99")
    refused = await client.post("/api/auth/signup", json={"email": "more@example.com", "password": PASSWORD})
    assert "accounts were created" in problem(refused, "rate-limited")["detail"]
    assert await shared.count(users) == counted
    await log_in(shared, "crowd0@example.com")


async def test_a_request_that_is_not_well_formed_is_no_attempt(shared: ApiPlane) -> None:
    ada = await email_of(await shared.user())
    for _ in range(limits.MAX_PER_ACCOUNT + 5):
        client = shared.client(address="198.51.100.50")
        answer = await client.post("/api/auth/login", json={"email": ada, "password": PASSWORD, "more": 1})
        problem(answer, "invalid-request", "")
    assert (await attempt(shared, ada, PASSWORD, address="198.51.100.50")).status_code == 200


async def test_an_attempt_that_was_turned_away_unseen_is_no_failure(shared: ApiPlane) -> None:
    """When too many sign in at once, somebody with the right password is not locked out for trying again."""
    session = await shared.user()
    ada, change = await email_of(session), {"current_password": PASSWORD, "new_password": PASSWORD}
    with busy(shared, ada):
        for _ in range(limits.MAX_PER_ACCOUNT + 1):
            refused = await attempt(shared, ada, PASSWORD, address="198.51.100.60")
            problem(refused, "rate-limited")
            assert int(refused.headers["retry-after"]) < 60
            problem(await session.put("/api/auth/password", json=change), "rate-limited")
    assert (await session.put("/api/auth/password", json=change)).status_code == 204
    assert (await attempt(shared, ada, PASSWORD, address="198.51.100.60")).status_code == 200


async def test_a_sign_up_that_was_turned_away_unseen_is_not_counted(shared: ApiPlane) -> None:
    body = {"email": "patient@example.com", "password": PASSWORD}
    client = shared.client(address="198.51.100.61")
    with busy(shared, "patient@example.com"):
        for _ in range(limits.MAX_SIGNUPS_PER_NETWORK + 1):
            assert "under way" in problem(await client.post("/api/auth/signup", json=body), "rate-limited")["detail"]
    assert (await client.post("/api/auth/signup", json=body)).status_code == 201


async def test_what_is_kept_of_failures_is_no_list_of_addresses(shared: ApiPlane) -> None:
    await attempt(shared, "private-person@example.com", address="203.0.113.200")
    kept = repr([tuple(row) for row in await shared.rows(throttle_table)])
    assert "private" not in kept
    assert "203.0.113" not in kept
