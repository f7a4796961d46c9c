"""The form for a key: its messages, sending once, and a session or a key that changes meanwhile."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.planes.management.web.moves import (
    ACCOUNT,
    ACTIVITY,
    ANTHROPIC_KEY,
    ANTHROPIC_MASK,
    KEYS,
    OPENAI_KEY,
    OPENAI_MASK,
    REFUSED,
    dialog,
    discard,
    fill,
    held,
    join,
    keys_of,
    press,
    rows,
    save,
    sign_in,
    until_held,
)
from tests.support.browser import Arrive, DevServer, Person
from tests.support.http import NO_TLS, sign_up
from tests.support.needs import quick
from tests.support.planes import PASSWORD
from tests.support.waiting import PATIENCE

OPENAI = {"service": "OPENAI", "api_key": OPENAI_KEY, "name": "first"}


@pytest.fixture(scope="module")
def account(dev_server: DevServer) -> tuple[str, str]:
    """Somebody's address and cookie: an account for the module, as sign-ups are slow on purpose, and limited."""
    email = "form@example.com"
    client = sign_up(dev_server.origin, email)
    client.close()
    return email, client.cookies["keyman_session"]


@pytest.fixture
def ada(arrive: Arrive, account: tuple[str, str]) -> Person:
    """Somebody signed in, without keys, on the list of keys."""
    person = arrive(signed_up=False)
    person.email, cookie = account
    person.context.add_cookies([{"name": "keyman_session", "value": cookie, "url": person.origin}])
    _delete_elsewhere(person)
    person.open(KEYS)
    return person


# --- before it is sent


def test_a_key_of_another_service_is_noticed_before_it_is_sent(ada: Person) -> None:
    page = ada.page
    opened = press(page, "Add New Key")
    asked = len(ada.asked)
    key, service = page.get_by_label("API key", exact=True), page.get_by_label("Service", exact=True)
    note = opened.get_by_text("This looks like a key of")
    for name, value in {"OpenAI": OPENAI_KEY, "Anthropic": ANTHROPIC_KEY, "Mistral AI": "anything-at-all"}.items():
        fill(page, name, value)
        expect(note).to_be_hidden()
    fill(page, "OpenAI", f" {ANTHROPIC_KEY}")
    expect(note).to_have_text("This looks like a key of Anthropic.")
    opened.get_by_role("button", name="Choose Anthropic").click()
    expect(service).to_have_value("ANTHROPIC")
    expect(note).to_be_hidden()
    expect(key).to_be_focused()
    expect(key).to_have_value(f" {ANTHROPIC_KEY}")
    fill(page, "Groq", "gsk_hq2v9mXbT0c7eUKw")
    expect(note).to_be_hidden()
    fill(page, "OpenAI")
    expect(note).to_have_text("This looks like a key of Groq.")
    fill(page, key="")
    expect(note).to_be_hidden()
    assert len(ada.asked) == asked


def test_an_admin_key_is_noticed_and_can_be_stored(ada: Person) -> None:
    page = ada.page
    opened = press(page, "Add New Key")
    note = opened.get_by_text("This looks like an admin key.")
    for name, value in {"Anthropic": "sk-ant-api03-hq2v9mXbT0c7", "OpenAI": "sk-ant-admin01-hq2v9mXb"}.items():
        fill(page, name, value)
        expect(note).to_be_hidden()
    fill(page, "OpenAI", "sk-admin-hq2v9mXbT0c7eUKw")
    expect(note).to_be_visible()
    fill(page, "Anthropic", "sk-ant-admin01-hq2v9mXbT0c7")
    expect(note).to_be_visible()
    save(page)
    expect(rows(page)).to_contain_text("Anthropic")


def test_on_edit_a_key_of_another_service_is_noticed_too_and_the_service_stays(ada: Person) -> None:
    ada.store(OPENAI)
    page = ada.page
    page.reload()
    opened = press(page, "Edit", rows(page))
    fill(page, key=ANTHROPIC_KEY)
    expect(opened.get_by_text("This looks like a key of Anthropic.")).to_be_visible()
    expect(opened.get_by_role("button", name=re.compile("Choose"))).to_have_count(0)
    save(page)
    expect(opened.get_by_text("API key looks like a key of Anthropic, not of OpenAI")).to_be_visible()


