"""The obvious design works. Otherwise a comparison with it would say nothing."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine

from bench import obvious
from tests.support.planes import Vault, lifespan

pytestmark = pytest.mark.anyio

BEARER = {"Authorization": "Bearer bench"}
NEW_KEY = {"service": "OPENAI", "api_key": "sk-hq2v9mXbT0c7eU", "name": "chat"}


async def test_the_obvious_design_stores_a_key_sealed_and_reads_it(empty_database: URL, provisioned: Vault) -> None:
    await obvious.create_tables(empty_database, "bench")
    app: Any = obvious.create_app(
        {
            "OBVIOUS_DATABASE": empty_database.render_as_string(hide_password=False),
            "OBVIOUS_VAULT": provisioned.server.address,
            "OBVIOUS_VAULT_TOKEN": provisioned.server.root_token.reveal(),
        }
    )
    transport = httpx.ASGITransport(app)
    async with lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://bench", headers=BEARER) as client:
        stored = await client.post("/keys", json=NEW_KEY)
        assert stored.status_code == 201
        assert stored.json()["mask"] == "...c7eU"
        value = await client.get(f"/keys/{stored.json()['id']}/value")
        assert value.json() == {"api_key": NEW_KEY["api_key"]}
        listed = (await client.get("/keys")).json()
        assert [key["id"] for key in listed] == [stored.json()["id"]]
        assert (await client.get("/keys", headers={"Authorization": "Bearer other"})).status_code == 401
        assert (await client.get("/keys/99/value")).status_code == 404
    assert [row["ciphertext"].startswith("vault:v1:") for row in await _rows(empty_database, obvious.keys)] == [True]
    assert [row["action"] for row in await _rows(empty_database, obvious.audit_log)] == ["create", "read"]


async def _rows(url: URL, table: Any) -> list[Any]:
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        rows = list((await connection.execute(select(table))).mappings())
    await engine.dispose()
    return rows
