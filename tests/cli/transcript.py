"""Commands in this process, for transcripts of many lines: what `keyman` prints and how it ends, without the half
second that an interpreter needs to start. What needs a process of its own (terminals, signals, streams) has one.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from keyman.cli import main
from tests.support.cli import Finished, environment
from tests.support.logs import own_logging


def keyman(*arguments: str | Path, env: Mapping[str, str] | None = None, stdin: str | bytes = "") -> Finished:
    """Run a command to its end."""
    given = io.TextIOWrapper(io.BytesIO(stdin.encode() if isinstance(stdin, str) else stdin), "utf-8")
    out, err = io.BytesIO(), io.BytesIO()
    with (
        mock.patch.dict(os.environ, environment() if env is None else env, clear=True),
        mock.patch.object(sys, "argv", ["keyman", *map(str, arguments)]),
        mock.patch.object(sys, "stdin", given),
        own_logging(),
        redirect_stdout(io.TextIOWrapper(out, "utf-8", write_through=True)),
        redirect_stderr(io.TextIOWrapper(err, "utf-8", write_through=True)),
    ):
        code = _ended()
        written = out.getvalue().decode(), err.getvalue().decode()
    return Finished(code, *written)


def _ended() -> int:
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except Exception:  # noqa: BLE001  # what the interpreter would do
        traceback.print_exc()
        return 1
    return 0
