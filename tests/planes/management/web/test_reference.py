"""The pages of problems and of the API reference, in a real browser."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from playwright.sync_api import expect

from keyman.http.problems import KINDS
from keyman.planes.management.web.pages import TEMPLATES
from keyman.planes.management.web.static import DIRECTORY
from tests.planes.management.web.moves import ACCOUNT, OPENAI_MASK, REFUSED, join, keys_of, narrow_places
from tests.support.browser import DESKTOP, PHONE, Arrive
from tests.support.needs import are_slow_wanted
from tests.support.planes import PASSWORD


def test_the_reference_shows_each_operation_and_asks_no_other_host(arrive: Arrive) -> None:
    reader = arrive(signed_up=False)
    document = reader.context.request.get(f"{reader.origin}/docs/openapi.json").json()
    for viewport in (DESKTOP, PHONE):
        reader.page.set_viewport_size(viewport)
        reader.open("/docs")
        calls = reader.page.locator("details.call")
        summaries = [each["summary"] for methods in document["paths"].values() for each in methods.values()]
        assert sorted(calls.locator("h3 span").all_inner_texts()) == sorted(summaries)
        for call in calls.all():
            call.locator("summary").click()
        expect(reader.page.get_by_text("Idempotency-Key", exact=True).first).to_be_visible()
        assert narrow_places(reader.page) == []
    assert reader.page.get_by_role("button").count() == 0  # nobody is signed in
    assert reader.asked
    assert reader.foreign_hosts == set()
    assert reader.complaints == []


def test_an_address_opens_its_call_also_one_of_the_former_reference(arrive: Arrive) -> None:
    reader = arrive(signed_up=False)
    for address in ("/docs#createKey", "/docs#/operations/createKey"):
        reader.page.goto("about:blank")
        reader.open(address)
        expect(reader.page.get_by_text("Seals the value in Vault.")).to_be_visible()


def test_a_german_page_says_that_the_reference_is_in_english(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False, locale="de-DE"))
    for path in (ACCOUNT, "/problems", "/problems/conflict"):
        ada.open(path)
        link = ada.page.get_by_role("link", name="API-Referenz (englisch)")
        expect(link).to_have_attribute("hreflang", "en")
    link.click()
    heading = ada.page.get_by_role("heading", level=1, name="API Reference")
    assert heading.evaluate("(each) => each.closest('[lang]').lang") == "en"


def test_a_signed_in_person_tries_calls_with_their_session(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False, color_scheme="dark"))
    page = ada.page
    ada.open(ACCOUNT)
    page.get_by_role("link", name="API Reference").click()
    expect(page.get_by_role("link", name="API Reference")).to_have_attribute("aria-current", "page")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 27)"

    def tried(operation: str, status: str, **fields: str) -> dict[str, object]:
        call = page.locator(f"#{operation}")
        if call.get_attribute("open") is None:
            call.locator("summary").click()
        for name, value in fields.items():
            call.get_by_label(name, exact=True).fill(value)
        call.get_by_role("button", name="Send").click()
        expect(call.get_by_role("status")).to_have_text(status)
        text = call.locator("pre.answer").inner_text()
        found: dict[str, object] = json.loads(text[text.index("{") : text.rindex("}") + 1]) if "{" in text else {}
        return found

    key = tried("createKey", "201 Created")
    assert key["last_4_chars"] == OPENAI_MASK
    number = str(key["id"])
    assert tried("getKey", "200 OK", key_id=number)["id"] == key["id"]
    assert tried("changeKey", "200 OK", key_id=number, Body='{"name": "tried"}')["name"] == "tried"
    assert [each["name"] for each in keys_of(ada)] == ["tried"]
    assert tried("listKeys", "200 OK", q="tried", limit="1")["name"] == "tried"
    assert "not-found" in str(tried("getKey", "404 Not Found", key_id="999999999")["type"])
    tried("deleteKey", "204 No Content", key_id=number)
    assert keys_of(ada) == []
    unsent = "Nothing was sent: a header has a character that no header can have."
    tried("createKey", unsent, **{"Idempotency-Key": "€"})
    tried("createKey", "201 Created", **{"Idempotency-Key": "1"})
    assert ada.troubles(REFUSED) == []


def test_nothing_is_sent_as_somebody_else_or_after_the_session_has_ended(arrive: Arrive) -> None:
    ada, eve = join(arrive(signed_up=False)), join(arrive(signed_up=False))
    page = ada.page
    ada.open("/docs#createKey")
    call = page.locator("#createKey")
    expect(call.get_by_text(f"It is sent as {ada.email}, and")).to_be_visible()
    # In another tab of the same browser.
    login = {"email": eve.email, "password": PASSWORD}
    assert ada.context.request.post(f"{ada.origin}/api/auth/login", data=login).status == 200
    call.get_by_role("button", name="Send").click()
    said = "Nothing was sent: somebody else has signed in with this browser. Reload the page."
    expect(call.get_by_role("status")).to_have_text(said)
    assert keys_of(eve) == []
    page.reload()
    expect(call.get_by_text(f"It is sent as {eve.email}, and")).to_be_visible()
    call.get_by_role("button", name="Send").click()
    expect(call.get_by_role("status")).to_have_text("201 Created")
    ada.context.clear_cookies()
    call.get_by_role("button", name="Send").click()
    said = "Nothing was sent: your session has ended. Reload the page, and sign in again."
    expect(call.get_by_role("status")).to_have_text(said)
    expect(call.locator("pre.answer")).to_be_hidden()
    assert len(keys_of(eve)) == 1
    # A call that needs no session still works.
    page.locator("#logIn summary").click()
    body = page.locator("#logIn").get_by_label("Body")
    assert json.loads(body.input_value()).keys() == {"email", "password"}
    body.fill(json.dumps({**login, "password": "another one"}))
    page.locator("#logIn").get_by_role("button", name="Send").click()
    expect(page.locator("#logIn").get_by_role("status")).to_have_text("401 Unauthorized")
    assert ada.troubles(REFUSED) == []


def test_each_problem_has_a_page_that_explains_it(arrive: Arrive) -> None:
    reader = arrive(signed_up=False)
    page = reader.page
    reader.open("/problems")
    titles = {kind.problem.slug: kind.problem.title for kind in KINDS.values()}
    for slug, title in titles.items():
        expect(page.get_by_role("link", name=title).first).to_have_attribute("href", f"/problems/{slug}")
    # Without the slow tests, the longest title only. test_language.py asks for each page, in German.
    longest = max(titles, key=lambda slug: len(titles[slug]))
    for slug, title in titles.items() if are_slow_wanted() else [(longest, titles[longest])]:
        reader.open(f"/problems/{slug}")
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        expect(page.get_by_role("link", name="All problems")).to_have_attribute("href", "/problems")
        for viewport in (DESKTOP, PHONE):
            page.set_viewport_size(viewport)
            assert narrow_places(page) == [], slug
    page.get_by_role("link", name="All problems").click()
    page.wait_for_url("**/problems")
    assert reader.complaints == []


def test_the_files_from_elsewhere_are_those_that_were_published() -> None:
    directory = DIRECTORY / "htmx"
    listed = (line.split() for line in (directory / "SHA256SUMS").read_text().splitlines())
    digests = {file: digest for digest, file in listed}
    assert digests.keys() == {path.name for path in directory.iterdir() if path.suffix in (".js", ".css")}
    for file, digest in digests.items():
        assert hashlib.sha256((directory / file).read_bytes()).hexdigest() == digest, file


def test_no_page_of_ours_names_another_host() -> None:
    for path in [*(path for path in DIRECTORY.iterdir() if path.is_file()), *TEMPLATES.glob("*.html")]:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, Path(path).name
