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
    "tests/attack/",
    "tests/cli/owner/",
    "tests/cli/test_audit.py",
    "tests/cli/test_db.py",
    "tests/cli/test_doctor.py",
    "tests/cli/test_drain.py",
    "tests/cli/test_floods.py",
    "tests/cli/test_metrics.py",
    "tests/cli/test_rewrap.py",
    "tests/cli/test_serve.py",
    "tests/cli/test_token.py",
    "tests/cli/test_user.py",
    "tests/cli/test_vault.py",
    "tests/client/test_forks.py",
    "tests/dev/test_embedded.py",
    "tests/dev/test_run.py",
    "tests/docker/test_certificates.py",
    "tests/docker/test_healthcheck.py",
    "tests/docker/test_stack.py",
    "tests/docker/test_vault_init.py",
    "tests/faults/",
    "tests/keys/test_erasure.py",
    "tests/keys/test_probe.py",
    "tests/keys/test_rewrap.py",
    "tests/migrations/test_migrations.py",
    "tests/migrations/test_upgrade.py",
    "tests/planes/gateway/test_streaming.py",
    "tests/planes/management/api/test_canary.py",
    "tests/planes/management/api/test_failed_sign_ins.py",
    "tests/planes/management/api/test_front.py",
    "tests/planes/management/api/test_jwt.py",
    "tests/planes/management/api/test_limits.py",
    "tests/planes/management/api/test_schemathesis.py",
    "tests/planes/management/api/test_services.py",
    "tests/planes/management/api/test_throttling.py",
    "tests/planes/management/api/test_wire.py",
    "tests/planes/management/web/test_account_delete.py",
    "tests/planes/management/web/test_activity.py",
    "tests/planes/management/web/test_adding.py",
    "tests/planes/management/web/test_check_walk.py",
    "tests/planes/management/web/test_connected.py",
    "tests/planes/management/web/test_focus.py",
    "tests/planes/management/web/test_form.py",
    "tests/planes/management/web/test_heard.py",
    "tests/planes/management/web/test_journeys.py",
    "tests/planes/management/web/test_keyboard.py",
    "tests/planes/management/web/test_language.py",
    "tests/planes/management/web/test_list.py",
    "tests/planes/management/web/test_looks.py",
    "tests/planes/management/web/test_marks.py",
    "tests/planes/management/web/test_node_provider.py",
    "tests/planes/management/web/test_oidc.py",
    "tests/planes/management/web/test_oidc_rules.py",
    "tests/planes/management/web/test_portal.py",
    "tests/planes/management/web/test_provider_walk.py",
    "tests/planes/management/web/test_reference.py",
    "tests/planes/management/web/test_safety.py",
    "tests/planes/management/web/test_selected.py",
    "tests/planes/management/web/test_settings_form.py",
    "tests/planes/management/web/test_several_walk.py",
    "tests/planes/management/web/test_switch.py",
    "tests/planes/management/web/test_toasts.py",
    "tests/planes/management/web/test_trouble.py",
    "tests/planes/resolver/test_app.py",
    "tests/planes/resolver/test_exchanges.py",
    "tests/planes/resolver/test_interleavings.py",
    "tests/planes/resolver/test_revocation.py",
    "tests/planes/resolver/test_schemathesis.py",
    "tests/planes/resolver/test_together.py",
    "tests/planes/resolver/test_vaults_audit.py",
    "tests/storage/test_connecting.py",
    "tests/storage/test_database.py",
    "tests/storage/test_plans.py",
    "tests/test_conventions.py",
    "tests/test_memory.py",
    "tests/test_package.py",
    "tests/test_processes.py",
    "tests/test_readme.py",
    "tests/test_support.py",
    "tests/vault/test_adapter.py",
    "tests/vault/test_cipher.py",
    "tests/vault/test_guard.py",
    "tests/vault/test_locations.py",
    "tests/vault/test_login.py",
    "tests/vault/test_terraform.py",
    "tests/vault/test_wrapping.py",
)
"""Files and directories, most of whose time goes to processes that start or to bounds that run out."""

