"""The obvious design, for comparison: hvac in threads, and one SQLAlchemy transaction for each request.

It does the part of keyman's work that anyone would do: it looks up the token, encrypts the key with a context of its
row, and stores it together with an audit entry, which has no chain. It reads its settings from the environment:
OBVIOUS_DATABASE, OBVIOUS_VAULT and OBVIOUS_VAULT_TOKEN. Its tables are created by `create_tables`.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import anyio
import hvac
from litestar import Litestar, Request, get, post
from litestar.exceptions import NotAuthorizedException, NotFoundException
from litestar.params import FromPath, JSONBody
from sqlalchemy import (
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    insert,
    select,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

metadata = MetaData()
users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("token_hash", LargeBinary(32), nullable=False, unique=True),
)
keys = Table(
    "keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_id", Integer, ForeignKey("users.id"), nullable=False),
    Column("service", String(64), nullable=False),
    Column("name", String(100)),
    Column("ciphertext", Text, nullable=False),
    Column("value_uuid", Uuid, nullable=False),
    Column("mask", String(64), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("ix_keys_user_id", "user_id", "id"),
)
audit_log = Table(
    "audit_log",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("user_id", Integer, nullable=False),
    Column("action", String(32), nullable=False),
    Column("key_id", Integer, nullable=False),
)


@dataclass
class NewKey:
    service: str
    api_key: str
    name: str | None = None


async def create_tables(url: URL, token: str) -> None:
    """Create the tables, and a user with this token."""
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(insert(users).values(token_hash=_digest(token)))
    await engine.dispose()


@post("/keys")
async def store(request: Request[Any, Any, Any], data: JSONBody[NewKey]) -> dict[str, object]:
    engine, vault = _parts(request)
    async with engine.begin() as connection:
        user_id = await _authenticate(connection, request)
        value_uuid = uuid4()
        ciphertext = await anyio.to_thread.run_sync(_encrypt, vault, data.api_key, _context(user_id, value_uuid))
        key = {
            "user_id": user_id,
            "service": data.service,
            "name": data.name,
            "ciphertext": ciphertext,
            "value_uuid": value_uuid,
            "mask": f"...{data.api_key[-4:]}",
            "created_at": datetime.now(UTC),
        }
        key_id = (await connection.execute(insert(keys).values(key).returning(keys.c.id))).scalar_one()
        await _record(connection, user_id, "create", key_id)
    return {"id": key_id, "service": data.service, "name": data.name, "mask": key["mask"]}


@get("/keys")
async def list_own(request: Request[Any, Any, Any]) -> list[dict[str, object]]:
    engine, _ = _parts(request)
    shown = select(keys.c.id, keys.c.service, keys.c.name, keys.c.mask, keys.c.created_at)
    async with engine.begin() as connection:
        user_id = await _authenticate(connection, request)
        rows = await connection.execute(shown.where(keys.c.user_id == user_id).order_by(keys.c.id.desc()).limit(50))
    return [dict(row) for row in rows.mappings()]


@get("/keys/{key_id:int}/value")
async def read(request: Request[Any, Any, Any], key_id: FromPath[int]) -> dict[str, str]:
    engine, vault = _parts(request)
    async with engine.begin() as connection:
        user_id = await _authenticate(connection, request)
        found = select(keys.c.ciphertext, keys.c.value_uuid).where(keys.c.id == key_id, keys.c.user_id == user_id)
        row = (await connection.execute(found)).first()
        if row is None:
            raise NotFoundException
        await _record(connection, user_id, "read", key_id)
    value = await anyio.to_thread.run_sync(_decrypt, vault, row.ciphertext, _context(user_id, row.value_uuid))
    return {"api_key": value}


def create_app(environ: Mapping[str, str] = os.environ) -> Litestar:
    engine = create_async_engine(make_url(environ["OBVIOUS_DATABASE"]))
    vault = hvac.Client(environ["OBVIOUS_VAULT"], environ["OBVIOUS_VAULT_TOKEN"])

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        app.state.parts = engine, vault
        yield
        await engine.dispose()

    return Litestar([store, list_own, read], lifespan=[lifespan], logging_config=None, openapi_config=None)


def _parts(request: Request[Any, Any, Any]) -> tuple[AsyncEngine, hvac.Client]:
    engine, vault = request.app.state.parts
    return engine, vault


async def _authenticate(connection: AsyncConnection, request: Request[Any, Any, Any]) -> int:
    """Return the id of the user who has the token of the request. Raises NotAuthorizedException."""
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    user_id = (await connection.execute(select(users.c.id).where(users.c.token_hash == _digest(token)))).scalar()
    if user_id is None:
        raise NotAuthorizedException
    return int(user_id)


async def _record(connection: AsyncConnection, user_id: int, action: str, key_id: int) -> None:
    entry = {"at": datetime.now(UTC), "user_id": user_id, "action": action, "key_id": key_id}
    await connection.execute(insert(audit_log).values(entry))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _context(user_id: int, value_uuid: UUID) -> str:
    return base64.b64encode(f"{user_id}|{value_uuid}".encode()).decode()


def _encrypt(vault: hvac.Client, plaintext: str, context: str) -> str:
    encoded = base64.b64encode(plaintext.encode()).decode()
    answer = vault.secrets.transit.encrypt_data(name="keyman", plaintext=encoded, context=context)
    return str(answer["data"]["ciphertext"])


def _decrypt(vault: hvac.Client, ciphertext: str, context: str) -> str:
    answer = vault.secrets.transit.decrypt_data(name="keyman", ciphertext=ciphertext, context=context)
    return base64.b64decode(answer["data"]["plaintext"]).decode()
