"""What the answer of a provider says of a key: the table of live checks, which also judges the answers to use.

Only what a provider says of the key itself is REFUSED: this key is not valid, now, for anybody. What is not in the
table is never REFUSED, because somebody would throw away a key that works. Sources are the documentation of the
providers and the verifiers of TruffleHog and Kingfisher.

A provider's text can repeat what a caller has sent. So a verdict depends on the status and on members of the answer
that only the provider fills, and where there is only a sentence, on how it begins.

Nothing that a provider wrote leaves this module: a verdict has one of keyman's own sentences.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Final, NamedTuple

import msgspec

MOST = 8 * 1024
"""The bytes of an answer to use that are judged, at most. An error of a provider is shorter."""

MOST_OF_CHECK = 256 * 1024
"""The same for an answer to a check. Hugging Face lists all organisations of an account and all rights of a token."""


class Verdict(StrEnum):
    """What is known of a key at its provider."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    NO_PERMISSION = "no-permission"
    NO_CREDIT = "no-credit"
    RATE_LIMITED = "rate-limited"
    UNREACHABLE = "unreachable"
    UNSUPPORTED = "unsupported"


DETAILS: Final[Mapping[Verdict, str]] = {
    Verdict.ACCEPTED: "The provider accepts this key.",
    Verdict.REFUSED: "The provider says that this key is not valid. Replace it.",
    Verdict.NO_PERMISSION: "The provider does not allow this key to do this, or does not allow it from here.",
    Verdict.NO_CREDIT: "The account behind this key has no credit.",
    Verdict.RATE_LIMITED: "The provider says that there were too many requests with this key. Try again later.",
    Verdict.UNREACHABLE: "The provider cannot be reached, or its answer says nothing about this key.",
    Verdict.UNSUPPORTED: "keyman knows no free request that shows whether a key of this provider works.",
}
"""What each verdict means, if there is nothing more to say."""

RESTRICTED = "The provider accepts this key, which is restricted: it may not do everything."
ENDPOINT = "The endpoint in the settings of this key cannot be reached. Is it right?"
SETTING = "The settings of this key lack what a check needs. Store the key again with them."


_KNOWN = frozenset({*DETAILS.values(), RESTRICTED, ENDPOINT, SETTING})


def known_detail(verdict: Verdict, stored: str | None) -> str:
    """Return the stored sentence if it is one of keyman's own, or else that of the verdict."""
    return stored if stored in _KNOWN else DETAILS[verdict]


class Judgement(NamedTuple):
    """A verdict, and one of keyman's own sentences about it."""

    verdict: Verdict
    detail: str

    @classmethod
    def of(cls, verdict: Verdict) -> Judgement:
        return cls(verdict, DETAILS[verdict])


class Answer:
    """The answer of a provider: its status, and the beginning of its body. `is_check` is False for an answer to use."""

    def __init__(self, status: int, body: bytes, *, is_check: bool) -> None:
        start = body[: MOST_OF_CHECK if is_check else MOST]
        self.status = status
        self.is_check = is_check
        # A page is one of a proxy or a portal, not of the API.
        self.is_page = start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<")
        self.json = _object(start)

    def __repr__(self) -> str:
        return f"Answer({self.status} ***)"

    def get(self, *path: str) -> object:
        """Return a member of the JSON body, or None."""
        found: object = self.json
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    @property
    def sentence(self) -> str:
        """The sentence of an error in lower case, in one of the places where providers have it, or an empty text."""
        places = (("error", "message"), ("error",), ("message",), ("Message",))
        found = (self.get(*place) for place in places)
        return next((text.lower() for text in found if isinstance(text, str)), "")


def judge(service: str, answer: Answer) -> Judgement:
    """Return the verdict on the key with which a request for this service was sent."""
    own = _OWN.get(service)
    found = None if own is None or answer.is_page else own(answer)
    if found is not None:
        return found if isinstance(found, Judgement) else Judgement.of(found)
    return Judgement.of(_common(service, answer))


def judge_use(service: str, status: int, body: bytes) -> Judgement | None:
    """Return the verdict of an answer to a request of a client. None: its status says nothing about the key.

    Clients send wrong requests. So a 4xx that has no place in the table changes nothing.
    """
    answer = Answer(status, body, is_check=False)
    found = judge(service, answer)
    is_fault_of_client = 400 <= status < 500 and status not in _ABOUT_KEYS
    return None if is_fault_of_client and found.verdict is Verdict.UNREACHABLE else found


_ABOUT_KEYS = frozenset({401, 402, 403, 404, 408, 429})


def _common(service: str, answer: Answer) -> Verdict:
    """Return the verdict by the status only."""
    if answer.status == HTTPStatus.OK and not answer.is_page:
        return Verdict.ACCEPTED
    if answer.status == HTTPStatus.UNAUTHORIZED and not answer.is_page:
        return Verdict.REFUSED if service in _REFUSED_BY_401 else Verdict.NO_PERMISSION
    return _BY_STATUS.get(answer.status, Verdict.UNREACHABLE)


_BY_STATUS = {402: Verdict.NO_CREDIT, 403: Verdict.NO_PERMISSION, 429: Verdict.RATE_LIMITED}

_REFUSED_BY_401 = frozenset(
    {
        *("ANTHROPIC", "AZURE_OPENAI", "MISTRAL", "COHERE", "GROQ", "XAI", "DEEPSEEK", "TOGETHER", "OPENROUTER"),
        *("HUGGINGFACE", "REPLICATE", "FIREWORKS", "CEREBRAS"),
    }
)
"""The services that answer 401 only if a key is not valid."""


