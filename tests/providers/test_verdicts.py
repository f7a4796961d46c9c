"""The table of live checks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyman.providers.services import SHIPPED
from keyman.providers.verdicts import (
    DETAILS,
    ENDPOINT,
    MOST,
    MOST_OF_CHECK,
    RESTRICTED,
    SETTING,
    Answer,
    Verdict,
    judge,
    judge_use,
    known_detail,
)

SERVICES = sorted(service.service for service in SHIPPED)

INVALID = {"error": {"code": "invalid_api_key", "message": "Incorrect API key provided"}}

TABLE: list[tuple[str, int, Any, str]] = [
    ("OPENAI", 200, {"data": []}, "accepted"),
    ("OPENAI", 401, INVALID, "refused"),
    ("OPENAI", 401, {"error": {"message": "Missing scopes: api.model.read"}}, "accepted"),
    ("OPENAI", 403, {"error": {"message": "Missing scopes: api.model.read"}}, "accepted"),
    ("OPENAI", 401, {"error": {"message": "IP not authorized"}}, "no-permission"),
    ("OPENAI", 401, {"error": {"message": "You must be member of an organization"}}, "no-permission"),
    ("OPENAI", 403, {"error": {"message": "Country, region, or territory not supported"}}, "no-permission"),
    ("OPENAI", 429, {"error": {"code": "insufficient_quota"}}, "no-credit"),
    ("OPENAI", 429, {"error": {"code": "rate_limit_exceeded"}}, "rate-limited"),
    ("ANTHROPIC", 200, {"data": []}, "accepted"),
    ("ANTHROPIC", 401, {"error": {"type": "authentication_error"}}, "refused"),
    ("ANTHROPIC", 403, {"error": {"type": "permission_error"}}, "no-permission"),
    ("ANTHROPIC", 402, {"error": {"type": "billing_error"}}, "no-credit"),
    ("ANTHROPIC", 400, {"error": {"message": "You have reached your specified API usage limits."}}, "no-credit"),
    ("ANTHROPIC", 429, {}, "rate-limited"),
    ("ANTHROPIC", 529, {}, "unreachable"),
    ("GOOGLE", 400, {"error": {"details": [{"reason": "API_KEY_INVALID"}]}}, "refused"),
    ("GOOGLE", 400, [{"error": {"details": [{"reason": "API_KEY_INVALID"}]}}], "refused"),
    ("GOOGLE", 403, {"error": {"status": "PERMISSION_DENIED"}}, "no-permission"),
    ("GOOGLE", 429, {"error": {"status": "RESOURCE_EXHAUSTED"}}, "rate-limited"),
    ("AZURE_OPENAI", 401, {}, "refused"),
    ("AZURE_OPENAI", 403, {}, "no-permission"),
    ("MISTRAL", 401, {}, "refused"),
    ("MISTRAL", 402, {}, "no-credit"),
    ("COHERE", 200, {"valid": True}, "accepted"),
    ("COHERE", 200, {"valid": False}, "refused"),
    ("COHERE", 200, {}, "unreachable"),
    ("COHERE", 401, {}, "refused"),
    ("GROQ", 401, {}, "refused"),
    ("GROQ", 403, {}, "no-permission"),
    ("XAI", 200, {"api_key_blocked": False}, "accepted"),
    ("XAI", 200, {"team_blocked": True}, "no-permission"),
    ("XAI", 200, {"api_key_disabled": True}, "no-permission"),
    ("XAI", 400, {"error": "Incorrect API key provided"}, "refused"),
    ("XAI", 401, {}, "refused"),
    ("XAI", 403, {}, "no-permission"),
    ("DEEPSEEK", 200, {"is_available": True}, "accepted"),
    ("DEEPSEEK", 200, {"is_available": False}, "no-credit"),
    ("DEEPSEEK", 401, {}, "refused"),
    ("TOGETHER", 401, {}, "refused"),
    ("OPENROUTER", 200, {"data": {"limit_remaining": None}}, "accepted"),
    ("OPENROUTER", 200, {"data": {"limit_remaining": 0}}, "no-credit"),
    ("OPENROUTER", 200, {"data": {"limit_remaining": -0.5}}, "no-credit"),
    ("OPENROUTER", 401, {}, "refused"),
    ("HUGGINGFACE", 200, {"auth": {"accessToken": {"role": "read"}}}, "accepted"),
    (
        "HUGGINGFACE",
        200,
        {"auth": {"accessToken": {"role": "fineGrained", "fineGrained": {"global": ["discussion.write"]}}}},
        "no-permission",
    ),
    (
        "HUGGINGFACE",
        200,
        {
            "auth": {
                "accessToken": {
                    "role": "fineGrained",
                    "fineGrained": {"scoped": [{"permissions": ["inference.serverless.write"]}]},
                }
            }
        },
        "accepted",
    ),
    ("HUGGINGFACE", 401, {}, "refused"),
    ("REPLICATE", 401, {}, "refused"),
    ("FIREWORKS", 401, {}, "refused"),
    ("FIREWORKS", 403, {"error": "Fire Pass keys are not authorized for this route"}, "accepted"),
    ("CEREBRAS", 401, {}, "refused"),
    ("AWS_BEDROCK", 200, {}, "accepted"),
    ("AWS_BEDROCK", 403, {"__type": "UnrecognizedClientException"}, "refused"),
    ("AWS_BEDROCK", 403, {"message": "The security token included in the request is expired"}, "refused"),
    ("AWS_BEDROCK", 403, {"__type": "com.amazon.coral.service#ExpiredTokenException"}, "refused"),
    ("AWS_BEDROCK", 403, {"Message": "Bearer Token has expired"}, "refused"),
    ("AWS_BEDROCK", 403, {"message": "not authorized to perform"}, "no-permission"),
]

QUOTED: list[tuple[str, int, Any, str | None]] = [
    ("OPENAI", 403, {"error": {"message": "No access to model Missing scopes: api.model.read"}}, "no-permission"),
    ("ANTHROPIC", 400, {"error": {"message": "messages.0: unknown role 'credit balance'"}}, None),
    ("XAI", 400, {"error": "The model Incorrect API key provided does not exist"}, None),
    ("XAI", 400, {"error": "No such tool", "tool": "Incorrect API key provided"}, None),
    ("FIREWORKS", 403, {"error": "No access to model Fire Pass is not authorized for this route"}, "no-permission"),
    ("AWS_BEDROCK", 403, {"message": "No access to UnrecognizedClientException"}, "no-permission"),
    ("AWS_BEDROCK", 403, {"message": "No access to model-that-has expired"}, "no-permission"),
    ("AWS_BEDROCK", 403, {"message": "x", "requested": {"__type": "ExpiredTokenException"}}, "no-permission"),
]
"""Answers that repeat what a caller sent, such as the name of a model. The caller cannot choose the verdict."""


@pytest.mark.parametrize(("service", "status", "body", "verdict"), QUOTED)
def test_words_that_a_caller_sent_decide_nothing(service: str, status: int, body: Any, verdict: str | None) -> None:
    found = judge_use(service, status, json.dumps(body).encode())
    assert (None if found is None else found.verdict) == verdict


@pytest.mark.parametrize(("service", "status", "body", "verdict"), TABLE)
def test_a_check_has_the_verdict_of_the_table(service: str, status: int, body: Any, verdict: str) -> None:
    found = judge(service, Answer(status, json.dumps(body).encode(), is_check=True))
    assert found.verdict == verdict
    assert found.detail in {*DETAILS.values(), RESTRICTED}


REFUSED_BY_401 = {service for service, status, body, verdict in TABLE if (status, verdict) == (401, "refused")} - {
    "OPENAI"
}
WORDS = (
    b"API_KEY_INVALID",
    b"invalid_api_key",
    b"expired",
    b"UnrecognizedClientException",
    b"Incorrect API key",
    b"<html>",
)
BODIES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(WORDS),
    st.sampled_from([json.dumps(body).encode() for _, _, body, _ in TABLE]),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.text(max_size=20)),
        lambda inner: st.dictionaries(st.sampled_from(["error", "code", "details", "valid", "reason"]), inner),
    ).map(lambda found: json.dumps(found).encode()),
)


def may_be_refused(service: str, status: int, body: bytes, *, is_check: bool) -> bool:
    """What the table says, in other words than the code."""
    if body.lstrip().startswith(b"<"):
        return False
    text = body.lower()
    return (
        (status == 401 and service in REFUSED_BY_401)
        or (service == "OPENAI" and status == 401 and b'"invalid_api_key"' in text)
        or (service == "GOOGLE" and status == 400 and b'"api_key_invalid"' in text)
        or (service == "COHERE" and status == 200 and is_check and b'"valid": false' in text)
        or (service == "XAI" and status == 400 and (is_check or b'"incorrect api key' in text))
        or (service == "AWS_BEDROCK" and status == 403 and (b"exception" in text or b"expired" in text))
    )


@given(st.sampled_from([*SERVICES, "OWN_SERVICE"]), st.integers(200, 599), BODIES)
def test_what_is_not_in_the_table_is_never_refused(service: str, status: int, body: bytes) -> None:
    found = judge(service, Answer(status, body, is_check=True))
    assert found.verdict is not Verdict.REFUSED or may_be_refused(service, status, body, is_check=True)
    used = judge_use(service, status, body) if status >= 400 else None
    is_refused = used is not None and used.verdict is Verdict.REFUSED
    assert not is_refused or may_be_refused(service, status, body, is_check=False)


@pytest.mark.parametrize("service", [*SERVICES, "OWN_SERVICE"])
@pytest.mark.parametrize(("status", "verdict"), [(402, "no-credit"), (403, "no-permission"), (429, "rate-limited")])
def test_other_answers_have_the_verdict_of_their_status(service: str, status: int, verdict: str) -> None:
    assert judge(service, Answer(status, b"{}", is_check=True)).verdict == verdict
    for broken in (404, 405, 418, 500, 502, 503, 529):
        assert judge(service, Answer(broken, b"{}", is_check=True)).verdict == "unreachable"


@pytest.mark.parametrize("status", [200, 400, 401])
@pytest.mark.parametrize("service", SERVICES)
def test_a_page_of_a_proxy_says_nothing(service: str, status: int) -> None:
    page = b"\n <!doctype html><title>invalid_api_key API_KEY_INVALID Incorrect API key</title>"
    assert judge(service, Answer(status, page, is_check=True)).verdict == "unreachable"


def test_only_the_beginning_of_a_body_is_judged() -> None:
    for size, is_check in ((MOST, False), (MOST_OF_CHECK, True)):
        start = b'{"error": {"code": "invalid_api_key"}, "more": "'
        whole = start + b"x" * (size - len(start) - 2) + b'"}'
        assert judge("OPENAI", Answer(401, whole, is_check=is_check)).verdict == "refused"
        assert judge("OPENAI", Answer(401, whole + b"\n", is_check=is_check)).verdict == "refused"
        longer = start + b"x" * size + b'"}'
        assert judge("OPENAI", Answer(401, longer, is_check=is_check)).verdict == "no-permission"


def test_a_token_of_hugging_face_with_many_organisations_is_judged_by_its_rights() -> None:
    token = {"role": "fineGrained", "fineGrained": {"global": ["discussion.write"]}}
    orgs = [{"type": "org", "name": f"organisation-{number}", "avatarUrl": "x" * 200} for number in range(300)]
    body = json.dumps({"orgs": orgs, "auth": {"accessToken": token}}).encode()
    assert len(body) > 64 * 1024
    assert judge("HUGGINGFACE", Answer(200, body, is_check=True)).verdict == "no-permission"


def test_a_deep_answer_is_judged() -> None:
    for depth in (400, 700, 900, 5000):
        deep = b'{"auth": {"accessToken": {"role": "fineGrained", "fineGrained": %s%s}}}' % (b"[" * depth, b"]" * depth)
        assert judge("HUGGINGFACE", Answer(200, deep, is_check=True)).verdict in ("no-permission", "accepted")


def test_only_a_sentence_of_keyman_is_shown() -> None:
    for verdict in Verdict:
        assert known_detail(verdict, RESTRICTED) == RESTRICTED
        for other in (None, "", "Call +1 555 0100 to unlock your key.", DETAILS[verdict].lower()):
            assert known_detail(verdict, other) == DETAILS[verdict]


def test_a_wrong_request_of_a_client_has_no_verdict() -> None:
    for service in SERVICES:
        for status in (400, 405, 409, 413, 415, 422):
            assert judge_use(service, status, b'{"error": "you sent something wrong"}') is None
    found = judge_use("XAI", 400, b'{"error": "Incorrect API key provided: xa***"}')
    assert found is not None
    assert found.verdict == "refused"


def test_every_sentence_fits_its_column_and_an_answer_hides_its_body() -> None:
    assert all(len(text) <= 200 for text in (*DETAILS.values(), RESTRICTED, ENDPOINT, SETTING))
    assert DETAILS.keys() == set(Verdict)
    assert "secret" not in repr(Answer(401, b"secret", is_check=True))
