"""The client for applications: `from keyman.client import Resolver`.

Import its names from this package, not from its modules. The same is true of `keyman.testing`. Neither package imports
anything of the server.
"""

from keyman.client.errors import (
    BadAnswer,
    ClientClosed,
    ClientError,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    RateLimited,
    ServerFailed,
    Unauthenticated,
    Unavailable,
    Undecryptable,
    Unreachable,
)
from keyman.client.management import AsyncKeyman, Keyman
from keyman.client.protocols import AsyncResolverProtocol, ResolverProtocol
from keyman.client.resolver import AsyncResolver, Resolver
from keyman.client.shapes import (
    Application,
    AuditEntry,
    GatewayUse,
    Key,
    KeyCheck,
    KeyStatus,
    NewKey,
    PortalLink,
    ReportOutcome,
    Resolved,
    Service,
    Sort,
    Verdict,
)
from keyman.secret import Secret

__all__ = [
    "Application",
    "AsyncKeyman",
    "AsyncResolver",
    "AsyncResolverProtocol",
    "AuditEntry",
    "BadAnswer",
    "ClientClosed",
    "ClientError",
    "Conflict",
    "DeadlineExceeded",
    "Forbidden",
    "GatewayUse",
    "IdempotencyMismatch",
    "InvalidRequest",
    "Key",
    "KeyCheck",
    "KeyStatus",
    "Keyman",
    "NewKey",
    "NotFound",
    "PortalLink",
    "PreconditionFailed",
    "RateLimited",
    "ReportOutcome",
    "Resolved",
    "Resolver",
    "ResolverProtocol",
    "Secret",
    "ServerFailed",
    "Service",
    "Sort",
    "Unauthenticated",
    "Unavailable",
    "Undecryptable",
    "Unreachable",
    "Verdict",
]
