"""A valid row of every table. Tests change one value at a time."""

from __future__ import annotations

import itertools
from typing import Any
from uuid import uuid4

from sqlalchemy import ForeignKeyConstraint, Row, Table, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman import migrations
from keyman.audit.entries import Action, Actor
from keyman.clock import now
from keyman.storage.transactions import Database, Unchecked

AnyRow = Row[*tuple[Any, ...]]
"""A row of any columns, read by name."""

_numbers = itertools.count(1)


def table(name: str) -> Table:
    return migrations.tables().tables[name]


def row(name: str, /, **values: Any) -> dict[str, Any]:
    """Every column that may not be null, each unique value a new one; its owner is user 1, or application 1."""
    number, moment = next(_numbers), now()
    digest = number.to_bytes(32, "big")
    valid: dict[str, dict[str, Any]] = {
        "owners": {"kind": "user"},
        "users": {
            "id": 1,
            "email": f"u{number}@example.com",
            "email_key": f"u{number}@example.com",
            "password_hash": "-",
            "created_at": moment,
        },
        "sessions": {
            "user_id": 1,
            "id_hash": digest,
            "created_at": moment,
            "last_seen_at": moment,
            "expires_at": moment,
        },
        "api_tokens": {
            "user_id": 1,
            "token_hash": digest,
            "name": "t",
            "scopes": "keys:read",
            "hint": "km_...abcd",
            "created_at": moment,
        },
        "applications": {"name": f"app-{number}", "services": "OPENAI", "created_at": moment},
        "application_blocks": {"user_id": 1, "application_id": 1, "created_at": moment},
        "application_tokens": {
            "application_id": 1,
            "token_hash": digest,
            "hint": "km_...abcd",
            "created_at": moment,
        },
        "api_keys": {
            "user_id": 1,
            "owner_id": 1,
            "service": "OPENAI",
            "encrypted_key": "vault:v1:AAAA",
            "key_version": 1,
            "value_uuid": uuid4(),
            "last_4_chars": "...",
            "disabled": False,
            "undecryptable": False,
            "created_at": moment,
            "updated_at": moment,
        },
        "key_labels": {"key_id": 1, "user_id": 1, "until": moment, "mask": "..."},
        "token_labels": {"token_id": number, "user_id": 1, "label": "t", "hint": "km_...abcd"},
        "idempotency": {
            "user_id": 1,
            "key_hash": digest,
            "fingerprint": digest,
            "response": "{}",
            "created_at": moment,
        },
        "identities": {"user_id": 1, "issuer": "https://id.example.com", "subject": f"s{number}", "created_at": moment},
        "application_identities": {
            "user_id": 1,
            "issuer": "keyman:app:app-1",
            "subject": f"s{number}",
            "created_at": moment,
        },
        "portal_links": {
            "code_hash": digest,
            "application_id": 1,
            "user_id": 1,
            "subject": "s1",
            "return_url": "https://app.example.com/",
            "created_at": moment,
            "expires_at": moment,
        },
        "provider_visits": {
            "state_hash": digest,
            "browser_hash": digest,
            "nonce": "n",
            "verifier": "v",
            "purpose": "sign-in",
            "expires_at": moment,
        },
        "logout_tokens": {"token_hash": digest, "expires_at": moment},
        "user_audiences": {"audience": f"audience-{number}"},
        "throttle": {"bucket": digest, "attempts": 1, "ends_at": moment},
        "audit_log": {
            "at": moment,
            "user_id": 1,
            "actor": "session",
            "action": "key.create",
            "chain": 0,
            "sequence": number,
            "hash": digest,
        },
        "audit_chains": {
            "chain": 100 + number,
            "sequence": 1,
            "hash": digest,
            "base_sequence": 0,
            "base_hash": digest,
        },
        "probes": {"plane": f"plane-{number}"},
        # A migrated database has its one row.
        "deployment": {"id": 1, "uuid": uuid4(), "created_at": moment},
    }
    return {**valid[name], **values}


async def add(connection: AsyncConnection, name: str, /, **values: Any) -> int | None:
    """Insert one; its id, where the table has one. A user gets an owner, and the owner's id, unless one is given."""
    if name == "users" and "id" not in values:
        values["id"] = await add(connection, "owners")
    statement = insert(table(name)).values(row(name, **values))
    if "id" not in table(name).c:
        await connection.execute(statement)
        return None
    return int((await connection.execute(statement.returning(table(name).c.id))).scalar_one())


async def add_owner(db: Database) -> None:
    """User 1 and application 1, who own what `row` makes: the first ones of empty tables."""
    async with db.write(Unchecked.OPERATOR) as connection:
        assert await add(connection, "users") == 1
        assert await add(connection, "applications") == 1


async def write_one(db: Database) -> None:
    """Commit a row that belongs to nobody, of the table `throttle`."""
    async with db.write(Unchecked.KEYMAN) as connection:
        await add(connection, "throttle")


async def count(db: Database, name: str) -> int:
    async with db.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(table(name)))).scalar_one())


def foreign_keys() -> list[ForeignKeyConstraint]:
    return [key for each in migrations.tables().sorted_tables for key in each.foreign_key_constraints]


_CHAIN = 9_000
"""A chain that no migration makes. No test verifies it."""


_SEQUENCE = itertools.count(1)


def entry(action: Action, **values: Any) -> dict[str, Any]:
    """A row of `audit_log`, by default of an application and of this moment."""
    unsaid = {"at": now(), "actor": Actor.APPLICATION, "actor_id": 1}
    return {**unsaid, "action": action, "chain": _CHAIN, "sequence": next(_SEQUENCE), "hash": bytes(32), **values}
