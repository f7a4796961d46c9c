"""Both planes as an operator runs them: processes of their own, each with its own role."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import URL

from keyman import migrations
from tests.cli.transcript import keyman
from tests.support.cli import Live, live, serve, variables
from tests.support.http import free_port, script, sign_up
from tests.support.planes import Vault
from tests.support.vault import DisposableVault, disposable_vault_at
from tests.support.waiting import until

VALUE = "sk-hq2v9mXbT0c7eUKwN4Rd1234"


@pytest.fixture(scope="module")
def resolver_vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DisposableVault]:
    with disposable_vault_at(tmp_path_factory.mktemp("victim")) as made:
        yield made


@pytest.fixture
def resolver_database(tmp_path: Path) -> URL:
    made = URL.create("sqlite+aiosqlite", database=str(tmp_path / "keyman.db"))
    asyncio.run(migrations.upgrade(made))
    return made


def registered(env: dict[str, str]) -> str:
    made = keyman("app", "create", "chat", "--service", "OPENAI", env=env)
    assert made.code == 0, made.err
    return made.out.strip()


def trail(env: dict[str, str], owner: httpx.Client) -> list[tuple[str, str | None]]:
    entries = owner.get("/api/audit").json()
    return [(entry["action"], entry["reason"]) for entry in entries if entry["actor"] == "application"]


@pytest.mark.slow  # tests/dev/test_run.py shows the same of `keyman dev`, and test_release.py in one process
def test_a_key_goes_in_by_one_process_and_comes_out_by_the_other(
    provisioned: Vault, resolver_database: URL, tmp_path: Path
) -> None:
    first, second = (
        variables(provisioned.settings, resolver_database),
        variables(provisioned.resolver, resolver_database),
    )
    with (
        serve(first, tmp_path / "management") as management,
        serve(second, tmp_path / "resolver", "--plane", "resolver") as resolver,
    ):
        ada = sign_up(management.url, "ada@example.com")
        key = ada.post("/api/keys", json={"service": "OPENAI", "api_key": VALUE}).json()
        application = script(resolver.url, registered(first))
        answer = application.post("/v1/resolve", json={"user_id": 1, "service": "OPENAI"})
        assert (answer.status_code, answer.json()["api_key"]) == (200, VALUE)
        until(lambda: ada.get(f"/api/keys/{key['id']}").json()["last_used_by"] == "chat", "the last use")
        assert resolver.metrics().count("keyman_http_request_seconds_count") > 0
        ended = resolver.live.end()
        assert (ended.code, ended.out) == (0, "")
        for word in (VALUE, "vault:"):
            assert word not in ended.err
        assert {line["event"] for line in resolver.log()} >= {"request", "logged in to vault"}


@pytest.mark.slow
def test_a_resolver_with_the_role_of_management_is_not_ready_and_opens_nothing(
    provisioned: Vault, resolver_database: URL, tmp_path: Path
) -> None:
    env = variables(provisioned.settings, resolver_database)
    with serve(env, tmp_path / "management") as management:
        ada = sign_up(management.url, "ada@example.com")
        key = ada.post("/api/keys", json={"service": "OPENAI", "api_key": VALUE}).json()
    with serve(env, tmp_path / "wrong", "--plane", "resolver", ready=False) as resolver:
        until(lambda: resolver.readiness() is not None, "an answer")
        readiness = resolver.readiness()
        assert readiness is not None
        assert readiness["checks"]["vault"] == "forbidden"
        answer = script(resolver.url, registered(env)).post("/v1/resolve", json={"key_id": key["id"]})
        assert answer.status_code == 503
        assert VALUE not in answer.text + resolver.live.err


@pytest.mark.slow
def test_a_resolver_that_is_killed_during_a_vault_call_has_recorded_the_resolve(
    resolver_vault: DisposableVault, resolver_database: URL, tmp_path: Path
) -> None:
    resolver_settings = asyncio.run(resolver_vault.provisioned("keyman-resolver"))
    first, second = (
        variables(resolver_vault.settings, resolver_database),
        variables(resolver_settings, resolver_database),
    )
    with (
        serve(first, tmp_path / "management") as management,
        serve(second, tmp_path / "resolver", "--plane", "resolver") as resolver,
    ):
        ada = sign_up(management.url, "ada@example.com")
        key = ada.post("/api/keys", json={"service": "OPENAI", "api_key": VALUE}).json()
        application = script(resolver.url, registered(first))
        body = {"key_id": key["id"]}
        assert application.post("/v1/resolve", json=body).status_code == 200
        resolver_vault.freeze()
        answers: list[object] = []

        def ask() -> None:
            try:
                answers.append(application.post("/v1/resolve", json=body))
            except httpx.TransportError as fault:
                answers.append(type(fault))

        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: len(trail(first, ada)) == 2, "the entry")
        (worker,) = resolver.workers
        os.kill(worker, signal.SIGKILL)
        asking.join()
        assert not isinstance(answers[0], httpx.Response)
        assert trail(first, ada) == [("key.resolve", None)] * 2
        resolver_vault.thaw()
        until(resolver.is_ready, "a new worker")
        assert application.post("/v1/resolve", json=body).json()["api_key"] == VALUE


def test_what_a_resolver_does_not_need_is_not_missed_and_what_is_open_is_warned_of(
    provisioned: Vault, resolver_database: URL, tmp_path: Path
) -> None:
    env = {**variables(provisioned.resolver, resolver_database), "TMPDIR": str(tmp_path)}
    command = ("serve", "--plane", "resolver", "--host", "0.0.0.0", "--port", str(free_port()))  # noqa: S104  # for the warning
    with live(*command, env=env, directory=tmp_path / "output", mark=tmp_path) as running:
        assert isinstance(running, Live)
        running.says("the resolver returns keys")
        assert "KEYMAN_PUBLIC_URL" not in running.err
