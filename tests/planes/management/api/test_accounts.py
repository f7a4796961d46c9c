"""`/api/auth/*`: sign-up, sign-in, and passwords."""

from __future__ import annotations

from asyncio import create_task, gather, to_thread
from collections.abc import Awaitable, Callable
from datetime import datetime
from threading import Event

import pytest
from argon2 import PasswordHasher
from httpx import AsyncClient
from sqlalchemy.engine import URL

from keyman.audit.entries import Action
from keyman.audit.tables import audit_log
from keyman.identity import users
from keyman.identity.limits import MAX_PER_ACCOUNT, Bucket
from keyman.identity.passwords import Passwords
from keyman.identity.tables import sessions, throttle
from keyman.identity.tables import users as users_table
from keyman.values import EmailAddress, NewPassword
from tests.planes.management.api.harness import (
    ACCOUNT_FIELDS,
    TIMESTAMP,
    ApiPlane,
    api_plane_at,
    cookie_of,
    email_of,
    log_in,
    problem,
    same_but_for_the_request_id,
    set_cookie,
    state_of,
    statements,
    store,
)
from tests.support.planes import PASSWORD, Vault
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.anyio

NEW = "another horse, another battery"


async def test_sign_up_makes_an_account_and_signs_it_in(shared: ApiPlane) -> None:
    visitor = shared.client()
    body = {"email": "Ada.Lovelace+keys@Example.com", "password": PASSWORD}
    answer = await visitor.post("/api/auth/signup", json=body)
    assert answer.status_code == 201
    account = answer.json()
    assert account.keys() == ACCOUNT_FIELDS
    assert account["email"] == body["email"]
    assert type(account["id"]) is int
    assert TIMESTAMP.fullmatch(account["created_at"])
    me = await visitor.get("/api/auth/me")
    assert (me.status_code, me.json()) == (200, account)


async def test_log_in_answers_as_sign_up_did_with_a_session_of_its_own(shared: ApiPlane) -> None:
    ada = await shared.user()
    account = (await ada.get("/api/auth/me")).json()
    other = shared.client()
    answer = await other.post("/api/auth/login", json={"email": account["email"], "password": PASSWORD})
    assert (answer.status_code, answer.json()) == (200, account)
    value, _ = set_cookie(answer)
    assert value != ada.cookies["keyman_session"]
    for client in (ada, other):
        assert (await client.get("/api/auth/me")).json() == account


async def test_an_address_is_one_account_however_it_is_spelt(shared: ApiPlane) -> None:
    await shared.user("Zoë.Ångström@Example.com")
    counted = await shared.count(users_table)
    for spelling in (
        "Zoë.Ångström@Example.com",
        "zoë.ångström@example.com",
        "ZOË.ÅNGSTRÖM@EXAMPLE.COM",
        "Zoe\u0308.A\u030angstro\u0308m@example.com",
        "  zoë.ångström@example.com\n",
    ):
        answer = await shared.client().post("/api/auth/signup", json={"email": spelling, "password": NEW})
        problem(answer, "conflict")
        assert "set-cookie" not in answer.headers
        assert await email_of(await log_in(shared, spelling)) == "Zoë.Ångström@Example.com"
    assert await shared.count(users_table) == counted


async def test_of_many_sign_ups_of_one_address_at_once_one_succeeds(shared: ApiPlane) -> None:
    body = {"email": "many@example.com", "password": PASSWORD}
    answers = await gather(*(shared.client().post("/api/auth/signup", json=body) for _ in range(8)))
    statuses = sorted(answer.status_code for answer in answers)
    refused = statuses.count(429)  # the account has places for four requests at once
    assert statuses == [201] + [409] * (7 - refused) + [429] * refused
    assert refused <= 4


