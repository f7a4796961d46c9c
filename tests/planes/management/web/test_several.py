"""Several keys at once, over HTTP: what is found, what is stored, and that no page has a value."""

from __future__ import annotations

import html
import json
import re
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyman.clock import now
from keyman.planes.management.web.key_several import MAX_BYTES, MAX_KEYS, MAX_LINES
from tests.planes.management.api.harness import ApiPlane

pytestmark = pytest.mark.anyio

SEVERAL = "/settings/api-keys/several"
BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
SAME = "This is the same key as in a row above."
BODY = "hq2v9mXbT0c7eUKwN4Rd"

TEXT = f"""# production
OPENAI_API_KEY=sk-{BODY}1234
export ANTHROPIC_API_KEY="sk-ant-api03-{BODY}5678"
MISTRAL_API_KEY={BODY}mist
LLM_KEY=sk-{BODY}llm0
GROQ_API_KEY={BODY}groq
AGAIN=sk-{BODY}1234
COHERE_API_KEY=sk-...1234
DATABASE_URL=postgres://somebody:{BODY}@example.com/db
PORT=8000
"""


async def somebody(plane: ApiPlane) -> httpx.AsyncClient:
    client = await plane.user()
    client.headers.update(BROWSER)
    return client


async def send(client: httpx.AsyncClient, *fields: tuple[str, str]) -> httpx.Response:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    page = await client.post(SEVERAL, content=urlencode(fields), headers=form)
    assert BODY not in page.text  # no page has a value
    return page


async def looked(client: httpx.AsyncClient, text: str = TEXT) -> tuple[httpx.Response, list[tuple[str, str]]]:
    """Send the lines. Return the page, and the fields of its form as it is, but for the lines."""
    page = await send(client, ("text", text))
    assert page.status_code == 200, page.text
    return page, fields_of(page)


def fields_of(page: httpx.Response) -> list[tuple[str, str]]:
    form = page.text.partition('<form class="stack"')[2].partition("</form>")[0]
    fields = re.findall(r'<input type="(?:hidden|text)" name="([^"]+)" value="([^"]*)"', form)
    fields += re.findall(r'<input type="checkbox" name="(use)" value="([0-9]+)"[^>]* checked', form)
    for name, options in re.findall(r'<select name="([^"]+)".*?</select>()', form, re.DOTALL):
        fields.append((name, options))
    for name, inside in re.findall(r'<select name="([^"]+)"(.*?)</select>', form, re.DOTALL):
        chosen = re.search(r'value="([A-Z_]*)" selected', inside)
        fields.append((name, chosen[1] if chosen else ""))
    return [(name, html.unescape(value)) for name, value in fields]


def rows_of(page: httpx.Response) -> list[list[str]]:
    """What the page says of each key: name and mask, the service, and the note."""
    found = []
    for row in re.findall(r'<tr role="row"(?: class="stored")?>\s*<td(.*?)</tr>', page.text, re.DOTALL):
        cells = re.findall(r'class="(found|said)"[^>]*>(.*?)</t[dh]>', row, re.DOTALL)
        service = re.search(r'value="([A-Z_]*)" selected|name="service-[0-9]+" value="([A-Z_]+)"', row)
        words = {name: " ".join(html.unescape(re.sub("<[^>]*>", " ", cell)).split()) for name, cell in cells}
        found.append([words["found"], (service[1] or service[2]) if service else "", words["said"]])
    return found


async def keys(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get("/api/keys?limit=200&sort=created")).json()
    return found