_LACKS_MODELS = (
    "missing scopes: api.model.read",
    "you have insufficient permissions for this operation. missing scopes: api.model.read",
)


def _openai(answer: Answer) -> Judgement | Verdict | None:
    code = answer.get("error", "code")
    if answer.status == HTTPStatus.UNAUTHORIZED and code == "invalid_api_key":
        return Verdict.REFUSED
    if answer.status in (401, 403) and answer.sentence.startswith(_LACKS_MODELS):
        return Judgement(Verdict.ACCEPTED, RESTRICTED)
    is_unpaid = code == "insufficient_quota" or answer.get("error", "type") == "insufficient_quota"
    return Verdict.NO_CREDIT if answer.status == HTTPStatus.TOO_MANY_REQUESTS and is_unpaid else None


_SPENT = re.compile(r"(your|you have|this request would) .*\b(credit balance|(usage|spend|spending) limits?)\b")
"""How the sentences begin that are about money. One about a wrong request begins with the member that is wrong."""


def _anthropic(answer: Answer) -> Verdict | None:
    is_spent = answer.status == HTTPStatus.BAD_REQUEST and _SPENT.match(answer.sentence) is not None
    return Verdict.NO_CREDIT if is_spent else None


def _google(answer: Answer) -> Verdict | None:
    details = answer.get("error", "details")
    reasons = [one.get("reason") for one in details if isinstance(one, dict)] if isinstance(details, list) else []
    is_refused = answer.status == HTTPStatus.BAD_REQUEST and "API_KEY_INVALID" in reasons
    return Verdict.REFUSED if is_refused else None


def _cohere(answer: Answer) -> Verdict | None:
    if not answer.is_check or answer.status != HTTPStatus.OK:
        return None
    known = {True: Verdict.ACCEPTED, False: Verdict.REFUSED}
    valid = answer.get("valid")
    return known[valid] if isinstance(valid, bool) else Verdict.UNREACHABLE


_BLOCKS = ("team_blocked", "api_key_blocked", "api_key_disabled")


def _xai(answer: Answer) -> Verdict | None:
    if answer.status == HTTPStatus.BAD_REQUEST:
        # A client can send a wrong request, too. The request of a check is right.
        is_refused = answer.is_check or answer.sentence.startswith("incorrect api key")
        return Verdict.REFUSED if is_refused else None
    is_blocked = answer.is_check and any(answer.get(name) is True for name in _BLOCKS)
    return Verdict.NO_PERMISSION if answer.status == HTTPStatus.OK and is_blocked else None


def _deepseek(answer: Answer) -> Verdict | None:
    is_empty = answer.is_check and answer.get("is_available") is False
    return Verdict.NO_CREDIT if answer.status == HTTPStatus.OK and is_empty else None


def _openrouter(answer: Answer) -> Verdict | None:
    left = answer.get("data", "limit_remaining")
    is_spent = answer.is_check and isinstance(left, int | float) and not isinstance(left, bool) and left <= 0
    return Verdict.NO_CREDIT if answer.status == HTTPStatus.OK and is_spent else None


def _hugging_face(answer: Answer) -> Verdict | None:
    token = answer.get("auth", "accessToken")
    if answer.status != HTTPStatus.OK or not isinstance(token, dict) or token.get("role") != "fineGrained":
        return None
    return None if _NEEDED_SCOPE in _texts(token.get("fineGrained")) else Verdict.NO_PERMISSION


_NEEDED_SCOPE = "inference.serverless.write"


def _fireworks(answer: Answer) -> Judgement | None:
    is_pass = answer.sentence.startswith("fire pass") and "not authorized for this route" in answer.sentence
    return Judgement(Verdict.ACCEPTED, RESTRICTED) if answer.status == HTTPStatus.FORBIDDEN and is_pass else None


_GONE = frozenset({"UnrecognizedClientException", "ExpiredTokenException"})
_EXPIRED = ("the security token included in the request is expired", "bearer token has expired")


def _bedrock(answer: Answer) -> Verdict | None:
    kind = answer.get("__type")
    name = kind.rpartition("#")[2] if isinstance(kind, str) else ""  # AWS can put a namespace in front
    is_gone = name in _GONE or answer.sentence.startswith(_EXPIRED)
    return Verdict.REFUSED if answer.status == HTTPStatus.FORBIDDEN and is_gone else None


_OWN: Mapping[str, Callable[[Answer], Judgement | Verdict | None]] = {
    "OPENAI": _openai,
    "ANTHROPIC": _anthropic,
    "GOOGLE": _google,
    "COHERE": _cohere,
    "XAI": _xai,
    "DEEPSEEK": _deepseek,
    "OPENROUTER": _openrouter,
    "HUGGINGFACE": _hugging_face,
    "FIREWORKS": _fireworks,
    "AWS_BEDROCK": _bedrock,
}


def _object(body: bytes) -> Mapping[str, object] | None:
    """Return the JSON object of a body, or the first of a list, as Google sends it. None: it has none."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    first = found[0] if isinstance(found, list) and found else found
    return first if isinstance(first, dict) else None


def _texts(found: object) -> set[str]:
    """Return all texts in a JSON value, however deep it is."""
    texts: set[str] = set()
    left = [found]
    while left:
        part = left.pop()
        if isinstance(part, str):
            texts.add(part)
        elif isinstance(part, dict | list):
            left.extend(part.values() if isinstance(part, dict) else part)
    return texts
