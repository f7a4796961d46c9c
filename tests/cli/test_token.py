"""`keyman token`, as transcripts, and the effect of operators' commands on a running service."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path

import httpx
from sqlalchemy.engine import make_url

from keyman.clock import now
from tests.cli.test_common import failed
from tests.cli.transcript import keyman
from tests.support.cli import Finished, serve, variables
from tests.support.http import NO_TLS, script
from tests.support.planes import Vault

PASSWORD = "correct horse battery staple"
TOKEN = re.compile(r"km_[0-9A-Za-z]{36}\n")


def test_tokens_are_made_listed_and_revoked(env: dict[str, str]) -> None:
    assert keyman("token", "list", "--json", env=env) == Finished(0, "[]\n", "")
    missing = keyman("token", "create", "--user", "ada@example.com", "--name", "ci", env=env)
    assert failed(missing) == "keyman: There is no account with this address. See all with: keyman user list\n"

    for email in ("ada@example.com", "grace@example.com"):
        assert keyman("user", "add", email, env=env, stdin=PASSWORD).code == 0
    made = keyman("token", "create", "--user", "ADA@example.com", "--name", "CI pipeline", env=env)
    assert made.code == 0
    assert TOKEN.fullmatch(made.out)  # nothing else, for $(…)
    assert made.err == "Created token 1 for ADA@example.com: keys:read keys:write.\n"
    every = ("keys:read", "audit:read", "tokens:manage", "keys:write")
    scopes = [word for scope in every for word in ("--scope", scope)]
    other = keyman(
        *("token", "create", "--user", "grace@example.com", "--name", "all"),
        *(*scopes, "--expires-at", "2999-01-31T00:00:00+02:00"),
        env=env,
    )
    assert other.code == 0
    assert other.err == "Created token 2 for grace@example.com: keys:read keys:write tokens:manage audit:read.\n"

    soon = keyman("token", "create", "--user", "ada@example.com", "--name", "x", "--expires-in", "90d", env=env)
    assert soon.code == 0
    newest, *_ = json.loads(keyman("token", "list", "--json", env=env).out)
    left = datetime.fromisoformat(newest["expires_at"]) - now()
    assert timedelta(days=89, hours=23) < left <= timedelta(days=90)
    assert keyman("token", "revoke", "3", env=env).code == 0

    listed = keyman("token", "list", "--json", env=env)
    assert (listed.code, listed.err) == (0, "")
    second, first = json.loads(listed.out)
    assert (first["id"], first["email"], first["name"]) == (1, "ada@example.com", "CI pipeline")
    assert first["hint"] == f"km_...{made.out.strip()[-4:]}"
    assert second["expires_at"] == "2999-01-30T22:00:00Z"
    table = keyman("token", "list", env=env).out
    for shown in (table, listed.out):
        assert made.out.strip() not in shown
        assert other.out.strip() not in shown
    assert table.splitlines()[0].split("  ")[0] == "ID"
    assert "2999-01-30 22:00:00Z" in table

    own = keyman("token", "list", "--user", "ada@example.com", "--json", env=env)
    assert [token["id"] for token in json.loads(own.out)] == [1]
    nobody = keyman("token", "list", "--user", "nobody@example.com", env=env)
    assert failed(nobody) == "keyman: There is no account with this address. See all with: keyman user list\n"

    assert keyman("token", "revoke", "1", env=env) == Finished(0, "", "Revoked token 1.\n")
    assert failed(keyman("token", "revoke", "1", env=env)) == "keyman: There is nothing with this id.\n"
    assert failed(keyman("token", "revoke", str(10**30), env=env)) == "keyman: There is nothing with this id.\n"
    assert [token["id"] for token in json.loads(keyman("token", "list", "--json", env=env).out)] == [2]


def test_what_an_operator_does_is_felt_at_once_by_a_service_that_runs(
    env: dict[str, str], provisioned: Vault, tmp_path: Path
) -> None:
    given = variables(provisioned.settings, make_url(env["KEYMAN_DATABASE_URL"]))

    def done(*arguments: str, stdin: str = "") -> str:
        finished = keyman(*arguments, env=given, stdin=stdin)
        assert finished.code == 0, finished.err
        return finished.out.strip()

    with serve(given, tmp_path / "service") as service:

        def signs_in(password: str) -> int:
            body = {"email": "ada@example.com", "password": password}
            return httpx.post(f"{service.url}/api/auth/login", json=body, verify=NO_TLS).status_code

        done("user", "add", "ada@example.com", stdin=PASSWORD)
        token = done("token", "create", "--user", "ada@example.com", "--name", "ci")
        client = script(service.url, token)
        assert client.get("/api/keys").status_code == 200
        assert signs_in(PASSWORD) == 200

        done("user", "disable", "ada@example.com")
        assert client.get("/api/keys").status_code == 401
        assert signs_in(PASSWORD) == 401
        done("user", "enable", "ada@example.com")
        assert client.get("/api/keys").status_code == 200

        done("user", "passwd", "ada@example.com", stdin=f"another {PASSWORD}")
        assert signs_in(PASSWORD) == 401
        assert signs_in(f"another {PASSWORD}") == 200

        done("token", "revoke", "1")
        assert client.get("/api/keys").status_code == 401
        trail = [entry["action"] for entry in _audit(given, service.url)]
    assert trail == [
        "token.create",
        "token.revoke",
        "account.login",
        "account.password",
        "account.enable",
        "account.login-failed",  # the first of two in the window
        "account.disable",
        "account.login",
        "token.create",
        "account.signup",
    ]


def _audit(env: dict[str, str], url: str) -> list[dict[str, str]]:
    arguments = ("token", "create", "--user", "ada@example.com", "--name", "audit", "--scope", "audit:read")
    made = keyman(*arguments, env=env)
    entries: list[dict[str, str]] = script(url, made.out.strip()).get("/api/audit").json()
    return entries
