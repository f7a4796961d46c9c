"""How the pages look: at every width, to axe-core in both colour schemes, on the wire; and pictures for the docs."""

from __future__ import annotations

import os
import struct
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pytest
from playwright.sync_api import CDPSession, Page, expect

from keyman.audit.entries import Action
from keyman.clock import now
from keyman.errors import VaultReason
from keyman.keys.schemas import Status
from keyman.providers.services import SHIPPED
from tests.planes.management.web.moves import (
    ACCOUNT,
    ACTIVITY,
    ANTHROPIC_KEY,
    APPLICATIONS,
    KEYS,
    OPENAI_KEY,
    SETTINGS,
    TOKENS,
    act,
    dialog,
    discard,
    fill,
    in_days,
    join,
    narrow_places,
    plant,
    plant_applications,
    plant_uses,
    press,
    rows,
    save,
    settled,
    sign_in,
)
from tests.providers.pastes import BODY
from tests.support.browser import DESKTOP, PHONE, Arrive, DevServer, Person
from tests.support.needs import are_slow_wanted, quick
from tests.support.planes import PASSWORD

WIDTHS = (320, 390, 768, 1080, 1280, 1920)
"""Pixels: the narrowest that WCAG 1.4.10 asks for, a phone, a tablet, and what desks have."""

FIRST_LOAD = 155_000
"""Bytes over the wire, in total. Each digit that the ids of keys have more adds 1,000."""

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
"""What a reader of the docs has, rather than a browser without a head."""

PICTURES = Path(__file__).parents[4] / "docs" / "images"
WRITES_PICTURES = bool(os.environ.get("KEYMAN_TEST_SCREENSHOTS"))

AXE = (files("axe_playwright_python") / "axe.min.js").read_text()

State = Callable[[Person], object]


def _crowd(person: Person, stack: DevServer) -> None:
    """Keys of every kind, with labels and names as long as they may be, and enough of them for a filter and a page."""
    moment = now()
    plant(
        stack.home,
        person,
        *({"name": f"key {number}"} for number in range(5)),
        {"service": "OF_AN_OPERATOR_WITH_A_LONG_NAME_OF_SIXTY_FOUR_CHARACTERS_IN_ALL_", "name": "x" * 100},
        {"service": "HUGGINGFACE", "name": "word " * 20},
        {"service": "AZURE_OPENAI", "name": "W" * 100, "expires_at": moment + timedelta(days=9)},
        {"service": "GOOGLE", "expires_at": moment - timedelta(days=2), "created_at": moment - timedelta(days=900)},
        {"service": "MISTRAL", "disabled": True, "last_used_at": moment, "last_used_by": "a" * 100},
        {"service": "REPLICATE", "undecryptable": True, "name": "9" * 10, "value": "r8_a1b2c3"},
        {"service": "TOGETHER", "name": "漢字" * 50, "value": f"tgp_v1_{BODY}9999"},
    )
    plant_uses(
        stack.home,
        person,
        *(
            {"service": service, "application": name, "at": moment, "purpose": purpose, **refusal}
            for service in ("TOGETHER", "OF_AN_OPERATOR_WITH_A_LONG_NAME_OF_SIXTY_FOUR_CHARACTERS_IN_ALL_")
            for name, purpose in (("chat-backend", None), ("a" * 64, "p" * 200), ("0-9._-", "word " * 40))
            for refusal in (
                {},
                {
                    "action": Action.KEY_RESOLVE_REFUSED,
                    "reason": "not-granted",
                    "address": "2001:db8:" + "ffff:" * 5 + "f",
                },
                {"action": Action.KEY_RESOLVE_FAILED, "reason": VaultReason.WRONG_KEY},
            )
        ),
    )
    number = uuid4().hex
    operators = "OF_AN_OPERATOR_WITH_A_LONG_NAME_OF_SIXTY_FOUR_CHARACTERS_IN_ALL_"
    every = " ".join((operators, *(service.service for service in SHIPPED)))
    ids = plant_applications(
        stack.home,
        person,
        {"name": f"chat-{number}"},
        {"name": f"{'w' * 32}{number}", "services": every},
        {"name": f"{number}-{'a-long-name-of-words.' * 5}"[:64], "services": "OPENAI ANTHROPIC GOOGLE"},
    )
    assert person.context.request.put(f"{person.origin}/api/applications/{ids[1]}/block").status == 204
    for name in ("n" * 100, "CI pipeline"):
        body = {"name": name, "scopes": ["keys:read", "keys:write", "tokens:manage", "audit:read"]}
        body["expires_at"] = f"{in_days(300)}T00:00:00Z"
        assert person.context.request.post(f"{person.origin}/api/tokens", data=body).status == 201
    login = {"email": person.email, "password": PASSWORD}
    assert person.context.request.post(f"{person.origin}/api/auth/login", data=login).status == 200


