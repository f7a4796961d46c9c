"""`keyman.planes.management.web.language` and its catalogues: which language is chosen, and that German is whole.

What is to be translated is found, not listed: the sentences of the templates as Babel extracts them, those of the code
by reading its syntax. What the code puts together before anybody can translate it is listed here with its reason.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import uuid4

import httpx
import pytest
from argon2 import PasswordHasher
from babel import Locale
from babel.messages.catalog import Catalog
from babel.messages.extract import extract
from babel.messages.pofile import read_po
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, select, update

import keyman
from keyman.audit import counting
from keyman.audit.entries import Action
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.config.checks import CheckSettings
from keyman.config.oidc import OidcSettings
from keyman.errors import FieldError, InvalidRequest, Sentence
from keyman.http.limit import ACCOUNT as TOO_MANY_CHANGES
from keyman.http.problems import KINDS
from keyman.identity import applications, personal_tokens, sessions
from keyman.identity.application_tokens import ApplicationProof
from keyman.identity.applications import Users
from keyman.identity.limits import TOO_MANY_CHECKS, TOO_MANY_SIGNUPS, TOO_MANY_VISITS
from keyman.identity.passwords import Passwords
from keyman.identity.portal import NewLink, create_link
from keyman.identity.principals import Credentials
from keyman.identity.return_urls import ReturnUrl
from keyman.identity.tables import users
from keyman.identity.turns import TOO_MANY, TOO_MANY_OF_ACCOUNT
from keyman.keys.tables import api_keys
from keyman.planes.management.app import ADVICE
from keyman.planes.management.web.activity import ACTIONS, ACTORS, KIND_NAMES, PERIOD_NAMES, REASONS
from keyman.planes.management.web.chart import OTHERS, OWN
from keyman.planes.management.web.key_actions import NAMED_USES
from keyman.planes.management.web.language import ENGLISH, LOCALES, MAX_TAGS, Languages
from keyman.planes.management.web.pages import TEMPLATES
from keyman.planes.management.web.tokens import MEANINGS
from keyman.planes.management.web.words import NOT_NOW
from keyman.providers.services import SHIPPED
from keyman.providers.verdicts import ENDPOINT, RESTRICTED, SETTING, Verdict
from keyman.secret import Secret
from keyman.storage.faults import CommitLost
from keyman.storage.paging import Cursor
from keyman.storage.transactions import Database, Unchecked
from keyman.values import ApplicationName, Subject
from tests.planes.management.api.harness import (
    OPENAI_KEY,
    ApiPlane,
    log_in,
    same_but_for_the_request_id,
    state_of,
    store,
)
from tests.support.database import copied
from tests.support.http import faulty_server
from tests.support.openid import Forger
from tests.support.planes import PASSWORD, Vault, plane_at
from tests.support.rows import entry
from tests.support.sources import tree_of

pytestmark = pytest.mark.anyio

PACKAGE = Path(keyman.__file__).parent
CHART_WORDS = {name: name for name in (OWN, OTHERS)}
PROBLEMS = {CommitLost.__name__, *(kind.problem.__name__ for kind in KINDS.values())}

LANGUAGES = Languages()
GERMAN = LANGUAGES.choose("de")

NEVER_ON_A_PAGE = {
    "planes/management/api": "answers to programs: JSON, in English",
    "batching.py": "mistakes of keyman's own, for the log",
    "cli": "for an operator at a command line",
    "client": "for the programs that use it, in English",
    "config": "for an operator at the start",
    "keys/deployment.py": "for an operator at the start",
    "dev": "for an operator at the start",
    "migrations": "for an operator at a command line",
    "planes/gateway": "answers to programs: JSON, in English",
    "planes/resolver": "answers to programs: JSON, in English",
    "testing": "for the programs that use it, in English",
    "identity/issuers.py": "for an operator at a command line",
    "identity/fetching.py": "answers to programs, and the log",
    "identity/jose.py": "answers to programs: JSON, in English",
    "identity/jwks.py": "answers to programs: JSON, in English",
    "identity/jwt.py": "answers to programs: JSON, in English",
    "identity/key_sets.py": "for an operator at the start, and the log",
    "identity/portal.py": "answers to programs: JSON, in English",
    "identity/return_urls.py": "answers to programs: JSON, in English",
    "keys/checks.py": "answers to programs: JSON, in English",
    "keys/reports.py": "answers to programs: JSON, in English",
    "keys/request.py": "answers to programs: JSON, in English",
    "keys/release.py": "answers to programs: JSON, in English",
    "providers/file.py": "for an operator at the start",
    "providers/paths.py": "for an operator at the start",
    "http/body.py": "answers to programs: JSON, in English",
    "http/explained.py": "answers to programs: JSON, in English",
    "http/openapi.py": "answers to programs: JSON, in English",
    "http/limit.py": "answers to programs: JSON, in English",
    "vault": "whatever fails there is said in plain words: see `words.py`",
    "storage/faults.py": "the same of the database",
    "storage/committed.py": "the same of the database",
}
"""Files and directories of the package whose sentences nobody reads on a page."""

FOR_OPERATORS = {
    ("providers/catalogue.py", "load"),
    *(
        ("identity/applications.py", name)
        for name in ("create", "create_workload", "rotate", "_insert", "_lock", "_require_applications")
    ),
    ("identity/application_tokens.py", "verify"),
    *(
        ("identity/principals.py", name)
        for name in ("require_user", "require_application", "require_no_checks", "require_checks")
    ),
    *(("identity/selection.py", name) for name in ("lock_chosen", "find_chosen")),
    *(("keys/erasure.py", name) for name in ("delete_any", "_erase")),
}
"""Functions that read a file of settings and speak at the start, or at a command line; and to an application."""

PUT_TOGETHER = {
    (
        "identity/principals.py",
        "require",
        "JoinedStr",
    ): "a script asks for a page with a token that cannot have it",
    ("identity/principals.py", "identify", "Name"): "the advice of a plane, which is found where the plane gives it",
    ("identity/tokens.py", "parse", "JoinedStr"): "the form offers no other scopes",
    ("planes/management/web/key_several_rows.py", "entry_of", "Attribute"): "what a row lacks, found where it is made",
    ("planes/management/web/key_several_rows.py", "words", "Attribute"): "what the check of a field said, found there",
    ("storage/together.py", "_failure", "Attribute"): "what the database's fault says, which is found there",
    ("identity/turns.py", "_make_room", "Name"): "texts with names, which are listed below",
    ("storage/paging.py", "parse", "JoinedStr"): "no page takes a limit",
    ("planes/management/web/words.py", "in_plain_words", "Attribute"): "what the problem says, which is found there",
    ("http/requests.py", "_field_errors", "Subscript"): "no page has parameters that Litestar parses",
    ("providers/settings.py", "check_settings", "Call"): "what a setting expects, which is found with the settings",
    ("providers/settings.py", "fault", "Attribute"): "the same",
    ("decoding.py", "_decode_each", "Call"): "what `_field` or a value type said, which is found there",
    ("decoding.py", "_decode_each", "JoinedStr"): "the forms pass on no unknown field",
    ("decoding.py", "_field", "JoinedStr"): "the forms pass on no list that is too long",
    ("decoding.py", "_field", "Call"): "what a value type said, which is found there",
}
"""Where the code says what is no sentence of the source: by file, function and kind of expression."""

IGNORED = "a page ignores filters and orders that it does not know"

PLAIN = "pages say it in plain words: see `words.py`"

NOT_FOR_PEOPLE = {
    "The database cannot be used at the moment. Nothing was stored.": PLAIN,
    "Too many requests are waiting for an answer. Nothing was done with this one: try again in a moment.": PLAIN,
    "a time without a zone was about to be stored": "a mistake of the code's, answered as `internal`",
    "Only an access token can be revoked here, and this request was not made with one.": "no page does this",
    "must be a cursor from a Link header": "a page takes any other cursor for none",
    "must be an action of the audit log, such as key.resolve": "a page asks for kinds of actions, which it names",
    "must be active, disabled, expired or undecryptable": IGNORED,
    "must be a verdict, such as accepted or refused": IGNORED,
    "must be created, name or used, or the same after a hyphen for a descending order": IGNORED,
    "belongs to a list with another sort or other filters": IGNORED,
}

THE_SAME = {"Name", "Region", "Status", "Token"}
"""Words that German has from English."""


# --- what there is to translate


class Said(NamedTuple):
    """Something that the code says to somebody; `text` is None where it is no sentence of the source."""

    file: str
    function: str
    kind: str
    text: str | None


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE)
        if not any(file.is_relative_to(name) for name in NEVER_ON_A_PAGE):
            yield file.as_posix(), tree_of(path)


@cache
def constants() -> dict[str, ast.expr]:
    """What the modules give a name to."""
    return {
        ast.unparse(node.targets[0]): node.value
        for _, tree in sources()
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }


def spoken(call: ast.Call, problem: str | None) -> ast.expr | None:
    """The words of a call that says something; `problem` is the class of problems that it stands in."""
    name = ast.unparse(call.func).rpartition(".")[2]
    own = problem is not None and ast.unparse(call.func) in ("cls", "super().__init__")
    if name in {"ValueError", "Sentence", *PROBLEMS} - {"VaultUnavailable"} or own:
        return call.args[0] if call.args else None
    if name == "FieldError":
        return call.args[1]
    if name == "Told":
        return call.args[1]
    return call.args[0] if name == "say" and isinstance(call.args[0], ast.Constant) else None


def texts(words: ast.expr, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, str | None]]:
    """What an expression can be, by kind; a variable is whatever its function sets it to."""
    match words:
        case ast.Constant(value=str(text)):
            yield "Constant", text
        case ast.IfExp(body=one, orelse=other):
            yield from texts(one, function)
            yield from texts(other, function)
        case ast.Call(func=ast.Name(id="Sentence")):
            return  # a call of its own
        case ast.Name(id=name):
            arguments = [argument.arg for argument in function.args.args]
            defaults = dict(zip(arguments[::-1], function.args.defaults[::-1], strict=False))
            assigned = (node for node in ast.walk(function) if isinstance(node, ast.Assign))
            values = [node.value for node in assigned if ast.unparse(node.targets[0]) == name]
            values += [defaults[name]] if name in defaults else []
            values += [constants()[name]] if name in constants() else []
            for value in values:
                yield from texts(value, function)
            if not values:
                yield "Name", None
        case _:
            yield type(words).__name__, None


@cache
def said() -> frozenset[Said]:
    found: set[Said] = set()

    def look(node: ast.AST, file: str, problem: str | None, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for below in ast.iter_child_nodes(node):
            inside = below.name if isinstance(below, ast.ClassDef) and below.name in PROBLEMS else problem
            within = below if isinstance(below, ast.FunctionDef | ast.AsyncFunctionDef) else function
            is_for_people = (file, within.name) not in FOR_OPERATORS
            if is_for_people and isinstance(below, ast.Call) and (words := spoken(below, inside)) is not None:
                found.update(Said(file, within.name, *text) for text in texts(words, within))
            look(below, file, inside, within)

    (nowhere,) = ast.parse("def module(): ...").body
    assert isinstance(nowhere, ast.FunctionDef)
    for file, tree in sources():
        look(tree, file, None, nowhere)
    return frozenset(found)


@cache
def of_the_templates() -> frozenset[str]:
    found = set()
    for path in TEMPLATES.glob("*.html"):
        with path.open("rb") as file:
            for _, message, _, _ in extract("jinja2", file, options={"silent": "false"}):
                assert isinstance(message, str), f"{path.name}: no page counts in words"
                found.add(message)
    return frozenset(found)


@cache
def of_the_code() -> frozenset[str]:
    tables = (CHART_WORDS, ACTIONS, ACTORS, MEANINGS, REASONS, KIND_NAMES, PERIOD_NAMES)
    return frozenset(
        {one.text for one in said() if one.text is not None} - NOT_FOR_PEOPLE.keys()
        | {text for table in tables for text in table.values()}
        | {text for one in SHIPPED for each in one.settings for text in (each.title, each.description, each.expected)}
        | {TOO_MANY_CHECKS, TOO_MANY_SIGNUPS, TOO_MANY_VISITS, TOO_MANY, TOO_MANY_OF_ACCOUNT, TOO_MANY_CHANGES, ADVICE}
        | {NOT_NOW, RESTRICTED, ENDPOINT, SETTING}  # what a verdict has beside its words
        | {one._ended for one in (personal_tokens._STANDING, sessions._STANDING, sessions._PORTAL_STANDING)}
        | {text for kind in KINDS.values() for text in (kind.problem.title, kind.explanation)}
    )


@cache
def catalogue() -> Catalog:
    with (LOCALES / "de" / "keyman.po").open("rb") as file:
        return read_po(file, locale="de", abort_invalid=True)


@cache
def german() -> dict[str, str]:
    """The catalogue, by sentence."""
    return {str(message.id): str(message.string) for message in catalogue() if message.id}


def placeholders(text: str) -> set[str]:
    return set(re.findall(r"%\(\w+\)s|\{\w+\}", text))


# --- the catalogue


def test_the_sentences_of_code_and_templates_are_found() -> None:
    """Each way of saying something has an example here, so that no search comes back empty unnoticed."""
    assert {"Skip to the content", "key %(id)s", "Choose {service}"} <= of_the_templates()
    assert {
        "must be 8 to 8,192 characters long",
        "is wrong",
        "{count} things are invalid; errors lists each of them.",
        "One field is invalid.",
        "We could not save your key. Nothing was stored. Try again.",
        "This idempotency key was used for another request",
        "This key no longer exists. It may have been deleted in another window.",
        "keyman could not open the key at that moment.",
        "just now",
    } <= of_the_code()


def test_whatever_is_excepted_is_still_there() -> None:
    assert {one[:3] for one in said() if one.text is None} == PUT_TOGETHER.keys()
    assert {one.text for one in said()} >= NOT_FOR_PEOPLE.keys()
    assert all((PACKAGE / name).exists() for name in NEVER_ON_A_PAGE)


def test_every_sentence_has_a_translation_and_every_translation_a_sentence() -> None:
    wanted = of_the_templates() | of_the_code()
    assert wanted - german().keys() == set()
    assert german().keys() - wanted == set()
    assert [source for source, translation in german().items() if not translation] == []
    assert not catalogue().obsolete
    assert not [message.id for message in catalogue() if message.id and (message.fuzzy or message.context)]
    lines = (LOCALES / "de" / "keyman.po").read_text().splitlines()
    assert sum(line.startswith("msgid ") for line in lines) == len(german()) + 1  # none twice; one is the header


def test_the_catalogue_fits_the_placeholders_the_code_and_the_punctuation_of_its_source() -> None:
    assert not list(catalogue().check())
    for source, translation in german().items():
        assert placeholders(translation) == placeholders(source), source
        assert not re.search(r"[%{}]", re.sub(r"%\(\w+\)s|\{\w+\}", "", translation)), source
        assert re.findall("`[^`]*`", translation) == re.findall("`[^`]*`", source), source
        assert translation[-1:] in ".?" if source[-1] in ".?" else translation[-1] not in ".?!", source
        assert translation == " ".join(translation.split()), source
        assert not re.search(r"[<>&\"]", translation), source


def test_german_is_german_and_says_sie() -> None:
    assert {source for source, translation in german().items() if source == translation} == THE_SAME
    for translation in german().values():
        assert not re.search(r"\b(du|dir|dich|deine?[mnrs]?|the|your?|not)\b", translation, re.IGNORECASE), translation


def test_english_is_what_the_source_says() -> None:
    english = LANGUAGES.choose("en")
    assert all(english.say(text) == text for text in german())


# --- sentences


@given(st.text(), st.integers())
def test_a_sentence_is_the_text_that_its_values_make(word: str, number: int) -> None:
    sentence = Sentence("{word} and {number}", word=word, number=number)
    assert isinstance(sentence, str)
    assert sentence == f"{word} and {number}"
    assert hash(sentence) == hash(f"{word} and {number}")
    assert json.loads(json.dumps(sentence)) == str(sentence) == f"{sentence}"
    assert LANGUAGES.choose("en").say(sentence) == sentence
    assert GERMAN.say(sentence) == f"{german().get(word, word)} and {number}"


def test_a_sentence_is_said_again_with_its_values() -> None:
    problem = InvalidRequest.at(FieldError("a", "is missing"), FieldError("b", "is missing"))
    assert problem.detail == "2 things are invalid; errors lists each of them."
    assert GERMAN.say(problem.detail).startswith("2 Angaben sind ungültig;")
    assert GERMAN.say(InvalidRequest.at(FieldError("a", "is missing")).detail).startswith("Ein Feld ")


@pytest.mark.parametrize("within", ["Nothing to show", "just now"])
def test_a_sentence_within_a_sentence_is_said_too(within: str) -> None:
    assert GERMAN.say(Sentence("{why} …", why=within)) == f"{german()[within]} …"


@given(st.text().filter(lambda text: text not in german()))
def test_what_has_no_translation_is_itself(text: str) -> None:
    assert GERMAN.say(text) == text


def test_the_german_has_one_word_for_one_thing_and_says_sie() -> None:
    others = re.compile(
        r"hinterleg|bekomm|\bbekam|Vorgabe|\bnutz|\bbenutz|angelegt|\b(du|dein\w*|dir|dich)\b", re.IGNORECASE
    )
    assert [text for text in german().values() if others.search(text)] == []


def test_dates_and_numbers_are_german() -> None:
    moment = datetime(2026, 11, 24, 10, 11, 12, tzinfo=UTC)
    assert GERMAN.moment(moment) == "24. November 2026, 10:11:12 UTC"
    assert GERMAN.date(moment) == "24.11.2026"
    assert GERMAN.number(12_345) == "12.345"
    distances = {
        timedelta(days=-3): "vor 3 Tagen",
        timedelta(hours=-1): "vor 1 Stunde",
        timedelta(seconds=-59): "gerade eben",
        timedelta(seconds=59): "gerade eben",
        timedelta(days=14): "in 14 Tagen",
    }
    assert {distance: GERMAN.from_now(now() + distance) for distance in distances} == distances


# --- which language


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("de", "de"),
        ("de-AT", "de"),
        ("DE-at", "de"),
        ("de-DE,de;q=0.9,en-US;q=0.8,en;q=0.7", "de"),
        ("en-GB,en;q=0.9,de;q=0.8", "en"),
        ("en;q=0.5,de;q=0.8", "de"),
        ("en,de", "en"),
        ("de,en", "de"),
        ("fr,de;q=0.1", "de"),
        (" fr , de ", "de"),
        ("", "en"),
        ("*", "en"),
        ("fr-CH, fr;q=0.9", "en"),
        ("deu", "en"),
        ("de;q=garbage", "en"),
        ("de;level=1", "en"),
        (";q=1", "en"),
        (",,,;;;===", "en"),
        ("en\0de", "en"),
    ],
)
def test_the_best_of_the_languages_that_a_browser_asks_for_is_taken(header: str, code: str) -> None:
    assert LANGUAGES.choose(header).code == code


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("de; q=0.8", "de"),  # RFC 9110, 12.4.2: white space after the `;`
        ("en;q=0.1,de;Q=0.8", "de"),  # RFC 5234, 2.3: `q` has no case
        ("de;q=0", "en"),  # RFC 9110, 12.4.2: 0 is `not acceptable`
    ],
)
def test_weights_are_read_as_the_standard_has_them(header: str, code: str) -> None:
    assert LANGUAGES.choose(header).code == code


TAGS = st.sampled_from(["de", "de-AT", "DE", "en", "en-US", "fr", "pt-BR", "*"])
WEIGHTS = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)


@given(st.lists(st.tuples(TAGS, WEIGHTS), max_size=MAX_TAGS), st.sampled_from([",", ", ", " ,  "]))
def test_no_language_that_is_here_weighs_more_than_the_one_taken(wanted: list[tuple[str, float]], comma: str) -> None:
    header = comma.join(tag if weight == 1 else f"{tag};q={weight:.3f}" for tag, weight in wanted)
    here = [(tag[:2].lower(), weight) for tag, weight in wanted if tag[:2].lower() in ("de", "en")]
    best = max((weight for _, weight in here), default=0)
    first = next((code for code, weight in here if weight == best), ENGLISH)
    assert LANGUAGES.choose(header).code == first


@given(st.text(st.characters(max_codepoint=255) | st.sampled_from("de,;q=0.1-*")) | st.text())
def test_whatever_a_header_holds_a_language_is_taken(header: str) -> None:
    assert LANGUAGES.choose(header) in LANGUAGES.all()


def test_a_header_without_end_is_looked_at_only_so_far() -> None:
    assert LANGUAGES.choose("de," * 33_000).code == "de"
    assert LANGUAGES.choose("fr," * (MAX_TAGS - 1) + "de").code == "de"
    for header in ("fr," * 33_000 + "de", "x" * 100_000, "de;q=" + "x" * 100_000, ";q=" * 33_000, "-" * 100_000):
        assert LANGUAGES.choose(header).code == "en"


# --- pages


class Words(HTMLParser):
    """What a page says: its texts, and the attributes that are read out or shown. Times stand apart."""

    APART = frozenset({"script", "style", "svg", "code", "kbd", "textarea"})
    SAID = frozenset({"alt", "aria-label", "data-label", "data-reading", "data-status", "data-words", "placeholder"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.times: list[str] = []
        self.moments: list[str] = []
        self.language: str | None = None
        self._within: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.texts += [attributes[name] or "" for name in self.SAID & attributes.keys()]
        if tag == "html":
            self.language = attributes.get("lang")
        if tag == "time":
            self.moments.append(attributes["title"] or "")
        elif "title" in attributes:
            self.texts.append(attributes["title"] or "")
        if tag in self.APART or tag == "time":
            self._within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._within and self._within[-1] == tag:
            self._within.pop()

    def handle_data(self, data: str) -> None:
        if not self._within:
            self.texts.append(" ".join(data.split()))
        elif self._within == ["time"]:
            self.times.append(data)


EMAIL = f"{uuid4().hex}@example.com"

DATA = (
    EMAIL,
    f"apps{EMAIL}",
    f"keys{EMAIL}",
    "curl",
    "Python",
    "KEYMAN_TOKEN",
    "English",
    "Deutsch",
    "sk-...1234",
    "sk-",
    "zz-label",
    "zz-provider",
    "http://127.0.0.1",
    *(f"zz-app{'x' * number}" for number in range(NAMED_USES + 2)),
    "zz-purpose",
    "zz-token",
    "ZZ_SERVICE",
    "ZZ",
    "Firefox · Ubuntu",
    *(service.name for service in SHIPPED),
    *(setting.example for service in SHIPPED for setting in service.settings),
)
"""What pages show that is in nobody's language."""


