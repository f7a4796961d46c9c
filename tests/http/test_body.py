"""`keyman.http.body`: when a body is read, and that a route reads what its description says.

tests/planes/management/api/test_bad_input.py tests faults in bodies over every route.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
from litestar import Litestar, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from sqlalchemy.engine import make_url

from keyman.config.settings import Settings
from keyman.config.vault import VaultSettings
from keyman.errors import FieldError, Unauthenticated
from keyman.http.body import MAX_BYTES, read_json, takes
from keyman.http.edge import Edge
from keyman.http.exchange import Message
from keyman.http.requests import EXCEPTION_HANDLERS, AnyRequest
from keyman.metrics import Metrics
from keyman.planes import management, resolver
from keyman.values import Label
from tests.support.sources import tree_of

pytestmark = pytest.mark.anyio

CANARY = "kNrYcAnArY"


class Note(msgspec.Struct):
    name: Label


def not_the_canary(fields: Mapping[str, object]) -> Iterator[FieldError]:
    if fields.get("name") == CANARY:
        yield FieldError("name", "is not a good name")


@post("/", opt=takes(Note))
async def keep(request: AnyRequest) -> str:
    note = await read_json(request, Note, not_the_canary)
    assert await read_json(request, Note) == note
    return note.name


async def refuse(connection: ASGIConnection, _handler: BaseRouteHandler) -> None:  # type: ignore[type-arg]
    if "authorization" not in connection.headers:
        raise Unauthenticated("Say who you are.")


async def send(content: bytes, **headers: str) -> tuple[int, dict[str, object], int]:
    """The status and the JSON of the answer, and how often the body was asked for."""
    app = Litestar(
        [keep],
        guards=[refuse],
        exception_handlers=EXCEPTION_HANDLERS,
        request_max_body_size=MAX_BYTES,
        openapi_config=None,
        logging_config=None,
    )
    settings = Settings(
        make_url("sqlite+aiosqlite:///x"), VaultSettings("http://127.0.0.1:8200"), public_url="http://127.0.0.1:8000"
    )
    sent = {"content_type": "application/json", "authorization": "x", **headers}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in sent.items() if value],
        "client": ("192.0.2.1", 40000),
    }
    asked, messages = 0, list[Message]()

    async def receive() -> Message:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": content, "more_body": False}

    async def take(message: Message) -> None:
        messages.append(message)

    await Edge(app, settings, Metrics())(scope, receive, take)  # type: ignore[arg-type]  # Litestar's types are narrower
    body = b"".join(message.get("body", b"") for message in messages)
    answer = json.loads(body) if body.startswith(b"{") else {"text": body.decode()}
    return messages[0]["status"], answer, asked


async def test_a_body_is_read_once_and_may_be_decoded_twice() -> None:
    assert await send(b'{"name": "Ada"}') == (201, {"text": "Ada"}, 1)


async def test_no_byte_of_a_body_is_asked_for_before_the_guards_are_through() -> None:
    status, _, asked = await send(b'{"name": "Ada"}', authorization="")
    assert (status, asked) == (401, 0)


async def test_a_body_that_says_it_is_too_long_is_not_asked_for() -> None:
    status, _, asked = await send(b"{}", content_length=str(MAX_BYTES + 1))
    assert (status, asked) == (413, 0)


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", {}, 400),
        (CANARY.encode(), {}, 400),
        (json.dumps({"name": CANARY}).encode(), {}, 400),
        (json.dumps({CANARY: 1}).encode(), {}, 400),
        (b'{"name": "' + CANARY.encode() + b'\\ud800"}', {}, 400),
        (json.dumps([CANARY]).encode(), {}, 400),
        (b"[" * 10_000, {}, 400),
        (json.dumps({"name": CANARY * MAX_BYTES}).encode(), {}, 413),
        (json.dumps({"name": CANARY}).encode(), {"content_type": "text/plain"}, 415),
        (json.dumps({"name": CANARY}).encode(), {"content_type": "application/json; charset=latin-1"}, 415),
        (json.dumps({"name": CANARY}).encode(), {"content_encoding": "gzip"}, 415),
    ],
)
async def test_what_is_refused_is_not_repeated(content: bytes, headers: dict[str, str], status: int) -> None:
    got, answer, _ = await send(content, **headers)
    assert got == status
    assert CANARY not in str(answer)


async def test_faults_of_the_fields_and_of_the_check_come_together() -> None:
    _, answer, _ = await send(json.dumps({"name": CANARY, "x": 1}).encode())
    assert answer["errors"] == [
        {"field": "", "message": "The body has an unknown field; the known fields are name."},
        {"field": "name", "message": "is not a good name"},
    ]


def _names(function: ast.AsyncFunctionDef | ast.FunctionDef, call: str, argument: int) -> list[str]:
    """What a function, or what decorates it, gives a call as this argument."""
    return [
        ast.unparse(node.args[argument])
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == call
    ]


def test_every_route_reads_the_body_that_its_description_shows() -> None:
    described = dict[str, str]()
    for package in (management, resolver):
        for path in sorted(Path(inspect.getfile(package)).parent.rglob("*.py")):
            for node in ast.walk(tree_of(path)):
                if isinstance(node, ast.AsyncFunctionDef):
                    shown, read = _names(node, "takes", 0), _names(node, "read_json", 1)
                    assert shown == read, (path, node.name)
                    described |= dict.fromkeys(shown, node.name)
    assert described.keys() >= {"SignUp", "LogIn", "ChangePassword", "NewToken", "NewKey", "Replacement", "Change"}
    assert "Request" in described