async def test_sign_up_is_refused_where_it_is_closed_whatever_the_address(
    api_plane: ApiPlane, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    known = await email_of(await api_plane.user())
    url, vault = api_plane.settings.database_url, provisioned.settings
    async with api_plane_at(url, vault, Passwords(quick_passwords), signup_open=False) as closed:
        answers = [
            await closed.client().post("/api/auth/signup", json={"email": email, "password": PASSWORD})
            for email in (known, "new@example.com")
        ]
        for answer in answers:
            problem(answer, "forbidden")
            assert "set-cookie" not in answer.headers
        assert same_but_for_the_request_id(*answers)
        assert await closed.count(users_table) == 1
        assert (await log_in(closed, known)).cookies


@pytest.mark.parametrize(
    "email",
    [
        "",
        " ",
        "ada",
        "@example.com",
        "ada@",
        "a@b@c",
        "a b@example.com",
        "a\tb@example.com",
        "ada@exam\nple.com",
        "ada\0@example.com",
        "ada@example.com\0",
        "ada\u202e@example.com",
        "ada@example.com\u200b",
        "x" * 65 + "@example.com",
        "ada@" + "x" * 251,
        None,
        7,
        True,
        ["ada@example.com"],
        {"a": "b"},
    ],
)
async def test_what_is_no_address_is_refused(sqlite_plane: ApiPlane, email: object) -> None:
    counted = await sqlite_plane.count(users_table)
    for path in ("/api/auth/signup", "/api/auth/login"):
        answer = await sqlite_plane.client().post(path, json={"email": email, "password": PASSWORD})
        problem(answer, "invalid-request", "email")
    assert await sqlite_plane.count(users_table) == counted


async def test_the_longest_addresses_work(shared: ApiPlane) -> None:
    for email in ("x" * 64 + "@" + "y" * 189, "ΐ" * 32 + "@" + "ΐ" * 94, "a@b"):
        assert await email_of(await shared.user(email)) == email
        assert await email_of(await log_in(shared, email)) == email


async def test_a_password_has_10_to_256_characters(shared: ApiPlane) -> None:
    for n, (password, status) in enumerate(
        (
            ("x" * 9, 400),
            ("x" * 10, 201),
            ("x" * 256, 201),
            ("x" * 257, 400),
            ("🔑" * 9, 400),
            ("🔑" * 10, 201),
            ("🔑" * 256, 201),
            ("🔑" * 257, 400),
            (" " * 10, 201),
            ("\0" * 10, 201),
            ("", 400),
        )
    ):
        email = f"length{n}@example.com"
        answer = await shared.client().post("/api/auth/signup", json={"email": email, "password": password})
        assert answer.status_code == status, n
        if status == 201:
            await log_in(shared, email, password)
        else:
            problem(answer, "invalid-request", "password")


async def test_a_password_is_compared_whole_and_as_it_is(shared: ApiPlane) -> None:
    long = "x" * 255
    await shared.client().post("/api/auth/signup", json={"email": "whole@example.com", "password": f" {long}"})
    for wrong in (long, f" {long[1:]}", f" {long}".upper(), f" {long[:-1]}\0"):
        answer = await shared.client().post("/api/auth/login", json={"email": "whole@example.com", "password": wrong})
        problem(answer, "unauthenticated")
    await log_in(shared, "whole@example.com", f" {long}")


async def test_a_password_given_at_sign_in_may_have_any_form_up_to_256_characters(shared: ApiPlane) -> None:
    email = await email_of(await shared.user())
    for wrong in ("", "x", "\0", "🔑"):
        problem(
            await shared.client().post("/api/auth/login", json={"email": email, "password": wrong}), "unauthenticated"
        )
    too_long = await shared.client().post("/api/auth/login", json={"email": email, "password": "x" * 257})
    problem(too_long, "invalid-request", "password")


# --- unknown, wrong and disabled look alike


async def test_an_unknown_address_a_wrong_password_and_a_disabled_account_look_alike(api_plane: ApiPlane) -> None:
    known, disabled = await email_of(await api_plane.user()), await email_of(await api_plane.user())
    await users.disable(api_plane.database, EmailAddress(disabled))
    answers = [
        await api_plane.client().post("/api/auth/login", json={"email": email, "password": password})
        for email, password in (
            ("nobody@example.com", PASSWORD),
            (known, "wrong" * 3),
            (disabled, PASSWORD),
            (disabled, "wrong" * 3),
        )
    ]
    for answer in answers:
        problem(answer, "unauthenticated")
        assert "set-cookie" not in answer.headers
        assert same_but_for_the_request_id(answers[0], answer)


class Watching(PasswordHasher):
    """The real hasher, which notes what it was asked."""

    def __init__(self, time_cost: int = 1) -> None:
        super().__init__(time_cost=time_cost, memory_cost=8, parallelism=1)
        self.work: list[str] = []

    def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
        self.work.append("hash")
        return super().hash(password, salt=salt)

    def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # type: ignore[override]  # the library's own signature and name
        self.work.append(f"verify {str(hash).rsplit('$', 2)[0]} of {len(password)}")
        return super().verify(hash, password)


async def test_an_unknown_address_costs_the_same_work_as_a_wrong_password(database: URL, provisioned: Vault) -> None:
    """In Argon2id, and in what is asked of the database, transactions included: a clock could tell the rest apart."""
    hasher = Watching()
    async with api_plane_at(database, provisioned.settings, Passwords(hasher)) as plane:
        known, disabled = await email_of(await plane.user()), await email_of(await plane.user())
        await users.disable(plane.database, EmailAddress(disabled))
        work = []
        for email in (known, "nobody@example.com", disabled, known, "nobody2@example.com"):
            hasher.work.clear()
            with statements() as asked:
                body = {"email": email, "password": "wrong" * 3}
                problem(await plane.client().post("/api/auth/login", json=body), "unauthenticated")
            work.append((tuple(hasher.work), tuple(asked)))
        assert [len(done) for done, _ in work] == [1] * len(work)
        assert len({done for done, _ in work}) == 1, work
        counted = [
            (sum("BEGIN" in line for line in asked), sum("COMMIT" in line for line in asked)) for _, asked in work
        ]
        assert len(set(counted)) == 1, work
        kinds = [[line.split()[0] for line in asked] for _, asked in work]
        assert all(kind == kinds[0] for kind in kinds), work


async def test_a_password_is_hashed_again_when_the_parameters_have_risen(database: URL, provisioned: Vault) -> None:
    async def stored(plane: ApiPlane) -> str:
        return str((await plane.rows(users_table))[0].password_hash)

    async with api_plane_at(database, provisioned.settings, Passwords(Watching(1))) as plane:
        email = await email_of(await plane.user())
        old = await stored(plane)
        assert old.startswith("$argon2id$v=19$m=8,t=1,p=1$")
        await log_in(plane, email)
        assert await stored(plane) == old
    async with api_plane_at(database, provisioned.settings, Passwords(Watching(2))) as plane:
        wrong = await plane.client().post("/api/auth/login", json={"email": email, "password": "wrong" * 3})
        problem(wrong, "unauthenticated")
        assert await stored(plane) == old
        await log_in(plane, email)
        new = await stored(plane)
        assert new.startswith("$argon2id$v=19$m=8,t=2,p=1$")
        await log_in(plane, email)
        assert await stored(plane) == new


# --- signing in while the account changes


class Held(PasswordHasher):
    """The real hasher, which holds each verification back until it is let go."""

    def __init__(self, time_cost: int = 1) -> None:
        super().__init__(time_cost=time_cost, memory_cost=8, parallelism=1)
        self.verified, self.go = Event(), Event()

    def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # type: ignore[override]  # the library's own signature and name
        is_right = super().verify(hash, password)
        self.verified.set()
        assert self.go.wait(PATIENCE)
        return is_right


async def _changed_by_its_owner(other: ApiPlane, ada: AsyncClient, _email: str) -> None:
    other_tab = other.with_cookie(cookie_of(ada))
    body = {"current_password": PASSWORD, "new_password": NEW}
    assert (await other_tab.put("/api/auth/password", json=body)).status_code == 204


async def _changed_by_an_operator(other: ApiPlane, _ada: AsyncClient, email: str) -> None:
    await users.set_password(other.database, state_of(other).passwords, EmailAddress(email), NewPassword(NEW))


async def _disabled(other: ApiPlane, _ada: AsyncClient, email: str) -> None:
    await users.disable(other.database, EmailAddress(email))


@pytest.mark.parametrize("time_cost", [1, 2], ids=["", "hashed again"])
@pytest.mark.parametrize("change", [_changed_by_its_owner, _changed_by_an_operator, _disabled])
async def test_an_old_password_opens_no_session_while_the_account_changes(
    database: URL,
    provisioned: Vault,
    quick_passwords: PasswordHasher,
    change: Callable[[ApiPlane, AsyncClient, str], Awaitable[None]],
    time_cost: int,
) -> None:
    """The password was right when it was looked at, and is not any more when the session would begin."""
    hasher = Held(time_cost)
    vault = provisioned.settings
    async with (
        api_plane_at(database, vault, Passwords(hasher)) as plane,
        api_plane_at(database, vault, Passwords(quick_passwords)) as other,
    ):
        ada = await other.user()
        email = await email_of(ada)
        body = {"email": email, "password": PASSWORD}
        late = create_task(plane.client().post("/api/auth/login", json=body))
        assert await to_thread(hasher.verified.wait, PATIENCE)
        await change(other, ada, email)
        (before,) = await plane.rows(users_table)
        begun = await plane.count(sessions)
        hasher.go.set()
        refused = await late
        problem(refused, "unauthenticated")
        assert "set-cookie" not in refused.headers
        assert await plane.count(sessions) == begun
        assert await plane.rows(users_table) == [before], "nor is the old password stored again"
        wrong = await other.client().post("/api/auth/login", json={**body, "password": "wrong" * 3})
        assert same_but_for_the_request_id(refused, wrong)
        trail = [row.action for row in await plane.rows(audit_log)]
        assert trail.count(Action.LOGIN_FAILED) == 1, "the first one of the window"
        failed = Bucket(f"login|account|{EmailAddress(email).key}", MAX_PER_ACCOUNT).digest
        assert {row.bucket: row.attempts for row in await plane.rows(throttle)}[failed] == 2, "it counts as a failure"


# --- changing it


async def test_a_changed_password_replaces_the_old_one(shared: ApiPlane) -> None:
    ada = await shared.user()
    email = await email_of(ada)
    changed = await ada.put("/api/auth/password", json={"current_password": PASSWORD, "new_password": NEW})
    assert (changed.status_code, changed.content) == (204, b"")
    problem(
        await shared.client().post("/api/auth/login", json={"email": email, "password": PASSWORD}), "unauthenticated"
    )
    await log_in(shared, email, NEW)


async def test_a_changed_password_ends_all_other_sessions_and_not_this_one(shared: ApiPlane) -> None:
    ada, eve = await shared.user(), await shared.user()
    email = await email_of(ada)
    others = [await log_in(shared, email) for _ in range(3)]
    script = await shared.token(ada)
    answer = await ada.put("/api/auth/password", json={"current_password": PASSWORD, "new_password": NEW})
    assert answer.status_code == 204
    for other in others:
        problem(await other.get("/api/auth/me"), "unauthenticated")
    for client in (ada, script, eve):
        assert (await client.get("/api/auth/me")).status_code == 200


async def test_a_wrong_current_password_changes_nothing(shared: ApiPlane) -> None:
    ada = await shared.user()
    email = await email_of(ada)
    other = await log_in(shared, email)
    for wrong in ("wrong", "", NEW):
        answer = await ada.put("/api/auth/password", json={"current_password": wrong, "new_password": NEW})
        problem(answer, "invalid-request", "current_password")
    short = await ada.put("/api/auth/password", json={"current_password": PASSWORD, "new_password": "short"})
    problem(short, "invalid-request", "new_password")
    await log_in(shared, email)
    assert (await other.get("/api/auth/me")).status_code == 200


async def test_a_wrong_current_password_leaves_a_trace(shared: ApiPlane) -> None:
    ada = await shared.user()
    body = {"current_password": "wrong", "new_password": NEW}
    refused = problem(await ada.put("/api/auth/password", json=body), "invalid-request", "current_password")
    entry = (await ada.get("/api/audit")).json()[0]
    assert (entry["action"], entry["actor"]) == ("account.password-failed", "session")
    assert entry["request_id"] == refused["request_id"]


async def test_of_two_password_changes_at_once_one_succeeds_and_its_password_works(shared: ApiPlane) -> None:
    ada = await shared.user()
    email = await email_of(ada)
    wishes = [f"{NEW} {n}" for n in range(2)]
    answers = await gather(
        *(ada.put("/api/auth/password", json={"current_password": PASSWORD, "new_password": wish}) for wish in wishes)
    )
    won = [wish for wish, answer in zip(wishes, answers, strict=True) if answer.status_code == 204]
    assert len(won) == 1
    assert {answer.status_code for answer in answers} <= {204, 400, 409}
    await log_in(shared, email, won[0])


async def test_a_disabled_account_is_shut_out_at_once_and_let_in_again(shared: ApiPlane) -> None:
    ada = await shared.user()
    email = await email_of(ada)
    script = await shared.token(ada)
    key = await store(ada)
    await users.disable(shared.database, EmailAddress(email))
    for client in (ada, script):
        problem(await client.get("/api/keys"), "unauthenticated")
    problem(
        await shared.client().post("/api/auth/login", json={"email": email, "password": PASSWORD}), "unauthenticated"
    )
    await users.enable(shared.database, EmailAddress(email))
    problem(await ada.get("/api/keys"), "unauthenticated")
    for client in (script, await log_in(shared, email)):
        assert (await client.get("/api/keys")).json() == [key]


async def test_an_operators_new_password_ends_every_session(shared: ApiPlane, quick_passwords: PasswordHasher) -> None:
    ada = await shared.user()
    email = await email_of(ada)
    passwords = Passwords(quick_passwords)
    await users.set_password(shared.database, passwords, EmailAddress(email), NewPassword(NEW))
    passwords.close()
    problem(await ada.get("/api/auth/me"), "unauthenticated")
    await log_in(shared, email, NEW)


async def test_times_of_an_account_are_the_same_in_every_answer(shared: ApiPlane) -> None:
    ada = await shared.user()
    created = (await ada.get("/api/auth/me")).json()["created_at"]
    again = await log_in(shared, await email_of(ada))
    assert (await again.get("/api/auth/me")).json()["created_at"] == created
    assert datetime.fromisoformat(created).tzinfo is not None
    assert await shared.count(sessions) > 0