async def test_each_key_is_shown_with_its_service_its_mask_and_what_is_wrong(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    page, fields = await looked(ada)
    assert rows_of(page) == [
        ["OPENAI_API_KEY sk-...1234", "OPENAI", ""],
        ["ANTHROPIC_API_KEY sk-ant-...5678", "ANTHROPIC", ""],
        ["MISTRAL_API_KEY ...mist", "MISTRAL", ""],
        ["LLM_KEY ...llm0", "", "Choose a service."],
        ["GROQ_API_KEY ...groq", "GROQ", "Groq keys begin with gsk_."],
        ["AGAIN ...1234", "", SAME],
        ["COHERE_API_KEY ...", "COHERE", rows_of(page)[6][2]],
    ]
    assert rows_of(page)[6][2].startswith("API key is a mask")
    assert [value for name, value in fields if name == "use"] == ["0", "1", "2"]
    assert [value for name, value in fields if name == "label-1"] == ["ANTHROPIC_API_KEY"]
    assert "Left out, because they have no value or are no keys: DATABASE_URL, PORT" in html.unescape(page.text)
    assert await keys(ada) == []


async def test_what_stands_for_a_key_is_not_chosen(shared: ApiPlane) -> None:
    text = "MISTRAL_API_KEY=your-api-key\nCOHERE_API_KEY=${OTHER_KEY}\nXAI_API_KEY= # to be filled in\n"
    page, fields = await looked(await somebody(shared), text)
    assert [note for _, _, note in rows_of(page)] == [
        "This looks like a placeholder, not like a key.",
        "This refers to another variable.",
    ]
    assert [value for name, value in fields if name == "use"] == []
    assert "Left out, because they have no value or are no keys: XAI_API_KEY" in html.unescape(page.text)


async def test_the_chosen_keys_are_stored_in_one_go_and_the_others_can_be_tried_again(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    _, fields = await looked(ada)
    page = await send(ada, ("text", TEXT), *fields, ("use", "3"), ("use", "6"))
    assert page.status_code == 200
    assert [key["name"] for key in await keys(ada)] == ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "MISTRAL_API_KEY"]
    assert [bool(re.search(rf'name="stored" value="{number}"', page.text)) for number in range(7)] == [True] * 3 + [
        False
    ] * 4
    notes = [note for _, _, note in rows_of(page)]
    assert notes[:6] == ["", "", "", "Service is missing.", "Groq keys begin with gsk_.", SAME]
    assert notes[6].startswith("API key is a mask")
    again = [(name, "DEEPSEEK" if name == "service-3" else value) for name, value in fields_of(page)]
    assert [value for name, value in again if name == "use"] == ["3", "6"]
    page = await send(ada, ("text", TEXT), *again)
    assert [(key["service"], key["name"]) for key in await keys(ada)][3:] == [("DEEPSEEK", "LLM_KEY")]


async def test_a_key_of_another_service_is_refused_in_its_row(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    _, fields = await looked(ada)
    changed = [(name, "OPENAI" if name == "service-1" else value) for name, value in fields]
    for _ in range(2):  # the second answer is the one that was kept
        page = await send(ada, ("text", TEXT), *changed)
        assert rows_of(page)[1][2].startswith("API key looks like a key of Anthropic, not of OpenAI")
    assert [key["service"] for key in await keys(ada)] == ["OPENAI", "MISTRAL"]


async def test_a_form_that_is_sent_twice_stores_once(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    _, fields = await looked(ada)
    first = await send(ada, ("text", TEXT), *fields)
    second = await send(ada, ("text", TEXT), *fields)
    assert rows_of(first) == rows_of(second)
    assert len(await keys(ada)) == 3
    # The person went back, and chose another one: with the same form, but it is another request.
    await send(ada, ("text", TEXT), *[each for each in fields if each[0] != "use"], ("use", "4"))
    assert [key["service"] for key in await keys(ada)][3:] == ["GROQ"]
    # Or another label.
    await send(ada, ("text", TEXT), *fields, ("label-0", "other"))
    assert [key["name"] for key in await keys(ada)][4:].count("other") == 1


async def test_other_lines_than_those_that_were_shown_store_nothing(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    _, fields = await looked(ada)
    for other in (TEXT.replace("1234", "9999"), TEXT.replace("PORT", "MY_KEY"), f"\n{TEXT}"):
        page = await send(ada, ("text", other), *fields)
        assert page.status_code == 422
        assert "These are not the same lines as before." in page.text
    assert await keys(ada) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "There is no key in these lines."),
        ("# nothing\nPORT=1", "There is no key in these lines."),
        ("A=" + "x" * MAX_BYTES, "These lines are too long."),
        ("A=1\n" * (MAX_LINES + 1), "These lines are too long."),
    ],
)
async def test_lines_without_a_key_are_refused(shared: ApiPlane, text: str, words: str) -> None:
    page = await send(await somebody(shared), ("text", text))
    assert page.status_code == 422
    assert words in page.text


PIECES = (*"'\"{}\\\n\r #:\u2028\x00ä", "A=", "OPENAI_API_KEY=", "sk-", "...", BODY)


@settings(max_examples=60)
@given(text=st.lists(st.sampled_from(PIECES), max_size=30).map("".join), number=st.integers(0, 3))
async def test_no_lines_whatever_they_hold_end_in_a_500(shared: ApiPlane, text: str, number: int) -> None:
    ada = await somebody(shared)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    page = await ada.post(SEVERAL, content=urlencode({"text": text}), headers=form)
    assert page.status_code in (200, 422)
    fields = [*fields_of(page), ("text", text), ("use", str(number)), (f"service-{number}", "COHERE")]
    page = await ada.post(SEVERAL, content=urlencode(fields), headers=form)
    assert page.status_code in (200, 422)
    assert "These are not the same lines" not in page.text


@pytest.mark.parametrize("line", [f"{BODY}==", f"sk-{BODY}1234: the key of the team", f"sk-{BODY}1234 = team"])
async def test_a_key_with_something_behind_it_is_not_shown_as_a_name(shared: ApiPlane, line: str) -> None:
    await looked(await somebody(shared), f"{TEXT}{line}\n")  # `send` looks for it


async def test_a_key_that_was_typed_as_a_label_is_not_shown_again(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    _, fields = await looked(ada)
    page = await send(ada, ("text", TEXT), *fields, ("label-0", f"my sk-{BODY}1234"))  # `send` looks for it
    assert "Label" in rows_of(page)[0][-1]
    # Also if this row was not chosen.
    await send(ada, ("text", TEXT), *[each for each in fields if each[0] != "use"], ("label-0", f"sk-{BODY}1234"))


async def test_nothing_chosen_is_said(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    _, fields = await looked(ada)
    page = await send(ada, ("text", TEXT), *[each for each in fields if each[0] != "use"])
    assert page.status_code == 422
    assert "Choose at least one key." in page.text


async def test_as_many_keys_as_in_a_batch_are_shown(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    text = "\n".join(f"KEY_{number}_OPENAI_API_KEY=sk-{BODY}{number:04}" for number in range(MAX_KEYS + 1))
    page, fields = await looked(ada, text)
    assert len(rows_of(page)) == MAX_KEYS
    assert "There are more keys in these lines." in page.text
    page = await send(ada, ("text", text), *fields)
    assert "All of these keys are stored." in page.text
    assert len(await keys(ada)) == MAX_KEYS


async def test_a_service_account_of_many_lines_is_one_key(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    members = {
        "type": "service_account",
        "private_key_id": "0123456789abcdef",
        "private_key": BODY,
        "client_email": "a@b",
    }
    file = json.dumps(members, indent=2)
    text = f"GOOGLE_APPLICATION_CREDENTIALS='{file}'\r\nOPENAI_API_KEY=sk-{BODY}1234\r\n"
    page, fields = await looked(ada, text)
    assert [row[:2] for row in rows_of(page)] == [
        ["GOOGLE_APPLICATION_CREDENTIALS ...cdef", "GOOGLE_VERTEX"],
        ["OPENAI_API_KEY sk-...1234", "OPENAI"],
    ]
    await send(ada, ("text", text), *fields)
    assert [key["service"] for key in await keys(ada)] == ["GOOGLE_VERTEX", "OPENAI"]


AZURE = f"""AZURE_OPENAI_API_KEY={BODY}azur
AWS_BEARER_TOKEN_BEDROCK=bedrock-api-key-{BODY}aws0
"""
LACKING = "Without the setting {}, the gateway cannot use this key."


async def test_one_expiry_counts_for_all_keys_that_are_chosen(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    _, fields = await looked(ada)
    yesterday, in_a_month = (f"{now() + timedelta(days=days):%Y-%m-%d}" for days in (-1, 30))
    page = await send(ada, ("text", TEXT), *fields, ("expires_at", yesterday))
    assert page.status_code == 422
    assert "Expires must be in the future." in page.text
    assert [value for name, value in fields_of(page) if name == "use"] == ["0", "1", "2"]
    assert await keys(ada) == []
    page = await send(ada, ("text", TEXT), *fields_of(page), ("use", "3"), ("expires_at", in_a_month))
    assert [key["expires_at"] for key in await keys(ada)] == [f"{in_a_month}T23:59:59Z"] * 3
    assert f'value="{in_a_month}"' in page.text  # for the row that was refused
    await send(ada, ("text", TEXT), *fields_of(page), ("service-3", "DEEPSEEK"), ("use", "3"))
    assert [key["expires_at"] for key in await keys(ada)][3:] == [None]


async def test_the_same_form_with_another_expiry_is_another_request(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    _, fields = await looked(ada)
    await send(ada, ("text", TEXT), *fields)
    await send(ada, ("text", TEXT), *fields, ("expires_at", f"{now() + timedelta(days=30):%Y-%m-%d}"))
    assert [key["expires_at"] is None for key in await keys(ada)] == [True] * 3 + [False] * 3


async def test_a_period_is_the_last_day_of_all_chosen_keys(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    _, fields = await looked(ada)
    both = await send(ada, ("text", TEXT), *fields, ("period", "30"), ("expires_at", f"{now():%Y-%m-%d}"))
    assert "Expires must be a day or a period, not both." in both.text
    assert await keys(ada) == []
    page = await send(ada, ("text", TEXT), *fields, ("period", "30"))
    in_a_month = f"{now() + timedelta(days=30):%Y-%m-%d}"
    assert [key["expires_at"] for key in await keys(ada)] == [f"{in_a_month}T23:59:59Z"] * 3
    assert f'type="date" value="{in_a_month}"' in page.text  # for the others


async def test_a_key_whose_service_has_settings_gets_their_fields_in_its_row(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    page, fields = await looked(ada, AZURE)
    assert [row[1:] for row in rows_of(page)] == [
        ["AZURE_OPENAI", LACKING.format("Endpoint")],
        ["AWS_BEDROCK", LACKING.format("Region")],
    ]
    assert [value for name, value in fields if name == "use"] == []
    wrong = [("settings-0-AZURE_OPENAI-endpoint", "http://nowhere"), ("settings-1-AWS_BEDROCK-region", "eu-west-1")]
    both = [("use", "0"), ("use", "1")]
    page = await send(ada, ("text", AZURE), *fields, *both, *wrong)
    assert rows_of(page)[0][2].startswith("Endpoint must be https:// and the host of your resource")
    assert [(key["service"], key["settings"]) for key in await keys(ada)] == [("AWS_BEDROCK", {"region": "eu-west-1"})]
    again = fields_of(page)
    assert ("settings-0-AZURE_OPENAI-endpoint", "http://nowhere") in again
    endpoint = "https://eu.openai.azure.com"
    page = await send(ada, ("text", AZURE), *again, ("settings-0-AZURE_OPENAI-endpoint", endpoint))
    assert "All of these keys are stored." in page.text
    assert [key["settings"] for key in await keys(ada)][1:] == [{"endpoint": endpoint}]


async def test_a_service_that_is_chosen_by_hand_is_asked_for_its_settings_once(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    _, fields = await looked(ada)
    page = await send(ada, ("text", TEXT), *fields, ("use", "3"), ("service-3", "AZURE_OPENAI"))
    assert rows_of(page)[3] == ["LLM_KEY ...llm0", "AZURE_OPENAI", LACKING.format("Endpoint")]
    assert len(await keys(ada)) == 3
    again = fields_of(page)
    assert ("settings-3-AZURE_OPENAI-endpoint", "") in again
    assert [value for name, value in again if name == "use"] == ["3"]
    await send(ada, ("text", TEXT), *again)  # without them, as somebody may want it who does not use the gateway
    assert [(key["service"], key["settings"]) for key in await keys(ada)][3:] == [("AZURE_OPENAI", {})]


async def test_no_label_holds_a_key_of_another_row(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    _, fields = await looked(ada)
    page = await send(ada, ("text", TEXT), *fields, ("label-0", f"with {BODY}mist"))  # `send` looks for it
    assert rows_of(page)[0][2].startswith("Label must not contain another key")
    assert [key["name"] for key in await keys(ada)] == ["ANTHROPIC_API_KEY", "MISTRAL_API_KEY"]


async def test_no_label_looks_like_a_key(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    _, fields = await looked(ada)
    page = await send(ada, ("text", TEXT), *fields, ("label-0", f"with gsk_{BODY}"))  # `send` looks for it
    assert rows_of(page)[0][2].startswith("Label must not contain what looks like a key")
    assert [key["name"] for key in await keys(ada)] == ["ANTHROPIC_API_KEY", "MISTRAL_API_KEY"]


async def test_each_label_stays_in_its_row(shared: ApiPlane) -> None:
    ada = await somebody(shared)
    text = "\n".join(f"OPENAI_API_KEY=sk-{BODY}{number:04}" for number in range(12))
    _, fields = await looked(ada, text)
    named = [(name, f"label of {name[6:]}" if name.startswith("label-") else value) for name, value in fields]
    none = [each for each in named if each[0] != "use"]
    page = await send(ada, ("text", text), *none, ("use", "11"), ("use", "1"), ("use", "10"))
    again = {name: value for name, value in fields_of(page) if name.startswith("label-")}
    assert again == {f"label-{number}": f"label of {number}" for number in range(12)}
    assert [(key["name"], key["last_4_chars"][-4:]) for key in await keys(ada)] == [
        ("label of 1", "0001"),
        ("label of 10", "0010"),
        ("label of 11", "0011"),
    ]
