//! The planner's hot paths, to be run under callgrind, which counts nothing but [`measured`]: see `instructions.sh`.

#![allow(clippy::print_stdout)]

mod board;

use std::hint::black_box;

use board::{Board, even, join, leave, one, replace_two, spread, uneven};

/// What is counted.
#[inline(never)]
fn measured(board: &mut Board, act: impl FnOnce(&mut Board)) {
    act(board);
    black_box(());
}

fn main() {
    let names = [
        "full",
        "full-uneven",
        "full-mixed",
        "join",
        "join-uneven",
        "leave",
        "leave-uneven",
        "replace-two",
        "one-key",
        "one-key-uneven",
    ];
    // `cargo bench` and `cargo test --benches` come by as well.
    let Some(case) = std::env::args().nth(1).filter(|arg| !arg.starts_with("--")) else {
        return names.iter().for_each(|name| println!("{name}"));
    };
    let (nodes, keys) = (1_000, 50_000);
    let equal = || Board::new(nodes, even, keys, one);
    let unequal = || Board::new(nodes, uneven, keys, one);
    match &*case {
        "full" => measured(&mut equal(), Board::assign),
        "full-uneven" => measured(&mut unequal(), Board::assign),
        "full-mixed" => measured(&mut Board::new(nodes, even, keys, spread), Board::assign),
        "join" => measured(&mut equal().planned(), join),
        "join-uneven" => measured(&mut unequal().planned(), join),
        "leave" => measured(&mut equal().planned(), leave),
        "leave-uneven" => measured(&mut unequal().planned(), leave),
        "replace-two" => measured(&mut Board::new(50, even, 10_000, one).planned(), replace_two),
        "one-key" | "one-key-uneven" => {
            let mut board = if case == "one-key" { equal() } else { unequal() }.planned();
            // The first builds the ranking.
            board.add();
            measured(&mut board, |board| {
                board.add();
            });
        }
        other => panic!("there is no case {other}"),
    }
}
