"""What belongs to somebody else is, byte for byte, like what does not exist."""

from __future__ import annotations

from typing import Any

import pytest

from keyman.identity.tables import api_tokens
from keyman.keys.tables import api_keys
from tests.planes.management.api.harness import (
    OPENAI_KEY,
    ApiPlane,
    as_json,
    headers_of,
    same_but_for_the_request_id,
    store,
)

pytestmark = pytest.mark.anyio

ETAG = '"00000000000000000000000000000000"'

REQUESTS: tuple[tuple[str, str, bytes, dict[str, str]], ...] = (
    ("GET", "/api/keys/{}", b"", {}),
    ("HEAD", "/api/keys/{}", b"", {}),
    ("PUT", "/api/keys/{}", as_json({"api_key": OPENAI_KEY}), {}),
    ("PUT", "/api/keys/{}", as_json({"api_key": OPENAI_KEY, "name": "x"}), {"If-Match": ETAG}),
    ("PUT", "/api/keys/{}", as_json({"api_key": OPENAI_KEY}), {"If-Match": "*"}),
    ("PUT", "/api/keys/{}", as_json({"api_key": "sk-ant-Zq7Rk2Lw9Xc4Vb6Nm1"}), {}),
    ("PUT", "/api/keys/{}", as_json({"api_key": "sk-...1234"}), {}),
    ("PUT", "/api/keys/{}", as_json({"api_key": "short"}), {}),
    ("PUT", "/api/keys/{}", b"{", {}),
    ("PUT", "/api/keys/{}", b"", {}),
    ("PUT", "/api/keys/{}", b"x" * 70_000, {}),
    ("PATCH", "/api/keys/{}", as_json({"name": "x"}), {}),
    ("PATCH", "/api/keys/{}", as_json({"disabled": True}), {"If-Match": ETAG}),
    ("PATCH", "/api/keys/{}", b"{}", {}),
    ("PATCH", "/api/keys/{}", b"{}", {"If-Match": "*"}),
    ("PATCH", "/api/keys/{}", as_json({"disabled": 1, "x": 2}), {}),
    ("DELETE", "/api/keys/{}", b"", {}),
    ("DELETE", "/api/keys/{}", b"", {"If-Match": ETAG}),
    ("DELETE", "/api/keys/{}", b"", {"If-Match": "*"}),
    ("POST", "/api/keys/{}", b"{}", {}),
    ("OPTIONS", "/api/keys/{}", b"", {}),
    ("DELETE", "/api/tokens/{}", b"", {}),
    ("GET", "/api/tokens/{}", b"", {}),
)


async def test_another_users_id_gets_the_same_bytes_as_a_missing_one(shared: ApiPlane) -> None:
    ada, eve = await shared.user(), await shared.user()
    key = await store(ada, name="hers")
    token = (await ada.post("/api/tokens", json={"name": "hers"})).json()
    stored = await shared.rows(api_keys), await shared.rows(api_tokens)
    for method, path, content, extra in REQUESTS:
        theirs = token["id"] if "tokens" in path else key["id"]
        answers = [
            await shared.wire(method, path.format(row).encode(), headers_of(eve, extra), content)
            for row in (theirs, theirs + 1_000_000)
        ]
        assert same_but_for_the_request_id(*answers), (method, path, content[:40])
        assert answers[0].status_code >= 400 or method == "OPTIONS"
    assert (await shared.rows(api_keys), await shared.rows(api_tokens)) == stored


async def test_a_key_that_was_deleted_is_like_one_that_never_was(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    await ada.delete(f"/api/keys/{key['id']}")
    for method, path, content, extra in REQUESTS:
        if "tokens" in path:
            continue
        answers = [
            await shared.wire(method, path.format(row).encode(), headers_of(ada, extra), content)
            for row in (key["id"], key["id"] + 1_000_000)
        ]
        assert same_but_for_the_request_id(*answers), (method, path, content[:40])


async def test_it_costs_the_same_work(shared: ApiPlane) -> None:
    """Vault is asked for neither, so that a clock does not tell them apart."""
    ada, eve = await shared.user(), await shared.user()
    key = await store(ada)

    async def sealed() -> Any:
        text = (await shared.client().get("/metrics")).text
        return [line for line in text.splitlines() if line.startswith("keyman_vault_encrypt_batch_items_count")]

    before = await sealed()
    for row in (key["id"], 999_999_999):
        answer = await eve.put(f"/api/keys/{row}", json={"api_key": OPENAI_KEY})
        assert answer.status_code == 404
    assert await sealed() == before