SLOW_TESTS = {
    "tests/audit/test_entries.py": ("test_every_action_of_every_actor_can_be_recorded",),
    "tests/audit/test_listing.py": ("test_a_filter_takes_what_it_says_and_its_pages_join_to_the_whole",),
    "tests/audit/test_retention.py": (
        "test_a_second_pruning_that_somebody_hides_is_found",
        "test_it_is_pruned_again_and_again",
        "test_no_older_value_comes_back_whichever_chain_goes_first",
        "test_replacing_deleting_and_pruning_at_once_leave_a_valid_audit_log",
    ),
    "tests/audit/test_verification.py": (
        "test_a_changed_entry_is_named_whatever_was_changed",
        "test_it_verifies_while_others_write",
        "test_what_an_anchor_does_not_hold_any_more_it_does_not_vouch_for",
        "test_what_hashes_alike_and_is_another_thing_in_sqlite_is_found",
        "test_what_no_entry_can_hold_is_found_and_what_is_around_it_still_verified",
        "test_writers_at_once_leave_one_chain_of_each",
    ),
    "tests/cli/test_common.py": (
        "test_a_closed_stream_is_no_traceback",
        "test_a_database_can_be_named_by_a_file",
        "test_a_directory_that_cannot_be_written_to_is_said_in_words",
        "test_a_file_that_is_no_database_is_said_in_words",
        "test_a_full_disk_under_a_result_is_a_failure_in_words",
        "test_a_home_goes_before_the_variables_of_the_shell",
        "test_a_reader_that_leaves_early_gets_no_traceback",
        "test_a_server_that_refuses_is_said_in_words_without_its_password",
        "test_help_is_a_result_and_lists_every_command",
        "test_wrong_usage_ends_with_2_and_says_what_is_right",
    ),
    "tests/client/test_management.py": (
        "test_a_listing_goes_through_all_its_pages",
        "test_every_paste_is_stored_or_its_mistake_is_named",
    ),
    "tests/keys/test_deployment.py": ("test_of_many_sentinels_at_once_one_is_kept_and_every_caller_gets_it",),
    "tests/migrations/test_rights.py": ("test_what_cannot_be_granted_is_said_and_nothing_is_upgraded",),
    "tests/planes/management/api/test_accounts.py": (
        "test_a_password_is_hashed_again_when_the_parameters_have_risen",
        "test_an_old_password_opens_no_session_while_the_account_changes",
        "test_an_unknown_address_costs_the_same_work_as_a_wrong_password",
        "test_sign_up_is_refused_where_it_is_closed_whatever_the_address",
    ),
    "tests/planes/management/api/test_audit.py": (
        "test_the_audit_log_comes_in_pages",
        "test_the_audit_log_is_filtered_by_action_and_time_over_pages_that_keep_the_filter",
    ),
    "tests/planes/management/api/test_bad_input.py": (
        "test_a_right_body_with_damage_never_breaks_anything",
        "test_any_query_gets_a_listing_or_a_problem",
        "test_any_text_in_any_field_is_taken_as_it_is_or_refused_by_its_name",
        "test_everything_that_is_wrong_is_named_at_once",
        "test_half_characters_are_said_of_the_fields_that_hold_them",
        "test_random_bytes_are_refused",
        "test_random_ids_are_like_an_id_that_does_not_exist",
        "test_random_json_is_refused",
    ),
    "tests/planes/management/api/test_keys.py": (
        "test_a_name_has_up_to_100_characters_of_any_script",
        "test_a_name_holds_no_control_and_no_bidirectional_character",
        "test_a_value_that_certainly_belongs_to_another_service_is_refused",
        "test_every_paste_is_refused_as_a_replacement_too",
        "test_every_paste_is_stored_or_its_mistake_is_named",
        "test_many_at_once_are_all_stored_each_under_its_own_name",
    ),
    "tests/planes/management/api/test_listing.py": (
        "test_a_limit_is_a_whole_number_from_1_to_200_and_a_cursor_one_that_was_given",
        "test_a_search_agrees_with_case_folding_on_both_databases",
        "test_pages_join_to_the_whole_listing_whatever_their_size_and_filter",
        "test_what_is_there_throughout_is_seen_once_while_keys_come_and_go",
    ),
    "tests/planes/management/api/test_methods.py": ("test_every_method_on_every_route_gets_a_documented_answer",),
    "tests/planes/management/api/test_openapi.py": ("test_it_is_openapi_3_1_and_valid",),
    "tests/planes/management/api/test_ownership.py": ("test_another_users_id_gets_the_same_bytes_as_a_missing_one",),
    "tests/planes/management/api/test_preconditions.py": ("test_of_many_writes_with_one_etag_exactly_one_wins",),
    "tests/planes/management/api/test_scopes.py": ("test_a_token_may_do_what_its_scopes_say_and_nothing_else",),
    "tests/planes/management/api/test_sessions.py": ("test_the_cookie_is_kept_from_scripts_and_from_plain_http",),
    "tests/planes/management/api/test_tokens.py": (
        "test_a_token_is_dead_once_it_is_revoked_on_every_replica",
        "test_an_account_holds_at_most_200_tokens",
    ),
    "tests/planes/management/test_housekeeping.py": (
        "test_as_many_batches_as_it_takes",
        "test_more_than_one_batch_of_each_is_removed",
    ),
    "tests/planes/management/web/test_http.py": (
        "test_a_label_is_text_wherever_it_is_shown",
        "test_every_page_keeps_its_promises_to_the_browser",
        "test_every_paste_is_stored_or_its_mistake_is_named_beside_the_field",
        "test_no_form_whatever_it_holds_ends_in_a_500",
        "test_pages_of_a_long_list_lead_to_all_of_it",
    ),
    "tests/planes/resolver/test_openapi.py": ("test_it_is_openapi_3_1_and_valid",),
    "tests/planes/resolver/test_release.py": (
        "test_by_service_it_is_the_newest_active_key",
        "test_whatever_an_application_may_not_have_is_one_and_the_same_answer",
    ),
    "tests/planes/resolver/test_routes.py": (
        "test_every_fault_of_a_body_is_named_and_nothing_of_it_repeated_or_recorded",
    ),
    "tests/test_checks.py": (
        "test_secrets_of_the_kinds_that_keyman_handles_are_found",
        "test_what_only_looks_like_a_secret_is_not_found",
    ),
    "tests/test_interrupts.py": ("test_a_child_of_a_run_in_the_background_of_a_script_can_be_interrupted",),
    "tests/test_logs.py": ("test_a_whole_visit_at_debug_leaves_nothing_of_what_was_sent",),
    "tests/test_metrics.py": ("test_several_processes_add_up",),
    "tests/test_structure.py": (
        "test_an_application_that_loads_the_client_loads_nothing_of_the_server",
        "test_no_environment_is_read_when_a_module_is_imported",
        "test_no_test_returns_early_and_counts_as_passed",
        "test_nothing_is_imported_inside_a_function",
        "test_what_the_management_plane_loads_is_what_its_source_says",
    ),
    "tests/test_values.py": ("test_the_key_of_an_address_fits_its_column",),
    "tests/test_words.py": (
        "test_no_code_uses_a_banned_word_in_a_text",
        "test_no_test_uses_a_banned_word_in_a_docstring_a_comment_or_a_message",
    ),
}
"""By file: tests that take a quarter of a second of a processor or more, in files that are otherwise fast."""

EXAMPLES = 10
"""How many inputs Hypothesis tries at most for a property in a fast run."""

WHOLE = {"KEYMAN_TEST_SLOW", "KEYMAN_TEST_EXPLORE"}
"""Variables with which properties are tried with all of their inputs."""


def is_wanted() -> bool:
    """Return True in a fast run."""
    return bool(os.environ.get(VARIABLE))


def examples(whole: int) -> int:
    """Return how many inputs to try for a property.

    It is `whole` in a run with the slow tests, and in one that draws new inputs. Otherwise it is a third, and in a fast
    run EXAMPLES at most: a run with the same inputs as the one before finds only what a change has broken.
    """
    if is_wanted():
        return min(whole, EXAMPLES)
    return whole if WHOLE & os.environ.keys() else -(-whole // 3)


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
    file, _, name = name.partition("::")
    on_postgresql = "postgres" in getattr(item, "fixturenames", ()) or "postgresql" in parameters
    return on_postgresql or "container" in parameters.rstrip("]").split("-") or name in SLOW_TESTS.get(file, ())
