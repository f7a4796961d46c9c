"""`keyman dev`: all of keyman on one machine, with every way to start and end it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from keyman.dev.home import Home
from tests.cli.transcript import keyman
from tests.support import needs
from tests.support.cli import (
    ANOTHER_KEYMAN,
    DEVELOPMENT_MARK,
    Live,
    another_keyman,
    core_limits,
    dev,
    dev_parts,
    environment,
    environments_below,
    processes,
    run_keyman,
    settings_of,
)
from tests.support.database import keys_of_home
from tests.support.http import NO_TLS, free_port, is_free, script, sign_up
from tests.support.needs import quick
from tests.support.vault import RootClient
from tests.support.waiting import until

VALUE = "sk-hq2v9mXbT0c7eUKwN4Rd1234"
OTHER_VALUE = "sk-Zt81LqoPw5aYc3hVn6Xe9876"

ODD_NAME = "Küche & 100% #1? a=b"
"""A directory's name that breaks what is put together carelessly: URLs, settings files, command lines."""


class Fresh(NamedTuple):
    """A `keyman dev` that was started where there was nothing."""

    home: Path
    port: int
    live: Live

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fresh]:
    """Shared by tests that harm nothing. Started by somebody whose files are open to everybody, without a HOME, and in
    a directory with another package of the same name.
    """
    home, port = tmp_path_factory.mktemp("fresh") / ODD_NAME / "keyman", free_port()
    env = environment()
    del env["HOME"]
    with dev(home, port, env=env, umask=0, cwd=another_keyman(home.parent)) as running:
        yield Fresh(home, port, running)
    shutil.rmtree(home)


class Template(NamedTuple):
    """A home that was used and ended by Ctrl-C, and what is in it."""

    home: Path
    token: str
    keys: list[dict[str, object]]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Template]:
    home, port = tmp_path_factory.mktemp("template") / "home", free_port()
    with dev(home, port) as running:
        ada = sign_up(f"http://127.0.0.1:{port}", "ada@example.com")
        token = ada.post("/api/tokens", json={"name": "laptop"}).json()["token"]
        for value in (VALUE, OTHER_VALUE):
            assert ada.post("/api/keys", json={"service": "OPENAI", "api_key": value}).status_code == 201
        keys = ada.get("/api/keys").json()
        running.send_group(signal.SIGINT)
        assert running.wait().code == 0
    yield Template(home, token, keys)
    shutil.rmtree(home)


class Used(NamedTuple):
    """A home of the test's own that has seen keys, and the port to use it on."""

    home: Path
    port: int
    token: str
    keys: list[dict[str, object]]

    @contextmanager
    def started(self) -> Iterator[Live]:
        with dev(self.home, self.port) as running:
            yield running

    def client(self) -> httpx.Client:
        return script(f"http://127.0.0.1:{self.port}", self.token)

    def is_whole(self) -> None:
        """Every key is there and opens, and another one can be stored."""
        client = self.client()
        listed = client.get("/api/keys").json()
        assert listed[-len(self.keys) :] == self.keys
        root = RootClient.of_home(self.home)
        rows = [keys_of_home(self.home)[key["id"]] for key in listed]
        opened = [root.opens(row.ciphertext, row.context) for row in rows]
        assert opened[-2:] == [OTHER_VALUE, VALUE]
        assert None not in opened
        stored = client.post("/api/keys", json={"service": "OPENAI", "api_key": VALUE})
        assert stored.status_code == 201

    def is_at_rest(self) -> None:
        """No process is left, and the ports are free."""
        until(lambda: not processes(self.home), f"the end of {processes(self.home)}")
        until(lambda: all(is_free(self.port + number) for number in range(3)), "free ports")


@pytest.fixture
def used(template: Template, tmp_path: Path) -> Iterator[Used]:
    home = tmp_path / "home"
    shutil.copytree(template.home, home)
    yield Used(home, free_port(), template.token, template.keys)
    shutil.rmtree(home)


@pytest.fixture
def nothing(tmp_path: Path) -> Iterator[Path]:
    """A home that is not there yet."""
    home = tmp_path / "home"
    yield home
    shutil.rmtree(home, ignore_errors=True)


