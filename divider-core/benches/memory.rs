//! What a key costs in memory, as bytes that were asked of the allocator, beyond the key's own text.
//!
//! `cargo bench -p divider-core --bench memory [-- keys]`

#![allow(clippy::print_stdout)]

mod group;

use std::alloc::System;

use cap::Cap;
use divider_core::{
    Holdings, Key, Ledger, Token, limits,
    sim::{Leader, Member},
};
use group::{Group, add, key};

#[global_allocator]
static ALLOCATED: Cap<System> = Cap::new(System, usize::MAX);

/// Runs `make` and gives what is allocated more than before.
fn bytes<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATED.allocated();
    let made = make();
    (made, ALLOCATED.allocated() - before)
}

fn main() {
    let keys = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000u32);
    let text = key(0).as_str().len() as u32;
    let row = |what: &str, bytes: usize, keys: u32, texts: u32| {
        println!("| {what:<58} | {:>8.1} |", bytes as f64 / f64::from(keys) - f64::from(text * texts));
    };
    println!("| {keys} keys of {text} bytes, 1,000 nodes{:<25} | B a key |", "");
    println!("| {:-<58} | -------- |", "");

    let (names, alone) = bytes(|| (0..keys).map(key).collect::<Vec<Key>>());
    row("a name alone, as the program's own", alone, keys, 1);
    drop(names);

    let (ledger, declared) = bytes(|| {
        let mut ledger = Ledger::new();
        for start in (0..keys).step_by(limits::MAX_BATCH_OPS) {
            let end = keys.min(start + limits::MAX_BATCH_OPS as u32);
            ledger.apply(&(start..end).map(add).collect::<Vec<_>>(), Token(0));
        }
        ledger
    });
    row("the ledger, keys declared", declared, keys, 1);
    drop(ledger);

    let (group, together) = bytes(|| {
        let mut group = Group::new(1000);
        group.fill(0..keys);
        group
    });
    row("ledger and leader in one process, all assigned", together, keys, 1);
    let Group { ledger, leader, sessions, .. } = group;
    // What each has for itself; the names are shared, and go with the last.
    let ((), freed) = {
        let before = ALLOCATED.allocated();
        drop::<Leader>(leader);
        ((), before - ALLOCATED.allocated())
    };
    row("  of which the leader's board and planner", freed, keys, 0);
    row("  of which the ledger, names included", together - freed, keys, 1);

    let stored = postcard::to_stdvec(&ledger).expect("it is written");
    let (restored, again) = bytes(|| postcard::from_bytes::<Ledger>(&stored).expect("it is read"));
    assert_eq!(restored, ledger);
    row("the ledger, read again from its stored form", again, keys, 1);
    drop((restored, stored));

    for nodes in [1, 10, 100] {
        // Apart from the ledger's, as over a network.
        let truth: Vec<Holdings> =
            sessions[..nodes].iter().map(|&session| ledger.holdings(session).expect("it lives")).collect();
        let stored = postcard::to_stdvec(&truth).expect("it is written");
        drop(truth);
        let truth: Vec<Holdings> = postcard::from_bytes(&stored).expect("it is read");
        let held: usize = truth.iter().map(|truth| truth.holdings.len()).sum();
        drop(truth);
        let (member, own) = bytes(|| {
            let mut member = Member::new(1000);
            member.joined(sessions[0]);
            member.reading();
            let truth: Vec<Holdings> = postcard::from_bytes(&stored).expect("it is read");
            let seq = truth[0].seq;
            let holdings = truth.into_iter().flat_map(|truth| truth.holdings).collect();
            member.read(Holdings { seq, holdings });
            while member.next_start().is_some() {}
            member
        });
        row(&format!("a node that holds {held}, for each of them"), own, held as u32, 1);
        drop(member);
    }
}
