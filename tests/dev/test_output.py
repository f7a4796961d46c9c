"""What `keyman dev` passes on of its planes: little before its banner, and everything after it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

from keyman.dev.output import Output

INFORMATION = (
    "[info     ] request   route=/readyz\n",
    "\x1b[2m[\x1b[32m\x1b[1minfo     \x1b[0m] \x1b[1mrequest\x1b[0m\n",
    '{"event": "request", "level": "info"}\n',
    '{"event":"request","level":"debug"}\n',
)
OTHERS = ("[warning  ] no TLS\n", '{"event": "no TLS", "level": "warning"}\n', "Traceback: info\n", "no line end")


def passed_on(lines: tuple[str, ...], before: Callable[[Output], None], after: Callable[[Output], None]) -> str:
    """Write lines as planes do, which have ended when the output is closed. Return what stands on standard error."""
    stream = io.BytesIO()
    fake = SimpleNamespace(buffer=stream, flush=lambda: None)
    with mock.patch.object(sys, "stderr", fake), Output(is_open=False) as output:
        descriptor = os.dup(output.descriptor)
        output.start()
        before(output)
        with os.fdopen(descriptor, "wb") as plane:
            plane.write("".join(lines).encode())
        output._thread.join()
        after(output)
    return stream.getvalue().decode()


def nothing(_output: Output) -> None:
    return None


def test_after_the_banner_every_line_is_passed_on_in_order() -> None:
    lines = (*INFORMATION, *OTHERS)
    assert passed_on(lines, Output.open, nothing) == "".join(lines)


def test_before_the_banner_only_what_somebody_has_to_know_is() -> None:
    assert passed_on((*INFORMATION, *OTHERS), nothing, Output.open) == "".join(OTHERS)


def test_a_start_that_fails_shows_what_came_before() -> None:
    assert passed_on((*INFORMATION, OTHERS[0]), nothing, nothing) == "".join((OTHERS[0], *INFORMATION))


def test_the_line_of_a_request_of_keyman_dev_itself_is_left_out() -> None:
    def own(output: Output) -> None:
        output.open()
        output.leave_out("")
        output.leave_out("6239fa38")

    lines = ("[info] request request_id=6239fa38\n", "[info] request request_id=7af6a84c\n")
    assert passed_on(lines, own, nothing) == "[info] request request_id=7af6a84c\n"


def test_an_output_that_was_never_started_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Output(is_open=False):
        assert len(os.listdir("/proc/self/fd")) == before + 2
    assert len(os.listdir("/proc/self/fd")) == before
