"""The result of a check."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class State(StrEnum):
    """The state of a check. `warning` does not fail the run; `skipped` was not possible, because of a failure above."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


class Finding(msgspec.Struct, frozen=True):
    """One line of the report: the check, its state, what was found, and what to do about it.

    It contains no secret, and no value of a setting that may be one.
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
