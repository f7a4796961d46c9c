"""A route, a way of revocation and an interleaving, drawn at random, over two replicas and both databases."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from io import StringIO
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from litestar.routes import HTTPRoute
from sqlalchemy import event, select, update
from sqlalchemy.util import await_only

from keyman import migrations
from keyman.clock import now
from keyman.errors import Conflict, DatabaseUnavailable, NotFound
from keyman.http.guards import is_public
from keyman.identity import applications, identities, login, personal_tokens, sessions, users
from keyman.identity.applications import Users
from keyman.identity.identities import APPLICATION_ISSUER, Identity
from keyman.identity.passwords import Passwords
from keyman.identity.return_urls import ReturnUrl
from keyman.identity.sessions import SESSION_IDLE, session_digest
from keyman.identity.tables import api_tokens, application_identities, application_tokens
from keyman.identity.tables import applications as applications_table
from keyman.identity.tables import sessions as sessions_table
from keyman.identity.tokens import ALL_SCOPES, Token
from keyman.ids import TokenId, UserId
from keyman.keys import erasure
from keyman.planes.management import housekeeping
from keyman.storage.transactions import Unchecked
from keyman.values import ApplicationName, EmailAddress, NewPassword, RequiredLabel, Subject
from tests.planes.management.api.harness import OPENAI_KEY, ApiPlane, application_of, state_of
from tests.planes.resolver.held import Held, Point, has_to_wait, stoppable
from tests.planes.resolver.pair import Pair, pair_at
from tests.support import fast, needs
from tests.support.planes import PASSWORD, Vault

pytestmark = pytest.mark.anyio

_NUMBERS = itertools.count()

NEW_PASSWORD = "another horse, another battery"

SESSION, TOKEN, APPLICATION = "session", "token", "application"


@dataclass(frozen=True)
class Route:
    """A route that changes something. `{…}` in its path or body are ids of the scene; a dict of text is a form."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    is_form: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    callers: tuple[str, ...] = (SESSION, TOKEN)


def page(path: str, **fields: str) -> Route:
    return Route("POST", path, fields, is_form=True, callers=(SESSION,))


PASSWORDS = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
KEY = {"service": "OPENAI", "api_key": "sk-hq2v9mXbT0c7eUKwN4Rd5678"}

PORTAL_LINKS = "/v1/portal-links"

