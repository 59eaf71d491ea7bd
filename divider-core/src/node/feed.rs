//! The group's hints as a leader follows them, from one subscription to the next.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, stream};

use super::{
    session::{Pause, subscribe},
    shared::Shared,
};
use crate::store::{Hint, HintStream, Topic};

/// `None` says that a subscription has begun: what came before has to be read. Never ends.
pub(super) type Feed = Pin<Box<dyn Stream<Item = Option<Hint>> + Send>>;

/// Subscribes while it is polled, so it holds nobody up: a leader without a subscription goes on by its polls.
pub(super) fn follow(shared: &Arc<Shared>) -> Feed {
    let begin = (shared.clone(), None::<HintStream>, Pause::new(shared.clock.now()));
    Box::pin(stream::unfold(begin, |(shared, hints, mut pause)| async move {
        let mut wait = Duration::ZERO;
        if let Some(mut hints) = hints {
            if let Some(hint) = hints.next().await {
                return Some((Some(hint), (shared, Some(hints), pause)));
            }
            shared.observer.hint_missed();
            wait = pause.ended(shared.clock.now());
        }
        tokio::time::sleep(wait).await;
        let hints = subscribe(&shared, Topic::Group).await;
        pause.begun(shared.clock.now());
        Some((None, (shared, Some(hints), pause)))
    }))
}
