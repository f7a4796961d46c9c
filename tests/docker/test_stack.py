"""The whole stack in use: real containers, networks and volumes, through the proxy's TLS.

It is one test, because there is one stack and each part needs the parts before it. The parts are reported as subtests.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.docker import streams
from tests.docker.stack import Stack, browser, eventually, running_stack, stack_absence
from tests.support.needs import require

PASSWORD = f"a password of this run {uuid4().hex}"
KEEPERS = (
    "database-1",
    "vault-1",
    "vault-unseal-1",
    "resolver-1",
    "management-1",
    "management-2",
    "gateway-1",
    "proxy-1",
    "resolver-proxy-1",
    "gateway-proxy-1",
)
PLANES = ("management", "resolver", "gateway")
"""The services that have to come back by themselves, in the order in which they are killed."""


def new_value() -> str:
    return f"sk-{uuid4().hex}{uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    require("docker", stack_absence())
    with running_stack(tmp_path_factory.mktemp("provider")) as running:
        yield running


def test_the_stack_keeps_its_promises(stack: Stack, tmp_path: Path, subtests: pytest.Subtests) -> None:
    with browser(stack, tmp_path) as client:
        life = Life(stack, client, tmp_path / "ca.crt")
        eventually(lambda: client.get("/readyz").status_code == 200, "the proxy leads to a plane that is ready")
        asyncio.run(streams.ready(stack.streams(life.certificate, "", 0)))
        life.sign_up()
        for part in PARTS:
            with subtests.test(msg=part.__name__.replace("_", " ")):
                part(life)


class Life:
    """A user and an application of the stack, and what they know."""

    def __init__(self, stack: Stack, client: httpx.Client, certificate: Path) -> None:
        self.stack = stack
        self.client = client
        self.certificate = certificate
        self.seen: list[str] = [PASSWORD]  # what must be in no log
        self.user_id = 0
        self.token = ""
        self.application = ""

    def sign_up(self) -> None:
        email = f"ada-{uuid4().hex}@example.com"
        answer = self.client.post("/api/auth/signup", json={"email": email, "password": PASSWORD})
        assert answer.status_code == 201, answer.text
        self.user_id = answer.json()["id"]
        answer = self.client.post("/api/tokens", json={"name": "laptop"})
        assert answer.status_code == 201, answer.text
        self.token = answer.json()["token"]
        self.client.cookies.clear()
        self.client.headers["Authorization"] = f"Bearer {self.token}"
        self.application = self.stack.operator("app", "create", "chat-backend", "--service", "OPENAI").split()[-1]
        self.seen += [self.token, self.application]

    def store(self) -> tuple[int, str]:
        """A new key: its id and its value."""
        value = new_value()
        self.seen.append(value)
        answer = self.client.post("/api/keys", json={"service": "OPENAI", "api_key": value, "name": "chat"})
        assert answer.status_code == 201, answer.text
        assert answer.json()["last_4_chars"] == f"sk-...{value[-4:]}"
        return answer.json()["id"], value

    def listed(self) -> list[int]:
        answer = self.client.get("/api/keys")
        assert answer.status_code == 200, answer.text
        return [key["id"] for key in answer.json()]

    def resolve(self, key_id: int) -> str:
        """The value, as an application gets it from the resolver over its own network."""
        code = f"""
import json, urllib.request
asked = urllib.request.Request(
    "http://resolver:8000/v1/resolve",
    json.dumps({{"key_id": {key_id}, "purpose": "a test"}}).encode(),
    {{"Authorization": "Bearer {self.application}", "Content-Type": "application/json"}},
)
print(json.load(urllib.request.urlopen(asked, timeout=20))["api_key"])
"""
        return self.stack.application(code)

    def streams(self, token: str = "") -> streams.Scene:
        return self.stack.streams(self.certificate, token or self.application, self.user_id)

    def whole_story(self) -> None:
        """Store, list, resolve, use, replace, delete: what a user and an application do."""
        key_id, value = self.store()
        assert key_id in self.listed()
        assert self.resolve(key_id) == value
        asyncio.run(streams.events_arrive_in_order(self.streams()))
        other = new_value()
        self.seen.append(other)
        answer = self.client.put(f"/api/keys/{key_id}", json={"api_key": other})
        assert answer.status_code == 200, answer.text
        assert self.resolve(key_id) == other
        assert self.client.delete(f"/api/keys/{key_id}").status_code == 204
        assert key_id not in self.listed()


def a_user_stores_lists_replaces_and_deletes_a_key_and_an_application_resolves_it(life: Life) -> None:
    life.whole_story()


def the_doctor_finds_nothing_wrong(life: Life) -> None:
    """As each plane, with its own login: each key opens, no policy allows too little or too much."""
    life.store()
    for service in PLANES:
        code = f"""
