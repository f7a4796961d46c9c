"""The rights of each plane's PostgreSQL user, table by table and view by view. The user has no others.

A registered application gets keys from the resolver. So the user of the management plane, which faces the internet,
cannot register an application or read the hashes of its tokens, and no plane can change or remove an audit entry.
Only an operator can register, prune and migrate, as the user that owns the tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.engine import Connection

from keyman.errors import ConfigurationError

ROWS = "SELECT, INSERT, UPDATE, DELETE"

MANAGEMENT: Mapping[str, str] = {
    "alembic_version": "SELECT",
    "api_keys": ROWS,
    "api_tokens": ROWS,
    "application_audiences": "SELECT",
    "application_blocks": "SELECT, INSERT, DELETE",
    "application_identities": "SELECT, DELETE",
    # Not for which services, whose users it serves, how it logs in, nor where it is: see `permitted_applications`.
    "applications": "SELECT (id, name, disabled_at), UPDATE (share_lock)",
    "audit_chains": "SELECT, UPDATE (sequence, hash)",
    "audit_log": "SELECT, INSERT",
    "deployment": "SELECT, UPDATE (sentinel)",
    "idempotency": ROWS,
    "identities": ROWS,
    "key_labels": "SELECT, INSERT, DELETE",
    "logout_tokens": ROWS,
    "owners": "SELECT, INSERT, UPDATE (kind)",  # to lock a row; nothing reads the kind
    "permitted_applications": "SELECT",
    "portal_links": "SELECT, DELETE",
    "probes": "SELECT, UPDATE (proved_at)",
    "provider_visits": ROWS,
    "sessions": ROWS,
    "throttle": ROWS,
    "token_labels": "SELECT, INSERT, DELETE",
    "user_audiences": "SELECT, INSERT",
    "users": "SELECT, INSERT, UPDATE",
}
"""The rights by table or view. A plane cannot even read one that is not listed.

