"""The login to Vault: one token per process, which is renewed early and replaced when it is no longer valid.

A 403 has four causes: the token expired, was revoked, is malformed, or its policy does not allow the call.
`lookup-self` shows which. If it answers 403 too, the token is invalid: log in again, once for all callers that wait,
and repeat the call once. If it answers 200, the policy is the cause, and another login would not help.

Behind a Vault Agent or Proxy, which adds its own token, none of this is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from hvac.api.auth_methods.approle import AppRole
from hvac.api.auth_methods.jwt import JWT
from hvac.api.auth_methods.kubernetes import Kubernetes
from hvac.api.auth_methods.token import Token

from keyman.config.reader import read_secret_file, secret, sentence
from keyman.config.vault import SECRET_ID, VaultSettings
from keyman.errors import VaultReason, VaultUnavailable
from keyman.logs import frames, log
from keyman.metrics import Metrics
from keyman.secret import Secret
from keyman.vault.adapter import AsyncAdapter, VaultFault, extract

T = TypeVar("T")

RENEWAL_SHARE = 2 / 3
"""The part of a lease after which it is renewed: late enough to be rare, early enough for several attempts.

`keyman.retry` is not used for a renewal that fails: its pauses depend on the lease, which lasts minutes or days.
"""

REFUSED_PAUSE = 1.0
"""Seconds without a new attempt after Vault refused a login, or a call with a new token. Otherwise waiting requests
would overload Vault."""

FAREWELL_TIMEOUT = 1.0
"""Seconds to revoke the token when the process stops. A token that is not revoked expires with its lease."""


class VaultClient:
    """An adapter that logs in when needed. Use it through `call`."""

    def __init__(self, settings: VaultSettings, metrics: Metrics) -> None:
        self.adapter = AsyncAdapter(settings, metrics)
        self._settings = settings
        self._metrics = metrics
        self._token_api = Token(self.adapter)
        self._lock = asyncio.Lock()
        self._lease = 0.0
        self._renew_at: float | None = None
        self._lease_changed = asyncio.Event()
        self._refused_until = 0.0
        self._forbidden_until = 0.0
        self._renewal: asyncio.Task[None] | None = None

    async def call(self, operation: str, request: Callable[[], Awaitable[T]]) -> T:
        """Await `request()` while logged in, within the operation's deadline. Raises VaultUnavailable.

        `request` makes one call of the adapter, and may run twice. `operation` labels the metrics.
        """
        with self._metrics.vault_operation(operation):
            try:
                return await self._authenticated(request)
            except TimeoutError:
                fault = VaultFault(VaultReason.TIMEOUT)
            except VaultFault as raised:
                fault = raised
        self.count_failure(operation, fault.reason)
        log.warning("vault call failed", operation=operation, reason=fault.reason.value, status=fault.status)
        # Outside the except block, so that the fault is not chained.
        raise VaultUnavailable(fault.reason, retry_after=fault.retry_after or 5)

    def count_failure(self, operation: str, reason: VaultReason) -> None:
        self._metrics.vault_failures.labels(operation, reason.value).inc()

    async def close(self) -> None:
        """Revoke the token, unless it was configured, and close the connections."""
        if self._renewal is not None:
            self._renewal.cancel()
        if self.adapter.token and self._settings.auth != "token":
            with contextlib.suppress(VaultFault, TimeoutError):
                async with asyncio.timeout(FAREWELL_TIMEOUT):
                    await self._token_api.revoke_self()
        self.adapter.token = None
        await self.adapter.close()

    async def _authenticated(self, request: Callable[[], Awaitable[T]]) -> T:
        if self._settings.auth == "agent":
            return await self._behind_an_agent(request)
        deadline, used = asyncio.get_running_loop().time() + self._settings.timeout, self.adapter.token
        if used is not None:
            try:
                return await request()  # the adapter ends it at the same time
            except VaultFault as fault:
                if fault.status != 403:
                    raise
        async with asyncio.timeout_at(deadline):
            return await self._after_login(used, request)

    async def _after_login(self, used: str | None, request: Callable[[], Awaitable[T]]) -> T:
        """Log in, unless another caller has done so since `used` was current, and repeat the request."""
        await self._replace_token(used)
        try:
            return await request()
        except VaultFault as fault:
            if fault.status == 403:
                # A token without any policy cannot look itself up, so it looks invalid. A new one would not help.
                self._forbidden_until = monotonic() + REFUSED_PAUSE
            raise

    async def _behind_an_agent(self, request: Callable[[], Awaitable[T]]) -> T:
        try:
            return await request()
        except VaultFault as fault:
            if fault.status == 403:
                log.error("vault refuses the token of the vault agent: see the agent's log")
            raise

    async def _replace_token(self, used: str | None) -> None:
        """Log in again, unless another caller has done so since `used` was current. Raises VaultFault."""
        async with self._lock:
            if self.adapter.token is not None and self.adapter.token != used:
                return
            # In an empty context: the token is for all requests, and the login must not carry this request's id.
            await asyncio.create_task(self._look_and_log_in(used), context=contextvars.Context())

    async def _look_and_log_in(self, used: str | None) -> None:
        if used is not None and (monotonic() < self._forbidden_until or await self._is_alive()):
            raise VaultFault(VaultReason.FORBIDDEN, 403)
        await self._log_in()

    async def _is_alive(self) -> bool:
        try:
            await self._token_api.lookup_self()
        except VaultFault as fault:
            if fault.status == 403:
                return False
            raise
        return True

    async def _log_in(self) -> None:
        if monotonic() < self._refused_until:
            raise VaultFault(VaultReason.LOGIN)
        try:
            token, lease, renewable = await self._credentials()
        except VaultFault as fault:
            if fault.status not in (400, 403):
                raise
            self._refused_until = monotonic() + REFUSED_PAUSE
            log.error("vault refuses the login", auth=self._settings.auth, status=fault.status)
            raise VaultFault(VaultReason.LOGIN, fault.status) from None
        self.adapter.token = token
        self._schedule_renewal(lease, renewable)
        log.info("logged in to vault", auth=self._settings.auth, lease=lease)

    async def _credentials(self) -> tuple[str, int, bool]:
        """Return a new token, its lease in seconds (0: it does not expire) and whether it can be renewed."""
        settings, mount = self._settings, self._settings.auth_mount
        if settings.auth == "token":
            return await self._configured_token()
        if settings.auth == "approle":
            secret_id, mount = await self._credential(settings.secret_id), settings.approle_mount
            login = AppRole(self.adapter).login(
                settings.role_id, secret_id.reveal(), use_token=False, mount_point=mount
            )
        elif settings.auth == "kubernetes":
            kubernetes, jwt = Kubernetes(self.adapter), await self._jwt()
            login = kubernetes.login(settings.role, jwt, use_token=False, mount_point=mount or "kubernetes")
        else:
            login = JWT(self.adapter).jwt_login(settings.role, await self._jwt(), use_token=False, path=mount or "jwt")
        answer = await login
        return (
            extract(answer, str, "auth", "client_token"),
            extract(answer, int, "auth", "lease_duration"),
            extract(answer, bool, "auth", "renewable"),
        )

    async def _configured_token(self) -> tuple[str, int, bool]:
        """Return the token of the variable or its file, like `_credentials`, after a look-up. Raises VaultFault."""
        token = (await self._credential(self._settings.token)).reveal()
        self.adapter.token = token
        try:
            answer = await self._token_api.lookup_self()
        except VaultFault:
            self.adapter.token = None
            raise
        if "root" in extract(answer, list, "data", "policies"):
            # A root token could decrypt, which the management plane must not be able to do.
            log.error("a root token is refused: use a token that has only the policy of its role")
            self.adapter.token = None
            raise VaultFault(VaultReason.LOGIN, 403)
        return token, extract(answer, int, "data", "ttl"), extract(answer, bool, "data", "renewable")

    async def _credential(self, configured: Secret | None) -> Secret:
        """Return the secret ID or the token. Its file is read each time, because you can replace it."""
        path = self._settings.credential_file
        if path is None:
            assert configured is not None  # config/vault.py requires it, or wrapping.py provides it
            return configured
        try:
            return secret(await asyncio.to_thread(read_secret_file, path))
        except ValueError as fault:
            variable = "KEYMAN_VAULT_TOKEN" if self._settings.auth == "token" else SECRET_ID
            log.error("the file with the credential for Vault's login cannot be used", why=sentence(variable, fault))
            raise VaultFault(VaultReason.LOGIN) from None

    async def _jwt(self) -> str:
        """Read the file each time, because the platform replaces it while the process runs."""
        path = self._settings.jwt_file
        assert path is not None  # config/vault.py requires it
        try:
            return (await asyncio.to_thread(path.read_text)).strip()
        except (OSError, UnicodeDecodeError):
            log.error("the file with the token for Vault's login cannot be read", variable="KEYMAN_VAULT_JWT_FILE")
            raise VaultFault(VaultReason.LOGIN) from None

    def _schedule_renewal(self, lease: float, renewable: bool) -> None:
        self._lease = lease
        # With jitter, replicas that started together do not renew at the same time.
        share = RENEWAL_SHARE * random.uniform(0.9, 1.0)  # noqa: S311  # spreads load only
        self._renew_at = monotonic() + lease * share if lease and renewable else None
        self._lease_changed.set()
        if self._renewal is None:
            # In an empty context and not in that of the request that logged in: the task works for all requests.
            self._renewal = asyncio.create_task(self._keep_renewing(), context=contextvars.Context())

    async def _keep_renewing(self) -> None:
        while True:
            self._lease_changed.clear()
            delay = None if self._renew_at is None else max(self._renew_at - monotonic(), 0.0)
            try:
                async with asyncio.timeout(delay):
                    await self._lease_changed.wait()
            except TimeoutError:
                try:
                    await self._renew()
                except Exception as fault:  # noqa: BLE001  # the renewal must go on after any exception
                    # Otherwise the task would end, and nobody would notice before the token expires.
                    log.error("vault token not renewed: unexpected failure", **frames(fault))
                    self._renew_at = monotonic() + max(self._lease / 10, 1.0)

    async def _renew(self) -> None:
        used, lease = self.adapter.token, self._lease
        try:
            granted = extract(await self._token_api.renew_self(), int, "auth", "lease_duration")
            # Near its maximum TTL, a token is renewed for shorter times and then refused. Get a new one before that.
            if granted >= lease / 2:
                self._schedule_renewal(granted, renewable=True)
                return
            async with self._lock:
                if self.adapter.token == used:
                    await self._log_in()
            return
        except VaultFault as fault:
            log.warning("vault token not renewed", reason=fault.reason.value, status=fault.status)
            if fault.status == 403:
                with contextlib.suppress(VaultFault):
                    await self._replace_token(used)
        if self.adapter.token == used:
            # If the token expires before a renewal succeeds, the next request logs in.
            self._renew_at = monotonic() + max(lease / 10, 1.0)
