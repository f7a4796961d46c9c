"""What `keyman db upgrade` refuses to grant. That rights suffice, and are not too many: faults/test_compromise.py."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import URL

from keyman import migrations
from keyman.db import SCHEMA_REVISION
from keyman.errors import ConfigurationError
from keyman.migrations.rights import MANAGEMENT, RESOLVER, Planes
from tests.cli.transcript import keyman
from tests.support.live import environment


def test_every_table_is_some_planes_and_no_plane_has_more_than_there_are() -> None:
    assert {*MANAGEMENT, *RESOLVER} == {*migrations.tables().tables, "alembic_version"}
    assert not {"applications", "application_tokens"} & MANAGEMENT.keys()


@pytest.mark.anyio
async def test_what_cannot_be_granted_is_said_and_nothing_is_upgraded(empty_database: URL) -> None:
    owner = str(empty_database.username)
    is_sqlite = empty_database.get_backend_name() == "sqlite"
    for planes, said in (
        (Planes("keyman_a", "keyman_a"), "a database user each"),
        (Planes("keyman_a", owner), "neither may be the one that upgrades"),
        (Planes("keyman_a", 'keyman"; DROP TABLE users; --'), "has no user of the name"),
    ):
        with pytest.raises(ConfigurationError, match="SQLite has no users" if is_sqlite else said):
            await migrations.upgrade(empty_database, planes)
    assert await migrations.upgrade(empty_database) == (None, SCHEMA_REVISION)


def test_one_plane_alone_is_wrong_usage(empty_database: URL) -> None:
    env = environment(KEYMAN_DATABASE_URL=empty_database.render_as_string(hide_password=False))
    for one in ("--management", "--resolver"):
        done = keyman("db", "upgrade", one, "somebody", env=env)
        assert done.code == 2
        assert "Give both --management and --resolver" in done.err
