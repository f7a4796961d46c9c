"""What `/auth/oidc` refuses: an issuer whose answers the test makes attacks it."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import time_machine
from argon2 import PasswordHasher
from sqlalchemy.engine import URL

from keyman.clock import now
from keyman.config.oidc import Claim, OidcSettings
from keyman.identity import key_sets, limits, users
from keyman.identity.passwords import Passwords
from keyman.storage.transactions import Database
from keyman.values import RowNumber
from tests.planes.management.web.openid import CALLBACK, HTML, START, Open, come_back, leave, me, of_forger, tell
from tests.support.database import copied
from tests.support.http import HANG_UP, RESET, Reply, Request, answer, faulty_server
from tests.support.logs import capture_logs
from tests.support.openid import Forger, hash_of, query_of
from tests.support.planes import ORIGIN, PASSWORD, Plane, Vault, plane_at

pytestmark = pytest.mark.anyio


class Stand:
    """A plane whose provider is a forger. `forger` is a new one for each test, at the same address."""

    def __init__(self) -> None:
        self.forger = Forger()
        self.fails: dict[str, Reply] = {}

    def __call__(self, request: Request) -> Reply:
        failed = next((reply for path, reply in self.fails.items() if request.target.startswith(path)), None)
        return failed or self.forger(request)

    def renew(self) -> Forger:
        self.forger = Forger(address=self.forger.address)
        self.fails = {}
        return self.forger


@pytest.fixture(scope="module")
async def stand() -> AsyncIterator[Stand]:
    running = Stand()
    async with faulty_server(running) as server:
        running.forger.address = server.address
        yield running


@pytest.fixture
def forger(stand: Stand) -> Forger:
    return stand.renew()


@pytest.fixture(scope="module")
async def attacked(
    stand: Stand,
    migrated_sqlite: Path,
    tmp_path_factory: pytest.TempPathFactory,
    provisioned: Vault,
    quick_passwords: PasswordHasher,
) -> AsyncIterator[Plane]:
    """One plane for many attacks. Each begins with a browser of its own."""
    database = copied(migrated_sqlite, tmp_path_factory.mktemp("oidc") / "keyman.db")
    settings = of_forger(stand.forger)
    async with plane_at(database, provisioned.settings, Passwords(quick_passwords), oidc=settings) as running:
        yield running


@pytest.fixture
def open_on_sqlite(sqlite: URL, provisioned: Vault, quick_passwords: PasswordHasher) -> Open:
    """A plane of the test's own, for other settings of the provider."""

    def opened(oidc: OidcSettings, **settings: Any) -> AbstractAsyncContextManager[Plane]:
        return plane_at(sqlite, provisioned.settings, Passwords(quick_passwords), oidc=oidc, **settings)

    return opened


def unsigned(token: str) -> str:
    header = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    return f"{header}.{token.split('.')[1]}."


def with_claims(**claims: object) -> Callable[[Forger], None]:
    return lambda forger: forger.claims.update(claims)


def later(seconds: int) -> int:
    return int(time.time()) + seconds


@pytest.mark.parametrize(
    "spoil",
    [
        with_claims(iss="https://other.example"),
        with_claims(aud="another-client"),
        with_claims(aud=["keyman", "another-client"]),
        with_claims(aud=["keyman", "another-client"], azp="another-client"),
        with_claims(azp="another-client"),
        with_claims(nonce="another"),
        with_claims(nonce=None),
        with_claims(exp=later(-120)),
        with_claims(exp=None),
        with_claims(iat=None),
        with_claims(iat=later(86_400)),  # the test may run long after this line
        with_claims(sub=None),
        with_claims(sub=""),
        with_claims(sub=["user-42"]),
        with_claims(at_hash=hash_of("another token")),
        with_claims(events={"http://schemas.openid.net/event/backchannel-logout": {}}),
        lambda forger: setattr(forger, "id_token", unsigned),
        lambda forger: setattr(forger, "id_token", lambda token: token[:-8] + "AAAAAAAA"),
        lambda forger: setattr(forger, "id_token", lambda _: "not.a.token"),
        lambda forger: forger.header.update(typ="at+jwt"),
        lambda forger: setattr(forger, "refuses", answer({"error": "invalid_grant"}, 400)),
    ],
)
async def test_a_wrong_id_token_signs_nobody_in(
    attacked: Plane, forger: Forger, spoil: Callable[[Forger], None], logged: StringIO
) -> None:
    spoil(forger)
    client = attacked.client()
    back = await come_back(client, forger)
    assert back.status_code == 400
    assert "Try again" in back.text
    assert (await client.get("/api/auth/me")).status_code == 401
    assert "user-42" not in back.text + logged.getvalue()


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_what_fits_signs_in(attacked: Plane, forger: Forger, algorithm: str) -> None:
    forger.algorithm = algorithm
    email = f"{algorithm}@example.com"
    forger.claims = {"sub": algorithm, "aud": ["keyman", "other"], "azp": "keyman", "email_verified": True}
    forger.claims["email"] = email
    if algorithm != "EdDSA":
        forger.claims["at_hash"] = hash_of("access")
    client = attacked.client()
    assert (await come_back(client, forger)).status_code == 303
    assert (await me(client))["email"] == email


