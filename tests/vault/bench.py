"""A Transit mount for one test, set up as `keyman vault setup` does it, and the parts of keyman that use it."""

import asyncio
import base64
import contextlib
import json
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal
from uuid import UUID, uuid4

from hvac.api.auth_methods.token import Token
from hvac.api.secrets_engines.transit import Transit
from prometheus_client import generate_latest

from keyman.config.vault import VaultSettings
from keyman.dev import embedded
from keyman.dev.embedded import EmbeddedVault
from keyman.errors import VaultReason, VaultUnavailable
from keyman.metrics import Metrics
from keyman.processes import spawn
from keyman.vault.adapter import AsyncAdapter, VaultFault
from keyman.vault.cipher import Context, TransitCipher
from keyman.vault.guard import KeyGuard, SentinelStore
from keyman.vault.login import VaultClient
from keyman.vault.provision import issue_credentials, provision
from tests.support.http import RecordingProxy, recording_proxy
from tests.support.vault import RunningVault
from tests.support.waiting import freeze

ROLE = "keyman-management"


class Shelf:
    """Stores a sentinel as the database does. With `has_keys` there are stored keys, so no new sentinel is accepted."""

    def __init__(self, *, sentinel: str | None = None, has_keys: bool = False, uuid: UUID | None = None) -> None:
        self.uuid = uuid or uuid4()
        self.stored = sentinel
        self._has_keys = has_keys

    async def sentinel(self, *, refresh: bool = False) -> str | None:
        return self.stored

    async def store_sentinel(self, ciphertext: str) -> str | None:
        if self.stored is None and not self._has_keys:
            self.stored = ciphertext
        return self.stored


