"""Vaults for tests: a running one, a client with its root token, one that a test may harm."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from keyman.config.vault import VaultSettings
from keyman.dev import embedded
from keyman.dev.embedded import EmbeddedVault
from keyman.processes import spawn, stop
from keyman.vault import provision
from tests.support.cli import settings_of
from tests.support.database import StoredKey
from tests.support.http import NO_TLS, client_of
from tests.support.waiting import freeze, until


@dataclass(frozen=True)
class RunningVault:
    """A Vault that is up, unsealed and answers at `address`; `root_token` may do everything there."""

    address: str
    root_token: str = field(repr=False)


def as_running(server: EmbeddedVault) -> RunningVault:
    return RunningVault(server.address, server.root_token.reveal())


def kill(server: EmbeddedVault) -> None:
    """Kill a server that is no longer needed. An orderly stop takes a second."""
    server.process.kill()
    server.process.wait()


class RootClient:
    """A client with the root token. It can read and decrypt everything."""

    def __init__(self, address: str, token: str) -> None:
        self._client = client_of(f"{address}/v1/", **{"X-Vault-Token": token})

    @classmethod
    def of_home(cls, home: Path) -> RootClient:
        """The Vault of a running `keyman dev`."""
        keys = json.loads((home / "vault" / "keys.json").read_bytes())
        return cls(settings_of(home)["KEYMAN_VAULT_ADDR"], keys["root_token"])

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        """The `data` of the answer, None where there is none. Raises httpx.HTTPStatusError."""
        answer = self._client.request(method, path, json=body)
        answer.raise_for_status()
        return answer.json().get("data") if answer.content else None

    def ask_token(self, properties: Mapping[str, object]) -> str:
        """A new token with these properties."""
        answer = self._client.request("POST", "auth/token/create", json=properties).raise_for_status()
        token: str = answer.json()["auth"]["client_token"]
        return token

    def wraps(self, path: str, ttl: str = "60s") -> str:
        """What a POST to `path` gives, behind a wrapping token."""
        answer = self._client.request("POST", path, headers={"X-Vault-Wrap-TTL": ttl}).raise_for_status()
        token: str = answer.json()["wrap_info"]["token"]
        return token

    def opens(self, ciphertext: str, context: str, mount: str = "transit") -> str | None:
        """The plaintext under exactly this context, None when there is none."""
        body = {"ciphertext": ciphertext, "context": base64.b64encode(context.encode()).decode()}
        try:
            data = self.ask("POST", f"{mount}/decrypt/keyman", body)
        except httpx.HTTPStatusError as fault:
            if fault.response.status_code == 400:
                return None
            raise
        return base64.b64decode(data["plaintext"]).decode()

    def opens_all(self, keys: Iterable[StoredKey], mount: str = "transit") -> dict[int, str | None]:
        """What each key holds, by id; None where it does not open."""
        opened: dict[int, str | None] = {}
        remaining = list(keys)
        while remaining:
            part, remaining = remaining[:100], remaining[100:]
            items = [
                {"ciphertext": key.ciphertext, "context": base64.b64encode(key.context.encode()).decode()}
                for key in part
            ]
            # 400 when one of them does not open, with the results all the same.
            answer = self._client.post(f"{mount}/decrypt/keyman", json={"batch_input": items})
            for key, result in zip(part, answer.json()["data"]["batch_results"], strict=True):
                failed = bool(result.get("error"))
                opened[key.id] = None if failed else base64.b64decode(result["plaintext"]).decode()
        return opened


class DisposableVault:
    """A Vault, set up for keyman, that a test may freeze, kill or seal. `repair` brings it back at the same address."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server = asyncio.run(embedded.start(directory))
        self._process = self._server.process
        self.root = RootClient(self._server.address, self._server.root_token.reveal())
        self.settings = asyncio.run(self.provisioned())

    @property
    def port(self) -> int:
        return int(self._server.address.rpartition(":")[2])

    async def provisioned(self, role: str = "keyman-management", **settings: Any) -> VaultSettings:
        """Set it up, again or for another mount, and log in with a new secret."""
        wanted = VaultSettings(address=self._server.address, **settings)
        admin = self._server.admin()
        try:
            await provision.provision(admin, wanted)
            issued = await provision.issue_credentials(admin, role)
        finally:
            await admin.close()
        return replace(wanted, role_id=issued.role_id, secret_id=issued.secret_id)

    def freeze(self) -> None:
        freeze(self._process.pid)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def seal(self) -> None:
        self.root.ask("PUT", "sys/seal")

    def unseal(self) -> None:
        keys = json.loads((self._directory / "keys.json").read_bytes())
        self.root.ask("PUT", "sys/unseal", {"key": keys["unseal_key"]})
        until(lambda: self._health() == 200, "an unsealed Vault")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        """Start what was killed; it is sealed."""
        command: list[str | Path] = [
            embedded.binary(),
            "server",
            "-config",
            self._directory / "config.json",
            "-log-level",
            "warn",
        ]
        with (self._directory / "server.log").open("ab") as output:
            self._process = spawn(command, {"HOME": str(self._directory)}, output=output.fileno())
        until(lambda: self._health() is not None, "Vault")

    def repair(self) -> None:
        """Undo what a test did, so that it serves again."""
        self.thaw()
        if self._process.poll() is not None:
            self.start()
        if self._health() != 200:
            self.unseal()

    def close(self) -> None:
        self.thaw()
        stop(self._process)

    def _health(self) -> int | None:
        try:
            return httpx.get(f"{self._server.address}/v1/sys/health", verify=NO_TLS).status_code
        except httpx.TransportError:
            return None


@contextmanager
def disposable_vault_at(directory: Path) -> Iterator[DisposableVault]:
    vault = DisposableVault(directory)
    try:
        yield vault
    finally:
        vault.close()
