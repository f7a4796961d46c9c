"""The rules of a call, without a connection: what it sends, what an answer means, and when it is tried again.

The synchronous and the asyncio client both use this module, so that they behave in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Generic, TypeVar

import msgspec

from keyman.client.errors import BadAnswer, ClientError, DeadlineExceeded, Unreachable, kind_of
from keyman.errors import FieldError, raise_alone
from keyman.retry import parse_retry_after, pause_after
from keyman.secret import Secret

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MAX_ANSWER = 1024 * 1024
"""Bytes of an answer that are read. A page of 200 keys or entries has a tenth of that."""

UNREADABLE = (ValueError, msgspec.MsgspecError, RecursionError)
"""The exceptions of reading an answer that is malformed."""

MAX_TEXT = 300
"""Characters of a server's text that an error repeats."""


@dataclass(frozen=True)
class Call(Generic[T_co]):
    """One operation. `read` turns a 2xx answer into the result, or raises one of UNREADABLE.

    A `repeatable` call has the same effect when it is carried out twice. It is sent again when it is not known whether
    it arrived. `secrets` are the values in the request that no error may repeat.
    """

    method: str
    path: str
    read: Callable[[Answer], T_co]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = field(default=None, repr=False)
    repeatable: bool = True
    secrets: tuple[Secret, ...] = ()


@dataclass(frozen=True)
class Answer:
    """An answer of a server with its whole body, of at most MAX_ANSWER bytes. Header names are in lower case.

    `hidden` are the secrets that were sent, which no error may repeat.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)
    hidden: tuple[Secret, ...] = field(default=(), repr=False)

    @property
    def retry_after(self) -> int | None:
        return parse_retry_after(self.headers.get("retry-after"))


class Lost(Enum):
    """Why there is no answer. The value is the text of the error."""

    UNSENT = "keyman cannot be reached: no connection could be made"
    UNTRUSTED = "the server's certificate is not trusted; nothing was sent to the server"
    BROKEN = "the connection was lost before the answer was complete, or the server does not speak HTTP"
    LATE = "keyman did not answer in time"
    TOO_LARGE = "the answer is too large to be from keyman"


Outcome = Answer | Lost


class Attempts:
    """Decides how often one call is tried, and after which pause. `deadline` is a moment of `time.monotonic`."""

    def __init__(self, call: Call[object], deadline: float) -> None:
        self._repeatable = call.repeatable
        self._deadline = deadline
        self._made = 0

    def pause(self, outcome: Outcome) -> float | None:
        """Return the seconds until the next attempt, or None when this outcome is final."""
        self._made += 1
        if not self._may_recover(outcome):
            return None
        retry_after = outcome.retry_after if isinstance(outcome, Answer) else None
        return pause_after(self._made, deadline=self._deadline, retry_after=retry_after)

    def _may_recover(self, outcome: Outcome) -> bool:
        """Return whether a retry can help and does no harm.

        This is stricter than the Vault adapter, which sends every lost call again. A key must not be changed twice, so
        when the call may have been carried out, it is only sent again if it is repeatable.
        """
        if isinstance(outcome, Lost):
            return outcome is Lost.UNSENT or (outcome is Lost.BROKEN and self._repeatable)
        if outcome.status == 429 or (outcome.status == 503 and _problem(outcome).slug == "vault-unavailable"):
            return True  # certainly not carried out
        return outcome.status in (502, 503, 504) and self._repeatable


def result(call: Call[T], outcome: Outcome, *hidden: Secret) -> T:
    """Return the result of the call. Raises ClientError, which repeats neither `hidden` nor the call's secrets."""
    if isinstance(outcome, Lost):
        raise _LOST[outcome](f"{outcome.value}.")
    outcome = replace(outcome, hidden=(*hidden, *call.secrets))
    if not 200 <= outcome.status < 300:
        raise _refusal(outcome)
    try:
        return call.read(outcome)
    except UNREADABLE:
        # Without its context: the current exception may hold the answer.
        raise_alone(
            BadAnswer("the answer is not from keyman, or not one that this client can read.", status=outcome.status)
        )


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


class ProblemBody(msgspec.Struct):
    """The members of RFC 9457 that the client uses."""

    type: str = ""
    title: str = ""
    detail: str = ""
    request_id: str = ""
    errors: list[_Fault] = msgspec.field(default_factory=list)
    retry_after: int | None = None

    @property
    def slug(self) -> str | None:
        shape = re.fullmatch("/problems/([a-z-]{1,40})", self.type)
        return shape[1] if shape else None


def _problem(answer: Answer) -> ProblemBody:
    """Return the problem in the body, or an empty one: the answer of a proxy has another form."""
    try:
        return msgspec.json.decode(answer.content, type=ProblemBody)
    except UNREADABLE:
        return ProblemBody()


def _refusal(answer: Answer) -> ClientError:
    problem = _problem(answer)
    if 300 <= answer.status < 400:
        problem.detail = "the server answers with a redirect, which is not followed: use the final address"
    problem.request_id = problem.request_id or answer.headers.get("x-request-id", "")
    return to_error(answer.status, problem, answer.hidden, answer.retry_after)


def to_error(status: int, problem: ProblemBody, hidden: tuple[Secret, ...], retry_after: int | None) -> ClientError:
    """Return the error for a problem, which repeats none of `hidden`."""
    detail = _sanitize(problem.detail or problem.title, hidden) or "the server gives no reason"
    errors = tuple(FieldError(_sanitize(f.field, hidden), _sanitize(f.message, hidden)) for f in problem.errors[:50])
    if errors:
        field, message = errors[0]
        detail = _shorten(f"{detail} {field}: {message}" if field else f"{detail} {message}")
    request_id = _sanitize(problem.request_id, hidden) or None
    known = [str(status), problem.slug, request_id and f"request {request_id}"]
    return kind_of(status, problem.slug)(
        f"{detail} ({', '.join(word for word in known if word)})",
        status=status,
        slug=problem.slug,
        request_id=request_id,
        retry_after=retry_after,
        errors=errors,
    )


def _sanitize(text: str, hidden: tuple[Secret, ...]) -> str:
    """Make a server's text safe for a log: replace secrets and control characters, and shorten it."""
    for secret in hidden:
        text = text.replace(secret.reveal() or "\0", str(secret))
    text = "".join(character if character.isprintable() else " " for character in text)
    return _shorten(text)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
