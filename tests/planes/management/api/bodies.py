"""Every body that the API accepts, described by its struct, and invalid variants."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Any

import msgspec
from hypothesis import strategies as st

from keyman.identity.login import LogIn, SignUp
from keyman.identity.personal_tokens import NewToken
from keyman.identity.users import ChangePassword
from keyman.keys.erasure import DeleteAccount
from keyman.keys.schemas import Change, NewKey, NewKeys, Replacement
from keyman.providers.settings import KeySettings
from tests.planes.management.api.harness import OPENAI_KEY
from tests.support.planes import PASSWORD

CANARY = "cAnArYq7Rk2Lw9Xc4Vb6"


@dataclass(frozen=True)
class Body:
    """One operation's body. `valid` has every field, each with a value that is right. `most` is its size in bytes."""

    operation: str
    method: str
    path: str
    model: type[msgspec.Struct]
    valid: dict[str, Any]
    most: int = 64 * 1024

    @property
    def fields(self) -> tuple[msgspec.structs.FieldInfo, ...]:
        return msgspec.structs.fields(self.model)

    @property
    def required(self) -> set[str]:
        return {field.encode_name for field in self.fields if field.required}

    def target(self, key_id: int) -> str:
        return self.path.format(id=key_id)


LATER = "2099-01-01T00:00:00Z"

BODIES = {
    body.operation: body
    for body in (
        Body("signUp", "POST", "/api/auth/signup", SignUp, {"email": "ada@example.com", "password": PASSWORD}),
        Body("logIn", "POST", "/api/auth/login", LogIn, {"email": "ada@example.com", "password": PASSWORD}),
        Body(
            "changePassword",
            "PUT",
            "/api/auth/password",
            ChangePassword,
            {"current_password": PASSWORD, "new_password": PASSWORD},
        ),
        # Well-formed and wrong: with the right one, the account would be gone.
        Body("deleteAccount", "DELETE", "/api/auth/me", DeleteAccount, {"current_password": "not this one"}),
        Body(
            "createToken",
            "POST",
            "/api/tokens",
            NewToken,
            {"name": "x", "scopes": ["keys:read"], "expires_at": LATER},
        ),
        Body(
            "createKey",
            "POST",
            "/api/keys",
            NewKey,
            {"service": "OPENAI", "api_key": OPENAI_KEY, "name": "x", "expires_at": LATER, "settings": {}},
        ),
        # Each entry is read by itself; test_batch.py has invalid ones.
        Body(
            "createKeys",
            "POST",
            "/api/keys/batch",
            NewKeys,
            {"keys": [{"service": "OPENAI", "api_key": OPENAI_KEY}]},
            1024 * 1024,
        ),
        Body(
            "replaceKey",
            "PUT",
            "/api/keys/{id}",
            Replacement,
            {"api_key": OPENAI_KEY, "name": "x", "expires_at": LATER, "settings": {}},
        ),
        Body(
            "changeKey",
            "PATCH",
            "/api/keys/{id}",
            Change,
            {"name": "x", "expires_at": LATER, "disabled": False, "settings": {}, "default": False},
        ),
    )
}

BY_TYPE: dict[type, tuple[Any, ...]] = {
    str: ("", CANARY, "\0"),
    int: (0, 7, -1, 10**30),
    float: (7.5, -0.0),
    bool: (True, False),
    NoneType: (None,),
    list: ([], [CANARY], [[]]),
    dict: ({}, {CANARY: CANARY}),
}
"""Values of each type that JSON has."""


def accepted_types(field: msgspec.structs.FieldInfo) -> set[type]:
    """The JSON types that a field can have at all, from its annotation."""
    kinds: set[type] = set()
    is_union = typing.get_origin(field.type) not in (None, list, typing.Annotated)
    parts = typing.get_args(field.type) if is_union else (field.type,)
    for part in parts:
        plain = typing.get_args(part)[0] if typing.get_origin(part) is typing.Annotated else part
        if plain is msgspec.UnsetType:
            continue
        origin = typing.get_origin(plain) or plain
        kinds.add(dict if origin is KeySettings else origin if origin in (bool, list, NoneType) else str)
    return kinds


def wrong_values(field: msgspec.structs.FieldInfo) -> list[Any]:
    """Values of every JSON type that a field cannot have."""
    accepted = accepted_types(field)
    return [value for kind, values in BY_TYPE.items() if kind not in accepted for value in values]


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from([CANARY, OPENAI_KEY, "OPENAI", LATER]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=12), children, max_size=4),
    max_leaves=8,
)


@dataclass(frozen=True)
class Mistake:
    """A body and the fields that a problem must name, the empty one for unknown fields."""

    body: Body
    sent: dict[str, Any]
    faults: tuple[str, ...]


# No `st.data()` in the tests: what hypothesis raises from a draw inside a coroutine would end anyio's runner.


@st.composite
def mistakes(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Mistake:
    """A body of which each field is right, left out or of a wrong type, with unknown fields or without."""
    body = BODIES[draw(st.sampled_from(sorted(BODIES)))]
    sent: dict[str, Any] = {}
    faults: list[str] = []
    for field in body.fields:
        name = field.encode_name
        choice = draw(st.sampled_from(("right", "left out", "wrong")))
        if choice == "left out":
            faults += [name] if field.required else []
            continue
        sent[name] = body.valid[name] if choice == "right" else draw(st.sampled_from(wrong_values(field)))
        faults += [name] if choice == "wrong" else []
    unknown = draw(st.dictionaries(st.text(max_size=10), ANY_JSON, max_size=2))
    unknown = {name: value for name, value in unknown.items() if name not in body.valid}
    if unknown:
        faults.append("")
    return Mistake(body, {**unknown, **sent}, tuple(faults))


@st.composite
def damaged(draw: Callable[[st.SearchStrategy[Any]], Any]) -> tuple[Body, bytes]:
    """A right body with a few bytes removed, replaced or added."""
    body = BODIES[draw(st.sampled_from(("createKey", "replaceKey", "changeKey", "createToken")))]
    content = bytearray(json.dumps(body.valid).encode())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content) - 1))
        content[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return body, bytes(content)


WITHOUT_TEXTS = ("logIn", "deleteAccount")
"""Operations whose texts are refused or accepted by what is stored, and not by their form."""

FIELDS = [
    (body.operation, name) for body in BODIES.values() for name in body.valid if body.operation not in WITHOUT_TEXTS
]
