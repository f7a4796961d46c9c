"""A call and what comes of it, without a connection: what is sent, what an answer means, when it is tried again.

Both kinds of client do their calls by this, so they cannot differ in what they promise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

import msgspec

from keyman.client.errors import BadAnswer, ClientError, DeadlineExceeded, Unreachable, kind_of
from keyman.errors import FieldError, raise_alone
from keyman.retry import parse_retry_after, pause_after
from keyman.secret import Secret

T = TypeVar("T")

MAX_ANSWER = 1024 * 1024
"""Bytes of an answer that are read: a page of 200 keys or entries has a tenth of it."""

UNREADABLE = (ValueError, msgspec.MsgspecError, RecursionError)
"""What reading an answer raises where the answer is not what it should be."""

MAX_TEXT = 300
"""Characters of a server's words that an error repeats."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One operation. `read` makes its result of a 2xx, raising one of UNREADABLE where it cannot.

    `repeatable`: to carry it out twice is as good as once, so it is sent again when nobody knows whether it arrived.
    `secrets` are what it sends that no error may repeat.
    """

    method: str
    path: str
    read: Callable[[Answer], T]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = field(default=None, repr=False)
    repeatable: bool = True
    secrets: tuple[Secret, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a server answered: a whole body, within MAX_ANSWER. Header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)

    @property
    def retry_after(self) -> int | None:
        return parse_retry_after(self.headers.get("retry-after"))


class Lost(Enum):
    """Why there is no answer; the value is a sentence for whoever reads the error."""

    UNSENT = "keyman cannot be reached: no connection could be made"
    UNTRUSTED = "the server's certificate is not to be trusted; nothing was sent to it"
    BROKEN = "the connection was lost before the answer was there, or what answers does not speak HTTP"
    LATE = "keyman did not answer in time"
    TOO_LARGE = "what answers is not keyman: the answer is too large"


Outcome = Answer | Lost


class Attempts:
    """How often, and after which pause, one call is tried. Its deadline is a moment of `time.monotonic`."""

    def __init__(self, call: Call[Any], deadline: float) -> None:
        self._repeatable = call.repeatable
        self._deadline = deadline
        self._made = 0

    def pause(self, outcome: Outcome) -> float | None:
        """Seconds until the next attempt; None when this outcome stands."""
        self._made += 1
        if not self._may_recover(outcome):
            return None
        retry_after = outcome.retry_after if isinstance(outcome, Answer) else None
        return pause_after(self._made, deadline=self._deadline, retry_after=retry_after)

    def _may_recover(self, outcome: Outcome) -> bool:
        """Return whether a retry can help and does no harm.

        This is stricter than the Vault adapter, which sends every lost call again: a change of a key must not be made
        twice, so after an answer that leaves that open, only a repeatable call is sent again.
        """
        if isinstance(outcome, Lost):
            return outcome is Lost.UNSENT or (outcome is Lost.BROKEN and self._repeatable)
        if outcome.status == 429 or (outcome.status == 503 and _problem(outcome).slug == "vault-unavailable"):
            return True  # certainly not carried out
        return outcome.status in (502, 503, 504) and self._repeatable


def result(call: Call[T], outcome: Outcome, *hidden: Secret) -> T:
    """What the call is answered with. Raises ClientError, which repeats neither `hidden` nor the call's secrets."""
    if isinstance(outcome, Lost):
        raise _LOST[outcome](f"{outcome.value}.")
    if not 200 <= outcome.status < 300:
        raise _refusal(outcome, (*hidden, *call.secrets))
    try:
        return call.read(outcome)
    except UNREADABLE:
        # Alone: the fault in hand may hold what was answered.
        raise_alone(BadAnswer("what answers is not keyman, or not as this client knows it.", status=outcome.status))


_LOST: dict[Lost, type[ClientError]] = {
    Lost.UNSENT: Unreachable,
    Lost.UNTRUSTED: Unreachable,
    Lost.BROKEN: Unreachable,
    Lost.LATE: DeadlineExceeded,
    Lost.TOO_LARGE: BadAnswer,
}


class _Fault(msgspec.Struct):
    field: str = ""
    message: str = ""


class _Problem(msgspec.Struct):
    """RFC 9457 as far as it is used."""

    type: str = ""
    title: str = ""
    detail: str = ""
    request_id: str = ""
    errors: list[_Fault] = msgspec.field(default_factory=list)

    @property
    def slug(self) -> str | None:
        shape = re.fullmatch("/problems/([a-z-]{1,40})", self.type)
        return shape[1] if shape else None


def _problem(answer: Answer) -> _Problem:
    """Empty where the body is none: a proxy on the way has words of its own."""
    try:
        return msgspec.json.decode(answer.content, type=_Problem)
    except UNREADABLE:
        return _Problem()


def _refusal(answer: Answer, hidden: tuple[Secret, ...]) -> ClientError:
    problem = _problem(answer)
    if 300 <= answer.status < 400:
        detail = "it answers with a redirect, which is not followed: use the address where it ends"
    else:
        detail = _shown(problem.detail or problem.title, hidden) or "it answers without saying why"
    request_id = _shown(problem.request_id or answer.headers.get("x-request-id", ""), hidden) or None
    known = [str(answer.status), problem.slug, request_id and f"request {request_id}"]
    return kind_of(answer.status, problem.slug)(
        f"{detail} ({', '.join(word for word in known if word)})",
        status=answer.status,
        slug=problem.slug,
        request_id=request_id,
        retry_after=answer.retry_after,
        errors=tuple(FieldError(_shown(f.field, hidden), _shown(f.message, hidden)) for f in problem.errors[:50]),
    )


def _shown(text: str, hidden: tuple[Secret, ...]) -> str:
    """A server's words, fit for a log."""
    for secret in hidden:
        text = text.replace(secret.reveal() or "\0", str(secret))
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
