"""The errors of keyman. A message is for the person who can fix the error. `http/problems.py` maps slugs to statuses.

KeymanError
├── ConfigurationError      a setting, a file or a schema is invalid; stops the start
│   └── VaultAway           vault/wrapping.py: `keyman serve` tries again
├── MissingExtra            keyman is installed without the extra that this part needs; also a ModuleNotFoundError
├── Problem                 answers a request; `slug` and `title` are constant per class
│   ├── InvalidRequest      `errors` names every invalid field
│   ├── Unauthenticated
│   │   └── InvalidToken
│   ├── Forbidden
│   ├── NotFound
│   ├── MethodNotAllowed
│   ├── Conflict
│   ├── Undecryptable
│   ├── PreconditionFailed
│   ├── PayloadTooLarge
│   ├── HeadersTooLarge
│   ├── UnsupportedMediaType
│   ├── IdempotencyMismatch
│   ├── RateLimited         `retry_after` seconds
│   ├── VaultUnavailable    `reason` is a `VaultReason`
│   ├── DatabaseUnavailable
│   │   └── CommitLost          storage/faults.py
│   ├── IssuerUnavailable
│   ├── GatewayUnavailable
│   ├── PathNotAllowed
│   ├── ProviderUnreachable
│   ├── ProviderAnswerRefused
│   ├── ProviderRedirected
│   ├── ProviderTimeout
│   ├── Overloaded
│   └── Internal
├── RefusedStatement        the database rejects a statement, or a row cannot be read
│   ├── MissingRight
│   ├── RolledBack          storage/faults.py
│   ├── UnfitParameter      storage/statements.py
│   └── UnreadableRow       storage/statements.py
├── DriverFault             storage/faults.py: becomes DatabaseUnavailable or RefusedStatement
├── PoolerFound             storage/connecting.py: the next connection goes through the pooler
├── FilesReplaced           storage/files.py: also an OSError, which becomes DatabaseUnavailable
├── DiskFull                storage/files.py: likewise
├── VaultFault              vault/adapter.py: becomes VaultUnavailable, or a message of a command
├── Spoiled                 storage/group.py: the group begins again, with savepoints
├── BatchRefused            batching.py: the items of the batch are tried one by one
├── BatcherClosed           batching.py: a bug of the caller
├── WrongPassword           identity/passwords.py: becomes Unauthenticated or InvalidRequest
├── Refused                 identity/jwks.py: a JWT is refused; becomes Unauthenticated
│   └── UnknownKey          identity/jwks.py: the keys are fetched again, once
├── FetchFailed             identity/fetching.py: becomes IssuerUnavailable
├── AddressRefused          planes/gateway/addresses.py: also an OSError; becomes ProviderUnreachable
├── Left                    planes/gateway/streams.py: the client has left, so nobody is answered
├── TooMuchWork             planes/gateway/redaction.py: becomes ProviderAnswerRefused
├── _TooLarge               client/wire.py: becomes BadAnswer
└── ClientError             client/errors.py: what the client raises
    ├── InvalidRequest
    ├── Unauthenticated
    ├── Forbidden
    ├── NotFound
    ├── Conflict
    ├── Undecryptable
    ├── PreconditionFailed
    ├── IdempotencyMismatch
    ├── RateLimited
    ├── ServerFailed
    ├── Unavailable
    │   ├── Unreachable
    │   └── DeadlineExceeded
    ├── BadAnswer
    └── ClientClosed

DriverFault, PoolerFound, FilesReplaced, DiskFull, VaultFault, Spoiled, BatchRefused, WrongPassword, Refused,
FetchFailed, AddressRefused, Left, TooMuchWork and _TooLarge are caught by the calling code. The others reach a person.

No message contains a value that a client sent.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, NamedTuple, NoReturn


class KeymanError(Exception):
    """The root of every error that keyman raises on purpose."""


class ConfigurationError(KeymanError):
    """The process cannot start with this configuration. The message says what to change."""


class MissingExtra(KeymanError, ModuleNotFoundError):
    """keyman is installed without an extra; the message says which one and how to install it.

    It is also a ModuleNotFoundError, because that is what the import of a module whose libraries are missing raises.
    """


class Sentence(str):
    """A sentence made from a template and values, so that it can be made again in another language.

    No value comes from a client.
    """

    __slots__ = ("template", "values")
    template: str
    values: dict[str, object]

    def __new__(cls, template: str, **values: object) -> Sentence:
        sentence = super().__new__(cls, template.format(**values))
        sentence.template, sentence.values = template, values
        return sentence


class FieldError(NamedTuple):
    """One invalid field of a request. `field` is empty when the body as a whole is invalid."""

    field: str
    message: str


class RefusedStatement(KeymanError):
    """The database rejects a statement of keyman: a bug in keyman, or a damaged database."""


class MissingRight(RefusedStatement):
    """The database's user has no right to do this."""


