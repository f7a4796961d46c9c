"""Live checks, as the owners of keys ask for them. The gateway makes them: this plane cannot open a value."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn

import httpx
import msgspec

from keyman.certificates import explain_refusal
from keyman.config.checks import CheckSettings
from keyman.errors import Conflict, GatewayUnavailable, InvalidRequest, NotFound, Undecryptable, raise_alone
from keyman.identity import limits, throttle
from keyman.identity.principals import Principal
from keyman.ids import KeyId
from keyman.keys import operations
from keyman.keys.schemas import KeyInfo, Status
from keyman.logs import log
from keyman.storage.transactions import Database

PATIENCE = 20.0
"""Seconds for the gateway's answer. It gives a provider at most 8, and Vault and its database some more."""

MAX_ANSWER = 64 * 1024
"""Bytes of an answer of the gateway, at most. One has some hundred."""

NOT_SET_UP = "Live checks are not set up here. The operator of keyman can set them up."


class Gateway:
    """The gateway, as the management plane asks it."""

    def __init__(self, settings: CheckSettings) -> None:
        self._settings = settings
        self._tls: ssl.SSLContext | None = None

    async def check(self, key_id: KeyId) -> None:
        """Have the gateway check a key, and store the verdict. Raises NotFound, Undecryptable, GatewayUnavailable."""
        status, body = await self._ask({"key_id": key_id})
        if status != HTTPStatus.OK:
            _refuse(status, body)

    async def prove(self) -> None:
        """Raise GatewayUnavailable unless the gateway answers, and takes the token for live checks. Nothing is checked.

        The gateway looks at the token before the body, and refuses a body without a key.
        """
        status, body = await self._ask({})
        if _kind(body) != InvalidRequest.slug:
            _refuse(status, body)

    async def _ask(self, body: Mapping[str, object]) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._send(body)
        except TimeoutError:
            raise_alone(GatewayUnavailable("The gateway did not answer in time. Try again later."))
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as fault:
            raise_alone(_unreachable(fault))

    async def _send(self, body: Mapping[str, object]) -> tuple[int, bytes]:
        if self._tls is None:
            self._tls = await asyncio.to_thread(_trust, self._settings.ca_certificate)
        # A client for each call: it keeps no cookie and no connection. Checks are rare.
        headers = {"authorization": f"Bearer {self._settings.token.reveal()}", "accept-encoding": "identity"}
        async with (
            httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=PATIENCE) as client,
            client.stream(
                "POST",
                f"{self._settings.url}/v1/check",
                headers=headers,
                json=body,
                follow_redirects=False,
            ) as answer,
        ):
            content = bytearray()
            async for part in answer.aiter_raw():
                content += part
                if len(content) > MAX_ANSWER:
                    break
            return answer.status_code, bytes(content)


def _trust(ca_certificate: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_certificate)
    except OSError:  # the file was good at the start; errors of OpenSSL are of this class too
        log.error("the file with the CA of the gateway cannot be read", variable="KEYMAN_GATEWAY_URL_CACERT")
        raise


def _unreachable(fault: Exception) -> GatewayUnavailable:
    """Log why no answer of the gateway came, and return the problem."""
    refusal = _certificate_refusal(fault)
    if refusal is None:
        log.warning("the gateway cannot be reached", fault=type(fault).__name__)
        return GatewayUnavailable()
    why = explain_refusal(refusal, address="KEYMAN_GATEWAY_URL", cacert="KEYMAN_GATEWAY_URL_CACERT")
    log.error("the gateway's certificate is refused", why=why)
    return GatewayUnavailable(
        "The gateway's certificate is not trusted, so nothing was checked. Tell the operator of keyman.", why=why
    )


def _certificate_refusal(fault: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """Return the error of TLS in the causes of an error of httpx, or None if it is about something else."""
    while fault is not None and not isinstance(fault, ssl.SSLCertVerificationError):
        fault = fault.__cause__ or fault.__context__
    return fault


class _Refusal(msgspec.Struct):
    type: str = ""


def _kind(body: bytes) -> str:
    """Return the type of a problem, or an empty text."""
    try:
        return msgspec.json.decode(body, type=_Refusal).type.removeprefix("/problems/")
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""


def _refuse(status: int, body: bytes) -> NoReturn:
    """Raise the problem that an answer of the gateway means. Nothing of its text is repeated."""
    kind = _kind(body)
    if kind == NotFound.slug and status == HTTPStatus.NOT_FOUND:
        raise NotFound("There is nothing with this id.")
    if kind == Undecryptable.slug:
        raise Undecryptable(_UNDECRYPTABLE)
    log.warning("the gateway did not check a key", status=status, kind=kind[:50])
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise GatewayUnavailable(
            "The gateway refuses the token with which keyman asks for checks. Tell the operator of keyman."
        )
    raise GatewayUnavailable("The gateway could not check the key at the moment. Try again later.")


_UNDECRYPTABLE = "This key can no longer be opened, so it cannot be checked. Store it again."


async def check(db: Database, gateway: Gateway | None, caller: Principal, key_id: KeyId) -> KeyInfo:
    """Have a key of the caller checked, and return it as it is then. `gateway` is None where checks are not set up.

    Raises NotFound, Conflict if checks are not set up, Undecryptable, RateLimited, and GatewayUnavailable; then nothing
    was stored. The check of a key that was replaced during it is not stored either.
    """
    key = await operations.get(db, caller, key_id)
    if gateway is None:
        raise Conflict(NOT_SET_UP)
    if key.status is Status.UNDECRYPTABLE:
        raise Undecryptable(_UNDECRYPTABLE)
    buckets = limits.check_buckets(key_id, caller.user_id, caller.origin.address)
    await throttle.count(db, caller, buckets, limits.TOO_MANY_CHECKS, counts_refused=False)
    await gateway.check(key_id)
    return await operations.get(db, caller, key_id)
