"""Problems as HTTP answers: the table of statuses and explanations, and `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from keyman import errors
from keyman.errors import Problem

MEDIA_TYPE = "application/problem+json"


class Kind(NamedTuple):
    """A type of problem: its HTTP status, and the explanation on its page."""

    status: int
    problem: type[Problem]
    explanation: str


KINDS = {
    kind.problem.slug: kind
    for kind in (
        Kind(
            400,
            errors.InvalidRequest,
            "The body is not JSON, or a field is missing, unknown, of the wrong type or out of range. `errors` names "
            "each invalid field and says what is wrong with it. An empty field name means the body or the query as a "
            "whole. Nothing was stored.",
        ),
        Kind(
            401,
            errors.Unauthenticated,
            "The request has no credentials, or they are wrong, expired or revoked. Send `Authorization: Bearer km_…` "
            "with a personal access token (for the resolver, an application token), or sign in. If a JSON Web "
            "Token was refused, `detail` names the claim.",
        ),
        Kind(
            403,
            errors.Forbidden,
            "You may not do this: the access token lacks a scope, sign-up is closed, or the request was sent by a page "
            "of another site.",
        ),
        Kind(
            404,
            errors.NotFound,
            "There is nothing at this address. What belongs to somebody else gets the same answer as what does not "
            "exist.",
        ),
        Kind(405, errors.MethodNotAllowed, "The address exists. The `Allow` header lists the methods that it accepts."),
        Kind(
            409,
            errors.Conflict,
            "The request contradicts what is stored, such as a second account with the same e-mail address.",
        ),
        Kind(
            409,
            errors.Undecryptable,
            "Vault works, but refuses to open the stored value of this key: the row was changed outside keyman. The "
            "key is marked as undecryptable, and applications no longer get it. Its owner must store it again. Until "
            "then, an operator can look for the cause in the audit log and the database.",
        ),
        Kind(
            412,
            errors.PreconditionFailed,
            "The request had `If-Match`, but the key was changed after you read it. Read it again, check what has "
            "changed, and send the request with the new `ETag`.",
        ),
        Kind(
            413,
            errors.PayloadTooLarge,
            "A body can have at most 64 KiB, and one with several keys at most 1 MiB. No key of any provider is "
            "longer.",
        ),
        Kind(
            415,
            errors.UnsupportedMediaType,
            "The body must be JSON in UTF-8, not compressed: send `Content-Type: application/json` and no "
            "`Content-Encoding`.",
        ),
        Kind(
            422,
            errors.IdempotencyMismatch,
            "An `Idempotency-Key` belongs to one request for 24 hours. This one was used with another body before. Use "
            "a new one for a new request.",
        ),
        Kind(
            429,
            errors.RateLimited,
            "Too many attempts failed, too many requests came at once, or the account has as many API keys as it can "
            "have: `detail` says which. Wait for as many seconds as `Retry-After` says, or delete a key. Existing "
            "sessions and access tokens stay valid.",
        ),
        Kind(
            431,
            errors.HeadersTooLarge,
            "A request can have at most 100 header fields, and at most 32 KiB of headers and address. Send fewer or "
            "shorter headers. In a browser, remove the cookies of this host.",
        ),
        Kind(
            503,
            errors.VaultUnavailable,
            "Vault seals and opens keys, and it could not be used: `detail` says why. Nothing was stored, and no key "
            "was given out. Send the request again after `Retry-After` seconds. You can still list and delete keys.",
        ),
        Kind(
            503,
            errors.DatabaseUnavailable,
            "The database could not be reached, or did not confirm the change: `detail` says which. Send the request "
            "again after `Retry-After` seconds. With an `Idempotency-Key`, a POST is carried out only once, however "
            "often you send it.",
        ),
        Kind(
            503,
            errors.IssuerUnavailable,
            "Tokens of an issuer are verified with its public keys, and keyman can neither fetch them nor has a copy "
            "from the last 24 hours. Send the request again after `Retry-After` seconds. Sessions and access tokens of "
            "keyman still work.",
        ),
        Kind(
            503,
            errors.GatewayUnavailable,
            "Live checks are made by the gateway, and it could not be reached or did not make this one: `detail` says "
            "which. Nothing was stored, and the key stays as it is. Check it again after `Retry-After` seconds.",
        ),
        Kind(
            403,
            errors.PathNotAllowed,
            "The gateway forwards only the methods and paths that the operator allows for each service, and this "
            "is not one of them. Nothing was sent to the provider. Ask the operator if you need it.",
        ),
        Kind(
            502,
            errors.ProviderUnreachable,
            "The gateway got no connection to the provider: its name was not found, nobody answered, its certificate "
            "is not valid, or its address is not a public one. The provider may be down, or the endpoint of the key is "
            "wrong.",
        ),
        Kind(
            502,
            errors.ProviderAnswerRefused,
            "The provider answered with something that the gateway does not pass on, such as a compressed answer "
            "although none was asked for. The request may have had an effect, and may have cost something.",
        ),
        Kind(
            502,
            errors.ProviderRedirected,
            "The provider answered with a redirect. The gateway follows none, and passes none on, because your client "
            "would send its token to another address. Check the path, and the endpoint of the key.",
        ),
        Kind(
            504,
            errors.ProviderTimeout,
            "The provider sent nothing for too long. The request may have had an effect, and may have cost something.",
        ),
        Kind(
            503,
            errors.Overloaded,
            "More requests wait in this process than it can answer soon, so it has done nothing with yours. Send it "
            "again after `Retry-After` seconds.",
        ),
        Kind(
            500,
            errors.Internal,
            "This is a bug in keyman. Give the operator the `request_id`. The log has the details. No log and no "
            "answer contains a key.",
        ),
    )
}


class FieldFault(msgspec.Struct):
    """One invalid field. `field` is empty when the body as a whole is invalid."""

    field: str
    message: str


class ProblemBody(msgspec.Struct, omit_defaults=True):
    """An error, in the form of RFC 9457.

    `retry_after` has the seconds of `Retry-After`, for an error that is one of several in an answer.
    """

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldFault] | None = None
    retry_after: int | None = None


class Answer(NamedTuple):
    """An answer as it is sent. Names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def describe(problem: Problem, request_id: str) -> ProblemBody:
    """Return the body for this problem."""
    return ProblemBody(
        type=f"/problems/{problem.slug}",
        title=problem.title,
        status=KINDS[problem.slug].status,
        detail=str(problem.detail),  # msgspec does not encode a subclass of str
        request_id=request_id,
        errors=[FieldFault(field, str(message)) for field, message in problem.errors] or None,
    )


def answer(problem: Problem, request_id: str) -> Answer:
    """Return the HTTP answer for this problem."""
    body = describe(problem, request_id)
    headers = {"content-type": MEDIA_TYPE}
    if isinstance(problem, errors.Unauthenticated):
        headers["www-authenticate"] = problem.challenge
    if problem.retry_after is not None:
        headers["retry-after"] = str(problem.retry_after)
    return Answer(body.status, headers, msgspec.json.encode(body))
