"""What a program of an SDK does: named scenes, whose results or exceptions it prints as one JSON object.

This module runs in the environment of the SDKs, so it imports nothing of keyman.
"""

from __future__ import annotations

import io
import json
import os
import sys
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout

GATEWAY = os.environ["GATEWAY"]
TOKEN = os.environ["TOKEN"]
"""Of an application. `BUSY` is one of another application, `REVOKED` one that was revoked, `PERSONAL` a user's own."""
USER = {"Keyman-User": os.environ["USER_ID"]}
HELLO = [{"role": "user", "content": "Hello"}]
OTHER_KEY = "sk-proj-Zt81LqoPw5aYc3hVn6Xe9876"


def has_read() -> None:
    """Tell the provider that the first text of a stream was read."""
    urllib.request.urlopen(f"{os.environ['PROVIDER']}/has-read", data=b"", timeout=20).close()  # noqa: S310


def read(text: str | None, texts: list[str]) -> None:
    """Keep a text of a stream. The provider sends ` day` only afterwards."""
    if text:
        texts.append(text)
    if text == "Good":
        has_read()


def set_only(names: tuple[str, ...], **variables: str) -> None:
    """Set environment variables, and remove the others that the SDK reads."""
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(variables)


def examples() -> list[str]:
    """Run the examples of the documents, and return what each prints. Here, because importing an SDK takes seconds."""
    printed = []
    for program in json.loads(os.environ["EXAMPLES"]):
        with redirect_stdout(io.StringIO()) as out:
            exec(program, {})  # noqa: S102  # it is a document of the repository
        printed.append(out.getvalue())
    return printed


def play(scenes: Mapping[str, Callable[[], object]]) -> None:
    """Print what each scene returns or raises, and what the examples print."""
    results = {}
    for name, scene in {"examples": examples, **scenes}.items():
        try:
            results[name] = scene()
        except Exception as fault:  # noqa: BLE001  # what an SDK raises is what the tests look at
            results[name] = raised(fault)
    sys.stdout.write(json.dumps(results) + "\n")


def raised(fault: Exception) -> dict[str, object]:
    """Return what a developer sees of an exception. `error` is the header Keyman-Error of the answer."""
    status = getattr(fault, "status_code", getattr(fault, "code", None))
    headers = getattr(getattr(fault, "response", None), "headers", None) or {}
    error = headers.get("keyman-error") or headers.get("Keyman-Error")
    return {"raised": type(fault).__name__, "status": status, "error": error, "text": str(fault)}