def _refused(person: Person) -> None:
    person.open(KEYS)
    press(person.page, "Add New Key")
    fill(person.page, "OpenAI", ANTHROPIC_KEY, "W" * 100)
    save(person.page)
    expect(person.page.locator("[aria-invalid=true]").first).to_be_visible()
    fill(person.page, key=ANTHROPIC_KEY)


def _several(person: Person) -> None:
    person.open(f"{KEYS}/several")
    lines = (f"OPENAI_API_KEY={OPENAI_KEY}", "W" * 99 + f"={ANTHROPIC_KEY}", "COHERE_API_KEY=sk-...1234", "PORT=8000")
    asked = f"AZURE_OPENAI_API_KEY={BODY}"
    person.page.get_by_label("Lines with keys").fill("\n".join((*lines, asked, f"GROQ_API_KEY={OPENAI_KEY[3:]}")))
    person.page.get_by_role("button", name="Show the keys").click()
    person.page.get_by_role("checkbox").nth(2).check()


def _several_stored(person: Person) -> None:
    _several(person)
    person.page.get_by_role("button", name="Store the chosen keys").click()
    expect(person.page.get_by_text("Some of these keys are stored.")).to_be_visible()


def _menu(person: Person) -> None:
    person.open(KEYS)
    rows(person.page).first.get_by_role("button", name="Actions").click()
    expect(rows(person.page).first.get_by_role("button", name="Delete")).to_be_visible()


def _filters(person: Person) -> None:
    person.open(KEYS)
    person.page.get_by_role("search").get_by_role("button", name="Filter").click()
    expect(person.page.get_by_label("Show status")).to_be_visible()


def _selected(person: Person) -> None:
    person.open(KEYS)
    for box in person.page.locator(".tick input").all()[:3]:
        box.check()
    expect(person.page.get_by_role("form", name="Selected keys")).to_be_visible()


def _of_status(status: str, button: str) -> State:
    def show(person: Person) -> None:
        person.open(f"{KEYS}?status={status}")
        press(person.page, button, rows(person.page).first)

    return show


def _paused(person: Person) -> None:
    person.open(f"{KEYS}?status=active")
    press(person.page, "Pause", rows(person.page).first)
    dialog(person.page).get_by_role("button", name="Pause", exact=True).click()
    expect(person.page.get_by_role("button", name="Undo")).to_be_visible()


def _not_resumed(person: Person) -> None:
    _paused(person)
    person.context.set_offline(True)
    person.page.get_by_role("button", name="Undo").click()
    expect(person.page.get_by_role("alert")).to_be_visible()
    person.context.set_offline(False)


def _stored_twice(person: Person) -> None:
    person.open(KEYS)
    press(person.page, "Add New Key")
    fill(person.page, "Anthropic", ANTHROPIC_KEY, "once")
    save(person.page)
    press(person.page, "Add New Key")
    fill(person.page, "Anthropic", ANTHROPIC_KEY, "twice")
    save(person.page)
    expect(person.page.get_by_text("You already have this key")).to_be_visible()


def _session_over(person: Person) -> None:
    person.open(KEYS)
    press(person.page, "Add New Key")
    fill(person.page, "OpenAI", OPENAI_KEY)
    cookies = person.context.cookies()
    person.context.clear_cookies()
    save(person.page)
    expect(dialog(person.page)).to_have_accessible_name("Sign in again")
    person.context.add_cookies(cookies)  # type: ignore[arg-type]  # what one gives is what the other takes


def _token_made(person: Person) -> None:
    person.open(TOKENS)
    press(person.page, "New Token")
    person.page.get_by_label("Name", exact=True).fill("m" * 100)
    person.page.get_by_role("button", name="Create Token").click()
    expect(person.page.get_by_label("Try it")).to_be_visible()


def _token_refused(person: Person) -> None:
    person.open(TOKENS)
    press(person.page, "New Token")
    person.page.get_by_label("Name", exact=True).fill(" ")
    for box in person.page.get_by_role("checkbox").all():
        box.uncheck()
    person.page.get_by_role("button", name="Create Token").click()
    expect(person.page.locator("[aria-invalid=true]").first).to_be_visible()


def _application_gone(person: Person) -> None:
    person.open(APPLICATIONS)
    form = person.page.locator("form[hx-post*='/settings/applications/']").first
    form.evaluate("(form) => form.setAttribute('hx-post', form.getAttribute('action').replace(/[0-9]+/, '999999999'))")
    form.get_by_role("switch").click()
    expect(person.page.get_by_role("alert")).to_be_visible()


def _password_refused(person: Person) -> None:
    person.open(ACCOUNT)
    person.page.get_by_label("Current password").fill("not the password")
    person.page.get_by_label("New password").fill("not the password")
    person.page.get_by_role("button", name="Change password").click()
    expect(person.page.locator("[aria-invalid=true]").first).to_be_visible()


def _sign_in_refused(person: Person) -> None:
    person.open("/sign-in")
    sign_in(person.page, person.email, "not the password")
    expect(person.page.get_by_text("E-mail or password is wrong.")).to_be_visible()