import subprocess, sys
done = subprocess.run(
    [sys.executable, "-m", "keyman", "doctor", "--role", "{service}", "--json"], capture_output=True, text=True
)
print(done.stdout)
"""
        findings = json.loads(life.stack.python(service, code))
        assert len(findings) == 25
        # Sign-up is open in a stack that is tried out, and so is nothing else. Only Prometheus is on the networks that
        # lead to the metrics, which doctor cannot see. Core dumps are the machine's matter.
        wrong = {one["check"]: one for one in findings if one["state"] not in ("ok", "skipped")}
        assert wrong.keys() <= {"sign-up", "public-url", "metrics", "core-dumps"}, wrong
        assert not [one for one in wrong.values() if one["state"] == "failed"], wrong


def the_pages_are_there(life: Life) -> None:
    answer = life.client.get("/", follow_redirects=True)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "strict-transport-security" in answer.headers


def the_certificate_is_the_stacks_own_and_no_other_is_trusted(life: Life) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"), httpx.Client() as stranger:
        stranger.get(life.stack.address)


def the_proxy_leads_to_no_metrics_and_to_no_resolver(life: Life) -> None:
    assert life.client.get("/metrics").status_code == 404
    assert life.client.post("/v1/resolve", json={"key_id": 1}).status_code == 404
    published = {
        name: container["NetworkSettings"]["Ports"]
        for name, container in life.stack.containers().items()
        if any((container["NetworkSettings"]["Ports"] or {}).values())
    }
    assert published.keys() == {"proxy-1", "gateway-proxy-1", "prometheus-1"}


def inner_containers_reach_only_who_they_have_to_do_with(life: Life) -> None:
    """By name and by address: a name that is not known hides nothing from somebody who guesses addresses."""
    containers = life.stack.containers()
    addresses = {
        (name, network.removeprefix(f"{life.stack.project}_")): (end["IPAddress"], port)
        for name, port in (
            ("resolver-proxy-1", 8000),
            ("resolver-1", 8000),
            ("gateway-proxy-1", 8000),
            ("gateway-1", 8000),
            ("vault-1", 8200),
            ("database-1", 5432),
            ("management-1", 8000),
        )
        for network, end in containers[name]["NetworkSettings"]["Networks"].items()
    }
    code = f"""
import socket
from concurrent.futures import ThreadPoolExecutor

def reached(target):
    name, (address, port) = target
    try:
        socket.create_connection((address, port), timeout=3).close()
    except OSError:
        return None
    return name

def known(name):
    try:
        socket.gethostbyname(name)
    except OSError:
        return None
    return "name", name

with ThreadPoolExecutor(64) as pool:
    names = pool.map(known, ("resolver", "gateway", "vault", "database", "management", "proxy"))
    for found in filter(None, [*pool.map(reached, {addresses!r}.items()), *names]):
        print(*found)
"""
    assert set(life.stack.application(code).splitlines()) == {
        *("resolver-proxy-1 applications", "gateway-proxy-1 applications"),
        *("name resolver", "name gateway"),
    }
    assert set(life.stack.python("management", code, index=2).splitlines()) == {
        "vault-1 vault-management",
        "database-1 database-management",
        *(f"management-1 {network}" for network in OF_MANAGEMENT),
        *(f"name {name}" for name in ("vault", "database", "management", "proxy")),
    }
    assert set(life.stack.python("resolver", code).splitlines()) == {
        "vault-1 vault-resolver",
        "database-1 database-resolver",
        *(f"resolver-1 {network}" for network in OF_RESOLVER),
        "resolver-proxy-1 resolver-proxy",
        *(f"name {name}" for name in ("vault", "database", "resolver")),
    }
    # An engine without a packet filter, as in CI, leads from one network with a way to the machine to the other.
    assert set(life.stack.python("gateway", code).splitlines()) - {"gateway-proxy-1 outside"} == {
        "vault-1 vault-gateway",
        "database-1 database-gateway",
        *(f"gateway-1 {network}" for network in OF_GATEWAY),
        "gateway-proxy-1 gateway-proxy",
        *(f"name {name}" for name in ("vault", "database", "gateway")),
    }


OF_MANAGEMENT = ("proxy", "vault-management", "database-management", "metrics-management")
OF_RESOLVER = ("resolver-proxy", "vault-resolver", "database-resolver", "metrics-resolver")
OF_GATEWAY = ("gateway-proxy", "providers", "vault-gateway", "database-gateway", "metrics-gateway")


def only_the_gateway_reaches_anything_outside(life: Life) -> None:
    """A port of this machine, which belongs to no network of the stack: what waits there is reached, or not."""
    scene = life.streams()
    code = f"""
