//! On Redis: what holds everywhere, and what only Redis does.

use divider_tests::{process::now, redis::RedisServer};

use super::{
    chaos, on_any_server,
    outages::{KEYS, bed, wait_all_back},
    pause,
};

on_any_server!(RedisServer);

#[test]
fn whatever_redis_forgets_no_key_runs_twice_and_none_is_lost() {
    chaos::run::<RedisServer>(true);
}

#[test]
fn redis_is_killed_and_comes_back_at_once_with_nothing() {
    let mut bed = bed(RedisServer::start);
    let gone = now();
    bed.store.restart();
    let back = now();
    bed.fleet.call(0, &format!("keys {KEYS}"));
    wait_all_back(&bed, "killed and restarted empty, keys added again", gone, back);
}

#[test]
fn redis_is_killed_and_its_sessions_end_with_it_even_where_the_data_survives() {
    let mut bed = bed(<RedisServer as super::backend::Server>::start_durable);
    let gone = now();
    bed.store.restart();
    wait_all_back(&bed, "killed and restarted with its data, each key started anew", gone, now());
}

#[test]
fn redis_is_flushed() {
    let mut bed = bed(RedisServer::start);
    let gone = now();
    bed.store.cli(&["FLUSHALL"]);
    let back = now();
    bed.fleet.call(1, &format!("keys {KEYS}"));
    wait_all_back(&bed, "FLUSHALL, keys added again", gone, back);
}

#[test]
fn redis_holds_its_clients_for_a_lease() {
    let bed = bed(RedisServer::start);
    let gone = now();
    bed.store.cli(&["CLIENT", "PAUSE", "2000", "ALL"]);
    pause(2000);
    // Redis wakes up by itself; whoever asks meanwhile is answered after.
    bed.store.cli(&["PING"]);
    wait_all_back(&bed, "CLIENT PAUSE for a lease", gone, now());
}

/// The store plays no part in it, so one is enough.
#[test]
fn two_keys_that_kill_their_processes_are_set_aside_within_16_deaths_and_no_others_are() {
    super::deaths::two_keys_that_kill_their_processes_are_set_aside_within_16_deaths_and_no_others_are::<RedisServer>();
}
