//! Every decoder, with what its fuzz target has found (`tests/fuzz/corpus`) and with a few thousand inputs like it.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, unreachable_pub, reason = "a crate of its own elsewhere")]
mod targets;

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use proptest::{
    prelude::*,
    sample::Index,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// Inputs like those of the corpus, for each target.
const MUTATED: u32 = 400;

fn place(under: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(under)
}

fn files(directory: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn names(directory: &Path) -> BTreeSet<String> {
    files(directory).iter().map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    files(&place("corpus").join(target)).iter().map(|path| fs::read(path).unwrap()).collect()
}

/// One of the corpus with another one's end, other bytes, fewer of them, or more.
fn mutated(corpus: &[Vec<u8>]) -> impl Strategy<Value = Vec<u8>> {
    let one = prop::sample::select(corpus.to_vec());
    let change = (0..6, any::<Index>(), any::<u8>());
    (one.clone(), one, prop::collection::vec(change, 1..6)).prop_map(|(mut bytes, other, changes)| {
        for (kind, at, byte) in changes {
            let at = at.index(bytes.len() + 1);
            match (kind, bytes.get_mut(at)) {
                (0, Some(changed)) => *changed = byte,
                (1, Some(changed)) => *changed ^= 1 << (byte % 8),
                (2, Some(changed)) => *changed = changed.wrapping_add(byte % 3).wrapping_sub(1),
                (3, _) => bytes.truncate(at),
                (4, _) => bytes.insert(at, byte),
                _ => {
                    bytes.truncate(at);
                    bytes.extend(other.iter().skip(at));
                }
            }
        }
        bytes
    })
}

/// Whether anything could be decoded.
fn holds(name: &str, target: targets::Target, bytes: &[u8]) -> bool {
    match catch_unwind(AssertUnwindSafe(|| target(bytes))) {
        Ok(any) => any,
        Err(_) => panic!("{name} does not hold for {bytes:?}, as text {:?}", String::from_utf8_lossy(bytes)),
    }
}

#[test]
fn whatever_is_decoded_is_refused_or_read_as_it_was_written() {
    for (name, target) in targets::TARGETS {
        let corpus = corpus(name);
        let decoded = corpus.iter().filter(|bytes| holds(name, *target, bytes)).count();
        assert!(decoded >= 2, "{name}: of {} inputs only {decoded} can be decoded", corpus.len());
        let rng = TestRng::from_seed(RngAlgorithm::XorShift, &[7; 16]);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let like = mutated(&corpus);
        let mut decoded = 0;
        for _ in 0..MUTATED {
            let bytes = like.new_tree(&mut runner).unwrap().current();
            decoded += u32::from(holds(name, *target, &bytes));
        }
        assert!(decoded > 0 && decoded < MUTATED, "{name}: of {MUTATED} inputs {decoded} can be decoded");
    }
}

#[test]
fn every_target_has_a_corpus_of_few_small_files_and_is_one_of_those_that_cargo_fuzz_runs() {
    let all: BTreeSet<String> = targets::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&place("corpus")), all);
    assert_eq!(names(&place("fuzz_targets")), all);
    for name in all {
        let corpus = corpus(&name);
        assert!(corpus.len() <= 60 && corpus.iter().all(|bytes| bytes.len() <= 4096), "{name}");
    }
}