def test_a_first_start_prints_where_everything_is_and_that_it_is_for_development(fresh: Fresh) -> None:
    banner = fresh.live.err
    assert "for development" in banner
    resolver = f"http://127.0.0.1:{fresh.port + 1}/v1/resolve"
    for address in (f"{fresh.url}/api", f"{fresh.url}/docs", f"{fresh.url}/readyz", resolver):
        assert address in banner
    assert settings_of(fresh.home)["KEYMAN_VAULT_ADDR"] in banner
    assert str(fresh.home) in banner
    assert fresh.live.out == ""
    before, _, after = banner.partition("\n  keyman for development")
    assert before == ""
    assert after.partition(DEVELOPMENT_MARK)[2].count("/readyz") == 0
    assert httpx.get(f"{fresh.url}/docs", verify=NO_TLS).status_code == 200


def test_each_plane_shows_its_metrics_on_its_own_port(fresh: Fresh) -> None:
    for plane in range(3):
        answer = httpx.get(f"http://127.0.0.1:{fresh.port + plane}/metrics", verify=NO_TLS)
        assert (answer.status_code, 'route="/readyz"' in answer.text) == (200, True)
    assert "KEYMAN_METRICS_LISTEN=off" in (fresh.home / "gateway.env").read_text().splitlines()


def test_what_lies_in_the_current_directory_is_never_run(fresh: Fresh) -> None:
    parts = dev_parts(fresh.live)
    for part in (parts.supervisor, parts.service, parts.worker, parts.resolver):
        assert (Path(f"/proc/{part}/cwd") / "keyman" / "__init__.py").read_text() == ANOTHER_KEYMAN
    assert httpx.get(f"{fresh.url}/readyz", verify=NO_TLS).status_code == 200


def test_no_process_of_keyman_dev_has_a_secret_in_its_environment(fresh: Fresh) -> None:
    dev_parts(fresh.live)
    environments = environments_below(fresh.live.pid)
    assert len(environments) >= 5
    for name in ("settings.env", "resolver.env", "gateway.env"):
        lines = (fresh.home / name).read_text().splitlines()
        (secret,) = (line.partition("=")[2] for line in lines if line.startswith("KEYMAN_VAULT_SECRET_ID="))
        for environment_of_child in environments.values():
            assert secret.encode() not in environment_of_child
            assert b"\0KEYMAN_" not in b"\0" + environment_of_child


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's /proc")
def test_the_vault_of_keyman_dev_leaves_no_dump(fresh: Fresh) -> None:
    for pid in dev_parts(fresh.live):
        assert core_limits(pid) == ["0", "0"]


def test_ctrl_c_waits_for_no_load_balancer(fresh: Fresh) -> None:
    for name in ("settings.env", "resolver.env"):
        assert "KEYMAN_DRAIN=0" in (fresh.home / name).read_text().splitlines()


