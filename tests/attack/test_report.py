"""The judge of the attack itself: it sees each sort of fault, and takes nothing harmless for one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.attack.generator import Attempt, Generator, Known
from tests.attack.report import Report

ATTEMPT = Attempt("plausible", b"GET / HTTP/1.1\r\n\r\n", "c4n4ry1", "pl41n1")
FOREIGN = ATTEMPT._replace(must_fail=True)


def answer(status: str, body: str = "", **headers: str) -> bytes:
    lines = "".join(f"\r\n{name.replace('_', '-')}: {value}" for name, value in headers.items())
    return f"HTTP/1.1 {status}{lines}\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("attempt", "received", "sort"),
    [
        (ATTEMPT, None, "no answer in 15 s"),
        (ATTEMPT, answer("500 Oops"), "status 500"),
        (ATTEMPT, answer("503 No", '{"type":"/problems/database-unavailable"}', retry_after="5"), "status 503"),
        (ATTEMPT, answer("503 No", '{"type":"/problems/overloaded"}'), "a limit without Retry-After"),
        (ATTEMPT, answer("429 No", '{"type":"/problems/rate-limited"}'), "a limit without Retry-After"),
        (ATTEMPT, answer("200 OK", "c4n4ry1"), "a secret in an answer"),
        (ATTEMPT, answer("404 No", x_id="c4n4ry1"), "a secret in an answer"),
        (ATTEMPT, answer("200 OK", "v1ct1m"), "another account's data in an answer"),
        (ATTEMPT, answer("400 No", "pl41n1"), "an error that repeats what was sent"),
        (FOREIGN, answer("201 Created"), "a request of another site was accepted"),
        (FOREIGN, answer("303 See Other"), "a request of another site was accepted"),
        (
            ATTEMPT,
            answer("204 OK", Access_Control_Allow_Credentials="true"),
            "a cookie counts for pages of other origins",
        ),
        (ATTEMPT, answer("204 OK", Access_Control_Allow_Origin="*"), "an origin that is not listed may read an answer"),
        (ATTEMPT, answer("400 No") + answer("200 OK"), "two answers to one request"),
    ],
)
def test_each_sort_of_fault_is_seen(attempt: Attempt, received: bytes | None, sort: str) -> None:
    report = Report()
    report.note(attempt, received)
    assert [*report.faults] == [sort]
    assert report.sent == 1


@pytest.mark.parametrize(
    ("attempt", "received"),
    [
        (ATTEMPT, b""),
        (ATTEMPT, answer("200 OK", "pl41n1")),
        (ATTEMPT, answer("422 No", "pl41n1", content_type="text/html")),
        (ATTEMPT, answer("503 No", '{"type":"/problems/overloaded"}', retry_after="2")),
        (ATTEMPT, answer("503 No", '{"status":"degraded","checks":{}}')),
        (ATTEMPT, answer("429 No", "<p>Wait</p>", content_type="text/html", retry_after="2")),
        (ATTEMPT._replace(is_shared=True), answer("200 OK", access_control_allow_origin="https://app.example.com")),
        (ATTEMPT, answer("100 Continue") + answer("200 OK")),
        (FOREIGN, answer("403 No")),
    ],
)
def test_nothing_harmless_is_a_fault(attempt: Attempt, received: bytes) -> None:
    report = Report()
    report.note(attempt, received)
    assert report.faults == {}
    assert report.limited == (b"503" in received or b"429" in received)


def test_the_same_seed_draws_the_same_requests() -> None:
    known = Known(["km_" + "a" * 36], ["cookie"], [1])
    document: dict[str, Any] = {"paths": {"/api/keys": {"get": {}, "post": {}}}}
    one, same, other = (Generator(document, known, seed, [("POST", "/sign-in")]) for seed in (1, 1, 2))
    drawn = [one.draw() for _ in range(500)]
    assert drawn == [same.draw() for _ in range(500)]
    assert drawn != [other.draw() for _ in range(500)]
    assert len({attempt.kind for attempt in drawn}) >= 12
