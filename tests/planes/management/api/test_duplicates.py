"""`duplicate_of`: the answer says if the user has stored the same value before."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import URL

from keyman.audit.tables import audit_log
from keyman.identity.passwords import Passwords
from keyman.keys.tables import api_keys
from keyman.vault.duplicates import TransitFingerprints
from tests.planes.management.api.harness import KEY_FIELDS, OPENAI_KEY, ApiPlane, Json, api_plane_at, store
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio

OTHER_KEY = "sk-Zt81LqoPw5aYc3hVn6Xe9876"
KEY = {"service": "OPENAI", "api_key": OPENAI_KEY}


@pytest.fixture
async def comparing_plane(
    database: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> AsyncIterator[ApiPlane]:
    passwords = Passwords(quick_passwords)
    async with api_plane_at(database, provisioned.settings, passwords, duplicates_on=True) as plane:
        yield plane


def hint(key: Json) -> object:
    return key.get("duplicate_of", "none")


async def test_the_answer_names_the_key_with_the_same_value(comparing_plane: ApiPlane) -> None:
    ada = await comparing_plane.user()
    first = await store(ada)
    assert first.keys() == KEY_FIELDS
    again = await store(ada, name="again", api_key=f"  {OPENAI_KEY}\n")
    assert again.keys() == KEY_FIELDS | {"duplicate_of"}
    assert again["duplicate_of"] == first["id"]
    assert hint(await store(ada, name="third")) == first["id"]  # the oldest
    assert hint(await store(ada, api_key=OTHER_KEY)) == "none"
    listed = (await ada.get("/api/keys")).json()
    assert len(listed) == 4
    assert all(key.keys() == KEY_FIELDS for key in listed)
    assert (await ada.get(f"/api/keys/{again['id']}")).json().keys() == KEY_FIELDS


async def test_only_keys_of_one_user_and_one_service_are_compared(comparing_plane: ApiPlane) -> None:
    ada, eve = await comparing_plane.user(), await comparing_plane.user()
    await store(ada)
    assert hint(await store(eve)) == "none"
    assert hint(await store(ada, service="DEEPSEEK")) == "none"
    rows = await comparing_plane.rows(api_keys)
    assert len({row.fingerprint for row in rows}) == 3


async def test_a_new_value_is_compared_and_no_longer_the_old_one(comparing_plane: ApiPlane) -> None:
    ada = await comparing_plane.user()
    first, second = await store(ada), await store(ada, api_key=OTHER_KEY)
    replaced = await ada.put(f"/api/keys/{first['id']}", json={"api_key": OTHER_KEY})
    assert hint(replaced.json()) == second["id"]
    assert hint(await store(ada)) == "none"
    itself = await ada.put(f"/api/keys/{second['id']}", json={"api_key": OPENAI_KEY})
    assert hint(itself.json()) != second["id"]
    renamed = await ada.patch(f"/api/keys/{first['id']}", json={"name": "x"})
    assert hint(renamed.json()) == "none"


async def test_a_value_that_replaces_itself_is_no_duplicate(comparing_plane: ApiPlane) -> None:
    ada = await comparing_plane.user()
    key = await store(ada)
    assert hint((await ada.put(f"/api/keys/{key['id']}", json={"api_key": OPENAI_KEY})).json()) == "none"


async def test_a_deleted_key_is_not_compared(comparing_plane: ApiPlane) -> None:
    ada = await comparing_plane.user()
    key = await store(ada)
    assert (await ada.delete(f"/api/keys/{key['id']}")).status_code == 204
    assert hint(await store(ada)) == "none"


async def test_the_hint_is_no_part_of_the_etag_and_comes_again_with_the_first_answer(
    comparing_plane: ApiPlane,
) -> None:
    ada, retry = await comparing_plane.user(), {"Idempotency-Key": str(uuid4())}
    first = await store(ada)
    again = await ada.post("/api/keys", json=KEY, headers=retry)
    assert hint(again.json()) == first["id"]
    assert (await ada.post("/api/keys", json=KEY, headers=retry)).content == again.content
    path = again.headers["location"]
    assert (await ada.get(path)).headers["etag"] == again.headers["etag"]
    change = await ada.patch(path, json={"name": "x"}, headers={"If-Match": again.headers["etag"]})
    assert change.status_code == 200


async def test_the_entries_of_a_batch_are_compared_with_each_other(comparing_plane: ApiPlane) -> None:
    ada = await comparing_plane.user()
    old = await store(ada, api_key=OTHER_KEY)
    entries = [KEY, {**KEY, "api_key": "short"}, {**KEY, "api_key": OTHER_KEY}, KEY, {**KEY, "service": "DEEPSEEK"}]
    found = (await ada.post("/api/keys/batch", json={"keys": entries})).json()
    keys = [one.get("key", {}) for one in found]
    assert [hint(key) for key in keys] == [keys[3]["id"], "none", old["id"], keys[0]["id"], "none"]


async def test_keys_that_are_stored_at_once_are_compared(comparing_plane: ApiPlane) -> None:
    ada, eve = await comparing_plane.user(), await comparing_plane.user()
    oldest = {client: (await store(client))["id"] for client in (ada, eve)}
    stored = await asyncio.gather(*(store(client) for client in (ada, eve) * 10))
    assert [hint(key) for key in stored] == [oldest[client] for client in (ada, eve) * 10]


async def test_nothing_in_the_database_is_a_plain_hash_and_the_audit_log_has_none(comparing_plane: ApiPlane) -> None:
    ada = await comparing_plane.user()
    await store(ada)
    await store(ada)
    one, other = await comparing_plane.rows(api_keys)
    assert one.fingerprint == other.fingerprint
    assert len(one.fingerprint) == 32
    plain = [OPENAI_KEY, f"OPENAI{OPENAI_KEY}", f"{one.owner_id}OPENAI{OPENAI_KEY}"]
    assert one.fingerprint not in [hashlib.sha256(text.encode()).digest() for text in plain]
    entries = repr([tuple(row) for row in await comparing_plane.rows(audit_log)])
    assert repr(one.fingerprint) not in entries
    assert one.fingerprint.hex() not in entries


async def test_without_the_right_to_compute_fingerprints_keys_are_stored_and_not_compared(
    comparing_plane: ApiPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await comparing_plane.user()
    first = await store(ada)
    asked = 0

    async def refused(_self: TransitFingerprints, _items: Sequence[Any]) -> Any:
        nonlocal asked
        asked += 1
        raise TimeoutError

    with monkeypatch.context() as patched:
        fingerprints = _fingerprints(comparing_plane)
        patched.setattr(fingerprints._batcher, "_run", refused.__get__(fingerprints))
        for _ in range(3):
            assert hint(await store(ada)) == "none"
        assert asked == 1  # and then it pauses
        assert (await ada.put(f"/api/keys/{first['id']}", json={"api_key": OPENAI_KEY})).status_code == 200
    assert [row.fingerprint for row in await comparing_plane.rows(api_keys)] == [None] * 4
    fingerprints._silent_until = float("-inf")  # the pause is over
    assert hint(await store(ada)) == "none"
    assert hint(await store(ada)) != "none"


def _fingerprints(plane: ApiPlane) -> TransitFingerprints:
    layer: Any = plane.app
    while not hasattr(layer, "state"):
        layer = layer._app
    found: TransitFingerprints = layer.state.sealer._fingerprints
    return found


async def test_where_it_is_off_nothing_is_computed_and_nothing_compared(
    database: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    passwords = Passwords(quick_passwords)
    async with api_plane_at(database, provisioned.settings, passwords, duplicates_on=False) as plane:
        ada = await plane.user()
        await store(ada)
        assert hint(await store(ada)) == "none"
        assert {row.fingerprint for row in await plane.rows(api_keys)} == {None}


async def test_the_page_says_which_key_has_the_same_value(comparing_plane: ApiPlane) -> None:
    ada, eve = await comparing_plane.user(), await comparing_plane.user()
    page = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
    first = await store(ada, name="Work <b>")
    stored = await ada.post("/settings/api-keys", data=KEY, headers=page)
    assert stored.status_code == 303
    assert f"duplicate={first['id']}" in stored.headers["location"]
    shown = (await ada.get(stored.headers["location"], headers=page)).text
    assert "You already have this key: Work &lt;b&gt;." in shown
    german = await ada.get(stored.headers["location"], headers={**page, "Accept-Language": "de"})
    assert "haben diesen Schlüssel schon" in german.text
    # Another user's page does not name it, and neither does that of a key that is gone.
    assert "You already have" not in (await eve.get(stored.headers["location"], headers=page)).text
    assert (await ada.delete(f"/api/keys/{first['id']}")).status_code == 204
    assert "You already have" not in (await ada.get(stored.headers["location"], headers=page)).text
    for odd in ("x", "0", "-1", "1" * 30):
        answer = await ada.get(f"/settings/api-keys?done=created&duplicate={odd}", headers=page)
        assert answer.status_code == 200
        assert "You already have" not in answer.text
    alone = await ada.post("/settings/api-keys", data={**KEY, "api_key": OTHER_KEY}, headers=page)
    assert "duplicate" not in alone.headers["location"]
