"""`/api/tokens`: credentials for scripts, shown once, stored as hashes, invalid as soon as they are revoked."""

from __future__ import annotations

import asyncio
import hashlib
import re
from asyncio import gather
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from argon2 import PasswordHasher
from sqlalchemy import insert, select

from keyman.identity import personal_tokens as personal
from keyman.identity.passwords import Passwords
from keyman.identity.sessions import session_digest
from keyman.identity.tables import api_tokens, sessions
from keyman.identity.tokens import Scope
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import (
    TIMESTAMP,
    TOKEN_FIELDS,
    ApiPlane,
    Json,
    api_plane_at,
    cookie_of,
    in_days,
    problem,
    same_but_for_the_request_id,
)
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio

ALL = [scope.value for scope in Scope]


async def test_a_new_token_has_the_documented_fields_and_is_shown_once(shared: ApiPlane) -> None:
    ada = await shared.user()
    answer = await ada.post("/api/tokens", json={"name": "CI", "scopes": ALL, "expires_at": "2099-01-01T00:00:00Z"})
    assert answer.status_code == 201
    made = answer.json()
    assert made.keys() == TOKEN_FIELDS | {"token"}
    token = made.pop("token")
    assert re.fullmatch(r"km_[0-9A-Za-z]{36}", token)
    assert TIMESTAMP.fullmatch(made["created_at"])
    assert made == {
        "id": made["id"],
        "name": "CI",
        "scopes": ALL,
        "hint": f"km_...{token[-4:]}",
        "created_at": made["created_at"],
        "expires_at": "2099-01-01T00:00:00Z",
        "last_used_at": None,
    }
    listed = await ada.get("/api/tokens")
    assert listed.json() == [made]
    assert token not in listed.text
    assert token[3:-4] not in listed.text


async def test_tokens_are_listed_newest_first_and_only_to_their_owner(shared: ApiPlane) -> None:
    ada, eve = await shared.user(), await shared.user()
    for name in ("a", "b", "a"):
        await ada.post("/api/tokens", json={"name": name})
    assert [token["name"] for token in (await ada.get("/api/tokens")).json()] == ["a", "b", "a"]
    ids = [token["id"] for token in (await ada.get("/api/tokens")).json()]
    assert ids == sorted(ids, reverse=True)
    assert (await eve.get("/api/tokens")).json() == []


async def test_a_token_without_scopes_may_read_and_write_keys(shared: ApiPlane) -> None:
    ada = await shared.user()
    made = (await ada.post("/api/tokens", json={"name": "x"})).json()
    assert made["scopes"] == ["keys:read", "keys:write"]
    script = shared.bearer(made["token"])
    assert (await script.get("/api/keys")).status_code == 200
    problem(await script.get("/api/tokens"), "forbidden")
    problem(await script.get("/api/audit"), "forbidden")


async def test_scopes_are_shown_once_each_in_one_order(shared: ApiPlane) -> None:
    ada = await shared.user()
    made = await ada.post("/api/tokens", json={"name": "x", "scopes": ["audit:read", "keys:read", "audit:read"]})
    assert made.json()["scopes"] == ["keys:read", "audit:read"]


@pytest.mark.parametrize(
    "scopes",
    [
        [],
        None,
        "keys:read",
        ["keys:*"],
        ["KEYS:READ"],
        ["keys:read", "admin"],
        ["keys:read", 1],
        [["keys:read"]],
        {},
        7,
    ],
)
async def test_scopes_are_a_list_of_known_ones(sqlite_plane: ApiPlane, scopes: object) -> None:
    ada = await sqlite_plane.user()
    problem(await ada.post("/api/tokens", json={"name": "x", "scopes": scopes}), "invalid-request", "scopes")
    assert (await ada.get("/api/tokens")).json() == []


@pytest.mark.parametrize("name", ["", " ", "\u00a0\u3000", "x" * 101, None, 7, True, ["x"]])
async def test_a_token_has_a_name(sqlite_plane: ApiPlane, name: object) -> None:
    ada = await sqlite_plane.user()
    problem(await ada.post("/api/tokens", json={"name": name}), "invalid-request", "name")
    assert (await ada.get("/api/tokens")).json() == []


