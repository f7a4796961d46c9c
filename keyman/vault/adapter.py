"""An hvac `Adapter` over aiohttp, which makes hvac's methods awaitable.

hvac's API classes pass their requests to an adapter and return its result. This adapter returns a coroutine, so you can
write `await transit.encrypt_data(…)`. It differs from hvac's own adapter on purpose:

- it follows no redirect: hvac would send token and body along;
- a failure becomes a VaultFault with a status and a reason, never with the body, which can contain plaintexts;
- one deadline limits the whole call, including retries;
- it reads nothing from `~/.vault-token` or from the environment.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import NamedTuple, NoReturn, TypeVar

import aiohttp
import msgspec
from hvac.adapters import Adapter

from keyman.certificates import explain_refusal
from keyman.config.vault import VaultSettings
from keyman.errors import VAULT_DETAILS, KeymanError, VaultReason, raise_alone
from keyman.logs import current_request_id, log
from keyman.metrics import Metrics
from keyman.retry import ATTEMPTS, parse_retry_after, pause_after
from keyman.vault.certificates import CertificateFile

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

MAX_CONNECTIONS = 32
"""Connections to Vault per process. Because of batches, more would not help: 8 carry 98,000 values per second."""

RETRIED_STATUSES = frozenset({412, 429, 502, 503, 504})
"""412: a standby has not caught up; 429: quota; the others: a standby, a proxy or a leader election.

keyman's own client retries other statuses: for keyman, 412 is a failed precondition, which is final.
"""


REQUEST_ID_HEADER = "X-Request-ID"
"""The header with the id of keyman's request. Its answer, its log lines and the audit log have the same id."""


class VaultFault(KeymanError):
    """A call to Vault failed, after all retries. It contains nothing of the answer.

    `status` is None when there was no HTTP answer, or the answer was not from Vault. `why` says what is wrong with a
    certificate, for operators.
    """

    def __init__(
        self, reason: VaultReason, status: int | None = None, retry_after: int | None = None, why: str | None = None
    ) -> None:
        super().__init__(f"{reason.value} (status {status})" if status else reason.value)
        self.reason = reason
        self.status = status
        self.retry_after = retry_after
        self.why = why

    def explained(self) -> str:
        """Return the fault in a sentence or two, for a command that has no log."""
        detail = VAULT_DETAILS[self.reason]
        return detail if self.why is None else f"{detail} The certificate: {self.why}."


class _Call(NamedTuple):
    """One request, as each attempt sends it."""

    method: str
    url: str
    namespace: str | None
    params: Mapping[str, str] | None
    body: bytes | None
    wrap_ttl: str | int | None

    def __repr__(self) -> str:
        return f"_Call({self.method} ***)"  # the body can hold plaintexts


