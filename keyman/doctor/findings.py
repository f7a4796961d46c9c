"""What a check says."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class State(StrEnum):
    """`warning` deserves a look and fails nothing; `skipped` could not be looked at, for a reason that failed above."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


class Finding(msgspec.Struct, frozen=True):
    """One line: which check, how it is, what was found, and what to do where something is to be done.

    Holds no secret and no value of a setting that may be one.
    """

    check: str
    state: State
    found: str
    remedy: str | None = None


def ok(check: str, found: str) -> Finding:
    return Finding(check, State.OK, found)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, State.WARNING, found, remedy)


def failed(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, State.FAILED, found, remedy)


def skipped(check: str, found: str) -> Finding:
    return Finding(check, State.SKIPPED, found)
