"""A made-up provider, for first steps without the internet or without a real key: it answers each chat with "Hello".

It has the addresses of OpenAI and Anthropic, accepts every key, and does not stream. `services.toml`, beside it, sends
the requests of the gateway here. docs/reference/configuration.md shows the commands.
"""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PORT = int(os.environ.get("PORT", "9187"))

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "made-up",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}],
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "made-up",
    "content": [{"type": "text", "text": "Hello"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
MODELS = {"object": "list", "data": [{"id": "made-up", "object": "model", "created": 1, "owned_by": "nobody"}]}
ANSWERS = {"/v1/chat/completions": CHAT, "/v1/messages": MESSAGE, "/v1/models": MODELS}


class Provider(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        answer = ANSWERS.get(urlsplit(self.path).path)
        body = json.dumps(answer or {"error": {"message": "The made-up provider does not know this path."}}).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.do_POST()


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Provider).serve_forever()
