"""The resolver's OpenAPI document against the running service: schemathesis makes requests from it.

All of its checks and phases, over real HTTP, on SQLite, with an application's token.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis.engine import events, from_schema

from keyman import migrations
from keyman.identity import applications
from keyman.storage.transactions import Database
from keyman.values import ApplicationName
from tests.planes.management.api.harness import OPENAI_KEY
from tests.planes.management.api.test_schemathesis import ACCEPTED, Proof, failures_of
from tests.support.cli import serve, variables
from tests.support.database import sqlite_at
from tests.support.http import sign_up
from tests.support.planes import Vault

EXAMPLES = 10
"""Per operation in the fuzzing phase."""

CONFIG: dict[str, Any] = {
    "seed": 20_231_027,
    "generation": {"max-examples": EXAMPLES, "deterministic": True, "database": "none", "no-shrink": True},
    "cache": {"enabled": False},
    "checks": {"positive_data_acceptance": {"expected-statuses": ACCEPTED}},
    "operations": [
        {
            # JSON Schema cannot say which URLs and which texts of a person are refused.
            "include-name": ["POST /v1/portal-links", "POST /v1/resolve"],
            "checks": {"positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "400"]}},
        }
    ],
}


@pytest.mark.slow
def test_every_operation_does_what_the_document_says(provisioned: Vault, tmp_path: Path) -> None:
    database = sqlite_at(tmp_path / "keyman.db")
    asyncio.run(migrations.upgrade(database))
    first, second = variables(provisioned.settings, database), variables(provisioned.resolver, database)
    with (
        serve(first, tmp_path / "management") as management,
        serve(second, tmp_path / "resolver", "--plane", "resolver") as resolver,
    ):
        ada = sign_up(management.url, "ada@example.com")
        owner = ada.get("/api/auth/me").json()["id"]
        assert ada.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY}).status_code == 201

        async def registered() -> str:
            db = Database(database)
            made = await applications.create(db, ApplicationName("schemathesis"), ("OPENAI",))
            await db.close()
            return made.token.reveal()

        token = asyncio.run(registered())
        schema = schemathesis.openapi.from_url(
            f"{resolver.url}/docs/openapi.json", config=schemathesis.Config.from_dict(CONFIG)
        )

        def map_body(_context: schemathesis.HookContext, body: Any) -> Any:
            """The owner of the examples is the one who has a key here. A whole number is sent without a point: JSON
            Schema takes 1.0 for an integer, the service does not.
            """
            if not isinstance(body, dict):
                return body
            whole = {name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in body.items()}
            return {**whole, "user_id": owner} if whole.get("user_id") == 7 else whole

        schema.hook(map_body)
        Proof(lambda: token, "headers", "Authorization", "Bearer {}").use_for(schema)
        answers, failures, errors = Counter[tuple[str, int]](), list[str](), list[str]()
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                failures += failures_of(event)
                for interaction in event.recorder.interactions.values():
                    if interaction.response is not None:
                        answers[str(event.recorder.label), interaction.response.status_code] += 1
            elif isinstance(event, events.NonFatalError):
                errors.append(f"{event.label}: {event.value}")
            elif isinstance(event, events.FatalError):
                errors.append(str(event.exception))
    assert errors == []
    assert not failures, "\n\n".join([f"{len(failures)} failures", *failures[:12]])
    assert answers.total() > 100
    for path in ("POST /v1/resolve", "GET /problems/{slug}", "GET /livez", "GET /readyz"):
        assert answers[path, 200], answers
