"""Problems as answers: the one table of statuses, with what each means, and `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from keyman import errors
from keyman.errors import Problem

MEDIA_TYPE = "application/problem+json"


class Kind(NamedTuple):
    """A type of problem: its HTTP status, and what its page tells the person who reads it."""

    status: int
    problem: type[Problem]
    explanation: str


KINDS = {
    kind.problem.slug: kind
    for kind in (
        Kind(
            400,
            errors.InvalidRequest,
            "The body is not JSON, or a field is missing, unknown, of the wrong type or out of its bounds. `errors` "
            "names each field at fault and says what it must be; an empty field name means the body or the query as a "
            "whole. "
            "Nothing was stored.",
        ),
        Kind(
            401,
            errors.Unauthenticated,
            "The request carries no proof of who sends it, or one that is wrong, has expired or was revoked. Send "
            "`Authorization: Bearer km_…` with a personal access token (for the resolver, an application's token), or "
            "sign in.",
        ),
        Kind(
            403,
            errors.Forbidden,
            "It is known who you are, and this is not yours to do: the access token lacks a scope, sign-up is closed, "
            "or the request was sent by a page of another site.",
        ),
        Kind(
            404,
            errors.NotFound,
            "There is nothing at this address. What belongs to somebody else looks the same as what does not exist.",
        ),
        Kind(405, errors.MethodNotAllowed, "The address exists; the `Allow` header lists the methods that it takes."),
        Kind(
            409,
            errors.Conflict,
            "What was asked for contradicts what is stored, such as a second account with one e-mail address.",
        ),
        Kind(
            409,
            errors.Undecryptable,
            "Vault works, and refuses to open what is stored of this key: the row was changed outside keyman. The key "
            "is marked so, and given out no more. Its owner stores it again; until then, look at the trail and the "
            "database.",
        ),
        Kind(
            412,
            errors.PreconditionFailed,
            "The request carried `If-Match`, and the key was changed after you read it. Read it again, look at what "
            "has changed, and send the request with the new `ETag`.",
        ),
        Kind(413, errors.PayloadTooLarge, "A body may be 64 KiB long. No key of any provider is longer than that."),
        Kind(
            415,
            errors.UnsupportedMediaType,
            "Bodies are JSON in UTF-8, not compressed: send `Content-Type: application/json` and no "
            "`Content-Encoding`.",
        ),
        Kind(
            422,
            errors.IdempotencyMismatch,
            "An `Idempotency-Key` stands for one request for 24 hours. This one came with another body before; a new "
            "request needs a new one.",
        ),
        Kind(
            429,
            errors.RateLimited,
            "Too many attempts failed, or too many came at once. Wait for as many seconds as `Retry-After` says. "
            "Sessions and access tokens that exist go on working.",
        ),
        Kind(
            503,
            errors.VaultUnavailable,
            "Keys are sealed and opened by Vault, and it could not be used: `detail` says why. Nothing was stored, and "
            "no key was given out; send the request again after `Retry-After` seconds. Listing and deleting keys works "
            "meanwhile.",
        ),
        Kind(
            503,
            errors.DatabaseUnavailable,
            "The database could not be reached or did not confirm the change: `detail` says which. Send the request "
            "again after `Retry-After` seconds; with an `Idempotency-Key`, a POST is carried out once, however "
            "often it is sent.",
        ),
        Kind(
            500,
            errors.Internal,
            "A mistake of ours. Tell whoever runs this keyman the `request_id`; the log holds the rest. No log and no "
            "answer holds a key.",
        ),
    )
}


class FieldFault(msgspec.Struct):
    """One field at fault; `field` is empty when the body as a whole is."""

    field: str
    message: str


class ProblemBody(msgspec.Struct, omit_defaults=True):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldFault] | None = None


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def answer(problem: Problem, request_id: str) -> Answer:
    """The HTTP answer that says this problem."""
    status = KINDS[problem.slug].status
    body = ProblemBody(
        type=f"/problems/{problem.slug}",
        title=problem.title,
        status=status,
        detail=str(problem.detail),  # msgspec takes no subclass of str
        request_id=request_id,
        errors=[FieldFault(field, str(message)) for field, message in problem.errors] or None,
    )
    headers = {"content-type": MEDIA_TYPE}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if problem.retry_after is not None:
        headers["retry-after"] = str(problem.retry_after)
    return Answer(status, headers, msgspec.json.encode(body))
