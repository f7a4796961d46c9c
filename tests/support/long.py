"""Which tests `make test` leaves to CI because of their time, besides those that are marked `slow` where they are.

Each takes more than a second and a half on two idle processors. Shorter tests show that its part works. With all slow
tests, a run takes more than twice as long.
"""

from __future__ import annotations

import pytest

LONG = {
    "tests/attack/test_attack.py": ("test_no_hostile_request_breaks_hangs_or_repeats_a_secret[management-sqlite]",),
    "tests/audit/test_listing.py": ("test_a_filter_takes_what_it_says_and_its_pages_join_to_the_whole[sqlite]",),
    "tests/audit/test_retention.py": (
        "test_replacing_deleting_and_pruning_at_once_leave_a_valid_audit_log[postgresql]",
        "test_what_a_key_holds_is_said_again[postgresql]",
    ),
    "tests/cli/test_audit.py": ("test_an_anchor_is_signed_by_vault_and_held_to_its_signature",),
    "tests/cli/test_common.py": (
        "test_a_directory_that_cannot_be_written_to_is_said_in_words",
        "test_a_file_that_is_no_database_is_said_in_words[_unreadable-user add]",
        "test_a_full_disk_under_a_result_is_a_failure_in_words",
        "test_a_home_goes_before_the_variables_of_the_shell",
        "test_a_reader_that_leaves_early_gets_no_traceback",
        "test_help_is_a_result_and_lists_every_command",
        "test_wrong_usage_ends_with_2_and_says_what_is_right",
    ),
    "tests/cli/test_db.py": ("test_a_database_is_made_brought_up_and_checked[postgresql]",),
    "tests/cli/test_doctor.py": (
        "test_a_sealed_vault_is_said_once_and_the_rest_is_skipped",
        "test_a_secret_that_everybody_can_read_is_named_by_its_variable",
        "test_a_token_that_does_not_last_is_said",
        "test_each_role_is_held_against_its_own_policy",
        "test_postgresql_is_examined_too[postgresql]",
    ),
    "tests/cli/test_drain.py": ("test_a_plane_that_stops_is_not_ready_and_ends_connections_and_still_accepts",),
    "tests/cli/test_floods.py": ("test_a_full_plane_says_so_and_that_there_is_room_again",),
    "tests/cli/test_rewrap.py": (
        "test_a_run_that_is_ended_leaves_every_key_whole_and_the_next_one_goes_on",
        "test_progress_is_a_bar_with_rate_and_time_left_on_a_terminal",
    ),
    "tests/cli/test_serve.py": (
        "test_a_database_that_is_away_is_said_without_its_password_and_does_not_stop_the_start",
        "test_a_look_at_a_database_that_is_not_there_leaves_nothing_that_others_can_read",
        "test_a_port_in_use_is_said_in_one_sentence",
        "test_a_stop_during_the_start_is_heard",
        "test_a_stop_leaves_nothing_behind",
        "test_a_wrapped_secret_id_is_taken_once_for_all_workers_and_for_those_that_follow",
        "test_an_empty_database_is_said_with_the_command_that_helps",
        "test_another_roles_wrapped_secret_id_stops_the_start",
        "test_another_schema_is_said_with_the_command_that_helps[0000]",
        "test_metrics_survive_a_worker_that_is_killed",
        "test_no_worker_outlives_a_main_process_that_is_killed",
        "test_no_worker_outlives_a_main_process_that_is_killed_during_the_start",
        "test_the_parent_of_the_workers_does_not_load_litestar",
    ),
    "tests/cli/test_token.py": ("test_what_an_operator_does_is_felt_at_once_by_a_service_that_runs",),
    "tests/cli/test_user.py": (
        "test_a_deletion_asks_first",
        "test_a_list_is_printed_whatever_the_encoding_is",
        "test_a_password_from_a_file_is_utf_8_whatever_the_encoding_is",
        "test_a_password_is_on_no_command_line",
        "test_a_password_that_is_no_text_is_said_wherever_it_is_typed",
        "test_a_terminal_is_asked_twice_and_shows_no_password",
        "test_ctrl_c_at_the_prompt_adds_nobody",
    ),
    "tests/cli/test_vault.py": (
        "test_from_nothing_a_dry_run_shows_everything_and_changes_nothing_and_a_run_does_it",
        "test_the_policy_of_the_administrator_is_enough",
        "test_what_differs_is_shown_line_by_line_before_it_is_repaired",
    ),
    "tests/client/test_forks.py": ("test_a_forked_process_does_not_wait_for_a_thread_of_its_parent",),
    "tests/client/test_management.py": ("test_every_paste_is_stored_or_its_mistake_is_named",),
    "tests/dev/test_embedded.py": (
        "test_a_second_start_finds_what_the_first_left",
        "test_data_that_does_not_open_with_the_kept_key_stops_the_start_and_stays",
        "test_it_goes_with_its_parent_and_its_data_stays",
        "test_it_waits_for_a_server_before_it_that_has_not_ended_yet",
        "test_killed_after_it_was_initialised_it_says_so_at_once_and_starts_again",
        "test_killed_between_initialising_and_keeping_the_keys_it_starts_again",
        "test_killed_while_it_starts_for_the_first_time_it_starts_again",
    ),
    "tests/dev/test_run.py": (
        "test_a_file_of_the_vault_that_is_a_link_is_said_in_one_sentence",
        "test_a_home_that_cannot_be_made_is_said_in_one_sentence",
        "test_a_port_in_use_is_said_in_one_sentence",
        "test_a_stop_leaves_all_data_and_nothing_else",
        "test_one_home_is_not_used_twice",
        "test_the_service_killed_while_it_starts_leaves_no_worker",
    ),
    "tests/faults/test_commit.py": (
        "test_each_of_a_hundred_clients_gets_a_true_answer_when_a_commit_is_not_answered[Cut.AFTER]",
        "test_each_of_a_hundred_clients_gets_a_true_answer_when_a_commit_is_not_answered[Cut.FOR_GOOD]",
    ),
    "tests/faults/test_compromise.py": (
        "test_an_account_is_deleted_with_the_rights_of_management",
        "test_managements_database_user_adds_no_application_and_changes_no_audit_log",
        "test_the_resolvers_database_user_changes_no_account_no_value_and_no_audit_log",
        "test_the_right_to_lock_an_owner_moves_no_key_and_removes_no_owner",
        "test_vault_gives_no_plaintext_to_managements_token",
        "test_what_management_can_write_makes_nothing_open_elsewhere",
        "test_writes_that_share_a_transaction_need_no_more_rights",
    ),
    "tests/faults/test_database.py": (
        "test_a_full_disk_stores_nothing_and_is_over_when_there_is_room",
        "test_a_session_ended_in_the_middle_of_a_write_stores_nothing",
        "test_a_token_is_good_for_reading_while_its_row_is_held",
        "test_many_slow_requests_exhaust_the_pool_and_nothing_hangs",
        "test_many_writers_that_wait_for_a_lock_all_get_an_answer",
    ),
    "tests/faults/test_resolver.py": (
        "test_a_database_that_cannot_be_written_to_gives_out_nothing[sqlite]",
        "test_a_second_entry_that_cannot_be_written_changes_nothing_about_the_answer",
        "test_a_vault_that_was_another_one_for_a_moment_marks_nothing",
        "test_the_entry_is_committed_before_vault_is_asked[postgresql]",
        "test_who_has_gone_away_leaves_the_entry_and_takes_nothing[postgresql]",
    ),
    "tests/faults/test_restore.py": (
        "test_a_database_older_than_the_vault_opens_and_a_retired_version_is_allowed_again",
        "test_a_database_without_its_vault_takes_no_keys_and_loses_none",
        "test_a_vault_older_than_the_database_is_recognised_and_a_newer_backup_repairs_it",
        "test_a_vault_without_its_database_starts_empty",
    ),
    "tests/faults/test_vault.py": (
        "test_a_key_that_was_deleted_or_made_again_seals_nothing",
        "test_a_slow_vault_is_waited_for_up_to_the_deadline_and_no_longer",
        "test_many_who_ask_for_readiness_share_one_wait",
        "test_nothing_is_stored_while_vault_is_sealed_on_either_database",
    ),
    "tests/identity/test_standing.py": (
        "test_a_revocation_waits_for_a_group_and_the_group_for_no_longer_than_a_moment",
    ),
    "tests/keys/test_erasure.py": ("test_a_reader_in_the_way_only_delays_the_truncation",),
    "tests/keys/test_probe.py": (
        "test_a_caller_that_gives_up_does_not_make_the_plane_unready[sqlite]",
        "test_after_a_failover_no_connection_stays_with_the_old_primary",
    ),
    "tests/keys/test_rewrap.py": (
        "test_a_row_sealed_before_the_rotation_and_stored_behind_the_run_is_not_missed[postgresql]",
        "test_a_run_that_is_stopped_has_lost_nothing_and_the_next_one_goes_on[postgresql]",
        "test_a_service_that_runs_goes_on_when_the_old_version_is_retired[postgresql]",
        "test_another_key_of_the_same_name_marks_nothing[postgresql]",
        "test_every_row_comes_to_the_newest_version_and_holds_what_it_held[postgresql]",
        "test_two_runs_at_once_do_no_harm[postgresql]",
        "test_what_vault_refuses_is_marked_and_listed_and_does_not_stop_the_rest[postgresql]",
        "test_what_was_sealed_with_a_retired_version_is_marked_until_it_is_allowed_again[postgresql]",
        "test_who_replaced_or_deleted_a_key_meanwhile_wins[postgresql]",
    ),
    "tests/migrations/test_migrations.py": (
        "test_a_migration_that_is_interrupted_leaves_nothing_behind[postgresql-CancelledError]",
        "test_a_migration_that_is_interrupted_leaves_nothing_behind[postgresql-KeyboardInterrupt]",
        "test_a_migration_that_is_interrupted_leaves_nothing_behind[postgresql-RuntimeError]",
        "test_a_migration_that_is_interrupted_leaves_nothing_behind[sqlite-RuntimeError]",
        "test_a_migration_that_the_database_refuses_leaves_nothing_behind[postgresql]",
        "test_a_second_upgrade_changes_nothing[postgresql]",
        "test_an_upgrade_keeps_sessions_and_tokens_and_gives_no_id_again[postgresql-0001]",
        "test_an_upgrade_keeps_sessions_and_tokens_and_gives_no_id_again[postgresql-0003]",
        "test_an_upgrade_keeps_sessions_and_tokens_and_gives_no_id_again[postgresql-0004]",
        "test_an_upgrade_keeps_sessions_and_tokens_and_gives_no_id_again[sqlite-0003]",
        "test_an_upgrade_may_wait_for_another_one_longer_than_a_statement_may_take",
        "test_audit_entries_from_before_applications_stay_and_applications_can_be_recorded[postgresql]",
        "test_each_deployment_has_a_uuid_of_its_own[postgresql]",
        "test_older_audit_entries_are_chained_and_name_the_values_that_are_stored",
        "test_several_processes_that_upgrade_at_once_make_one_schema",
        "test_several_upgrades_in_one_process_make_one_schema",
    ),
    "tests/migrations/test_rights.py": (
        "test_doctor_names_each_right_that_a_planes_user_lacks_and_the_command_that_grants_it[management-rights0]",
        "test_what_a_planes_user_may_beyond_its_rights_is_named_however_it_was_granted",
        "test_what_cannot_be_granted_is_said_and_nothing_is_upgraded",
    ),
    "tests/migrations/test_upgrade.py": (
        "test_an_upgrade_of_a_restored_dump_makes_the_schema_that_the_code_describes[postgresql]",
        "test_applications_get_and_are_refused_after_an_upgrade_what_they_were_before[postgresql]",
        "test_each_ciphertext_opens_in_its_row_after_an_upgrade_or_is_refused_as_before[postgresql]",
        "test_every_key_resolves_after_an_upgrade_as_it_did_before",
        "test_everyone_who_can_sign_in_reads_every_key_after_an_upgrade[postgresql]",
        "test_ids_that_were_given_before_an_upgrade_are_not_given_again",
        "test_the_audit_log_verifies_after_an_upgrade_with_the_anchors_from_before[postgresql]",
    ),
    "tests/planes/management/api/test_accounts.py": (
        "test_a_password_is_hashed_again_when_the_parameters_have_risen[postgresql]",
        "test_sign_up_makes_an_account_and_signs_it_in[postgresql]",
    ),
    "tests/planes/management/api/test_audit.py": ("test_every_change_leaves_one_entry_with_the_request_that_made_it",),
    "tests/planes/management/api/test_bad_input.py": (
        "test_any_query_gets_a_listing_or_a_problem",
        "test_any_text_in_any_field_is_taken_as_it_is_or_refused_by_its_name",
        "test_no_header_breaks_anything",
        "test_random_bytes_are_refused",
        "test_random_json_is_refused",
    ),
    "tests/planes/management/api/test_canary.py": (
        "test_a_row_that_breaks_a_constraint_shows_no_secret[postgresql]",
        "test_the_canaries_are_found_where_they_are",
        "test_what_came_in_a_path_a_query_or_a_header_is_found_nowhere",
        "test_what_the_resolver_gives_out_is_found_only_in_that_answer[postgresql]",
        "test_what_was_refused_is_found_nowhere[postgresql]",
    ),
    "tests/planes/management/api/test_cross_site.py": (
        "test_the_origin_may_be_the_public_url_where_a_proxy_rewrites_the_host",
    ),
    "tests/planes/management/api/test_front.py": (
        "test_every_address_in_a_header_has_the_root_path",
        "test_every_address_on_a_page_has_the_root_path_and_leads_somewhere",
        "test_over_http_the_cookie_has_its_bare_name",
        "test_two_instances_on_one_host_name_keep_their_sessions_apart",
    ),
    "tests/planes/management/api/test_jwt.py": (
        "test_a_hundred_first_requests_at_once_make_one_user",
        "test_each_fault_is_401_and_names_the_claim_cookie_or_not[postgresql]",
    ),
    "tests/planes/management/api/test_keys.py": (
        "test_a_value_that_certainly_belongs_to_another_service_is_refused",
        "test_every_paste_is_refused_as_a_replacement_too",
    ),
    "tests/planes/management/api/test_limits.py": (
        "test_a_body_that_does_not_come_takes_no_place",
        "test_beyond_so_many_waiting_requests_there_is_an_answer_at_once",
    ),
    "tests/planes/management/api/test_listing.py": ("test_a_search_agrees_with_case_folding_on_both_databases",),
    "tests/planes/management/api/test_methods.py": ("test_every_method_on_every_route_gets_a_documented_answer",),
    "tests/planes/management/api/test_schemathesis.py": ("test_every_operation_does_what_the_document_says",),
    "tests/planes/management/api/test_services.py": ("test_an_operator_adds_services_by_a_file[services.json]",),
    "tests/planes/management/api/test_throttling.py": (
        "test_a_clock_that_ran_ahead_keeps_nobody_out",
        "test_a_success_forgets_the_failures_before_it[postgresql]",
        "test_an_ipv6_network_is_one_client",
        "test_failures_from_one_network_count_together_whatever_the_address",
        "test_two_replicas_count_together[postgresql]",
    ),
    "tests/planes/management/api/test_tokens.py": ("test_a_token_is_dead_once_it_is_revoked_on_every_replica",),
    "tests/planes/management/api/test_wire.py": (
        "test_a_body_that_does_not_come_is_answered_and_the_door_closed",
        "test_an_answer_over_http_has_one_of_each_header",
        "test_any_bytes_get_an_answer_below_500_or_none[nothing]",
    ),
    "tests/planes/management/web/test_account_delete.py": (
        "test_the_account_page_leads_to_a_question_and_the_password_deletes",
    ),
    "tests/planes/management/web/test_connected.py": (
        "test_a_first_password_needs_a_new_sign_in_and_then_signs_in[postgresql-api]",
        "test_a_first_password_needs_a_new_sign_in_and_then_signs_in[postgresql-page]",
        "test_a_first_password_never_takes_the_address_of_another_account[postgresql]",
        "test_an_identity_of_another_issuer_is_no_way_in[postgresql]",
        "test_linking_needs_the_password_and_is_of_the_session_that_began_it",
        "test_of_unlinks_at_the_same_time_one_is_refused[postgresql-2]",
        "test_passwords_that_are_off_and_tokens_set_no_first_password",
        "test_without_a_password_a_new_sign_in_at_the_provider_proves_presence[sqlite]",
        "test_without_a_verified_address_there_is_no_first_password[postgresql-claims0]",
    ),
    "tests/planes/management/web/test_http.py": (
        "test_every_paste_is_stored_or_its_mistake_is_named_beside_the_field",
        "test_no_form_whatever_it_holds_ends_in_a_500",
        "test_own_page_is_a_path_of_the_settings_whatever_it_is_given",
        "test_pages_of_a_long_list_lead_to_all_of_it",
    ),
    "tests/planes/management/web/test_key_actions.py": ("test_a_key_is_paused_and_resumed_and_each_is_said_once",),
    "tests/planes/management/web/test_language.py": (
        "test_a_sentence_is_the_text_that_its_values_make",
        "test_every_page_says_that_it_is_german",
        "test_no_page_holds_a_word_that_the_catalogue_does_not_have",
    ),
    "tests/planes/management/web/test_looks.py": ("test_pictures_of_every_page",),
    "tests/planes/management/web/test_oidc.py": (
        "test_a_person_signs_in_with_the_real_provider_and_is_the_same_user_next_time",
        "test_only_those_whom_the_operator_wants_come_in[postgresql-settings1-False]",
        "test_only_those_whom_the_operator_wants_come_in[sqlite-settings5-False]",
        "test_signing_out_here_signs_out_there[postgresql]",
        "test_the_callback_works_once_and_only_in_the_browser_that_left[postgresql]",
    ),
    "tests/planes/management/web/test_portal.py": ("test_the_example_leads_a_person_to_the_keys_and_back",),
    "tests/planes/resolver/test_app.py": (
        "test_what_a_resolver_does_not_need_is_not_missed_and_what_is_open_is_warned_of",
    ),
    "tests/planes/resolver/test_erased.py": ("test_the_keys_of_a_deleted_account_are_not_found",),
    "tests/planes/resolver/test_exchanges.py": (
        "test_an_older_value_put_back_into_its_own_row_does_not_open[postgresql]",
        "test_of_10_000_random_pairs_of_ciphertext_and_context_vault_opens_none",
        "test_two_rows_of_different_users_and_services_open_as_nothing",
        "test_two_rows_that_were_exchanged_in_any_part_open_as_nothing[postgresql]",
    ),
    "tests/planes/resolver/test_interleavings.py": (
        "test_nothing_is_committed_after_a_revocation_by_the_revoked_caller[postgresql]",
        "test_whatever_writes_locks_in_one_order",
    ),
    "tests/planes/resolver/test_revocation.py": (
        "test_a_body_that_comes_slowly_through_the_real_server_ends_with_the_token",
    ),
    "tests/planes/resolver/test_together.py": ("test_together_is_as_one_at_a_time[postgresql]",),
    "tests/planes/resolver/test_vaults_audit.py": ("test_a_use_of_a_key_is_found_in_both",),
    "tests/providers/test_catalogue.py": ("test_any_json_is_a_catalogue_or_a_sentence",),
    "tests/storage/test_connecting.py": (
        "test_a_schema_of_its_own_is_used_by_upgrade_and_planes",
        "test_the_urls_of_platforms_connect_with_tls",
    ),
    "tests/storage/test_database.py": (
        "test_a_server_that_went_away_is_missed_and_found_again",
        "test_a_statement_that_takes_too_long_is_ended",
        "test_many_writers_at_once_are_all_served_on_sqlite",
        "test_the_id_of_a_deleted_row_is_not_given_to_another[postgresql]",
    ),
    "tests/storage/test_driver.py": (
        "test_cancelled_statements_leave_every_connection_free_and_no_transaction_open[sqlite]",
    ),
    "tests/storage/test_together.py": (
        "test_a_group_waits_for_the_end_of_a_chain_as_long_as_a_member_would_by_itself",
        "test_a_member_by_itself_asks_too",
    ),
    "tests/test_decoding.py": ("test_any_object_becomes_the_struct_or_a_list_of_faults",),
    "tests/test_interrupts.py": ("test_a_child_of_a_run_in_the_background_of_a_script_can_be_interrupted",),
    "tests/test_logs.py": ("test_a_whole_visit_at_debug_leaves_nothing_of_what_was_sent[postgresql]",),
    "tests/test_memory.py": (
        "test_a_worker_is_protected_before_its_plane_is_loaded",
        "test_neither_a_worker_nor_its_parent_leaves_a_dump",
    ),
    "tests/test_metrics.py": ("test_several_processes_add_up",),
    "tests/test_package.py": (
        "test_no_text_installs_keyman_by_its_name",
        "test_the_policies_in_the_wheel_are_those_of_the_tree",
    ),
    "tests/test_readme.py": (
        "test_a_back_end_resolves_a_key_in_six_lines_as_printed",
        "test_an_application_uses_the_gateway_and_gets_a_key_back_as_printed",
        "test_the_example_with_a_cache_asks_again_when_the_provider_refuses",
    ),
    "tests/test_support.py": (
        "test_postgres_goes_away_and_comes_back_on_its_port",
        "test_postgres_goes_with_the_process_that_asked_for_it",
        "test_several_postgres_servers_run_at_once",
        "test_the_run_ends_with_a_word_that_everything_was_exercised",
    ),
    "tests/testing/test_resolver.py": ("test_leaving_the_block_closes_it",),
    "tests/vault/test_adapter.py": ("test_hvacs_methods_are_awaitable_as_they_stand[embedded]",),
    "tests/vault/test_cipher.py": ("test_when_vault_is_killed_every_caller_hears_it_and_nothing_sealed_is_lost",),
    "tests/vault/test_guard.py": (
        "test_a_sealed_vault_is_sealed_and_then_passes_again",
        "test_the_right_key_passes_and_its_sentinel_is_kept[embedded]",
    ),
    "tests/vault/test_login.py": (
        "test_a_given_token_is_renewed[embedded]",
        "test_a_renewal_that_fails_is_tried_again_and_the_service_goes_on[embedded]",
        "test_a_renewal_that_is_not_understood_does_not_end_the_renewals[embedded]",
        "test_a_sealed_vault_is_not_a_refused_login",
        "test_an_unexpected_failure_of_a_renewal_is_logged_without_its_message_and_the_renewals_go_on[embedded]",
        "test_closing_ends_the_renewals[embedded]",
    ),
    "tests/vault/test_policies.py": (
        "test_a_role_may_do_what_the_table_says_and_nothing_else[container-keyman-management]",
        "test_a_role_may_do_what_the_table_says_and_nothing_else[embedded-keyman-management]",
    ),
    "tests/vault/test_terraform.py": ("test_the_roles_are_the_same_and_set_to_the_same",),
    "tests/vault/test_wrapping.py": (
        "test_a_plane_asks_again_while_vault_is_away_and_sends_the_token_once[embedded]",
        "test_a_plane_waits_for_a_sealed_vault_and_unwraps_once",
        "test_a_sealed_vault_neither_uses_it_up_nor_is_called_a_theft",
    ),
}
"""By file: tests, or single variants of one."""


def mark(items: list[pytest.Item]) -> None:
    """Mark the tests of LONG as slow."""
    for item in items:
        path, _, name = item.nodeid.partition("::")
        names = LONG.get(path, ())
        if name in names or name.partition("[")[0] in names:
            item.add_marker(pytest.mark.slow)