import socket
try:
    socket.create_connection(("{scene.provider_host}", {scene.provider_port}), timeout=1.5)
except OSError:
    print("no")
else:
    print("yes")
"""
    with socket.create_server((scene.provider_host, scene.provider_port)):
        assert life.stack.python("gateway", code) == "yes"
        assert life.stack.application(code) == "no"
        for service in ("management", "resolver", "vault-unseal"):
            assert life.stack.python(service, code) == "no"


def only_the_gateway_is_on_a_network_that_leads_out(life: Life) -> None:
    """The other networks are internal. That of published ports is not, but the engine does not masquerade what is sent
    there, so that no other machine can answer.
    """
    names = life.stack.run("network", "ls", "--quiet", "--filter", f"name={life.stack.project}_").split()
    masquerade = "com.docker.network.bridge.enable_ip_masquerade"
    leading_out = {
        network["Name"].removeprefix(f"{life.stack.project}_"): {end["Name"] for end in network["Containers"].values()}
        for network in json.loads(life.stack.run("network", "inspect", *names))
        if not network["Internal"] and network["Options"].get(masquerade) != "false"
    }
    assert leading_out == {"providers": {f"{life.stack.project}-gateway-1"}}


def bodies_and_answers_pass_through_the_gateway_as_they_arrive(life: Life) -> None:
    life.store()
    for property_ in (
        streams.events_arrive_in_order,
        streams.a_body_arrives_while_it_is_sent,
        streams.a_client_that_leaves_closes_the_connection_to_the_provider,
        streams.a_client_that_leaves_before_the_answer_closes_it_too,
    ):
        asyncio.run(property_(life.streams()))


def an_application_reaches_the_gateway_on_its_own_network(life: Life) -> None:
    life.store()
    code = f"""
import urllib.request
asked = urllib.request.Request(
    "http://gateway:8000/openai/v1/chat/completions", b"{{}}",
    {{"Authorization": "Bearer {life.application}", "Keyman-User": "{life.user_id}"}},
)
print(urllib.request.urlopen(asked, timeout=20).read().decode())
"""

    async def ask() -> str:
        async with life.streams().provider() as provider:
            provider.answers(b'HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 11\r\n\r\n{"ok":true}')
            answer = await asyncio.to_thread(life.stack.application, code)
            assert provider.requests[0].body == b"{}"
        return answer

    assert asyncio.run(ask()) == '{"ok":true}'


def a_revoked_application_loses_its_stream(life: Life) -> None:
    life.store()
    token = life.stack.operator("app", "create", "revoked", "--service", "OPENAI").split()[-1]
    life.seen.append(token)
    revoke = partial(life.stack.operator, "app", "revoke", "revoked")
    asyncio.run(streams.a_revoked_caller_loses_its_stream(life.streams(token), revoke))


def a_gateway_that_stops_lets_streams_end(life: Life) -> None:
    life.store()
    name = f"{life.stack.project}-gateway-1"
    stop = partial(life.stack.run, "kill", "--signal", "TERM", name)
    try:
        asyncio.run(streams.a_gateway_that_stops_lets_streams_end(life.streams(), stop))
        assert life.stack.run("wait", name).strip() == "0"
    finally:  # the parts that follow need it
        life.stack.run("wait", name)
        life.stack.run("start", name)
        asyncio.run(streams.ready(life.streams()))


def no_process_is_root_or_has_a_capability_or_may_gain_one(life: Life) -> None:
    for name, container in life.stack.containers().items():
        assert container["HostConfig"]["ReadonlyRootfs"], name
        assert container["HostConfig"]["CapDrop"] == ["ALL"], name
        assert not container["HostConfig"]["CapAdd"], name
        assert not container["HostConfig"]["Privileged"], name
        if container["State"]["Running"]:
            status = Path(f"/proc/{container['State']['Pid']}/status").read_text()
            said = dict(re.findall(r"^(\w+):\t(.*)$", status, re.MULTILINE))
            assert "0" not in said["Uid"].split(), name
            assert "0" not in said["Gid"].split(), name
            assert said["NoNewPrivs"] == "1", name
            for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(said[kind], 16) == 0, (name, kind)


def nothing_can_be_written_but_in_memory_and_there_is_no_shell(life: Life) -> None:
    code = """
