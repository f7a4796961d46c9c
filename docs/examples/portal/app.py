"""A product whose users store their API keys in keyman: run it, open http://127.0.0.1:5000, and press the button.

It needs `KEYMAN_RESOLVER_URL`, such as http://127.0.0.1:8001, and `KEYMAN_APP_TOKEN`, the token of an application that
was registered with `--service OPENAI --portal --return-url http://127.0.0.1:5000/`. The README shows the commands.
"""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from keyman.client import NotFound, Resolver

PORT = int(os.environ.get("PORT", "5000"))
USER = "user-42"  # in your product: the user of the session

resolver = Resolver()


def has_key() -> bool:
    try:
        resolver.resolve(subject=USER, service="OPENAI", purpose="Show whether there is a key")
    except NotFound:
        return False
    return True


class Shop(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        state = "a key" if has_key() else "no key"
        page = f"""<!doctype html><meta charset="utf-8"><title>Shop</title><h1>Shop</h1>
            <p>You have stored {state} for OpenAI.</p>
            <form method="post" action="/keys"><button>Manage your API keys</button></form>"""
        self.answer(200, {"Content-Type": "text/html"}, page)

    def do_POST(self) -> None:
        # Make the link when the user asks for it, and redirect at once: it works once, and for five minutes.
        link = resolver.portal_link(subject=USER, name="Ada Lovelace")
        self.answer(303, {"Location": link.url})

    def answer(self, status: int, headers: dict[str, str], page: str = "") -> None:
        body = page.encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Shop).serve_forever()