@cache
def phrases() -> tuple[re.Pattern[str], ...]:
    """Whatever German there is, the longest first; around `code` and around a time, which is an element, in pieces."""
    wholes = {piece.strip() for text in german().values() for piece in re.split("`[^`]*`", text)} | {"keyman"}
    pieces = wholes | {piece.strip() for text in wholes for piece in text.split("%(when)s")}
    escaped = (re.escape(piece) for piece in sorted(pieces - {""}, key=len, reverse=True))
    # Data, a date, a number, a request id, what the script fills in, a time that is read out, or a line that is named.
    value = r"(?:§(?:, §)*|\\d\\d\\.\\d\\d\\.\\d{4}|\\d+|Zeile \\d+|[0-9a-f]{32}|\\{\\w+\\}|gerade eben)"
    filled = (re.sub(r"%\\\(\w+\\\)s|\\\{\w+\\\}", value, piece) for piece in escaped)
    return tuple(re.compile(rf"(?<![\w-]){piece}(?![\w-])") for piece in filled)


def unexplained(text: str) -> str:
    """What is left of a text without the data and the sentences of the catalogue."""
    for value in sorted(DATA, key=len, reverse=True):
        text = text.replace(value, "§")
    for phrase in phrases():
        text = phrase.sub("", text)
    return text if re.search(r"[^\W\d_]", text) else ""


