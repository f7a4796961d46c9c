"""What the client raises.

ClientError                 `status`, `slug`, `request_id`, `retry_after`, `errors`: as answered, None where nothing was
├── InvalidRequest          400, 413, 415; `errors` names each field at fault
├── Unauthenticated         401: the token is wrong, has ended or was revoked
├── Forbidden               403
├── NotFound                404: also whatever is not the caller's to have
├── Conflict                409
├── Undecryptable           409: the owner has to store the key again
├── PreconditionFailed      412: the key has changed since it was read
├── IdempotencyMismatch     422
├── RateLimited             429
├── ServerFailed            500, and any other status that keyman has no meaning for
├── Unavailable             502, 503, 504: later, it may work
│   ├── Unreachable         no connection, or lost before the answer was there
│   └── DeadlineExceeded    `timeout` was over before the answer was there
└── BadAnswer               what answers there is not keyman, or not as this client knows it

They are raised alone, never out of an exception of the HTTP library, which holds the request and with it the token.
What a server says is shown without control characters, shortened, and without the secrets that were sent to it.
"""

from __future__ import annotations

from keyman.errors import FieldError, KeymanError


class ClientError(KeymanError):
    """A call that gave no result. `retry_after` is in seconds."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        slug: str | None = None,
        request_id: str | None = None,
        retry_after: int | None = None,
        errors: tuple[FieldError, ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.slug = slug
        self.request_id = request_id
        self.retry_after = retry_after
        self.errors = errors


class InvalidRequest(ClientError):
    pass


class Unauthenticated(ClientError):
    pass


class Forbidden(ClientError):
    pass


class NotFound(ClientError):
    pass


class Conflict(ClientError):
    pass


class Undecryptable(ClientError):
    pass


class PreconditionFailed(ClientError):
    pass


class IdempotencyMismatch(ClientError):
    pass


class RateLimited(ClientError):
    pass


class ServerFailed(ClientError):
    pass


class Unavailable(ClientError):
    pass


class Unreachable(Unavailable):
    pass


class DeadlineExceeded(Unavailable):
    pass


class BadAnswer(ClientError):
    pass


BY_STATUS: dict[int, type[ClientError]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    412: PreconditionFailed,
    413: InvalidRequest,
    415: InvalidRequest,
    422: IdempotencyMismatch,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
"""By status and not by slug: a proxy on the way answers without one."""


def kind_of(status: int, slug: str | None) -> type[ClientError]:
    if status == 409 and slug == "undecryptable":
        return Undecryptable
    return BY_STATUS.get(status, BadAnswer if status < 400 else ServerFailed)
