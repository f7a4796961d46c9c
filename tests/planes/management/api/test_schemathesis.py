"""The OpenAPI document against the running service: schemathesis makes valid and invalid requests from it.

All of its checks, all of its phases, over real HTTP; on SQLite with an access token of all scopes, on PostgreSQL with a
session. What is relaxed is relaxed below, each with its reason; no operation is left out.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import strategies as st
from schemathesis.engine import events, from_schema
from sqlalchemy import insert, select
from sqlalchemy.engine import URL

from keyman import migrations
from keyman.characters import REFUSED_IN_ADDRESSES
from keyman.identity import sessions
from keyman.identity.tables import api_tokens, users
from keyman.identity.tokens import ALL_SCOPES, Token, scopes_text
from keyman.storage.transactions import Database, Unchecked
from tests.planes.management.api.served import served
from tests.support import needs
from tests.support.http import NO_TLS
from tests.support.needs import quick_on
from tests.support.planes import PASSWORD, Vault
from tests.support.waiting import PATIENCE

EXAMPLES = 8 if needs.are_slow_wanted() else 2
"""Per operation in the fuzzing phase; the coverage phase, which is systematic, makes most of the requests."""

REQUESTS = 500 if needs.are_slow_wanted() else 50
"""At least so many are made."""

ACCEPTED = ["2xx", "3xx", "401", "403", "404", "409", "429", "5xx"]
"""Schemathesis' own idea of what a request that fits its schema may get. A 5xx fails another check."""

