"""`keyman.planes.gateway.problems`: every problem is in the form that the SDKs of providers show."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from keyman import errors
from keyman.errors import FieldError, Problem, VaultReason
from keyman.http.exchange import Exchange
from keyman.http.problems import KINDS
from keyman.planes.gateway.problems import render

STATUSES = {
    "path-not-allowed": 403,
    "provider-unreachable": 502,
    "provider-answer-refused": 502,
    "provider-redirected": 502,
    "provider-timeout": 504,
    "gateway-unavailable": 503,
    "issuer-unavailable": 503,
    "undecryptable": 409,
    "payload-too-large": 413,
    "rate-limited": 429,
}


def example(slug: str) -> Problem:
    if slug == errors.VaultUnavailable.slug:
        return errors.VaultUnavailable(VaultReason.SEALED)
    return KINDS[slug].problem("What is wrong. What to do.")


def rendered(problem: Problem) -> tuple[int, Any, Any]:
    answer = render(problem, Exchange("9f3c", None, "POST", "/openai/v1/models", {}))
    return answer.status, answer.headers, msgspec.json.decode(answer.body)


@pytest.mark.parametrize("slug", KINDS)
def test_every_problem_has_its_name_and_its_sentence_where_sdks_look_for_them(slug: str) -> None:
    problem = example(slug)
    status, headers, body = rendered(problem)
    assert status == KINDS[slug].status == STATUSES.get(slug, status)
    assert headers["keyman-error"] == slug
    assert headers["content-type"] == "application/problem+json"
    assert body["error"] == {"message": str(problem.detail), "type": slug, "code": slug}
    assert (body["type"], body["status"], body["detail"]) == (f"/problems/{slug}", status, str(problem.detail))
    assert body["request_id"] == "9f3c"


def test_the_new_problems_are_known() -> None:
    assert STATUSES.keys() <= KINDS.keys()


def test_what_is_wrong_with_a_header_is_in_the_sentence_too() -> None:
    """SDKs show nothing else."""
    _, _, body = rendered(errors.InvalidRequest.at(FieldError("Keyman-User", "must be an id")))
    assert body["error"]["message"].endswith("Keyman-User must be an id.")
    assert body["errors"] == [{"field": "Keyman-User", "message": "must be an id"}]
