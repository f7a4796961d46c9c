"""`/livez` and `/readyz`, for the platform. They need no credentials and return no secret.

`/metrics` is here for `keyman dev`. Elsewhere the parent of the workers serves it (`metrics.py`), on another port.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from litestar import MediaType, Response, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ControllerRouterHandler
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import select

from keyman.config.settings import Settings
from keyman.errors import DatabaseUnavailable, VaultReason, VaultUnavailable
from keyman.http.exchange import exchange_of
from keyman.http.guards import PUBLIC
from keyman.http.openapi import may_answer
from keyman.http.requests import AnyRequest, Injected
from keyman.keys.deployment import deployment
from keyman.keys.probe import Probe
from keyman.metrics import Metrics
from keyman.storage.statements import scalar
from keyman.storage.transactions import Database
from keyman.vault.guard import Guard

VaultState = Literal["ok", "sealed", "unreachable", "forbidden", "wrong-key"]

_STATES: dict[VaultReason, VaultState] = {
    VaultReason.SEALED: "sealed",
    VaultReason.FORBIDDEN: "forbidden",
    VaultReason.LOGIN: "forbidden",
    VaultReason.WRONG_KEY: "wrong-key",
}
"""Every other reason is "unreachable": Vault may run, but does not do what keyman needs."""


class Checks(msgspec.Struct):
    """The state of each part that a plane needs."""

    database: Literal["ok", "unreachable"]
    vault: VaultState


class Readiness(msgspec.Struct):
    """Whether the plane can work, and the state of its parts."""

    status: Literal["ok", "degraded"]
    checks: Checks


class Liveness(msgspec.Struct):
    """The process runs."""

    status: Literal["ok"]


@get(
    "/livez",
    opt=PUBLIC,
    tags=("Health",),
    operation_id="livez",
    response_description="The process runs.",
    summary="Is the process running",
    description="Uses neither the database nor Vault.",
    responses=may_answer(),
)
async def livez() -> Liveness:
    return Liveness("ok")


@get(
    "/readyz",
    opt=PUBLIC,
    tags=("Health",),
    operation_id="readyz",
    response_description="Everything works.",
    summary="Does everything work",
    description="Reads from the database, proves every few seconds that it can write to it, and uses Vault's key. "
    "A plane that is about to stop is not ready either.",
    responses={
        **may_answer(),
        503: ResponseSpec(
            data_container=Readiness,
            description="Something does not work, or the plane is about to stop",
            generate_examples=False,
        ),
    },
)
async def readyz(
    request: AnyRequest, db: Injected[Database], probe: Injected[Probe], guard: Injected[Guard]
) -> Response[Readiness]:
    checks = Checks(await _database(db, probe), await _vault(guard))
    is_ready = checks.database == "ok" and checks.vault == "ok" and not exchange_of(request.scope).is_draining
    return Response(Readiness("ok" if is_ready else "degraded", checks), status_code=200 if is_ready else 503)


@get(
    "/metrics",
    opt=PUBLIC,
    media_type=MediaType.TEXT,
    include_in_schema=False,
)
async def metrics(metrics: Injected[Metrics]) -> Response[bytes]:
    return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)


def beside(settings: Settings) -> list[ControllerRouterHandler]:
    """Return the route of `/metrics`, if this plane serves it on its own port."""
    return [metrics] if settings.metrics_on_plane else []


_ANSWERS = scalar(select(deployment.c.id), int)


async def _database(db: Database, probe: Probe) -> Literal["ok", "unreachable"]:
    try:
        async with db.read() as connection:
            await _ANSWERS.one(connection)
        await probe.verify()
    except DatabaseUnavailable:
        return "unreachable"
    return "ok"


async def _vault(guard: Guard) -> VaultState:
    try:
        # Everybody may call this, so it is limited: the guard shares one result for a second.
        await guard.verify()
    except VaultUnavailable as fault:
        return _STATES.get(fault.reason, "unreachable")
    except DatabaseUnavailable:
        return "unreachable"
    return "ok"
