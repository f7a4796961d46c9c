"""`keyman key`, as transcripts."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import httpx
import msgspec
import pytest

from keyman.cli.owner.offered import Offered
from keyman.client import Service
from keyman.providers.catalogue import Catalogue
from keyman.providers.naming import service_of
from keyman.secret import Secret
from tests.cli.owner.conftest import Person, complaint
from tests.cli.test_common import failed
from tests.providers.pastes import ACCOUNT
from tests.support.terminal import terminal
from tests.support.waiting import until

BODY = "hq2v9mXbT0c7eUKwN4Rd"
OPENAI_KEY = f"sk-proj-{BODY}1234"
ANTHROPIC_KEY = f"sk-ant-{BODY}5678"


# --- add


def test_a_key_comes_from_standard_input_and_its_service_is_recognised(member: Person) -> None:
    done = member.does("key", "add", "--name", "Chat", "--expires-in", "90d", stdin=f"{OPENAI_KEY}\nuser: ada\n")
    assert done.out == ""
    (key,) = member.stored()
    assert done.err == f'OpenAI, recognised.\nStored key {key["id"]}: OpenAI, sk-...1234, "Chat".\n'
    assert (key["service"], key["last_4_chars"], key["name"]) == ("OPENAI", "sk-...1234", "Chat")
    left = datetime.fromisoformat(str(key["expires_at"])) - datetime.now(UTC)
    assert timedelta(days=89, hours=23) < left <= timedelta(days=90)


@pytest.mark.parametrize("name", ["MISTRAL", "mistral", "Mistral AI"])
def test_a_service_is_named_as_people_write_it(name: str, member: Person) -> None:
    member.does("key", "add", name, stdin=BODY)
    assert [key["service"] for key in member.stored()] == ["MISTRAL"]


def test_a_prompt_does_not_show_the_key_and_asks_for_what_is_not_recognised(member: Person) -> None:
    with terminal("key", "add", env=member.env) as screen:
        screen.shows("API key: ")
        screen.types(f"{BODY}\n")
        screen.shows("keyman does not recognise whose key this is.")
        screen.shows("Service, such as OPENAI: ")
        screen.types("cohere\n")
        screen.shows("Stored key")
        assert screen.ends() == 0
        assert BODY not in screen.screen
    assert [key["service"] for key in member.stored()] == ["COHERE"]


def test_a_file_at_a_prompt_says_how_a_file_is_given(member: Person) -> None:
    with terminal("key", "add", "GOOGLE_VERTEX", env=member.env) as screen:
        screen.shows("API key: ")
        screen.types("{\n")
        screen.shows("Give a JSON file on standard input")
        assert screen.ends() == 1


def test_a_json_credential_is_stored_as_it_is(member: Person) -> None:
    member.does("key", "add", "google-vertex", "--setting", "location=europe-west1", stdin=ACCOUNT)
    (key,) = member.stored()
    assert (key["service"], key["settings"]) == ("GOOGLE_VERTEX", {"location": "europe-west1"})


def test_where_nobody_can_be_asked_the_service_is_an_argument(member: Person) -> None:
    assert "Name the service, such as: keyman key add OPENAI" in failed(member.types("key", "add", stdin=BODY))
    assert "Standard input is empty" in failed(member.types("key", "add", "OPENAI"))
    done = member.types("key", "add", "OPNAI", stdin=BODY)
    assert done.code == 2
    assert "Did you mean OPENAI?" in done.err
    wrong = member.types("key", "add", "OPENAI", "--setting", "endpoint=x", stdin=BODY)
    assert wrong.code == 2
    assert "A key of OPENAI has none." in wrong.err
    assert member.stored() == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (ANTHROPIC_KEY, "The key looks like a key of Anthropic, not of OpenAI: choose that service instead."),
        (f"({OPENAI_KEY})", "The key has parentheses around it; remove them."),
        (f"{OPENAI_KEY} {BODY}", "The key contains white space; paste only the key"),
        ("sk-...1234", "The key is a mask, which shows only the ends of a key;"),
        ("https://platform.openai.com/api-keys", "The key is an address (URL), not a key;"),
        ("sk-1", "The key must be 8 to 8,192 characters long."),
    ],
)
def test_what_is_no_key_is_refused_with_what_to_do_and_not_repeated(value: str, said: str, member: Person) -> None:
    done = member.types("key", "add", "OPENAI", stdin=value)
    assert said in failed(done)
    assert BODY not in done.err
    assert member.stored() == []


def test_a_key_as_a_label_is_refused_with_what_to_do_and_not_repeated(member: Person) -> None:
    key = str(member.stores("OPENAI", OPENAI_KEY))
    adds = member.types("key", "add", "OPENAI", "--name", ANTHROPIC_KEY, stdin=OPENAI_KEY)
    edits = member.types("key", "edit", key, "--name", ANTHROPIC_KEY)
    for done in (adds, edits):
        assert "must not contain what looks like a key, because labels are shown" in complaint(done)
        assert BODY not in done.err
    assert [one["name"] for one in member.stored()] == [None]


@pytest.mark.parametrize("character", ["\f", "\v", "\x1c", "\x85", "\u2028", "\u2029"])
def test_a_key_is_not_cut_at_a_character_that_nobody_sees(character: str, member: Person) -> None:
    done = member.types("key", "add", "OPENAI", stdin=f"{OPENAI_KEY}{character}{BODY}")
    assert f"contains an invisible character (U+{ord(character):04X}" in failed(done)
    assert member.stored() == []


def test_a_key_ends_with_its_line_on_every_system(member: Person) -> None:
    for end in ("\n", "\r\n", "\r"):
        member.does("key", "add", "OPENAI", stdin=f"\n {OPENAI_KEY}{end}user: ada{end}")
    assert [key["last_4_chars"] for key in member.stored()] == ["sk-...1234"] * 3


def test_bytes_that_are_no_text_end_in_a_sentence_and_without_a_key(member: Person) -> None:
    key = str(member.stores("OPENAI", OPENAI_KEY))
    for typed in (
        ("key", "add", "OPENAI", "--name", "\udcff"),
        ("key", "edit", key, "--name", "\udcff"),
        ("key", "list", "--search", "\udcff"),
        ("login", member.url, "--email", "\udcff@example.com"),
    ):
        done = member.types(*typed, stdin=OPENAI_KEY)
        assert done == (2, "", "keyman: An argument has bytes that are no text here. Write it in UTF-8.\n")
    with terminal("key", "add", "OPENAI", env=member.env) as screen:
        screen.shows("API key: ")
        screen.types_bytes(b"sk-\xff\xfe\n")
        screen.shows("keyman: The key must be text in the encoding of this terminal, which should be UTF-8.")
        assert screen.ends() == 1
        assert "Traceback" not in screen.screen
    assert [one["name"] for one in member.stored()] == [None]


@pytest.mark.parametrize(
    "typed",
    [
        ("key", "add", OPENAI_KEY),
        ("key", "add", "OPENAI", OPENAI_KEY),
        ("key", "replace", "1", OPENAI_KEY),
        ("key", "replace", OPENAI_KEY),
        ("key", "delete", OPENAI_KEY),
        ("key", "delete", f"{BODY}1" + "1" * 5000),
        ("key", "delete", "1" * 5000),
        ("login", "https://keyman.example.com", OPENAI_KEY),
    ],
)
def test_a_key_that_is_typed_as_an_argument_is_not_repeated(typed: tuple[str, ...], member: Person) -> None:
    done = member.types(*typed, stdin=BODY)
    assert done.code == 2
    assert BODY not in done.out + done.err
    assert "never an argument" in done.err or "must be the number of a key" in done.err
    assert member.stored() == []


def test_labels_of_every_script_keep_the_columns_straight(member: Person) -> None:
    for label in ("Chat", "チャット", "Cafe\u0301"):
        member.stores("OPENAI", OPENAI_KEY, name=label)
    cafe, wide, plain = member.does("key", "list").out.splitlines()[1:]
    column = plain.index("sk-")
    assert wide.index("sk-") == column - len("チャット")
    assert cafe.index("sk-") == column + 1


@pytest.mark.parametrize("around", ['"{}"', "OPENAI_API_KEY={}", "export OPENAI_API_KEY='{}'", "Bearer {}", "{},"])
def test_what_is_around_a_key_is_left_out_and_that_is_said(around: str, member: Person) -> None:
    done = member.does("key", "add", stdin=around.format(OPENAI_KEY))
    assert done.err.startswith("Left out what was around the key.\nOpenAI, recognised.\n")
    assert [key["last_4_chars"] for key in member.stored()] == ["sk-...1234"]


def test_a_value_that_begins_in_another_way_is_asked_about_and_a_script_is_told(member: Person) -> None:
    done = member.does("key", "add", "OPENAI", stdin=BODY)
    assert "OpenAI keys begin with sk-. There is no terminal to ask, so keyman goes on." in done.err
    key = str(member.stored()[0]["id"])
    for command in (("key", "add", "OPENAI"), ("key", "replace", key)):
        with terminal(*command, env=member.env) as screen:
            screen.shows("API key: ")
            screen.types(f"other-{BODY}\n")
            screen.shows("OpenAI keys begin with sk-. Store it anyway? [y/N]: ")
            screen.types("n\n")
            assert screen.ends() == 1
    assert [one["last_4_chars"] for one in member.stored()] == [f"...{BODY[-4:]}"]
    assert "keys begin with" not in member.does("key", "add", "MISTRAL", stdin=BODY).err


def test_the_same_key_twice_is_noticed(member: Person) -> None:
    first = member.stores("OPENAI", OPENAI_KEY)
    done = member.does("key", "add", stdin=OPENAI_KEY)
    assert f"You already have this key: it is key {first}, too." in done.err


def test_the_stored_key_is_a_result_on_request(member: Person) -> None:
    done = member.does("key", "add", "--json", stdin=OPENAI_KEY)
    (key,) = member.stored()
    assert json.loads(done.out) == key


def test_masks_and_recognition_are_those_of_the_server() -> None:
    known = Catalogue()
    offered = Offered(msgspec.convert(msgspec.to_builtins(known.infos()), list[Service]))
    for service in known.services():
        assert offered.find(service.name.lower()).service == service.service
        for prefix in ("", *service.prefixes, *service.exclusive):
            for value in (f"{prefix}{BODY}wxyz", f"{prefix}wxyz"):
                if not service.credential:
                    assert offered.mask(service.service, Secret(value)) == known.mask(service.service, value)
                found = offered.recognise(Secret(value))
                assert (found.service if found else "") == service_of(known, "", value)
    account = offered.recognise(Secret(ACCOUNT))
    assert account is not None
    assert account.service == service_of(known, "", ACCOUNT) == "GOOGLE_VERTEX"


# --- list


def test_keys_are_listed_as_a_table_with_the_words_of_the_pages(member: Person) -> None:
    first = member.stores("OPENAI", OPENAI_KEY, name="Chat")
    second = member.stores("ANTHROPIC", ANTHROPIC_KEY)
    member.does("key", "pause", str(second))
    member.does("key", "default", str(first))
    lines = member.does("key", "list").out.splitlines()
    assert [re.split(r"\s{2,}", line) for line in lines] == [
        ["ID", "SERVICE", "NAME", "KEY", "STATUS", "DEFAULT"],
        [str(second), "ANTHROPIC", "-", "sk-ant-...5678", "paused", "-"],
        [str(first), "OPENAI", "Chat", "sk-...1234", "active", "yes"],
    ]
    member.does("key", "edit", str(first), "--expires-at", "2999-01-31T00:00:00Z")
    assert "2999-01-31 00:00:00Z" in member.does("key", "list").out
    assert json.loads(member.does("key", "list", "--json").out) == member.stored()


def test_keys_are_filtered_and_sorted(member: Person) -> None:
    first = member.stores("OPENAI", OPENAI_KEY, name="b")
    second = member.stores("ANTHROPIC", ANTHROPIC_KEY, name="a")
    member.does("key", "pause", str(second))

    def listed(*arguments: str) -> list[int]:
        return [key["id"] for key in json.loads(member.does("key", "list", "--json", *arguments).out)]

    assert listed("--service", "openai") == [first]
    assert listed("--status", "paused") == listed("--status", "disabled") == [second]
    assert listed("--search", "1234") == [first]
    assert listed("--sort", "name") == [second, first]
    assert listed("--check", "refused") == []
    assert member.does("key", "list", "--check", "refused") == (0, "", "No key matches.\n")
    long = failed(member.types("key", "list", "--search", "x" * 101))
    assert long == "keyman: --search must be at most 100 characters long.\n"


# --- the others


def test_keys_are_paused_and_resumed_several_at_once(member: Person) -> None:
    first, second = member.stores("OPENAI", OPENAI_KEY, name="Chat"), member.stores("ANTHROPIC", ANTHROPIC_KEY)
    done = member.does("key", "pause", str(first), str(second))
    assert done.err == (
        f'Paused key {first}: OPENAI, sk-...1234, "Chat".\nPaused key {second}: ANTHROPIC, sk-ant-...5678.\n'
    )
    missing = member.types("key", "resume", "999999", str(first))
    assert failed(missing) == (
        f'keyman: You have no key 999999.\nResumed key {first}: OPENAI, sk-...1234, "Chat".\n'
        "keyman: See them with: keyman key list\n"
    )
    assert {key["id"]: key["status"] for key in member.stored()} == {first: "active", second: "disabled"}


def test_a_deletion_asks_and_names_what_uses_the_key(member: Person) -> None:
    key = member.stores("OPENAI", OPENAI_KEY, name="Chat")
    assert "Add --yes if you are sure" in complaint(member.types("key", "delete", str(key)))
    with terminal("key", "delete", str(key), env=member.env) as screen:
        screen.shows(f'Key {key}: OpenAI, sk-...1234, "Chat"')
        screen.shows("It was never used.")
        screen.shows("At OpenAI the key stays valid until you revoke it there.")
        screen.shows(f"Delete key {key}? This cannot be undone. [y/N]: ")
        screen.types("n\n")
        screen.shows("Aborted!")
        assert screen.ends() == 1
    assert len(member.stored()) == 1
    done = member.does("key", "delete", str(key), "--yes")
    assert done.err == f'Deleted key {key}: OPENAI, sk-...1234, "Chat".\n'
    assert member.stored() == []


def test_a_value_is_replaced_and_the_rest_stays(member: Person) -> None:
    key = member.stores("OPENAI", OPENAI_KEY, name="Chat")
    done = member.does("key", "replace", str(key), stdin=f"sk-proj-{BODY}9999\n")
    assert done.err == (
        f'The new value for key {key}: OpenAI, sk-...1234, "Chat"\n'
        f'Replaced the value of key {key}: OpenAI, sk-...9999, "Chat".\n'
    )
    wrong = member.types("key", "replace", str(key), stdin=ANTHROPIC_KEY)
    assert "looks like a key of Anthropic" in complaint(wrong)
    assert "You have no such key" in failed(member.types("key", "replace", "999999", stdin=OPENAI_KEY))


def test_an_expiry_that_has_passed_is_not_dropped_in_silence(member: Person) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1)
    key = member.stores("OPENAI", OPENAI_KEY, expires_at=f"{soon:%Y-%m-%dT%H:%M:%S.%fZ}")
    until(lambda: member.stored()[0]["status"] == "expired")
    done = member.does("key", "replace", str(key), stdin=f"sk-proj-{BODY}9999\n")
    assert f"has none now. To set one: keyman key edit {key} --expires-in 90d\n" in done.err
    again = member.does("key", "replace", str(key), "--expires-in", "30d", stdin=OPENAI_KEY)
    assert "has none now" not in again.err


def test_a_replacement_keeps_the_settings_that_are_not_given(member: Person) -> None:
    settings = {"endpoint": "https://a.openai.azure.com", "api_version": "2024-01-01"}
    key = member.stores("AZURE_OPENAI", BODY, settings=settings)
    member.does("key", "replace", str(key), "--setting", "api_version=2025-01-01", stdin=f"{BODY}2")
    assert member.stored()[0]["settings"] == {**settings, "api_version": "2025-01-01"}


def test_label_and_expiry_change_without_the_value(member: Person) -> None:
    key = str(member.stores("OPENAI", OPENAI_KEY, name="Chat"))
    member.does("key", "edit", key, "--name", "Other", "--expires-at", "2999-01-31")
    assert (member.stored()[0]["name"], member.stored()[0]["expires_at"]) == ("Other", "2999-01-31T00:00:00Z")
    member.does("key", "edit", key, "--name", "", "--never-expires")
    assert (member.stored()[0]["name"], member.stored()[0]["expires_at"]) == (None, None)
    for wrong in ((), ("--never-expires", "--expires-in", "1d"), ("--expires-in", "1d", "--expires-at", "2999-01-31")):
        assert member.types("key", "edit", key, *wrong).code == 2
    said = failed(member.types("key", "edit", key, "--expires-at", "2020-01-31"))
    assert said.startswith("keyman: The expiry ")


def test_a_default_is_chosen_and_given_up(member: Person) -> None:
    key = str(member.stores("OPENAI", OPENAI_KEY))
    assert member.does("key", "default", key).err == f"Key {key} is now the default for OPENAI: OPENAI, sk-...1234.\n"
    assert member.stored()[0]["default"] is True
    member.does("key", "default", key, "--off")
    assert member.stored()[0]["default"] is False


def test_without_live_checks_a_check_says_so_and_storing_does_not(member: Person) -> None:
    stored = member.does("key", "add", stdin=OPENAI_KEY)
    assert "heck" not in stored.err
    said = failed(member.types("key", "check", str(member.stored()[0]["id"])))
    assert "conflict" in said


def test_a_token_without_the_scope_says_which_is_missing(stranger: Person) -> None:
    made = stranger.pages.post("/api/tokens", json={"name": "x", "scopes": ["keys:read"]}).json()["token"]
    stranger.does("login", stranger.url, "--with-token", stdin=made)
    said = failed(stranger.types("key", "add", "OPENAI", stdin=OPENAI_KEY))
    assert "keys:write" in said
    assert f"keyman login {stranger.url}" in said


def test_a_key_of_somebody_else_is_like_none(member: Person) -> None:
    with httpx.Client(base_url=member.url) as other:
        account = {"email": f"x-{member.email}", "password": "correct horse battery staple"}
        assert other.post("/api/auth/signup", json=account).status_code == 201
        key = other.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY}).json()["id"]
    for command in ("pause", "resume", "default"):
        assert f"You have no key {key}." in failed(member.types("key", command, str(key)))
    assert f"You have no key {key}." in failed(member.types("key", "delete", str(key), "--yes"))