ROUTES = (
    Route("POST", "/api/auth/logout", callers=(SESSION,)),
    Route("PUT", "/api/auth/password", PASSWORDS, callers=(SESSION,)),
    Route("PUT", "/api/auth/password", PASSWORDS | {"current_password": "not this one"}, callers=(SESSION,)),
    Route("DELETE", "/api/auth/me", {"current_password": PASSWORD}, callers=(SESSION,)),
    Route("DELETE", "/api/auth/me", {"current_password": "not this one"}, callers=(SESSION,)),
    Route("POST", "/api/tokens", {"name": "x"}),
    Route("DELETE", "/api/tokens/{other_token}"),
    Route("DELETE", "/api/tokens/current", callers=(TOKEN,)),
    Route("POST", "/api/keys", KEY),
    Route("POST", "/api/keys", KEY, headers=(("idempotency-key", "new"),)),
    Route("POST", "/api/keys", {"service": "OPENAI", "api_key": OPENAI_KEY}, headers=(("idempotency-key", "kept"),)),
    Route("POST", "/api/keys/batch", {"keys": [KEY, KEY]}),
    Route("POST", "/api/keys/batch", {"keys": [KEY, {}]}, headers=(("idempotency-key", "new"),)),
    Route("PUT", "/api/keys/{key}", {"api_key": KEY["api_key"]}),
    Route("PATCH", "/api/keys/{key}", {"name": "x"}),
    Route("PATCH", "/api/keys/{key}", {}),
    Route("DELETE", "/api/keys/{key}"),
    Route("POST", "/api/keys/{key}/check"),
    Route("PUT", "/api/applications/{application}/block"),
    Route("DELETE", "/api/applications/{application}/block"),
    page("/settings/api-keys", **KEY, attempt="a"),
    page("/settings/api-keys/several", text=KEY["api_key"]),
    page("/settings/api-keys/{key}/edit", api_key=KEY["api_key"]),
    page("/settings/api-keys/{key}/edit", name="x", shown_name=""),
    page("/settings/api-keys/{key}/pause", paused="true"),
    page("/settings/api-keys/{key}/delete"),
    page("/settings/api-keys/{key}/default", default="true"),
    page("/settings/api-keys/selected", ids="{key}", do="pause"),
    page("/settings/api-keys/selected", ids="{key}", do="delete"),
    page("/settings/applications/{application}/block"),
    page("/settings/applications/{application}/unblock"),
    page("/settings/access-tokens", name="x", scopes="keys:read"),
    page("/settings/access-tokens/{other_token}/revoke"),
    page("/settings/account", **PASSWORDS),
    page("/settings/account/delete", current_password=PASSWORD),
    page("/settings/account/display", theme="dark"),
    page("/settings/account/presence", next="/settings/account"),
    page("/settings/account/sign-ins", current_password=PASSWORD),
    page("/settings/account/sign-ins/{user}/unlink", current_password=PASSWORD),
    page("/settings/account/sessions/others/end"),
    page("/settings/account/sessions/{other_session}/end"),
    Route("POST", "/sign-out", callers=(SESSION,)),
    Route("POST", "/v1/resolve", {"key_id": "{key}"}, callers=(APPLICATION,)),
    Route("POST", "/v1/resolve", {"user_id": "{user}", "service": "OPENAI"}, callers=(APPLICATION,)),
    Route("POST", "/v1/resolve", {"subject": "owner", "service": "OPENAI"}, callers=(APPLICATION,)),
    Route("POST", "/v1/report", {"key_id": "{key}", "outcome": "refused"}, callers=(APPLICATION,)),
    Route("POST", PORTAL_LINKS, {"subject": "somebody"}, callers=(APPLICATION,)),
)


@dataclass
class Scene:
    """A user with two sessions, two tokens and a key, and an application. The first of each is the caller's."""

    replica: Pair
    email: EmailAddress
    cookie: str
    other_cookie: str
    token: str
    app: str
    app_token: str
    ids: dict[str, int]

    @property
    def db(self) -> Any:
        return self.replica.management.database

    async def set(self, table: Any, which: Any, **values: Any) -> None:
        async with self.db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(update(table).where(which).values(values))

    async def call(self, method: str, path: str, **body: Any) -> int:
        """A request of the user's other session, to the other replica."""
        client = self.replica.management.with_cookie(self.other_cookie)
        status = (await client.request(method, path, **body)).status_code
        await client.aclose()
        return status


async def _by_other_password(scene: Scene) -> None:
    assert await scene.call("PUT", "/api/auth/password", json=PASSWORDS) == 204


async def _by_operators_password(scene: Scene) -> None:
    passwords: Passwords = state_of(scene.replica.management).passwords
    await users.set_password(scene.db, passwords, scene.email, NewPassword.parse(NEW_PASSWORD))


async def _by_ending(scene: Scene) -> None:
    assert await scene.call("POST", f"/settings/account/sessions/{scene.ids['session']}/end", data={"a": "b"}) == 303


async def _by_ending_others(scene: Scene) -> None:
    assert await scene.call("POST", "/settings/account/sessions/others/end", data={"a": "b"}) == 303


async def _by_signing_out(scene: Scene) -> None:
    client = scene.replica.management.with_cookie(scene.cookie)
    assert (await client.post("/api/auth/logout")).status_code == 204


async def _by_expiry(scene: Scene) -> None:
    await scene.set(sessions_table, sessions_table.c.id == scene.ids["session"], expires_at=now())


async def _by_idleness(scene: Scene) -> None:
    await scene.set(sessions_table, sessions_table.c.id == scene.ids["session"], last_seen_at=now() - SESSION_IDLE)


async def _by_deletion(scene: Scene) -> None:
    assert await scene.call("DELETE", f"/api/tokens/{scene.ids['token']}") == 204


