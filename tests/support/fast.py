"""What `make test-fast` leaves out: a shorter run for the inner loop.

It runs on SQLite and the embedded Vault. Tests on PostgreSQL, in a browser or a container, and those that mostly start
processes are left to `make test`. Properties are tried with fewer inputs.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

VARIABLE = "KEYMAN_TEST_FAST"
"""Set by `make test-fast`."""

LEFT_OUT = "PostgreSQL, browser, Docker, faults, the command line and whatever else starts processes"
"""For the end of a fast run."""

SLOW = (
    "tests/cli/test_audit.py",
    "tests/cli/test_common.py",
    "tests/cli/test_db.py",
    "tests/cli/test_doctor.py",
    "tests/cli/test_rewrap.py",
    "tests/cli/test_serve.py",
    "tests/cli/test_token.py",
    "tests/cli/test_user.py",
    "tests/cli/test_vault.py",
    "tests/dev/test_embedded.py",
    "tests/dev/test_run.py",
    "tests/docker/test_certificates.py",
    "tests/docker/test_stack.py",
    "tests/faults/",
    "tests/migrations/test_upgrade.py",
    "tests/planes/management/api/test_canary.py",
    "tests/planes/management/api/test_schemathesis.py",
    "tests/planes/management/api/test_services.py",
    "tests/planes/management/api/test_throttling.py",
    "tests/planes/management/api/test_wire.py",
    "tests/planes/management/web/test_form.py",
    "tests/planes/management/web/test_journeys.py",
    "tests/planes/management/web/test_list.py",
    "tests/planes/management/web/test_looks.py",
    "tests/planes/management/web/test_reference.py",
    "tests/planes/management/web/test_safety.py",
    "tests/planes/management/web/test_trouble.py",
    "tests/planes/resolver/test_app.py",
    "tests/planes/resolver/test_exchanges.py",
    "tests/planes/resolver/test_schemathesis.py",
    "tests/planes/resolver/test_vaults_audit.py",
    "tests/storage/test_plans.py",
    "tests/test_conventions.py",
    "tests/test_package.py",
    "tests/test_processes.py",
    "tests/test_readme.py",
    "tests/test_support.py",
    "tests/vault/test_login.py",
    "tests/vault/test_terraform.py",
)
"""Files and directories, most of whose time goes to processes that start or to bounds that run out."""

SLOW_TESTS = (
    "tests/audit/test_listing.py::test_a_filter_takes_what_it_says_and_its_pages_join_to_the_whole",
    "tests/audit/test_retention.py::test_replacing_deleting_and_pruning_at_once_leave_a_valid_audit_log",
    "tests/keys/test_rewrap.py::test_a_run_that_is_stopped_has_lost_nothing_and_the_next_one_goes_on",
    "tests/keys/test_rewrap.py::test_every_row_comes_to_the_newest_version_and_holds_what_it_held",
    "tests/keys/test_rewrap.py::test_two_runs_at_once_do_no_harm",
    "tests/migrations/test_migrations.py::test_several_processes_that_upgrade_at_once_make_one_schema",
    "tests/planes/management/api/test_methods.py::test_every_method_on_every_route_gets_a_documented_answer",
    "tests/planes/management/api/test_scopes.py::test_a_token_may_do_what_its_scopes_say_and_nothing_else",
    "tests/planes/management/web/test_activity.py::test_a_kind_and_a_period_are_chosen_by_a_plain_form_and_kept_over_pages",
    "tests/planes/management/web/test_http.py::test_a_label_is_text_wherever_it_is_shown",
    "tests/planes/management/web/test_http.py::test_pages_of_a_long_list_lead_to_all_of_it",
    "tests/planes/management/web/test_language.py::test_every_page_says_that_it_is_german",
    "tests/planes/management/web/test_language.py::test_no_page_holds_a_word_that_the_catalogue_does_not_have",
    "tests/storage/test_database.py::test_a_server_that_went_away_is_missed_and_found_again",
    "tests/storage/test_database.py::test_many_writers_at_once_are_all_served_on_sqlite",
    "tests/test_interrupts.py::test_a_child_of_a_run_in_the_background_of_a_script_can_be_interrupted",
    "tests/test_structure.py::test_no_test_returns_early_and_counts_as_passed",
    "tests/test_structure.py::test_what_the_management_plane_loads_is_what_its_source_says",
    "tests/test_telemetry.py::test_a_whole_visit_at_debug_leaves_nothing_of_what_was_sent",
    "tests/test_telemetry.py::test_several_processes_add_up",
    "tests/test_words.py::test_no_code_uses_a_banned_word_in_a_text",
    "tests/test_words.py::test_no_test_uses_a_banned_word_in_a_docstring_a_comment_or_a_message",
    "tests/vault/test_cipher.py::test_when_vault_is_killed_every_caller_hears_it_and_nothing_sealed_is_lost",
    "tests/vault/test_guard.py::test_a_stopped_vault_is_unreachable_and_then_passes_again",
)
"""Tests that take a second of a processor or more, in files that are otherwise fast."""

EXAMPLES = 20
"""How many inputs Hypothesis tries at most for a property in a fast run."""


def is_wanted() -> bool:
    """Return True in a fast run."""
    return bool(os.environ.get(VARIABLE))


def examples(whole: int) -> int:
    """Return how many inputs to try for a property: `whole`, and in a fast run EXAMPLES at most."""
    return min(whole, EXAMPLES) if is_wanted() else whole


def is_left_out(path: Path) -> bool:
    """Return True for a file or a directory that a fast run does not even import.

    Every worker imports what it collects: to leave the others out afterwards takes each some seconds.
    """
    return is_wanted() and f"{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}".startswith(SLOW)


def narrow(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave single tests out of a fast run, and say so to pytest, which counts them as deselected."""
    if not is_wanted():
        return
    left_out = [item for item in items if _is_slow(item)]
    items[:] = [item for item in items if not _is_slow(item)]
    config.hook.pytest_deselected(items=left_out)


def _is_slow(item: pytest.Item) -> bool:
    name, _, parameters = item.nodeid.partition("[")
    on_postgresql = "postgres" in getattr(item, "fixturenames", ()) or "postgresql" in parameters
    return on_postgresql or "container" in parameters.rstrip("]").split("-") or name in SLOW_TESTS
