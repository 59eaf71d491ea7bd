//! How a node hands over what it has: little by little, and leadership last.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::shared::Shared;
use crate::{
    ids::{Key, Revision, Token},
    pace,
    record::StopReason,
};

/// How often to look whether a part has been confirmed.
const LOOK: Duration = Duration::from_millis(1);
/// How long a leader that leaves waits until what it held is given out.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Asks everything that runs to stop, part by part, whether the store answers or not: what is lost with the session cannot be
/// handed over any more, so a program must not hear of its end from the end of its lease. Nothing new can come of it: the word
/// of the drain goes to the store before all that is confirmed from here on, and what the store grants before it has heard
/// that word is given back unread.
pub(crate) async fn stop_all(shared: Arc<Shared>) {
    let running: Vec<(Key, Token)> = shared.with(|member| member.running()).into_iter().collect();
    let mut left = running.len();
    for part in running.chunks(pace::part(running.len())) {
        left -= part.len();
        shared.with(|member| {
            for (key, token) in part {
                member.told_to_stop(key, *token, StopReason::Flushed);
            }
        });
        let mut waited = Duration::ZERO;
        while left > 0 && waited < pace::PATIENCE && shared.with(|member| member.held()) > left {
            if shared.has_ended() {
                return;
            }
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
        }
    }
}

/// Waits, if this node leads, until it has given out all that it has freed itself: it still knows the group, whoever comes
/// next has to read it first.
pub(crate) async fn last_word(shared: &Shared) {
    let freed = Revision(shared.applied.load(Ordering::Relaxed));
    let mut rested = shared.rested.subscribe();
    if shared.leading.borrow().is_some() {
        // Best effort: otherwise the next leader does it.
        let _ = tokio::time::timeout(LAST_WORD, rested.wait_for(|rested| rested.is_none_or(|at| at >= freed))).await;
    }
}
