//! The suite that every backend runs, and that you run against a backend of your own.
//!
//! # Why
//! A backend is right if nodes over it keep every promise that the [`Divider`](divider_core::Divider) trait and the
//! [`Store`] trait make. Those promises are the same for all backends, so the checks are written once, as programs that
//! use a backend and know nothing of it.
//!
//! # How
//! Implement [`Backend`], which makes store handles for a group, and name it to [`conformance!`] in a
//! test file of your crate; each check becomes a test of its own, under its name:
//!
//! ```
//! # mod the_test_file {
//! use divider_conformance::Backend;
//! use divider_core::{Group, MemoryStore};
//! # use std::{collections::HashMap, sync::{LazyLock, Mutex}};
//! # static GROUPS: LazyLock<Mutex<HashMap<Group, MemoryStore>>> = LazyLock::new(Mutex::default);
//!
//! struct Mine;
//!
//! impl Backend for Mine {
//!     type Store = MemoryStore;
//!     async fn store(&self, group: &Group) -> MemoryStore {
//! #       GROUPS.lock().unwrap().entry(group.clone()).or_default().clone()
//!         // A new handle, for one node; all handles of a group share the group.
//!     }
//! }
//!
//! divider_conformance::conformance!(Mine);
//! # }
//! ```
//!
//! Each check works in a fresh group with a random name, so all of them can run at the same time against one server.
//! Nothing is asserted about time but what follows from the lease; a check that waits for something waits for long.
//!
//! [`FaultyStore`], [`History`] and [`Dice`] are of use beyond the suite: the one breaks a store to order, the other checks what
//! programs are told, and the third are random numbers that a seed repeats.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![allow(clippy::unwrap_used, reason = "a check fails by panicking, which is what a test runner wants")]

use std::{sync::Arc, time::Duration};

use divider_core::{Group, Store};

mod clerk;
mod dice;
mod faulty;
mod history;
mod seat;
mod trial;

use clerk::Clerk;
pub use dice::Dice;
pub use faulty::{Call, Fault, Faults, FaultyStore, Ordered};
pub use history::History;
use seat::Seat;
pub use trial::Trial;

/// What the suite asks of a backend.
pub trait Backend: Send + Sync + 'static {
    /// Its store.
    type Store: Store;

    /// A new handle for one node. Handles of one group share it; groups that have not been used are empty.
    fn store(&self, group: &Group) -> impl Future<Output = Self::Store> + Send;

    /// The lease of nodes whose death is waited for. Shorter makes the suite faster; it must leave room for the beats
    /// (four to a lease) on a machine that is busy.
    fn lease(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// Whether leadership is a lease that [`Store::poll`] renews, as opposed to one that the store itself takes away.
    fn leads_by_lease(&self) -> bool {
        true
    }
}

/// How long one check may take before it counts as hung.
const HUNG: Duration = Duration::from_secs(330);

/// Runs one check in a runtime of its own. Called by the tests that [`conformance!`] makes.
///
/// # Panics
/// If the check fails.
#[doc(hidden)]
pub fn run<B, C>(backend: impl Future<Output = B>, check: impl FnOnce(Trial<B>) -> C)
where
    B: Backend,
    C: Future<Output = ()>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let trial = Trial::new(Arc::new(backend.await));
        let history = trial.history.clone();
        tokio::time::timeout(HUNG, check(trial)).await.expect("the check hangs");
        history.check();
    });
    // A check that has passed is not kept waiting by what its nodes still had to do.
    runtime.shutdown_background();
}

macro_rules! checks {
    ($($group:ident { $($check:ident,)* })*) => {
        $(
            #[doc(hidden)]
            pub mod $group;
        )*

        /// Runs every check, one after the other, and prints its name before.
        ///
        /// # Panics
        /// At the first check that fails.
        #[allow(clippy::print_stderr, reason = "this is a test runner")]
        pub async fn run_all<B: Backend>(backend: B) {
            let backend = Arc::new(backend);
            $($(
                eprintln!("{}::{}", stringify!($group), stringify!($check));
                let trial = Trial::new(backend.clone());
                let history = trial.history.clone();
                tokio::time::timeout(HUNG, $group::$check(trial)).await.expect("the check hangs");
                history.check();
            )*)*
        }

        /// Makes a test of every check of the [suite](crate), for the backend that the expression gives.
        /// The expression may be awaited in (`connect().await`) and is evaluated once for each test.
        #[macro_export]
        macro_rules! conformance {
            ($backend:expr) => {
                $(
                    mod $group {
                        #[allow(unused_imports)]
                        use super::*;
                        $(
                            #[test]
                            fn $check() {
                                $crate::run(async { $backend }, $crate::$group::$check);
                            }
                        )*
                    }
                )*
            };
        }
    };
}

