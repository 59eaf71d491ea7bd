//! A node lives as a whole, or not at all.

use std::sync::Weak;

use super::shared::Shared;

/// Stands for a part of a node that must not die alone, however that comes about: by a panic, with the runtime that it ran
/// on, or because somebody dropped it. Dropped before it is done, it takes the node with it.
pub(crate) struct Part {
    node: Weak<Shared>,
    what: &'static str,
}

impl Part {
    pub(crate) fn of(node: Weak<Shared>, what: &'static str) -> Self {
        Self { node, what }
    }

    /// The part has ended as it should.
    pub(crate) fn done(mut self) {
        self.node = Weak::new();
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(node) = self.node.upgrade() {
            node.collapse(self.what);
        }
    }
}