class Problem(KeymanError):
    """An error answer. `detail` is a sentence about this one case; `retry_after` is in whole seconds."""

    slug: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, detail: str, *, errors: tuple[FieldError, ...] = (), retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.retry_after = retry_after


class InvalidRequest(Problem):
    slug = "invalid-request"
    title = "The request is not valid"

    @classmethod
    def at(cls, *errors: FieldError) -> InvalidRequest:
        """Return an error about the given fields. Its detail counts them."""
        count = len(errors)
        detail = (
            "One field is invalid."
            if count == 1
            else Sentence("{count} things are invalid; errors lists each of them.", count=count)
        )
        return cls(detail, errors=errors)


class Unauthenticated(Problem):
    """`challenge` is the value of `WWW-Authenticate`."""

    slug = "unauthenticated"
    title = "Sign in first"
    challenge: ClassVar[str] = "Bearer"


class InvalidToken(Unauthenticated):
    """A JWT is refused. The detail names the claim."""

    challenge = 'Bearer error="invalid_token"'


class Forbidden(Problem):
    slug = "forbidden"
    title = "This is not allowed"


class NotFound(Problem):
    slug = "not-found"
    title = "There is nothing here"


class MethodNotAllowed(Problem):
    slug = "method-not-allowed"
    title = "This method is not supported here"


class Conflict(Problem):
    slug = "conflict"
    title = "This conflicts with what is stored"


class Undecryptable(Problem):
    slug = "undecryptable"
    title = "The stored key cannot be opened"


class PreconditionFailed(Problem):
    slug = "precondition-failed"
    title = "It has changed in the meantime"


class PayloadTooLarge(Problem):
    slug = "payload-too-large"
    title = "The request is too large"


class HeadersTooLarge(Problem):
    slug = "headers-too-large"
    title = "The headers are too large"


class UnsupportedMediaType(Problem):
    slug = "unsupported-media-type"
    title = "The body is not of the right type"


class IdempotencyMismatch(Problem):
    slug = "idempotency-mismatch"
    title = "This idempotency key was used for another request"


class RateLimited(Problem):
    slug = "rate-limited"
    title = "Too many attempts"


class VaultReason(StrEnum):
    """Why a call to Vault failed. It is also a label of the failure metric."""

    SEALED = "sealed"
    UNREACHABLE = "unreachable"
    UNTRUSTED = "untrusted"
    TIMEOUT = "timeout"
    QUOTA = "quota"
    FORBIDDEN = "forbidden"
    LOGIN = "login-refused"
    WRONG_KEY = "wrong-key"
    ERROR = "error"


VAULT_DETAILS = {
    VaultReason.SEALED: "Vault is sealed: an operator must unseal it.",
    VaultReason.UNREACHABLE: "Vault cannot be reached.",
    VaultReason.UNTRUSTED: "Vault's certificate is not trusted. Nothing was sent to Vault.",
    VaultReason.TIMEOUT: "Vault did not answer in time.",
    VaultReason.QUOTA: "Vault's request quota is used up for the moment.",
    VaultReason.FORBIDDEN: "Vault refuses keyman's token: its policy does not allow this operation.",
    VaultReason.LOGIN: "Vault refuses keyman's login: its role or its secret is not valid.",
    VaultReason.WRONG_KEY: (
        "Vault's key is not the one that this database was sealed with, or its settings are wrong. Nothing is sealed "
        "or opened until an operator fixes this."
    ),
    VaultReason.ERROR: "Vault answered with an error. Vault's own log has the details.",
}