async def _by_the_operator(scene: Scene) -> None:
    await personal_tokens.revoke_any(scene.db, TokenId(scene.ids["token"]))


async def _by_the_tokens_expiry(scene: Scene) -> None:
    await scene.set(api_tokens, api_tokens.c.id == scene.ids["token"], expires_at=now())


async def _by_disabling(scene: Scene) -> None:
    await users.disable(scene.db, scene.email)


async def _by_deleting_the_account(scene: Scene) -> None:
    assert await scene.call("DELETE", "/api/auth/me", json={"current_password": PASSWORD}) == 204


async def _by_the_operators_deletion(scene: Scene) -> None:
    await erasure.delete_any(scene.db, scene.email)


async def _by_blocking_the_application(scene: Scene) -> None:
    assert await scene.call("PUT", f"/api/applications/{scene.ids['application']}/block") == 204


async def _by_revoking_the_application(scene: Scene) -> None:
    await applications.revoke(scene.db, ApplicationName(scene.app))


async def _by_rotating(scene: Scene) -> None:
    await applications.rotate(scene.db, ApplicationName(scene.app), timedelta())


async def _by_the_applications_expiry(scene: Scene) -> None:
    digest = Token.parse(scene.app_token).digest()
    await scene.set(application_tokens, application_tokens.c.token_hash == digest, expires_at=now())


Way = Callable[[Scene], Awaitable[None]]
OF_ACCOUNT: tuple[Way, ...] = (_by_disabling, _by_deleting_the_account, _by_the_operators_deletion)
OF_OWNER: tuple[Way, ...] = (*OF_ACCOUNT, _by_blocking_the_application)
"""What keeps an application from a key, and takes nothing else from it."""

OF_THE_APPLICATION: tuple[Way, ...] = (_by_revoking_the_application, _by_rotating, _by_the_applications_expiry)
WAYS: dict[str, tuple[Way, ...]] = {
    SESSION: (
        _by_other_password,
        _by_operators_password,
        _by_ending,
        _by_ending_others,
        _by_signing_out,
        _by_expiry,
        _by_idleness,
        *OF_ACCOUNT,
    ),
    TOKEN: (_by_deletion, _by_the_operator, _by_the_tokens_expiry, *OF_ACCOUNT),
    APPLICATION: (*OF_THE_APPLICATION, *OF_OWNER),
}


@st.composite
def stories(draw: st.DrawFn) -> tuple[Route, str, Way, Point, int]:
    route = draw(st.sampled_from(ROUTES))
    caller = draw(st.sampled_from(route.callers))
    # A link is for another user, so what happens to the account of the scene does not matter to it.
    way = draw(st.sampled_from(OF_THE_APPLICATION if route.path == PORTAL_LINKS else WAYS[caller]))
    return route, caller, way, draw(st.sampled_from(Point)), draw(st.integers(0, 1))


