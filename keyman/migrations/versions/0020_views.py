"""The management plane sees of an application whose keys it may use and for which services, and no more of its row.

The first view has the users whose keys an application may use, and the services, without the issuers by which this is
decided. The second one has the audiences of the JWTs of applications, without the applications. The new table has the
audiences of the JWTs of users: every plane refuses a token that is for both.

A later migration that copies one of these tables on SQLite, or changes the type of a column on PostgreSQL, has to drop
the views before and make them again after.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"

# `issuers` has issuers with a space between them, and an issuer has no space. LIKE would ignore case on SQLite.
PERMITTED = """
CREATE VIEW permitted_applications {options} AS
SELECT users.id AS user_id, applications.id AS application_id, applications.services AS services
FROM users CROSS JOIN applications
WHERE applications.disabled_at IS NULL AND NOT applications.checks AND (
    applications.issuers IS NULL
    OR EXISTS (
        SELECT 1 FROM application_identities AS named
        WHERE named.user_id = users.id
        AND {position}(' ' || applications.issuers || ' ', ' ' || named.issuer || ' ') > 0
    )
    OR EXISTS (
        SELECT 1 FROM identities AS proved
        WHERE proved.user_id = users.id
        AND {position}(' ' || applications.issuers || ' ', ' ' || proved.issuer || ' ') > 0
        AND NOT EXISTS (
            SELECT 1 FROM application_identities AS other
            WHERE other.issuer = proved.issuer AND other.subject = proved.subject AND other.user_id <> proved.user_id
        )
    )
)
"""

AUDIENCES = """
CREATE VIEW application_audiences {options} AS
SELECT DISTINCT jwt_audience AS audience
FROM applications
WHERE disabled_at IS NULL AND jwt_audience IS NOT NULL
"""


def upgrade() -> None:
    op.create_table(
        "user_audiences",
        sa.Column("audience", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("audience", name="pk_user_audiences"),
    )
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    # Without it, a function of the reader's own could see rows that the view leaves out.
    options = "" if is_sqlite else "WITH (security_barrier)"
    for view in (PERMITTED, AUDIENCES):
        op.execute(view.format(options=options, position="instr" if is_sqlite else "strpos"))