class AsyncAdapter(Adapter):  # type: ignore[misc]  # hvac carries no types
    """The connections to one address of Vault. Each request carries `token`.

    Logins, tokens, policies and wrapping belong to the namespace of the login, engines to the configured namespace.
    """

    def __init__(self, settings: VaultSettings, metrics: Metrics) -> None:
        # Not super().__init__: it would open a `requests` session, which this adapter does not use.
        self.base_uri = settings.address
        self.settings = settings
        self.namespace = settings.namespace
        self.token: str | None = None
        self.timeout = settings.timeout
        self._metrics = metrics
        self._authorities = None if settings.ca_certificate is None else CertificateFile(settings.ca_certificate)
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    @property
    def session(self) -> aiohttp.ClientSession:
        """The session. It is opened at the first use, because it belongs to the running loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, ssl=self._tls(), keepalive_timeout=30),
                timeout=aiohttp.ClientTimeout(total=None),  # `request` has its own deadline
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
            )
            # Otherwise aiohttp would repeat GET, PUT and DELETE inside each of our attempts. It has no public option.
            self._session._retry_connection = False
        return self._session

    async def close(self) -> None:
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def get_login_token(self, response: object) -> NoReturn:
        """Not supported: it is part of hvac's synchronous login. `login.py` logs in."""
        raise NotImplementedError

    async def request(  # hvac's own signature
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        raise_exception: bool = True,
        attempts: int = ATTEMPTS,  # not hvac's
        *,
        json: object = None,
        params: Mapping[str, str] | None = None,
        wrap_ttl: str | int | None = None,
    ) -> object:
        """Return the JSON answer as a dict, or None for a 204. Raises VaultFault."""
        body = None if json is None else msgspec.json.encode(json)
        namespace = self._namespace_of(url)
        call = _Call(method.upper(), self.urljoin(self.base_uri, url), namespace, params, body, wrap_ttl)
        try:
            async with asyncio.timeout(self.timeout):
                return await self._retried(call, attempts)
        except TimeoutError:
            raise_alone(VaultFault(VaultReason.TIMEOUT))

    def _tls(self) -> ssl.SSLContext | bool:
        return True if self._authorities is None else self._authorities.context()

    def _namespace_of(self, url: str) -> str | None:
        path = url.removeprefix("/v1/")
        is_of_login = path.startswith(("auth/", "sys/")) and not path.startswith("sys/mounts")
        return self.settings.login_namespace if is_of_login else self.settings.namespace

    async def _retried(self, call: _Call, attempts: int) -> object:
        deadline = monotonic() + self.timeout
        for attempt in range(1, attempts + 1):
            try:
                return await self._once(call)
            except VaultFault as fault:
                is_lost = fault.status is None and fault.reason is VaultReason.UNREACHABLE
                may_recover = is_lost or fault.status in RETRIED_STATUSES
                pause = pause_after(attempt, deadline=deadline, retry_after=fault.retry_after, attempts=attempts)
                if not may_recover or pause is None:
                    raise
            self._metrics.vault_retries.inc()
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _once(self, call: _Call) -> object:
        if self._closed:
            # A late call must not open a session, and log in, that nobody closes. Status 0 prevents a retry.
            raise VaultFault(VaultReason.UNREACHABLE, 0)
        with _transport_faults(), self._metrics.vault_connections.track_inprogress():
            async with self.session.request(
                call.method,
                call.url,
                headers=self._headers(call),
                data=call.body,
                params=call.params,
                allow_redirects=False,
                ssl=self._tls(),
            ) as response:
                content = await response.read()
                if response.status == 204:
                    return None
                if response.status == 400 and not content.startswith(b"{"):
                    # Not an answer of Vault: a TLS server answers like this to plain http.
                    raise VaultFault(VaultReason.UNREACHABLE)
                if response.status != 200:
                    reason = _reason(response.status, content)
                    raise VaultFault(reason, response.status, parse_retry_after(response.headers.get("Retry-After")))
        try:
            answer: object = msgspec.json.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise_alone(VaultFault(VaultReason.ERROR, 200))
        return answer

    def _headers(self, call: _Call) -> dict[str, str]:
        headers = {"X-Vault-Request": "true", "Accept-Encoding": "identity"}
        if self.token:
            headers["X-Vault-Token"] = self.token
        if call.namespace:
            headers["X-Vault-Namespace"] = call.namespace
        if (asked := current_request_id()) is not None:
            headers[REQUEST_ID_HEADER] = asked
        if call.wrap_ttl is not None:
            headers["X-Vault-Wrap-TTL"] = str(call.wrap_ttl)
        if call.body is not None:
            headers["Content-Type"] = "application/json"
        return headers


def extract(answer: object, kind: type[T], *path: str) -> T:
    """What lies at `path` in one of Vault's answers. Raises VaultFault where it does not, or is of another type: what
    answers is no Vault then, or one that is not understood.
    """
    for name in path:
        answer = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(answer, kind):
        raise VaultFault(VaultReason.ERROR, 200)
    return answer


def shaped(answer: object, shape: type[S], *path: str) -> S:
    """The same for an object with the fields of a struct."""
    found = extract(answer, dict, *path)
    try:
        return msgspec.convert(found, shape)
    except msgspec.ValidationError:
        raise_alone(VaultFault(VaultReason.ERROR, 200))


async def none_if_missing(request: Awaitable[T]) -> T | None:
    """Return the answer, or None when Vault has nothing at that path (404). Raises VaultFault for other failures."""
    try:
        return await request
    except VaultFault as fault:
        if fault.status == 404:
            return None
        raise


@contextmanager
def _transport_faults() -> Iterator[None]:
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as refused:
        why = explain_refusal(refused.certificate_error, address="KEYMAN_VAULT_ADDR", cacert="KEYMAN_VAULT_CACERT")
        log.error("vault's certificate is refused", why=why)
        raise_alone(VaultFault(VaultReason.UNTRUSTED, why=why))
    except (aiohttp.ClientError, OSError):
        # Without its context: a client error can hold what was sent or received.
        raise_alone(VaultFault(VaultReason.UNREACHABLE))


def _reason(status: int, content: bytes) -> VaultReason:
    if status == 403:
        return VaultReason.FORBIDDEN
    if status == 429:
        return VaultReason.QUOTA
    if status == 503 and b"sealed" in content:
        return VaultReason.SEALED
    if status in (502, 503, 504) or 300 <= status < 400:
        # A proxy without a Vault behind it, or an address that is not Vault's.
        return VaultReason.UNREACHABLE
    return VaultReason.ERROR
