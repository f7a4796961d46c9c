"""The result of a check, and a list of checks that ends only with its last one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from enum import StrEnum

import msgspec

from keyman.errors import (
    VAULT_DETAILS,
    ConfigurationError,
    DatabaseUnavailable,
    RefusedStatement,
    VaultUnavailable,
)


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


async def to_the_end(findings: AsyncIterator[Finding], checks: Sequence[str]) -> AsyncIterator[Finding]:
    """Yield a finding for each check, in any case. An exception becomes the finding of the check that raised it."""
    left = list(checks)
    try:
        async for finding in findings:
            left.remove(finding.check)
            yield finding
        return
    except ConfigurationError:  # the finding `database` or `schema` has reported it
        for check in left:
            yield skipped(check, "the database cannot be read")
        return
    except DatabaseUnavailable as fault:
        found, remedy = f"the database cannot be used ({fault.kind or 'no answer'})", "check that it runs"
    except VaultUnavailable as fault:
        found, remedy = VAULT_DETAILS[fault.reason], "see the results of the checks of Vault"
    except (RefusedStatement, ValueError):  # ValueError: a value in a row does not fit the type of its column
        found = "the database is damaged, was changed by hand, or is not a database of keyman"
        remedy = "run keyman db check; restore a backup"
    yield failed(left[0], found, remedy)
    for check in left[1:]:
        yield skipped(check, "the failure above ended the checks")
