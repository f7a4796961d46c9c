"""`/api/keys`."""

from __future__ import annotations

import pytest

from tests.support.planes import Plane

pytestmark = pytest.mark.anyio

VALUE = "sk-hq2v9mXbT0c7eUKwN4Rd1234"


async def test_a_stored_key_is_listed_by_its_mask(plane: Plane) -> None:
    ada = await plane.user()
    created = await ada.post("/api/keys", json={"service": "OPENAI", "api_key": f" {VALUE}\n", "name": "chat"})
    assert created.status_code == 201
    key = created.json()
    assert key["last_4_chars"] == "sk-...1234"
    assert created.headers["location"] == f"/api/keys/{key['id']}"
    listed = await ada.get("/api/keys")
    assert listed.json() == [key]
    assert VALUE not in created.text + listed.text