BROWSER = {
    "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
    "Accept-Language": "de-AT,de;q=0.9,en;q=0.5",
    "User-Agent": "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
}
APPLICATIONS = "/settings/applications"
KEYS, TOKENS, ACTIVITY, ACCOUNT = (f"/settings/{name}" for name in ("api-keys", "access-tokens", "activity", "account"))


@dataclass
class Walk:
    """Somebody with a German browser, and every page that was seen on the way, by what was asked for."""

    plane: ApiPlane
    client: httpx.AsyncClient
    seen: list[tuple[str, httpx.Response]] = field(default_factory=list)

    async def get(self, path: str, status: int = 200, **headers: str) -> None:
        answer = await self.client.get(path, headers=headers)
        assert answer.status_code == status, path
        self.seen.append((f"GET {path} {headers}", answer))

    async def post(self, path: str, status: int, **form: str | list[str]) -> httpx.Response:
        content = urlencode(form, doseq=True)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await self.client.post(path, content=content, headers=headers)
        assert answer.status_code == status, f"{path} {content}"
        if status != 303:
            self.seen.append((f"POST {path} {content[:200]}", answer))
        return answer


async def see_the_door(walk: Walk) -> None:
    """What is there before anybody is signed in; ends with somebody who is."""
    for path in ("/sign-in", "/sign-up", "/problems", *(f"/problems/{slug}" for slug in KINDS)):
        await walk.get(path)
    pages = state_of(walk.plane).pages
    usual = pages._settings
    pages._settings = replace(usual, passwords_on=False)
    await walk.get("/sign-in")
    pages._settings = usual
    await walk.get("/sign-in", Cookie="keyman_session_out=1")
    await walk.get("/nowhere", 404)
    await walk.get("/problems/nothing", 404)
    await walk.get(KEYS, 401, **{"HX-Request": "true"})
    await walk.get(KEYS, 401, Cookie="keyman_session=ended")
    for authorization in ("Basic eA==", "Bearer km_nothing"):
        await walk.get(KEYS, 401, Authorization=authorization)
    await walk.post("/sign-in", 422)
    await walk.post("/sign-in", 401, email=EMAIL, password="wrong")
    await walk.post("/sign-in", 422, email="nothing", password="x" * 257)
    await walk.post("/sign-in", 400, **{f"field{number}": "" for number in range(50)})
    await walk.post("/sign-in", 413, password="x" * 70_000)
    await walk.post("/sign-up", 422, email=f"{'x' * 60}@{'x' * 200}.example", password="short")
    in_a_dialog = {"HX-Request": "true"}
    for method, path, headers in (
        ("POST", "/sign-in", {"Sec-Fetch-Site": "cross-site"}),
        ("POST", "/sign-in", {}),
        ("DELETE", "/sign-in", {}),
        ("POST", KEYS, in_a_dialog),
    ):
        answer = await walk.client.request(method, path, headers=headers, json={})
        assert answer.status_code in (401, 403, 405, 415)
        walk.seen.append((f"{method} {path} {headers}", answer))
    await walk.post("/sign-up", 303, email=EMAIL, password=PASSWORD)
    another = Walk(walk.plane, walk.plane.client(headers=BROWSER), walk.seen)
    await another.post("/sign-up", 409, email=EMAIL, password=PASSWORD)


