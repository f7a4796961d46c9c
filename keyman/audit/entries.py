"""The vocabulary of the audit log: who did what, and what an entry holds.

An entry names who, what, when and from where; never a value, a ciphertext, a mask or a token.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from keyman.errors import VaultReason
from keyman.ids import KeyId, TokenId, UserId


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
    APPLICATION_CREATE = "application.create"
    APPLICATION_ROTATE = "application.rotate"
    APPLICATION_REVOKE = "application.revoke"
    VAULT_ROTATE = "vault.rotate"
    VAULT_REWRAP = "vault.rewrap"
    TRAIL_PRUNE = "trail.prune"
    TRAIL_CARRY = "trail.carry"


class Actor(StrEnum):
    """What acted: a signed-in person, a personal token, an application, an operator at the command line, or nobody."""

    SESSION = "session"
    TOKEN = "token"  # noqa: S105  # the name of a kind
    APPLICATION = "application"
    OPERATOR = "operator"
    ANONYMOUS = "anonymous"


class Origin(NamedTuple):
    """Where a call came from. `actor_id` is a token's id, personal or an application's; address and device are the
    client's, as far as known.

    The device is for the session that a sign-in opens; the audit log does not keep it.
    """

    actor: Actor
    actor_id: int | None = None
    request_id: str | None = None
    address: str | None = None
    device: str | None = None


class Reason(StrEnum):
    """Why an application gets no key. The resolver records it, and the pages show it to the key's owner."""

    NOT_GRANTED = "not-granted"
    UNKNOWN = "unknown"
    ACCOUNT_DISABLED = "account-disabled"
    DISABLED = "disabled"
    EXPIRED = "expired"
    UNDECRYPTABLE = "undecryptable"
    NOT_CURRENT = "not-current"


OPERATOR = Origin(Actor.OPERATOR)

NO_VALUE = UUID(int=0)
"""What a key holds from its deletion on: a row that is put back later is not the current one."""


class Entry(NamedTuple):
    """What is recorded of one act. `user_id` is whose audit log it belongs to; None for an act of no account.

    `value_uuid` says which value a key holds from here on. `as_of` is given only when an entry repeats the word of an
    older one. `vault_request_id` is Vault's own id of the call, `detail` what a command did, in keyman's words.
    """

    action: Action
    origin: Origin
    user_id: UserId | None = None
    token_id: TokenId | None = None
    key_id: KeyId | None = None
    service: str | None = None
    application: str | None = None
    purpose: str | None = None
    reason: Reason | VaultReason | None = None
    value_uuid: UUID | None = None
    as_of: int | None = None
    vault_request_id: str | None = None
    detail: str | None = None
