"""Settings → Applications in a browser: the switch of each application, with and without scripts."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

from playwright.sync_api import Page, expect

from keyman.clock import now
from tests.planes.management.web.moves import (
    APPLICATIONS,
    REFUSED,
    join,
    plant,
    plant_applications,
    plant_uses,
    rows,
    texts,
)
from tests.support.browser import Arrive, DevServer


def switches(page: Page) -> list[str | None]:
    return [each.get_attribute("aria-checked") for each in page.get_by_role("switch").all()]


def test_a_person_blocks_an_application_by_keyboard_and_stays_at_its_switch(
    arrive: Arrive, dev_server: DevServer
) -> None:
    ada = join(arrive(signed_up=False))
    name = f"chat-{uuid4().hex}"
    plant_applications(dev_server.home, ada, {"name": name, "services": "OPENAI ANTHROPIC"})
    plant(dev_server.home, ada, {"name": "x"})
    plant_uses(
        dev_server.home, ada, {"service": "OPENAI", "application": name, "at": now() - timedelta(days=2, minutes=1)}
    )
    ada.open(APPLICATIONS)
    page = ada.page
    assert texts(page) == [[name, "OpenAI, Anthropic", "2 days ago", "Block for my keys"]]
    switch = page.get_by_role("switch")
    expect(switch).to_have_accessible_name(f"Block for my keys {name}")
    page.evaluate("window.kept = true")
    for key, is_on in (("Space", "true"), ("Enter", "false")):
        switch.focus()
        page.keyboard.press(key)
        expect(switch).to_have_attribute("aria-checked", is_on)
        expect(switch).to_be_focused()
        said = f"{name} is blocked for your keys." if is_on == "true" else f"{name} is no longer blocked."
        expect(page.get_by_role("status")).to_have_text(said)
        expect(rows(page).get_by_text("Blocked", exact=True)).to_have_count(1 if is_on == "true" else 0)
        expect(switch).to_have_accessible_name(f"Block for my keys {name}")
        assert page.evaluate("window.kept")  # the page itself stayed
    assert ada.troubles() == []


def test_it_works_without_scripts(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, java_script_enabled=False))
    name = f"chat-{uuid4().hex}"
    plant_applications(dev_server.home, ada, {"name": name})
    ada.open(APPLICATIONS)
    for is_on in ("true", "false"):
        ada.page.get_by_role("switch").click()
        expect(ada.page.get_by_role("switch")).to_have_attribute("aria-checked", is_on)
        expect(ada.page.get_by_role("status")).to_contain_text(name)


def test_an_application_that_was_revoked_meanwhile_leaves_the_list_with_a_word(
    arrive: Arrive, dev_server: DevServer
) -> None:
    ada = join(arrive(signed_up=False))
    plant_applications(dev_server.home, ada, {"name": f"chat-{uuid4().hex}"})
    ada.open(APPLICATIONS)
    form = ada.page.locator("form[hx-post*='/settings/applications/']")
    form.evaluate("(form) => form.setAttribute('hx-post', form.getAttribute('action').replace(/[0-9]+/, '999999999'))")
    ada.page.get_by_role("switch").click()
    expect(ada.page.get_by_role("alert")).to_have_text("No application with this id may use your keys.")
    assert switches(ada.page) == ["false"]
    assert ada.troubles(REFUSED) == []
