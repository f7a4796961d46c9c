"""Bodies: any object becomes a struct, or a list of all its faults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyman.decoding import decode
from keyman.errors import FieldError, InvalidRequest
from keyman.identity.tokens import ScopeName
from keyman.values import Label, RequiredLabel
from tests.support.fast import examples
from tests.test_values import ANYTHING


class Model(msgspec.Struct):
    name: RequiredLabel
    count: Label | None = None
    flag: bool | msgspec.UnsetType = msgspec.UNSET
    kinds: list[ScopeName] | msgspec.UnsetType = msgspec.UNSET
    renamed: Label | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="other-name")


def faults_of(raw: object, check: Any = None) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as refused:
        decode(Model, raw, check)
    errors = refused.value.errors
    assert len({error.field for error in errors}) == len(errors)
    return {error.field: error.message for error in errors}


def test_a_right_body_becomes_the_struct() -> None:
    raw = {"name": "x", "count": None, "flag": True, "kinds": ["keys:read"], "other-name": "y"}
    assert decode(Model, raw) == Model("x", None, True, ["keys:read"], "y")  # type: ignore[arg-type,list-item]
    assert decode(Model, {"name": "x"}) == Model("x")  # type: ignore[arg-type]


def test_every_fault_of_a_body_is_reported_at_once() -> None:
    raw = {"count": 7, "flag": "yes", "kinds": ["nope"], "other-name": "\0", "canary": 1, "renamed": 2}
    faults = faults_of(raw)
    assert faults.keys() == {"name", "count", "flag", "kinds", "other-name", ""}
    assert "canary" not in str(faults)
    assert faults["name"] == "is missing"
    assert faults["flag"] == "must be true or false"


@pytest.mark.parametrize("raw", [None, True, 7, 7.5, "x", [], [{}]])
def test_a_body_is_an_object(raw: object) -> None:
    assert faults_of(raw).keys() == {""}


def test_a_check_sees_what_was_parsed_and_adds_to_the_faults() -> None:
    seen: list[Mapping[str, object]] = []

    def check(values: Mapping[str, object]) -> Iterable[FieldError]:
        seen.append(values)
        yield FieldError("count", "is not liked")

    assert faults_of({"name": "x", "flag": 7}, check).keys() == {"flag", "count"}
    assert seen == [{"name": "x"}]


@settings(max_examples=examples(200))
@given(raw=st.dictionaries(st.sampled_from(["name", "count", "flag", "kinds", "other-name", "x", "\0"]), ANYTHING))
def test_any_object_becomes_the_struct_or_a_list_of_faults(raw: dict[str, Any]) -> None:
    known = {"name", "count", "flag", "kinds", "other-name"}
    outcome = decoded(raw)
    if isinstance(outcome, InvalidRequest):
        named = {error.field for error in outcome.errors}
        assert named
        assert named <= known | {""}
        assert ("" in named) is bool(raw.keys() - known)
    else:
        assert isinstance(outcome, Model)
        assert raw.keys() <= known


def decoded(raw: object) -> object:
    """The struct, or the refusal."""
    try:
        return decode(Model, raw)
    except InvalidRequest as refused:
        return refused