async def see_the_keys(walk: Walk) -> None:
    await walk.get(KEYS)
    ids = [(await store(walk.client, name="zz-label"))["id"] for _ in range(5)]
    await let_time_pass(walk.plane, ids)
    for query in ("", "?service=OPENAI&q=zz", "?q=nothing", f"?cursor={Cursor(ids[-1])}"):
        await walk.get(f"{KEYS}{query}")
    latest = (await store(walk.client, name="zz-label"))["id"]
    assert (await walk.client.patch(f"/api/keys/{ids[1]}", json={"default": True})).status_code == 200
    for query in ("?status=active", "?status=disabled"):
        await walk.get(f"{KEYS}{query}")
    sorted_list = await walk.client.get(f"{KEYS}?sort=name")
    (later,) = re.findall(r'href="([^"]*)" rel="next"', sorted_list.text)
    walk.seen.append(("sorted", sorted_list))
    await walk.get(html.unescape(later))
    several = "&".join(f"id={key_id}" for key_id in ids[1:4])
    for action, done in (("pause", "paused"), ("resume", "resumed"), ("delete", "deleted")):
        await walk.get(f"{KEYS}/selected?{several}&do={action}")
        await walk.get(f"{KEYS}?done={done}&saved={ids[0]},{ids[1]}")
        await walk.post(f"{KEYS}/selected", 303 if action == "delete" else 409, ids="999999999", do=action)
    for done in ("created", "changed", "paused", "resumed", "deleted", "default", "no-default"):
        await walk.get(f"{KEYS}?done={done}&saved={ids[0]}")
    session = f"keyman_session={walk.client.cookies['keyman_session']}; keyman_session_display=..off"
    await walk.get(f"{KEYS}?done=paused&saved={ids[0]}", Cookie=session)
    await walk.get(f"{KEYS}/new")
    await walk.post(KEYS, 422)
    await walk.get(f"{KEYS}/new?lost=1")
    await see_several_keys(walk)
    await walk.post(KEYS, 422, service="OPENAI", api_key="hq2v9mXbT0c7eUKwN4Rd1234")
    await walk.get(f"{KEYS}?done=created&saved={ids[0]}&peeled=1")
    await walk.get(f"{KEYS}?done=changed&saved={latest}&unending=1")
    await walk.post(KEYS, 422, service="GROQ", api_key="sk-ant-api03-hq2v9mXbT0c7eUKwN4Rd")
    await walk.post(KEYS, 422, service="OPENAI", api_key="sk-...1234")
    await walk.post(KEYS, 422, service="OPENAI", api_key="sk-1234 5678", name="\u202e")
    await walk.post(KEYS, 422, service="NOBODY", api_key="short", expires_at="2001-01-01")
    await walk.post(KEYS, 422, service="nobody", api_key="x" * 600, name="x" * 101, expires_at="soon")
    for key_id in ids:
        await walk.get(f"{KEYS}/{key_id}")
        await walk.get(f"{KEYS}/{key_id}/edit")
        await walk.get(f"{KEYS}/{key_id}/pause")
        for aim in ("replace", "extend"):
            await walk.get(f"{KEYS}/{key_id}/edit?for={aim}")
            await walk.post(f"{KEYS}/{key_id}/edit", 422, expires_at="", shown_expires_at="", **{"for": aim})
        await walk.get(f"{KEYS}/{key_id}/default")
        await walk.get(f"{KEYS}/{key_id}/delete")
    await let_applications_use(walk.plane, ids[3])
    await walk.get(KEYS)
    await walk.get(f"{KEYS}/{ids[3]}")
    counting.MAX_COUNTED, usual = 1, counting.MAX_COUNTED
    await walk.get(ACTIVITY)
    counting.MAX_COUNTED = usual
    await walk.client.patch(f"/api/keys/{ids[3]}", json={"name": "zz-label"})
    await walk.get(f"{KEYS}/{ids[3]}")
    await walk.get(f"{KEYS}/{ids[3]}/delete")
    await walk.post(f"{KEYS}/{ids[3]}/pause", 422)
    await walk.post(f"{KEYS}/{ids[3]}/pause", 412, paused="true", etag='"another"')
    await walk.post(f"{KEYS}/{ids[0]}/edit", 412, etag='"another"', name="zz-label")
    await walk.post(f"{KEYS}/{ids[0]}/edit", 422, api_key=f"sk-...{OPENAI_KEY[-4:]}")
    await walk.get(f"{KEYS}/{ids[-1] + 999_999}/edit", 404)