def test_only_its_owner_can_look_into_a_home(fresh: Fresh) -> None:
    for directory in (fresh.home, fresh.home / "vault"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    private = ["keyman.db", "settings.env", "resolver.env", "gateway.env", "gateway-token", "lock"]
    private += ["vault/keys.json", "vault/server.log"]
    modes = {name: stat.S_IMODE((fresh.home / name).stat().st_mode) for name in private}
    assert modes == dict.fromkeys(private, 0o600)
    for path in fresh.home.glob("keyman.db-*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_keyman_is_logged_in_with_its_role_and_the_root_token_is_nowhere_near_it(fresh: Fresh) -> None:
    root = RootClient.of_home(fresh.home)
    token = root.ask("GET", "auth/token/lookup-self")["id"]
    service = dev_parts(fresh.live).service
    assert token.encode() not in Path(f"/proc/{service}/environ").read_bytes()
    assert token not in (fresh.home / "settings.env").read_text()
    # Every token there is: the root's, and one that the AppRole login gave.
    accessors = root.ask("LIST", "auth/token/accessors")["keys"]
    found = [root.ask("POST", "auth/token/lookup-accessor", {"accessor": accessor}) for accessor in accessors]
    roles = [(data["path"], data["policies"]) for data in found if data["policies"] != ["root"]]
    assert sorted(roles) == [
        ("auth/approle/login", [f"keyman-{plane}"]) for plane in ("gateway", "management", "resolver")
    ]
    # And it is that one which works: without its policy it can do nothing.
    policy = root.ask("GET", "sys/policies/acl/keyman-management")["policy"]
    root.ask(
        "PUT",
        "sys/policies/acl/keyman-management",
        {"policy": 'path "auth/token/lookup-self" { capabilities = ["read"] }'},
    )
    try:
        until(
            lambda: httpx.get(f"{fresh.url}/readyz", verify=NO_TLS).json()["checks"]["vault"] == "forbidden",
            "a refusal",
        )
    finally:
        root.ask("PUT", "sys/policies/acl/keyman-management", {"policy": policy})
    until(lambda: httpx.get(f"{fresh.url}/readyz", verify=NO_TLS).status_code == 200, "readiness")


def test_a_key_is_stored_listed_replaced_and_deleted_and_opens_only_under_its_own_context(fresh: Fresh) -> None:
    root = RootClient.of_home(fresh.home)
    ada = sign_up(fresh.url, "ada@example.com")
    token = ada.post("/api/tokens", json={"name": "curl"}).json()["token"]
    client = script(fresh.url, token)

    created = client.post("/api/keys", json={"service": "OPENAI", "api_key": VALUE, "name": "chat"})
    assert created.status_code == 201
    key = created.json()
    assert (key["last_4_chars"], key["status"]) == ("sk-...1234", "active")
    assert client.get("/api/keys").json() == [key]
    first = keys_of_home(fresh.home)[key["id"]]
    assert root.opens(first.ciphertext, first.context) == VALUE
    parts = first.context.split("|")
    for place in range(len(parts)):
        wrong = [*parts[:place], "0" if parts[place] != "0" else "1", *parts[place + 1 :]]
        assert root.opens(first.ciphertext, "|".join(wrong)) is None

    replaced = client.put(f"/api/keys/{key['id']}", json={"api_key": OTHER_VALUE})
    assert (replaced.status_code, replaced.json()["last_4_chars"]) == (200, "sk-...9876")
    second = keys_of_home(fresh.home)[key["id"]]
    assert root.opens(second.ciphertext, second.context) == OTHER_VALUE
    assert root.opens(first.ciphertext, second.context) is None  # the old value does not come back

    assert client.delete(f"/api/keys/{key['id']}").status_code == 204
    assert client.get("/api/keys").json() == []
    assert key["id"] not in keys_of_home(fresh.home)


def test_operators_commands_work_on_a_home_that_is_in_use(fresh: Fresh) -> None:
    added = keyman("user", "add", "op@example.com", "--home", fresh.home, stdin="a password for ops\n")
    assert added.code == 0, added.err
    created = keyman("token", "create", "--home", fresh.home, "--user", "op@example.com", "--name", "ci")
    assert created.code == 0
    assert script(fresh.url, created.out.strip()).get("/api/keys").json() == []
    assert keyman("db", "check", "--home", fresh.home).code == 0


def test_one_home_is_not_used_twice(fresh: Fresh) -> None:
    second = run_keyman("dev", "--home", fresh.home, "--port", str(free_port()))
    assert (second.code, second.out) == (1, "")
    assert second.err.count("\n") == 1
    assert "already runs" in second.err
    assert str(fresh.home) in second.err
    assert httpx.get(f"{fresh.url}/readyz", verify=NO_TLS).status_code == 200  # the first one took no harm


def test_a_plane_does_not_hold_what_the_other_logs_in_with(fresh: Fresh) -> None:
    parts = dev_parts(fresh.live)
    files = {"service": "settings.env", "resolver": "resolver.env", "gateway": "gateway.env"}
    secrets = {
        name: dict(line.split("=", 1) for line in (fresh.home / file).read_text().splitlines() if "=" in line)
        for name, file in files.items()
    }
    for name, other in permutations(files, 2):
        environ = Path(f"/proc/{getattr(parts, name)}/environ").read_bytes()
        for variable in ("KEYMAN_VAULT_ROLE_ID", "KEYMAN_VAULT_SECRET_ID"):
            for login in (name, other):  # its own comes through a pipe
                assert secrets[login][variable].encode() not in environ
            assert secrets[other][variable] not in (fresh.home / files[name]).read_text()


def test_only_the_management_plane_has_the_token_for_live_checks_and_it_is_taken(fresh: Fresh) -> None:
    home, file = Home(fresh.home), fresh.home / "gateway-token"
    token = file.read_text().strip()
    assert token.startswith("km_")
    wanted = {"KEYMAN_GATEWAY_URL": f"http://127.0.0.1:{fresh.port + 2}", "KEYMAN_GATEWAY_TOKEN_FILE": str(file)}
    assert wanted.items() <= home.settings().items()
    for others in (home.resolver_settings(), home.gateway_settings()):
        assert not [name for name in others if name.startswith(("KEYMAN_GATEWAY_URL", "KEYMAN_GATEWAY_TOKEN"))]
    for name in ("settings.env", "resolver.env", "gateway.env"):
        assert token not in (fresh.home / name).read_text()
    found = run_keyman("doctor", "--home", fresh.home, "--json")
    (check,) = [one for one in json.loads(found.out) if one["check"] == "live-checks"]
    assert check["state"] == "ok", check


def test_an_application_that_is_registered_gets_back_what_a_user_has_left(fresh: Fresh) -> None:
    grace = sign_up(fresh.url, "grace@example.com")
    key = grace.post("/api/keys", json={"service": "OPENAI", "api_key": OTHER_VALUE}).json()
    created = keyman("app", "create", "chat-backend", "--service", "OPENAI", "--home", fresh.home)
    assert created.code == 0, created.err
    application = script(f"http://127.0.0.1:{fresh.port + 1}", created.out.strip())
    answer = application.post("/v1/resolve", json={"key_id": key["id"]})
    assert (answer.status_code, answer.json()["api_key"]) == (200, OTHER_VALUE)
    # Neither plane takes what the other one's callers show, and neither has the other's routes.
    assert script(fresh.url, created.out.strip()).get("/api/keys").status_code == 401
    assert grace.post("/v1/resolve", json={"key_id": key["id"]}).status_code == 404
    token = grace.post("/api/tokens", json={"name": "curl"}).json()["token"]
    refused = script(f"http://127.0.0.1:{fresh.port + 1}", token).post("/v1/resolve", json={"key_id": key["id"]})
    assert refused.status_code == 401
    assert application.get("/api/keys").status_code == 404


def test_a_file_of_the_vault_that_is_a_link_is_said_in_one_sentence(nothing: Path, tmp_path: Path) -> None:
    (nothing / "vault").mkdir(parents=True, mode=0o700)
    (nothing / "vault" / "server.log").symlink_to(tmp_path / "elsewhere")
    refused = run_keyman("dev", "--home", nothing, "--port", str(free_port()))
    assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
    assert "symbolic link" in refused.err
    assert not (tmp_path / "elsewhere").exists()


@pytest.fixture
def ignoring_hangups() -> Iterator[None]:
    """What this test starts ignores SIGHUP, as under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.usefixtures("ignoring_hangups")
def test_the_planes_take_their_variables_and_a_hangup_that_is_ignored_ends_nothing(nothing: Path) -> None:
    env = environment(
        KEYMAN_ROOT_PATH="/keyman",
        KEYMAN_CORS_ORIGINS="https://chat.example.com",
        KEYMAN_SIGNUP="closed",
        KEYMAN_RESOLVE_RATE="7",
        KEYMAN_VAULT_ADDR="http://c4n4ry",
        KEYMAN_DATABASE_URL="c4n4ry",
    )
    port = free_port()
    url = f"http://127.0.0.1:{port}/keyman"
    with dev(nothing, port, env=env) as running:
        assert f"{url}/docs" in running.err
        assert "ignores KEYMAN_DATABASE_URL, KEYMAN_VAULT_ADDR." in running.err
        assert "c4n4ry" not in running.err
        asked = {"Origin": "https://chat.example.com", "Access-Control-Request-Method": "GET"}
        preflight = httpx.options(f"{url}/api/keys", headers=asked, verify=NO_TLS)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, asked["Origin"])
        person = {"email": "ada@example.com", "password": "correct horse battery staple"}
        assert httpx.post(f"{url}/api/auth/signup", json=person, verify=NO_TLS).status_code == 403
        assert "KEYMAN_RESOLVE_RATE" not in settings_of(nothing)
        resolver = (nothing / "resolver.env").read_text()
        assert "KEYMAN_RESOLVE_RATE=7" in resolver
        assert "KEYMAN_SIGNUP" not in resolver
        running.send(signal.SIGHUP)
        assert keyman("user", "list", "--home", nothing).code == 0
        assert httpx.get(f"http://127.0.0.1:{port}/readyz", verify=NO_TLS).status_code == 200
        assert running.end().code == 0


@pytest.mark.parametrize("place", [0, 1], ids=["service", "resolver"])
def test_a_port_in_use_is_said_in_one_sentence(nothing: Path, place: int) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port + place)):
        refused = run_keyman("dev", "--home", nothing, "--port", str(port))
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.count("\n") == 1
    assert f"Port {port + place} on 127.0.0.1 is in use" in refused.err
    assert "make dev PORT=9000" in refused.err
    assert "--port" in refused.err
    assert not processes(nothing)


@pytest.fixture(scope="module")
def travelled(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Used]:
    """A home that is started and ended again and again: whatever one end has broken, the next start finds.

    The last end is looked at here. A run without the slow tests has only one end, after which nothing is left to look
    at: the template has ended in the same way.
    """
    home = tmp_path_factory.mktemp("travelled") / "home"
    shutil.copytree(template.home, home)
    used = Used(home, free_port(), template.token, template.keys)
    yield used
    if needs.are_slow_wanted():
        with used.started():
            used.is_whole()
    shutil.rmtree(home)


def _interrupt_group(running: Live) -> None:
    running.send_group(signal.SIGINT)


def _to_supervisor(number: signal.Signals) -> Callable[[Live], None]:
    return lambda running: running.send(number)


def _twice(running: Live) -> None:
    running.send_group(signal.SIGINT)
    time.sleep(random.uniform(0, 0.3))  # noqa: S311  # any moment will do
    running.send_group(signal.SIGINT)
    running.send(signal.SIGTERM)


@pytest.mark.parametrize(
    "ask",
    quick([_interrupt_group], [_to_supervisor(signal.SIGTERM), _to_supervisor(signal.SIGHUP), _twice]),
    ids=["ctrl-c", "sigterm", "sighup", "twice"],
)
def test_a_stop_leaves_all_data_and_nothing_else(travelled: Used, ask: Callable[[Live], None]) -> None:
    with travelled.started() as running:
        travelled.is_whole()
        ask(running)
        ended = running.wait()
        assert ended.code == 0
        assert ended.err.rstrip().endswith("Stopped.")
        assert "Traceback" not in ended.err
        travelled.is_at_rest()  # multiprocessing's helpers notice the end of their parents a moment later
        assert not list(running.directory.glob("keyman-metrics-*"))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["supervisor", "vault", "service", "resolver", "gateway"])
def test_a_part_that_is_killed_takes_the_others_with_it_and_no_data(travelled: Used, part: str) -> None:
    with travelled.started() as running:
        travelled.is_whole()
        victim = getattr(dev_parts(running), part)
        os.kill(victim, signal.SIGKILL)
        ended = running.wait()
        travelled.is_at_rest()
        if part != "supervisor":
            assert ended.code == 1
            names = {
                "vault": "The embedded Vault",
                "service": "The management plane",
                "resolver": "The resolver",
                "gateway": "The gateway",
            }
            assert names[part] in ended.err.splitlines()[-1]
            assert "Traceback" not in ended.err


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(used: Used) -> None:
    with used.started() as running:
        parts = dev_parts(running)
        os.kill(parts.worker, signal.SIGKILL)
        until(lambda: parts.worker not in processes(used.home), "the worker's end")
        until(lambda: _status(used.port) == 200, "a new worker")
        used.is_whole()
        assert running.end().code == 0
        used.is_at_rest()


def _status(port: int) -> int | None:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", verify=NO_TLS).status_code
    except httpx.TransportError:
        return None


def _exists(name: str, pause: float = 0.0) -> Callable[[Path, Live], None]:
    def arrives(home: Path, _running: Live) -> None:
        until((home / name).exists, name)
        time.sleep(pause)

    return arrives


def _process(word: str, count: int = 1) -> Callable[[Path, Live], None]:
    def arrives(home: Path, _running: Live) -> None:
        until(lambda: sum(word in command for command in processes(home).values()) >= count, word)

    return arrives


def _service_process(pause: float) -> Callable[[Path, Live], None]:
    def arrives(home: Path, _running: Live) -> None:
        _process("spawn_main")(home, _running)  # the worker, beside the main one
        time.sleep(pause)

    return arrives


MOMENTS = {
    "the home is made": _exists("lock"),
    "vault is configured": _exists("vault/config.json"),
    "vault elects itself": _exists("vault/raft/raft/raft.db", 0.5),
    "vault is set up": _exists("vault/keys.json", 0.2),
    "the database is made": _exists("keyman.db"),
    "the service starts": _process(" serve "),
    "its worker loads": _service_process(0.3),
}
"""Moments of the very first start, in their order."""

KILLED = ["the home is made", "vault is set up", "the database is made", "its worker loads"]
"""Those before which something new was stored. Vault's own moments in between are in test_embedded.py."""


@pytest.mark.slow
@pytest.mark.parametrize("moment", KILLED)
def test_a_first_start_that_is_killed_leaves_nothing_running_and_the_next_one_works(nothing: Path, moment: str) -> None:
    port = free_port()
    with dev(nothing, port, ready=False) as running:
        MOMENTS[moment](nothing, running)
        running.send(signal.SIGKILL)
        running.wait()
        until(lambda: not processes(nothing), f"the end of {processes(nothing)}")
    with dev(nothing, port):
        ada = sign_up(f"http://127.0.0.1:{port}", "ada@example.com")
        assert ada.post("/api/keys", json={"service": "OPENAI", "api_key": VALUE}).status_code == 201


@pytest.mark.parametrize(
    "moment", quick(["the database is made"], ["the home is made", "vault elects itself", "its worker loads"])
)
def test_ctrl_c_during_the_first_start_stops_all_of_it(nothing: Path, moment: str) -> None:
    with dev(nothing, free_port(), ready=False) as running:
        MOMENTS[moment](nothing, running)
        running.send_group(signal.SIGINT)
        ended = running.wait()
        until(lambda: not processes(nothing), f"the end of {processes(nothing)}")
        assert "Traceback" not in ended.err
        assert ended.err.rstrip().endswith("Stopped.")
        assert ended.code == 0


def test_the_service_killed_while_it_starts_leaves_no_worker(used: Used) -> None:
    with dev(used.home, used.port, ready=False) as running:
        parts = dev_parts(running)  # the worker has just been forked
        os.kill(parts.service, signal.SIGKILL)
        ended = running.wait()
        assert ended.code == 1
        used.is_at_rest()


def test_lost_keys_of_the_vault_are_said_and_nothing_is_overwritten(used: Used) -> None:
    (used.home / "vault" / "keys.json").unlink()
    before = (used.home / "keyman.db").read_bytes()
    refused = run_keyman("dev", "--home", used.home, "--port", str(used.port))
    assert (refused.code, refused.out) == (1, "")
    assert "keys.json is missing" in refused.err
    assert f"remove {used.home}" in refused.err
    assert refused.err.count("\n") == 1
    assert (used.home / "keyman.db").read_bytes() == before
    assert (used.home / "vault" / "raft").is_dir()
    assert not processes(used.home)


def test_a_home_that_cannot_be_made_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = run_keyman("dev", "--home", tmp_path / "file" / "home")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.count("\n") == 1
    assert "--home" in refused.err
