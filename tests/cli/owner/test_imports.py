"""`keyman key import`, as transcripts."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.owner.conftest import Person, complaint
from tests.cli.test_common import failed
from tests.providers.pastes import ACCOUNT
from tests.support.cli import KEYMAN
from tests.support.terminal import terminal
from tests.support.waiting import PATIENCE

BODY = "hq2v9mXbT0c7eUKwN4Rd"

FILE = f"""\
# keys of the shop
export OPENAI_API_KEY="sk-proj-{BODY}1234"  # mine
MY_ANTHROPIC_TOKEN=sk-ant-{BODY}5678
MISTRAL_API_KEY={BODY}9876
HF_TOKEN=hf_{BODY}1111
COHERE_API_KEY=your-key-here
GROQ_API_KEY=$OTHER
DATABASE_URL=postgres:///shop?password=secret-of-the-database
SESSION_SECRET=secret-of-the-session
OPENAI_ORG_ID=org-of-the-shop
"""


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    path = tmp_path / ".env"
    path.write_text(FILE)
    return path


def rows(out: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line) for line in out.splitlines()]


PREVIEW = [
    ["VARIABLE", "SERVICE", "KEY", "LABEL", "PROBLEM"],
    ["OPENAI_API_KEY", "OPENAI", "sk-...1234", "OPENAI_API_KEY", "-"],
    ["MY_ANTHROPIC_TOKEN", "ANTHROPIC", "sk-ant-...5678", "MY_ANTHROPIC_TOKEN", "-"],
    ["MISTRAL_API_KEY", "MISTRAL", "...9876", "MISTRAL_API_KEY", "-"],
    ["HF_TOKEN", "HUGGINGFACE", "hf_...1111", "HF_TOKEN", "-"],
    ["COHERE_API_KEY", "COHERE", "-", "COHERE_API_KEY", "is a placeholder"],
    ["GROQ_API_KEY", "GROQ", "-", "GROQ_API_KEY", "refers to another variable"],
    ["SESSION_SECRET", "-", "-", "-", "whose key? --service SESSION_SECRET=SERVICE"],
]


def test_a_file_is_shown_and_stored(env_file: Path, member: Person) -> None:
    done = member.does("key", "import", env_file, "--yes")
    assert rows(done.out) == PREVIEW
    assert done.err.startswith("2 other variables are left out.\n")
    assert done.err.endswith("Stored 4 keys. Programs can use them: keyman run -- COMMAND\n")
    stored = {key["name"]: (key["service"], key["last_4_chars"]) for key in member.stored()}
    assert stored == {row[0]: (row[1], row[2]) for row in PREVIEW[1:5]}
    for hidden in (BODY, "secret", "org-of", "your-key"):
        assert hidden not in (done.out + done.err).replace("SESSION_SECRET", "")


def test_it_asks_first(env_file: Path, member: Person) -> None:
    done = member.types("key", "import", env_file)
    assert "Add --yes if you are sure" in complaint(done)
    with terminal("key", "import", str(env_file), env=member.env) as screen:
        screen.shows("Store 4 keys? [y/N]: ")
        screen.types("n\n")
        assert screen.ends() == 1
    assert member.stored() == []
    with terminal("key", "import", str(env_file), env=member.env) as screen:
        screen.shows("Store 4 keys? [y/N]: ")
        screen.types("y\n")
        screen.shows("Stored 4 keys.")
        assert screen.ends() == 0
    assert len(member.stored()) == 4


def test_rows_are_chosen_and_services_named(env_file: Path, member: Person) -> None:
    member.does("key", "import", env_file, "--yes", "--only", "HF_TOKEN", "--only", "MISTRAL_API_KEY")
    assert {key["name"] for key in member.stored()} == {"HF_TOKEN", "MISTRAL_API_KEY"}
    arguments = ("--only", "SESSION_SECRET", "--service", "SESSION_SECRET=cohere")
    member.does("key", "import", env_file, "--yes", *arguments)
    assert member.stored()[0]["service"] == "COHERE"
    for wrong in (("--only", "NOTHING"), ("--service", "HF_TOKEN"), ("--service", "HF_TOKEN=nobody")):
        assert member.types("key", "import", env_file, "--yes", *wrong).code == 2


def test_standard_input_is_a_file_too(member: Person) -> None:
    member.does("key", "import", "-", "--yes", stdin=FILE)
    assert len(member.stored()) == 4


def test_without_standard_input_there_is_no_file(member: Person) -> None:
    closed = ["sh", "-c", f"exec {KEYMAN} key import - --yes <&-"]
    done = subprocess.run(closed, check=False, env=member.env, capture_output=True, text=True, timeout=PATIENCE)
    said = "keyman: There is no standard input to read the file from.\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_a_row_that_the_server_refuses_does_not_stop_the_others(member: Person) -> None:
    text = f'OPENAI_KEY=\'{{"key": "{BODY}"}}\'\nMISTRAL_API_KEY={BODY}\n'
    named = ("--service", "OPENAI_KEY=openai", "--only", "OPENAI_KEY", "--only", "MISTRAL_API_KEY")
    done = member.types("key", "import", "-", "--yes", *named, stdin=text)
    assert done.code == 1
    assert "OPENAI_KEY: not stored. The key is JSON, or has brackets around it; paste only the key in it." in done.err
    assert complaint(done) == "keyman: 1 key of 2 could not be stored; the others are."
    assert BODY not in done.out + done.err
    assert [key["name"] for key in member.stored()] == ["MISTRAL_API_KEY"]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (f"sk-proj-{BODY} extra", "contains white space; paste only the key"),
        (f"[sk-proj-{BODY}]", "has brackets around it; remove them"),
        ("sk-proj-...1234", "is a mask, which shows only the ends of a key;"),
        ("sk-1", "is too short for a key"),
        ("<your key>", "is a placeholder"),
    ],
)
def test_mistakes_are_in_the_preview_with_what_to_do(value: str, problem: str, member: Person) -> None:
    done = member.types("key", "import", "-", "--yes", stdin=f"OPENAI_API_KEY={value}\n")
    assert complaint(done) == "keyman: There is no key to store in standard input."
    assert problem in done.out
    assert BODY not in done.out


def test_the_same_file_twice_says_which_keys_are_there_already(env_file: Path, member: Person) -> None:
    member.does("key", "import", env_file, "--yes", "--only", "HF_TOKEN")
    first = member.stored()[0]["id"]
    done = member.does("key", "import", env_file, "--yes", "--only", "HF_TOKEN")
    assert f"You already have it: it is key {first}, too." in done.err


def test_more_keys_than_one_call_takes_are_all_stored(member: Person) -> None:
    text = "".join(f"OPENAI_KEY_{number}=sk-proj-{BODY}{number:04}\n" for number in range(60))
    member.does("key", "import", "-", "--yes", stdin=text)
    assert len(member.pages.get("/api/keys", params={"limit": "200"}).json()) == 60


def test_the_same_key_in_two_rows_is_stored_once(member: Person) -> None:
    text = f"OPENAI_API_KEY=sk-proj-{BODY}1234\nOLD_OPENAI_KEY=sk-proj-{BODY}1234\n"
    done = member.does("key", "import", "-", "--yes", stdin=text)
    assert "is the same key as in a row above" in done.out
    assert [key["name"] for key in member.stored()] == ["OPENAI_API_KEY"]


def test_what_is_around_a_key_is_left_out_and_a_key_needs_no_name(member: Person) -> None:
    account = json.dumps(json.loads(ACCOUNT), indent=2)
    text = f"export OPENAI_API_KEY='Bearer sk-proj-{BODY}1234',\ngsk_{BODY}5678\nnot a key\nVERTEX={account}\n"
    done = member.does("key", "import", "-", "--yes", stdin=text)
    assert re.search(r"^\(line 2\) +GROQ ", done.out, re.MULTILINE)
    assert "1 other variable is left out." in done.err
    assert {(key["service"], key["name"]) for key in member.stored()} == {
        ("OPENAI", "OPENAI_API_KEY"),
        ("GROQ", None),
        ("GOOGLE_VERTEX", "VERTEX"),
    }


def test_a_key_that_begins_in_another_way_is_stored_if_it_is_named(member: Person) -> None:
    text = f"OPENAI_API_KEY={BODY}\nMISTRAL_API_KEY={BODY}x\n"
    done = member.does("key", "import", "-", "--yes", stdin=text)
    assert "OpenAI keys begin with sk-. To store it anyway: --only OPENAI_API_KEY" in done.out
    assert [key["service"] for key in member.stored()] == ["MISTRAL"]
    member.does("key", "import", "-", "--yes", "--only", "OPENAI_API_KEY", stdin=text)
    assert [key["service"] for key in member.stored()] == ["OPENAI", "MISTRAL"]


def test_a_service_account_whose_names_are_those_of_a_placeholder_is_stored(member: Person) -> None:
    account = ACCOUNT.replace("my-project-123", "sell-your-car")
    assert "your-" in account
    member.does("key", "import", "-", "--yes", stdin=f"VERTEX='{account}'\n")
    assert [key["service"] for key in member.stored()] == ["GOOGLE_VERTEX"]


@pytest.mark.parametrize(
    "value", ["# put it here", "#insert-a-key-here", "'sk-${SUFFIX}-abcdef'", "insert-a-key", "$(pass x)"]
)
def test_what_stands_for_a_key_is_not_stored(value: str, member: Person) -> None:
    done = member.types("key", "import", "-", "--yes", stdin=f"MISTRAL_API_KEY= {value}\n")
    assert complaint(done) == "keyman: There is no key to store in standard input."
    assert member.stored() == []


def test_the_last_assignment_of_a_variable_counts(member: Person) -> None:
    text = f"OPENAI_API_KEY=sk-proj-{BODY}1234\nOPENAI_API_KEY=sk-proj-{BODY}5678\n"
    member.does("key", "import", "-", "--yes", stdin=text)
    assert [key["last_4_chars"] for key in member.stored()] == ["sk-...5678"]


@pytest.mark.parametrize("text", ["", "A=b\n", "DATABASE_URL=postgres://x\n"])
def test_a_file_without_a_key_says_so(text: str, member: Person) -> None:
    assert "There is no key to store in standard input." in complaint(
        member.types("key", "import", "-", "--yes", stdin=text)
    )


def test_a_file_that_cannot_be_read_is_said_in_words(member: Person, tmp_path: Path) -> None:
    assert "cannot be read: No such file" in failed(member.types("key", "import", tmp_path / "none"))
    (tmp_path / "large").write_bytes(b"#" * (1024 * 1024 + 1))
    assert "larger than 1 MiB" in failed(member.types("key", "import", tmp_path / "large"))
    (tmp_path / "latin").write_bytes(b"A=K\xfcche")
    assert "must be UTF-8 text" in failed(member.types("key", "import", tmp_path / "latin"))
