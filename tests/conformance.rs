//! The same questions to the embedded broker and to Apache Kafka, to the embedded store and to Redis: each check is one
//! function, run on both, so a difference fails.

#![cfg(feature = "embedded")]

#[path = "conformance/admin.rs"]
mod admin;
#[path = "conformance/client.rs"]
mod client;
#[path = "conformance/copies.rs"]
mod copies;
#[path = "conformance/groups.rs"]
mod groups;
#[path = "conformance/hostile.rs"]
mod hostile;
#[path = "conformance/records.rs"]
mod records;
#[path = "conformance/restart.rs"]
mod restart;
#[path = "conformance/store.rs"]
mod store;
mod support;
#[path = "conformance/transactions.rs"]
mod transactions;

/// Each check on each of two servers.
macro_rules! on_both {
    ($first:ident $start_first:expr, $second:ident $start_second:expr; $($module:ident::$check:ident,)*) => {
        mod $first { $(#[test] fn $check() { crate::$module::$check(&mut $start_first); })* }
        mod $second { $(#[test] fn $check() { crate::$module::$check(&mut $start_second); })* }
    };
}

on_both! {
    embedded crate::client::Broker::embedded(), kafka crate::client::Broker::kafka();
    groups::two_members_share_and_one_takes_over,
    groups::cooperative_members_keep_what_they_have,
    groups::a_static_member_that_returns_disturbs_nobody,
    groups::a_static_member_keeps_its_place_until_its_session_ends,
    groups::a_second_holder_of_an_instance_fences_the_first,
    groups::a_member_that_stops_polling_loses_its_partitions,
    groups::an_older_generation_may_not_commit,
    groups::a_member_that_left_may_not_commit,
    groups::offsets_and_their_metadata_are_kept_per_group,
    groups::groups_are_listed_with_their_state,
    transactions::a_commit_shows_records_and_offsets_together,
    transactions::an_abort_shows_nothing,
    transactions::an_open_transaction_holds_read_committed_back,
    transactions::transactions_interleave_on_one_partition,
    transactions::a_newer_producer_fences_the_older_and_aborts_what_it_has_open,
    transactions::an_orphan_is_aborted_in_time_and_fenced,
    transactions::pending_offsets_are_unstable,
    transactions::an_empty_transaction_commits,
    records::records_travel_whole_and_in_order,
    records::every_codec_is_kept,
    records::an_idempotent_producer_writes_once,
    records::offsets_are_found_by_time,
    records::a_position_outside_the_log_is_an_error,
    records::a_batch_too_large_is_refused,
    records::a_time_to_come_is_refused,
    records::the_latest_record_of_each_key_survives_compaction,
    admin::topics_are_created_changed_and_deleted,
    admin::what_cannot_be_is_refused_with_the_same_code,
    admin::settings_are_shown_with_their_origin,
    restart::what_was_acknowledged_survives_sigkill,
}

on_both! {
    embedded_store crate::store::Server::embedded(), redis crate::store::Server::redis();
    store::values_are_absolute_and_older_ones_are_skipped,
    store::an_older_epoch_is_refused,
    store::a_user_who_left_is_removed,
    store::a_rebuild_sweeps_the_rest,
    store::many_users_and_fields_fit,
    store::a_restart_keeps_what_was_acknowledged,
}
