"""The vocabulary of the audit log: actions, actors, reasons, and the fields of an entry.

An entry records who did what, when and from where. It never contains a token, or the value, ciphertext or mask of a
key.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from keyman.errors import VaultReason
from keyman.ids import ApplicationTokenId, KeyId, TokenId, UserId


class Action(StrEnum):
    SIGNUP = "account.signup"
    LOGIN = "account.login"
    LOGIN_FAILED = "account.login-failed"
    LOGOUT = "account.logout"
    SESSION_END = "account.session-end"
    PASSWORD = "account.password"  # noqa: S105  # the name of an action
    PASSWORD_FAILED = "account.password-failed"  # noqa: S105  # the name of an action
    DISABLE = "account.disable"
    ENABLE = "account.enable"
    ACCOUNT_CREATE = "account.create"
    ACCOUNT_LINK = "account.link"
    ACCOUNT_UNLINK = "account.unlink"
    ACCOUNT_DELETE = "account.delete"
    PORTAL_LINK = "portal.link"
    TOKEN_CREATE = "token.create"  # noqa: S105  # the name of an action
    TOKEN_REVOKE = "token.revoke"  # noqa: S105  # the name of an action
    KEY_CREATE = "key.create"
    KEY_REPLACE = "key.replace"
    KEY_CHANGE = "key.change"
    KEY_PAUSE = "key.pause"
    KEY_RESUME = "key.resume"
    KEY_DELETE = "key.delete"
    KEY_RESOLVE = "key.resolve"
    KEY_RESOLVE_REFUSED = "key.resolve-refused"
    KEY_RESOLVE_FAILED = "key.resolve-failed"
    KEY_USE = "key.use"
    KEY_USE_REFUSED = "key.use-refused"
    KEY_USE_FAILED = "key.use-failed"
    KEY_CHECK = "key.check"
    KEY_CHECK_FAILED = "key.check-failed"
    KEY_REPORT = "key.report"
    APPLICATION_CREATE = "application.create"
    APPLICATION_ROTATE = "application.rotate"
    APPLICATION_REVOKE = "application.revoke"
    APPLICATION_BLOCK = "application.block"
    APPLICATION_UNBLOCK = "application.unblock"
    VAULT_ROTATE = "vault.rotate"
    VAULT_REWRAP = "vault.rewrap"
    TRAIL_PRUNE = "trail.prune"
    TRAIL_CARRY = "trail.carry"


class Actor(StrEnum):
    """The kind of actor: a signed-in user, a personal token, an application, an operator at the command line, or
    nobody.
    """

    SESSION = "session"
    TOKEN = "token"  # noqa: S105  # the name of a kind
    APPLICATION = "application"
    OPERATOR = "operator"
    ANONYMOUS = "anonymous"


class Origin(NamedTuple):
    """The origin of a call.

    `actor_id` is the id of a personal or application token. `address` and `device` are those of the client, if known.
    `device` is stored with the session that a sign-in opens, and not in the audit log.
    """

    actor: Actor
    actor_id: int | None = None
    request_id: str | None = None
    address: str | None = None
    device: str | None = None


class Reason(StrEnum):
    """The reason why a caller got no key. Resolver and gateway record it, and the pages show it to the key's owner."""

    NOT_GRANTED = "not-granted"
    UNKNOWN = "unknown"
    ACCOUNT_DISABLED = "account-disabled"
    DISABLED = "disabled"
    EXPIRED = "expired"
    UNDECRYPTABLE = "undecryptable"
    NOT_CURRENT = "not-current"
    BLOCKED = "blocked-by-owner"
    SETTINGS = "settings"


OPERATOR = Origin(Actor.OPERATOR)

NO_VALUE = UUID(int=0)
"""The `value_uuid` in the entry about a deleted key.

If somebody restores the key's row later, the row has another `value_uuid`, so its value is not the current one.
"""


class Entry(NamedTuple):
    """An audit entry to write. `user_id` is the user in whose audit log it appears, None for an action without account.

    `value_uuid` identifies the current value of the key from this entry on, and `settings_hash` is the SHA-256 of its
    settings, in hex. `as_of` is given only for an entry that
    repeats an older one, and is the `as_of` of that entry. `vault_request_id` is Vault's id of keyman's
    request to it. `detail` describes what a command did.
    """

    action: Action
    origin: Origin
    user_id: UserId | None = None
    token_id: TokenId | ApplicationTokenId | None = None
    key_id: KeyId | None = None
    service: str | None = None
    application: str | None = None
    purpose: str | None = None
    reason: Reason | VaultReason | None = None
    value_uuid: UUID | None = None
    as_of: int | None = None
    vault_request_id: str | None = None
    detail: str | None = None
    settings_hash: str | None = None