REJECTED = ["400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "428", "429", "5xx"]
"""The same for a request that does not fit, with 413 for a body that is too large for any use."""

PHASES = {name: {"enabled": needs.are_slow_wanted()} for name in ("coverage", "stateful")}
"""A run without the slow tests has only the phases of examples and of fuzzing."""

CONFIG: dict[str, Any] = {
    "seed": 20_231_027,
    "generation": {"max-examples": EXAMPLES, "deterministic": True, "database": "none", "no-shrink": True},
    # Nothing of a run is kept, for nothing of it may depend on the run before.
    "cache": {"enabled": False},
    "phases": PHASES,
    "operations": [
        {
            # A made-up If-Match is well-formed, and stale.
            "include-name": "DELETE /api/keys/{key_id}",
            "checks": {"positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "412"]}},
        },
        {
            # JSON Schema cannot say which texts are pasted by mistake, or which settings the service of a key has.
            "include-name": ["PUT /api/keys/{key_id}", "PATCH /api/keys/{key_id}"],
            # What a value may be depends on the service of the key, so a stale If-Match is found before.
            "checks": {
                "positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "400", "412"]},
                "negative_data_rejection": {"expected-statuses": [*REJECTED, "412"]},
            },
        },
        {
            # The same; and one that comes a second time with another body is refused for that.
            "include-name": "POST /api/keys",
            "checks": {
                "positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "400", "422"]},
                "negative_data_rejection": {"expected-statuses": REJECTED},
            },
        },
        {
            # The same. What is wrong with an entry is said in an answer of 200.
            "include-name": "POST /api/keys/batch",
            "checks": {
                "positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "400", "422"]},
                "negative_data_rejection": {"enabled": False},
            },
        },
        {
            # JSON Schema cannot say of which list a cursor is.
            "include-name": "GET /api/keys",
            "checks": {"positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "400"]}},
        },
        {
            # A made-up current password has the right form, and is wrong.
            "include-name": ["PUT /api/auth/password", "DELETE /api/auth/me"],
            "checks": {"positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "400"]}},
        },
    ],
}


def _moment(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat().replace("+00:00", "Z")


# JSON Schema cannot say that a time lies in the future: times that are made for requests do.
schemathesis.openapi.format("date-time", st.floats(1, 36_500).map(_moment))


def map_body(_context: schemathesis.HookContext, body: Any) -> Any:
    """Fit a body to what JSON Schema cannot say.

    Times are also taken from answers, where they lie in the past. The pattern of an address allows more than keyman.
    """
    if isinstance(body, dict) and isinstance(email := body.get("email"), str):
        body = {**body, "email": "".join("x" if REFUSED_IN_ADDRESSES.holds(one) else one for one in email)}
    if isinstance(body, dict) and isinstance(body.get("expires_at"), str):
        with suppress(ValueError):
            if datetime.fromisoformat(body["expires_at"]) < datetime.now(UTC):
                return {**body, "expires_at": _moment(1)}
    return body


NEEDS_STATE = set() if needs.are_slow_wanted() else {"POST /api/auth/login"}
"""Operations that succeed only in the phases that a run without the slow tests does not have."""


async def _new_token(url: URL) -> str:
    """Put into the database: one that the API made would count among those that an account may have."""
    token = Token.generate()
    db = Database(url)
    async with db.write(Unchecked.OPERATOR) as connection:
        values = {"name": "schemathesis", "scopes": scopes_text(ALL_SCOPES), "hint": token.hint()}
        owner = (await connection.execute(select(users.c.id).order_by(users.c.id).limit(1))).scalar_one()
        await connection.execute(
            insert(api_tokens).values(user_id=owner, token_hash=token.digest(), created_at=datetime.now(UTC), **values)
        )
    await db.close()
    return token.reveal()


async def _new_session(url: URL) -> str:
    db = Database(url)
    async with db.write(Unchecked.OPERATOR) as connection:
        owner = (await connection.execute(select(users.c.id).order_by(users.c.id).limit(1))).scalar_one()
        cookie = await sessions.open_session(connection, owner)
    await db.close()
    return cookie.reveal()


FATAL = {
    "DELETE /api/tokens/{token_id}",
    "DELETE /api/tokens/current",
    "POST /api/auth/logout",
    "POST /api/auth/login",
    "POST /api/auth/signup",
}
"""Operations that end the credentials that they are tried with, or may: the next request gets new ones."""


class Proof:
    """Credentials that live."""

    def __init__(self, mint: Callable[[], str], where: str, name: str, form: str) -> None:
        self._mint, self._where, self._name, self._form = mint, where, name, form
        self._current: str | None = None

    def get(self, _case: schemathesis.Case[Any], _context: schemathesis.AuthContext) -> str:
        if self._current is None:
            self._current = self._form.format(self._mint())
        return self._current

    def set(self, case: schemathesis.Case[Any], data: str, _context: schemathesis.AuthContext) -> None:
        getattr(case, self._where)[self._name] = data

    def use_for(self, schema: Any) -> None:
        def after_call(
            _context: schemathesis.HookContext, case: schemathesis.Case[Any], response: schemathesis.Response
        ) -> None:
            if case.operation.label in FATAL and response.status_code in (200, 201, 204):
                self._current = None

        schema.hook(after_call)
        # Asked for by class, and made without arguments.
        schema.auth(refresh_interval=None)(type("Provider", (), {"get": self.get, "set": self.set}))


PROOFS = {
    "sqlite": ("a token of all scopes", _new_token, "headers", "Authorization", "Bearer {}"),
    "postgresql": ("a session", _new_session, "cookies", "keyman_session", "{}"),
}


@quick_on("sqlite", "empty_database")
def test_every_operation_does_what_the_document_says(
    empty_database: URL,
    provisioned: Vault,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    asyncio.run(migrations.upgrade(empty_database))
    kind = "sqlite" if empty_database.get_backend_name() == "sqlite" else "postgresql"
    proved_by, mint, *how = PROOFS[kind]
    log = tmp_path / "served.log"
    with served(empty_database, provisioned.settings, log) as url:
        body = {"email": "schemathesis@example.com", "password": PASSWORD}
        assert httpx.post(f"{url}/api/auth/signup", json=body, timeout=PATIENCE, verify=NO_TLS).status_code == 201
        schema: Any = schemathesis.openapi.from_url(
            f"{url}/docs/openapi.json", config=schemathesis.Config.from_dict(CONFIG)
        )
        if kind == "postgresql":  # a session may delete the account, with all credentials of the other operations
            schema = schema.exclude(method="DELETE", path="/api/auth/me")
        schema.hook(map_body)
        Proof(lambda: asyncio.run(mint(empty_database)), *how).use_for(schema)
        requests, answers, failures, errors = Counter[str](), Counter[tuple[str, int]](), list[str](), list[str]()
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                _count(event, requests, answers)
                failures += failures_of(event)
            elif isinstance(event, events.NonFatalError):
                errors.append(f"{event.label}: {event.value}")
            elif isinstance(event, events.FatalError):
                errors.append(str(event.exception))
    said = f"schemathesis on {kind} with {proved_by}: {requests.total()} requests {dict(requests)}"
    print(said)  # noqa: T201  # for a run with -rP
    record_property("schemathesis", said)
    assert errors == []
    assert not failures, "\n\n".join([f"{len(failures)} failures", *failures[:12]])
    assert requests.total() > REQUESTS
    operations = {label for label, _ in answers}
    documented = {f"{operation.method.upper()} {operation.path}" for operation in _operations(schema)}
    assert documented <= operations
    # Every operation has also been carried out, not only refused.
    refused = {label for label in documented if not any(answers[label, status] for status in (200, 201, 204))}
    of_sessions, of_tokens = {"POST /api/auth/logout", "PUT /api/auth/password"}, {"DELETE /api/tokens/current"}
    by_another = of_sessions if kind == "sqlite" else of_tokens
    # No request has the right password, and there is no application.
    unreached = {"DELETE /api/auth/me", "DELETE /api/applications/{application_id}/block"}
    assert refused <= by_another | NEEDS_STATE | unreached
    assert "unhandled" not in log.read_text()


def _operations(schema: Any) -> list[Any]:
    return [result.ok() for result in schema.get_all_operations()]


def _count(event: events.ScenarioFinished, requests: Counter[str], answers: Counter[tuple[str, int]]) -> None:
    for interaction in event.recorder.interactions.values():
        requests[event.phase.value] += 1
        if interaction.response is not None:
            asked = interaction.request
            answers[event.recorder.label or asked.method, interaction.response.status_code] += 1


def failures_of(event: events.ScenarioFinished) -> list[str]:
    found = []
    for case_id, checks in event.recorder.checks.items():
        response = event.recorder.interactions[case_id].response if case_id in event.recorder.interactions else None
        for check in checks:
            if check.failure_info is not None:
                failure = check.failure_info.failure
                got = "" if response is None else f"\n{response.status_code} {response.content[:400]!r}"
                found.append(
                    f"{check.name}, {event.recorder.label}: {failure.title}: {failure.message}\n"
                    f"{check.failure_info.code_sample}{got}"
                )
    return found
