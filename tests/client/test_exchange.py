"""What an answer means and when a call is retried. There is no connection, so every answer can be tested."""

from __future__ import annotations

from time import monotonic
from typing import Any

import msgspec
import pytest
from hypothesis import given as given_any
from hypothesis import strategies as st

from keyman.audit import listing
from keyman.client import calls
from keyman.client.cache import Wanted
from keyman.client.errors import BadAnswer, ClientError, InvalidRequest
from keyman.client.exchange import Answer, Attempts, Call, Lost, result
from keyman.client.shapes import AuditEntry, Key, NewKey, Resolved
from keyman.keys.schemas import KeyInfo
from keyman.retry import ATTEMPTS
from keyman.secret import Secret
from tests.client.asking import TOKEN, VALUE

RESOLVE = calls.resolve(Wanted(1, None, None), None)
ADD = calls.add_key("OPENAI", Secret(VALUE), None, None)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from([TOKEN, VALUE]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "detail", "errors", "field", "message", "key_id", "api_key"]), inner)
    ),
    max_leaves=10,
)
BODIES = st.binary(max_size=200) | JSON.map(msgspec.json.encode)
HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "etag", "link", "x-request-id", "keyman-total-count"]), st.text() | st.just(VALUE)
)


CALLS: dict[str, Call[Any]] = {
    "resolve": RESOLVE,
    "add": ADD,
    "add all": calls.add_keys([NewKey("OPENAI", VALUE), NewKey("MISTRAL", Secret(VALUE))]),
    "list": calls.list_keys(None, None, None, None, None, None),
    "count": calls.count_keys(None, None, None, None),
    "check": calls.check_key(1),
    "report": calls.report(1, "refused"),
    "delete": calls.delete_key(1),
}


@pytest.mark.parametrize("name", CALLS)
@given_any(status=st.integers(100, 599), headers=HEADERS, content=BODIES)
def test_any_answer_is_a_result_or_an_error_of_the_client(
    name: str, status: int, headers: dict[str, str], content: bytes
) -> None:
    fault = _fault_of(CALLS[name], Answer(status, headers, content))
    if fault is not None:
        assert str(fault).isprintable()
        assert TOKEN not in f"{fault} {vars(fault)}"
        assert name not in ("add", "add all") or VALUE not in f"{fault} {vars(fault)}"


def _fault_of(call: Call[Any], answer: Answer) -> ClientError | None:
    try:
        result(call, answer, Secret(TOKEN))
    except ClientError as fault:
        return fault
    return None


@given_any(
    outcomes=st.lists(
        st.sampled_from(Lost)
        | st.builds(
            Answer,
            st.sampled_from([200, 400, 401, 404, 409, 429, 500, 502, 503, 504]),
            st.fixed_dictionaries({}, optional={"retry-after": st.integers(0, 10**7).map(str)}),
            st.just(b""),
        ),
        min_size=ATTEMPTS,
        max_size=ATTEMPTS,
    ),
    seconds=st.floats(0.001, 20),
    repeatable=st.booleans(),
)
def test_no_call_is_tried_for_ever_or_past_its_deadline(
    outcomes: list[Answer | Lost], seconds: float, repeatable: bool
) -> None:
    deadline = monotonic() + seconds
    attempts = Attempts(Call("GET", "/", lambda answer: None, repeatable=repeatable), deadline)
    pauses = [attempts.pause(outcome) for outcome in outcomes]
    assert pauses[-1] is None
    for outcome, pause in zip(outcomes, pauses, strict=True):
        if pause is not None:
            assert 0 < pause <= seconds
            final = isinstance(outcome, Answer) and outcome.status < 500 and outcome.status != 429
            assert not final
            assert repeatable or outcome is Lost.UNSENT or (isinstance(outcome, Answer) and outcome.status == 429)


def test_a_key_and_an_entry_hold_what_the_server_shows() -> None:
    assert {*Key.__struct_fields__} == {*KeyInfo.__struct_fields__, "etag"}
    assert {*AuditEntry.__struct_fields__} <= {*listing.AuditEntry.__struct_fields__}


def test_what_a_call_sends_is_not_shown() -> None:
    assert VALUE not in repr(ADD)
    assert VALUE not in repr(CALLS["add all"])
    assert VALUE not in repr(NewKey("OPENAI", VALUE, name="chat"))
    assert VALUE not in repr(Answer(200, {"x": VALUE}, VALUE.encode()))
    assert VALUE not in repr(Resolved(VALUE, 1, 7, "OPENAI", None))


def entry(**changed: object) -> dict[str, object]:
    key = {"id": 1, "service": "OPENAI", "name": None, "last_4_chars": "...", "status": "active"}
    times = {"created_at": "2023-10-27T10:00:00Z", "updated_at": "2023-10-27T10:00:00Z"}
    return {"status": 201, "key": {**key, **times}, **changed}


PROBLEM = {"type": "/problems/invalid-request", "detail": f"{VALUE} and {TOKEN}", "request_id": "9f3c"}


def test_what_is_wrong_with_an_entry_repeats_no_secret() -> None:
    faults = [{"field": "api_key", "message": f"{VALUE} is short"}]
    refused = {"status": 400, "problem": {**PROBLEM, "errors": faults}}
    answer = Answer(200, {}, msgspec.json.encode([entry(), refused]))
    key, fault = result(CALLS["add all"], answer, Secret(TOKEN))
    assert (key.id, key.etag) == (1, None)
    assert isinstance(fault, InvalidRequest)
    assert (fault.status, fault.slug, fault.request_id) == (400, "invalid-request", "9f3c")
    assert fault.errors == (("api_key", "*** is short"),)
    assert not any(secret in f"{fault} {vars(fault)}" for secret in (VALUE, TOKEN))


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [entry()],
        [entry()] * 3,
        [entry(), {"status": 201}],
        [entry(), entry(status=400)],
        [entry(), entry(problem=PROBLEM)],
        [entry(), {"status": 200, "problem": PROBLEM}],
    ],
)
def test_an_answer_that_does_not_fit_the_entries_is_a_bad_one(entries: list[object]) -> None:
    with pytest.raises(BadAnswer):
        result(CALLS["add all"], Answer(200, {}, msgspec.json.encode(entries)))