async def see_several_keys(walk: Walk) -> None:
    several = f"{KEYS}/several"
    await walk.get(several)
    await walk.post(several, 422, text="")
    await walk.post(several, 422, text="A=" + "x" * 600_000)
    many = "\n".join(f"zz-several-{number:03}" for number in range(51))
    await walk.post(several, 200, text=f"{many}\nZZ=")
    await walk.post(several, 422, text=OPENAI_KEY, trace="1  another")
    one = {"text": OPENAI_KEY, "trace": f"1  ...{OPENAI_KEY[-4:]}", "service-0": "OPENAI"}
    await walk.post(several, 422, **one)
    await walk.post(several, 200, **one, use="0", attempt="zz")
    traces = [one["trace"], f"2{one['trace'][1:]}"]
    two = {"service-0": "OPENAI", "service-1": "MISTRAL", "label-1": "\u202e", "text": f"{OPENAI_KEY}\n{OPENAI_KEY}"}
    await walk.post(several, 200, **two, trace=traces, use=["0", "1"])
    await walk.post(several, 200, text=f"{OPENAI_KEY}\n{OPENAI_KEY}")
    other = {"text": f"sk-ant-{OPENAI_KEY[3:]}", "trace": f"1  sk-ant-...{OPENAI_KEY[-4:]}", "service-0": "OPENAI"}
    page = await walk.post(several, 200, **other, use="0")
    assert "sieht nach einem Schlüssel von Anthropic aus, nicht von OpenAI" in page.text