class VaultUnavailable(Problem):
    """Vault could not be used. The operation that needed it stored nothing and returned no value."""

    slug = "vault-unavailable"
    title = "The vault is not available"

    def __init__(
        self, reason: VaultReason, sentence: str = "{why} Nothing was stored.", *, retry_after: int = 5
    ) -> None:
        super().__init__(Sentence(sentence, why=VAULT_DETAILS[reason]), retry_after=retry_after)
        self.reason = reason


class DatabaseUnavailable(Problem):
    """The database could not be used, or did not confirm a commit. `kind` is the class and code of the fault."""

    slug = "database-unavailable"
    title = "The database is not available"

    def __init__(
        self, detail: str = "The database cannot be used at the moment. Nothing was stored.", *, kind: str = ""
    ) -> None:
        super().__init__(detail, retry_after=5)
        self.kind = kind


class IssuerUnavailable(Problem):
    """The keys of an issuer cannot be fetched, so no JWT of it can be verified."""

    slug = "issuer-unavailable"
    title = "The issuer is not available"

    def __init__(
        self,
        detail: str = "The keys of the issuer cannot be fetched at the moment, so its tokens cannot be verified.",
        *,
        retry_after: int = 10,
    ) -> None:
        super().__init__(detail, retry_after=retry_after)


class GatewayUnavailable(Problem):
    """The management plane cannot have a key checked, because the gateway does not do it.

    `why` is for operators, and in no answer: why the gateway's certificate is refused.
    """

    slug = "gateway-unavailable"
    title = "The gateway is not available"

    def __init__(
        self,
        detail: str = "The gateway cannot be reached, so nothing was checked. Try again later.",
        *,
        why: str | None = None,
    ) -> None:
        super().__init__(detail, retry_after=10)
        self.why = why


class PathNotAllowed(Problem):
    """The gateway does not forward this method and path of a service."""

    slug = "path-not-allowed"
    title = "The gateway does not forward this path"


class ProviderUnreachable(Problem):
    """No connection to the provider: its name, its address or its certificate."""

    slug = "provider-unreachable"
    title = "The provider cannot be reached"


class ProviderAnswerRefused(Problem):
    """The provider's answer is not one that the gateway passes on."""

    slug = "provider-answer-refused"
    title = "The provider's answer was not passed on"


class ProviderRedirected(Problem):
    """The provider's answer leads elsewhere. A client that followed it would send its token there."""

    slug = "provider-redirected"
    title = "The provider redirected the request"


class ProviderTimeout(Problem):
    slug = "provider-timeout"
    title = "The provider did not answer in time"


class Overloaded(Problem):
    """Too many requests wait in this process. It has done nothing with this one."""

    slug = "overloaded"
    title = "Too many requests are waiting"

    def __init__(
        self,
        detail: str = (
            "Too many requests are waiting for an answer. Nothing was done with this one: try again in a moment."
        ),
    ) -> None:
        super().__init__(detail, retry_after=2)


class Internal(Problem):
    slug = "internal"
    title = "Something went wrong on our side"

    @classmethod
    def of(cls, request_id: str) -> Internal:
        """Return an error that contains only the request id."""
        return cls(Sentence("Give the operator of keyman this request id: {request_id}", request_id=request_id))


def raise_alone(fault: Exception) -> NoReturn:
    """Raise `fault` without a context.

    The exception of a driver or a client can hold what was sent. `from None` would only hide it: it would still be
    in `__context__`.
    """
    try:
        raise fault from None
    finally:
        fault.__context__ = None
        del (
            fault
        )  # its traceback has this frame, and so would refer to itself: all its frames would wait for the collector
