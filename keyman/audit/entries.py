"""The trail: one entry for each change to an account, a token, a key or an application, in the transaction of the
change itself; and one for each time that an application asks for a key, committed before it gets one.

An entry names who, what, when and from where; never a value, a ciphertext, a mask or a token.

Each entry's hash covers the one before it in its chain. Whoever writes holds the end of a chain until the transaction
is over, and with one chain all would stand in line for each other's commit. So a database that takes several writers
has several chains, and an entry goes to any whose end nobody holds. Writing the entry last keeps that short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Executable,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    ScalarSelect,
    Select,
    String,
    Table,
    Uuid,
    bindparam,
    column,
    func,
    insert,
    select,
    table,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.chain import digest
from keyman.clock import now
from keyman.errors import RefusedStatement
from keyman.storage.types import AnyRow, Id, UtcTime, metadata


class Action(StrEnum):
    SIGNUP = "account.signup"
    LOGIN = "account.login"
    LOGIN_FAILED = "account.login-failed"
    LOGOUT = "account.logout"
    SESSION_END = "account.session-end"
    PASSWORD = "account.password"  # noqa: S105  # the name of an action
    PASSWORD_FAILED = "account.password-failed"  # noqa: S105  # the name of an action
    DISABLE = "account.disable"
    ENABLE = "account.enable"
    TOKEN_CREATE = "token.create"  # noqa: S105  # the name of an action
    TOKEN_REVOKE = "token.revoke"  # noqa: S105  # the name of an action
    KEY_CREATE = "key.create"
    KEY_REPLACE = "key.replace"
    KEY_CHANGE = "key.change"
    KEY_PAUSE = "key.pause"
    KEY_RESUME = "key.resume"
    KEY_DELETE = "key.delete"
    KEY_RESOLVE = "key.resolve"
    KEY_RESOLVE_REFUSED = "key.resolve-refused"
    KEY_RESOLVE_FAILED = "key.resolve-failed"
    APPLICATION_CREATE = "application.create"
    APPLICATION_ROTATE = "application.rotate"
    APPLICATION_REVOKE = "application.revoke"
    VAULT_ROTATE = "vault.rotate"
    VAULT_REWRAP = "vault.rewrap"
    TRAIL_PRUNE = "trail.prune"
    TRAIL_CARRY = "trail.carry"


class Actor(StrEnum):
    """What acted: a signed-in person, a personal token, an application, an operator at the command line, or nobody."""

    SESSION = "session"
    TOKEN = "token"  # noqa: S105  # the name of a kind
    APPLICATION = "application"
    OPERATOR = "operator"
    ANONYMOUS = "anonymous"


class Origin(NamedTuple):
    """Where a call came from. `actor_id` is a token's id, personal or an application's; address and device are the
    client's, as far as known.

    The device is for the session that a sign-in opens; the trail does not keep it.
    """

    actor: Actor
    actor_id: int | None = None
    request_id: str | None = None
    address: str | None = None
    device: str | None = None


OPERATOR = Origin(Actor.OPERATOR)

NO_VALUE = UUID(int=0)
"""What a key holds from its deletion on: a row that is put back later is not the current one."""

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", Id, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("user_id", Id, ForeignKey("users.id")),  # whose trail it is; null for a sign-in to no account
    Column("actor", String(16), nullable=False),
    Column("actor_id", Id),
    Column("action", String(32), nullable=False),
    # No foreign keys here: the trail outlives what it tells of.
    Column("token_id", Id),
    Column("key_id", Id),
    Column("service", String(64)),
    Column("request_id", String(64)),
    Column("address", String(64)),
    Column("application", String(64)),  # its name: who asked for a key, or what an operator registered
    Column("purpose", String(200)),  # in the application's own words
    Column("reason", String(32)),  # why no key was given out
    Column("value_uuid", Uuid),  # which value a key holds from here on
    Column(
        "as_of", Id
    ),  # of an entry with a value: its own id; or that of the entry, pruned since, whose word it repeats
    Column("vault_request_id", String(64)),  # Vault's own, where it was asked before: its audit log has the same
    Column("detail", String(200)),  # what a command did, in keyman's words
    Column("chain", Integer, nullable=False),
    Column("sequence", BigInteger, nullable=False),  # from 1 in each chain, without a gap
    Column("hash", LargeBinary(32), nullable=False),
    CheckConstraint(f"actor IN ({', '.join(repr(a.value) for a in Actor)})", name="actor_known"),
    CheckConstraint("length(hash) = 32", name="hash_is_sha256"),
    Index("ix_audit_log_owner", "user_id", "id"),
    Index("ix_audit_log_owner_action", "user_id", "action", "id"),
    Index("ix_audit_log_at", "at"),  # where a filter by time begins: see listing.py
    Index("ix_audit_log_uses", "key_id", "action", "application", "at"),  # who has got a key: see keys/uses.py
    # In the order in which it is verified; and no chain ever forks.
    Index("ix_audit_log_chain", "chain", "sequence", unique=True),
    sqlite_autoincrement=True,
)

# Which value of a key is the current one: the entry with the highest `as_of`.
Index(
    "ix_audit_log_value",
    audit_log.c.key_id,
    audit_log.c.as_of,
    postgresql_where=audit_log.c.value_uuid.is_not(None),
    sqlite_where=audit_log.c.value_uuid.is_not(None),
)

# The two ends of each chain. The migration makes them: one on SQLite, 32 on PostgreSQL.
audit_chains = Table(
    "audit_chains",
    metadata,
    Column("chain", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),  # of the newest entry; 0 before the first
    Column("hash", LargeBinary(32), nullable=False),  # of the newest entry; the genesis before the first
    Column("base_sequence", BigInteger, nullable=False),  # of the newest one that was pruned; 0 when none was
    Column("base_hash", LargeBinary(32), nullable=False),  # of that; the genesis when none was
    CheckConstraint("base_sequence >= 0 AND sequence >= base_sequence", name="ends_in_order"),
    CheckConstraint("length(hash) = 32 AND length(base_hash) = 32", name="hashes_are_sha256"),
    postgresql_with={"fillfactor": 10},  # each commit updates a row in place, as long as its page has room
)


async def record(
    connection: AsyncConnection,
    origin: Origin,
    user_id: int | None,
    action: Action,
    *,
    token_id: int | None = None,
    key_id: int | None = None,
    service: str | None = None,
    application: str | None = None,
    purpose: str | None = None,
    reason: str | None = None,
    value_uuid: UUID | None = None,
    as_of: int | None = None,
    vault_request_id: str | None = None,
    detail: str | None = None,
    chain: int | None = None,
) -> int:
    """Write one entry in the caller's transaction, as the last thing in it: both are committed, or neither.

    Returns its chain, which a second entry of the same transaction has to name: to wait for another chain while one is
    held is how two transactions come to wait for each other.
    """
    end = await hold(connection, chain)
    entry = {
        "id": end.entry_id,
        "at": now(),
        "user_id": user_id,
        "actor": origin.actor,
        "actor_id": origin.actor_id,
        "action": action,
        "token_id": token_id,
        "key_id": key_id,
        "service": service,
        "request_id": origin.request_id,
        "address": origin.address,
        "application": application,
        "purpose": purpose,
        "reason": reason,
        "value_uuid": value_uuid,
        "as_of": as_of or (end.entry_id if value_uuid is not None else None),
        "vault_request_id": vault_request_id,
        "detail": detail,
        "chain": end.chain,
        "sequence": end.sequence + 1,
    }
    entry["hash"] = digest(end.hash, entry)
    values = {f"new_{name}": value for name, value in entry.items()}
    for statement in _TELL[connection.dialect.name]:
        await connection.execute(statement, values)
    return int(end.chain)


def current_value(key_id: ColumnElement[int] | int) -> ScalarSelect[UUID | None]:
    """The uuid of the value that a key holds, as the trail has it."""
    newest = select(audit_log.c.value_uuid).where(audit_log.c.key_id == key_id, audit_log.c.value_uuid.is_not(None))
    return newest.order_by(audit_log.c.as_of.desc()).limit(1).scalar_subquery()


async def hold(connection: AsyncConnection, chain: int | None = None) -> AnyRow:
    """The end of a chain, held until the transaction is over, and the id for its next entry: of this chain, or of any.

    One that nobody holds is taken, where there is one; else this waits, as for any lock.
    """
    dialect = connection.dialect.name
    statements = (_FREE[dialect], _ANY[dialect]) if chain is None else (_THIS[dialect],)
    for statement in statements:
        row = (await connection.execute(statement, {} if chain is None else {"this": chain})).one_or_none()
        if row is not None:
            return row
    raise RefusedStatement("the database refused an entry of the trail: its chain is gone")


# Made once, for each entry executes them: to put a statement together takes as long as to execute it.

_NUMBERED = table("sqlite_sequence", column("name"), column("seq", Integer))
_LAST = select(_NUMBERED.c.seq).where(_NUMBERED.c.name == "audit_log").scalar_subquery()
_NEXT_ID: Mapping[str, ColumnElement[int]] = {
    "sqlite": func.coalesce(_LAST, 0) + 1,
    "postgresql": func.nextval("audit_log_id_seq"),
}


def _held(wanted: Select[*tuple[Any, ...]]) -> Mapping[str, Select[*tuple[Any, ...]]]:
    """By dialect: an end, and the id for the next entry, drawn once the end is held, so that ids rise along a chain."""
    held = wanted.subquery()
    return {dialect: select(held, next_id.label("entry_id")) for dialect, next_id in _NEXT_ID.items()}


_BY_CHANCE = select(audit_chains).order_by(func.random()).limit(1)
_FREE = _held(_BY_CHANCE.with_for_update(skip_locked=True))
_ANY = _held(_BY_CHANCE.with_for_update())
_THIS = _held(select(audit_chains).where(audit_chains.c.chain == bindparam("this")).with_for_update())

_ENTRY = insert(audit_log).values({one.name: bindparam(f"new_{one.name}", type_=one.type) for one in audit_log.c})
_END = (
    update(audit_chains)
    .where(audit_chains.c.chain == bindparam("new_chain"))
    .values(sequence=bindparam("new_sequence"), hash=bindparam("new_hash"))
)
_TELL: Mapping[str, Sequence[Executable]] = {
    "sqlite": (_ENTRY, _END),
    "postgresql": (_ENTRY.add_cte(_END.cte("ended")),),  # one trip instead of two
}
