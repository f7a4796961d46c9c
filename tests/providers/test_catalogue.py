"""`keyman.providers.catalogue`: which files are accepted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyman.errors import ConfigurationError
from keyman.providers.catalogue import Catalogue
from keyman.providers.services import SHIPPED
from tests.support.fast import examples

GOOD = {"service": "ACME", "name": "Acme", "prefix": "acme-", "exclusive": ["acme-"]}


@pytest.mark.parametrize(
    "content",
    [
        [],
        [GOOD],
        {"services": [GOOD]},
        [{"service": "A", "name": "A"}],
        [GOOD, {**GOOD, "service": "ACME_2", "exclusive": []}],
    ],
)
def test_a_right_file_adds_its_services_after_the_shipped_ones(tmp_path: Path, content: object) -> None:
    path = tmp_path / "services.json"
    path.write_text(json.dumps(content))
    names = [info.service for info in Catalogue.load(path).infos()]
    assert names[: len(SHIPPED)] == [service.service for service in SHIPPED]
    entries = content["services"] if isinstance(content, dict) else content
    assert isinstance(entries, list)
    assert names[len(SHIPPED) :] == [entry["service"] for entry in entries]


CANARY = "kNrYcAnArY"


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"name": "Acme"}, "service"),
        ({"service": "ACME"}, "name"),
        ({**GOOD, "service": "acme"}, "service"),
        ({**GOOD, "service": f"1{CANARY}"}, "service"),
        ({**GOOD, "service": "A" * 65}, "service"),
        ({**GOOD, "service": ""}, "service"),
        ({**GOOD, "service": "A|B"}, "service"),
        ({**GOOD, "service": 7}, "service"),
        ({**GOOD, "name": ""}, "name"),
        ({**GOOD, "name": "x" * 101}, "name"),
        ({**GOOD, "name": None}, "name"),
        ({**GOOD, "prefix": "x"}, "prefix"),
        ({**GOOD, "prefix": f"{CANARY}{CANARY}"}, "prefix"),
        ({**GOOD, "prefix": "a b"}, "prefix"),
        ({**GOOD, "prefix": "é-"}, "prefix"),
        ({**GOOD, "exclusive": "acme-"}, "exclusive"),
        ({**GOOD, "exclusive": ["x"]}, "prefix"),
        ({**GOOD, "exclusive": [7]}, "exclusive"),
        ({**GOOD, "console_url": "http://acme.example.com"}, "console_url"),
        ({**GOOD, "console_url": f"javascript:{CANARY}"}, "console_url"),
        ({**GOOD, "credential": {}}, "known"),
        (
            {**GOOD, "prefx": "acme-"},
            "the known fields are service, name, prefix, exclusive",
        ),
        ({**GOOD, CANARY: CANARY}, "known"),
        ("ACME", ""),
        (None, ""),
        ([], ""),
    ],
)
def test_a_wrong_entry_stops_the_start_and_is_named_by_its_number(tmp_path: Path, entry: object, word: str) -> None:
    path = tmp_path / "services.json"
    path.write_text(json.dumps([GOOD, entry]))
    with pytest.raises(ConfigurationError) as refused:
        Catalogue.load(path)
    message = str(refused.value)
    assert message.startswith("KEYMAN_SERVICES_FILE has an invalid entry 2: ")
    assert word in message
    assert CANARY not in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("services.json", b""),
        ("services.json", b"{"),
        ("services.json", b"\xff\xfe"),
        ("services.json", b"[" * 100_000),
        ("services.json", b'[[services]]\nservice = "X"'),
        ("services.json", b"7"),
        ("services.json", b'{"service": "X"}'),
        ("services.json", b'{"services": {}}'),
        ("services.toml", b"[]"),
        ("services.toml", b"services = 7"),
        ("services.toml", b'[services]\nX = "y"'),
        ("services.toml", b""),
        ("services.toml", b"\xff"),
        ("services", b"service: X"),
        ("services.yaml", b"- service: X"),
    ],
)
def test_a_file_of_another_form_stops_the_start(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="KEYMAN_SERVICES_FILE"):
        Catalogue.load(path)


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.json", tmp_path):
        with pytest.raises(ConfigurationError, match="KEYMAN_SERVICES_FILE"):
            Catalogue.load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(["ACME", "acme-"]),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.sampled_from(["service", "name", "prefix", "exclusive", "services"]), children)
    ),
    max_leaves=8,
)


@settings(max_examples=examples(200))
@given(content=st.lists(JSON, max_size=3) | JSON)
def test_any_json_is_a_catalogue_or_a_sentence(tmp_path: Path, content: object) -> None:
    path = tmp_path / "services.json"
    path.write_text(json.dumps(content))
    assert loaded(path) >= len(SHIPPED)


def loaded(path: Path) -> int:
    """How many services there are, the shipped ones for a file that is refused."""
    try:
        return len(Catalogue.load(path).infos())
    except ConfigurationError as refused:
        if not str(refused).startswith("KEYMAN_SERVICES_FILE"):
            raise
        return len(SHIPPED)