async def test_subjects_that_differ_only_in_case_are_different_users(attacked: Plane, forger: Forger) -> None:
    numbers = set()
    for number, subject in enumerate(("Ada", "ada", "a\u0301da", "\u00e1da")):
        forger.claims["sub"] = subject
        client = attacked.client()
        await come_back(client, forger, code=f"code-{number}")
        numbers.add((await me(client))["id"])
    assert len(numbers) == 4


@pytest.mark.parametrize("verified", [False, None, "true", 1])
async def test_an_address_that_is_not_verified_counts_for_nothing(
    attacked: Plane, forger: Forger, verified: object
) -> None:
    email = f"ada{verified}@company.example"
    forger.claims = {"sub": f"of {verified}", "email": email, "email_verified": verified}
    known = await me(await attacked.user(email))
    client = attacked.client()
    assert (await come_back(client, forger)).headers["location"] == "/settings/api-keys"  # no choice either
    assert (await me(client))["id"] != known["id"]
    assert (await me(client))["email"] is None


async def test_a_person_without_an_address_is_shown_by_name(attacked: Plane, forger: Forger) -> None:
    forger.claims = {"sub": "by name", "name": "Ada <Lovelace>"}
    client = attacked.client()
    await come_back(client, forger)
    page = (await client.get("/settings/account", headers=HTML)).text
    assert '<span class="who">Ada &lt;Lovelace&gt;</span>' in page
    assert "<dd>Ada &lt;Lovelace&gt;</dd>" in page
    assert "<dt>Email</dt>" not in page


async def test_an_address_that_is_not_verified_is_of_no_allowed_domain(open_on_sqlite: Open, forger: Forger) -> None:
    forger.claims = {"email": "ada@company.example", "email_verified": "true"}
    async with open_on_sqlite(of_forger(forger, domains=frozenset({"company.example"}))) as plane:
        assert (await come_back(plane.client(), forger)).status_code == 403
        forger.claims["email_verified"] = True
        assert (await come_back(plane.client(), forger)).status_code == 303


async def test_an_address_and_the_word_that_it_is_verified_come_from_one_place(
    open_on_sqlite: Open, forger: Forger
) -> None:
    forger.claims = {"email": "victim@company.example"}
    forger.userinfo = {"sub": "user-42", "email": "own@evil.example", "email_verified": True, "groups": ["staff"]}
    async with open_on_sqlite(of_forger(forger, claim=Claim("groups", "staff"))) as plane:
        client = plane.client()
        assert (await come_back(client, forger)).status_code == 303
        assert (await me(client))["email"] is None


async def test_userinfo_counts_only_with_the_same_subject(open_on_sqlite: Open, forger: Forger) -> None:
    async with open_on_sqlite(of_forger(forger, claim=Claim("groups", "staff"))) as plane:
        for subject, status in (("user-43", 400), ("user-42", 303)):
            forger.userinfo = {"sub": subject, "groups": ["staff"], "email": "a@b.example", "email_verified": True}
            client = plane.client()
            assert (await come_back(client, forger)).status_code == status
        assert (await me(client))["email"] == "a@b.example"


@pytest.mark.parametrize(
    ("announced", "sent", "status"),
    [(True, None, 400), (True, "https://other.example", 400), (True, "own", 303), (None, "https://other.example", 400)],
)
async def test_an_answer_of_another_issuer_is_refused(
    open_on_sqlite: Open, forger: Forger, announced: bool | None, sent: str | None, status: int
) -> None:
    forger.metadata["authorization_response_iss_parameter_supported"] = announced
    more = {} if sent is None else {"iss": forger.address if sent == "own" else sent}
    async with open_on_sqlite(of_forger(forger)) as plane:
        client = plane.client()
        assert (await come_back(client, forger, **more)).status_code == status
        if status == 400:
            assert not forger.forms  # the code went nowhere
        state = query_of(await leave(client))["state"]
        error = await client.get(CALLBACK, params={"state": state, "error": "access_denied", **more}, headers=HTML)
        assert error.status_code == 400
        assert ("was cancelled" in error.text) == (status == 303)