@dataclass(repr=False)
class Replicas:
    """Two pairs of planes over one database. Requests stand still in the first, the second revokes."""

    first: Pair
    second: Pair

    async def scene(self) -> Scene:
        email = EmailAddress.parse(f"person{next(_NUMBERS)}@example.com")
        db = self.second.management.database
        passwords: Passwords = state_of(self.second.management).passwords
        account = await users.add(db, passwords, email, NewPassword.parse(PASSWORD))
        async with db.write(Unchecked.OPERATOR) as connection:
            cookies = [(await sessions.open_session(connection, UserId(account.id))).reveal() for _ in range(2)]
        tokens = [await personal_tokens.create_for(db, email, RequiredLabel("x"), ALL_SCOPES) for _ in range(2)]
        name = f"app{next(_NUMBERS)}"
        of_portal = Users(return_urls=(ReturnUrl.parse("https://shop.example.com/"),))
        registered = await applications.create(db, ApplicationName(name), ("OPENAI",), of_portal)
        async with db.write(Unchecked.OPERATOR) as connection:
            owner = Identity(f"{APPLICATION_ISSUER}{name}", Subject("owner"))
            await identities.add(connection, owner, UserId(account.id), application_identities)
        client = self.second.management.bearer(tokens[1].token)
        body = {"service": "OPENAI", "api_key": OPENAI_KEY}
        stored = await client.post("/api/keys", json=body, headers={"idempotency-key": "kept"})
        assert stored.status_code == 201, stored.text
        ids = {"user": account.id, "key": stored.json()["id"], "token": tokens[0].id, "other_token": tokens[1].id}
        async with db.read() as connection:
            for which, cookie in zip(("session", "other_session"), cookies, strict=True):
                of_cookie = select(sessions_table.c.id).where(sessions_table.c.id_hash == session_digest(cookie))
                ids[which] = (await connection.execute(of_cookie)).scalar_one()
            of_name = select(applications_table.c.id).where(applications_table.c.name == name)
            ids["application"] = (await connection.execute(of_name)).scalar_one()
        token = registered.token.reveal()
        return Scene(self.second, email, cookies[0], cookies[1], tokens[0].token, name, token, ids)

    def request(self, scene: Scene, route: Route, caller: str, point: Point, skipped: int) -> Held:
        plane = self.first.resolver if caller == APPLICATION else self.first.management
        headers = dict(route.headers)
        if caller == SESSION:
            headers["cookie"] = f"keyman_session={scene.cookie}"
        else:
            headers["authorization"] = f"Bearer {scene.token if caller == TOKEN else scene.app_token}"
        body = b""
        if route.is_form:
            headers["content-type"] = "application/x-www-form-urlencoded"
            body = urlencode(dict(route.body or {})).encode()
        elif route.body is not None:
            headers["content-type"] = "application/json"
            given = {name: scene.ids.get(str(value).strip("{}"), value) for name, value in route.body.items()}
            body = json.dumps(given).encode()
        return Held(plane, route.method, route.path.format(**scene.ids), headers, body, point=point, skipped=skipped)

    async def everything(self) -> dict[str, list[Any]]:
        """What is stored, apart from times of last use, which are noted whenever there is time."""
        found: dict[str, list[Any]] = {}
        async with self.second.management.database.read() as connection:
            for table in migrations.tables().sorted_tables:
                columns = [column for column in table.columns if not column.name.startswith("last_")]
                rows = (await connection.execute(select(*columns).order_by(*table.primary_key.columns))).all()
                found[table.name] = [tuple(row) for row in rows]
        return found


@pytest.fixture(scope="module")
async def sqlite_replicas(sqlite_pair: Pair, provisioned: Vault, quick_passwords: Any) -> AsyncIterator[Replicas]:
    async with _replicas(sqlite_pair, provisioned, quick_passwords) as replicas:
        yield replicas


@pytest.fixture(scope="module")
async def postgresql_replicas(
    postgresql_pair: Pair, provisioned: Vault, quick_passwords: Any
) -> AsyncIterator[Replicas]:
    async with _replicas(postgresql_pair, provisioned, quick_passwords) as replicas:
        yield replicas


@asynccontextmanager
async def _replicas(pair: Pair, vault: Vault, quick: Any) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as stack:
        database = pair.management.settings.database_url
        other = await stack.enter_async_context(pair_at(database, vault.settings, vault.resolver, quick))
        for plane in (other.management, other.resolver):
            await stack.enter_async_context(stoppable(plane))
        yield Replicas(other, pair)


@pytest.fixture(params=["sqlite", "postgresql"])
def replicas(request: pytest.FixtureRequest, anyio_backend: str) -> Replicas:
    found: Replicas = request.getfixturevalue(f"{request.param}_replicas")
    return found


def story(path: str, caller: str, revoke: Way, point: Point) -> tuple[Route, str, Way, Point, int]:
    """The first route with this path, at its first transaction."""
    return next(route for route in ROUTES if route.path == path), caller, revoke, point, 0


READING = Route("PATCH", "/api/keys/{key}", {})
"""It changes nothing, so no transaction checks the caller."""