`UPDATE (share_lock)` is for locking a row: nothing can be stored in that column.
"""

_VERDICT = "check_verdict, checked_at, check_detail, checked_by"
"""The columns of the last verdict on a key."""

RESOLVER: Mapping[str, str] = {
    "alembic_version": "SELECT",
    "api_keys": f"SELECT, UPDATE (undecryptable, last_used_at, last_used_by, {_VERDICT})",
    "application_blocks": "SELECT",
    "application_identities": "SELECT, INSERT",
    "application_tokens": "SELECT, UPDATE (last_used_at)",
    "applications": "SELECT, UPDATE (share_lock)",
    "audit_chains": "SELECT, UPDATE (sequence, hash)",
    "audit_log": "SELECT, INSERT",
    "deployment": "SELECT",
    "identities": "SELECT (id, user_id, issuer, subject)",
    "owners": "SELECT (id), INSERT",
    "portal_links": "SELECT (id), INSERT",
    "probes": "SELECT, UPDATE (proved_at)",
    "user_audiences": "SELECT",
    "users": "SELECT (id, disabled_at, has_password, has_blocks), INSERT (id, created_at), UPDATE (share_lock)",
}

GATEWAY: Mapping[str, str] = {
    "alembic_version": "SELECT",
    "api_keys": f"SELECT, UPDATE (undecryptable, last_used_at, last_used_by, {_VERDICT})",
    "api_tokens": "SELECT, UPDATE (last_used_at)",
    "application_audiences": "SELECT",
    "application_blocks": "SELECT",
    "application_identities": "SELECT",
    "application_tokens": "SELECT, UPDATE (last_used_at)",
    "applications": "SELECT, UPDATE (share_lock)",
    "audit_chains": "SELECT, UPDATE (sequence, hash)",
    "audit_log": "SELECT, INSERT",
    "deployment": "SELECT",
    "identities": "SELECT (id, user_id, issuer, subject)",
    "probes": "SELECT, UPDATE (proved_at)",
    "user_audiences": "SELECT",
    "users": "SELECT (id, created_at, disabled_at, has_blocks), UPDATE (share_lock)",
}

NOBODYS = (
    *((right, "applications") for right in ("INSERT", "TRUNCATE")),
    *((f"UPDATE ({column})", "applications") for column in ("id", "name", "services", "disabled_at")),
    *((right, "application_tokens") for right in ("INSERT", "UPDATE (token_hash)", "TRUNCATE")),
    *((right, "audit_log") for right in ("UPDATE", "DELETE", "TRUNCATE")),
    *((right, "audit_chains") for right in ("INSERT", "UPDATE (base_sequence)", "DELETE", "TRUNCATE")),
    *((right, "application_identities") for right in ("UPDATE", "TRUNCATE")),
    *((right, "user_audiences") for right in ("UPDATE", "DELETE", "TRUNCATE")),
)
"""The rights that no plane may have: with them, an attacker could register an application, change the audit log, map a
subject of an application to another user, or use a token of users as one of an application.
"""

OF_OPERATORS = (
    *("services", "created_at", "portal", "issuers", "return_urls", "checks"),
    *("jwt_issuer", "jwt_subject", "jwt_audience", "jwt_jwks_url", "jwt_jwks"),
)
"""The columns of an application that the management plane may not read."""

OTHERS: Mapping[str, Sequence[tuple[str, str]]] = {
    "management": (
        ("INSERT", "application_identities"),
        ("INSERT", "portal_links"),
        ("SELECT", "application_tokens"),
        *((f"SELECT ({column})", "applications") for column in OF_OPERATORS),
    ),
    "resolver": (
        ("SELECT (email)", "users"),
        ("SELECT (password_hash)", "users"),
        ("INSERT", "identities"),
        ("DELETE", "application_blocks"),
    ),
    "gateway": (
        ("SELECT (email)", "users"),
        ("SELECT (password_hash)", "users"),
        ("INSERT", "users"),
        ("INSERT", "identities"),
        ("INSERT", "application_identities"),
        ("INSERT", "portal_links"),
        ("INSERT", "api_tokens"),
        ("DELETE", "application_blocks"),
    ),
}
"""The rights that only other planes may have, by plane."""

UNNUMBERED = (
    "application_blocks",
    "idempotency",
    "logout_tokens",
    "provider_visits",
    "throttle",
    "token_labels",
    "user_audiences",
    "users",
)
"""Tables without a sequence into which a plane inserts."""

OWNED = {
    "TABLE": "SELECT tablename FROM pg_tables WHERE tableowner = current_user AND schemaname = current_schema()"
    " UNION ALL SELECT viewname FROM pg_views WHERE viewowner = current_user AND schemaname = current_schema()",
    "SEQUENCE": "SELECT sequencename FROM pg_sequences WHERE sequenceowner = current_user"
    " AND schemaname = current_schema()",
}


_MAY_USE_SCHEMA = "SELECT has_schema_privilege(:user, current_schema(), 'USAGE')"


class Planes(NamedTuple):
    """The PostgreSQL users of the planes. `gateway` is None where there is no gateway."""

    management: str
    resolver: str
    gateway: str | None = None

    def rights(self) -> dict[str, Mapping[str, str]]:
        """Return the rights of each user."""
        known = {self.management: MANAGEMENT, self.resolver: RESOLVER}
        return known if self.gateway is None else {**known, self.gateway: GATEWAY}

    def are_distinct(self, current: str) -> bool:
        """Return True if no two are the same, and none is the current user."""
        users = [user for user in self if user is not None]
        return len({*users, current}) == len(users) + 1


def grant(connection: Connection, planes: Planes) -> None:
    """Give each plane's user its rights to every table, and revoke all others.

    It runs as the user that owns the tables, at the end of an upgrade and in its transaction. No plane has rights to a
    new table until it is listed here. Raises ConfigurationError.
    """
    if connection.dialect.name != "postgresql":
        raise ConfigurationError(
            "SQLite has no users: anyone who can open its file can do anything. Leave out --management, --resolver and "
            "--gateway."
        )
    current = connection.execute(text("SELECT current_user")).scalar_one()
    if not planes.are_distinct(current):
        raise ConfigurationError(
            "Each plane needs its own database user, and neither may be the one that runs the upgrade."
        )
    for user in planes.rights():
        if not connection.execute(text("SELECT 1 FROM pg_roles WHERE rolname = :user"), {"user": user}).scalar():
            raise ConfigurationError(
                "A user that was given for a plane does not exist in the database. Create it first."
            )
    quote = connection.dialect.identifier_preparer.quote
    owned = {kind: [quote(name) for name in connection.execute(text(names)).scalars()] for kind, names in OWNED.items()}
    for user, rights in planes.rights().items():
        for statement in _statements(quote(user), rights, owned):
            connection.exec_driver_sql(statement)
        if not connection.execute(text(_MAY_USE_SCHEMA), {"user": user}).scalar_one():
            schema = connection.execute(text("SELECT current_schema()")).scalar_one()
            connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {quote(schema)} TO {quote(user)}")


def missing(connection: Connection, rights: Mapping[str, str]) -> list[str]:
    """Return those of the rights that this connection's user lacks, such as `INSERT on owners`.

    A table or a column that does not exist is ignored: the schema then differs, which is another fault.
    """
    return [
        f"{right} on {name}"
        for right, name, check in _checks(rights)
        if connection.execute(text(check), {"name": name}).scalar() is False
    ]


def _checks(rights: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield each right to a table or a sequence, its name, and the SQL that checks the right to `:name`."""
    for table, granted in rights.items():
        for right, columns in re.findall(r"(\w+)(?: \(([^)]*)\))?", granted):
            if not columns:
                yield right, table, f"SELECT has_table_privilege(to_regclass(:name), '{right}')"
            for column in columns.split(", ") if columns else ():
                yield (
                    f"{right} ({column})",
                    table,
                    f"SELECT has_column_privilege(attrelid, attnum, '{right}') FROM pg_attribute"  # noqa: S608  # of this module
                    f" WHERE attrelid = to_regclass(:name) AND attname = '{column}'",
                )
        if _is_numbered(table, granted):
            yield "USAGE", f"{table}_id_seq", "SELECT has_sequence_privilege(to_regclass(:name), 'USAGE')"