@pytest.mark.parametrize(
    ("sent", "logged"),
    [("invalid_scope", "invalid_scope"), ("Secret 1", "no word"), ("a" * 51, "no word"), ("", "no word")],
)
async def test_the_log_has_the_reason_why_a_provider_refuses(attacked: Plane, sent: str, logged: str) -> None:
    client = attacked.client()
    state = query_of(await leave(client))["state"]
    with capture_logs() as lines:
        await client.get(CALLBACK, params={"state": state, "error": sent, "error_description": "x"}, headers=HTML)
    assert [line["error"] for line in lines if "error" in line] == [logged]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        ("access_denied", 400, "was cancelled"),
        ("consent_required", 400, "wants you to sign in there"),
        ("invalid_scope", 400, "Tell the operator"),
        ("temporarily_unavailable", 503, "cannot be reached"),
        ("<b>canary</b>", 400, "The provider refused the sign-in."),
    ],
)
async def test_an_error_of_the_provider_becomes_a_page_that_says_what_it_means(
    attacked: Plane, error: str, status: int, words: str
) -> None:
    client = attacked.client()
    state = query_of(await leave(client))["state"]
    back = await client.get(CALLBACK, params={"state": state, "error": error}, headers=HTML)
    assert (back.status_code, words in back.text, "Try again" in back.text) == (status, True, True)
    assert "canary" not in back.text


async def test_a_state_ends_after_ten_minutes(attacked: Plane, forger: Forger) -> None:
    client = attacked.client()
    url = forger.log_in(await leave(client))
    with time_machine.travel(now() + timedelta(minutes=10, seconds=1)):
        client.cookies.jar.clear_expired_cookies = lambda: None  # type: ignore[method-assign]  # a clock that is late
        assert (await client.get(url, headers=HTML)).status_code == 400
    assert not forger.forms


@pytest.mark.parametrize(
    "query",
    [
        "",
        "code=c",
        "state=s",
        "state=s&code=c&error=e",
        "state=s&state=t&code=c",
        "code=c&code=d&state=s",
        "state=&code=c",
    ],
)
async def test_a_callback_that_is_not_one_gets_a_page(attacked: Plane, forger: Forger, query: str) -> None:
    back = await attacked.client().get(f"{CALLBACK}?{query}", headers=HTML)
    assert (back.status_code, "Try again" in back.text) == (400, True)
    assert (await attacked.client().get(f"{CALLBACK}?{query}")).json()["type"] == "/problems/invalid-request"


@pytest.mark.parametrize(
    "next_page",
    [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "javascript:alert(1)",
        "/..//evil.example",
        "/%2e%2e/other-application",
        "settings",
        "",
        "/settings\r\nSet-Cookie: a=b",
    ],
)
async def test_next_leads_to_no_other_place(attacked: Plane, forger: Forger, next_page: str) -> None:
    client = attacked.client()
    url = forger.log_in(await leave(client, next=next_page))
    assert (await client.get(url, headers=HTML)).headers["location"] == "/settings/api-keys"


async def test_the_way_there_and_back_is_made_from_the_public_url(open_on_sqlite: Open, forger: Forger) -> None:
    public = "https://keys.example.com"
    async with open_on_sqlite(of_forger(forger), public_url=public, root_path="/keyman") as plane:
        client = plane.client(headers={"Host": "evil.example"})
        away = await client.get(f"/keyman{START}", params={"next": "/keyman/settings/account"}, headers=HTML)
        asked = query_of(away.headers["location"])
        assert asked["redirect_uri"] == f"{public}/keyman{CALLBACK}"
        assert asked["code_challenge_method"] == "S256"
        assert asked["scope"] == "openid email profile"
        cookie = away.headers["set-cookie"]
        assert cookie.startswith("__Secure-keyman_session_visit_")
        assert all(part in cookie for part in ("HttpOnly", "Secure", "Path=/keyman", "SameSite=lax"))
        pair = cookie.partition(";")[0]
        callback = forger.log_in(away.headers["location"]).removeprefix(public)
        back = await plane.client(headers={"Cookie": pair}).get(callback, headers=HTML)
        assert back.headers["location"] == "/keyman/settings/account"
    async with open_on_sqlite(of_forger(forger), public_url=public) as plane:
        away = await plane.client().get(START, headers=HTML)
        assert away.headers["set-cookie"].startswith("__Host-keyman_session_visit_")


