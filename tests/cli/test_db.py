"""`keyman db`, as transcripts."""

from __future__ import annotations

import stat
from pathlib import Path

from sqlalchemy.engine import URL

from keyman.keys.deployment import SCHEMA_REVISION
from tests.cli.transcript import keyman
from tests.support.cli import Finished, environment


def test_a_database_is_made_brought_up_and_checked(empty_database: URL) -> None:
    env = environment(KEYMAN_DATABASE_URL=empty_database.render_as_string(hide_password=False))

    # A file that is not there is empty, too, whatever word is used for it.
    before = keyman("db", "check", env=env)
    assert before.code == 1
    assert "keyman db upgrade" in before.err

    done = Finished(0, "", f"Upgraded from empty to {SCHEMA_REVISION}.\n")
    assert keyman("db", "upgrade", env=env) == done
    assert keyman("db", "upgrade", env=env) == Finished(0, "", f"Already at {SCHEMA_REVISION}.\n")
    assert keyman("db", "check", env=env) == Finished(0, "", "The schema is up to date.\n")

    if empty_database.database and empty_database.get_backend_name() == "sqlite":
        assert stat.S_IMODE(Path(empty_database.database).stat().st_mode) == 0o600