def _is_numbered(table: str, granted: str) -> bool:
    """Return True if a plane inserts into the table, whose ids come from a sequence."""
    return "INSERT" in granted and table not in UNNUMBERED


def excess(connection: Connection, plane: str) -> list[str]:
    """Return the rights of this connection's user that `plane` may not have, such as `INSERT on applications`.

    A table that does not exist is ignored.
    """
    return [
        f"{right} on {table}"
        for right, table in (*NOBODYS, *OTHERS[plane])
        if connection.execute(text(f"SELECT {_check_sql(right)}"), {"table": table}).scalar_one()
    ]


def _check_sql(right: str) -> str:
    """Return the SQL that checks a right to `:table`. A right can also be granted for single columns."""
    name, _, column = right.removesuffix(")").partition(" (")
    if column:
        return f"has_column_privilege(to_regclass(:table), '{column}', '{name}')"
    kind = "any_column" if name in ("INSERT", "UPDATE", "SELECT") else "table"
    return f"has_{kind}_privilege(to_regclass(:table), '{name}')"


def _statements(user: str, rights: Mapping[str, str], owned: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for kind, names in owned.items():
        # Earlier stacks gave every plane all rights on the owner's future tables.
        yield f"ALTER DEFAULT PRIVILEGES REVOKE ALL ON {kind}S FROM {user}"
        yield from (f"REVOKE ALL ON {kind} {name} FROM {user}" for name in names)
    for table, granted in rights.items():
        yield f"GRANT {granted} ON TABLE {table} TO {user}"
        if _is_numbered(table, granted):
            yield f"GRANT USAGE ON SEQUENCE {table}_id_seq TO {user}"