@pytest.mark.parametrize("path", ["/token", "/userinfo"])
async def test_a_provider_that_is_away_gets_a_page_with_try_again(
    attacked: Plane, stand: Stand, forger: Forger, path: str
) -> None:
    stand.fails[path] = HANG_UP
    client = attacked.client()
    back = await come_back(client, forger)
    assert back.status_code == 503
    assert "Try again" in back.text
    assert back.headers["retry-after"]
    assert not client.cookies


async def test_a_provider_that_was_never_there_gets_a_page_with_try_again(open_on_sqlite: Open, stand: Stand) -> None:
    forger = stand.renew()
    stand.fails["/.well-known"] = RESET
    async with open_on_sqlite(of_forger(forger)) as plane:
        client = plane.client()
        away = await client.get(START, params={"next": "/settings/account"}, headers=HTML)
        assert (away.status_code, "Try again" in away.text) == (503, True)
        assert f'href="{START}?next=%2Fsettings%2Faccount"' in away.text
        assert not client.cookies
        assert (await client.get(START)).json()["type"] == "/problems/issuer-unavailable"


async def test_an_id_token_of_an_earlier_visit_signs_nobody_in(attacked: Plane, forger: Forger) -> None:
    first = attacked.client()
    tokens: list[str] = []

    def keep(token: str) -> str:
        tokens.append(token)
        return token

    forger.claims, forger.id_token = {"sub": "replayed"}, keep
    assert (await come_back(first, forger)).status_code == 303
    forger.id_token = lambda _: tokens[0]
    again = attacked.client()
    assert (await come_back(again, forger, code="another")).status_code == 400
    assert (await again.get("/api/auth/me")).status_code == 401


async def test_the_rules_of_the_operator_hold_at_every_sign_in(open_on_sqlite: Open, forger: Forger) -> None:
    """Somebody leaves the company, or the group."""
    settings = of_forger(forger, domains=frozenset({"company.example"}), claim=Claim("groups", "staff"))
    right: dict[str, object] = {"email": "ada@Company.Example", "email_verified": True, "groups": ["x", "staff"]}
    async with open_on_sqlite(settings) as plane:
        forger.claims = right
        client = plane.client()
        assert (await come_back(client, forger)).status_code == 303
        changes: list[dict[str, object]] = [
            {"email": "ada@elsewhere.example"},
            {"email": "ada@company.example@elsewhere.example"},
            {"email": "ada@sub.company.example"},
            {"email_verified": False},
            {"groups": ["x", "staffs"]},
            {"groups": "x staff"},
            {"groups": None},
            {"groups": {"staff": True}},
        ]
        for number, change in enumerate(changes):
            forger.claims, forger.userinfo = {**right, **change}, {"sub": "user-42"}
            refused = await come_back(plane.client(), forger, code=f"code-{number}")
            assert refused.status_code == 403, change
            assert "Ask the operator" in refused.text
        forger.claims = {**right, "groups": "staff"}
        assert (await come_back(plane.client(), forger, code="string")).status_code == 303


@pytest.mark.parametrize(("signup_open", "status"), [(True, 303), (False, 403)])
async def test_new_accounts_by_the_provider_have_a_setting_of_their_own(
    open_on_sqlite: Open, forger: Forger, signup_open: bool, status: int
) -> None:
    """That of accounts with a password says nothing about them, and the reverse."""
    async with open_on_sqlite(of_forger(forger, signup_open=signup_open), signup_open=not signup_open) as plane:
        assert (await come_back(plane.client(), forger)).status_code == status
        body = {"email": "eve@example.com", "password": PASSWORD}
        made = await plane.client().post("/api/auth/signup", json=body)
        assert made.status_code == (403 if signup_open else 201)


async def test_an_account_that_is_disabled_in_between_is_not_signed_in(open_on_sqlite: Open, forger: Forger) -> None:
    async with open_on_sqlite(of_forger(forger)) as plane:
        known = plane.client()
        await come_back(known, forger)
        user_id = (await me(known))["id"]
        browser = plane.client()
        back = forger.log_in(await leave(browser), "later")
        db = Database(plane.settings.database_url)
        await users.disable(db, RowNumber(user_id))
        refused = await browser.get(back, headers=HTML)
        assert refused.status_code == 403
        assert "This account is disabled" in refused.text
        assert [(await one.get("/api/auth/me")).status_code for one in (known, browser)] == [401, 401]
        await db.close()