@settings(max_examples=fast.examples(30))
@given(story=stories())
@example((READING, TOKEN, _by_deletion, Point.BODY, 0))
@example(story("/api/keys", SESSION, _by_other_password, Point.CHECKED))
@example(story("/api/keys", SESSION, _by_expiry, Point.CHECKED))
@example(story("/api/keys", TOKEN, _by_deletion, Point.CHECKED))
@example(story("/api/keys", TOKEN, _by_disabling, Point.TRANSACTION))
@example(story("/api/keys", TOKEN, _by_the_tokens_expiry, Point.COMMIT))
@example(story("/v1/resolve", APPLICATION, _by_revoking_the_application, Point.CHECKED))
@example(story("/v1/resolve", APPLICATION, _by_the_applications_expiry, Point.CHECKED))
@example(story("/v1/resolve", APPLICATION, _by_disabling, Point.COMMIT))
@example(story("/v1/resolve", APPLICATION, _by_deleting_the_account, Point.TRANSACTION))
@example(story("/v1/resolve", APPLICATION, _by_the_operators_deletion, Point.COMMIT))
@example(story("/v1/resolve", APPLICATION, _by_blocking_the_application, Point.TRANSACTION))
@example(story("/v1/resolve", APPLICATION, _by_blocking_the_application, Point.COMMIT))
@example(story("/api/keys", TOKEN, _by_deleting_the_account, Point.TRANSACTION))
@example(story("/api/keys", SESSION, _by_the_operators_deletion, Point.CHECKED))
@example(story("/api/auth/me", SESSION, _by_deleting_the_account, Point.COMMIT))
async def test_nothing_is_committed_after_a_revocation_by_the_revoked_caller(
    replicas: Replicas, story: tuple[Route, str, Way, Point, int]
) -> None:
    route, caller, revoke, point, skipped = story
    scene = await replicas.scene()
    is_own = caller != APPLICATION or revoke not in OF_OWNER
    if not is_own and point is Point.CHECKED:
        point = Point.TRANSACTION  # the application's own check says nothing of the owner of the key
    held = replicas.request(scene, route, caller, point, skipped)
    await held.begin()
    if held.has_ended:
        await held.finish()  # it never came to the point
    elif point in (Point.CHECKED, Point.COMMIT):
        await _waits_for_the_commit(scene, held, route, revoke)
    else:
        await revoke(scene)
        before = await replicas.everything()
        answer = await held.finish()
        _changed_nothing(before, await replicas.everything(), is_own=is_own)
        assert answer.status_code == (401 if is_own else 404), answer.text
        assert OPENAI_KEY not in answer.text


async def _waits_for_the_commit(scene: Scene, held: Held, route: Route, revoke: Way) -> None:
    revocation = asyncio.ensure_future(revoke(scene))
    await has_to_wait(scene.db, revocation)
    answer = await held.finish()
    assert answer.status_code in (200, 201, 204, 303, 400, 401, 422), answer.text
    await asyncio.wait({revocation})
    # What was committed may have ended the session that revokes.
    ends = ("password", "account", "end", "out", "token", "auth/me")
    assert revocation.exception() is None or any(word in route.path for word in ends), revocation.exception()


def _changed_nothing(before: dict[str, list[Any]], after: dict[str, list[Any]], *, is_own: bool) -> None:
    """The caller itself changed nothing. An application that asks for the key of a disabled user leaves an entry."""
    if is_own:
        assert after == before
    else:
        assert not [row for row in after["audit_log"] if row not in before["audit_log"] and "key.resolve" in row]


@pytest.fixture
def slow_transactions(postgresql_replicas: Replicas) -> Iterator[None]:
    """After each statement of a transaction, there is time for others to come between it and the next one."""
    pairs = (postgresql_replicas.first, postgresql_replicas.second)
    engines = [plane.database._engine.sync_engine for pair in pairs for plane in (pair.management, pair.resolver)]
    for engine in engines:
        event.listen(engine, "after_cursor_execute", _linger)
    yield
    for engine in engines:
        event.remove(engine, "after_cursor_execute", _linger)


def _linger(*_of_statement: object) -> None:
    await_only(asyncio.sleep(random.uniform(0, 0.02)))  # noqa: S311  # not for a secret


