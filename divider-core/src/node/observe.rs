//! Metrics and the targets of log lines. `ARCHITECTURE.md` documents them in one table.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::{
    config::NodeConfig,
    error::StoreError,
    leader::{Counts, News, Timing},
    op::{Op, Outcome},
};

/// Targets of `tracing` events.
pub(crate) mod target {
    pub(crate) const SESSION: &str = "divider::session";
    pub(crate) const LEADER: &str = "divider::leader";
    pub(crate) const STORE: &str = "divider::store";
    pub(crate) const SOURCE: &str = "divider::source";
    pub(crate) const WORKER: &str = "divider::worker";
}

/// Describes every metric to the recorder that the program has installed, if any.
pub(crate) fn describe() {
    describe_gauge!("divider_keys_held", "keys that this node holds");
    describe_gauge!("divider_keys", "keys of the group by state, on the leader");
    describe_counter!("divider_moves_total", "moves that the leader carried out, by reason");
    describe_histogram!("divider_handoff_seconds", Unit::Seconds, "from the request to stop to the next grant");
    describe_histogram!(
        "divider_takeover_seconds",
        Unit::Seconds,
        "from a dead owner's last sign of life to the next grant"
    );
    describe_counter!("divider_beats_late_total", "renewals that failed or took longer than the beat interval");
    describe_counter!("divider_sessions_lost_total", "sessions that this node lost");
    describe_counter!("divider_hints_missed_total", "gaps in the hints that were repaired by a read");
    describe_counter!("divider_store_errors_total", "failed calls to the store, by call");
    describe_histogram!("divider_store_call_seconds", Unit::Seconds, "duration of calls to the store, by call");
    describe_gauge!("divider_leading", "1 while this node leads its group");
}

/// One node's labels.
#[derive(Clone, Debug)]
pub(crate) struct Observer {
    pub(crate) node: String,
    pub(crate) store: &'static str,
    /// After this a call is given up. Every store has a time limit of its own, well below; this is for one that has not kept
    /// to it, so that a call which never comes back cannot silence a node for good.
    pub(crate) limit: Duration,
}

/// So many nodes that come and go between two ticks are named in the log.
const MOST_LINES: usize = 8;
/// The least for that.
const PATIENCE: Duration = Duration::from_secs(5);

impl Observer {
    pub(crate) fn new(config: &NodeConfig, store: &'static str) -> Self {
        Self { node: config.node.to_string(), store, limit: config.lease.max(PATIENCE) }
    }

    pub(crate) fn held(&self, keys: usize) {
        gauge!("divider_keys_held", "node" => self.node.clone()).set(keys as f64);
    }

    pub(crate) fn leading(&self, leading: bool) {
        gauge!("divider_leading", "node" => self.node.clone()).set(f64::from(u8::from(leading)));
    }

    pub(crate) fn counts(&self, counts: Counts) {
        let states = [
            ("registered", counts.registered),
            ("pending", counts.pending),
            ("stopping", counts.stopping),
            ("quarantined", counts.quarantined),
            ("scheduled", counts.scheduled),
            ("held_back", counts.held_back),
        ];
        for (state, keys) in states {
            gauge!("divider_keys", "node" => self.node.clone(), "state" => state).set(keys as f64);
        }
    }

    pub(crate) fn moved(&self, ops: &[Op], outcomes: &[Outcome]) {
        for (op, outcome) in ops.iter().zip(outcomes) {
            let done = matches!(outcome, Outcome::Done | Outcome::Granted(_));
            if let Some(reason) = crate::leader::move_reason(op).filter(|_| done) {
                counter!("divider_moves_total", "reason" => reason).increment(1);
            }
        }
    }

    pub(crate) fn timings(&self, timings: Vec<Timing>) {
        for timing in timings {
            match timing {
                Timing::Handoff(time) => histogram!("divider_handoff_seconds").record(time),
                Timing::Takeover(time) => histogram!("divider_takeover_seconds").record(time),
            }
        }
    }

    /// Logs what a leader has to tell, a line each, but no more than a few of the many that may come and go together.
    pub(crate) fn news(&self, news: Vec<News>) {
        let (node, mut lines, total) = (&self.node, 0, news.len());
        for news in news {
            let held = matches!(news, News::HeldBack(..) | News::Released);
            lines += usize::from(!held);
            if !held && lines > MOST_LINES {
                continue;
            }
            match news {
                News::Joined(who, session) => {
                    tracing::info!(target: target::LEADER, %node, %who, %session, "a node has joined");
                }
                News::Left(who, session) => {
                    tracing::info!(target: target::LEADER, %node, %who, %session, "a node has left");
                }
                News::Expired(who, session, silent, keys) => tracing::info!(
                    target: target::LEADER, %node, %who, %session, ?silent, keys, "a node was silent for too long: its session is over"
                ),
                News::HeldBack(keys, time) => tracing::warn!(
                    target: target::LEADER, %node, keys, tried_in = ?time,
                    "holds keys back: their owners died again and again soon after they had been given them"
                ),
                News::Released => tracing::info!(target: target::LEADER, %node, "holds no keys back any more"),
            }
        }
        if lines > MOST_LINES {
            let more = lines - MOST_LINES;
            tracing::info!(target: target::LEADER, %node, more, total, "and more nodes have joined, left or been silent");
        }
    }

    pub(crate) fn beat_late(&self) {
        counter!("divider_beats_late_total", "node" => self.node.clone()).increment(1);
    }

    pub(crate) fn session_lost(&self) {
        counter!("divider_sessions_lost_total", "node" => self.node.clone()).increment(1);
    }

    pub(crate) fn hint_missed(&self) {
        counter!("divider_hints_missed_total", "node" => self.node.clone()).increment(1);
    }

    /// Times a call to the store, counts and logs its failure, and gives it up where it never comes back.
    pub(crate) async fn call<T>(
        &self,
        call: &'static str,
        future: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let limit = self.limit;
        let bounded = async {
            let timed_out = |_| StoreError::Timeout { limit };
            tokio::time::timeout(limit, future).await.map_err(timed_out)?
        };
        self.unbounded(call, bounded).await
    }

    /// As [`call`](Self::call), for one that may take its time.
    pub(crate) async fn unbounded<T>(
        &self,
        call: &'static str,
        future: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = std::time::Instant::now();
        let result = future.await;
        self.called(call, began.elapsed(), result.as_ref().err());
        result
    }

    fn called(&self, call: &'static str, took: Duration, error: Option<&StoreError>) {
        histogram!("divider_store_call_seconds", "store" => self.store, "call" => call).record(took);
        if let Some(error) = error {
            counter!("divider_store_errors_total", "store" => self.store, "call" => call).increment(1);
            tracing::debug!(target: target::STORE, node = %self.node, call, ?took, %error, "a call to the store failed");
        }
    }
}
