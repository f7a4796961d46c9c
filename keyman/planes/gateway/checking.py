"""`POST /v1/check`: one request to a provider that only reads and costs nothing, for the management plane."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from urllib.parse import urlsplit

import msgspec
from litestar import post

from keyman import errors
from keyman.clock import now
from keyman.errors import Conflict, FieldError, Problem
from keyman.http.body import read_json, takes
from keyman.http.exchange import Message
from keyman.http.guards import needs
from keyman.http.openapi import BODY_PROBLEMS, may_answer
from keyman.http.requests import AnyRequest, Injected
from keyman.identity.principals import Principal
from keyman.ids import KeyId
from keyman.keys import checks
from keyman.keys.finding import Found
from keyman.keys.release import Releasing
from keyman.keys.settings import from_text
from keyman.planes.gateway.answers import parts
from keyman.planes.gateway.body import Body
from keyman.planes.gateway.headers import credential, to_send
from keyman.planes.gateway.services import Forwarded
from keyman.planes.gateway.upstream import Outgoing, Upstreams
from keyman.providers.upstreams import Check, is_private_address
from keyman.providers.verdicts import ENDPOINT, MOST_OF_CHECK, SETTING, Answer, Judgement, Verdict, judge
from keyman.secret import Secret
from keyman.values import RowNumber

PATIENCE = 8.0
"""Seconds for the answer of a provider: less than the time between two checks of a key, so none overtakes another."""


class Wanted(msgspec.Struct):
    """The key to check."""

    key_id: RowNumber


class Checked(msgspec.Struct):
    """The verdict of a live check. It was not stored if the key was replaced before the answer came."""

    verdict: Verdict
    checked_at: datetime
    detail: str


class Checker:
    """Makes live checks of keys of these services, by identifier."""

    def __init__(self, services: Mapping[str, Forwarded], upstreams: Upstreams) -> None:
        self._services = services
        self._upstreams = upstreams

    async def check(self, by: Releasing, caller: Principal, key_id: KeyId) -> Checked:
        """Check a key, and store the verdict. Raises NotFound, Undecryptable, VaultUnavailable and Conflict."""
        row = await checks.find(by, caller, key_id)
        found, moment = await self._judge(by, caller, row)
        await checks.store_check(by.db, caller, row, found, moment)
        return Checked(found.verdict, moment, found.detail)

    async def _judge(self, by: Releasing, caller: Principal, row: Found) -> tuple[Judgement, datetime]:
        """Return the verdict, and when the provider answered."""
        service = self._services.get(row.service)
        wanted = None if service is None else service.upstream.check
        if service is None or wanted is None:
            return Judgement.of(Verdict.UNSUPPORTED), now()
        try:
            url = _url(service, wanted, from_text(row.settings) or {})
        except Conflict:
            return Judgement(Verdict.UNSUPPORTED, SETTING), now()
        value = await checks.open_for_check(by, caller, row)
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._ask(service, wanted, url, value)
        except (Problem, TimeoutError):
            is_own = service.upstream.base_url.startswith("{")
            found = Judgement(Verdict.UNREACHABLE, ENDPOINT) if is_own else Judgement.of(Verdict.UNREACHABLE)
            return found, now()

    async def _ask(self, service: Forwarded, wanted: Check, url: str, value: Secret) -> tuple[Judgement, datetime]:
        upstream = service.upstream
        own = credential(upstream.auth, value.reveal())
        is_private = upstream.may_be_private if wanted.url is None else _may_be_private(service, wanted.url)
        fields = to_send([(b"accept", b"application/json")], own, upstream.headers)
        outgoing = Outgoing(wanted.method, url, fields, is_private)
        body = Body(_nothing, 0, [])
        start = b""
        async with self._upstreams.sent(outgoing, body) as response:
            answered_at = now()
            async for part, _ in parts(response, body, PATIENCE):
                start += part
                if len(start) >= MOST_OF_CHECK:
                    response.close()  # more is not looked at, and may never end
                    break
            return judge(service.service.service, Answer(response.status, start, is_check=True)), answered_at


def _url(service: Forwarded, wanted: Check, settings: Mapping[str, str]) -> str:
    """Return the address of a check. Raises Conflict if the key lacks a setting for it."""
    if wanted.url is None:
        return f"{service.base_url(settings)}{wanted.path}"
    return service.filled(wanted.url, settings)


def _may_be_private(service: Forwarded, url: str) -> bool:
    return service.upstream.allow_private or is_private_address(urlsplit(url).hostname or "")


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


@post(
    "/v1/check",
    opt=needs(None) | takes(Wanted),
    status_code=HTTPStatus.OK,
    tags=("Live checks",),
    security=[{"token": []}],
    operation_id="checkKey",
    summary="Check a key",
    description="Opens the key, sends its provider one request that only reads and costs nothing, and stores the "
    "verdict. Only the application that was registered with `keyman app create --checks` may call it.",
    response_description="The verdict.",
    responses=may_answer(
        errors.Unauthenticated,
        errors.Forbidden,
        errors.NotFound,
        errors.Undecryptable,
        errors.VaultUnavailable,
        *BODY_PROBLEMS,
        fault=FieldError("key_id", "must be an id: a whole number of at least 1"),
    ),
)
async def check_key(
    request: AnyRequest, checker: Injected[Checker], releasing: Injected[Releasing], caller: Injected[Principal]
) -> Checked:
    caller.require_checks()
    wanted = await read_json(request, Wanted)
    return await checker.check(releasing, caller, KeyId(wanted.key_id))
