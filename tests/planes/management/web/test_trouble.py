"""Pages when something is wrong with Vault, with keyman, with the request or with the session."""

from __future__ import annotations

import http.server
import json
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import expect

from tests.planes.management.web.moves import (
    ACTIVITY,
    KEYS,
    OPENAI_KEY,
    OPENAI_MASK,
    REFUSED,
    TOKENS,
    dialog,
    fill,
    join,
    keys_of,
    narrow_places,
    press,
    rows,
    save,
)
from tests.planes.management.web.test_adding import paste
from tests.support.browser import Arrive, DevServer, Person, chromium_absence
from tests.support.cli import Live, dev, dev_parts, environment, serve, settings_of
from tests.support.http import free_port
from tests.support.needs import require
from tests.support.vault import RootClient


@pytest.fixture(scope="module")
def harmed_dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DevServer, Live]]:
    """A `keyman dev` to be harmed."""
    require("chromium", chromium_absence())
    home, port = tmp_path_factory.mktemp("victim") / ".keyman", free_port()
    with dev(home, port) as running:
        yield DevServer(f"http://127.0.0.1:{port}", home), running


@pytest.fixture(scope="module")
def closed_plane(harmed_dev: tuple[DevServer, Live], tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    """A plane of its own over what is harmed, which outlives it; sign-up is closed."""
    stack, _ = harmed_dev
    settings = {**settings_of(stack.home), "KEYMAN_SIGNUP": "closed", "KEYMAN_PUBLIC_URL": ""}  # its own
    given = {name: value for name, value in environment(**settings).items() if value}
    with serve(given, tmp_path_factory.mktemp("plane")) as service:
        yield DevServer(service.url, stack.home)


@pytest.mark.slow  # `test_http.py` shows what the form says, and that the list works
def test_while_vault_is_sealed_the_form_says_so_and_the_list_works(
    arrive: Arrive, harmed_dev: tuple[DevServer, Live]
) -> None:
    stack, _ = harmed_dev
    ada = join(arrive(signed_up=False, origin=stack.origin))
    ada.store({"service": "OPENAI", "api_key": OPENAI_KEY, "name": "from before"})
    ada.open(KEYS)
    RootClient.of_home(stack.home).ask("PUT", "sys/seal")
    _works_without_vault(ada)
    keys = json.loads((stack.home / "vault" / "keys.json").read_bytes())
    RootClient.of_home(stack.home).ask("PUT", "sys/unseal", {"key": keys["unseal_key"]})


def _works_without_vault(ada: Person) -> None:
    page, words = ada.page, "We could not save your key. Nothing was stored. Try again."
    key = page.get_by_label("API key", exact=True)
    opened = press(page, "Add New Key")
    fill(page, "Anthropic", "sk-ant-canary0hq2v9mXbT0c7eUKwN4Rd", "typed meanwhile")
    page.get_by_role("button", name="Show the key").click()
    save(page)
    expect(opened.get_by_role("alert")).to_have_text(words)
    expect(key).to_have_value("sk-ant-canary0hq2v9mXbT0c7eUKwN4Rd")
    expect(key).to_have_attribute("type", "password")
    expect(page.get_by_label("Label", exact=True)).to_have_value("typed meanwhile")
    expect(page.get_by_label("Service", exact=True)).to_have_value("ANTHROPIC")
    assert "canary0" not in page.content()
    page.keyboard.press("Escape")
    # Several at once: what was chosen stays chosen, and can be sent again.
    ada.open(KEYS)
    press(page, "Add New Key")
    paste(page, f"OPENAI_API_KEY={OPENAI_KEY}\nMISTRAL_API_KEY=canary0hq2v9mXbT0c7")
    dialog(page).get_by_role("checkbox", name="Store OPENAI_API_KEY").uncheck()
    dialog(page).get_by_role("button", name="Store the chosen keys").click()
    expect(dialog(page).get_by_role("alert")).to_have_text(words)
    assert [box.is_checked() for box in dialog(page).get_by_role("checkbox").all()] == [False, True]
    expect(dialog(page).get_by_label("Paste the same lines again")).to_be_hidden()
    assert "canary0" not in page.content()
    # Seen, renamed, deleted: none of it needs Vault.
    ada.open(KEYS)
    press(page, "Edit", rows(page))
    fill(page, label="renamed meanwhile")
    save(page)
    expect(rows(page)).to_contain_text("renamed meanwhile")
    assert [stored["last_4_chars"] for stored in keys_of(ada)] == [OPENAI_MASK]
    opened = press(page, "Delete", rows(page))
    opened.get_by_role("button", name="Delete", exact=True).click()
    expect(rows(page)).to_have_count(0)
    assert ada.troubles(REFUSED) == []


@pytest.mark.slow  # `test_http.py` shows the page
def test_a_mistake_of_our_own_is_a_page_of_the_same_design(arrive: Arrive, harmed_dev: tuple[DevServer, Live]) -> None:
    """A real one: the schema is damaged under the running plane."""
    stack, _ = harmed_dev
    ada = join(arrive(signed_up=False, origin=stack.origin))
    page = ada.page
    ada.open(TOKENS)
    with sqlite3.connect(stack.home / "keyman.db", timeout=30) as connection:
        connection.execute("ALTER TABLE api_keys RENAME TO api_keys_hidden")
    try:
        page.get_by_role("link", name="API Keys").click()
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.get_by_role("main")).to_contain_text("Something went wrong on our side")
        request_id = page.get_by_text("Give the operator of keyman this request id").inner_text().rpartition(" ")[2]
        assert len(request_id) == 32
        assert "api_keys" not in page.inner_text("body")
        assert page.locator(".wordmark").count() == 1
        page.go_back()
        page.get_by_role("link", name="Activity").click()
        expect(page).to_have_url(f"{ada.origin}{ACTIVITY}")
    finally:
        with sqlite3.connect(stack.home / "keyman.db", timeout=30) as connection:
            connection.execute("ALTER TABLE api_keys_hidden RENAME TO api_keys")
        connection.close()
    page.get_by_role("link", name="API Keys").click()
    expect(page.get_by_role("heading", name="No keys yet")).to_be_visible()


