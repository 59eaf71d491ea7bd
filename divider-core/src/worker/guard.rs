//! What keeps a node from living on when its worker has ended.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::divider::Divider;

/// Ends the node when it is dropped, unless the node was drained before. Otherwise a node whose worker was aborted or has
/// panicked would renew its lease for ever, and be given keys that nothing runs.
pub(super) struct EndsNode(Option<Arc<dyn Divider>>);

impl EndsNode {
    pub(super) fn new(divider: Arc<dyn Divider>) -> Self {
        Self(Some(divider))
    }

    /// The node has been drained.
    pub(super) fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for EndsNode {
    fn drop(&mut self) {
        let Some(node) = self.0.take().map(Abandoned) else { return };
        // In the background, to say good-bye to the store. Tasks may still be winding up, so their keys wait for the lease.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                let _ = node.0.cancel().await;
            });
        }
    }
}

/// Where there is no runtime any more, nothing can be awaited, and the node ends without a word.
struct Abandoned(Arc<dyn Divider>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.abandon();
    }
}
