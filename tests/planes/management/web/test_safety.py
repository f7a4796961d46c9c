"""The pages store no secret, run no script from a label, and send nothing to another host."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from playwright.sync_api import Error, Page, Response, expect

from tests.planes.management.web.moves import (
    ACCOUNT,
    KEYS,
    OPENAI_KEY,
    REFUSED,
    SETTINGS,
    TOKENS,
    dialog,
    discard,
    expect_labels,
    fill,
    join,
    keys_of,
    press,
    rows,
    save,
    settled,
)
from tests.support.browser import Arrive, Person

PAYLOADS = (
    "<img src=x onerror=document.title='run'>",
    "\"><script>document.title='run'</script>",
    "'><svg onload=document.title='run'>",
    "{{7*7}}${7*7}<%=7*7%>{% raw %}",
    "<b hx-get=/sign-out hx-trigger=load>label</b>",
    '" hx-on:click="document.title=1" x="',
    "' hx-on::load='document.title=1' x='",
    "javascript:document.title=1//",
    "</code></td></table></dialog><form id=leave>",
    "&lt;i&gt;&amp;amp;&#0;",
)

REMAINS = """async () => {
  const fields = [...document.querySelectorAll("input, textarea, select, template")].map((each) => each.value ?? "");
  const databases = (await indexedDB.databases()).map((each) => each.name);
  const caches = "caches" in self ? await self.caches.keys() : [];
  return JSON.stringify([fields, databases, caches, {...localStorage}, {...sessionStorage}, document.cookie, name,
    history.state, location.href, document.title, performance.getEntries().map((each) => each.name),
    [...document.querySelectorAll("*")].flatMap((each) => [...each.attributes].map((one) => one.value)),
    document.body.innerText, document.getSelection().toString()]);
}"""


class Recorder:
    """All that came to a person's browser, and all that it has kept."""

    def __init__(self, person: Person) -> None:
        self._person = person
        self._responses: list[Response] = []
        self._bodies: list[bytes] = []
        self._lines: list[str] = []
        person.page.on("response", self._note)
        person.page.on("console", lambda line: self._lines.append(line.text))
        self._protocol = person.context.new_cdp_session(person.page)

    def _note(self, response: Response) -> None:
        self._lines += [response.url, json.dumps(response.headers)]
        if not 300 <= response.status < 400 and "/static/" not in response.url:
            self._responses.append(response)

    def places(self) -> dict[str, str]:
        page = self._person.page
        for response in self._responses:
            with suppress(Error):  # of a page that was left since
                self._bodies.append(response.body())
        self._responses.clear()
        assert self._bodies
        return {
            "document": page.content(),
            "kept by the page": page.evaluate(REMAINS),
            "kept by the browser": json.dumps(self._person.context.storage_state(indexed_db=True)),
            "history": json.dumps(self._protocol.send("Page.getNavigationHistory")),
            "addresses": " ".join(self._person.asked),
            "answers": b" ".join(self._bodies).decode(),
            "console and headers": " ".join(self._lines),
        }


def lies_in(recorder: Recorder, *secrets: str) -> list[str]:
    """The places where one of the secrets is found."""
    return [place for place, text in recorder.places().items() if any(secret in text for secret in secrets)]