import os, shutil
for directory in ("/", "/opt/keyman", "/etc", "/secrets", "/public", "/tmp"):
    try:
        open(os.path.join(directory, "probe"), "w").close()
        print(directory)
    except OSError:
        pass
print(shutil.which("sh"), shutil.which("bash"), os.path.exists("/bin/sh"))
"""
    for service in PLANES:
        assert life.stack.python(service, code).splitlines() == ["/tmp", "None None False"]  # noqa: S108


def no_plane_has_a_secret_of_another_and_each_has_a_role_of_its_own(life: Life) -> None:
    code = (
        "import json, pathlib; print(json.dumps({p.name: p.read_text() for p in pathlib.Path('/secrets').iterdir()}))"
    )
    held = {service: json.loads(life.stack.python(service, code)) for service in PLANES}
    assert all(held[service].keys() == {"database_url", "role_id", "secret_id"} for service in PLANES)
    assert len({value for secrets in held.values() for value in secrets.values()}) == 3 * len(PLANES)
    life.seen += [value.strip() for secrets in held.values() for value in secrets.values()]
    life.seen += [url.split(":")[2].split("@")[0] for url in (held[name]["database_url"] for name in held)]


def a_plane_cannot_change_the_schema(life: Life) -> None:
    code = """
import asyncio, asyncpg, pathlib
async def main():
    url = pathlib.Path("/secrets/database_url").read_text().replace("+asyncpg", "")
    connection = await asyncpg.connect(url, timeout=10)
    for statement in ("CREATE TABLE probe (x int)", "DROP TABLE api_keys", "ALTER TABLE users ADD probe int",
                      "CREATE ROLE probe", "SELECT pg_read_file('/secrets/superuser_password')"):
        try:
            await connection.execute(statement)
            print(statement)
        except asyncpg.InsufficientPrivilegeError:
            pass
    await connection.close()
asyncio.run(main())
"""
    for service in PLANES:
        assert life.stack.python(service, code) == ""


def a_plane_can_register_no_application_and_bend_no_trail(life: Life) -> None:
    code = """
import asyncio, asyncpg, pathlib
async def main():
    url = pathlib.Path("/secrets/database_url").read_text().replace("+asyncpg", "")
    connection = await asyncpg.connect(url, timeout=10)
    for statement in ("INSERT INTO applications (name, services, created_at) VALUES ('mine', 'OPENAI', now())",
                      "UPDATE application_tokens SET token_hash = token_hash", "UPDATE applications SET name = name",
                      "DELETE FROM audit_log", "UPDATE audit_log SET reason = reason"):
        try:
            await connection.execute(statement)
            print(statement)
        except asyncpg.InsufficientPrivilegeError:
            pass
    await connection.close()
