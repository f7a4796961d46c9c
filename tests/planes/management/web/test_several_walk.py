"""Several keys at once, in a browser: paste them, drop a file, choose, store; and without JavaScript."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.planes.management.web.moves import (
    ANTHROPIC_KEY,
    KEYS,
    OPENAI_KEY,
    REFUSED,
    dialog,
    discard,
    escape_when,
    held,
    in_days,
    join,
    keys_of,
    narrow_places,
    press,
    rows,
    sign_in,
    until_held,
)
from tests.planes.management.web.test_adding import paste
from tests.planes.management.web.test_safety import Recorder, lies_in
from tests.support.browser import PHONE, Arrive, Person

CANARY = "canary0hq2v9mXbT0c7eUKwN4Rd"
TEXT = f"""# production
OPENAI_API_KEY={OPENAI_KEY}\r
export ANTHROPIC_API_KEY="sk-ant-{CANARY}"
LLM_KEY=sk-another0hq2v9mXb
DATABASE_URL=postgres://example.com/db
"""

DROP = """async ([text, on]) => {
  const data = new DataTransfer();
  data.items.add(new File([text], ".env", {type: "text/plain"}));
  for (const kind of ["dragover", "drop"]) {
    const event = new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true});
    if (document.querySelector(on).dispatchEvent(event)) throw new Error(kind);
  }
}"""


@pytest.fixture
def pasting(arrive: Arrive) -> Person:
    person = join(arrive(signed_up=False))
    person.open(KEYS)
    return person


def boxes(page: Page) -> list[bool]:
    return [box.is_checked() for box in page.get_by_role("checkbox").all()]


def test_lines_that_are_pasted_into_the_field_for_one_key_are_shown_and_stored(pasting: Person) -> None:
    page = pasting.page
    recorder = Recorder(pasting)
    press(page, "Add New Key")
    paste(page, TEXT)
    opened = dialog(page)
    expect(opened.get_by_role("heading", name="Add Several Keys")).to_be_focused()
    expect(opened.get_by_text("Keys found: 3. Choose which ones to store.")).to_be_visible()
    expect(opened.get_by_text("DATABASE_URL")).to_be_visible()
    expect(opened.get_by_label("Paste the same lines again")).to_be_hidden()
    assert boxes(page) == [True, True, False]
    assert lies_in(recorder, CANARY, OPENAI_KEY) == []
    opened.get_by_role("checkbox", name="Store LLM_KEY").check()
    opened.get_by_label("Service of LLM_KEY").select_option(label="DeepSeek")
    opened.get_by_label("Label of LLM_KEY").fill("for tests")
    opened.get_by_role("button", name="Store the chosen keys").click()
    expect(opened.get_by_text("All of these keys are stored.")).to_be_visible()
    assert lies_in(recorder, CANARY, OPENAI_KEY) == []
    opened.get_by_role("button", name="Done").click()
    expect(rows(page)).to_have_count(3)
    expect(page.get_by_role("status")).to_have_text("3 keys are stored.")
    expect(page.locator(".fresh")).to_have_count(3)
    expect(rows(page).first).to_contain_text("for tests")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert [key["service"] for key in keys_of(pasting)] == ["DEEPSEEK", "ANTHROPIC", "OPENAI"]
    assert pasting.complaints == []


def test_a_key_whose_service_somebody_chooses_is_chosen(pasting: Person) -> None:
    page = pasting.page
    press(page, "Add New Key")
    paste(page, "FIRST_KEY=another0hq2v9mXb\nSECOND_KEY=another1hq2v9mXb\n")
    opened = dialog(page)
    expect(opened.get_by_text("Keys found: 2.")).to_be_visible()
    assert boxes(page) == [False, False]
    for name in ("FIRST_KEY", "SECOND_KEY"):
        opened.get_by_label(f"Service of {name}").select_option(label="DeepSeek")
    assert boxes(page) == [True, True]
    expect(opened.get_by_text("only ticked keys are stored")).to_be_hidden()
    opened.get_by_role("checkbox", name="Store SECOND_KEY").uncheck()
    opened.get_by_role("button", name="Store the chosen keys").click()
    expect(opened.get_by_text("Some of these keys are stored.")).to_be_visible()
    assert [key["name"] for key in keys_of(pasting)] == ["FIRST_KEY"]


def test_without_javascript_the_page_says_to_tick_a_key(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False, java_script_enabled=False))
    page = ada.page
    ada.open(f"{KEYS}/several")
    page.get_by_label("Lines with keys").fill(TEXT)
    page.get_by_role("button", name="Show the keys").click()
    expect(page.get_by_text("If you choose a service for a key, also tick the key")).to_be_visible()


def test_what_is_refused_is_said_in_its_row_and_can_be_tried_again(pasting: Person) -> None:
    page = pasting.page
    pasting.store({"service": "OPENAI", "api_key": OPENAI_KEY, "name": "the first"})
    press(page, "Add New Key")
    paste(page, TEXT)
    opened = dialog(page)
    opened.get_by_role("checkbox", name="Store LLM_KEY").check()
    opened.get_by_role("button", name="Store the chosen keys").click()
    expect(opened.get_by_text("Some of these keys are stored.")).to_be_visible()
    expect(opened.get_by_text("You already have this key: the first.")).to_be_visible()
    expect(opened.get_by_text("Service is missing.")).to_be_visible()
    expect(opened.get_by_role("checkbox")).to_have_count(1)
    opened.get_by_label("Service of LLM_KEY").select_option(label="DeepSeek")
    opened.get_by_role("button", name="Store the chosen keys").click()
    expect(opened.get_by_text("All of these keys are stored.")).to_be_visible()
    assert len(keys_of(pasting)) == 4


def test_what_is_stored_stays_so_if_nothing_is_chosen_the_next_time(pasting: Person) -> None:
    page = pasting.page
    press(page, "Add New Key")
    paste(page, TEXT)
    opened = dialog(page)
    opened.get_by_role("button", name="Store the chosen keys").click()
    expect(opened.get_by_text("Some of these keys are stored.")).to_be_visible()
    opened.get_by_role("button", name="Store the chosen keys").click()
    expect(opened.get_by_text("Choose at least one key.")).to_be_visible()
    expect(opened.get_by_text("Some of these keys are stored.")).to_be_visible()
    opened.get_by_role("button", name="Done").click()
    expect(rows(page)).to_have_count(2)


def test_expiry_and_settings_are_asked_for_beside_the_rows(pasting: Person) -> None:
    page = pasting.page
    press(page, "Add New Key")
    paste(page, f"{TEXT}AZURE_OPENAI_API_KEY={CANARY}\n")
    opened = dialog(page)
    of_azure = opened.get_by_role("group", name="Settings AZURE_OPENAI_API_KEY")
    expect(of_azure.get_by_label("Endpoint")).to_be_visible()
    box = opened.get_by_role("checkbox", name="Store AZURE_OPENAI_API_KEY")
    expect(box).not_to_be_checked()
    of_azure.get_by_label("Endpoint").fill("https://eu.openai.azure.com")
    expect(box).to_be_checked()
    # The fields follow the service that is chosen.
    of_llm = opened.get_by_role("group", name="Settings LLM_KEY")
    opened.get_by_label("Service of LLM_KEY").select_option(label="Amazon Bedrock")
    expect(of_llm.get_by_role("textbox")).to_have_count(1)
    opened.get_by_label("Service of LLM_KEY").select_option(label="Azure OpenAI")
    expect(of_llm.get_by_role("textbox")).to_have_count(2)
    expect(opened.get_by_text("Choose a service.")).to_have_count(0)
    opened.get_by_label("Service of LLM_KEY").select_option(label="DeepSeek")
    expect(of_llm).to_have_count(0)
    opened.get_by_role("checkbox", name="Store LLM_KEY").check()
    opened.get_by_role("group", name="Valid for").get_by_role("button", name="90 days").click()
    expect(opened.get_by_label("Expires")).to_have_value(in_days(90))
    opened.get_by_role("button", name="Store the chosen keys").click()
    expect(opened.get_by_text("All of these keys are stored.")).to_be_visible()
    stored = {key["service"]: key for key in keys_of(pasting)}
    assert stored["AZURE_OPENAI"]["settings"] == {"endpoint": "https://eu.openai.azure.com"}
    assert {key["expires_at"] for key in stored.values()} == {f"{in_days(90)}T23:59:59Z"}
    assert len(stored) == 4
    assert pasting.complaints == []


def test_a_file_can_be_dropped_or_chosen(pasting: Person, tmp_path: Path) -> None:
    page = pasting.page
    press(page, "Add New Key")
    page.evaluate(DROP, [TEXT, "#key-form"])
    expect(dialog(page).get_by_role("checkbox")).to_have_count(3)
    discard(page)
    opened = press(page, "Add New Key")
    opened.get_by_role("button", name="Add Several Keys").click()
    expect(dialog(page).get_by_label("Lines with keys")).to_be_focused()
    (tmp_path / ".env").write_text(TEXT)
    dialog(page).get_by_label("Or a file").set_input_files(tmp_path / ".env")
    expect(dialog(page).get_by_role("checkbox")).to_have_count(3)
    dialog(page).get_by_role("button", name="Store the chosen keys").click()
    expect(dialog(page).get_by_text("Some of these keys are stored.")).to_be_visible()
    assert len(keys_of(pasting)) == 2


def test_lines_are_not_thrown_away_by_an_escape_in_the_moment_in_which_their_keys_appear(pasting: Person) -> None:
    page = pasting.page
    press(page, "Add New Key")
    escape_when(page, "[data-again]")
    page.evaluate(DROP, [TEXT, "#key-form"])
    expect(page.get_by_role("button", name="Discard", exact=True)).to_be_visible()


def test_the_keyboard_is_enough_for_several_keys(pasting: Person) -> None:
    page, keyboard = pasting.page, pasting.page.keyboard
    page.get_by_role("main").get_by_role("button", name="Add New Key").press("Enter")
    expect(page.get_by_label("API key", exact=True)).to_be_focused()
    keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="Add Several Keys")).to_be_focused()
    keyboard.press("Enter")
    expect(page.get_by_label("Lines with keys")).to_be_focused()
    keyboard.insert_text(TEXT)
    keyboard.press("Tab")
    keyboard.press("Tab")
    expect(page.get_by_role("button", name="Show the keys")).to_be_focused()
    keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Add Several Keys")).to_be_focused()
    keyboard.press("Tab")
    box = page.get_by_role("checkbox", name="Store OPENAI_API_KEY")
    expect(box).to_be_focused()
    expect(box).to_have_accessible_description("sk-...1234")
    keyboard.press("Space")
    page.get_by_role("button", name="Store the chosen keys").press("Enter")
    expect(page.get_by_text("Some of these keys are stored.")).to_be_visible()
    assert [key["service"] for key in keys_of(pasting)] == ["ANTHROPIC"]


def test_lines_without_a_key_stay_in_their_field(pasting: Person) -> None:
    page = pasting.page
    press(page, "Add New Key")
    paste(page, "PORT=1\nDEBUG=true\n")
    expect(dialog(page).get_by_role("alert")).to_have_text("There is no key in these lines.")
    expect(dialog(page).get_by_label("Lines with keys")).to_have_value("PORT=1\nDEBUG=true\n")


def test_pasted_lines_are_not_thrown_away_by_one_key_nor_by_a_failure(pasting: Person) -> None:
    page = pasting.page
    press(page, "Add New Key")
    paste(page, TEXT)
    opened = dialog(page)
    expect(opened.get_by_role("checkbox")).to_have_count(3)
    expect(opened.locator("[data-again]")).to_be_hidden()  # the page's script has taken the lines over
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Keep editing").click()
    pasting.context.set_offline(True)
    opened.get_by_role("button", name="Store the chosen keys").click()
    expect(opened.get_by_role("alert")).to_contain_text("keyman could not be reached")
    pasting.context.set_offline(False)
    with held(page) as waiting:
        opened.get_by_role("button", name="Store the chosen keys").click()
        until_held(page, waiting)
        expect(opened.get_by_role("button", name="Store the chosen keys")).to_be_disabled()
        assert len(waiting) == 1
    expect(opened.get_by_text("Some of these keys are stored.")).to_be_visible()
    assert len(keys_of(pasting)) == 2


def test_lines_that_are_corrected_after_a_failure_are_the_ones_that_count(pasting: Person) -> None:
    page = pasting.page
    pasting.open(f"{KEYS}/several")
    lines, show = page.get_by_label("Lines with keys"), page.get_by_role("button", name="Show the keys")
    lines.fill(TEXT)
    pasting.context.set_offline(True)
    show.click()
    expect(page.get_by_role("alert")).to_contain_text("keyman could not be reached")
    pasting.context.set_offline(False)
    lines.fill(f"OPENAI_API_KEY={OPENAI_KEY}")
    show.click()
    expect(page.get_by_role("checkbox")).to_have_count(1)
    page.evaluate(DROP, [TEXT, "#panel"])  # not here: these rows are being chosen from
    expect(page.get_by_role("checkbox")).to_have_count(1)
    page.get_by_role("button", name="Store the chosen keys").click()
    expect(page.get_by_text("All of these keys are stored.")).to_be_visible()


def test_after_a_new_sign_in_the_lines_have_to_be_pasted_again(pasting: Person) -> None:
    page = pasting.page
    press(page, "Add New Key")
    paste(page, TEXT)
    expect(dialog(page).get_by_role("checkbox")).to_have_count(3)
    pasting.context.clear_cookies()
    dialog(page).get_by_role("button", name="Store the chosen keys").click()
    sign_in(page, pasting.email)
    again = page.get_by_label("Paste the same lines again")
    expect(again).to_be_focused()
    expect(again).to_have_value("")
    again.fill(TEXT)
    page.get_by_role("button", name="Store the chosen keys").click()
    expect(page.get_by_text("Some of these keys are stored.")).to_be_visible()
    assert len(keys_of(pasting)) == 2


@pytest.mark.parametrize("has_script", [True, False])
def test_a_page_of_its_own_works_with_and_without_a_script(arrive: Arrive, has_script: bool) -> None:
    ada = join(arrive(signed_up=False, java_script_enabled=has_script))
    page = ada.page
    ada.open(f"{KEYS}/new")
    page.get_by_role("button", name="Add Several Keys").click()
    if has_script:
        page.goto(f"{ada.origin}{KEYS}/several")
    expect(page.get_by_label("Or a file")).to_be_visible(visible=has_script)
    page.get_by_label("Lines with keys").fill(TEXT)
    page.get_by_role("button", name="Show the keys").click()
    expect(page.get_by_role("checkbox")).to_have_count(3)
    again = page.get_by_label("Paste the same lines again")
    expect(again).to_be_visible(visible=not has_script)
    assert CANARY not in page.content()
    if not has_script:
        again.fill(TEXT)
    page.get_by_role("button", name="Store the chosen keys").click()
    expect(page.get_by_text("Some of these keys are stored.")).to_be_visible()
    assert len(keys_of(ada)) == 2
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("API Keys")
    expect(page.get_by_role("status")).to_have_text("2 keys are stored.")
    assert ada.troubles(REFUSED) == []


def test_the_rows_fit_a_phone(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False, viewport=PHONE, locale="de-DE"))
    page = ada.page
    ada.open(KEYS)
    page.get_by_role("main").get_by_role("button").first.click()
    page.locator("#api_key").wait_for()
    paste(page, f"{TEXT}{'W' * 99}={ANTHROPIC_KEY}\nAZURE_OPENAI_API_KEY={CANARY}\n")
    page.get_by_role("checkbox").first.wait_for()
    assert narrow_places(page) == []