def _sign_up_refused(person: Person) -> None:
    person.open("/sign-up")
    person.page.locator("form").first.evaluate("form => form.noValidate = true")
    person.page.get_by_label("Email").fill(f"{'e' * 64}@{'d' * 300}")
    person.page.get_by_label("Password").fill("short")
    person.page.get_by_role("button", name="Sign up").click()
    expect(person.page.locator("[aria-invalid=true]").first).to_be_visible()


def _reference(person: Person) -> None:
    person.open("/docs")
    person.page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")


def _shortcuts(person: Person) -> None:
    person.open(ACTIVITY)
    person.page.locator("#shortcuts").evaluate("(button) => button.click()")  # there is no button on a phone
    expect(person.page.get_by_role("heading", name="Keyboard Shortcuts")).to_be_visible()


def _pressed(path: str, button: str) -> State:
    def show(person: Person) -> None:
        person.open(path)
        press(person.page, button, None if "New" in button else rows(person.page).first)

    return show


def _at(path: str) -> State:
    return lambda person: person.open(path)


INSIDE: dict[str, State] = {
    "the list": _at(KEYS),
    "a later page": lambda person: person.open(f"{KEYS}?cursor={_newest(person)}"),
    "a key that is new": lambda person: person.open(f"{KEYS}?done=created&saved={_newest(person)}"),
    "nothing found": _at(f"{KEYS}?q={'nothing' * 14}"),
    "adding": _pressed(KEYS, "Add New Key"),
    "adding, refused": _refused,
    "adding, session over": _session_over,
    "adding several": _at(f"{KEYS}/several"),
    "adding several, found": _several,
    "adding several, stored": _several_stored,
    "a list with selected keys": _selected,
    "a key stored twice": _stored_twice,
    "a key paused": _paused,
    "a key paused, not undone": _not_resumed,
    "editing": _pressed(KEYS, "Edit"),
    "extending": _of_status("expired", "Extend"),
    "replacing": _of_status("undecryptable", "Replace key"),
    "deleting": _pressed(KEYS, "Delete"),
    "pausing": _of_status("active", "Pause"),
    "a key": lambda person: person.open(f"{KEYS}/{_newest(person)}"),
    "a form as a page": _at(f"{KEYS}/new"),
    "applications": _at(APPLICATIONS),
    "applications, one gone": _application_gone,
    "tokens": _at(TOKENS),
    "a new token": _pressed(TOKENS, "New Token"),
    "a new token, refused": _token_refused,
    "a token, made": _token_made,
    "revoking": _pressed(TOKENS, "Revoke"),
    "activity": _at(ACTIVITY),
    "account": _at(ACCOUNT),
    "account, refused": _password_refused,
    "shortcuts": _shortcuts,
    "reference, signed in": _reference,
    "not found": _at("/settings/nothing"),
}

OUTSIDE: dict[str, State] = {
    "signing in": _at("/sign-in"),
    "signing in, refused": _sign_in_refused,
    "signing up": _at("/sign-up"),
    "signing up, refused": _sign_up_refused,
    "problems": _at("/problems"),
    "reference": _reference,
    "a problem": _at("/problems/idempotency-mismatch"),
}

STATES = {**INSIDE, **OUTSIDE}
QUICK = (
    *(
        "the list",
        "adding, refused",
        "adding several, found",
        "adding several, stored",
        "a list with selected keys",
        "a key stored twice",
        "a key paused, not undone",
        "extending",
        "replacing",
        "applications",
        "a token, made",
        "activity",
        "account, refused",
    ),
    *("signing in, refused", "a problem"),
)
"""One state of each kind: lists, what they show above them, dialogs, forms that were refused, other pages, a text."""


def _shown_on_a_desk() -> dict[str, State]:
    """Return all states in a run with the slow tests, else those of QUICK."""
    return STATES if are_slow_wanted() else {name: STATES[name] for name in QUICK}


def _shown_on_a_phone() -> dict[str, State]:
    """Return the states that have other boxes on a phone."""
    names = (
        *("the list", "adding", "adding several, found", "adding several, stored", "a list with selected keys"),
        *("a key stored twice", "a key paused", "extending", "applications", "tokens", "activity", "account"),
    )
    return {"a menu": _menu, "filters": _filters, **{name: STATES[name] for name in names}}


def _newest(person: Person) -> int:
    answer = person.context.request.get(f"{person.origin}/api/keys?limit=1")
    number: int = answer.json()[0]["id"]
    return number


