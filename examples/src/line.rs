//! What the `worker` example prints: one JSON object on each line.
//!
//! # What the times mean
//! `at_ns` is on CLOCK_BOOTTIME, so lines of different processes on one machine can be compared. Taken together the
//! lines of a key understate how long a node held it, never overstate it: a `start` is stamped when the node has handed
//! it over, a `tick` *before* the node is asked whether it may act on the key, a `confirm` before it is sent. So where
//! two nodes' lines overlap, the nodes did.

use std::borrow::Cow;

use divider_core::StopReason;
use serde::{Deserialize, Serialize};

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The node has joined its group.
    Ready,
    /// A key was handed over.
    Start,
    /// A key is to be stopped.
    Stop,
    /// The stop is about to be confirmed.
    Confirm,
    /// The node may act on the key.
    Tick,
    /// The key's work is about to be reported as done for good.
    Complete,
    /// What the node holds.
    Assigned,
    /// The group's keys, counted by state.
    Stats,
    /// A command has been carried out.
    Done,
    /// The node leads its group from about now on.
    Leading,
    /// The node does not lead any more.
    Following,
    /// The node is drained; `count` keys were not confirmed in time.
    Flushed,
    /// The node has left its group.
    Cancelled,
    /// Something failed.
    Error,
}

/// One line. Fields that do not apply are left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line<'a> {
    /// Nanoseconds of CLOCK_BOOTTIME; see the [module](self).
    pub at_ns: u64,
    /// The node's name.
    #[serde(borrow)]
    pub node: Cow<'a, str>,
    /// What it is about.
    pub event: Kind,
    /// The key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Cow<'a, str>>,
    /// The fencing token of the ownership.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    /// Why a key is to be stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<StopReason>,
    /// The command that was carried out, or that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Cow<'a, str>>,
    /// How long it took, in microseconds from `at_ns` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_us: Option<u64>,
    /// How many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Cow<'a, str>>,
    /// Whatever else there is to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<serde_json::Value>,
}

impl<'a> Line<'a> {
    /// A line without anything but its time, node and kind.
    pub fn new(at_ns: u64, node: &'a str, event: Kind) -> Self {
        Self {
            at_ns,
            node: Cow::Borrowed(node),
            event,
            key: None,
            token: None,
            reason: None,
            command: None,
            took_us: None,
            count: None,
            message: None,
            detail: None,
        }
    }

    /// The same line, with texts of its own.
    pub fn into_owned(self) -> Line<'static> {
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        Line {
            node: own(self.node),
            key: self.key.map(own),
            command: self.command.map(own),
            message: self.message.map(own),
            at_ns: self.at_ns,
            event: self.event,
            token: self.token,
            reason: self.reason,
            took_us: self.took_us,
            count: self.count,
            detail: self.detail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_leaves_out_what_does_not_apply_and_reads_back() {
        let line = Line { key: Some("a\"b".into()), token: Some(7), ..Line::new(12, "n1", Kind::Tick) };
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(text, r#"{"at_ns":12,"node":"n1","event":"tick","key":"a\"b","token":7}"#);
        assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
    }
}