async def test_no_token_of_the_provider_is_stored(open_on_sqlite: Open, forger: Forger, logged: StringIO) -> None:
    tokens: list[str] = []

    def keep(token: str) -> str:
        tokens.append(token)
        return token

    forger.id_token = keep
    async with open_on_sqlite(of_forger(forger)) as plane:
        client = plane.client()
        await come_back(client, forger, code="c0de-c4n4ry")
        assert (await me(client))["id"]
        database = Path(str(plane.settings.database_url.database))
        stored = b"".join(path.read_bytes() for path in database.parent.glob(f"{database.name}*"))
    (token,) = tokens
    assert b"user-42" in stored  # the subject is
    for secret in (*token.split("."), "c0de-c4n4ry"):
        assert secret.encode() not in stored
        assert secret not in logged.getvalue()


LOGOUT: dict[str, object] = {"http://schemas.openid.net/event/backchannel-logout": {}}


async def test_the_provider_ends_the_sessions_that_it_names(attacked: Plane, forger: Forger) -> None:
    forger.claims = {"sub": "leaver", "sid": "first", "email": "leaver@example.com", "email_verified": True}
    first, second, other = attacked.client(), attacked.client(), attacked.client()
    await come_back(first, forger)
    forger.claims["sid"] = "second"
    await come_back(second, forger)
    forger.claims = {"sub": "stayer", "sid": "third"}
    await come_back(other, forger)
    script = await attacked.token(second)
    forger.claims, forger.header = {}, {"typ": "logout+jwt"}
    ended = await tell(attacked, forger.sign(sub="leaver", sid="first", events=LOGOUT, jti="1", auth_time=None))
    assert (ended.status_code, ended.headers["cache-control"]) == (200, "no-store")
    assert [(await client.get("/api/auth/me")).status_code for client in (first, second, other)] == [401, 200, 200]
    token = forger.sign(sub="leaver", events=LOGOUT, jti="2")
    assert (await tell(attacked, token)).status_code == 200
    assert [(await client.get("/api/auth/me")).status_code for client in (second, other, script)] == [401, 200, 200]
    assert (await tell(attacked, token)).status_code == 400  # used
    assert (await tell(attacked, forger.sign(sub="nobody", events=LOGOUT, jti="3"))).status_code == 200
    assert (await tell(attacked, forger.sign(sub=None, sid="third", events=LOGOUT, jti="4"))).status_code == 200
    assert (await other.get("/api/auth/me")).status_code == 401


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.example"},
        {"aud": "another-client"},
        {"nonce": "n"},
        {"jti": None},
        {"events": None},
        {"events": {"http://schemas.openid.net/event/other": {}}},
        {"events": ["http://schemas.openid.net/event/backchannel-logout"]},
        {"sub": None},
        {"sid": 7},
        {"iat": later(-600), "exp": later(60)},
        {"iat": later(-60), "exp": later(86_400)},
        {"exp": later(-120)},
        {"exp": None},
    ],
)
async def test_a_wrong_logout_token_ends_nothing(attacked: Plane, forger: Forger, claims: dict[str, object]) -> None:
    client = attacked.client()
    await come_back(client, forger)
    token = forger.sign(**{"events": LOGOUT, "jti": f"wrong {claims}", **claims})
    refused = await tell(attacked, token)
    assert (refused.status_code, refused.json()) == (400, {"error": "invalid_request"})
    assert (await client.get("/api/auth/me")).status_code == 200


async def test_other_forms_of_a_logout_end_nothing(attacked: Plane) -> None:
    for sent in ("", "=", "=a.b.c", "=a&logout_token=b", f"={'x' * 20_000}"):
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        refused = await attacked.client().post(
            "/auth/oidc/backchannel-logout", content=f"logout_token{sent}", headers=headers
        )
        assert (refused.status_code, refused.json()) == (400, {"error": "invalid_request"})
    assert (await attacked.client().post("/auth/oidc/backchannel-logout", json={})).status_code == 400


