"""`keyman app`, as an operator types it."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from keyman.identity.audiences import publish
from keyman.identity.tokens import Token
from keyman.storage.transactions import Database
from tests.cli.test_common import failed
from tests.cli.transcript import keyman
from tests.support.cli import Finished
from tests.support.issuer import Issuer


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
        "portal": False,
        "issuers": [],
        "return_urls": [],
        "checks": False,
        "jwt_issuer": None,
        "jwt_subject": None,
        "jwt_audience": None,
    }
    table = keyman("app", "list", env=env).out
    assert table.split()[:4] == ["NAME", "SERVICES", "TOKENS", "CREATED"]
    for token in (first, second):
        assert token.reveal() not in listed.out + table

    again = keyman("app", "create", "chat-backend", "--service", "GROQ", env=env)
    assert (
        failed(again)
        == "keyman: An application with this name already exists, or existed before. Choose another name. "
        "For a new token: keyman app rotate NAME\n"
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
        assert (
            failed(keyman("app", command, "nobody", env=env))
            == "keyman: There is no application with this name. See all with: keyman app list\n"
        )


CHAT = ("create", "chat", "--service", "OPENAI")


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
        ("create", "chat", "--service", "OPENAI", "--portal"),
        ("create", "chat", "--service", "OPENAI", "--return-url", "https://chat.example.com/"),
        ("create", "chat", "--service", "OPENAI", "--portal", "--return-url", "http://chat.example.com/"),
        ("create", "chat", "--service", "OPENAI", "--portal", "--return-url", "https://chat.example.com/a/../b"),
        ("create", "chat", "--service", "OPENAI", "--issuer", ""),
        ("create", "chat", "--service", "OPENAI", "--issuer", "two words"),
        ("create", "chat", "--service", "OPENAI", "--issuer", "keyman:app:"),
        ("create", "chat", "--service", "OPENAI", "--issuer", "keyman:app:Chat"),
        ("create", "chat", "--service", "OPENAI", "--issuer", "keyman:users"),
        (*CHAT, "--jwt-issuer", "https://id.example.com"),
        (*CHAT, "--jwt-subject", "chat"),
        (*CHAT, "--jwt-audience", "keyman-resolver"),
        (*CHAT, "--jwt-issuer", "http://id.example.com", "--jwt-subject", "chat"),
        (*CHAT, "--jwt-issuer", "id.example.com", "--jwt-subject", "chat"),
        (*CHAT, "--jwt-issuer", "keyman:app:x", "--jwt-subject", "chat", "--jwt-jwks-url", "https://id.example.com/"),
        (*CHAT, "--jwt-issuer", "https://id.example.com", "--jwt-subject", " chat"),
        (*CHAT, "--jwt-issuer", "https://id.example.com", "--jwt-subject", "chat", "--jwt-audience", "two words"),
        (*CHAT, "--jwt-issuer", "https://id.example.com", "--jwt-subject", "chat", "--jwt-jwks-url", "http://a.b/"),
        (*CHAT, "--jwt-issuer", "https://id.example.com", "--jwt-subject", "chat", "--jwt-jwks-file", "/nowhere"),
        (*CHAT, "--jwt-issuer", "https://id.example.com", "--jwt-subject", "chat", "--jwt-jwks-file", __file__),
    ],
)
def test_wrong_usage_is_said_and_changes_nothing(env: dict[str, str], arguments: tuple[str, ...]) -> None:
    refused = keyman("app", *arguments, env=env)
    assert (refused.code, refused.out) == (2, "")
    assert "Traceback" not in refused.err
    assert json.loads(keyman("app", "list", "--json", env=env).out) == []


def test_whose_users_an_application_serves_is_registered_and_listed(env: dict[str, str]) -> None:
    def create(name: str, *more: str) -> Finished:
        return keyman("app", "create", name, "--service", "OPENAI", *more, env=env)

    portal = ("--portal", "--return-url", "https://Shop.example.com", "--return-url", "http://localhost:3000/back")
    assert create("shop", *portal).code == 0
    assert create("worker", "--issuer", "keyman:app:shop", "--issuer", "https://id.example.com").code == 0
    assert create("both", *portal, "--issuer", "https://id.example.com", "--issuer", "keyman:app:both").code == 0
    named = create("named", "--issuer", "id.example.com", "--issuer", "https://id.example.com")
    assert named.code == 0
    assert named.err.startswith("Warning: the issuer id.example.com is no URL.")
    assert named.err.count("Warning") == 1
    assert keyman("app", "revoke", "named", env=env).code == 0
    unknown = create("other", "--issuer", "keyman:app:nobody")
    assert failed(unknown).startswith("keyman: An issuer begins with keyman:app: and names no application.")
    listed = json.loads(keyman("app", "list", "--json", env=env).out)
    urls = ["https://shop.example.com/", "http://localhost:3000/back"]
    assert [(one["name"], one["portal"], one["issuers"], one["return_urls"]) for one in listed] == [
        ("both", True, ["https://id.example.com", "keyman:app:both"], urls),
        ("named", False, ["id.example.com", "https://id.example.com"], []),
        ("shop", True, ["keyman:app:shop"], urls),
        ("worker", False, ["keyman:app:shop", "https://id.example.com"], []),
    ]
    assert "keyman:app:shop" in keyman("app", "list", env=env).out


def test_portal_links_for_people_of_an_identity_provider_are_warned_of(env: dict[str, str]) -> None:
    portal = ("--service", "OPENAI", "--portal", "--return-url", "https://shop.example.com/")
    outside = ("--issuer", "https://id.example.com")
    for name, issuers, is_warned in (
        ("shop", (), False),
        ("first", outside, True),
        ("second", ("--issuer", "keyman:app:second", *outside), False),
    ):
        made = keyman("app", "create", name, *portal, *issuers, env=env)
        assert made.code == 0
        assert ("portal links name users of https://id.example.com" in made.err) == is_warned
        assert (f"Put --issuer keyman:app:{name} first" in made.err) == is_warned


def test_an_application_with_a_jwt_has_no_token_and_its_claims_are_listed(env: dict[str, str], tmp_path: Path) -> None:
    issuer = Issuer("https://kubernetes.default.svc")
    file = tmp_path / "jwks.json"
    file.write_bytes(issuer.jwks())
    login = ("--jwt-issuer", issuer.url, "--jwt-subject", "system:serviceaccount:shop:chat")
    made = keyman("app", *CHAT, *login, "--jwt-jwks-file", str(file), env=env)
    assert made == Finished(0, "", "Registered chat for OPENAI. It logs in with a JWT.\n")
    (shown,) = json.loads(keyman("app", "list", "--json", env=env).out)
    assert [shown[name] for name in ("tokens", "jwt_issuer", "jwt_subject", "jwt_audience")] == [
        [],
        issuer.url,
        "system:serviceaccount:shop:chat",
        "keyman-resolver",
    ]
    assert "system:serviceaccount:shop:chat" in keyman("app", "list", env=env).out

    again = keyman("app", "create", "other", "--service", "OPENAI", *login, env=env)
    assert failed(again).startswith("keyman: An application with this name, or with this issuer, subject and audience")
    elsewhere = keyman("app", "create", "other", "--service", "OPENAI", *login, "--jwt-audience", "x", env=env)
    assert elsewhere.code == 0
    assert failed(keyman("app", "rotate", "chat", env=env)).startswith("keyman: This application logs in with a JWT")


async def published(env: dict[str, str], audience: str) -> None:
    """Let a management plane accept the tokens of users with this audience."""
    db = Database(make_url(env["KEYMAN_DATABASE_URL"]))
    await publish(db, audience)
    await db.close()


def test_the_audience_of_users_is_refused_for_an_application(env: dict[str, str]) -> None:
    asyncio.run(published(env, "elsewhere"))
    users = {**env, "KEYMAN_JWT_ISSUER": "https://id.example.com", "KEYMAN_JWT_AUDIENCE": "keyman"}
    login = ("--jwt-issuer", "https://id.example.com", "--jwt-subject", "chat", "--jwt-audience", "keyman")
    refused = keyman("app", *CHAT, *login, env=users)
    assert (refused.code, refused.out) == (2, "")
    assert "KEYMAN_JWT_AUDIENCE" in refused.err
    unset = keyman("app", *CHAT, *login[:4], "--jwt-audience", "elsewhere", env=env)
    assert unset.code == 2, "management has accepted users with it, and the variable is not set for this command"
    assert unset.err == refused.err
    file = Path(__file__).with_name("none.json")
    both = ("--jwt-jwks-url", "https://id.example.com/jwks", "--jwt-jwks-file", str(file))
    assert keyman("app", *CHAT, *login[:4], *both, env=env).code == 2
    assert json.loads(keyman("app", "list", "--json", env=env).out) == []


def test_a_service_of_the_operators_own_can_be_granted(env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "services.json"
    file.write_text('[{"service": "ACME_AI", "name": "Acme"}]')
    assert keyman("app", "create", "chat", "--service", "ACME_AI", env=env).code == 2
    given = {**env, "KEYMAN_SERVICES_FILE": str(file)}
    assert keyman("app", "create", "chat", "--service", "ACME_AI", env=given).code == 0
    file.write_text("{")
    assert keyman("app", "create", "other", "--service", "ACME_AI", env=given).code == 1


def test_an_application_for_live_checks_takes_no_other_option(env: dict[str, str]) -> None:
    made = keyman("app", "create", "live-checks", "--checks", env=env)
    assert (made.code, made.err) == (0, "Registered live-checks for live checks.\n")
    Token.parse(made.out.removesuffix("\n"))
    (listed,) = json.loads(keyman("app", "list", "--json", env=env).out)
    assert (listed["services"], listed["checks"]) == ([], True)
    for more in (
        ("--service", "OPENAI"),
        ("--issuer", "https://id.example.com"),
        ("--portal", "--return-url", "https://shop.example.com/"),
        ("--jwt-issuer", "https://id.example.com", "--jwt-subject", "x"),
    ):
        assert keyman("app", "create", "other", "--checks", *more, env=env).code == 2
    assert keyman("app", "create", "other", env=env).code == 2