async def let_time_pass(plane: ApiPlane, ids: list[int]) -> None:
    """One key of each status, one used and one that ends soon; and more than one page of them."""
    moment = now()
    long_ago = moment - timedelta(days=3, minutes=5)
    states: tuple[dict[str, object], ...] = (
        {"expires_at": long_ago},
        {"disabled": True, "last_used_at": long_ago, "last_used_by": "zz-app"},
        {"undecryptable": True, "last_used_at": moment},
        {"expires_at": moment + timedelta(days=3)},
        {"expires_at": moment + timedelta(days=365), "service": "ZZ_SERVICE"},
    )
    async with plane.database.write(Unchecked.OPERATOR) as connection:
        for key_id, state in zip(ids, states, strict=True):
            changed = {"created_at": long_ago, "updated_at": long_ago, **state}
            await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(changed))
        row = (await connection.execute(select(api_keys).where(api_keys.c.id == ids[0]))).one()._asdict()
        del row["id"]
        await connection.execute(insert(api_keys), [{**row, "value_uuid": uuid4()} for _ in range(50)])


async def let_applications_use(plane: ApiPlane, key_id: int) -> None:
    """More of them than are named got the key, and then got none, for every reason that there is. One had left it."""
    names = [f"zz-app{'x' * number}" for number in range(NAMED_USES + 2)]
    asked: list[tuple[str, Action, str | None]] = [(name, Action.KEY_RESOLVE, None) for name in names]
    asked += [(names[0], Action.KEY_RESOLVE_REFUSED, reason) for reason in REASONS]
    async with plane.database.write(Unchecked.OPERATOR) as connection:
        theirs = await connection.execute(select(api_keys.c.user_id).where(api_keys.c.id == key_id))
        owner = theirs.scalar_one()
        about = {"user_id": owner, "key_id": key_id, "service": "OPENAI", "purpose": "zz-purpose"}
        for name, action, reason in asked:
            row = entry(action, application=name, reason=reason, **about)
            await connection.execute(insert(audit_log).values(row))
        created = (audit_log.c.key_id == key_id) & (audit_log.c.action == Action.KEY_CREATE)
        await connection.execute(update(audit_log).where(created).values(application=names[0]))


async def see_the_tokens(walk: Walk) -> None:
    await walk.get(TOKENS)
    await walk.get(f"{TOKENS}/new")
    await walk.post(TOKENS, 422, scopes="keys:read")
    await walk.post(TOKENS, 422, name="zz-token", scopes="keys:read", expires_at="2001-01-01")
    page = await walk.post(TOKENS, 200, name="zz-token", scopes="keys:write", expires_at="2999-01-01")
    found = re.search(r"km_\w{36}", page.text)
    assert found
    await store(walk.plane.bearer(found[0]))
    (made,) = (await walk.client.get("/api/tokens")).json()
    for path in (TOKENS, f"{TOKENS}?done=revoked", f"{TOKENS}/{made['id']}/revoke"):
        await walk.get(path)
    await walk.get(f"{TOKENS}/{made['id'] + 999_999}/revoke", 404)


