"""`keyman.secret`: only `reveal()` gives out the value."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import pprint
import traceback
from dataclasses import asdict, dataclass
from io import StringIO
from string import Formatter, Template
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from keyman.identity.tokens import Token
from keyman.providers.recognition import ProviderKey
from keyman.secret import Secret
from keyman.values import GivenPassword, NewPassword

VALUE = "sk-hq2v9mXbT0c7eUKwN4Rd1234"
KINDS = (Secret, ProviderKey, NewPassword, GivenPassword, Token)


@pytest.fixture(params=KINDS)
def secret(request: pytest.FixtureRequest) -> Secret:
    made: Secret = request.param(VALUE)
    return made


@dataclass
class Holder:
    name: str
    secret: Secret


class Wire(msgspec.Struct):
    name: str
    secret: Secret


def test_no_way_of_making_text_shows_the_value(secret: Secret) -> None:
    texts = [
        repr(secret),
        str(secret),
        ascii(secret),
        f"{secret}",
        f"{secret!r}",
        f"{secret!s:>40}",
        f"{secret:>40}",
        f"{[secret]}",
        "%s %r" % (secret, secret),  # noqa: UP031  # one of the ways
        "{} {!r} {:x^50}".format(secret, secret, secret),  # noqa: UP032  # one of the ways
        "{s._value:.0}{s}".format(s=secret),  # noqa: UP032
        Template("$s").substitute(s=secret),
        Formatter().vformat("{0}", (secret,), {}),
        pprint.pformat({"secret": [secret]}),
        repr(Holder("x", secret)),
        repr(Wire("x", secret)),
        repr({"secret": secret, "more": (secret,)}),
        str(ValueError(secret)),
        repr(ValueError("refused", secret)),
        " ".join(map(str, [secret])),
    ]
    for text in texts:
        assert VALUE not in text
        assert VALUE[4:12] not in text


def test_it_is_not_serialised_by_accident(secret: Secret) -> None:
    for serialise in (
        pickle.dumps,
        json.dumps,
        msgspec.json.encode,
        msgspec.msgpack.encode,
        msgspec.to_builtins,
        copy.copy,
        copy.deepcopy,
    ):
        for thing in (secret, [secret], {"secret": secret}):
            if serialise is copy.copy and thing is not secret:
                continue
            with pytest.raises(TypeError) as refused:
                serialise(thing)
            assert VALUE not in str(refused.value)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(secret, protocol)
    with pytest.raises(TypeError):
        asdict(Holder("x", secret))
    for encode in (msgspec.json.encode, msgspec.to_builtins):
        with pytest.raises(TypeError):
            encode(Wire("x", secret))


def test_a_careless_encoder_gets_the_mask(secret: Secret) -> None:
    assert VALUE not in json.dumps({"secret": secret}, default=str)
    assert VALUE not in json.dumps({"secret": secret}, default=repr)
    assert VALUE not in msgspec.json.encode(Wire("x", secret), enc_hook=str).decode()
    rendered: Any = structlog.processors.JSONRenderer()(None, "info", {"secret": secret})
    assert VALUE not in rendered


def test_a_log_line_and_a_traceback_do_not_show_it(secret: Secret) -> None:
    stream = StringIO()
    logger = logging.getLogger("tests.secret")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        raise RuntimeError(f"could not use {secret}", secret)
    except RuntimeError as fault:
        logger.exception("failed with %s and %r", secret, secret)
        detailed = traceback.TracebackException.from_exception(fault, capture_locals=True)
        text = "".join(detailed.format())
    finally:
        logger.removeHandler(handler)
    assert VALUE not in stream.getvalue()
    assert "secret = " in text
    # The test's own constant aside, which is a local of nobody here.
    assert VALUE not in text


def test_it_has_no_attributes_to_look_through(secret: Secret) -> None:
    with pytest.raises(TypeError):
        vars(secret)
    assert not hasattr(secret, "__dict__")
    with pytest.raises(TypeError):
        iter(secret)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        len(secret)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        secret + ""  # type: ignore[operator]


def test_it_is_no_key_of_a_table(secret: Secret) -> None:
    with pytest.raises(TypeError):
        hash(secret)
    with pytest.raises(TypeError):
        _ = {secret}


@given(one=st.text(st.characters(exclude_categories=["Cs"])), other=st.text(st.characters(exclude_categories=["Cs"])))
def test_two_are_equal_when_their_values_are(one: str, other: str) -> None:
    assert Secret(one) == Secret(one)
    assert (Secret(one) == Secret(other)) is (one == other)
    assert (Secret(one) != Secret(other)) is (one != other)
    assert Secret(one) != one
    assert Secret(one).reveal() == one


@given(value=st.text(min_size=5))
def test_whatever_the_value_its_text_is_the_same(value: str) -> None:
    assert (repr(Secret(value)), str(Secret(value))) == (repr(Secret("x")), str(Secret("x")))
