"""Says in plain words what the people who use the pages cannot fix: that a part of keyman does not work.

The texts of the problems are for developers and operators: they name Vault and the database.
"""

from __future__ import annotations

from typing import NamedTuple

from keyman.errors import DatabaseUnavailable, Overloaded, Problem, VaultUnavailable
from keyman.storage.faults import CommitLost

NOT_NOW = "This does not work at the moment"


class Told(NamedTuple):
    """The title and the sentence of a page about a problem."""

    title: str
    detail: str


def in_plain_words(problem: Problem, method: str) -> Told:
    """Return what a page says of a problem. `method` is that of the request: a GET was not to store anything."""
    match problem:
        case VaultUnavailable():  # pages need Vault only to seal a value
            return Told(NOT_NOW, "We could not save your key. Nothing was stored. Try again.")
        case CommitLost():
            return Told(NOT_NOW, "We do not know whether your change was saved. Look before you send it again.")
        case DatabaseUnavailable() | Overloaded() if method in ("GET", "HEAD"):
            return Told(NOT_NOW, "We could not load this page. Try again in a moment.")
        case DatabaseUnavailable() | Overloaded():
            return Told(NOT_NOW, "We could not save your change. Nothing was stored. Try again.")
    return Told(problem.title, problem.detail)
