"""Decide whether a missing outside part skips tests or fails them, and report it.

On a developer's machine a test is skipped if its outside part is absent. CI sets `KEYMAN_TEST_REQUIRE` to the parts
that must be present; there the absence of one fails the test.

The module has the hook that reports, right above pytest's closing line, what the run did not exercise and why. With
pytest-xdist the controller reports it, once.
"""

import os
from collections import Counter
from collections.abc import Generator, Iterable

import pytest

from tests.support import fast

KNOWN = frozenset({"docker", "chromium", "postgres", "proxies", "terraform", "node", "sdks"})
"""`proxies` are nginx, HAProxy and PgBouncer; `node` is Node with npm; `sdks` are those of providers, in .venv/sdks."""

VARIABLE = "KEYMAN_TEST_REQUIRE"
SLOW = "KEYMAN_TEST_SLOW"
"""Set to run the tests that are marked `slow`; tests/README.md says which these are. `.ci/run` sets it."""


def quick_on(kind: str, fixture: str = "database") -> pytest.MarkDecorator:
    """Mark a test of a fixture for both databases: the run without the slow tests has it on this one only."""
    kinds = [pytest.param(one, marks=[] if one == kind else pytest.mark.slow) for one in ("sqlite", "postgresql")]
    return pytest.mark.parametrize(fixture, kinds, indirect=True)


def quick(representative: Iterable[object], others: Iterable[object]) -> list[object]:
    """Return the values of a parameter. Those of `others` are slow: each proves the same property in another way."""
    return [*representative, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]


def required() -> frozenset[str]:
    """The parts named by `KEYMAN_TEST_REQUIRE`; a name that nobody knows is a `ValueError`."""
    names = frozenset(name.strip() for name in os.environ.get(VARIABLE, "").split(",")) - {""}
    if unknown := names - KNOWN:
        raise ValueError(f"{VARIABLE} names {sorted(unknown)}; known are {sorted(KNOWN)}")
    return names


def require(what: str, absence: str | None) -> None:
    """Return when `what` is present (`absence` is None); otherwise fail where it is required, else skip."""
    if what not in KNOWN:
        raise ValueError(f"{what!r} is none of {sorted(KNOWN)}")
    if absence is None:
        return
    if what in required():
        pytest.fail(f"{VARIABLE} demands {what}, but {absence}", pytrace=False)
    pytest.skip(f"{what}: {absence}")


def are_slow_wanted() -> bool:
    """Whether the run has the tests that are marked `slow`; others are then longer, too."""
    return bool(os.environ.get(SLOW))


def skip_slow(items: list[pytest.Item]) -> None:
    """Mark the tests that are marked `slow` as skipped, unless `KEYMAN_TEST_SLOW` is set."""
    if are_slow_wanted():
        return
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(pytest.mark.skip(reason=f"slow: set {SLOW}=1 to run it"))


def pytest_configure() -> None:
    """Reject a misspelt `KEYMAN_TEST_REQUIRE` before any test runs, because it would require nothing."""
    try:
        required()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


# A wrapper around pytest's own wrapper of this hook: what follows `yield` comes after the failures and the
# short summary, so the only line that pytest writes after it is its closing line.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> Generator[None]:
    """Print the section "not exercised" as the run's last lines above pytest's closing line."""
    yield
    reporter = terminalreporter
    skipped = _skipped(reporter)
    reporter.section("not exercised", sep="-", bold=True)
    for reason, count in sorted(skipped.items()):
        reporter.line(f"{count} skipped: {reason}", yellow=True)
    if os.environ.get(fast.VARIABLE):
        reporter.line(f"left out by `make test-fast`: {fast.LEFT_OUT}", yellow=True)
        return
    if skipped:
        return
    if exitstatus == pytest.ExitCode.OK and not _narrowed(config):
        reporter.line("everything was exercised", green=True)
    else:
        reporter.line("nothing was skipped, but the run was narrowed, failed or ended early", yellow=True)


def _skipped(reporter: pytest.TerminalReporter) -> Counter[str]:
    # Every xdist worker reports a file that it skips as a whole: one node counts once.
    reasons: dict[str, str] = {}
    for report in reporter.stats.get("skipped", []):
        where = report.longrepr
        reason = str(where[2] if isinstance(where, tuple) else where)
        reasons[report.nodeid] = reason.removeprefix("Skipped: ")
    return Counter(reasons.values())


def _narrowed(config: pytest.Config) -> bool:
    """Whether the command line picked some of the tests only."""
    by_name = config.args_source is pytest.Config.ArgsSource.ARGS
    return by_name or any(config.getoption(name, None) for name in ("keyword", "markexpr", "deselect", "lf"))