@pytest.mark.slow
def test_a_mistake_of_our_own_behind_a_button_stays_in_the_dialog(
    arrive: Arrive, harmed_dev: tuple[DevServer, Live]
) -> None:
    stack, _ = harmed_dev
    ada = join(arrive(signed_up=False, origin=stack.origin))
    page = ada.page
    assert ada.context.request.post(f"{ada.origin}/api/tokens", data={"name": "a token"}).status == 201
    ada.open(TOKENS)
    opened = press(page, "Revoke", rows(page))
    with sqlite3.connect(stack.home / "keyman.db", timeout=30) as connection:
        connection.execute("CREATE TRIGGER no BEFORE DELETE ON api_tokens BEGIN SELECT RAISE(ABORT, 'no'); END")
    opened.get_by_role("button", name="Revoke").click()
    expect(opened).to_contain_text("Something went wrong on our side")
    with sqlite3.connect(stack.home / "keyman.db", timeout=30) as connection:
        connection.execute("DROP TRIGGER no")
    connection.close()
    opened.get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("heading", name="No tokens yet")).to_be_visible()


def test_what_is_not_there_is_a_page_that_leads_back(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    for path in (
        "/nothing/here",
        "/settings/nothing",
        f"{KEYS}/999999999/edit",
        f"{KEYS}/x/delete",
        f"{TOKENS}/9/revoke",
    ):
        answer = page.goto(f"{ada.origin}{path}")
        assert answer is not None
        assert answer.status == 404, path
        expect(page.get_by_role("heading", level=1)).to_have_text("There is nothing here")
        assert page.title() == "There is nothing here · keyman"
        expect(page.get_by_role("navigation", name="Settings").get_by_role("link", name="Account")).to_be_visible()
        assert narrow_places(page) == []
        back, there = ("tokens", "Access Tokens") if path.startswith(TOKENS) else ("keys", "API Keys")
        page.get_by_role("button", name=f"Back to your {back}").click()
        expect(page.get_by_role("heading", level=1)).to_have_text(there)
    assert ada.troubles(REFUSED) == []


@contextmanager
def _other_site(page: bytes) -> Iterator[str]:
    """A site on another host: the same machine by another name."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://localhost:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_form_on_another_site_changes_nothing(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    ada.store({"service": "OPENAI", "api_key": OPENAI_KEY})
    key, page = keys_of(ada)[0], ada.page
    forms = {
        "delete": f"{ada.origin}{KEYS}/{key['id']}/delete",
        "sign out": f"{ada.origin}/sign-out",
        "sign in": f"{ada.origin}/sign-in",
    }
    html = "".join(f"<form method=post action='{url}'><button>{name}</button></form>" for name, url in forms.items())
    with _other_site(html.encode()) as site:
        for name in forms:
            page.goto(site)
            with page.expect_navigation() as going:
                page.get_by_role("button", name=name).click()
            assert going.value is not None
            assert going.value.status == 403, name
            expect(page.get_by_role("heading", level=1)).to_have_text("This is not allowed")
            page.get_by_role("button", name="Back to your keys").click()
            expect(rows(page)).to_have_count(1)


@pytest.mark.slow  # `test_http.py` shows the pages
def test_where_sign_up_is_closed_nobody_is_asked_to(arrive: Arrive, closed_plane: DevServer) -> None:
    ada = arrive(signed_up=False, origin=closed_plane.origin)
    page = ada.page
    ada.open("/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    expect(page.get_by_role("button", name="Sign in", exact=True)).to_be_visible()
    assert page.get_by_text("Sign up").count() == 0
    answer = page.goto(f"{ada.origin}/sign-up")
    assert answer is not None
    assert answer.status == 403
    expect(page.get_by_role("main")).to_contain_text("Sign-up is closed.")
    assert ada.troubles(REFUSED) == []


@pytest.mark.slow  # the same answer, for another reason
def test_while_vault_is_gone_the_form_says_so_and_the_list_works(
    arrive: Arrive, harmed_dev: tuple[DevServer, Live], closed_plane: DevServer
) -> None:
    stack, running = harmed_dev
    ada = join(arrive(signed_up=False, origin=stack.origin))
    ada.store({"service": "OPENAI", "api_key": OPENAI_KEY, "name": "from before"})
    os.kill(dev_parts(running).vault, signal.SIGKILL)
    running.wait()  # `keyman dev` ends with its Vault; the other plane does not
    ada.origin = closed_plane.origin
    ada.open(KEYS)  # a cookie is for a host, whatever the port
    _works_without_vault(ada)
