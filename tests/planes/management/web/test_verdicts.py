"""What the list of keys shows of live checks, as bytes."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import update
from sqlalchemy.engine import URL

from keyman.clock import now
from keyman.config.checks import CheckSettings
from keyman.keys.tables import api_keys
from keyman.providers.verdicts import DETAILS, Verdict
from keyman.secret import Secret
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import ApiPlane, fresh_plane_at, store
from tests.planes.management.api.test_sessions import quick
from tests.planes.management.web.moves import KEYS
from tests.planes.management.web.test_use import page
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio

AWAY = CheckSettings("http://127.0.0.1:1", Secret("of-a-gateway-that-is-away"))
FORM = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}


async def judged(plane: ApiPlane, key_id: int, verdict: Verdict, detail: str = "") -> None:
    stored = {"check_verdict": verdict.value, "checked_at": now(), "check_detail": detail or DETAILS[verdict]}
    async with plane.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(**stored, checked_by="keyman"))


async def test_without_a_gateway_there_is_no_button_but_known_verdicts_stay(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    assert "/check" not in await page(ada, f"{KEYS}?done=created&saved={key['id']}")
    await judged(shared, key["id"], Verdict.REFUSED)
    shown = await page(ada, KEYS)
    assert "OpenAI refused this key" in shown
    assert "Check now" not in shown
    refused = await ada.post(f"{KEYS}/{key['id']}/check", data={"view": ""}, headers=FORM)
    assert refused.status_code == 409
    assert "Live checks are not set up here." in refused.text


async def test_only_a_key_that_was_just_stored_is_checked_without_being_asked(sqlite: URL, provisioned: Vault) -> None:
    async with fresh_plane_at(sqlite, provisioned.settings, quick(), checks=AWAY) as plane:
        ada = await plane.user()
        key, other = await store(ada), await store(ada, service="PERPLEXITY")
        starts = " data-starts"
        assert (await page(ada, f"{KEYS}?done=created&saved={key['id']}")).count(starts) == 1
        assert (await page(ada, f"{KEYS}?done=changed&saved={key['id']}")).count(starts) == 1
        for query in ("", f"?saved={key['id']}", f"?done=created&saved={other['id']}", "?done=created&saved=999"):
            assert starts not in await page(ada, f"{KEYS}{query}"), query
        foreign = {"Accept": "text/html", "Sec-Fetch-Site": "cross-site"}  # a link on another site
        linked = await ada.get(f"{KEYS}?done=created&saved={key['id']}", headers=foreign)
        assert "Check now" in linked.text
        assert starts not in linked.text
        await judged(plane, key["id"], Verdict.ACCEPTED)
        assert starts not in await page(ada, f"{KEYS}?done=changed&saved={key['id']}")


async def test_a_check_that_cannot_be_made_comes_back_to_the_same_part_of_the_list(
    sqlite: URL, provisioned: Vault
) -> None:
    async with fresh_plane_at(sqlite, provisioned.settings, quick(), checks=AWAY) as plane:
        ada, eve = await plane.user(), await plane.user()
        key = await store(ada)
        target = f"{KEYS}/{key['id']}/check"
        away = await ada.post(target, data={"view": "service=OPENAI"}, headers=FORM)
        assert away.status_code == 303
        assert away.headers["location"] == f"{KEYS}?service=OPENAI&saved={key['id']}&done=no-gateway#key-{key['id']}"
        assert "Not checked: the gateway cannot be reached." in await page(ada, away.headers["location"])
        again = await ada.post(target, data={"view": ""}, headers=FORM)
        assert again.headers["location"] == f"{KEYS}?saved={key['id']}&done=too-many-checks#key-{key['id']}"
        assert "Not checked: too many checks." in await page(ada, again.headers["location"])
        assert (await eve.post(target, data={"view": ""}, headers=FORM)).status_code == 404
        damage = update(api_keys).where(api_keys.c.id == key["id"]).values(undecryptable=True)
        async with plane.database.write(Unchecked.OPERATOR) as connection:
            await connection.execute(damage)
        assert "Check now" not in await page(ada, KEYS)


@pytest.mark.parametrize("verdict", Verdict)
async def test_each_verdict_is_said_in_words_in_both_languages(shared: ApiPlane, verdict: Verdict) -> None:
    ada = await shared.user()
    key = await store(ada)
    await judged(shared, key["id"], verdict)
    said = []
    for language in ("en", "de"):
        answer = await ada.get(KEYS, headers={**FORM, "Accept-Language": language})
        _, _, after = answer.text.partition('class="verdict')
        said.append(re.sub("<[^>]*>", " ", after.partition(">")[2].partition('<span class="busy"')[0]))
        assert "OpenAI" in said[-1]
    assert said[0] != said[1]
    assert verdict.value not in said[0].replace("refused this", "").replace("accepted this", "")