@pytest.mark.parametrize(
    ("typ", "status"),
    [(None, 200), ("JWT", 200), ("jwt", 200), ("logout+jwt", 200), ("at+jwt", 400), ("application/logout", 400)],
)
async def test_a_logout_token_says_what_it_is_or_nothing(
    attacked: Plane, forger: Forger, typ: str | None, status: int
) -> None:
    forger.header = {} if typ is None else {"typ": typ}
    told = await tell(attacked, forger.sign(events=LOGOUT, jti=f"typ {typ}"))
    assert told.status_code == status


async def test_an_id_token_and_a_forged_logout_token_end_nothing(attacked: Plane, forger: Forger) -> None:
    client = attacked.client()
    await come_back(client, forger)
    good = forger.sign(events=LOGOUT, jti="forged")
    stranger = Forger(address=forger.address, algorithm="ES256", header={"kid": "RS256"})
    for token in (
        forger.sign(nonce="n"),
        unsigned(good),
        good[:-8] + "AAAAAAAA",
        stranger.sign(events=LOGOUT, jti="x"),
    ):
        refused = await tell(attacked, token)
        assert (refused.status_code, refused.headers["cache-control"]) == (400, "no-store")
    assert (await client.get("/api/auth/me")).status_code == 200


async def test_a_logout_ends_what_the_identity_signed_in_and_no_session_by_password(
    open_on_sqlite: Open, forger: Forger
) -> None:
    async with open_on_sqlite(of_forger(forger)) as plane:
        by_password = await plane.user("ada@example.com")
        sign_ins = "/settings/account/sign-ins"
        away = await by_password.post(sign_ins, data={"current_password": PASSWORD}, headers=HTML)
        await by_password.get(forger.log_in(away.headers["location"], "link"), headers=HTML)
        clients = [plane.client(), plane.client()]
        for number, client in enumerate(clients):
            await come_back(client, forger, code=f"code-{number}")
            assert (await me(client))["id"] == (await me(by_password))["id"]
        assert (await tell(plane, forger.sign(events=LOGOUT, jti="all"))).status_code == 200
        assert [(await client.get("/api/auth/me")).status_code for client in clients] == [401, 401]
        assert (await by_password.get("/api/auth/me")).status_code == 200


@asynccontextmanager
async def server_at(plane: Plane, address: str) -> AsyncIterator[Callable[[str], Awaitable[httpx.Response]]]:
    """Yield a function that sends a logout token from this address."""
    transport = httpx.ASGITransport(plane.app, client=(address, 40000))
    async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:

        async def send(token: str) -> httpx.Response:
            return await client.post("/auth/oidc/backchannel-logout", data={"logout_token": token})

        yield send


async def test_a_network_that_sends_bad_logout_tokens_waits_and_costs_little(
    attacked: Plane, forger: Forger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused tokens are counted before they are read, so a flood of them verifies no more than the limit."""
    browser = attacked.client()
    await come_back(browser, forger)
    monkeypatch.setattr(limits, "MAX_PER_NETWORK", 7)
    verify, verified = key_sets.verify, list[str]()

    async def counting(token: str, *rest: Any) -> Any:
        verified.append(token)
        return await verify(token, *rest)

    monkeypatch.setattr(key_sets, "verify", counting)
    bad, good = forger.sign(events=LOGOUT, jti="bad", nonce="n"), forger.sign(events=LOGOUT, jti="good")
    async with server_at(attacked, "198.51.100.7") as flood:
        answers = await asyncio.gather(*(flood(bad) for _ in range(60)))
        refused = await flood(good)
    assert sorted(answer.status_code for answer in answers) == [400] * 7 + [429] * 53
    assert len(verified) == 7
    assert {answer.headers.get("retry-after") for answer in answers if answer.status_code == 400} == {None}
    waits = {int(answer.headers["retry-after"]) for answer in answers if answer.status_code == 429}
    assert all(0 < wait <= 900 for wait in waits)
    assert (refused.status_code, refused.json()["type"]) == (429, "/problems/rate-limited")
    assert (await browser.get("/api/auth/me")).status_code == 200
    async with server_at(attacked, "198.51.100.9") as provider:
        assert (await provider(good)).status_code == 200
    assert (await browser.get("/api/auth/me")).status_code == 401


async def test_good_logout_tokens_do_not_count(
    attacked: Plane, forger: Forger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_PER_NETWORK", 2)
    async with server_at(attacked, "198.51.100.8") as send:
        for number in range(5):
            assert (await send(forger.sign(events=LOGOUT, jti=f"good {number}"))).status_code == 200