class Authority:
    """A certificate authority of Vault's own PKI engine: nothing else that the tests have can sign a certificate."""

    def __init__(self, admin: AsyncAdapter, mount: str, certificate: Path) -> None:
        self._admin = admin
        self._mount = mount
        self.certificate = certificate

    async def start(self) -> None:
        await self._admin.post(f"/v1/sys/mounts/{self._mount}", json={"type": "pki"})
        await self._admin.post(f"/v1/sys/mounts/{self._mount}/tune", json={"max_lease_ttl": "48h"})
        asked = {"common_name": self._mount, "key_type": "ec", "ttl": "24h"}
        made = await self._admin.post(f"/v1/{self._mount}/root/generate/internal", json=asked)
        self.certificate.write_text(made["data"]["certificate"])
        role = {"allow_any_name": True, "key_type": "ec", "max_ttl": "1h"}
        await self._admin.post(f"/v1/{self._mount}/roles/server", json=role)

    async def server_chain(self, **names: str) -> Path:
        """A file with the certificate and the key of a server that is to be taken for `names`."""
        asked = names if "not_after" in names else {"ttl": "1h", **names}
        issued = await self._admin.post(f"/v1/{self._mount}/issue/server", json=asked)
        chain = self.certificate.with_suffix(f".{token_hex(4)}")
        chain.write_text(issued["data"]["certificate"] + "\n" + issued["data"]["private_key"] + "\n")
        return chain

    async def server_context(self, **names: str) -> ssl.SSLContext:
        """The TLS context of such a server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(await self.server_chain(**names))
        return context

    async def end(self) -> None:
        await self._admin.delete(f"/v1/sys/mounts/{self._mount}")


@dataclass
class Bench:
    """Only `bench_at` makes one. `admin` carries the root token; `settings` log in with the AppRole."""

    vault: RunningVault
    admin: AsyncAdapter
    settings: VaultSettings
    metrics: Metrics = field(default_factory=Metrics)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def transit(self) -> Transit:
        return Transit(self.admin)

    def with_settings(self, **changes: Any) -> "Bench":
        """The same bench seen through other settings, with metrics of its own."""
        return Bench(self.vault, self.admin, replace(self.settings, **changes), stack=self.stack)

    async def behind_a_proxy(self) -> tuple["Bench", RecordingProxy]:
        running = await self.stack.enter_async_context(recording_proxy(self.vault.address))
        return self.with_settings(address=running.address), running

    async def authority(self, directory: Path) -> Authority:
        mount = f"pki-{token_hex(4)}"
        made = Authority(self.admin, mount, directory / f"{mount}.pem")
        self.stack.push_async_callback(made.end)
        await made.start()
        return made

    def client(self) -> VaultClient:
        client = VaultClient(self.settings, self.metrics)
        self.stack.push_async_callback(client.close)
        return client

    def guard(self, store: SentinelStore | None = None, client: VaultClient | None = None) -> KeyGuard:
        return KeyGuard(client or self.client(), self.settings, store or Shelf())

    def cipher(self, client: VaultClient | None = None) -> TransitCipher:
        client = client or self.client()
        return TransitCipher(client, self.settings, self.guard(client=client), self.metrics)

    async def warm_cipher(self) -> TransitCipher:
        """A cipher that is logged in and whose sentinel is stored: what follows are calls to seal, and no others."""
        client = self.client()
        guard = self.guard(client=client)
        await guard.verify()
        return TransitCipher(client, self.settings, guard, self.metrics)

    async def opened(self, ciphertext: str, context: Context) -> str:
        """The plaintext, as only the root token may ask for it."""
        answer = await self.transit.decrypt_data(
            self.settings.key, ciphertext, context=context.encoded(), mount_point=self.settings.mount
        )
        return base64.b64decode(answer["data"]["plaintext"]).decode()

    async def delete_key(self) -> None:
        await self.transit.update_key_configuration(
            self.settings.key, deletion_allowed=True, mount_point=self.settings.mount
        )
        await self.transit.delete_key(self.settings.key, mount_point=self.settings.mount)

    async def make_key(self, **changes: Any) -> None:
        """A key under the configured name, as keyman needs it but for `changes`."""
        properties = {"derived": True, "type": "aes256-gcm96", **changes}
        await self.admin.post(f"/v1/{self.settings.mount}/keys/{self.settings.key}", json=properties)

    async def write_policy(self, rules: str) -> None:
        await self.admin.put(f"/v1/sys/policies/acl/{ROLE}", json={"policy": rules})

    async def change_role(self, **settings: object) -> None:
        await self.admin.post(f"/v1/auth/approle/role/{ROLE}", json=settings)

    async def revoke(self, token: str | None) -> None:
        await self.admin.post("/v1/auth/token/revoke", json={"token": token})

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def exposed_metrics(self) -> str:
        return generate_latest(self.metrics.registry).decode()


@asynccontextmanager
async def bench_at(vault: RunningVault, **settings: Any) -> AsyncIterator[Bench]:
    """Provision a mount of its own on `vault`; unmount it and close everything at the end."""
    unfinished = VaultSettings(address=vault.address, mount=f"transit-{token_hex(4)}", **settings)
    admin = AsyncAdapter(replace(unfinished, timeout=20), Metrics())
    admin.token = vault.root_token
    try:
        await _forget_earlier_tests(admin)
        await provision(admin, unfinished)
        role_id, secret_id = await issue_credentials(admin, ROLE)
        bench = Bench(vault, admin, replace(unfinished, role_id=role_id, secret_id=secret_id))
        async with bench.stack:
            yield bench
        await admin.delete(f"/v1/sys/mounts/{unfinished.mount}")
    finally:
        await admin.close()


async def _forget_earlier_tests(admin: AsyncAdapter) -> None:
    # Provisioning puts right what it knows of, and leaves what else a test has changed about the role.
    for path in (f"/v1/auth/approle/role/{ROLE}", f"/v1/sys/policies/acl/{ROLE}"):
        with contextlib.suppress(VaultFault):  # 404 and 400 before the first of them
            await admin.delete(path)


@asynccontextmanager
async def tls_vault(authority: Authority, directory: Path) -> AsyncIterator[RunningVault]:
    """A real server that speaks only TLS, with a certificate of `authority` for 127.0.0.1 and not for `localhost`."""
    chain = str(await authority.server_chain(common_name="vault", ip_sans="127.0.0.1"))
    port = embedded.free_port_pair()
    listener = {"address": f"127.0.0.1:{port}", "tls_cert_file": chain, "tls_key_file": chain}
    (directory / "tls.json").write_text(json.dumps({"storage": {"inmem": {}}, "listener": {"tcp": listener}}))
    settings = VaultSettings(f"https://127.0.0.1:{port}", ca_certificate=authority.certificate, timeout=20)
    admin = AsyncAdapter(settings, Metrics())
    with (directory / "tls.log").open("wb") as log:
        command: list[str | Path] = [embedded.binary(), "server", "-config", directory / "tls.json"]
        process = spawn(command, {"HOME": str(directory)}, output=log.fileno())
    try:
        async with asyncio.timeout(30):
            while not await _listens(port):
                await asyncio.sleep(0.02)
            keys = await admin.put("/v1/sys/init", json={"secret_shares": 1, "secret_threshold": 1})
            await admin.put("/v1/sys/unseal", json={"key": keys["keys_base64"][0]})
            while not await _is_active(admin):
                await asyncio.sleep(0.02)
        yield RunningVault(settings.address, keys["root_token"])
    finally:
        await admin.close()
        process.kill()
        process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


@asynccontextmanager
async def agent(settings: VaultSettings, kind: Literal["agent", "proxy"], directory: Path) -> AsyncIterator[str]:
    """OpenBao's own agent or proxy before a Vault: logs in by itself, with the AppRole of the settings, and adds its
    token to requests that have none. Its address.
    """
    assert settings.role_id is not None
    assert settings.secret_id is not None
    (directory / "role_id").write_text(settings.role_id)
    (directory / "secret_id").write_text(settings.secret_id.reveal())
    app_role = {
        "role_id_file_path": str(directory / "role_id"),
        "secret_id_file_path": str(directory / "secret_id"),
        "remove_secret_id_file_after_reading": False,
    }
    port = embedded.free_port_pair()
    config = {
        "vault": {"address": settings.address, "retry": {"num_retries": -1}},
        "auto_auth": {"method": [{"type": "approle", "config": app_role}]},
        "api_proxy": {"use_auto_auth_token": True},
        "listener": [{"tcp": {"address": f"127.0.0.1:{port}", "tls_disable": True, "require_request_header": True}}],
    }
    (directory / "agent.json").write_text(json.dumps(config))
    log = directory / "agent.log"
    with log.open("wb") as output:
        command: list[str | Path] = [embedded.binary(), kind, "-config", directory / "agent.json"]
        process = spawn(command, {"HOME": str(directory)}, output=output.fileno())
    try:
        async with asyncio.timeout(30):
            while b"authentication successful" not in log.read_bytes() or not await _listens(port):
                await asyncio.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@dataclass
class SealableVault:
    """A server that a test may seal and freeze, and a bench on it."""

    server: EmbeddedVault
    bench: Bench

    async def seal(self) -> None:
        await self.bench.admin.put("/v1/sys/seal")

    async def unseal(self) -> None:
        await unseal(self.server, self.bench.admin)

    def freeze(self) -> None:
        freeze(self.server.process.pid)

    def thaw(self) -> None:
        self.server.process.send_signal(signal.SIGCONT)


async def unseal(server: EmbeddedVault, admin: AsyncAdapter) -> None:
    """Unseal and wait until it serves again."""
    key = json.loads((server.log.parent / "keys.json").read_bytes())["unseal_key"]
    await admin.put("/v1/sys/unseal", json={"key": key})
    async with asyncio.timeout(30):
        while (await admin.get("/v1/sys/seal-status"))["sealed"] or not await _is_active(admin):
            await asyncio.sleep(0.02)


async def _is_active(admin: AsyncAdapter) -> bool:
    async with admin.session.get(f"{admin.base_uri}/v1/sys/health") as response:
        return response.status == 200


def a_context(user_id: int = 7, service: str = "OPENAI") -> Context:
    return Context(uuid4(), user_id, service, uuid4())


async def refusal(attempt: Any) -> VaultReason:
    """Why the awaited `attempt` failed with VaultUnavailable; anything else that it does fails the test."""
    try:
        result = await attempt
    except VaultUnavailable as fault:
        return fault.reason
    raise AssertionError(f"not refused: {result!r}")


async def read_key(client: VaultClient, bench: Bench) -> Any:
    """An operation that the management policy allows."""
    transit, settings = Transit(client.adapter), bench.settings
    return await client.call("read-key", lambda: transit.read_key(settings.key, mount_point=settings.mount))


async def own_token(client: VaultClient) -> dict[str, Any]:
    token: dict[str, Any] = (await client.call("lookup", Token(client.adapter).lookup_self))["data"]
    return token