async def see_the_account(walk: Walk) -> None:
    for query in ("", "?kind=keys-used&period=week", "?kind=sign-ins&period=day"):  # the last one finds nothing
        await walk.get(f"{ACTIVITY}{query}")
    await log_in(walk.plane, EMAIL)  # a session of a device that nobody knows
    for query in ("", "?done=password", "?done=session", "?done=sessions", "?done=display"):
        await walk.get(f"{ACCOUNT}{query}")
    for cookie in ("", "keyman_session_display=..off"):
        session = f"keyman_session={walk.client.cookies['keyman_session']}; {cookie}"
        await walk.get("/settings/shortcuts", Cookie=session)
    await walk.post(f"{ACCOUNT}", 422)
    await walk.post(f"{ACCOUNT}", 422, current_password=PASSWORD, new_password="short")
    await walk.post(f"{ACCOUNT}", 422, current_password="wrong", new_password=PASSWORD)
    await walk.get(f"{ACCOUNT}/delete")
    await walk.post(f"{ACCOUNT}/delete", 422)
    await walk.post(f"{ACCOUNT}/delete", 403, current_password="wrong")
    await walk.get("/account-deleted")
    with_identity = Walk(walk.plane, walk.plane.client(headers=BROWSER), walk.seen)
    await with_identity.post("/sign-up", 303, email=f"zz{EMAIL}", password=PASSWORD)
    without = {"email": None, "email_key": None, "password_hash": None}
    async with walk.plane.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(users).where(users.c.email == f"zz{EMAIL}").values(without))
    await with_identity.get(ACCOUNT)
    await with_identity.get(f"{ACCOUNT}/delete")


async def see_the_portal(walk: Walk) -> None:
    """What somebody sees whom an application sends."""
    users = Users(return_urls=(ReturnUrl("https://zz.example/"),))
    token = (await applications.create(walk.plane.database, ApplicationName("zz-app"), ["OPENAI"], users)).token
    shown = Credentials(token.reveal(), None, "-", None)
    application = await ApplicationProof().verify(walk.plane.database, token.reveal(), shown)
    wanted = NewLink(Subject("zz-label"))
    path = (await create_link(walk.plane.database, application, wanted, "")).url
    await walk.get(path)
    sent = Walk(walk.plane, walk.plane.client(headers=BROWSER), walk.seen)
    arrived = await sent.post(path, 303)
    sent.client.headers["Cookie"] = arrived.headers["set-cookie"].partition(";")[0]
    for page in (KEYS, ACTIVITY, "/settings/shortcuts"):
        await sent.get(page)
    await sent.get(ACCOUNT, 403)
    await sent.get(path, 404)
    await sent.get("/portal")
    await applications.revoke(walk.plane.database, ApplicationName("zz-app"))
    await sent.get(KEYS, 401)


async def see_the_provider(walk: Walk, forger: Forger) -> None:
    """The way of somebody who signs in with an identity provider, to an account with the same address."""
    await walk.get("/sign-in")
    await walk.get("/auth/oidc/callback?state=nobodys&code=any", 400)
    forger.claims = {"email": EMAIL, "email_verified": True}
    away = await walk.client.get("/auth/oidc/start")
    back = await walk.client.get(forger.log_in(away.headers["location"]))
    choice = back.headers["location"]
    await walk.get(choice)
    state = choice.partition("=")[2]
    await walk.post("/auth/oidc/link", 422, visit=state, password="wrong")
    await walk.post("/auth/oidc/continue", 303, visit=state)
    connected = f"{ACCOUNT}/sign-ins"
    for path in (
        ACCOUNT,
        f"{ACCOUNT}?done=first-password",
        connected,
        f"{connected}?done=linked",
        f"{connected}?done=unlinked",
        f"{connected}/1/unlink",
    ):
        await walk.get(path)
    again = await walk.post(f"{ACCOUNT}/presence", 303, next=connected)
    await walk.client.get(forger.log_in(again.headers["location"], "code-2"))
    await walk.get(connected)
    await walk.get(ACCOUNT)
    await walk.post(f"{connected}/1/unlink", 409)


async def see_the_applications(walk: Walk, database: Database) -> None:
    await walk.post("/sign-up", 303, email=f"apps{EMAIL}", password=PASSWORD)
    await walk.get(APPLICATIONS)
    await applications.create(database, ApplicationName("zz-app"), ["OPENAI", "ZZ_SERVICE"])
    await database.close()
    await walk.get(APPLICATIONS)
    for change in ("block", "unblock"):
        await walk.post(f"{APPLICATIONS}/1/{change}", 303, a="b")
        await walk.get(f"{APPLICATIONS}?done={change}ed&saved=1")
        await walk.post(f"{APPLICATIONS}/99/{change}", 404, a="b")
        if change == "block":
            await walk.get(APPLICATIONS)
    await walk.get(f"{ACTIVITY}?kind=applications")


async def see_the_gateway(walk: Walk, database: Database) -> None:
    """Lines that use a key, and what is said of live checks. The gateway is away."""
    await walk.post("/sign-up", 303, email=f"keys{EMAIL}", password=PASSWORD)
    key = (await store(walk.client, name="zz-label"))["id"]
    await walk.get(f"{KEYS}/{(await store(walk.client, service='AZURE_OPENAI'))['id']}/use")
    for _ in ("no gateway", "too many"):
        done = await walk.post(f"{KEYS}/{key}/check", 303, view="")
        await walk.get(done.headers["location"])
    await walk.get(f"{KEYS}?done=checked")
    for verdict in Verdict:
        known = {"check_verdict": verdict.value, "checked_at": now(), "check_detail": SETTING, "checked_by": "use"}
        async with database.write(Unchecked.OPERATOR) as connection:
            await connection.execute(update(api_keys).where(api_keys.c.id == key).values(**known, disabled=True))
        await walk.get(KEYS)
    await walk.get(f"{KEYS}/{key}/use")
    await database.close()


@pytest.fixture(scope="module")
async def walk(
    sqlite_plane: ApiPlane,
    migrated_sqlite: Path,
    tmp_path_factory: pytest.TempPathFactory,
    provisioned: Vault,
    quick_passwords: PasswordHasher,
) -> Walk:
    walked = Walk(sqlite_plane, sqlite_plane.client(headers=BROWSER))
    await see_the_door(walked)
    await see_the_keys(walked)
    await see_the_tokens(walked)
    await see_the_account(walked)
    await see_the_portal(walked)
    database, forger = copied(migrated_sqlite, tmp_path_factory.mktemp("provider") / "keyman.db"), Forger()
    async with faulty_server(forger) as server:
        forger.address = server.address
        oidc = OidcSettings(server.address, forger.client_id, shown_name="zz-provider")
        more: dict[str, Any] = {
            "oidc": oidc,
            "checks": CheckSettings("http://127.0.0.1:1", Secret("of-a-gateway-that-is-away")),
            "gateway_public_url": "https://zz.example",
        }
        async with plane_at(database, provisioned.settings, Passwords(quick_passwords), **more) as plane:
            await plane.user(EMAIL)
            await see_the_provider(Walk(sqlite_plane, plane.client(headers=BROWSER), walked.seen), forger)
            newcomer = Walk(sqlite_plane, plane.client(headers=BROWSER), walked.seen)
            await see_the_applications(newcomer, Database(database))
            await see_the_gateway(Walk(sqlite_plane, plane.client(headers=BROWSER), walked.seen), Database(database))
    return walked