@pytest.mark.slow
def test_nothing_is_wider_than_its_place_at_any_width(arrive: Arrive, dev_server: DevServer) -> None:
    ada = arrive(signed_up=False, reduced_motion="reduce")
    ada.email = f"{'e' * 64}@{'.'.join(['d' * 56] * 3)}.example"
    found: dict[str, list[str]] = {}
    join(ada)
    _crowd(ada, dev_server)
    for name, show in _shown_on_a_desk().items():
        if name in OUTSIDE:
            ada.context.clear_cookies()
        ada.page.set_viewport_size({"width": 1280, "height": 800})
        show(ada)
        if name == "activity":
            # As it will be after some years.
            ada.page.evaluate(
                "document.querySelector('tbody tr > :nth-child(2)').textContent = 'Azure OpenAI · key 9999999999'"
            )
        for width in WIDTHS:
            ada.page.set_viewport_size({"width": width, "height": 800})
            if narrow := narrow_places(ada.page):
                found[f"{name}, {width}"] = narrow
    assert found == {}


@pytest.mark.parametrize("locale", ["en-US", "de-DE"])
def test_text_of_twice_the_size_fits_a_phone(arrive: Arrive, dev_server: DevServer, locale: str) -> None:
    ada = join(arrive(signed_up=False, viewport=PHONE, locale=locale))
    plant(dev_server.home, ada, {"name": "OPENAI_API_KEY"}, {"service": "ANTHROPIC", "value": ANTHROPIC_KEY})
    ada.open(KEYS)
    ada.page.evaluate("document.documentElement.style.fontSize = '200%'")
    expect(ada.page.locator("tbody tr")).to_have_count(2)
    assert narrow_places(ada.page) == []
    for row in ada.page.locator("tbody tr").all():
        name, state = row.locator(".service").bounding_box(), row.locator(".state").bounding_box()
        assert name is not None
        assert state is not None
        assert name["y"] + name["height"] <= state["y"] + 1
    ada.page.get_by_role("main").get_by_role("button").first.click()
    field = ada.page.locator("#api_key")
    field.wait_for()
    assert narrow_places(ada.page) == []
    box = field.bounding_box()
    assert box is not None
    assert box["width"] > PHONE["width"] / 2


def test_the_status_of_a_new_key_looks_like_every_other_once_its_row_does(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False, viewport=PHONE))
    page = ada.page
    ada.store({"service": "OPENAI", "api_key": OPENAI_KEY})
    ada.open(KEYS)
    colour = "each => getComputedStyle(each).backgroundColor"
    usual = page.locator(".badge.active").evaluate(colour)
    press(page, "Add New Key")
    fill(page, "Anthropic", ANTHROPIC_KEY)
    save(page)
    new = page.locator("tr.fresh .badge.active")
    new.wait_for()
    page.evaluate("document.querySelector('.fresh').getAnimations({subtree: true}).forEach((each) => each.finish())")
    assert new.evaluate(colour) == usual


@pytest.mark.parametrize("locale", ["en-US", "de-DE"])
def test_a_list_of_long_masks_fits_in_both_languages(arrive: Arrive, dev_server: DevServer, locale: str) -> None:
    ada = arrive(signed_up=False, locale=locale)
    join(ada)
    moment = now()
    long = {"service": "AWS_BEDROCK", "value": f"bedrock-api-key-{BODY}AbCd", "name": "W" * 100}
    plant(
        dev_server.home,
        ada,
        {**long, "last_used_at": moment, "last_used_by": "a" * 64, "expires_at": moment + timedelta(days=6)},
        {**long, "disabled": True, "settings": '{"region":"ap-southeast-2"}'},
    )
    ada.open(KEYS)
    for width in (1220, 1280, 1920):
        ada.page.set_viewport_size({"width": width, "height": 800})
        assert narrow_places(ada.page) == [], width


def test_a_wide_desk_has_one_line_for_a_last_use_and_for_the_name_of_a_key(
    arrive: Arrive, dev_server: DevServer
) -> None:
    ada = join(arrive(signed_up=False, viewport={"width": 1920, "height": 1080}))
    plant(dev_server.home, ada, {"name": "Production chat", "last_used_at": now(), "last_used_by": "chat-backend"})
    plant_uses(dev_server.home, ada, {"service": "OPENAI", "application": "chat-backend", "at": now()})
    ada.open(KEYS)
    used = rows(ada.page).locator(".used")
    time, by = used.locator("time").bounding_box(), used.locator(".by").bounding_box()
    assert time is not None
    assert by is not None
    assert abs(time["y"] + time["height"] - by["y"] - by["height"]) < 4
    ada.open(f"{ACTIVITY}?kind=keys-used")
    concerns = rows(ada.page).locator(".about a").evaluate("(link) => link.getClientRects().length")
    assert concerns == 1


CUT_SELECTS = """() => {
  const pen = document.createElement("canvas").getContext("2d");
  return [...document.querySelectorAll(".filter select")].filter((select) => {
    const style = getComputedStyle(select);
    pen.font = style.font;
    const words = pen.measureText(select.selectedOptions[0].text).width + 16; // its arrow
    return words + parseFloat(style.paddingLeft) + parseFloat(style.paddingRight) > select.offsetWidth;
  }).map((select) => select.selectedOptions[0].text);
}"""


