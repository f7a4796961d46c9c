"""Settings → API Keys: pausing, resuming and deleting, as bytes; in a browser: test_journeys."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy import insert, update
from sqlalchemy.engine import URL

from keyman.audit.entries import Action
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.identity.passwords import Passwords
from keyman.keys.tables import api_keys
from keyman.planes.management.web.key_actions import NAMED_USES
from keyman.planes.management.web.pages import HOME
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import ApiPlane, fresh_plane_at, store
from tests.planes.management.web.test_activity import id_of, person
from tests.support.planes import Vault
from tests.support.rows import entry

pytestmark = pytest.mark.anyio

GETS = "Applications get this key"
NOT_USED = "No application has used it in the last 30 days."


def hidden(page: httpx.Response, kind: str = "") -> dict[str, str]:
    """The hidden fields of a form, of the only one or of a kind, as a browser sends them."""
    form = re.search(rf'<form {kind}method="post" action="/settings/api-keys/.*?</form>', page.text, re.DOTALL)
    assert form, page.text
    fields = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form[0])
    return {name: html.unescape(value) for name, value in fields}


async def post(client: httpx.AsyncClient, path: str, fields: dict[str, str]) -> httpx.Response:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    return await client.post(path, content=urlencode(fields), headers=form)


async def status(client: httpx.AsyncClient, key_id: int) -> str:
    return str((await client.get(f"/api/keys/{key_id}")).json()["status"])


def row(page: httpx.Response, key_id: int) -> str:
    found = re.search(rf'<tr role="row" id="key-{key_id}".*?</tr>', page.text, re.DOTALL)
    assert found
    return found[0]


async def test_a_key_is_paused_and_resumed_and_each_is_said_once(shared: ApiPlane) -> None:
    ada = await person(shared)
    key_id = (await store(ada, name="chat"))["id"]
    path = f"{HOME}/{key_id}/pause"
    for button, question, done, after, badge in (
        ("Pause", "Pause this key?", "paused", "disabled", "Paused"),
        ("Resume", "Resume this key?", "resumed", "active", "Active"),
    ):
        named = f'id="k{key_id}p" aria-labelledby="k{key_id}p k{key_id}"'
        assert f'<button formaction="{path}" {named}>{button}</button>' in row(await ada.get(HOME), key_id)
        page = await ada.get(path)
        assert question in page.text
        assert "sk-...1234" in page.text
        answer = await post(ada, path, hidden(page))
        assert answer.headers["location"] == f"{HOME}?saved={key_id}&done={done}#key-{key_id}"
        assert await status(ada, key_id) == after
        page = await ada.get(answer.headers["location"])
        assert f"OpenAI · chat is {'active again' if done == 'resumed' else done}." in page.text
        assert "Undo" in page.text
        assert f">{badge}</span>" in row(page, key_id)
    told = [entry["action"] for entry in (await ada.get("/api/audit")).json()]
    assert told[:2] == ["key.resume", "key.pause"]


async def test_a_key_that_has_changed_meanwhile_is_confirmed_again(shared: ApiPlane) -> None:
    ada = await person(shared)
    key_id = (await store(ada))["id"]
    path = f"{HOME}/{key_id}/pause"
    form = hidden(await ada.get(path))
    await ada.patch(f"/api/keys/{key_id}", json={"name": "renamed"})
    refused = await post(ada, path, form)
    assert (refused.status_code, 'role="alert"' in refused.text, "renamed" in refused.text) == (412, True, True)
    assert await status(ada, key_id) == "active"
    assert (await post(ada, path, hidden(refused))).status_code == 303
    assert await status(ada, key_id) == "disabled"


async def test_what_another_window_has_done_already_is_done(shared: ApiPlane) -> None:
    ada = await person(shared)
    key_id = (await store(ada))["id"]
    path = f"{HOME}/{key_id}/pause"
    form = hidden(await ada.get(path))
    for _ in range(2):
        answer = await post(ada, path, form)
        assert answer.headers["location"] == f"{HOME}?saved={key_id}&done=paused#key-{key_id}"
    assert [entry["action"] for entry in (await ada.get("/api/audit")).json()].count("key.pause") == 1
    # The form says what is wanted, so that an old one does not turn it round.
    await post(ada, path, hidden(await ada.get(path)))
    assert (await post(ada, path, form)).status_code == 412
    assert await status(ada, key_id) == "active"


async def test_a_form_that_is_for_one_thing_requires_it(shared: ApiPlane) -> None:
    ada = await person(shared)
    key_id = (await store(ada))["id"]
    expired = {"expires_at": now() - timedelta(days=1)}
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(expired))
    path = f"{HOME}/{key_id}/edit"
    for aim, fault in (("replace", "API key is missing."), ("extend", "Expires must be in the future.")):
        page = await ada.get(f"{path}?for={aim}")
        fields = hidden(page, kind='id="key-form"[^>]*') | {
            "name": "",
            "expires_at": f"{expired['expires_at']:%Y-%m-%d}",
        }
        assert fields["for"] == aim
        refused = await post(ada, path, fields)
        assert (refused.status_code, fault in refused.text, f'value="{aim}"' in refused.text) == (422, True, True)
    assert await status(ada, key_id) == "expired"
    assert 'name="for"' not in (await ada.get(f"{path}?for=anything")).text


@pytest.mark.parametrize("aim", ["replace", ""])
async def test_an_expiry_that_has_passed_is_not_dropped_in_silence(shared: ApiPlane, aim: str) -> None:
    ada = await person(shared)
    key_id, until = (await store(ada))["id"], now() - timedelta(days=3)
    path, day = f"{HOME}/{key_id}/edit", f"{until:%Y-%m-%d}"

    async def filled(**more: str) -> httpx.Response:
        async with shared.database.write(Unchecked.OPERATOR) as connection:
            await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(expires_at=until))
        page = await ada.get(f"{path}?for={aim}")
        assert ("Its last day was" in page.text, "This day has passed." in page.text) == (bool(aim), not aim)
        fields = hidden(page, kind='id="key-form"[^>]*')
        assert fields["shown_expires_at"] == ("" if aim else day)  # another day is to be chosen for a new value
        value = {"api_key": "sk-hq2v9mXbT0c7eUKwN4Rd8765", "expires_at": fields["shown_expires_at"]}
        answer = await post(ada, path, {**fields, "name": "", **value, **more})
        assert answer.status_code == 303
        return await ada.get(answer.headers["location"])

    words = "It has no end now, because its last day had passed."
    assert words in (await filled()).text
    assert (await ada.get(f"/api/keys/{key_id}")).json()["expires_at"] is None
    assert words not in (await ada.get(f"{HOME}?saved={key_id}&done=paused&unending=1")).text
    later = f"{now() + timedelta(days=90):%Y-%m-%d}"
    assert words not in (await filled(expires_at=later)).text
    assert (await ada.get(f"/api/keys/{key_id}")).json()["expires_at"].startswith(later)
    if not aim:
        assert words not in (await filled(api_key="")).text  # only the value takes it away
        assert await status(ada, key_id) == "expired"
        assert words not in (await filled(expires_at="")).text  # they have said so themselves


async def test_people_choose_which_key_applications_get(shared: ApiPlane) -> None:
    ada, eve = await person(shared), await person(shared)
    old, new = [(await store(ada, name=name))["id"] for name in ("old", "new")]
    other = (await store(ada, service="GROQ", api_key="gsk_hq2v9mXbT0c7eUKw"))["id"]

    async def used() -> set[int]:
        page = await ada.get(HOME)
        return {key_id for key_id in (old, new, other) if GETS in row(page, key_id)}

    assert await used() == {new}  # the newest; the only key of a service needs no mark
    shown = await ada.get(HOME)
    assert "Make default" in row(shown, old)
    assert "Make this key the default?" in (await ada.get(f"{HOME}/{old}/default")).text
    assert "Make default" not in row(shown, new) + row(shown, other)  # nothing to choose
    answer = await post(ada, f"{HOME}/{old}/default", {"default": "true", "view": "sort=name"})
    assert answer.headers["location"] == f"{HOME}?sort=name&saved={old}&done=default#key-{old}"
    assert "OpenAI · old is now the default." in (await ada.get(answer.headers["location"])).text
    assert await used() == {old}
    assert "Clear default" in row(await ada.get(HOME), old)
    assert "No longer use this key as the default?" in (await ada.get(f"{HOME}/{old}/default")).text
    await ada.patch(f"/api/keys/{old}", json={"disabled": True})
    assert await used() == {new}  # while it is paused
    assert ">Default</span>" in row(await ada.get(HOME), old)
    await ada.patch(f"/api/keys/{old}", json={"disabled": False})
    answer = await post(ada, f"{HOME}/{old}/default", {"default": "false"})
    assert answer.headers["location"] == f"{HOME}?saved={old}&done=no-default#key-{old}"
    assert await used() == {new}
    assert (await eve.get(f"{HOME}/{new}/default")).status_code == 404
    for client, fields, status_code in ((ada, {}, 400), (eve, {"default": "true"}, 404)):
        assert (await post(client, f"{HOME}/{new}/default", fields)).status_code == status_code
    assert await used() == {new}


async def test_several_keys_are_changed_one_by_one_and_only_the_own_ones(shared: ApiPlane) -> None:
    ada, eve = await person(shared), await person(shared)
    own = [(await store(ada, name=f"ada {number}"))["id"] for number in range(3)]
    hers = (await store(eve, name="only Eve"))["id"]
    ids = [*own, hers, own[0], 999_999_999]
    path = f"{HOME}/selected"
    asked = await ada.get(path, params={"id": [*ids, "x"], "do": "pause", "view": "sort=name"})
    assert ("Pause these keys?" in asked.text, "only Eve" in asked.text) == (True, False)
    fields = hidden(asked)
    assert (fields["ids"], fields["view"]) == (",".join(map(str, own)), "sort=name")
    done = await post(ada, path, fields)
    location = f"{HOME}?sort=name&saved={own[0]}%2C{own[1]}%2C{own[2]}&done=paused#key-{own[0]}"
    assert (done.status_code, done.headers["location"]) == (303, location)
    assert [await status(ada, key_id) for key_id in own] == ["disabled"] * 3
    told = [entry["action"] for entry in (await ada.get("/api/audit")).json()]
    assert told[:3] == ["key.pause"] * 3  # an entry for each
    again = await post(ada, path, fields)
    assert again.headers["location"] == location  # it is as it was asked for
    some = await post(ada, path, {"do": "resume", "ids": f"{own[0]},{hers}"})
    assert (some.status_code, "Not all keys were changed" in some.text) == (409, True)
    assert ("ada 0" in some.text, f"key {hers}" in some.text, "only Eve" in some.text) == (True, True, False)
    assert "This key no longer exists." in some.text
    assert [await status(ada, key_id) for key_id in own] == ["active", "disabled", "disabled"]
    assert (await post(ada, path, {"do": "delete", "ids": f"{hers}"})).status_code == 303  # it is not there
    assert await status(eve, hers) == "active"


async def test_a_question_about_nothing_or_a_malformed_form_changes_nothing(shared: ApiPlane) -> None:
    ada, eve = await person(shared), await person(shared)
    key_id = (await store(ada))["id"]
    path = f"{HOME}/selected"
    for query in ({"do": "pause"}, {"id": key_id}, {"id": key_id, "do": "read"}, {"id": "0", "do": "delete"}):
        asked = await ada.get(path, params=query)
        assert (asked.status_code, asked.headers["location"]) == (303, HOME)
    for fields in ({}, {"ids": f"{key_id}"}, {"do": "delete"}, {"do": "read", "ids": f"{key_id}"}):
        assert (await post(ada, path, fields)).status_code == 400
    account = {"account": hidden(await eve.get(f"{HOME}/{(await store(eve))['id']}/pause"))["account"]}
    assert (await post(ada, path, {"do": "delete", "ids": f"{key_id}", **account})).status_code == 409
    reader = await shared.token(ada, "keys:read")
    assert (await reader.get(path, params={"id": key_id, "do": "pause"})).status_code == 403
    assert await status(ada, key_id) == "active"


async def test_each_of_several_keys_counts_as_a_write(
    sqlite: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with fresh_plane_at(sqlite, provisioned.settings, Passwords(quick_passwords), max_writes=5) as plane:
        ada = await plane.user()
        ids = [(await store(ada, name=f"key {number}"))["id"] for number in range(3)]
        answer = await ada.post(f"{HOME}/selected", data={"do": "pause", "ids": ",".join(map(str, ids))})
        assert answer.status_code == 409
        assert [await status(ada, key_id) for key_id in ids] == ["disabled", "disabled", "active"]
        assert "This account has made too many changes within a minute." in answer.text


async def test_only_the_own_keys_are_named_and_a_deleted_one_as_it_was(shared: ApiPlane) -> None:
    ada, eve = await person(shared), await person(shared)
    key_id = (await store(ada, name="only Ada's"))["id"]
    path = f"{HOME}/{key_id}/delete"
    done = (await post(ada, path, hidden(await ada.get(path)))).headers["location"]
    assert "only Ada&#39;s is deleted." in (await ada.get(done)).text
    for query in (done, f"{HOME}?saved={key_id}&done=paused", f"{HOME}?saved=0&done=deleted", f"{HOME}?saved=x,y"):
        said = (await eve.get(query)).text
        assert ("only Ada" in said, "is deleted." in said, "is paused." in said) == (False, False, False)
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert "is deleted." not in (await ada.get(done, headers=elsewhere)).text


async def test_a_form_that_does_not_say_what_is_wanted_changes_nothing(shared: ApiPlane) -> None:
    ada, eve = await person(shared), await person(shared)
    key_id = (await store(ada))["id"]
    path = f"{HOME}/{key_id}/pause"
    for fields in ({}, {"paused": ""}, {"paused": "yes"}, {"paused": "TRUE"}):
        answer = await post(ada, path, fields)
        assert (answer.status_code, "The form is malformed." in answer.text) == (422, True)
    for answer in (await eve.get(path), await post(eve, path, {"paused": "true"})):
        assert answer.status_code == 404
    reader = await shared.token(ada, "keys:read")
    assert (await reader.get(path)).status_code == 403
    assert await status(ada, key_id) == "active"
    # Without an ETag the last one wins, as over REST.
    assert (await post(ada, path, {"paused": "true", "view": "service=OPENAI"})).headers["location"] == (
        f"{HOME}?service=OPENAI&saved={key_id}&done=paused#key-{key_id}"
    )


@pytest.mark.parametrize(
    "state", [{"undecryptable": True}, {"expires_at": now() - timedelta(days=1), "disabled": True}]
)
async def test_a_key_that_nobody_gets_anyway_has_no_button_to_pause_it(shared: ApiPlane, state: dict[str, Any]) -> None:
    ada = await person(shared)
    key_id = (await store(ada))["id"]
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(state))
    shown = row(await ada.get(HOME), key_id)
    assert "/pause" not in shown
    assert f"{HOME}/{key_id}/delete" in shown


async def test_the_question_before_a_deletion_names_who_has_used_the_key(shared: ApiPlane) -> None:
    ada = await person(shared)
    owner, key_id = await id_of(ada), (await store(ada))["id"]
    path, moment = f"{HOME}/{key_id}/delete", now()

    async def use(name: str, **ago: float) -> None:
        at = moment - timedelta(**ago)
        row = entry(Action.KEY_RESOLVE, at=at, user_id=owner, key_id=key_id, application=name)
        async with shared.database.write(Unchecked.OPERATOR) as connection:
            await connection.execute(insert(audit_log).values(row))
            used = {"last_used_at": at, "last_used_by": name}
            await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(used))

    def named(page: httpx.Response) -> list[str]:
        return re.findall(r"<li><strong>([^<]*)</strong>", page.text)

    prefix = f"app-{owner}-"
    page = await ada.get(path)
    assert (NOT_USED in page.text, "It was last used" in page.text, named(page)) == (True, False, [])
    await use(f"{prefix}0", days=40)
    page = await ada.get(path)
    assert (NOT_USED in page.text, f"It was last used by {prefix}0." in page.text, named(page)) == (True, True, [])
    for number in range(1, NAMED_USES + 1):
        await use(f"{prefix}{number}", days=20 - number)
    page = await ada.get(path)
    assert (NOT_USED in page.text, " more</li>" in page.text) == (False, False)
    assert named(page) == [f"{prefix}{number}" for number in range(NAMED_USES, 0, -1)]
    for number in (NAMED_USES + 1, NAMED_USES + 2):
        await use(f"{prefix}{number}", minutes=1)
    page = await ada.get(path)
    assert "and 2 more" in page.text
    assert len(named(page)) == NAMED_USES


async def test_a_use_that_was_pruned_from_the_audit_log_is_not_denied(shared: ApiPlane) -> None:
    ada = await person(shared)
    key_id = (await store(ada))["id"]
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        used = {"last_used_at": now() - timedelta(days=2), "last_used_by": "chat-backend"}
        await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(used))
    page = await ada.get(f"{HOME}/{key_id}/delete")
    assert (NOT_USED in page.text, "It was last used by chat-backend." in page.text) == (False, True)
