"""Planes of a test process that share their routes: each is what it would be with routes of its own."""

from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher

from keyman.config.settings import Settings
from keyman.identity.passwords import Passwords
from keyman.planes.management.app import create_app
from tests.support.applications import routes_shared
from tests.support.database import copied, sqlite_at
from tests.support.planes import ORIGIN, PASSWORD, Vault, plane_at

OWN = {"state", "asgi_router", "asgi_handler", "event_emitter"}


def application_of(settings: Settings) -> Any:
    layer: Any = create_app(settings)
    while not hasattr(layer, "state"):
        layer = layer._app
    return layer


def slots_of(application: Any) -> dict[str, Any]:
    names = {name for kind in type(application).__mro__ for name in getattr(kind, "__slots__", ())}
    return {name: getattr(application, name) for name in names if hasattr(application, name)}


def test_an_application_with_shared_routes_has_what_one_with_routes_of_its_own_has(provisioned: Vault) -> None:
    settings = Settings(sqlite_at(Path("/nowhere")), provisioned.settings, public_url=ORIGIN)
    with routes_shared():
        first, second = slots_of(application_of(settings)), slots_of(application_of(settings))
    whole = slots_of(application_of(settings))
    assert first.keys() == second.keys() == whole.keys()
    assert {name for name in whole if first[name] is not second[name]} == OWN
    assert second["state"].keys() == whole["state"].keys()
    routes = [{(route.path, *sorted(route.methods)) for route in each["routes"]} for each in (second, whole)]
    assert routes[0] == routes[1]


@pytest.mark.anyio
async def test_planes_with_shared_routes_answer_from_their_own_databases_and_settings(
    migrated_sqlite: Path, tmp_path: Path, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    one, other = (copied(migrated_sqlite, tmp_path / name) for name in ("one.db", "other.db"))
    body = {"email": "ada@example.com", "password": PASSWORD}
    async with (
        plane_at(one, provisioned.settings, Passwords(quick_passwords)) as open_plane,
        plane_at(other, provisioned.settings, Passwords(quick_passwords), signup_open=False) as closed_plane,
    ):
        assert (await open_plane.client().post("/api/auth/signup", json=body)).status_code == 201
        assert (await closed_plane.client().post("/api/auth/signup", json=body)).status_code == 403
        assert (await open_plane.client().post("/api/auth/login", json=body)).status_code == 200
        assert (await closed_plane.client().post("/api/auth/login", json=body)).status_code == 401
