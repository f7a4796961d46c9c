"""A provider on loopback that speaks the formats of OpenAI, Anthropic, Google and Amazon Bedrock.

It knows one key for each service. An event with ` day` is sent only after the client has said that it read `Good`, at
/has-read. What a client asked is in `Stub.asked`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

KEYS = {
    "OPENAI": "sk-proj-hq2v9mXbT0c7eUKwN4Rd1234",
    "ANTHROPIC": "sk-ant-api03-hq2v9mXbT0c7eUKwN4Rd",
    "GOOGLE": "AIzaHq2v9mXbT0c7eUKwN4Rd1234",
    "AZURE_OPENAI": "azHq2v9mXbT0c7eUKwN4Rd1234",
    "AWS_BEDROCK": "bedrock-api-key-hq2v9mXbT0c7eUKwN4Rd",
}

PATIENCE = 20
"""Seconds that the provider waits until the client has read `Good`."""

_CHAT = {"model": "gpt-x", "id": "chatcmpl-1", "created": 1}
_MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
_GOOGLE_USAGE = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}


def _chat(text: str) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {**_CHAT, "object": "chat.completion", "choices": [choice], "usage": usage}


def _response(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": content}
    given = {"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "gpt-x"}
    return {**given, "output": [message], "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}


def _message(text: str) -> dict[str, Any]:
    return {**_MESSAGE, "content": [{"type": "text", "text": text}], "stop_reason": "end_turn"}


def _generated(text: str, reason: str | None = "STOP") -> dict[str, Any]:
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, "finishReason": reason}
    return {"candidates": [candidate], "usageMetadata": _GOOGLE_USAGE, "modelVersion": "gemini-x"}


def _converse(text: str) -> dict[str, Any]:
    usage = {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}
    output = {"message": {"role": "assistant", "content": [{"text": text}]}}
    return {"output": output, "stopReason": "end_turn", "usage": usage, "metrics": {"latencyMs": 1}}


def _data(*contents: object) -> list[bytes]:
    return [f"data: {json.dumps(content)}\n\n".encode() for content in contents]


def _chat_events(texts: list[str]) -> list[bytes]:
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}, *({"content": text} for text in texts)]
    choices: list[Any] = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    choices.append([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    chunks = [{**_CHAT, "object": "chat.completion.chunk", "choices": choice} for choice in choices]
    return [*_data(*chunks), b"data: [DONE]\n\n"]


def _message_events(texts: list[str]) -> list[bytes]:
    deltas = [{"type": "text_delta", "text": text} for text in texts]
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**_MESSAGE, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    return [f"event: {event['type']}\n".encode() + _data(event)[0] for event in events]


def _generated_events(texts: list[str]) -> list[bytes]:
    return _data(*(_generated(text, "STOP" if text == texts[-1] else None) for text in texts))


class Format(NamedTuple):
    """How one API answers, and how it says that it does not accept a key."""

    service: str
    header: str
    answer: Any
    events: Any = None

    def accepts(self, headers: Message) -> bool:
        """Return whether the key is where the gateway puts it, or where SDKs that ask the provider itself may, too."""
        key = KEYS[self.service]
        return headers[self.header] == key or headers["Authorization"] == f"Bearer {key}"


_FORMATS = {
    "/OPENAI/v1/chat/completions": Format("OPENAI", "Authorization", _chat, _chat_events),
    "/OPENAI/v1/responses": Format("OPENAI", "Authorization", _response),
    "/ANTHROPIC/v1/messages": Format("ANTHROPIC", "x-api-key", _message, _message_events),
    "/GOOGLE/v1": Format("GOOGLE", "x-goog-api-key", _generated, _generated_events),
    "/AZURE_OPENAI/openai/": Format("AZURE_OPENAI", "api-key", _chat, _chat_events),
    "/AWS_BEDROCK/model/": Format("AWS_BEDROCK", "Authorization", _converse),
    "/AWS_BEDROCK/openai/v1/chat/completions": Format("AWS_BEDROCK", "Authorization", _chat, _chat_events),
}
"""By the beginning of a path, which itself begins with the name of the service."""


class Stub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    has_read = threading.Semaphore(0)
    is_over = threading.Event()
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path}")
        self._answer(200, {"object": "list", "data": [{"id": "gpt-x", "object": "model", "created": 1}]})

    def do_POST(self) -> None:
        if self.path == "/has-read":
            self.has_read.release()
            self._answer(200, {})
            return
        self.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        form = next(form for path, form in _FORMATS.items() if self.path.startswith(path))
        shown = self.headers[form.header] or self.headers["Authorization"]
        named = body.decode() + self.path
        if not form.accepts(self.headers) or "refused" in named:
            error = {"message": f"Incorrect API key provided: {shown}", "type": "invalid_request_error", "code": "x"}
            self._answer(401, {"type": "error", "error": error})
        elif "overloaded" in named:
            self.asked.append("overloaded")
            self._answer(503, {"error": {"message": "Come back later", "type": "overloaded"}}, ("retry-after-ms", "1"))
        elif "held" in named:
            self._stream(form, ["Good", "held"])
        elif b'"stream":true' in body.replace(b" ", b"") or ":streamGenerateContent" in urlsplit(self.path).path:
            self._stream(form, ["Good", " day"])
        else:
            self._answer(200, form.answer("Hi"))

    def _answer(self, status: int, content: object, *headers: tuple[str, str]) -> None:
        sent = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)

    def _stream(self, form: Format, texts: list[str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in [*form.events(texts), b""]:
            if b'" day"' in event:
                assert self.has_read.acquire(timeout=PATIENCE), "the client did not read the event before"
            if b'"held"' in event:
                self.is_over.wait()
                return
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))

    def log_message(self, format: str, *args: object) -> None:
        pass


class Provider(NamedTuple):
    url: str
    asked: list[str]

    def services(self, *others: dict[str, Any]) -> str:
        """Return the content of a services file that sends the requests of each service here."""
        return json.dumps([*({"service": name, "base_url": f"{self.url}/{name}"} for name in KEYS), *others])


@contextmanager
def provider() -> Iterator[Provider]:
    asked, over = list[str](), threading.Event()
    handler = type("Handler", (Stub,), {"asked": asked, "is_over": over, "has_read": threading.Semaphore(0)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield Provider(f"http://127.0.0.1:{server.server_port}", asked)
        finally:
            over.set()
            server.shutdown()