async def test_every_page_says_that_it_is_german(walk: Walk) -> None:
    assert len(walk.seen) > 60
    for name, page in walk.seen:
        assert page.headers["content-type"] == "text/html; charset=utf-8", name
        assert page.headers["content-language"] == "de", name
        assert Words(page.text).language == "de", name


async def test_no_page_holds_a_word_that_the_catalogue_does_not_have(walk: Walk) -> None:
    """Neither a sentence that is not translated nor one that stands in a template, a script or the code by itself."""
    left = {(text, name) for name, page in walk.seen for text in Words(page.text).texts if unexplained(text)}
    assert left == set()


async def test_no_sentence_of_the_source_is_left_on_a_page(walk: Walk) -> None:
    english = {source for source in german() if source not in THE_SAME}
    for name, page in walk.seen:
        words = Words(page.text)
        assert english & set(words.texts) == set(), name
        text = " ".join(words.texts)
        assert [source for source in english if " " in source and source in text] == [], name


async def test_the_walk_meets_every_sentence_of_the_templates(walk: Walk) -> None:
    """So that a new page, or a new part of one, is looked at too; sentences with values are matched above."""
    met = " ".join(html.unescape(page.text) for _, page in walk.seen)
    unmet = {text for text in of_the_templates() if not placeholders(text) and german()[text] not in met}
    assert unmet == set()


async def test_what_is_wrong_with_a_field_makes_a_sentence_with_its_label(walk: Walk) -> None:
    assert {
        "API-Schlüssel fehlt.",
        "API-Schlüssel muss 8 bis 8.192 Zeichen lang sein.",
        "API-Schlüssel sieht nach einem Schlüssel von Anthropic aus, nicht von Groq: Wählen Sie stattdessen Anthropic "
        "als Dienst.",
        "Ablaufdatum muss ein Datum sein, etwa 2030-01-31.",
        "Ablaufdatum muss in der Zukunft liegen.",
        "Aktuelles Passwort stimmt nicht.",
        "Bezeichnung darf höchstens 100 Zeichen lang sein.",
        "Dienst steht nicht im Katalog; GET /api/services führt alle Dienste auf.",
        "E-Mail-Adresse muss eine gültige Adresse sein, etwa ada@example.com.",
        "Neues Passwort muss 10 bis 256 Zeichen lang sein.",
    } <= {text for _, page in walk.seen for text in Words(page.text).texts}


async def test_times_on_pages_are_german(walk: Walk) -> None:
    words = [Words(page.text) for _, page in walk.seen]
    times = {time for each in words for time in each.times}
    assert {"vor 3 Tagen", "in 3 Tagen", "gerade eben"} <= times
    unit = "Sekunde|Minute|Stunde|Tag|Woche|Monat|Jahr"
    assert [time for time in times if not re.fullmatch(rf"gerade eben|(vor|in) [\d.]+ ({unit})(n|en)?", time)] == []
    moments = {moment for each in words for moment in each.moments}
    month = "|".join(Locale("de").months["format"]["wide"].values())
    assert moments
    assert [moment for moment in moments if not re.fullmatch(rf"\d+\. ({month}) \d{{4}}, [\d:]+ UTC", moment)] == []


async def test_a_token_without_scopes_is_refused_in_german(walk: Walk) -> None:
    form = {"name": "zz-token", "scopes": []}
    page = await walk.client.post(TOKENS, data=form)
    assert page.status_code == 422
    assert [text for text in Words(page.text).texts if unexplained(text)] == []


async def test_a_header_of_30_kilobytes_is_answered(sqlite_plane: ApiPlane) -> None:
    for header, code in ((b"de," * 10_000, b"de"), (b"\xff" * 30_000, b"en"), (b"", b"en")):
        headers = [(b"accept", b"text/html"), (b"accept-language", header)]
        answer = await sqlite_plane.wire("GET", b"/sign-in", headers)
        assert answer.status_code == 200
        assert answer.headers["content-language"].encode() == code


async def test_english_is_the_default_language(sqlite_plane: ApiPlane) -> None:
    visitor = sqlite_plane.client(headers={"Accept": "text/html"})
    for headers in ({}, {"Accept-Language": "fr"}, {"Accept-Language": "en-GB,de;q=0.9"}):
        page = await visitor.get("/sign-in", headers=headers)
        assert page.headers["content-language"] == Words(page.text).language == "en"
        assert "Sign in" in Words(page.text).texts
        assert {"Sign in", "Password", "New here?"} <= {text for text in Words(page.text).texts if unexplained(text)}


@pytest.mark.parametrize(
    ("method", "path", "accept"),
    [
        ("GET", "/api/keys", "text/html"),
        ("GET", "/api/nothing", "text/html"),
        ("POST", "/api/auth/login", "text/html"),
        ("POST", "/api/auth/signup", "application/json"),
        ("DELETE", "/api/keys", "*/*"),
        ("GET", "/nothing", "*/*"),
        ("POST", "/sign-in", "application/json"),
        ("GET", KEYS, "*/*"),
    ],
)
async def test_json_is_english_whatever_is_asked_for(
    sqlite_plane: ApiPlane, method: str, path: str, accept: str
) -> None:
    client = sqlite_plane.client(headers={"Accept": accept})
    plain = await client.request(method, path, json={})
    asked = await client.request(method, path, json={}, headers={"Accept-Language": "de"})
    assert plain.status_code >= 400
    assert plain.headers["content-type"] == "application/problem+json"
    assert "content-language" not in plain.headers
    assert same_but_for_the_request_id(plain, asked)
    assert not {plain.json()["title"], plain.json()["detail"]} & set(german().values())