async def test_a_token_is_dead_once_it_is_revoked_on_every_replica(
    api_plane: ApiPlane, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    url = api_plane.settings.database_url
    async with api_plane_at(url, provisioned.settings, Passwords(quick_passwords)) as replica:
        ada = await api_plane.user()
        made = (await ada.post("/api/tokens", json={"name": "x"})).json()
        here, there = api_plane.bearer(made["token"]), replica.bearer(made["token"])
        for script in (here, there):
            assert (await script.get("/api/keys")).status_code == 200
        gone = await ada.delete(f"/api/tokens/{made['id']}")
        assert (gone.status_code, gone.content) == (204, b"")
        for script in (here, there):
            problem(await script.get("/api/keys"), "unauthenticated")
        problem(await ada.delete(f"/api/tokens/{made['id']}"), "not-found")
        assert (await ada.get("/api/tokens")).json() == []


async def test_a_token_can_revoke_itself(shared: ApiPlane) -> None:
    ada = await shared.user()
    made = (await ada.post("/api/tokens", json={"name": "x", "scopes": ["tokens:manage"]})).json()
    script = shared.bearer(made["token"])
    assert (await script.delete(f"/api/tokens/{made['id']}")).status_code == 204
    problem(await script.get("/api/tokens"), "unauthenticated")


async def test_every_token_can_revoke_itself_and_no_other_caller_can_ask_for_that(shared: ApiPlane) -> None:
    ada = await shared.user()
    for scope in Scope:
        script = await shared.token(ada, scope)
        gone = await script.delete("/api/tokens/current")
        assert (gone.status_code, gone.content) == (204, b"")
        problem(await script.delete("/api/tokens/current"), "unauthenticated")
    problem(await ada.delete("/api/tokens/current"), "forbidden")
    assert (await ada.get("/api/tokens")).json() == []
    entries = (await ada.get("/api/audit", params={"action": "token.revoke"})).json()
    assert len(entries) == len(Scope)
    assert all(entry["actor_token_id"] == entry["token_id"] for entry in entries)


async def test_a_token_is_dead_at_its_expiry(shared: ApiPlane) -> None:
    ada = await shared.user()
    script = await shared.token(ada, expires_at=in_days(1))
    now = datetime.now(UTC)
    with time_machine.travel(now + timedelta(days=1, seconds=-5), tick=False):
        assert (await script.get("/api/keys")).status_code == 200
    with time_machine.travel(now + timedelta(days=1, seconds=5), tick=False):
        problem(await script.get("/api/keys"), "unauthenticated")
        assert [token["name"] for token in (await ada.get("/api/tokens")).json()] == ["test"]


async def test_bad_tokens_all_look_alike(shared: ApiPlane) -> None:
    ada = await shared.user()
    good = (await ada.post("/api/tokens", json={"name": "x"})).json()["token"]
    made = (await ada.post("/api/tokens", json={"name": "y"})).json()
    await ada.delete(f"/api/tokens/{made['id']}")
    flipped = good[:10] + ("a" if good[10] != "a" else "b") + good[11:]
    for bad in (
        "x",
        "km_",
        flipped,
        good[:-1],
        good + "0",
        good.lower(),
        f"km_{'0' * 36}",
        good.replace("km_", "kn_"),
        f"{good} {good}",
        made["token"],
        "km_" + "０" * 36,
        "\x00" * 39,
        "🔑",
    ):
        sent = [(b"authorization", b"Bearer " + bad.encode())]
        answer = await shared.wire("GET", b"/api/keys", sent)
        problem(answer, "unauthenticated")
        assert bad not in answer.text
    assert (await shared.bearer(good).get("/api/keys")).status_code == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "{}", "Basic {}", "Token {}", "Bearer{}", "Basic YTpi", "Bearer  ", "Negotiate"]
)
async def test_any_other_authorization_is_no_proof(sqlite_plane: ApiPlane, header: str) -> None:
    ada = await sqlite_plane.user()
    token = (await ada.post("/api/tokens", json={"name": "x"})).json()["token"]
    answer = await sqlite_plane.wire("GET", b"/api/keys", [(b"authorization", header.format(token).encode())])
    problem(answer, "unauthenticated")


async def test_the_scheme_is_read_in_any_case(shared: ApiPlane) -> None:
    ada = await shared.user()
    token = (await ada.post("/api/tokens", json={"name": "x"})).json()["token"]
    for scheme in ("Bearer", "bearer", "BEARER"):
        answer = await shared.client(headers={"Authorization": f"{scheme} {token}"}).get("/api/keys")
        assert answer.status_code == 200


