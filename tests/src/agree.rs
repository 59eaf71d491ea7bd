//! Compares a store with the [`Ledger`](divider_core::Ledger), op for op.
//!
//! # Why
//! The ledger says in a few hundred lines what every backend must do. A backend that says the same in scripts or
//! statements is right if nobody can tell the two apart; so random batches go to both, and after each batch everything
//! that can be read or heard is compared.
//!
//! # How
//! Few keys and few sessions, so that batches meet in all states; wrong terms, stale tokens and ended sessions often
//! enough that every refusal is met. A store chooses its own tokens, terms and first revision. The ledger is told to
//! choose the same ones (`floor`), which succeeds only if they rise as they must.
//!
//! A sequence is data ([`Step`]). One that makes the two differ is cut down, each try in a fresh group, and printed; once
//! the mistake is mended it is kept in `agree/kept.rs`, which every backend runs.

mod kept;
mod run;
mod script;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    ops::Range,
    time::{Duration, Instant},
};

use divider_core::Store;
use divider_support::seeds::number;
use futures_util::{StreamExt, TryStreamExt, stream};
use proptest::{
    collection::vec,
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

pub use script::{Act, Asked, Bytes, Grant, Issued, Step, Token, When, Which, Who, Whose, script};

/// What [`Seen`] counts the subscriptions under that the store ended by itself.
pub const ENDED: &str = "subscription ended";

/// Groups that are on their way at the same time.
const AT_ONCE: usize = 4;
/// How long a sequence is cut down for. What has to wait for a hint that never comes takes longest.
const CUT: Duration = Duration::from_secs(40);
/// Pairs of an op and an outcome that a run of the usual length meets.
const OUTCOMES: usize = 70;
/// So many sequences meet as many, whichever they are.
const MANY: u64 = 1000;

/// What may be expected of the store beyond what every store promises.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// Leadership is a lease that any session takes through [`Store::poll`], and takes over where it stood still.
    pub leases: bool,
    /// Hints are delivered as long as the connection stands; else only a [`Hint::Gap`](divider_core::Hint::Gap), or
    /// nothing, is.
    pub hints: bool,
}

impl Expect {
    /// Of a store that keeps all that there is.
    pub const ALL: Self = Self { leases: true, hints: true };
}

/// How often each kind of op had each outcome.
pub type Seen = BTreeMap<String, usize>;

/// Runs a sequence of so many steps, drawn from the seed, against a store of a fresh group.
///
/// # Panics
/// Where the store and the ledger differ, with the seed.
pub async fn agree(store: &dyn Store, seed: u64, steps: usize) -> Seen {
    agree_with(store, seed, steps, Expect::ALL).await
}

/// As [`agree`], for a store with less to expect of.
///
/// # Panics
/// Where they differ, with the seed.
pub async fn agree_with(store: &dyn Store, seed: u64, steps: usize, expect: Expect) -> Seen {
    let steps = draw(vec(script::step(), steps), seed).current();
    match run::run(store, seed, expect, &steps).await {
        Ok(seen) => seen,
        Err(problem) => panic!("seed {seed}: {problem}"),
    }
}

/// Runs many sequences, each against the store that `fresh` makes of the name of a group that nobody has used yet. There
/// are `few` of them, or as many as `DIVIDER_SEEDS` says; `DIVIDER_SEED` says which is the first. Unless a few were asked
/// for, nearly every outcome of every op must have been met.
///
/// # Panics
/// Where a store and the ledger differ, with the shortest script that still shows it.
pub async fn sequences<S: Store>(few: u64, expect: Expect, fresh: impl AsyncFn(String) -> S) -> Seen {
    let (first, count): (Option<u64>, Option<u64>) = (number("DIVIDER_SEED"), number("DIVIDER_SEEDS"));
    let asked_for_few = (first.is_some() || count.is_some()) && count.is_none_or(|count| count < MANY);
    let (first, count) = (first.unwrap_or_default(), count.unwrap_or(few));
    let began = Instant::now();
    match find(first..first + count, expect, fresh).await {
        Ok(seen) => {
            let ops: usize = seen.values().sum();
            println!("{count} sequences, {ops} ops, {} outcomes in {:?}", seen.len(), began.elapsed());
            assert!(asked_for_few || seen.len() >= OUTCOMES, "the dice met only {seen:#?}");
            seen
        }
        Err(Found { seed, problem, steps, tries }) => {
            let text = script::text(&steps);
            panic!("seed {seed}, cut down in {tries} tries: {problem}\nthe script, for agree/kept.rs:\n{text}");
        }
    }
}

