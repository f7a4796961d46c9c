"""keyman behind the real nginx and HAProxy, as operators set them up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import URL

from tests.support.cli import Service, serve, variables
from tests.support.database import copied
from tests.support.http import NO_TLS
from tests.support.planes import Vault
from tests.support.proxies import haproxy, nginx, require_proxies

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def proxied_env(provisioned: Vault, migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `keyman serve` needs, with a database of this module's own. Skips without the proxies."""
    require_proxies()
    database = URL.create("sqlite+aiosqlite", database=str(tmp_path_factory.mktemp("proxied") / "keyman.db"))
    copied(migrated_sqlite, Path(str(database.database)))
    return variables(provisioned.settings, database)


@pytest.fixture(scope="module")
def proxied(proxied_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One management plane that trusts the proxies of this machine."""
    directory = tmp_path_factory.mktemp("service")
    with serve({**proxied_env, "KEYMAN_TRUSTED_PROXIES": "127.0.0.1"}, directory) as service:
        yield service


def test_a_plane_answers_through_nginx_and_through_haproxy(proxied: Service, tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx", proxied.url) as front, haproxy(tmp_path / "haproxy", front.url) as outer:
        assert httpx.get(f"{outer.url}/livez", verify=NO_TLS).json() == {"status": "ok"}
