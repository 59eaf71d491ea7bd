//! Real `worker` processes on real stores: what the README claims, shown.
//!
//! Each test prints what it measured on lines that begin with `figure:` (`cargo nextest run --release -p divider-tests
//! --test process --no-capture`). The bounds asserted for times are the promised ones where a lease decides, and several
//! times the usual where the machine's speed does.

mod chaos;
mod cost;
mod deaths;
mod deploy;
mod division;
mod drain;
mod latency;
mod outages;
mod partitions;
mod postgres;
mod raft;
mod redis;

use std::time::Duration;

use divider_tests::{backend, bed::Bed};

/// Makes tests of the functions in this crate that take a backend.
macro_rules! on {
    ($backend:ty: $($module:ident { $($test:ident)* })*) => { $($(
        #[test]
        fn $test() {
            crate::$module::$test::<$backend>();
        }
    )*)* };
}

/// What holds on every backend.
macro_rules! on_any_store {
    ($backend:ty) => {
        crate::on! { $backend:
            deaths {
                the_keys_of_a_killed_node_run_elsewhere_within_the_lease_and_half_a_second
                with_a_lease_of_half_a_second_they_do_within_a_second
                a_frozen_node_wakes_up_to_the_loss_of_its_keys_before_anything_else
                a_frozen_leader_wakes_up_to_the_loss_of_its_keys_before_anything_else
                a_handler_that_blocks_every_thread_for_two_leases_keeps_its_keys
                a_node_in_a_crash_loop_does_not_get_keys_quarantined
                nodes_that_are_killed_in_turn_again_and_again_get_no_keys_set_aside
                a_key_that_kills_its_process_is_set_aside_within_8_deaths_and_no_other_is
            }
            division {
                five_nodes_start_each_of_5000_keys_once_and_share_them_evenly
                keys_are_divided_by_affinity_to_within_one_key
            }
            drain {
                a_node_that_drains_hands_500_keys_over_without_a_noticeable_gap
                a_leader_that_drains_hands_500_keys_over_without_a_noticeable_gap
                twenty_thousand_keys_of_a_node_are_handed_over_or_taken_over_as_well
            }
            deploy { a_deploy_under_load_rolls_to_a_new_format_and_back_and_forward_again }
            latency { a_key_is_started_within_milliseconds_of_its_add }
            chaos { whatever_happens_to_the_nodes_no_key_runs_twice_and_none_is_lost }
        }
    };
}

/// What holds on every backend that is a server.
macro_rules! on_any_server {
    ($backend:ty) => {
        crate::on_any_store!($backend);
        crate::on! { $backend:
            cost { an_idle_group_costs_the_same_with_10_keys_as_with_10000 }
            drain {
                a_node_ends_when_told_to_even_if_the_store_is_gone
                nodes_that_are_started_before_the_store_wait_for_it
            }
            outages {
                the_store_is_killed_and_comes_back_at_once
                the_store_is_killed_and_comes_back_after_every_lease_has_run_out
                the_store_holds_its_breath_for_a_lease
                the_store_stalls_for_less_than_a_lease_and_nothing_moves
                subscriptions_are_cut_again_and_again_and_nothing_is_lost
                all_connections_are_cut_again_and_again_and_nothing_is_lost
                a_store_that_keeps_stalling_does_not_get_keys_quarantined
                the_store_goes_away_seven_times_and_nothing_is_set_aside
            }
            partitions {
                a_node_that_is_cut_off_fences_itself
                a_node_whose_network_falls_silent_fences_itself_and_its_late_words_do_no_harm
                a_leader_whose_network_falls_silent_is_replaced_and_its_late_words_do_no_harm
                a_node_that_hears_no_answers_fences_itself
                a_leader_that_hears_no_answers_is_replaced
                a_network_that_is_slow_for_one_node_loses_nothing
                a_node_in_a_network_namespace_that_is_cut_off_loses_its_keys_and_comes_back
                a_leader_in_a_network_namespace_that_is_cut_off_is_replaced_and_comes_back
                a_leader_in_a_network_namespace_that_is_heard_by_nobody_is_replaced
                a_leader_in_a_network_namespace_that_hears_nobody_is_replaced
            }
        }
    };
}
use {on, on_any_server, on_any_store};

/// Sleeps for some milliseconds.
fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Prints what was measured.
fn figure(what: &str, values: &mut [Duration]) {
    use divider_tests::history::quantile;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "figure: {what}: p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms ({} values)",
        ms(quantile(values, 0.5)),
        ms(quantile(values, 0.99)),
        ms(quantile(values, 1.0)),
        values.len()
    );
}