@pytest.mark.parametrize("locale", ["en-US", "de-DE"])
def test_no_choice_of_a_filter_is_cut_off(arrive: Arrive, dev_server: DevServer, locale: str) -> None:
    ada = join(arrive(signed_up=False, locale=locale))
    operators = "OF_AN_OPERATOR_WITH_A_LONG_NAME_OF_SIXTY_FOUR_CHARACTERS_IN_ALL_"
    plant(dev_server.home, ada, {"service": operators}, *({"name": f"key {number}"} for number in range(11)))
    for path in (
        f"{KEYS}?sort=used&check=rate-limited&status=undecryptable",
        f"{KEYS}?check=no-permission&sort=-name",
        f"{ACTIVITY}?kind=keys-used",
        f"{ACTIVITY}?kind=keys-changed",
    ):
        for width in (1280, 1080, 390, 320):
            ada.page.set_viewport_size({"width": width, "height": 800})
            ada.open(path)
            opens = ada.page.locator(".filter-button")
            if opens.is_visible():
                opens.click()
            assert ada.page.evaluate(CUT_SELECTS) == [], width
            assert narrow_places(ada.page) == [], width
    ada.open(f"{KEYS}?service={operators}")  # no phone is as wide as it
    assert narrow_places(ada.page) == []


@pytest.mark.parametrize("locale", ["en-US", "de-DE"])
def test_the_filters_of_keys_are_on_one_line_of_a_small_desk(
    arrive: Arrive, dev_server: DevServer, locale: str
) -> None:
    ada = join(arrive(signed_up=False, locale=locale, viewport={"width": 1080, "height": 800}))
    plant(dev_server.home, ada, *({"name": f"key {number}"} for number in range(11)))
    ada.open(KEYS)
    boxes = ada.page.locator(".filter .field").evaluate_all("(each) => each.map((one) => one.offsetTop)")
    assert len(boxes) == 5
    assert len(set(boxes)) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_a_field_asks_for_can_be_read_and_fits(arrive: Arrive, dev_server: DevServer, scheme: str) -> None:
    for locale in ("en-US", "de-DE"):
        ada = join(arrive(signed_up=False, locale=locale, viewport=PHONE, color_scheme=scheme))
        plant(dev_server.home, ada, *({"name": f"key {number}"} for number in range(11)))
        ada.open(KEYS)
        search = ada.page.get_by_role("searchbox")
        found = search.evaluate(
            """(field) => {
              const style = getComputedStyle(field);
              const pen = document.createElement("canvas").getContext("2d");
              pen.font = style.font;
              const place = field.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
              const quiet = getComputedStyle(document.querySelector(".counted")).color;
              return [pen.measureText(field.placeholder).width <= place,
                getComputedStyle(field, "::placeholder").color === quiet, style.textOverflow];
            }"""
        )
        assert found == [True, True, "ellipsis"], locale


def test_a_toast_has_one_line_on_a_desk(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, locale="de-DE"))
    plant(dev_server.home, ada, {"name": "Production chat"})
    ada.open(KEYS)
    act(rows(ada.page).first, "Pausieren")
    dialog(ada.page).get_by_role("button", name="Pausieren", exact=True).click()
    expect(ada.page.get_by_role("button", name="Rückgängig")).to_be_visible()
    middles = ada.page.locator("#toasts .toast :is(p, button)").evaluate_all(
        "(all) => all.map((each) => each.getBoundingClientRect()).map((box) => Math.round(box.top + box.height / 2))"
    )
    assert len(middles) == 3
    assert max(middles) - min(middles) <= 1
    assert ada.page.get_by_role("status").evaluate("(each) => each.offsetHeight") < 30  # one line of text


def test_the_names_and_times_of_a_key_do_not_wrap(arrive: Arrive, dev_server: DevServer) -> None:
    ada = arrive(signed_up=False, locale="de-DE")
    ada.email = "ada@names.example"
    join(ada)
    moment = now()
    used = {"last_used_at": moment - timedelta(hours=22), "last_used_by": "chat-backend"}
    key = {"service": "GOOGLE", "name": "Production chat", "expires_at": moment + timedelta(days=180)}
    plant(dev_server.home, ada, {**key, **used})
    for viewport in (DESKTOP, PHONE):
        ada.page.set_viewport_size(viewport)
        ada.open(KEYS)
        assert rows(ada.page).locator(".service > span:not([hidden])").evaluate_all(LINES) == [1]
        ada.open(f"{KEYS}/{_newest(ada)}")
        lines = ada.page.locator(".facts :is(dt, time)").evaluate_all(
            f"(all) => [({LINES})(all), all.map((each) => each.textContent)]"
        )
        assert [text for count, text in zip(*lines, strict=True) if count > 1] == []
        ada.open(ACCOUNT)
        assert ada.page.locator(".facts dd").evaluate_all(LINES) == [1, 1]


