"""Settings → Applications as bytes: what is shown and said. test_switch.py has it in a browser."""

from __future__ import annotations

from uuid import uuid4

import httpx
import pytest

from keyman.identity import applications
from keyman.values import ApplicationName
from tests.planes.management.api.harness import ApiPlane
from tests.planes.management.web.moves import ACTIVITY, APPLICATIONS

pytestmark = pytest.mark.anyio

BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}


async def registered(plane: ApiPlane) -> tuple[str, str]:
    """The name and the address of a new application."""
    name = ApplicationName(f"page-{uuid4().hex}")
    await applications.create(plane.database, name, ("OPENAI",))
    (found,) = [each for each in await applications.list_all(plane.database) if each.name == name]
    return found.name, f"{APPLICATIONS}/{found.id}"


async def person(plane: ApiPlane) -> httpx.AsyncClient:
    client = await plane.user()
    client.headers.update(BROWSER)
    return client


async def test_a_plain_form_blocks_and_the_page_says_which(shared: ApiPlane) -> None:
    name, address = await registered(shared)
    ada, eve = await person(shared), await person(shared)
    for change, words in (("block", "is blocked for your keys."), ("unblock", "is no longer blocked.")):
        for _ in range(2):
            done = await ada.post(f"{address}/{change}", data={"a": "b"})
            assert done.status_code == 303
        page = await ada.get(done.headers["location"])
        assert f'role="status">{name} {words}' in page.text
        assert ('aria-checked="true"' in page.text) == (change == "block")
        assert f'action="{address}/{"unblock" if change == "block" else "block"}"' in page.text
        assert 'aria-checked="true"' not in (await eve.get(APPLICATIONS)).text
    other_site = {**BROWSER, "Sec-Fetch-Site": "cross-site"}
    assert (await ada.post(f"{address}/block", data={"a": "b"}, headers=other_site)).status_code == 403


async def test_a_link_that_claims_a_change_says_nothing_that_is_not_so(shared: ApiPlane) -> None:
    _, address = await registered(shared)
    ada = await person(shared)
    number = address.rpartition("/")[2]
    for query in (f"?done=blocked&saved={number}", "?done=blocked&saved=999999999", "?done=unblocked&saved=x"):
        assert (
            "blocked" not in (await ada.get(f"{APPLICATIONS}{query}")).text.partition("<main")[2].partition("<div")[0]
        )


async def test_an_application_that_is_gone_is_said_above_the_list(shared: ApiPlane) -> None:
    name, address = await registered(shared)
    ada = await person(shared)
    await applications.revoke(shared.database, ApplicationName(name))
    refused = await ada.post(f"{address}/block", data={"a": "b"})
    assert refused.status_code == 404
    assert "No application with this id may use your keys." in refused.text
    assert name not in refused.text


async def test_an_access_token_may_do_what_its_scopes_say(shared: ApiPlane) -> None:
    _, address = await registered(shared)
    ada = await shared.user()
    reader = await shared.token(ada, "keys:read")
    assert (await reader.get(APPLICATIONS, headers=BROWSER)).status_code == 200
    for change in ("block", "unblock"):
        assert (await reader.post(f"{address}/{change}", data={"a": "b"}, headers=BROWSER)).status_code == 403


async def test_activity_names_the_application_that_was_blocked(shared: ApiPlane) -> None:
    name, address = await registered(shared)
    ada = await person(shared)
    script = await shared.token(ada, "keys:write")
    await ada.post(f"{address}/block", data={"a": "b"})
    await script.delete(f"/api/applications/{address.rpartition('/')[2]}/block")
    page = (await ada.get(f"{ACTIVITY}?kind=applications")).text
    assert "Application blocked" in page
    assert "Application no longer blocked" in page
    assert page.count(f'class="about">{name}<') == 2
    assert f"from {name}" not in page
