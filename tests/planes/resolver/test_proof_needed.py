"""Linking, unlinking, a first password and deletion need somebody who is present: no token and no portal session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import URL

from keyman.config.identity import JwtSettings
from keyman.identity.passwords import Passwords
from keyman.identity.tables import identities, users
from tests.planes.management.api.harness import ApiPlane, api_plane_at
from tests.planes.management.web.openid import come_back, of_forger
from tests.planes.resolver.pair import Pair, resolver_at
from tests.planes.resolver.test_portal import arrived
from tests.planes.resolver.test_portal_links import PORTAL
from tests.support.http import faulty_server
from tests.support.issuer import AUDIENCE, Issuer, served
from tests.support.openid import Forger
from tests.support.planes import ORIGIN, PASSWORD, Vault

pytestmark = pytest.mark.anyio

SCOPES = ("keys:read", "keys:write", "tokens:manage", "audit:read", "keys:use")


class Asked(NamedTuple):
    """A request that needs a proof of presence, as the API or a page takes it."""

    method: str
    path: str
    json: dict[str, Any] | None = None
    form: dict[str, str] | None = None


OLD = {"current_password": PASSWORD}
NEW = {"new_password": "another horse battery staple"}
ACTIONS = {
    "link": [Asked("POST", "/settings/account/sign-ins", form=OLD)],
    "unlink": [Asked("POST", "/settings/account/sign-ins/1/unlink", form=OLD)],
    "first password": [
        *(Asked("PUT", "/api/auth/password", json=body) for body in (NEW, {**OLD, **NEW})),
        Asked("POST", "/settings/account", form=NEW),
    ],
    "delete": [
        *(Asked("DELETE", "/api/auth/me", json=body) for body in ({}, OLD)),
        Asked("POST", "/settings/account/delete", form=OLD),
    ],
}


@pytest.fixture
async def voucher() -> AsyncIterator[Issuer]:
    async with served() as found:
        yield found


@pytest.fixture
async def entrance() -> AsyncIterator[Forger]:
    forger = Forger()
    async with faulty_server(forger) as server:
        forger.address = server.address
        yield forger


@pytest.fixture
async def whole_pair(
    database: URL, provisioned: Vault, quick_passwords: PasswordHasher, voucher: Issuer, entrance: Forger
) -> AsyncIterator[Pair]:
    """Both planes, with every way in."""
    ways = {"jwt": JwtSettings(voucher.url, AUDIENCE), "oidc": of_forger(entrance)}
    async with (
        api_plane_at(database, provisioned.settings, Passwords(quick_passwords), **ways) as management,
        resolver_at(database, provisioned.resolver, public_url=ORIGIN) as resolver,
    ):
        yield Pair(management, resolver)


async def send(client: httpx.AsyncClient, asked: Asked) -> httpx.Response:
    headers = {"Accept": "text/html"} if asked.form is not None else {}
    return await client.request(asked.method, asked.path, json=asked.json, data=asked.form, headers=headers)


async def everybody(pair: Pair, voucher: Issuer, entrance: Forger) -> dict[str, httpx.AsyncClient]:
    """Callers that are not present, by how they come."""
    plane = pair.management
    by_password, by_provider = await plane.user(), plane.client()
    await come_back(by_provider, entrance)
    jwt = plane.client(headers={"Authorization": f"Bearer {voucher.token(scope=' '.join(SCOPES))}"})
    assert (await jwt.get("/api/keys")).status_code == 200
    shop = await pair.app(users=PORTAL)
    return {
        "a personal token": await plane.token(by_password, *SCOPES),
        "a personal token of somebody without a password": await plane.token(by_provider, *SCOPES),
        "a JWT": jwt,
        "a portal session": await arrived(pair, shop),
    }


async def state(plane: ApiPlane) -> list[object]:
    return [tuple(row) for table in (users, identities) for row in await plane.rows(table)]


async def test_no_token_and_no_portal_session_does_it(whole_pair: Pair, voucher: Issuer, entrance: Forger) -> None:
    callers = await everybody(whole_pair, voucher, entrance)
    before = await state(whole_pair.management)
    for caller, client in callers.items():
        for action, requests in ACTIONS.items():
            for asked in requests:
                answer = await send(client, asked)
                assert answer.status_code == 403, (caller, action, asked, answer.text[:200])
    assert await state(whole_pair.management) == before
    for client in callers.values():
        assert (await client.get("/api/auth/me")).status_code == 200