asyncio.run(main())
"""
    for service in PLANES:
        assert life.stack.python(service, code) == ""


def no_secret_is_in_a_containers_description(life: Life) -> None:
    described = json.dumps(list(life.stack.containers().values()))
    assert not [value for value in life.seen if value in described]


def prometheus_finds_every_instance_and_its_rules_are_in_order(life: Life) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{life.stack.prometheus_port}", timeout=20) as prometheus:

        def all_up() -> bool:
            found = prometheus.get("/api/v1/query", params={"query": "sum by (job) (up)"}).json()["data"]["result"]
            return {result["metric"]["job"]: result["value"][1] for result in found} == {
                "management": "2",
                "resolver": "1",
                "gateway": "1",
            }

        eventually(all_up, "Prometheus scrapes both replicas, the resolver and the gateway")
        rules = [rule for group in prometheus.get("/api/v1/rules").json()["data"]["groups"] for rule in group["rules"]]
        assert rules
        assert not [rule["name"] for rule in rules if rule["health"] == "err"]
        board = json.loads((Path(__file__).parents[2] / "docker/grafana/dashboards/keyman.json").read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                query = target["expr"].replace("$__rate_interval", "1m").replace("$plane", ".*")
                assert prometheus.get("/api/v1/query", params={"query": query}).json()["status"] == "success", query


READY = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:8000/readyz', timeout=9).status)"
ASKED = """
from urllib.request import urlopen
told = urlopen('http://127.0.0.1:9464/metrics', timeout=9).read().decode()
print("yes" if 'route="/api/keys"' in told else "")
"""


def one_replica_is_enough(life: Life) -> None:
    for replica in ("management-1", "management-2"):
        name = f"{life.stack.project}-{replica}"
        life.stack.run("kill", name)  # somebody's wish: it stays away
        for _ in range(5):
            assert life.client.get("/api/keys").status_code == 200
        life.stack.run("start", name)
        eventually(partial(_is_asked, life, int(replica[-1])), f"the proxy leads to {replica} again")


def _is_asked(life: Life, index: int) -> str:
    """Whether the proxy has led a request to a replica since it was started, which it does once it has seen it."""
    for _ in range(2):
        life.client.get("/api/keys")
    return life.stack.python("management", ASKED, index=index)


def whatever_is_killed_comes_back_and_nothing_is_lost(life: Life) -> None:
    key_id, value = life.store()
    for container in KEEPERS:
        life.stack.crash(container)
        eventually(lambda: life.resolve(key_id) == value, f"resolved after {container} was killed")
        for index in (1, 2):  # each by itself: either may remember for a second what it last saw of Vault
            eventually(partial(life.stack.python, "management", READY, index=index), f"{index} ready after {container}")
        eventually(lambda: life.client.get("/readyz").status_code == 200, f"the proxy leads on after {container}")
        asyncio.run(streams.ready(life.streams()))
        life.whole_story()
        assert key_id in life.listed()


def a_stack_that_was_taken_down_comes_up_with_its_data(life: Life) -> None:
    key_id, value = life.store()
    authority = life.stack.compose("exec", "-T", "proxy", "cat", "/public/ca.crt")
    life.stack.down()
    assert not life.stack.run("ps", "--all", "--quiet", "--filter", f"name={life.stack.project}").split()
    life.stack.up()
    eventually(lambda: life.client.get("/readyz").status_code == 200, "ready again")
    assert life.stack.compose("exec", "-T", "proxy", "cat", "/public/ca.crt") == authority
    assert key_id in life.listed()
    eventually(lambda: life.resolve(key_id) == value, "the key opens")
    asyncio.run(streams.ready(life.streams()))
    life.whole_story()


def no_secret_is_in_a_log(life: Life) -> None:
    logs = life.stack.logs()
    assert "logged in to vault" in logs
    assert not [value for value in life.seen if value in logs]
    assert not re.search(r"vault:v\d+:|hvs\.|PRIVATE KEY", logs)


PARTS: list[Callable[[Life], Any]] = [
    a_user_stores_lists_replaces_and_deletes_a_key_and_an_application_resolves_it,
    the_doctor_finds_nothing_wrong,
    the_pages_are_there,
    the_certificate_is_the_stacks_own_and_no_other_is_trusted,
    the_proxy_leads_to_no_metrics_and_to_no_resolver,
    inner_containers_reach_only_who_they_have_to_do_with,
    only_the_gateway_reaches_anything_outside,
    only_the_gateway_is_on_a_network_that_leads_out,
    bodies_and_answers_pass_through_the_gateway_as_they_arrive,
    an_application_reaches_the_gateway_on_its_own_network,
    a_revoked_application_loses_its_stream,
    a_gateway_that_stops_lets_streams_end,
    no_process_is_root_or_has_a_capability_or_may_gain_one,
    nothing_can_be_written_but_in_memory_and_there_is_no_shell,
    no_plane_has_a_secret_of_another_and_each_has_a_role_of_its_own,
    a_plane_cannot_change_the_schema,
    a_plane_can_register_no_application_and_bend_no_trail,
    no_secret_is_in_a_containers_description,
    prometheus_finds_every_instance_and_its_rules_are_in_order,
    one_replica_is_enough,
    whatever_is_killed_comes_back_and_nothing_is_lost,
    no_secret_is_in_a_log,
    a_stack_that_was_taken_down_comes_up_with_its_data,
    no_secret_is_in_a_log,
]