def test_lines_to_copy_have_the_whole_width_of_a_phone(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False, viewport=PHONE))
    _token_made(ada)
    panel = ada.page.locator("#dialog #panel").evaluate("(each) => each.clientWidth")
    for field in ada.page.locator("#dialog [readonly]").all():
        assert field.evaluate("(each) => each.offsetWidth") == panel
    assert narrow_places(ada.page) == []


def test_the_mark_of_an_application_stands_beside_its_name(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, viewport=PHONE))
    plant(dev_server.home, ada, {"name": "Production chat"})
    plant_uses(dev_server.home, ada, {"service": "OPENAI", "application": "a" * 64, "at": now()})
    ada.open(ACTIVITY)
    mark = ada.page.locator(".legend li").evaluate(
        """(each) => {
          const range = document.createRange();
          range.selectNodeContents(each.childNodes[1]);
          return each.querySelector("svg").getBoundingClientRect().right <= range.getBoundingClientRect().left;
        }"""
    )
    assert mark
    assert narrow_places(ada.page) == []


LINES = """(all) => all.map((each) => {
  const range = document.createRange();
  range.selectNodeContents(each);
  return new Set([...range.getClientRects()].map((box) => box.top)).size;
})"""
"""On how many lines the text of each element is."""


@pytest.mark.parametrize("locale", ["en-US", "de-DE"])
def test_a_card_says_when_its_key_was_used_last_without_cutting_it_off(
    arrive: Arrive, dev_server: DevServer, locale: str
) -> None:
    ada = join(arrive(signed_up=False, locale=locale, viewport=PHONE))
    used = {
        "service": "ANTHROPIC",
        "value": f"sk-ant-{BODY}5678",
        "last_used_at": now() - timedelta(hours=22, minutes=1),
    }
    plant(dev_server.home, ada, {**used, "last_used_by": "chat-backend"})
    ada.open(KEYS)
    for width in (390, 320):
        ada.page.set_viewport_size({"width": width, "height": 844})
        assert rows(ada.page).locator(".used > span").evaluate("(each) => each.scrollWidth <= each.clientWidth"), width


def test_no_short_name_or_address_is_broken_on_a_small_desk(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, locale="de-DE", viewport={"width": 1080, "height": 800}))
    page = ada.page
    plant(dev_server.home, ada, {"name": "Production chat"})
    use = {"service": "OPENAI", "application": "chat-backend", "at": now(), "address": "198.51.100.107"}
    plant_uses(dev_server.home, ada, use)
    ada.open(ACTIVITY)
    assert page.locator(".activity .from code").evaluate_all(LINES) == [1, 1]
    ada.open(f"{KEYS}/several")
    page.get_by_label("Zeilen mit Schlüsseln").fill(f"ANTHROPIC_API_KEY={ANTHROPIC_KEY}\nCOHERE_API_KEY=sk-...1234")
    page.get_by_role("button", name="Schlüssel anzeigen").click()
    expect(page.locator(".several .found")).to_have_count(2)
    assert page.locator(".several .found > *").evaluate_all(LINES) == [1, 1, 1, 1]
    page.get_by_role("checkbox").nth(1).check()
    page.get_by_role("button", name="Gewählte Schlüssel speichern").click()
    expect(page.get_by_text("Gespeichert", exact=True)).to_be_visible()
    assert page.locator(".several :is(.found > *, .service > span)").evaluate_all(LINES) == [1] * 5


SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
AXE_OPTIONS = {
    # By itself, axe leaves out the 24 pixels of WCAG 2.2.
    "light": {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}},
    # What axe finds by colours; structure, names and roles are the same in the dark.
    "dark": {"resultTypes": ["violations"], "runOnly": ["color-contrast", "link-in-text-block"]},
}


def _violations(page: Page, scheme: str) -> list[str]:
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)
        # People scroll a box out from under the bar of selected keys. axe takes its visible part for all of it.
        page.add_style_tag(content=".selected { position: static !important; }")
    result: dict[str, Any] = page.evaluate("(options) => axe.run(document, options)", AXE_OPTIONS[scheme])
    return [
        f"{page.url} {each['id']}: {node['html'][:120]} {node['failureSummary']}"
        for each in result["violations"]
        for node in each["nodes"]
    ]


@pytest.mark.parametrize("size", quick(["desktop"], ["phone"]))
def test_axe_finds_no_violation_in_either_colour_scheme(arrive: Arrive, dev_server: DevServer, size: str) -> None:
    viewport = PHONE if size == "phone" else DESKTOP
    ada = arrive(signed_up=False, reduced_motion="reduce", viewport=viewport, bypass_csp=True)
    found: list[str] = []

    def look(name: str, show: State) -> None:
        show(ada)
        for scheme in SCHEMES if are_slow_wanted() else SCHEMES[:1]:
            ada.page.emulate_media(color_scheme=scheme)
            found.extend(f"{name}, {scheme}: {each}" for each in _violations(ada.page, scheme))

    join(ada)
    for path in (KEYS, APPLICATIONS, TOKENS, f"{ACTIVITY}?kind=keys-used"):
        look(f"empty {path}", _at(path))
    _crowd(ada, dev_server)
    # Other boxes than at a desk: lists are cards, and the navigation is on top.
    states = _shown_on_a_phone() if size == "phone" else _shown_on_a_desk()
    for name, show in states.items():
        if name in OUTSIDE:
            ada.context.clear_cookies()
        look(name, show)
    assert found == []