/// A sequence that makes a store and the ledger differ, cut down.
struct Found {
    seed: u64,
    problem: String,
    steps: Vec<Step>,
    /// How often it was run to cut it down.
    tries: u32,
}

async fn find<S: Store>(seeds: Range<u64>, expect: Expect, fresh: impl AsyncFn(String) -> S) -> Result<Seen, Found> {
    let drawn = |seed| draw(script::sequence(), seed);
    let runs = stream::iter(seeds).map(async |seed| {
        let run = attempt(seed, 0, expect, &fresh, &drawn(seed).current()).await;
        run.map_err(|problem| (seed, problem))
    });
    let add = async |mut all: Seen, seen: Seen| {
        seen.into_iter().for_each(|(kind, times)| *all.entry(kind).or_default() += times);
        Ok(all)
    };
    let all = runs.buffer_unordered(AT_ONCE).try_fold(Seen::new(), add).await;
    let (seed, problem) = match all {
        Ok(seen) => return Ok(seen),
        Err(failed) => failed,
    };
    let mut tries = 0;
    let again = async |steps: &[Step]| {
        tries += 1;
        attempt(seed, tries, expect, &fresh, steps).await.err()
    };
    let (steps, problem) = cut(drawn(seed), problem, again).await;
    Err(Found { seed, problem, steps, tries })
}

/// Runs what made a store and the ledger differ once.
///
/// # Panics
/// Where they differ again, with the name of what must hold.
pub async fn kept<S: Store>(expect: Expect, fresh: impl AsyncFn(String) -> S) {
    for (at, (name, text)) in (0..).zip(kept::SCRIPTS) {
        if let Err(problem) = attempt(u64::MAX, at, expect, &fresh, &script(text)).await {
            panic!("{name}: {problem}");
        }
    }
}

async fn attempt<S: Store>(
    seed: u64,
    tried: u32,
    expect: Expect,
    fresh: &impl AsyncFn(String) -> S,
    steps: &[Step],
) -> Result<Seen, String> {
    let store = fresh(format!("/agree/{seed}/{tried}/")).await;
    let run = run::run(&store, seed, expect, steps).await;
    store.close().await;
    run
}

/// What the seed draws, always the same.
fn draw<T: Strategy>(from: T, seed: u64) -> T::Tree {
    // The better generator takes longer in a debug build than all the rest of a run in memory. With this one, seeds that are
    // close to each other would begin alike, so they are spread first.
    let spread = u128::from(seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &spread.to_le_bytes());
    from.new_tree(&mut TestRunner::new_with_rng(Config::default(), rng)).expect("nothing is filtered")
}

/// Cuts a sequence down as long as `fails` says that it still fails, and returns what is left, and why that fails.
async fn cut(
    mut tree: impl ValueTree<Value = Vec<Step>>,
    mut problem: String,
    mut fails: impl AsyncFnMut(&[Step]) -> Option<String>,
) -> (Vec<Step>, String) {
    let began = Instant::now();
    let mut least = tree.current();
    let mut goes_on = tree.simplify();
    while goes_on && began.elapsed() < CUT {
        let steps = tree.current();
        goes_on = match fails(&steps).await {
            Some(new) => {
                (least, problem) = (steps, new);
                tree.simplify()
            }
            None => tree.complicate(),
        };
    }
    // What stood in the way of something else may have been cut since.
    let mut at = 0;
    while let Some(steps) = without_one(&least, at).filter(|_| began.elapsed() < CUT) {
        match fails(&steps).await {
            Some(new) => (least, problem, at) = (steps, new, 0),
            None => at += 1,
        }
    }
    (least, problem)
}

/// The steps without one of them, or, for later places, without one act of a batch.
fn without_one(steps: &[Step], at: usize) -> Option<Vec<Step>> {
    let mut left = steps.to_vec();
    if at < steps.len() {
        left.remove(at);
        return Some(left);
    }
    let acts = left.iter_mut().filter_map(|step| match step {
        Step::Batch(acts) | Step::Doubled(acts) => Some(acts),
        _ => None,
    });
    let mut place = at - steps.len();
    for acts in acts {
        if place < acts.len() {
            acts.remove(place);
            return Some(left);
        }
        place -= acts.len();
    }
    None
}