@pytest.mark.usefixtures("slow_transactions")
async def test_whatever_writes_locks_in_one_order(postgresql_replicas: Replicas, logged: StringIO) -> None:
    """All routes and all revocations at once, with sign-ins that end a session of another account: no deadlock.

    PostgreSQL ends a transaction that has waited for a second in a circle (40P01), and keyman would answer 503.
    """
    db = postgresql_replicas.second.management.database
    for ways in (*WAYS.values(), *WAYS.values()) if needs.are_slow_wanted() else WAYS.values():
        scene, other = await postgresql_replicas.scene(), await postgresql_replicas.scene()
        work: list[Awaitable[None]] = [
            *(
                _send(postgresql_replicas, n, scene, route, caller)
                for n, route in enumerate((*ROUTES, *SIGN_INS))
                for caller in route.callers
            ),
            *(_sign_in(postgresql_replicas, n, here, there) for n in range(4) for here, there in _pairs(scene, other)),
            *(way(scene) for way in ways),
            housekeeping.sweep(db),
            login.record_totals(db),
        ]
        random.Random(next(_NUMBERS)).shuffle(work)  # noqa: S311  # not for a secret
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        assert "40P01" not in logged.getvalue()
        # One revocation may keep another one from its work. Then its answer is not the expected one.
        assert {type(one) for one in outcomes} <= {type(None), AssertionError, NotFound, Conflict, DatabaseUnavailable}


SIGN_INS = (
    Route("POST", "/api/auth/login", {"email": "{email}", "password": "not this one"}),
    Route("POST", "/api/auth/signup", {"email": "{email}", "password": PASSWORD}),
)


def _pairs(one: Scene, other: Scene) -> tuple[tuple[Scene, Scene], ...]:
    return (one, other), (other, one)


async def _sign_in(replicas: Replicas, number: int, scene: Scene, other: Scene) -> None:
    """Sign in with a browser that has a session of another account. The sign-in ends that session."""
    plane = (replicas.first, replicas.second)[number % 2].management
    cookie = other.cookie if number < 2 else other.other_cookie
    client = plane.with_cookie(cookie)
    await client.post("/api/auth/login", json={"email": str(scene.email), "password": PASSWORD})
    await client.aclose()


async def _send(replicas: Replicas, number: int, scene: Scene, route: Route, caller: str) -> None:
    pair = (replicas.first, replicas.second)[number % 2]
    client = pair.management.with_cookie(scene.cookie)
    if caller == TOKEN:
        client = pair.management.bearer(scene.token)
    elif caller == APPLICATION:
        client = pair.resolver.bearer(scene.app_token)
    known = {**scene.ids, "email": str(scene.email)}
    given = {name: known.get(str(value).strip("{}"), value) for name, value in (route.body or {}).items()}
    body: dict[str, Any] = {"data": given} if route.is_form else {"json": given}
    await client.request(route.method, route.path.format(**scene.ids), headers=dict(route.headers), **body)
    await client.aclose()


@pytest.mark.parametrize("point", Point)
@pytest.mark.parametrize(
    ("path", "caller"), [("/api/keys", SESSION), ("/api/keys/{key}", TOKEN), ("/v1/resolve", APPLICATION)]
)
async def test_what_shares_a_transaction_stands_still_too(
    replicas: Replicas, path: str, caller: str, point: Point
) -> None:
    route = next(route for route in ROUTES if route.path == path)
    held = replicas.request(await replicas.scene(), route, caller, point, 0)
    await held.begin()
    assert not held.has_ended
    assert (await held.finish()).status_code in (200, 201)


def test_every_route_that_changes_something_is_drawn(shared_pair: Pair) -> None:
    found = set()
    for plane in (shared_pair.management, shared_pair.resolver):
        found |= set(_changing(plane))
    drawn = {(route.method, route.path.partition("{")[0]) for route in ROUTES}
    assert found
    assert {(method, path.partition("{")[0]) for method, path in found} == drawn


def _changing(plane: ApiPlane) -> list[tuple[str, str]]:
    application = application_of(plane)
    return [
        (str(method), route.path)
        for route in application.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        for method in handler.http_methods
        if not is_public(handler) and method not in ("GET", "HEAD", "OPTIONS")
    ]