# --- on the wire


class Wire:
    """What a page costs: bytes over the wire, by address; what the browser had kept costs none."""

    def __init__(self, person: Person) -> None:
        self.bytes: dict[str, int] = {}
        self._urls: dict[str, str] = {}
        self.protocol: CDPSession = person.context.new_cdp_session(person.page)
        self.protocol.on("Network.requestWillBeSent", self._sent)
        self.protocol.on("Network.loadingFinished", self._finished)
        self.protocol.send("Network.enable")

    def _sent(self, event: dict[str, Any]) -> None:
        self._urls[event["requestId"]] = event["request"]["url"]

    def _finished(self, event: dict[str, Any]) -> None:
        url = self._urls[event["requestId"]]
        self.bytes[url] = self.bytes.get(url, 0) + int(event["encodedDataLength"])

    def take(self) -> dict[str, int]:
        taken, self.bytes = self.bytes, {}
        return taken


SHIFT = """() => new Promise((resolve) => {
  let sum = 0;
  new PerformanceObserver((list) => { for (const each of list.getEntries()) sum += each.value; })
    .observe({type: "layout-shift", buffered: true});
  requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => resolve(sum))));
})"""


def test_a_first_visit_is_light_a_second_one_lighter_and_nothing_jumps(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    plant(dev_server.home, ada, *({"name": f"key {number}"} for number in range(50)))
    wire = Wire(ada)
    page = ada.page
    for path in (KEYS, *SETTINGS):
        ada.open(path)
        page.wait_for_load_state("networkidle")
        taken = wire.take()
        static = {url: size for url, size in taken.items() if "/static/" in url}
        if path == KEYS and not any(static.values()):
            assert static  # the second visit asks for them, and gets them from the browser itself
        assert sum(taken.values()) < FIRST_LOAD, taken
        assert page.evaluate(SHIFT) < 0.02, path  # a fifth of what Web Vitals call good, for a busy machine
        if static and path != KEYS:
            again = {url: size for url, size in static.items() if "/more." not in url}  # what some pages add to it
            assert sum(again.values()) == 0, static
    ada.open(KEYS)
    page.wait_for_load_state("networkidle")
    assert sum(size for url, size in wire.take().items() if "/static/" in url) == 0


# --- pictures


@pytest.fixture
def model(arrive: Arrive) -> Person:
    """Somebody with keys worth a picture."""
    person = arrive(signed_up=False, reduced_motion="reduce", timezone_id="UTC", user_agent=FIREFOX)
    person.email = "ada@lovelace.example"
    return person


def test_pictures_of_every_page(model: Person, dev_server: DevServer, tmp_path: Path) -> None:
    directory = PICTURES if WRITES_PICTURES else tmp_path
    page = model.page
    taken: list[Path] = []

    def take(name: str) -> None:
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            settled(page)
            path = directory / f"{name}-{scheme}.png"
            shot = page.screenshot()
            path.write_bytes(_smaller(model, shot) if WRITES_PICTURES else shot)
            taken.append(path)

    model.open("/sign-in")
    take("sign-in")
    join(model)
    model.open(KEYS)
    take("empty")
    plant(dev_server.home, model, *_portfolio(now()))
    plant_uses(dev_server.home, model, *_uses(now()))
    model.open(KEYS)
    take("api-keys")
    press(page, "Add New Key")
    fill(page, "Anthropic", ANTHROPIC_KEY, expires=in_days(365))
    fill(page, label="Support assistant")
    take("add-key")
    discard(page)
    press(page, "Edit", rows(page).nth(1))
    take("edit-key")
    page.keyboard.press("Escape")
    press(page, "Delete", rows(page).nth(3))
    take("delete-key")
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 390, "height": 844})
    take("api-keys-phone")
    page.set_viewport_size({"width": 1280, "height": 800})
    for name, scopes in {
        "CI pipeline": ["keys:read", "keys:write"],
        "Nightly report": ["keys:read", "audit:read"],
    }.items():
        body = {"name": name, "scopes": scopes, "expires_at": f"{in_days(90)}T23:59:59Z"}
        assert model.context.request.post(f"{model.origin}/api/tokens", data=body).status == 201
    model.store(
        {"service": "OPENAI", "api_key": OPENAI_KEY, "name": "Playground"},
        {"service": "GROQ", "api_key": "gsk_hq2v9mXbT0c7eUKw", "name": "Voice"},
    )
    model.open(TOKENS)
    take("access-tokens")
    press(page, "New Token")
    page.get_by_label("Name", exact=True).fill("Terraform")
    page.get_by_role("button", name="Create Token").click()
    expect(page.get_by_label("Try it")).to_be_visible()
    take("new-token")
    page.get_by_role("button", name="Done").click()
    expect(rows(page)).to_have_count(3)
    model.open(ACTIVITY)
    take("activity")
    model.open(ACCOUNT)
    take("account")
    model.open("/settings/nothing-here")
    take("error")
    assert len(taken) == 12 * len(SCHEMES)
    for path in taken:
        assert path.stat().st_size > 10_000, path  # not blank
    if WRITES_PICTURES:
        assert max(path.stat().st_size for path in taken) < 120_000  # no burden on the repository


