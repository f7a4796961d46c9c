"""`keyman app`, as an operator types it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from keyman.identity.tokens import Token
from tests.cli.test_common import failed
from tests.cli.transcript import keyman
from tests.support.cli import Finished


def test_applications_are_registered_exchanged_listed_and_revoked(env: dict[str, str]) -> None:
    made = keyman("app", "create", "chat-backend", "--service", "OPENAI", "--service", "ANTHROPIC", env=env)
    assert (made.code, made.err) == (0, "Registered chat-backend for OPENAI ANTHROPIC.\n")
    first = Token.parse(made.out.removesuffix("\n"))

    rotated = keyman("app", "rotate", "chat-backend", "--overlap", "24h", env=env)
    assert rotated.code == 0
    said = r"Created a new token for chat-backend. Its old tokens end at \d{4}-\d\d-\d\d \d\d:\d\dZ\.\n"
    assert re.fullmatch(said, rotated.err)
    second = Token.parse(rotated.out.removesuffix("\n"))
    assert first != second

    listed = keyman("app", "list", "--json", env=env)
    assert (listed.code, listed.err) == (0, "")
    (shown,) = json.loads(listed.out)
    assert re.fullmatch(r"\d{4}-.*Z", shown.pop("created_at"))
    assert shown == {
        "id": 1,
        "name": "chat-backend",
        "services": ["OPENAI", "ANTHROPIC"],
        "tokens": [first.hint(), second.hint()],
        "last_used_at": None,
        "disabled_at": None,
    }
    table = keyman("app", "list", env=env).out
    assert table.split()[:4] == ["NAME", "SERVICES", "TOKENS", "CREATED"]
    for token in (first, second):
        assert token.reveal() not in listed.out + table

    again = keyman("app", "create", "chat-backend", "--service", "GROQ", env=env)
    assert (
        failed(again)
        == "keyman: An application with this name already exists, or existed before. Choose another name.\n"
    )

    at_once = keyman("app", "rotate", "chat-backend", "--overlap", "0s", env=env)
    assert at_once.err == "Created a new token for chat-backend. Its old tokens end now.\n"
    third = Token.parse(at_once.out.removesuffix("\n"))
    assert json.loads(keyman("app", "list", "--json", env=env).out)[0]["tokens"] == [third.hint()]

    assert keyman("app", "revoke", "chat-backend", env=env) == Finished(0, "", "Revoked chat-backend.\n")
    (shown,) = json.loads(keyman("app", "list", "--json", env=env).out)
    assert shown["tokens"] == []
    assert shown["disabled_at"]
    refused = keyman("app", "rotate", "chat-backend", env=env)
    assert failed(refused).startswith("keyman: This application was revoked.")
    for command in ("rotate", "revoke"):
        assert failed(keyman("app", command, "nobody", env=env)) == "keyman: There is no application with this name.\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "chat"),
        ("create", "--service", "OPENAI"),
        ("create", "Chat", "--service", "OPENAI"),
        ("create", "-chat", "--service", "OPENAI"),
        ("create", "c" * 65, "--service", "OPENAI"),
        ("create", "chat\n", "--service", "OPENAI"),
        ("create", "chat", "--service", "openai"),
        ("create", "chat", "--service", "OPENAI", "--service", "NOBODY"),
        ("rotate", "chat", "--overlap", "24"),
        ("rotate", "chat", "--overlap", "-1h"),
        ("rotate", "chat", "--overlap", "31d"),
        ("rotate", "chat", "--overlap", "a week"),
        ("revoke", "Chat"),
    ],
)
def test_wrong_usage_is_said_and_changes_nothing(env: dict[str, str], arguments: tuple[str, ...]) -> None:
    refused = keyman("app", *arguments, env=env)
    assert (refused.code, refused.out) == (2, "")
    assert "Traceback" not in refused.err
    assert json.loads(keyman("app", "list", "--json", env=env).out) == []


def test_a_service_of_the_operators_own_can_be_granted(env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "services.json"
    file.write_text('[{"service": "ACME_AI", "name": "Acme"}]')
    assert keyman("app", "create", "chat", "--service", "ACME_AI", env=env).code == 2
    given = {**env, "KEYMAN_SERVICES_FILE": str(file)}
    assert keyman("app", "create", "chat", "--service", "ACME_AI", env=given).code == 0
    file.write_text("{")
    assert keyman("app", "create", "other", "--service", "ACME_AI", env=given).code == 1
