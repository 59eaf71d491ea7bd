//! That a mistake is found, and cut down to what shows it.

use divider_conformance::FaultyStore;
use divider_core::{GroupView, MemoryStore, Op, Record};
use futures_util::FutureExt;

use super::*;

/// What a store takes an op for, which may depend on the group and on the key.
type Takes = fn(&mut Op, GroupView, Option<Record>);

/// A store that makes a mistake.
fn wrong(takes: Takes) -> FaultyStore<MemoryStore> {
    let store = MemoryStore::new();
    let wrong = FaultyStore::new(store.clone());
    wrong.faults().mistake(move |op| {
        let group = store.scan(None).now_or_never().unwrap().unwrap().group;
        let record = match op {
            Op::Confirm { key, .. } => store.records(std::slice::from_ref(key)).now_or_never().unwrap().unwrap().pop(),
            _ => None,
        };
        takes(op, group, record.flatten());
    });
    wrong
}

/// Finds the mistake, cuts it down to so many acts at most, and has the script fail again as it would be kept; the right
/// store runs it well.
async fn finds(takes: Takes, most: usize) {
    let wrong = async move |_: String| wrong(takes);
    let Err(Found { seed, problem, steps, tries }) = find(0..2000, Expect::ALL, &wrong).await else {
        panic!("the mistake is not found");
    };
    let text = script::text(&steps);
    println!("seed {seed}, cut down in {tries} tries: {problem}\n{text}");
    let acts = |step: &Step| if let Step::Batch(acts) = step { acts.len() } else { 1 };
    let acts: usize = steps.iter().map(acts).sum();
    assert!(acts <= most, "{acts} acts are left:\n{text}");
    attempt(0, 0, Expect::ALL, &wrong, &script(&text)).await.unwrap_err();
    attempt(0, 0, Expect::ALL, &async |_: String| MemoryStore::new(), &script(&text)).await.unwrap();
}

#[tokio::test]
async fn a_store_that_does_not_look_at_the_token_of_a_confirmation_is_found_by_a_short_script() {
    let takes = |op: &mut Op, _, record: Option<Record>| {
        if let (Op::Confirm { token, .. }, Some((_, right))) = (op, record.and_then(|r| r.view.state.owner())) {
            *token = right;
        }
    };
    finds(takes, 6).await;
}

#[tokio::test]
async fn a_store_that_does_not_look_at_the_term_of_a_grant_is_found_by_a_short_script() {
    let takes = |op: &mut Op, group: GroupView, _| {
        if let Op::Assign { term, .. } = op {
            *term = group.term;
        }
    };
    finds(takes, 6).await;
}
