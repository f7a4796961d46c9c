"""What can go wrong, said for the person who can mend it. Knows no HTTP: `problems.py` maps slugs to statuses.

KeymanError
├── ConfigurationError      a setting, a file or a schema is not as it must be; stops the start
├── MissingExtra            keyman is installed without the extra that this part needs; also a ModuleNotFoundError
├── Problem                 answers a request; `slug` and `title` are constant per class
│   ├── InvalidRequest      `errors` names every field at fault
│   ├── Unauthenticated
│   ├── Forbidden
│   ├── NotFound
│   ├── MethodNotAllowed
│   ├── Conflict
│   ├── Undecryptable
│   ├── PreconditionFailed
│   ├── PayloadTooLarge
│   ├── UnsupportedMediaType
│   ├── IdempotencyMismatch
│   ├── RateLimited         `retry_after` seconds
│   ├── VaultUnavailable    `reason` is one of the words of `VaultReason`
│   ├── DatabaseUnavailable
│   └── Internal
├── RefusedStatement        the database does not accept a statement, or a row is not readable
│   ├── MissingRight
│   └── UnreadableRow       storage/rows.py
├── DriverFault             storage/faults.py: becomes DatabaseUnavailable or RefusedStatement
├── VaultFault              vault/adapter.py: becomes VaultUnavailable, or a sentence of a command
├── BatchRefused            batching.py: the items of the batch are tried one by one
├── BatcherClosed           batching.py: a mistake of the caller
├── WrongPassword           identity/passwords.py: becomes Unauthenticated or InvalidRequest
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
    └── BadAnswer

DriverFault, VaultFault, BatchRefused, WrongPassword and _TooLarge are caught by the code that calls what raises them.
The others reach the person who reads them.

No message holds a value that a client sent: whoever raises one writes the words, and repeats nothing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, NamedTuple, NoReturn


class KeymanError(Exception):
    """The root of everything that keyman itself raises on purpose."""


class ConfigurationError(KeymanError):
    """The process cannot start as it is set up; the message says what to change."""


class MissingExtra(KeymanError, ModuleNotFoundError):
    """keyman is installed without an extra; the message says which one and how to install it.

    It is also a ModuleNotFoundError, because that is what the import of a module whose libraries are missing raises.
    """


class Sentence(str):
    """A sentence for a person that was put together from a template and values: it can be put together again in another
    language. Nothing that a client sent is a value.
    """

    __slots__ = ("template", "values")
    template: str
    values: dict[str, object]

    def __new__(cls, template: str, **values: object) -> Sentence:
        sentence = super().__new__(cls, template.format(**values))
        sentence.template, sentence.values = template, values
        return sentence


class FieldError(NamedTuple):
    """One field of a request that is at fault; `field` is empty when the body as a whole is."""

    field: str
    message: str


class RefusedStatement(KeymanError):
    """The database does not accept a statement of keyman: our mistake, or a database that is damaged."""


class MissingRight(RefusedStatement):
    """The database's user may not do this."""


class Problem(KeymanError):
    """An answer other than the one that was asked for.

    `detail` is a sentence for the reader of this one answer; `retry_after` is in whole seconds.
    """

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
        """An error about the given fields; the detail counts them."""
        count = len(errors)
        detail = (
            "One field is not as it must be."
            if count == 1
            else Sentence("{count} things are not as they must be; each is listed in errors.", count=count)
        )
        return cls(detail, errors=errors)


class Unauthenticated(Problem):
    slug = "unauthenticated"
    title = "Sign in first"


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
    """Why Vault did not do what it was asked; also the label of the failure metric."""

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
    VaultReason.UNTRUSTED: "Vault's certificate is not to be trusted; nothing was sent to it.",
    VaultReason.TIMEOUT: "Vault did not answer in time.",
    VaultReason.QUOTA: "Vault's request quota is used up for the moment.",
    VaultReason.FORBIDDEN: "Vault refuses keyman's token: its policy does not allow this operation.",
    VaultReason.LOGIN: "Vault refuses keyman's login: its role or its secret is not valid.",
    VaultReason.WRONG_KEY: (
        "Vault's key is not the one this database was sealed with, or not set up as it must be; "
        "nothing is sealed and nothing opened until an operator has put that right."
    ),
    VaultReason.ERROR: "Vault answered with an error; its own log says more.",
}


class VaultUnavailable(Problem):
    """Vault could not be used. Whatever asked for it has stored nothing, and no value has left."""

    slug = "vault-unavailable"
    title = "The vault is not available"

    def __init__(
        self, reason: VaultReason, sentence: str = "{why} Nothing was stored.", *, retry_after: int = 5
    ) -> None:
        super().__init__(Sentence(sentence, why=VAULT_DETAILS[reason]), retry_after=retry_after)
        self.reason = reason


class DatabaseUnavailable(Problem):
    """The database could not be used, or did not confirm. `kind` is the fault by class and code, for operators."""

    slug = "database-unavailable"
    title = "The database is not available"

    def __init__(
        self, detail: str = "The database cannot be used at the moment. Nothing was stored.", *, kind: str = ""
    ) -> None:
        super().__init__(detail, retry_after=5)
        self.kind = kind


class Internal(Problem):
    slug = "internal"
    title = "Something went wrong on our side"

    @classmethod
    def of(cls, request_id: str) -> Internal:
        """An error of which its reader learns the request id and nothing else."""
        return cls(Sentence("Tell whoever runs keyman: {request_id}", request_id=request_id))


def raise_alone(fault: Exception) -> NoReturn:
    """Raise without the exception that led here: a driver's or a client's holds what was sent, and `from None` only
    hides it from those who look politely.
    """
    try:
        raise fault from None
    finally:
        fault.__context__ = None
