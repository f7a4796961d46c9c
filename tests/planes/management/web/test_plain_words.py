"""`keyman.planes.management.web.words`: what pages say of what does not work, and who keeps the frame."""

from __future__ import annotations

import re

import pytest

from keyman.errors import (
    DatabaseUnavailable,
    NotFound,
    Overloaded,
    Problem,
    VaultReason,
    VaultUnavailable,
)
from keyman.planes.management.web.activity import REASONS
from keyman.planes.management.web.words import NOT_NOW, in_plain_words
from keyman.storage.faults import CommitLost
from tests.planes.management.api.harness import ApiPlane
from tests.planes.management.web.moves import ACTIVITY, KEYS, TOKENS

pytestmark = pytest.mark.anyio

FOR_OPERATORS = re.compile(r"\b(Vault|vault|database|commit|Idempotency|policy|unseal)\b")
BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
PARTS = [*(VaultUnavailable(reason) for reason in VaultReason), DatabaseUnavailable(), CommitLost(), Overloaded()]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("problem", PARTS, ids=str)
def test_a_part_that_does_not_work_is_told_without_the_words_of_operators(problem: Problem, method: str) -> None:
    told = in_plain_words(problem, method)
    assert told.title == NOT_NOW
    assert not FOR_OPERATORS.search(told.detail)
    assert "We " in told.detail


def test_who_reads_a_page_is_not_told_of_storing() -> None:
    assert "stored" not in in_plain_words(DatabaseUnavailable(), "GET").detail
    assert "Nothing was stored." in in_plain_words(DatabaseUnavailable(), "POST").detail
    assert "Nothing was stored." not in in_plain_words(CommitLost(), "POST").detail  # nobody knows


def test_every_other_problem_keeps_its_words() -> None:
    assert in_plain_words(NotFound("It is gone."), "POST") == (NotFound.title, "It is gone.")


def test_activity_does_not_speak_of_vault() -> None:
    assert not [words for words in REASONS.values() if FOR_OPERATORS.search(words)]


@pytest.mark.parametrize("path", ["/settings/nothing", "/nothing", f"{KEYS}/999999999/edit", f"{TOKENS}/x/revoke"])
async def test_what_is_not_there_keeps_the_frame_for_a_signed_in_person(shared: ApiPlane, path: str) -> None:
    ada = await shared.user()
    for client, has_frame in ((ada, True), (shared.client(), False)):
        page = await client.get(path, headers=BROWSER)
        assert page.status_code in ((404,) if has_frame else (404, 401))
        assert (f'href="{ACTIVITY}"' in page.text) == has_frame
        assert ('action="/sign-out"' in page.text) == has_frame