checks! {
    ops {
        work_is_declared_once_and_takes_new_fields,
        a_batch_is_applied_in_order,
        a_late_copy_of_a_batch_changes_nothing,
        an_empty_batch_changes_nothing,
        a_free_key_is_removed_at_once,
        an_owned_key_is_removed_once_its_owner_confirms,
        a_key_that_is_wanted_again_before_the_confirm_stays,
        grants_are_refused_where_they_must_be,
        tokens_rise_from_grant_to_grant,
        whatever_is_not_the_owners_changes_nothing,
        giving_up_asks_for_a_stop_and_keeps_the_pause_in_ledger_time,
        what_is_declared_while_its_owner_is_at_work_runs_after_it,
        an_owner_sets_its_key_aside_until_it_is_retried_or_declared_again,
        keys_are_numbered_in_the_order_in_which_they_were_declared,
        a_group_is_written_in_a_format_that_all_its_sessions_read,
        a_checkpoint_is_kept_and_completion_ends_the_key,
        revoking_asks_and_forcing_takes,
        a_key_that_was_being_removed_when_its_owner_ended_ends_unless_it_is_wanted_again,
        attempts_count_starts_and_not_mere_grants,
        quarantine_sets_a_free_key_aside_until_it_is_retried,
    }
    membership {
        joining_again_changes_nothing_and_an_ended_session_stays_ended,
        a_late_copy_of_a_join_does_not_bring_a_forgotten_session_back,
        an_unknown_or_ended_session_can_do_nothing,
        a_session_is_expired_only_while_its_beat_stands_still,
        renewals_wake_nobody_and_raise_no_revision,
        a_death_is_blamed_on_young_grants_alone,
        a_node_that_comes_back_frees_what_was_set_aside_for_its_death,
        late_copies_of_affinity_changes_change_nothing,
        affinity_stays_in_its_range_and_a_refusal_changes_nothing,
        a_settled_session_is_unsettled_by_a_call_for_balance,
        one_session_leads_and_terms_rise,
    }
    feed {
        the_feed_and_a_scan_come_to_the_same,
        a_scan_that_changes_overtake_is_exact_at_its_last_page,
        group_hints_carry_the_feed_or_show_a_gap,
        a_session_hears_of_every_grant_and_stop_in_order,
        a_session_hears_of_its_end,
        everybody_hears_that_the_leadership_is_free,
        a_full_batch_of_large_work_is_taken_and_read_back,
        a_closed_handle_says_so_and_the_others_go_on,
    }
    lifecycle {
        nothing_works_before_the_start,
        starting_twice_is_starting_once,
        a_start_that_failed_can_be_repeated,
        a_start_whose_future_was_dropped_can_be_repeated,
        nothing_works_after_the_cancel,
        cancelling_before_the_start_is_final,
        cancelling_an_idle_node_ends_its_session_at_once,
        keys_of_a_cancelled_node_wait_for_its_lease,
        unread_starts_of_a_cancelled_node_are_free_at_once,
        keys_of_a_dropped_node_move_when_its_lease_runs_out,
        a_fresh_group_gets_going_by_itself,
        keys_outlive_every_node,
        a_stream_keeps_its_node_going_and_a_dropped_one_loses_nothing,
        a_configuration_that_contradicts_itself_is_refused,
    }
    streams {
        a_start_carries_all_that_was_declared,
        an_unread_start_is_held_but_not_current,
        starts_and_stops_take_turns_with_rising_tokens,
        both_kinds_come_in_order_in_one_stream,
        a_queue_has_one_reader_and_a_second_is_refused,
        a_start_that_was_revoked_before_it_was_read_is_never_seen,
        a_slow_reader_has_at_most_one_event_per_key,
        a_slow_reader_delays_nobody_and_keeps_its_lease,
        a_reader_that_gave_up_waiting_has_lost_nothing,
    }
    confirms {
        a_confirmation_that_nobody_asked_for_is_refused,
        a_second_confirmation_is_refused_and_frees_nothing,
        a_confirmation_whose_future_was_dropped_is_carried_out,
        a_key_given_up_goes_elsewhere,
        a_key_given_up_with_backoff_waits,
        a_key_given_up_comes_back_where_nobody_else_has_room,
        confirmations_from_many_tasks_all_count,
        a_completed_key_ends_for_good,
        only_the_owner_completes_and_checkpoints,
        a_checkpoint_reaches_the_owner_after_a_death,
    }
    affinity {
        keys_are_divided_in_proportion,
        weights_count_and_not_keys,
        affinity_zero_is_given_nothing,
        going_to_zero_gives_back_unread_starts_and_keeps_the_rest,
        changing_affinity_moves_nothing_that_runs,
        affinity_is_refused_outside_of_its_range,
        alterations_at_the_same_time_all_count,
        capacity_is_never_exceeded,
        a_key_that_is_being_stopped_takes_room,
        higher_priority_goes_first_where_room_is_short,
        nothing_starts_before_its_time,
        the_next_leader_keeps_to_the_schedule,
    }
    drain {
        a_flush_stops_every_key_and_returns_when_all_are_confirmed,
        work_that_takes_long_to_stop_stops_side_by_side,
        a_flush_gives_back_unread_starts_silently,
        a_flush_ends_at_its_time_limit_and_names_what_is_left,
        confirming_and_completing_after_the_flush_are_told_apart,
        flushing_twice_at_once_ends_both,
        an_empty_node_is_flushed_at_once,
        a_flush_whose_future_was_dropped_goes_on,
        flush_and_cancel_hands_over_at_once,
        removing_during_a_flush_ends_the_key,
    }
    formats {
        a_deploy_rolls_from_an_old_format_to_a_new_one_and_back_before_the_step,
        an_operator_lets_a_group_step_up_whoever_leads,
    }
    inputs {
        keys_of_every_length_come_back,
        keys_outside_of_the_limits_are_refused_by_name,
        names_that_mean_something_elsewhere_are_mere_names,
        twins_that_look_alike_are_two_keys,
        random_text_comes_back_and_random_bytes_are_text_or_refused,
        payload_and_checkpoint_hold_their_limit_and_no_more,
        numbers_outside_of_their_range_are_refused_whole,
        the_longest_names_of_group_and_node_work,
        a_hundred_thousand_keys_are_divided,
    }
    groups {
        groups_whose_names_share_a_prefix_are_apart,
        a_token_of_one_group_is_nothing_in_another,
    }
    sessions {
        every_loss_is_told_before_any_new_start,
        a_stop_under_way_is_not_told_twice,
        writing_for_a_lost_key_says_that_it_is_lost,
        an_unread_start_of_a_lost_session_is_never_seen,
        a_flush_waits_until_losses_are_confirmed_too,
        a_flush_names_losses_that_were_not_confirmed,
        a_node_flushed_while_it_had_no_session_is_given_nothing,
    }
    leases {
        a_node_that_cannot_renew_stops_by_its_own_deadline,
        the_first_lease_counts_from_before_the_join_was_sent,
        one_renewal_that_hangs_does_not_cost_the_lease,
        a_node_cut_off_from_everything_is_replaced_and_comes_back,
        two_nodes_of_one_name_never_share_a_key,
        a_blocked_multi_thread_runtime_keeps_its_lease,
        a_blocked_current_thread_runtime_keeps_its_lease,
        renewals_need_no_runtime_but_the_one_they_are_called_on,
        a_leader_that_is_stuck_loses_its_leadership_and_keeps_its_keys,
    }
    replies {
        a_confirmation_whose_answer_is_lost_frees_the_key_once,
        a_completion_whose_answer_is_lost_is_a_completion,
        a_key_that_ended_on_its_way_is_told_of_once,
        a_completion_answered_too_late_leaves_no_second_owner,
        work_whose_declaration_was_not_answered_starts_once,
        a_call_gives_up_at_its_time_limit_and_can_be_repeated,
        an_alteration_whose_answer_is_lost_is_done_once,
        giving_up_and_checkpointing_survive_lost_answers,
        grants_whose_answer_is_lost_are_granted_once,
        a_flush_survives_lost_answers,
        a_lost_grant_or_stop_is_found_within_the_resync_interval,
        lost_hints_are_found_while_more_are_being_lost,
        a_leader_that_hears_nothing_still_leads,
    }
    work {
        declaring_again_changes_fields_and_moves_nothing,
        removing_a_running_key_stops_it_and_ends_it,
        a_key_wanted_again_before_the_confirm_is_started_again,
        a_key_removed_by_one_node_stops_on_another,
        a_removed_key_whose_owner_dies_ends,
        a_key_whose_owners_keep_dying_is_set_aside_until_it_is_retried,
    }
    sources {
        an_authoritative_source_decides_what_there_is,
        an_adding_source_removes_nothing,
        a_source_that_fails_or_names_bad_work_does_no_harm,
    }
    balance {
        a_newcomer_gets_its_share_with_the_fewest_moves,
        few_keys_are_between_owners_at_a_time,
        balance_is_restored_on_request,
        a_group_that_balances_all_the_time_follows_affinity,
        with_a_stop_timeout_a_stuck_program_loses_the_key,
        an_unconfirmed_stop_is_waited_for,
        a_stable_group_does_nothing,
    }
    churn {
        a_random_life_keeps_every_rule,
        a_random_life_over_a_failing_store_keeps_every_rule,
    }
}