async def test_with_both_proofs_only_the_token_counts(shared: ApiPlane) -> None:
    """A script that names a token never acts as somebody else, or with more scopes, for a cookie that lay around."""
    ada, eve = await shared.user(), await shared.user()
    token = (await ada.post("/api/tokens", json={"name": "x"})).json()["token"]
    cookie = {"Cookie": f"keyman_session={cookie_of(eve)}"}
    both = shared.client(headers={"Authorization": f"Bearer {token}", **cookie})
    assert (await both.get("/api/auth/me")).json() == (await ada.get("/api/auth/me")).json()
    problem(await both.get("/api/audit"), "forbidden")
    for bad in ("Bearer km_nonsense", f"bearer {token[:-1]}", f"BEARER {token} {token}"):
        answer = await shared.client(headers={"Authorization": bad, **cookie}).get("/api/auth/me")
        problem(answer, "unauthenticated")


async def test_a_token_makes_none_that_may_do_more_than_itself(shared: ApiPlane) -> None:
    ada = await shared.user()
    script = await shared.token(ada, "tokens:manage", "keys:read")
    before = (await ada.get("/api/tokens")).json()
    for scopes in (["keys:write"], ["keys:read", "audit:read"], ALL):
        problem(await script.post("/api/tokens", json={"name": "more", "scopes": scopes}), "forbidden")
    # The default would hold keys:write.
    problem(await script.post("/api/tokens", json={"name": "more"}), "forbidden")
    assert [token["id"] for token in (await ada.get("/api/tokens")).json()] == [token["id"] for token in before]
    for scopes in (["keys:read"], ["tokens:manage"], ["tokens:manage", "keys:read"]):
        assert (await script.post("/api/tokens", json={"name": "less", "scopes": scopes})).status_code == 201


async def test_a_token_makes_none_that_outlives_it(shared: ApiPlane) -> None:
    ada = await shared.user()
    end = in_days(5)
    script = await shared.token(ada, *ALL, expires_at=end)

    async def make(**fields: object) -> Json:
        answer = await script.post("/api/tokens", json={"name": "x", **fields})
        assert answer.status_code in (201, 403)
        return dict(answer.json())

    assert (await make(expires_at=in_days(6)))["type"] == "/problems/forbidden"
    assert (await make(expires_at="9999-12-31T23:59:59Z"))["type"] == "/problems/forbidden"
    assert (await make(expires_at=in_days(4)))["token"]
    same = (await make(expires_at=end))["expires_at"]
    for unlimited in (await make(), await make(expires_at=None)):
        assert unlimited["expires_at"] == same


async def test_a_session_may_make_any_token(shared: ApiPlane) -> None:
    ada = await shared.user()
    made = await ada.post("/api/tokens", json={"name": "x", "scopes": ALL, "expires_at": None})
    assert (made.status_code, made.json()["expires_at"]) == (201, None)


async def test_the_last_use_of_a_token_is_written_at_most_once_a_minute(shared: ApiPlane) -> None:
    ada = await shared.user()
    start = datetime.now(UTC)
    with time_machine.travel(start, tick=False) as clock:
        made = (await ada.post("/api/tokens", json={"name": "x"})).json()
        script = shared.bearer(made["token"])

        async def last_use() -> datetime | None:
            moment = (await ada.get("/api/tokens")).json()[0]["last_used_at"]
            return None if moment is None else datetime.fromisoformat(moment)

        assert await last_use() is None
        for seconds, expected in ((0, 0), (1, 0), (59, 0), (60, 60), (119, 60), (7200, 7200), (7201, 7200)):
            clock.move_to(start + timedelta(seconds=seconds))
            await script.get("/api/keys")
            assert await last_use() == start + timedelta(seconds=expected), seconds


