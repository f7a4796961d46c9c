"""`keyman.http.problems` and `keyman.errors`: the table of errors in docs/reference/api.md, and nothing besides it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from keyman import errors
from keyman.errors import (
    VAULT_DETAILS,
    FieldError,
    InvalidRequest,
    InvalidToken,
    Problem,
    RateLimited,
    VaultReason,
    VaultUnavailable,
)
from keyman.http import problems
from tests.planes.management.api.harness import STATUSES


def every_problem(kind: type[Problem] = Problem) -> Iterator[type[Problem]]:
    """Yield each type of problem. A class without a slug of its own is a case of the one that it extends."""
    for below in kind.__subclasses__():
        if "slug" in vars(below):
            yield below
        yield from every_problem(below)


def made(kind: type[Problem]) -> Problem:
    return VaultUnavailable(VaultReason.SEALED) if kind is VaultUnavailable else kind("A detail.")


def test_the_table_of_statuses_is_the_documented_one() -> None:
    assert {slug: kind.status for slug, kind in problems.KINDS.items()} == STATUSES


def test_every_problem_has_a_place_in_the_table_and_a_title_of_its_own() -> None:
    kinds = list(every_problem())
    assert {kind.slug for kind in kinds} == STATUSES.keys()
    assert len({kind.title for kind in kinds}) == len(kinds)
    assert {kind.problem for kind in problems.KINDS.values()} == set(kinds)


@pytest.mark.parametrize("kind", list(every_problem()), ids=lambda kind: kind.slug)
def test_an_answer_is_a_whole_problem(kind: type[Problem]) -> None:
    status, headers, content = problems.answer(made(kind), "an id")
    body = json.loads(content)
    assert list(body) == ["type", "title", "status", "detail", "request_id"]
    assert body["type"] == f"/problems/{kind.slug}"
    assert body["title"] == kind.title
    assert body["status"] == status == STATUSES[kind.slug]
    assert body["request_id"] == "an id"
    assert headers["content-type"] == "application/problem+json"
    assert (headers.get("www-authenticate") == "Bearer") is (status == 401)


def test_a_refused_jwt_is_told_from_other_missing_credentials() -> None:
    headers = problems.answer(InvalidToken("A detail."), "an id").headers
    assert headers["www-authenticate"] == 'Bearer error="invalid_token"'


def test_the_fields_at_fault_are_listed_in_order() -> None:
    faults = (FieldError("b", "is bad"), FieldError("", "is unknown"), FieldError("a", "is missing"))
    body = json.loads(problems.answer(InvalidRequest.at(*faults), "x").body)
    assert body["errors"] == [{"field": field, "message": message} for field, message in faults]
    assert "3" in body["detail"]
    assert "errors" not in json.loads(problems.answer(InvalidRequest("No field."), "x").body)


@pytest.mark.parametrize(
    ("problem", "seconds"),
    [
        (RateLimited("Wait.", retry_after=7), "7"),
        (VaultUnavailable(VaultReason.QUOTA, retry_after=30), "30"),
        (VaultUnavailable(VaultReason.SEALED), "5"),
        (errors.DatabaseUnavailable(), "5"),
        (errors.Overloaded(), "2"),
        (errors.NotFound("Nothing."), None),
    ],
)
def test_what_passes_says_when_to_come_again(problem: Problem, seconds: str | None) -> None:
    assert problems.answer(problem, "x").headers.get("retry-after") == seconds


@pytest.mark.parametrize("reason", VaultReason)
def test_every_trouble_with_vault_has_its_own_words_and_says_that_nothing_was_stored(reason: VaultReason) -> None:
    assert set(VAULT_DETAILS) == set(VaultReason)
    assert len(set(VAULT_DETAILS.values())) == len(VAULT_DETAILS)
    detail = VaultUnavailable(reason).detail
    assert detail.startswith(VAULT_DETAILS[reason])
    assert detail.endswith("Nothing was stored.")
