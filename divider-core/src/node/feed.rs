//! The group's hints as a leader follows them, from one subscription to the next.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, stream};

use super::{session::subscribe, shared::Shared};
use crate::{Hint, HintStream, Topic};

/// `None` says that a subscription has begun: what came before has to be read. Never ends.
pub(super) type Feed = Pin<Box<dyn Stream<Item = Option<Hint>> + Send>>;

/// Subscribes while it is polled, so it holds nobody up: a leader without a subscription goes on by its polls.
pub(super) fn follow(shared: &Arc<Shared>) -> Feed {
    Box::pin(stream::unfold((shared.clone(), None::<HintStream>), |(shared, hints)| async move {
        if let Some(mut hints) = hints {
            if let Some(hint) = hints.next().await {
                return Some((Some(hint), (shared, Some(hints))));
            }
            shared.observer.hint_missed();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let hints = subscribe(&shared, Topic::Group).await;
        Some((None, (shared, Some(hints))))
    }))
}