async def test_a_last_use_that_a_clock_ahead_has_written_is_corrected_by_the_next_use(shared: ApiPlane) -> None:
    ada = await shared.user()
    start = datetime.now(UTC)
    with time_machine.travel(start, tick=False) as clock:
        made = (await ada.post("/api/tokens", json={"name": "x"})).json()
        script = shared.bearer(made["token"])
        for moment in (start + timedelta(days=1), start):
            clock.move_to(moment)
            await script.get("/api/keys")
            assert (await ada.get("/api/auth/me")).status_code == 200
            (token,) = [row for row in await shared.rows(api_tokens) if row.id == made["id"]]
            (session,) = [row for row in await shared.rows(sessions) if row.id_hash == session_digest(cookie_of(ada))]
            assert (token.last_used_at, session.last_seen_at) == (moment, moment)


async def test_a_use_that_is_refused_is_a_use_and_one_of_a_dead_token_is_none(shared: ApiPlane) -> None:
    ada = await shared.user()
    made = (await ada.post("/api/tokens", json={"name": "x", "expires_at": in_days(1)})).json()
    with time_machine.travel(datetime.now(UTC) + timedelta(days=2), tick=True):
        problem(await shared.bearer(made["token"]).get("/api/keys"), "unauthenticated")
    assert (await ada.get("/api/tokens")).json()[0]["last_used_at"] is None
    problem(await shared.bearer(made["token"]).get("/api/audit"), "forbidden")
    assert (await ada.get("/api/tokens")).json()[0]["last_used_at"] is not None


async def test_the_database_holds_a_sha_256_of_a_token_and_of_a_session_and_nothing_else_of_them(
    shared: ApiPlane,
) -> None:
    ada = await shared.user()
    token, cookie = (await ada.post("/api/tokens", json={"name": "x"})).json()["token"], cookie_of(ada)
    tokens, held = await shared.rows(api_tokens), await shared.rows(sessions)
    assert hashlib.sha256(token.encode()).digest() in {row.token_hash for row in tokens}
    assert hashlib.sha256(cookie.encode()).digest() in {row.id_hash for row in held}
    everything = repr([tuple(row) for row in (*tokens, *held)])
    assert token[3:-4] not in everything
    assert cookie not in everything


async def test_a_session_cookie_has_at_least_128_random_bits_and_is_never_the_same(shared: ApiPlane) -> None:
    cookies = {cookie_of(await shared.user()) for _ in range(5)}
    assert len(cookies) == 5
    assert all(re.fullmatch(r"[0-9A-Za-z_-]{22,}", cookie) for cookie in cookies)


async def test_somebody_elses_token_is_like_one_that_does_not_exist(shared: ApiPlane) -> None:
    ada, eve = await shared.user(), await shared.user()
    made = (await ada.post("/api/tokens", json={"name": "x"})).json()
    theirs, missing = await eve.delete(f"/api/tokens/{made['id']}"), await eve.delete("/api/tokens/99999999")
    problem(theirs, "not-found")
    assert same_but_for_the_request_id(theirs, missing)
    assert (await shared.bearer(made["token"]).get("/api/keys")).status_code == 200


async def test_an_account_holds_at_most_200_tokens(shared: ApiPlane) -> None:
    ada = await shared.user()
    owner = (await ada.get("/api/auth/me")).json()["id"]
    rows = [
        {
            "user_id": owner,
            "token_hash": hashlib.sha256(f"{shared.settings.database_url}{n}".encode()).digest(),
            "name": str(n),
            "scopes": "keys:read",
            "hint": "km_...0000",
            "created_at": datetime.now(UTC),
        }
        for n in range(personal.MAX_TOKENS - 1)
    ]
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(insert(api_tokens), rows)
    answers = await asyncio.gather(*(ada.post("/api/tokens", json={"name": "last"}) for _ in range(12)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 11
    problem(await ada.post("/api/tokens", json={"name": "one more"}), "conflict")
    listed = (await ada.get("/api/tokens")).json()
    assert len(listed) == personal.MAX_TOKENS == 200
    await ada.delete(f"/api/tokens/{listed[0]['id']}")
    assert (await ada.post("/api/tokens", json={"name": "again"})).status_code == 201


async def test_two_revocations_at_once_are_one(shared: ApiPlane) -> None:
    ada = await shared.user()
    made = (await ada.post("/api/tokens", json={"name": "x"})).json()
    answers = await gather(*(ada.delete(f"/api/tokens/{made['id']}") for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [204, 404, 404, 404]
    async with shared.database.read() as connection:
        left = await connection.execute(select(api_tokens.c.id).where(api_tokens.c.id == made["id"]))
        assert left.all() == []