def test_the_key_is_hidden_until_it_is_asked_for_and_browsers_do_not_store_it(ada: Person) -> None:
    ada.store(OPENAI)
    page = ada.page
    page.reload()
    key = page.get_by_label("API key", exact=True)
    for button in ("Add New Key", "Edit"):
        press(page, button, rows(page) if button == "Edit" else None)
        expect(key).to_have_attribute("type", "password")
        expect(key).to_have_attribute("autocomplete", "new-password")
        expect(key).to_have_attribute("spellcheck", "false")
        expect(key).to_have_value("")
        assert key.get_attribute("value") is None
        expect(page.locator("#key-form")).to_have_attribute("autocomplete", "off")
        fill(page, key=OPENAI_KEY)
        page.get_by_role("button", name="Show the key").click()
        expect(key).to_have_attribute("type", "text")
        expect(key).to_have_value(OPENAI_KEY)
        page.get_by_role("button", name="Hide the key").click()
        expect(key).to_have_attribute("type", "password")
        discard(page)
        expect(page.get_by_role("dialog")).to_have_count(0)


# --- sending it


def test_save_shows_that_it_works_and_cannot_be_sent_twice(ada: Person) -> None:
    page = ada.page
    press(page, "Add New Key")
    fill(page, "OpenAI", OPENAI_KEY, "once")
    button = page.get_by_role("button", name="Save")
    with held(page) as waiting:
        button.dblclick()
        expect(button).to_be_disabled()
        expect(page.get_by_label("API key", exact=True)).to_have_value(OPENAI_KEY)
        assert button.evaluate("each => getComputedStyle(each, '::before').animationName") == "turn"
        button.click(force=True)
        page.get_by_label("Label", exact=True).press("Enter")
        page.evaluate("document.getElementById('key-form').noValidate = true")
        page.evaluate("document.getElementById('key-form').requestSubmit()")
        page.get_by_label("Label", exact=True).press("Enter")
        until_held(page, waiting)
        assert len(waiting) == 1
    expect(rows(page)).to_have_count(1)
    assert [key["name"] for key in keys_of(ada)] == ["once"]
    assert ada.complaints == []


def test_a_form_that_was_refused_or_lost_can_be_sent_again(ada: Person) -> None:
    page = ada.page
    opened = press(page, "Add New Key")
    fill(page, "OpenAI", "has white space", "kept")
    save(page)
    expect(
        opened.get_by_text("API key contains white space; paste only the key, without anything before or after it.")
    ).to_be_visible()
    ada.context.set_offline(True)
    fill(page, key=OPENAI_KEY)
    save(page)
    expect(opened.get_by_role("alert")).to_contain_text("keyman could not be reached")
    expect(page.get_by_label("API key", exact=True)).to_have_value(OPENAI_KEY)
    expect(page.get_by_label("Label", exact=True)).to_have_value("kept")
    expect(page.get_by_role("button", name="Save")).to_be_enabled()
    ada.context.set_offline(False)
    save(page)
    expect(rows(page)).to_contain_text("kept")
    expect(rows(page)).to_have_count(1)


def test_a_dialog_that_cannot_be_fetched_says_so(ada: Person) -> None:
    page = ada.page
    ada.context.set_offline(True)
    page.get_by_role("button", name="Add New Key").click()
    expect(page.get_by_role("alert")).to_have_text("keyman could not be reached. Try again in a moment.")
    ada.context.set_offline(False)
    press(page, "Add New Key")
    expect(page.get_by_label("API key", exact=True)).to_be_focused()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_what_failed_is_not_said_again_after_a_new_sign_in(ada: Person) -> None:
    page = ada.page
    opened = press(page, "Add New Key")
    ada.context.set_offline(True)
    page.get_by_role("button", name="Add Several Keys").click()
    expect(opened.get_by_role("alert")).to_have_text("keyman could not be reached. Try again in a moment.")
    expect(page.locator("#toasts .failed")).to_have_count(0)  # behind the dialog, nobody would see or hear it
    ada.context.set_offline(False)
    ada.context.clear_cookies()
    fill(page, "OpenAI", OPENAI_KEY)
    save(page)
    sign_in(page, ada.email)
    expect(dialog(page)).to_have_accessible_name("Add a Key")
    expect(page.get_by_role("alert")).to_have_count(0)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_back_button_and_a_reload_change_nothing_again(ada: Person) -> None:
    page = ada.page
    ada.open(ACCOUNT)
    page.get_by_role("link", name="API Keys").click()
    press(page, "Add New Key")
    fill(page, "OpenAI", OPENAI_KEY, "stays")
    save(page)
    expect(rows(page)).to_have_count(1)
    page.reload()
    expect(rows(page)).to_have_count(1)
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Account")
    page.go_forward()
    expect(rows(page)).to_have_count(1)
    opened = press(page, "Delete", rows(page))
    opened.get_by_role("button", name="Delete", exact=True).click()
    expect(rows(page)).to_have_count(0)
    page.go_back()
    page.go_forward()
    expect(page.get_by_role("heading", name="No keys yet")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="No keys yet")).to_be_visible()
    assert keys_of(ada) == []
    assert ada.complaints == []


