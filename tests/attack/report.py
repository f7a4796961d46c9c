"""Judges what came back, and counts it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from tests.attack.generator import VICTIM, Attempt

HANG = 15.0
"""Seconds in which a request is answered, or its connection closed."""

EXAMPLES = 5
"""Faults of one sort that the report shows."""

ANSWER = re.compile(rb"HTTP/1\.[01] (\d{3}) ")

OVERLOADED = b'"/problems/overloaded"'
"""The type of the problem of a plane that refuses work, with a `Retry-After`. Any other 503 but the next is a fault."""

NOT_READY = b'{"status":"degraded"'
"""The answer of `/readyz` if a check took too long, as on a busy machine."""


@dataclass
class Report:
    """What came back: how often each status, the refusals to work, and the faults with examples."""

    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[str]] = field(default_factory=dict)
    limited: int = 0
    longest: float = 0.0
    seconds: float = 0.0

    @property
    def sent(self) -> int:
        return sum(self.statuses.values())

    @property
    def reached(self) -> int:
        """How many requests a handler accepted."""
        return sum(count for status, count in self.statuses.items() if status.startswith("2"))

    def add(self, other: Report) -> None:
        self.statuses += other.statuses
        self.kinds += other.kinds
        self.limited += other.limited
        self.longest = max(self.longest, other.longest)
        self.seconds += other.seconds
        for sort, examples in other.faults.items():
            self.faults.setdefault(sort, []).extend(examples)

    def note(self, attempt: Attempt, answer: bytes | None, seconds: float = 0.0) -> None:
        """Count an answer; None is a hang, and an empty one a connection that was closed."""
        self.kinds[attempt.kind] += 1
        if answer is None:
            self.statuses["no answer"] += 1
            self._fault(f"no answer in {HANG:.0f} s", attempt)
            return
        if not attempt.is_endless:
            self.longest = max(self.longest, seconds)
        while answer.startswith(b"HTTP/1.1 1"):
            answer = answer.partition(b"\r\n\r\n")[2]  # `100 Continue` is no answer
        found = ANSWER.match(answer)
        status = found[1] if found else b"closed"
        self.statuses[status.decode()] += 1
        for sort in _faults(attempt, status, answer):
            self._fault(sort, attempt, answer)
        self.limited += _is_limit(status, answer.partition(b"\r\n\r\n")[2])

    def _fault(self, sort: str, attempt: Attempt, answer: bytes = b"") -> None:
        examples = self.faults.setdefault(sort, [])
        if len(examples) < EXAMPLES:
            examples.append(f"{attempt.kind}: {attempt.raw[:600]!r} -> {answer[:600]!r}")

    def lines(self) -> list[str]:
        """Return the report for a person to read."""
        return [
            f"{self.sent} requests in {self.seconds:.0f} s: {self.sent / max(self.seconds, 0.001):.0f} a second; "
            f"the longest took {self.longest:.2f} s; {self.limited} refused by a limit",
            "statuses: " + ", ".join(f"{status} {count}" for status, count in sorted(self.statuses.items())),
            "kinds: " + ", ".join(f"{kind} {count}" for kind, count in sorted(self.kinds.items())),
            *(f"FAULT {sort}: {example}" for sort, examples in self.faults.items() for example in examples),
        ]


def _faults(attempt: Attempt, status: bytes, answer: bytes) -> list[str]:
    """Return the sorts of faults in an answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    head = head.lower()
    found = []
    if status.startswith(b"5") and not _is_limit(status, body):
        found.append(f"status {status.decode()}")
    if _is_limit(status, body) and b"\r\nretry-after: " not in head and not body.startswith(NOT_READY):
        found.append("a limit without Retry-After")
    if attempt.secret.encode() in answer:
        found.append("a secret in an answer")
    if VICTIM in answer:
        found.append("another account's data in an answer")
    if status.startswith(b"4") and b"text/html" not in head and attempt.plain.encode() in answer:
        found.append("an error that repeats what was sent")
    if attempt.must_fail and not status.startswith(b"4") and status != b"closed":
        found.append("a request of another site was accepted")
    if b"\r\naccess-control-allow-credentials:" in head:
        found.append("a cookie counts for pages of other origins")
    if not attempt.is_shared and b"\r\naccess-control-allow-origin:" in head:
        found.append("an origin that is not listed may read an answer")
    # A page may show text that looks like the head of an answer only if it was sent, and no attempt sends one.
    if b"HTTP/1.1 " in body and ANSWER.search(body):
        found.append("two answers to one request")
    return found


def _is_limit(status: bytes, body: bytes) -> bool:
    """Return True for an honest refusal to work."""
    return status == b"429" or (status == b"503" and (OVERLOADED in body or body.startswith(NOT_READY)))