PIXELS = """async (png) => {
  const bytes = Uint8Array.from(atob(png), (each) => each.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes], {type: "image/png"}));
  const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
  canvas.drawImage(image, 0, 0);
  const {data} = canvas.getImageData(0, 0, image.width, image.height);
  let text = "";
  for (let at = 0; at < data.length; at += 32768) text += String.fromCharCode(...data.subarray(at, at + 32768));
  return [image.width, image.height, btoa(text)];
}"""


def _smaller(person: Person, png: bytes) -> bytes:
    """The same picture without the filters that browsers put before compression, which flat colours do not need."""
    page = person.context.new_page()
    width, height, text = page.evaluate(PIXELS, b64encode(png).decode())
    page.close()
    rgba = b64decode(text)
    rgb = bytearray(width * height * 3)
    for channel in range(3):
        rgb[channel::3] = rgba[channel::4]
    lines = b"".join(b"\0" + rgb[row * width * 3 : (row + 1) * width * 3] for row in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = {b"IHDR": head, b"IDAT": zlib.compress(lines, 9), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts.items()
    )


def _uses(moment: datetime) -> list[dict[str, Any]]:
    paused = {"action": Action.KEY_RESOLVE_REFUSED, "reason": Status.DISABLED}
    told: list[tuple[str, str, str | None, dict[str, float], dict[str, Any]]] = [
        ("MISTRAL", "nightly-report", "Summary of the day", {"hours": 19}, {}),
        ("DEEPSEEK", "translator", None, {"hours": 9}, paused),
        ("MISTRAL", "review-bot", "Comment on a change", {"hours": 3}, {}),
        ("ANTHROPIC", "chat-backend", "Answer to a chat", {"minutes": 5}, {}),
        ("OPENAI", "chat-backend", "Answer to a chat", {"minutes": 2}, {}),
    ]
    return [
        {"service": service, "application": name, "purpose": purpose, "at": moment - timedelta(**ago), **more}
        for service, name, purpose, ago, more in told
    ]


def _portfolio(moment: datetime) -> list[dict[str, Any]]:
    def ago(**distance: float) -> datetime:
        return moment - timedelta(**distance)

    return [
        {
            "service": "PERPLEXITY",
            "name": "Research spike",
            "value": f"pplx-{BODY}a81f",
            "created_at": ago(days=140),
            "expires_at": ago(days=3),
            "last_used_at": ago(days=4),
            "last_used_by": "research-bot",
        },
        {
            "service": "DEEPSEEK",
            "name": "Batch translation",
            "value": f"sk-{BODY}70c2",
            "created_at": ago(days=90),
            "disabled": True,
            "last_used_at": ago(days=20),
            "last_used_by": "translator",
        },
        {
            "service": "HUGGINGFACE",
            "name": "Embeddings",
            "value": f"hf_{BODY}QmTz",
            "created_at": ago(days=75),
            "last_used_at": ago(minutes=4),
            "last_used_by": "search-index",
        },
        {"service": "AZURE_OPENAI", "name": "Europe fallback", "value": f"{BODY}9be4", "created_at": ago(days=44)},
        {
            "service": "MISTRAL",
            "name": "Code review",
            "value": f"{BODY}Vw3K",
            "created_at": ago(days=30),
            "expires_at": moment + timedelta(days=6, hours=3),
            "last_used_at": ago(hours=3),
            "last_used_by": "review-bot",
        },
        {
            "service": "GOOGLE",
            "name": "Document extraction",
            "value": f"AIza{BODY}x0Rg",
            "created_at": ago(days=16),
            "last_used_at": ago(hours=22),
            "last_used_by": "intake",
        },
        {
            "service": "ANTHROPIC",
            "name": "Production chat",
            "value": f"sk-ant-{BODY}5678",
            "created_at": ago(days=12),
            "expires_at": moment + timedelta(days=180),
            "last_used_at": ago(minutes=2),
            "last_used_by": "chat-backend",
        },
        {
            "service": "OPENAI",
            "name": "Production chat",
            "value": f"sk-{BODY}1234",
            "created_at": ago(days=3),
            "last_used_at": ago(minutes=2),
            "last_used_by": "chat-backend",
        },
    ]
