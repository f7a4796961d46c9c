"""The errors that the client raises.

ClientError                 `status`, `slug`, `request_id`, `retry_after`, `errors` of the answer, or None
├── InvalidRequest          400, 413, 415, 431: `errors` names each invalid field
├── Unauthenticated         401: the token is wrong, expired or revoked
├── Forbidden               403
├── NotFound                404: no such key, or one that the caller may not have
├── Conflict                409
├── Undecryptable           409: the owner has to store the key again
├── PreconditionFailed      412: the key has changed since it was read
├── IdempotencyMismatch     422
├── RateLimited             429
├── ServerFailed            500, and any other status that keyman does not use
├── Unavailable             502, 503, 504: it may work later
│   ├── Unreachable         no connection, or it was lost before the answer was complete
│   └── DeadlineExceeded    `timeout` ended before the answer was complete
├── BadAnswer               the answer is not from keyman, or not one that this client can read
└── ClientClosed            the client was closed before the call; nothing was sent

They have no cause and no context: an exception of the HTTP library holds the request, and with it the token. Texts of
the server are shortened, and control characters and the secrets that were sent are removed from them.
"""

from __future__ import annotations

from keyman.errors import FieldError, KeymanError

CLOSED = "This client is closed. Create a new one, or close this one after its last call."


class ClientError(KeymanError):
    """A call failed. `retry_after` is in seconds."""

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


class ClientClosed(ClientError):
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
    431: InvalidRequest,
    422: IdempotencyMismatch,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
"""By status and not by slug, because the answer of a proxy has no slug."""


def kind_of(status: int, slug: str | None) -> type[ClientError]:
    if status == 409 and slug == "undecryptable":
        return Undecryptable
    return BY_STATUS.get(status, BadAnswer if status < 400 else ServerFailed)