# --- the session ends


def _end_session(person: Person) -> None:
    """Only on the server: the browser goes on sending its cookie."""
    cookies = {each["name"]: each["value"] for each in person.context.cookies()}
    header = {"Cookie": f"keyman_session={cookies['keyman_session']}"}
    assert (
        httpx.post(f"{person.origin}/api/auth/logout", headers=header, timeout=PATIENCE, verify=NO_TLS).status_code
        == 204
    )


def test_a_session_that_ends_while_the_form_is_open_loses_only_the_key(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open(KEYS)
    press(page, "Add New Key")
    fill(page, "OpenAI", OPENAI_KEY, "kept meanwhile")
    _end_session(ada)
    save(page)
    again = dialog(page)
    expect(again).to_have_accessible_name("Sign in again")
    expect(again.get_by_label("Password")).to_be_focused()
    sign_in(page, ada.email, "not the password")
    expect(again.get_by_text("E-mail or password is wrong.")).to_be_visible()
    expect(again.get_by_label("Password")).to_have_value("")
    sign_in(page, ada.email)
    expect(page.get_by_role("dialog")).to_have_count(1)
    expect(dialog(page)).to_have_accessible_name("Add a Key")
    expect(page.get_by_label("Service", exact=True)).to_have_value("OPENAI")
    expect(page.get_by_label("API key", exact=True)).to_have_value("")
    expect(page.get_by_label("API key", exact=True)).to_be_focused()
    expect(page.get_by_label("API key", exact=True)).to_have_attribute("aria-invalid", "true")
    expect(dialog(page).get_by_text("Paste the key again.")).to_be_visible()
    expect(page.get_by_label("Label", exact=True)).to_have_value("kept meanwhile")
    fill(page, key=OPENAI_KEY)
    expect(dialog(page).get_by_text("Paste the key again.")).to_be_hidden()
    save(page)
    expect(rows(page)).to_contain_text("kept meanwhile")
    assert len(keys_of(ada)) == 1
    assert ada.troubles(REFUSED) == []


def test_a_session_that_ended_is_asked_for_by_every_button_and_the_page_stays(ada: Person) -> None:
    ada.store(OPENAI)
    page = ada.page
    page.reload()
    for button in ("Edit", "Delete", "Add New Key"):
        ada.context.clear_cookies()
        page.get_by_role("button", name=re.compile(f"^{button}( OpenAI|$)")).click()
        expect(dialog(page)).to_have_accessible_name("Sign in again")
        sign_in(page, ada.email)
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(rows(page)).to_contain_text(OPENAI_MASK)
    opened = press(page, "Delete", rows(page))
    ada.context.clear_cookies()
    opened.get_by_role("button", name="Delete", exact=True).click()
    sign_in(page, ada.email)
    expect(page.get_by_role("dialog")).to_have_count(1)
    dialog(page).get_by_role("button", name="Delete", exact=True).click()
    expect(rows(page)).to_have_count(0)


def test_somebody_else_who_signs_in_sees_nothing_of_the_first(ada: Person, arrive: Arrive) -> None:
    eve = join(arrive(signed_up=False))
    eve.store({"service": "ANTHROPIC", "api_key": ANTHROPIC_KEY, "name": "of another"})
    ada.store(OPENAI)
    page = ada.page
    page.reload()
    press(page, "Edit", rows(page))
    fill(page, key=OPENAI_KEY, label="typed by the first")
    ada.context.clear_cookies()
    save(page)
    expect(dialog(page)).to_have_accessible_name("Sign in again")
    sign_in(page, eve.email)
    expect(rows(page)).to_contain_text(ANTHROPIC_MASK)
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert "typed by the first" not in page.content()
    assert ada.email not in page.content()
    assert OPENAI_MASK not in page.content()


def test_a_page_asked_for_without_a_session_comes_after_signing_in(ada: Person) -> None:
    page, heading = ada.page, ada.page.get_by_role("heading", level=1)
    ada.context.clear_cookies()
    ada.open(ACTIVITY)
    expect(heading).to_have_text("Sign in")
    sign_in(page, ada.email)
    expect(page).to_have_url(f"{ada.origin}{ACTIVITY}")
    expect(heading).to_have_text("Activity")
    # Back leads to no form that would be sent again.
    page.go_back()
    expect(heading).to_have_text("Activity")
    ada.context.clear_cookies()
    page.get_by_role("link", name="Account").click()
    sign_in(page, ada.email, "not the password")
    expect(page.get_by_text("E-mail or password is wrong.")).to_be_visible()
    expect(page.get_by_label("Email")).to_have_value(ada.email)
    expect(page.get_by_label("Password")).to_have_value("")
    expect(page.get_by_label("Password")).to_be_focused()
    sign_in(page, ada.email)
    expect(page).to_have_url(f"{ada.origin}{ACCOUNT}")
    expect(heading).to_have_text("Account")


# --- two windows


@pytest.mark.parametrize("way", quick(["Delete", "Save"], ["Edit", "Delete again"]))
def test_a_key_deleted_in_another_window_ends_in_words(ada: Person, way: str) -> None:
    ada.store(OPENAI)
    page = ada.page
    page.reload()
    if way in ("Save", "Delete again"):
        opened = press(page, "Edit" if way == "Save" else "Delete", rows(page))
        _delete_elsewhere(ada)
        opened.get_by_role("button", name=way.partition(" ")[0], exact=True).click()
    else:
        _delete_elsewhere(ada)
        rows(page).get_by_role("button", name=way).click()
    expect(dialog(page)).to_contain_text("There is nothing here")
    expect(dialog(page)).to_contain_text("This key no longer exists. It may have been deleted in another window.")
    back = dialog(page).get_by_role("button", name="Back to your keys")
    expect(back).to_be_focused()
    if way == "Edit":
        page.keyboard.press("Escape")
    else:
        back.click()
    expect(page.get_by_role("heading", name="No keys yet")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert ada.troubles(REFUSED) == []


def _delete_elsewhere(person: Person) -> None:
    for key in keys_of(person):
        assert person.context.request.delete(f"{person.origin}/api/keys/{key['id']}").status == 204


def test_of_two_windows_that_edit_the_second_gets_a_warning_and_may_go_on(ada: Person) -> None:
    ada.store(OPENAI)
    first, second = ada.page, ada.watch(ada.context.new_page())
    for page in (first, second):
        page.goto(f"{ada.origin}{KEYS}")
        press(page, "Edit", rows(page))
    _rename(first, "by the first")
    expect(rows(first)).to_contain_text("by the first")
    _rename(second, "by the second")
    opened = dialog(second)
    expect(opened.get_by_role("alert")).to_be_visible()
    expect(opened.get_by_role("alert")).to_contain_text("changed")
    expect(second.get_by_label("Label", exact=True)).to_have_value("by the second")
    assert keys_of(ada)[0]["name"] == "by the first"
    save(second)
    expect(rows(second)).to_contain_text("by the second")
    assert keys_of(ada)[0]["name"] == "by the second"
    first.reload()
    expect(rows(first)).to_contain_text("by the second")
    assert ada.troubles(REFUSED) == []


def _rename(page: Page, label: str) -> None:
    fill(page, label=label)
    save(page)


def test_a_key_added_in_another_window_is_there_after_the_next_change(ada: Person) -> None:
    page = ada.page
    press(page, "Add New Key")
    ada.store({"service": "ANTHROPIC", "api_key": ANTHROPIC_KEY})
    fill(page, "OpenAI", OPENAI_KEY)
    save(page)
    expect(rows(page)).to_have_count(2)
    expect(rows(page).first).to_have_class("fresh")
    expect(rows(page).first).to_contain_text("OpenAI")


def test_an_address_that_is_taken_is_said_on_the_form(ada: Person) -> None:
    ada.context.clear_cookies()
    page = ada.page
    ada.open("/sign-up")
    page.get_by_label("Email").fill(ada.email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign up").click()
    expect(page.get_by_role("alert")).to_contain_text("An account with this address already exists.")
    expect(page.get_by_label("Email")).to_have_value(ada.email)
    expect(page.get_by_label("Password")).to_have_value("")
    page.get_by_role("link", name="Sign in").click()
    sign_in(page, ada.email)
    expect(page).to_have_url(f"{ada.origin}{KEYS}")


# --- answers that are not what was asked for


@pytest.mark.parametrize("answer", quick([(502, "<h1>Bad Gateway</h1>")], [(413, ""), (504, "upstream timed out")]))
def test_an_answer_that_is_not_keymans_leaves_the_form_as_it_was_filled_in(
    ada: Person, answer: tuple[int, str]
) -> None:
    page, (status, body) = ada.page, answer
    opened = press(page, "Add New Key")
    fill(page, "OpenAI", OPENAI_KEY, "stays")
    page.route("**/settings/api-keys", lambda route: route.fulfill(status=status, body=body, content_type="text/html"))
    save(page)
    expect(opened.get_by_role("alert")).to_contain_text("keyman could not be reached")
    expect(page.get_by_label("Label", exact=True)).to_have_value("stays")
    expect(page.get_by_label("API key", exact=True)).to_have_value(OPENAI_KEY)
    page.unroute("**/settings/api-keys")
    save(page)
    expect(rows(page)).to_have_count(1)


def test_a_search_that_fails_leaves_the_list_and_the_search(ada: Person) -> None:
    ada.store(*[OPENAI] * 11)
    page = ada.page
    page.reload()
    page.route("**/settings/api-keys?*", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
    page.get_by_label("Search keys").fill("fir")
    expect(page.get_by_role("alert")).to_contain_text("keyman could not be reached")
    expect(rows(page)).to_have_count(11)
    page.unroute("**/settings/api-keys?*")
    page.get_by_label("Search keys").fill("nothing like it")
    expect(page.get_by_role("heading", name="No matching keys")).to_be_visible()
    expect(page.locator("#heard")).to_have_text("Keys shown: 0")
    assert [line for line in ada.complaints if "TypeError" in line] == []


def test_a_search_that_answers_late_closes_no_form(ada: Person) -> None:
    ada.store(*[OPENAI] * 11)
    page = ada.page
    page.reload()
    held_back: list[Route] = []
    page.route("**/settings/api-keys?*", lambda route: _hold(held_back, route))
    page.get_by_label("Search keys").fill("fir")
    until_held(page, held_back)  # after the end of the typing
    press(page, "Add New Key")
    fill(page, label="being typed")
    for route in held_back:
        route.continue_()
    expect(page.locator("#heard")).to_have_text("Keys shown: 11")
    expect(page.get_by_label("Label", exact=True)).to_have_value("being typed")


def test_a_form_of_one_account_is_not_sent_for_another(ada: Person, dev_server: DevServer) -> None:
    page = ada.page
    opened = press(page, "Add New Key")
    fill(page, "OpenAI", OPENAI_KEY, "belongs to ada")
    eve = sign_up(dev_server.origin, "eve.form@example.com")
    ada.context.add_cookies([{"name": "keyman_session", "value": eve.cookies["keyman_session"], "url": ada.origin}])
    save(page)
    expect(opened.get_by_role("alert")).to_contain_text("Somebody else has signed in with this browser.")
    assert eve.get("/api/keys").json() == []
    eve.close()


def test_a_form_that_is_a_page_of_its_own_is_sent_as_one(ada: Person) -> None:
    page = ada.page
    ada.open(f"{KEYS}/new")
    fill(page, "OpenAI", ANTHROPIC_KEY, "as a page")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("API key looks like a key of Anthropic, not of OpenAI")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    fill(page, key=OPENAI_KEY)
    page.get_by_role("button", name="Save").click()
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_role("status")).to_have_text("OpenAI · as a page is stored.")
    assert page.url == f"{ada.origin}{KEYS}"  # what was done is said once: a reload does not say it again


def test_a_button_that_works_is_the_one_that_cannot_be_pressed_again(ada: Person) -> None:
    ada.store(OPENAI)
    page = ada.page
    page.reload()
    opened = press(page, "Delete", rows(page))
    with held(page):
        opened.get_by_role("button", name="Delete").click()
        expect(opened.get_by_role("button", name="Delete")).to_be_disabled()
        expect(opened.get_by_role("button", name="Cancel")).to_be_enabled()
    expect(page.get_by_role("heading", name="No keys yet")).to_be_visible()


def test_a_session_that_ends_after_a_refusal_leads_back_to_a_page(ada: Person) -> None:
    page = ada.page
    ada.open(ACCOUNT)
    for _ in range(2):
        page.get_by_label("Current password").fill("not the password")
        page.get_by_label("New password").fill("another horse battery")
        page.get_by_role("button", name="Change password").click()
        expect(page.get_by_text("Current password is wrong.")).to_be_visible()
    cookies = ada.context.cookies()
    ada.context.clear_cookies()
    page.reload()
    sign_in(page, ada.email)
    expect(page.get_by_role("heading", level=1)).to_have_text("Account")
    ada.context.clear_cookies()
    ada.context.add_cookies(cookies)  # type: ignore[arg-type]  # what was given is taken


def _hold(held: list[Route], route: Route) -> None:
    """Playwright wants a function of its own to call, no method of a list."""
    held.append(route)
