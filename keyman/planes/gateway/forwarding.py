"""One request through the gateway, in this order: who calls, may this be sent, whose key, send it, pass the answer on.

Nothing of the body is read before the caller is known and the key was released. The audit entry is committed before
anything leaves. Nothing is kept in memory but what is on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from keyman.config.gateway import GatewaySettings
from keyman.errors import (
    InvalidRequest,
    PathNotAllowed,
    Problem,
    ProviderAnswerRefused,
    raise_alone,
)
from keyman.http.connections import Peer
from keyman.http.exchange import ASGIApp, Exchange, Receive, Scope, Send, exchange_of
from keyman.http.limit import RateLimit
from keyman.identity import principals
from keyman.identity.principals import Credentials, Principal, Proof
from keyman.identity.tokens import Scope as Permission
from keyman.keys.checks import Sent, from_use, store_use
from keyman.keys.release import Released, Releasing, note_use, release
from keyman.planes.gateway.answers import parts
from keyman.planes.gateway.body import Body
from keyman.planes.gateway.callers import ADVICE, requested_key
from keyman.planes.gateway.headers import credential, forwardable, to_return, to_send, values_of
from keyman.planes.gateway.measures import Measures, Transfer
from keyman.planes.gateway.redaction import Pattern, Redaction, TooMuchWork, redact
from keyman.planes.gateway.services import Forwarded, forwarded
from keyman.planes.gateway.streams import Left, Stream, Streams
from keyman.planes.gateway.targets import REFUSED_METHODS, Target, check_query, parse_target
from keyman.planes.gateway.upstream import Outgoing, Upstreams
from keyman.providers.catalogue import Catalogue
from keyman.providers.paths import allows
from keyman.providers.verdicts import MOST, Verdict

_TOO_MUCH_WORK = "The provider's answer is made so that it cannot be searched for the key. It was not passed on."
_RATE = "This caller sends too many requests. Wait before the next one."


@dataclass(frozen=True, slots=True)
class _Job:
    """One request whose key was released."""

    outgoing: Outgoing
    body: Body
    exchange: Exchange
    released: Released
    caller: Principal
    transfer: Transfer
    send: Send
    peer: Peer | None


_ENDS = ("/v1", "/openai/v1")
"""What people forget at the end of a base URL."""


def _not_allowed(found: Forwarded, method: str, path: str) -> PathNotAllowed:
    """Return the refusal of a path, with what is missing in the base URL if that is what is wrong."""
    missing = next((end for end in _ENDS if allows(found.rules, method, end + path)), None)
    advice = (
        "Use the resolver, or ask the operator of keyman to allow it."
        if missing is None
        else f"The base URL lacks {missing} at its end."
    )
    return PathNotAllowed(f"The gateway does not forward this method and path. Nothing was sent. {advice}")


class Forwarder:
    """Sends requests to providers. Paths that belong to no service go to `others`."""

    def __init__(
        self,
        others: ASGIApp,
        catalogue: Catalogue,
        proofs: Sequence[Proof],
        settings: GatewaySettings,
        streams: Streams,
        measures: Measures,
    ) -> None:
        self._others = others
        self._catalogue = catalogue
        self._services = forwarded(catalogue)
        self._proofs = proofs
        self._settings = settings
        self._limits = {kind: RateLimit(settings.rate, detail=_RATE) for kind in ("application", "user")}
        self._streams = streams
        self._measures = measures
        self.upstreams = Upstreams(settings)
        self.releasing: Releasing | None = None
        """Set while the plane is open."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._others(scope, receive, send)
            return
        exchange = exchange_of(scope)
        fields = scope["headers"]
        if exchange.method in REFUSED_METHODS or values_of(fields, b"upgrade"):
            raise InvalidRequest(
                "The gateway supports neither CONNECT, TRACE nor Upgrade. Use the resolver for a WebSocket."
            )
        target = parse_target(scope.get("raw_path") or scope["path"].encode())
        found = self._services.get(target.slug)
        if found is None:
            await self._others(scope, receive, send)
            return
        scope["path_template"] = f"/{target.slug}"
        await self._forward(found, target, scope, receive, send)

    async def _forward(self, found: Forwarded, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
        exchange, fields, query = exchange_of(scope), scope["headers"], scope.get("query_string", b"")
        caller = await self._identify(exchange)
        holder = _holder(caller)
        self._limits[holder[0]].take(holder[1])
        with self._streams.place(holder):
            check_query(query)
            if not allows(found.rules, exchange.method, target.path):
                raise _not_allowed(found, exchange.method, target.path)
            body = Body(receive, self._settings.max_body, fields)
            wanted, own_fields = requested_key(fields, caller, found.service.service), forwardable(fields)
            released = await release(self._open(), caller, wanted, found.base_url)
            base = found.base_url(released.settings)
            own = credential(found.upstream.auth, released.value.reveal())
            outgoing = Outgoing(
                exchange.method,
                f"{base}{target.path}{'?' if query else ''}{query.decode('ascii')}",
                to_send(own_fields, own, found.upstream.headers),
                found.upstream.may_be_private,
            )
            exchange.turn.end()
            transfer = self._measures.begun(found.service.service)
            client = scope.get("client")
            peer = None if client is None else (client[0], int(client[1]))  # the server gives it as text
            job = _Job(outgoing, body, exchange, released, caller, transfer, send, peer)
            try:
                await self._run(job)
            finally:
                exchange.noted |= self._measures.observe(job.transfer)
                if not released.is_noted:
                    await note_use(self._open().db, caller, released.key_id)
                await self._note_verdict(job, proves=found.proves(exchange.method, target.path))

    async def _identify(self, exchange: Exchange) -> Principal:
        token, jwt, _ = exchange.claimed
        credentials = Credentials(token, None, exchange.request_id, exchange.address, jwt)
        caller = await principals.identify(self._open().db, self._proofs, credentials, ADVICE)
        if caller.application is not None:
            exchange.application_id = caller.application.id
            caller.require_no_checks()
        else:
            exchange.user_id = caller.user_id
            caller.require(Permission.KEYS_USE)
        return caller

    def _open(self) -> Releasing:
        assert self.releasing is not None, "the plane is open while it gets requests"
        return self.releasing

    async def _note_verdict(self, job: _Job, *, proves: bool) -> None:
        """Record what the answer says of the key, if it says something new. `proves` is False for a public path."""
        status, moment, sent = job.transfer.status, job.transfer.answered_at, Sent.of(job.released.row)
        if status is None or moment is None:
            return
        if status >= HTTPStatus.BAD_REQUEST:
            found = from_use(job.released.service, sent, status, bytes(job.transfer.start), moment)
            if found is not None:
                await store_use(self._open().db, sent, found, moment)
        elif status < HTTPStatus.MULTIPLE_CHOICES and proves and sent.verdict == Verdict.REFUSED:
            await store_use(self._open().db, sent, None, moment)

    async def _run(self, job: _Job) -> None:
        """Send the request and pass the answer on, unless the caller may no longer act or the client leaves."""
        with self._streams.opened(job.caller, job.released.user_id, job.peer) as stream, _watched(job, stream):
            try:
                await stream.run(lambda: self._pass_on(job))
            except Left:
                job.transfer.left = True
                job.exchange.status = job.exchange.status if job.exchange.started else LEFT
            finally:
                job.body.forget()

    async def _pass_on(self, job: _Job) -> None:
        released, transfer = job.released, job.transfer
        pattern = Pattern(released.value, self._catalogue.mask(released.service, released.value.reveal()))
        redaction = Redaction(pattern)
        async with self.upstreams.sent(job.outgoing, job.body) as response:
            transfer.answered(response.status)
            with _searching():
                fields = to_return(response.raw_headers, lambda value: redact(pattern, value))
            fields.append((b"keyman-request-id", job.exchange.request_id.encode()))
            fields.append((b"keyman-key-id", str(released.key_id).encode()))
            if job.body.is_under_way:
                fields.append((b"connection", b"close"))  # as in `problems.render`
            job.exchange.is_passed_on = True
            await job.send({"type": "http.response.start", "status": response.status, "headers": fields})
            transfer.started()
            is_first = True
            async for part, is_last in parts(response, job.body, self._settings.timeout):
                # What is held back of a part comes with the next one.
                with _searching():
                    passed = redaction.finish(part) if is_last else redaction.feed(part)
                transfer.size += len(passed)
                if response.status >= HTTPStatus.BAD_REQUEST and len(transfer.start) < MOST:
                    transfer.start += passed[:MOST]
                if passed or is_last or is_first:  # the server sends the headers with the first part, even an empty one
                    await job.send({"type": "http.response.body", "body": passed, "more_body": not is_last})
                is_first = False


LEFT = 499
"""The status in the log for a client that left before the answer began. nginx has it, too."""


WATCHED_AFTER = 0.05
"""Seconds after which the gateway begins to notice that the client leaves. Many answers are complete by then, and
watching costs a task.
"""


@contextlib.contextmanager
def _watched(job: _Job, stream: Stream) -> Iterator[None]:
    """End the stream when its client closes the connection."""
    watching: list[asyncio.Task[None]] = []

    def watch() -> None:
        watching.append(asyncio.create_task(_end_when_left(job.body, stream)))

    timer = asyncio.get_running_loop().call_later(WATCHED_AFTER, watch)
    try:
        yield
    finally:
        timer.cancel()
        for task in watching:
            task.cancel()


async def _end_when_left(body: Body, stream: Stream) -> None:
    """End the stream when its client closes the connection, or its body does not arrive."""
    try:
        if body.is_empty:
            await body.drained()
        await body.over.wait()
        if body.fault is not None:
            stream.end(body.fault)
            return
        await body.left()
    except Problem:  # the connection ended before the body did
        pass
    stream.end(Left("The client has left."))


@contextlib.contextmanager
def _searching() -> Iterator[None]:
    try:
        yield
    except TooMuchWork:
        raise_alone(ProviderAnswerRefused(_TOO_MUCH_WORK))


def _holder(caller: Principal) -> tuple[str, int]:
    """Return whose requests are counted together: those of an application, or of a user."""
    return ("user", caller.user_id) if caller.application is None else ("application", caller.application.id)