def test_a_key_that_was_typed_is_found_nowhere_afterwards(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    recorder = Recorder(ada)
    page = ada.page
    ada.open(KEYS)
    key = page.get_by_label("API key", exact=True)
    canaries = [f"sk-ant-canary{number}hq2v9mXbT0c7eUKwN4Rd" for number in range(9)]
    sought = [f"canary{number}hq2v9mXbT0c7eUKwN4Rd" for number in range(9)]

    def only_in_the_field(value: str) -> None:
        """The value of a form that was not stored stays in its field, and is nowhere else."""
        expect(key).to_have_value(value)
        assert lies_in(recorder, *sought) == ["kept by the page"]
        assert page.evaluate(REMAINS).count(value) == 1
        assert key.get_attribute("value") is None

    # Typed and left.
    press(page, "Add New Key")
    fill(page, "OpenAI", canaries[0], "a label")
    page.get_by_role("button", name="Show the key").click()
    discard(page)
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert lies_in(recorder, *sought) == []

    # Refused, with the key shown while it was sent.
    opened = press(page, "Add New Key")
    expect(key).to_have_value("")
    expect(key).to_have_attribute("type", "password")
    fill(page, "OpenAI", canaries[1], "a label")
    page.get_by_role("button", name="Show the key").click()
    save(page)
    expect(opened.get_by_text("API key looks like a key of Anthropic, not of OpenAI")).to_be_visible()
    expect(key).to_have_attribute("type", "password")
    only_in_the_field(canaries[1])

    # No way to the server, and a way that breaks off; the key is shown again.
    ada.context.set_offline(True)
    fill(page, "Anthropic", canaries[2])
    page.get_by_role("button", name="Show the key").click()
    save(page)
    expect(opened.get_by_role("alert")).to_contain_text("keyman could not be reached")
    expect(key).to_have_attribute("type", "password")
    only_in_the_field(canaries[2])
    ada.context.set_offline(False)
    page.route(f"**{KEYS}", lambda route: route.abort("connectionreset"))
    fill(page, key=canaries[3])
    save(page)
    expect(opened.get_by_role("alert")).to_have_count(1)
    page.unroute(f"**{KEYS}")
    only_in_the_field(canaries[3])
    discard(page)
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert lies_in(recorder, *sought) == []

    # No session.
    press(page, "Add New Key")
    fill(page, "Anthropic")
    cookies = ada.context.cookies()
    ada.context.clear_cookies()
    fill(page, key=canaries[4])
    save(page)
    expect(dialog(page)).to_have_accessible_name("Sign in again")
    assert lies_in(recorder, *sought) == []
    page.keyboard.press("Escape")
    ada.context.add_cookies(cookies)  # type: ignore[arg-type]  # what one gives is what the other takes

    # Stored, and replaced.
    fill(page, key=canaries[5])
    page.get_by_role("button", name="Show the key").click()
    save(page)
    expect(rows(page)).to_contain_text("sk-ant-...N4Rd")
    assert lies_in(recorder, *sought) == []
    press(page, "Edit", rows(page))
    fill(page, key=canaries[6])
    save(page)
    expect(page.get_by_role("status")).to_contain_text(" is changed.")
    press(page, "Edit", rows(page))
    expect(key).to_have_value("")
    page.keyboard.press("Escape")
    page.go_back()
    page.go_forward()
    expect(rows(page)).to_have_count(1)
    assert lies_in(recorder, *sought) == []

    # The forms as pages, which a script is not needed for: typed, gone away from and come back to.
    ada.open(f"{KEYS}/new")
    fill(page, "OpenAI", canaries[7])
    ada.open(ACCOUNT)
    page.go_back()
    expect(key).to_have_value("")
    assert lies_in(recorder, *sought) == []
    # The test of the test.
    fill(page, key=canaries[8])
    assert lies_in(recorder, *sought) == ["kept by the page"]
    assert len(keys_of(ada)) == 1


def test_a_token_is_found_nowhere_once_its_dialog_is_closed(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open(TOKENS)
    opened = press(page, "New Token")
    page.get_by_label("Name", exact=True).fill("once")
    opened.get_by_role("button", name="Create Token").click()
    token = page.get_by_label("once", exact=True).input_value()
    recorder = Recorder(ada)
    page.keyboard.press("Escape")
    expect(rows(page)).to_contain_text("once")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.go_back()
    page.go_forward()
    expect(rows(page)).to_contain_text("once")
    assert lies_in(recorder, token) == []


@pytest.mark.slow  # test_http.py and test_every_route.py show the same of each page
def test_labels_are_text_whatever_they_hold(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    page.on("dialog", lambda box: pytest.fail(f"a script ran: {box.message}"))
    ada.store(*({"service": "OPENAI", "api_key": OPENAI_KEY, "name": label} for label in PAYLOADS))
    ada.open(KEYS)
    title = page.title()
    expect_labels(page, list(reversed(PAYLOADS)))
    asked = len(ada.asked)
    for number, label in enumerate(reversed(PAYLOADS)):
        opened = press(page, "Edit", rows(page).nth(number))
        expect(page.get_by_label("Label", exact=True)).to_have_value(label)
        page.keyboard.press("Escape")
        opened = press(page, "Delete", rows(page).nth(number))
        expect(opened.locator(".what")).to_have_text(f"OpenAI · {label} · sk-...1234")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
    assert len(ada.asked) == asked + 2 * len(PAYLOADS)
    # Typed into the form, and brought back by it; searched for.
    opened = press(page, "Add New Key")
    fill(page, "OpenAI", "has white space", PAYLOADS[1])
    save(page)
    expect(opened.get_by_text("API key contains white space; paste only the key")).to_be_visible()
    expect(page.get_by_label("Label", exact=True)).to_have_value(PAYLOADS[1])
    page.keyboard.press("Escape")
    ada.open(f"{KEYS}?service=OPENAI&q=%22%3E%3Cscript%3Edocument.title%3D1%3C%2Fscript%3E")
    expect(page.get_by_label("Search keys")).to_have_value('"><script>document.title=1</script>')
    expect(page.get_by_role("heading", name="No matching keys")).to_be_visible()
    # As the names of tokens, and as an address to sign in with.
    for label in PAYLOADS[:3]:
        assert ada.context.request.post(f"{ada.origin}/api/tokens", data={"name": label}).status == 201
    ada.open(TOKENS)
    opened = press(page, "Revoke", rows(page).first)
    expect(opened.locator(".what")).to_contain_text(PAYLOADS[2])
    ada.context.clear_cookies()
    ada.open("/sign-in")
    # An address that is refused for its form, and one that is only unknown.
    refused = page.get_by_text("Email must be an e-mail address, such as ada@example.com.")
    for address, answer in (
        ('"><script>document.title=1</script>@x', refused),
        ('"onfocus="document.title=1"autofocus="@x', page.get_by_text("E-mail or password is wrong.")),
    ):
        page.get_by_label("Email").fill(address)
        page.locator("form").evaluate("form => form.noValidate = true")
        page.get_by_label("Password").fill("whatever it is")
        page.get_by_role("button", name="Sign in").click()
        expect(answer).to_be_visible()
        expect(page.get_by_label("Email")).to_have_value(address)
    assert page.title() != title
    assert page.title() == "Sign in · keyman"
    assert ada.troubles(REFUSED) == []
    assert ada.foreign_hosts == set()


def test_injected_markup_neither_runs_nor_sends(arrive: Arrive) -> None:
    """Were a hole found in the templates one day: what comes through it is dead."""
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open(KEYS)
    asked = len(ada.asked)
    page.evaluate(
        """() => {
          const put = (name, attributes) => {
            const made = document.createElement(name);
            for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
            made.className = "injected";
            document.getElementById("content").append(made);
            window.htmx.process(made);
            made.click();
            return made;
          };
          put("div", {"hx-get": "/settings/account", "hx-trigger": "load, click"});
          for (const [id, nonce] of [["k1-menu", ""], ["k2-menu", "guessed"]]) { // what a new key's row has
            const form = document.createElement("form");
            const button = document.createElement("button");
            Object.assign(form, {className: "menu", id});
            form.setAttribute("hx-nonce", nonce);
            Object.assign(button, {className: "asks", formMethod: "post", formAction: "/sign-out"});
            button.dataset.starts = "";
            form.append(button);
            document.getElementById("content").append(form);
          }
          const ctx = {select: "#rows", sourceElement: document.body};
          document.dispatchEvent(new CustomEvent("htmx:after:swap", {detail: {ctx}}));
          put("div", {"hx-post": "/sign-out", "hx-trigger": "click", "hx-nonce": "guessed"});
          put("div", {"hx-on:click": "document.title = 'run'"});
          put("div", {"hx-trigger": "click[document.title='run']", "hx-get": "/settings/account"});
          put("a", {"href": "javascript:document.title='run'"});
          put("img", {"src": "https://elsewhere.example/x.png"});
        }"""
    )
    for line in (
        "document.body.innerHTML = '<img src=x>'",
        "document.body.setAttribute('onclick', 'document.title = 1')",
        "document.createElement('script').text = 'document.title = 1'",
        "document.createElement('script').src = '/static/x.js'",
        "trustedTypes.createPolicy('mine', {createHTML: (text) => text})",
        "trustedTypes.createPolicy('htmx', {createHTML: (text) => text})",
        "void window.setTimeout('document.title = 1')",
    ):
        with pytest.raises(Error, match="Trusted"):
            page.evaluate(line)
    page.get_by_role("link", name="Account").focus()
    settled(page)
    assert page.title() == "API Keys · keyman"
    assert [url for url in ada.asked[asked:] if "/static/" not in url and "elsewhere" not in url] == []
    assert any("policy: img-src https://elsewhere.example" in line for line in ada.complaints)
    page.get_by_role("link", name="Account").click()
    expect(page.get_by_role("main")).to_contain_text(ada.email)


def test_no_page_violates_its_policy_or_asks_another_host(arrive: Arrive) -> None:
    ada = arrive(signed_up=False)
    for path in ("/", "/sign-in", "/sign-up", "/problems", "/problems/not-found", "/nothing/here"):
        ada.open(path)
    join(ada)
    ada.store(*({"service": "OPENAI", "api_key": OPENAI_KEY, "name": f"key {number}"} for number in range(11)))
    assert ada.context.request.post(f"{ada.origin}/api/tokens", data={"name": "a token"}).status == 201
    page = ada.page
    seen: dict[str, Any] = {}
    page.on("response", lambda response: seen.setdefault(response.url, response.headers))
    for path in (*SETTINGS, f"{KEYS}/new", f"{TOKENS}/new", f"{KEYS}?q=key", "/settings/nothing", "/problems"):
        ada.open(path)
        settled(page)
    for path, buttons in {KEYS: ("Add New Key", "Edit", "Delete"), TOKENS: ("New Token", "Revoke")}.items():
        ada.open(path)
        for button in buttons:
            press(page, button, None if "New" in button else rows(page).first)
            page.keyboard.press("Escape")
    assert ada.foreign_hosts == set()
    assert ada.troubles(REFUSED) == []
    nonces = set()
    for url, headers in seen.items():
        if "/static/" in url:
            continue
        assert headers["cache-control"] == "no-store", url
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        for part in ("default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"):
            assert part in policy, (url, part)
        assert "require-trusted-types-for 'script'" in policy
        assert headers["referrer-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["permissions-policy"]
        nonces.add(policy.partition("'nonce-")[2].partition("'")[0])
    assert len(nonces) == len([url for url in seen if "/static/" not in url])


def test_no_page_can_be_framed(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    ada.open("/sign-in")
    framed = _framed(ada.page, f"{ada.origin}{KEYS}")
    assert "evil" in framed
    assert "password" not in framed
    assert "API Keys" not in framed


def _framed(page: Page, url: str) -> str:
    """What a page that puts `url` into a frame gets to see of it."""
    page.context.route(
        "http://evil.localhost/", lambda route: route.fulfill(content_type="text/html", body=_frame(url))
    )
    page.goto("http://evil.localhost/")
    page.wait_for_load_state("networkidle")
    return " ".join(frame.content() for frame in page.frames)


def _frame(url: str) -> str:
    return f"<!doctype html><title>evil</title><iframe src='{url}' width=900 height=600></iframe>"
