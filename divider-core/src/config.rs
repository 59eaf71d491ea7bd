//! Every setting of a node, its default, and the relations between them.

use std::time::Duration;

use crate::{
    error::ConfigError,
    format,
    ids::NodeId,
    limits,
    planner::{Balance, MaxInFlight},
};

/// Settings of a node. The fields are public; [`validate`](Self::validate) is called before anything starts.
///
/// | field | default |
/// | --- | --- |
/// | `affinity` | 1000 |
/// | `capacity` | none |
/// | `lease` | 3 s |
/// | `beat` | a quarter of the lease |
/// | `lock_delay` | none: the lease |
/// | `resync` | 1 s |
/// | `balance` | [`Balance::OnJoin`] |
/// | `max_in_flight` | 10 % of the keys, at least 1 |
/// | `flush_time_limit` | 25 s |
/// | `stop_timeout` | none |
/// | `quarantine` | after 2 deaths and 3 more alone, each within 10 s of the grant |
/// | `step_after` | a day |
/// | `call_time_limit` | 5 s |
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct NodeConfig {
    /// The node's name in logs and answers. Default: a random one.
    ///
    /// **A process that crashes and comes back under the same name is given no keys for two leases** (6 s by default),
    /// counted from when the leader saw it join. It holds whenever the group still has a session of that name: one
    /// that has not expired yet, or whose keys have not all been given out again. So it meets a pod with a fixed name
    /// that is started again at once, and two processes that share a name. It does not meet a node that was drained
    /// and left, one that comes back later than the lease of its dead session plus the time to give out the keys, or
    /// one with a random name; and the wait ends at once where no other node takes work. Why: a program that crashes
    /// on its start would otherwise be the emptiest node each time, be given its own keys back, and have healthy keys
    /// set aside for its deaths.
    pub node: NodeId,
    /// How much work the node wants when it joins, in proportion to the others; 0 to
    /// [`MAX_AFFINITY`](limits::MAX_AFFINITY).
    pub affinity: u32,
    /// Most keys that the node holds at once, counting those that are being stopped; at least 1.
    pub capacity: Option<u32>,
    /// How long the node may be out of touch before its keys go to others; 100 ms to 1 h. Every node of a group should
    /// have the same.
    pub lease: Duration,
    /// How often the lease is renewed; at most a third of the lease. A renewal that does not come back is not waited for:
    /// the next one is sent at its own time.
    pub beat: Option<Duration>,
    /// Where set, a session whose connection the store has seen end is expired after this long, although its lease still
    /// runs; 1 ms to the lease. That is sound for a node that has died. A node that lives on behind a lost connection still
    /// believes in its lease, so then only tokens keep its late writes out: set it only if whatever you write to checks
    /// them. Counts on the node that leads, and only with a store that notices the end of a connection (Postgres).
    pub lock_delay: Option<Duration>,
    /// The longest that a lost hint goes unnoticed; 10 ms to 1 min.
    pub resync: Duration,
    /// When keys move for balance. Counts on the node that leads.
    pub balance: Balance,
    /// Most keys that are between owners at once because of balance. Counts on the node that leads.
    pub max_in_flight: MaxInFlight,
    /// How long [`flush`](crate::Divider::flush) waits for confirmations; 1 ms to a day. The default leaves 5 s of the 30 s
    /// that Kubernetes gives a pod.
    pub flush_time_limit: Duration,
    /// Takes a key from an owner that has not confirmed its stop for this long. Off by default: the old owner may still
    /// be acting, and only a sink that checks tokens is then safe. At least the lease. Counts on the node that leads.
    pub stop_timeout: Option<Duration>,
    /// When a key whose owners keep dying is set aside. `None`: never. Counts on the node that leads.
    pub quarantine: Option<Quarantine>,
    /// How long all sessions of the group must have been able to read a newer [format](crate::format) before the group is
    /// written in it, so that a deploy can be rolled back meanwhile; at most a year. Counts on the node that leads.
    pub step_after: Duration,
    /// The newest format that this node says it reads, for tests of an old program beside a new one.
    #[doc(hidden)]
    pub reads: u16,
    /// How long calls that do not belong to a session (such as [`add_work`](crate::Divider::add_work)) are tried again
    /// while the store is out of reach, counted from when they were made; 1 ms to a day.
    pub call_time_limit: Duration,
}

/// When a key whose owners keep dying is set aside.
///
/// Whatever ran beside a key that kills its process died with it, so that a count alone would set its neighbours
/// aside, too. A key is therefore *suspect* after some deaths in a row, and then tried apart from other suspects; only
/// deaths with nothing else suspect aboard count further. A death says nothing where most of the group fell silent at
/// the same time, where its node could not hear, or where no other session was there to see it: machines and networks
/// fail, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quarantine {
    /// After this many deaths in a row a key is suspect; at least 1. Suspects are spread over all nodes, and one that dies so
    /// as well is tried apart. Default: 2.
    pub suspect: u32,
    /// After this many further deaths in a row, each with this key as the only suspect aboard, it is set aside; at least 1.
    /// Default: 3.
    pub deaths: u32,
    /// An owner that lived for this long with the key was not killed by it. Default: 10 s.
    pub within: Duration,
}

impl Default for Quarantine {
    fn default() -> Self {
        Self { suspect: 2, deaths: 3, within: Duration::from_secs(10) }
    }
}

impl Default for NodeConfig {
    fn default() -> Self {
        let random = uuid::Uuid::new_v4().simple().to_string();
        Self::new(NodeId::new(&random[..12]).unwrap_or_else(|_| unreachable!("twelve hexadecimal digits")))
    }
}

impl NodeConfig {
    /// The defaults, under a name.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            affinity: 1000,
            capacity: None,
            lease: Duration::from_secs(3),
            beat: None,
            lock_delay: None,
            resync: Duration::from_secs(1),
            balance: Balance::OnJoin,
            max_in_flight: MaxInFlight::Percent(10),
            flush_time_limit: Duration::from_secs(25),
            stop_timeout: None,
            quarantine: Some(Quarantine::default()),
            step_after: Duration::from_secs(24 * 3600),
            reads: format::NEWEST,
            call_time_limit: Duration::from_secs(5),
        }
    }

    /// How often the lease is renewed.
    pub fn beat_interval(&self) -> Duration {
        self.beat.unwrap_or(self.lease / 4)
    }

    /// How often a node looks at the store when nothing happens: often enough that a death is noticed within the lease
    /// and a fraction of it, and a lost hint within the resync interval.
    pub fn poll_interval(&self) -> Duration {
        (self.lease / 12).min(self.resync / 2).min(Duration::from_millis(300))
    }

    /// How often a node looks at the store when nothing happens, while the store itself [watches](crate::LeaderView::watched)
    /// the leader: often enough that a lost hint is noticed within the resync interval.
    pub fn watched_poll_interval(&self) -> Duration {
        (self.lease / 4).min(self.resync / 2).min(Duration::from_secs(1))
    }

    /// What is taken off the lease for clocks that run at different speeds: a twentieth.
    pub fn drift_margin(&self) -> Duration {
        self.lease / 20
    }

    /// Checks each field and the relations between them.
    ///
    /// # Errors
    /// The first contradiction, with what would be right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fail = |field, problem: String| Err(ConfigError::new(field, problem));
        if self.affinity > limits::MAX_AFFINITY {
            return fail("affinity", format!("is {}; the most is {}", self.affinity, limits::MAX_AFFINITY));
        }
        if self.capacity == Some(0) {
            return fail("capacity", "is 0; use affinity 0 for a node that takes no work".into());
        }
        within("lease", self.lease, Duration::from_millis(100), Duration::from_secs(3600))?;
        within("beat", self.beat_interval(), Duration::from_millis(1), self.lease / 3)?;
        if let Some(lock_delay) = self.lock_delay {
            within("lock_delay", lock_delay, Duration::from_millis(1), self.lease)?;
        }
        within("resync", self.resync, Duration::from_millis(10), Duration::from_secs(60))?;
        if let Balance::Continuous { tolerance } = self.balance
            && !(0.0..=1.0).contains(&tolerance)
        {
            return fail("balance", format!("has tolerance {tolerance}; it must be between 0 and 1"));
        }
        match self.max_in_flight {
            MaxInFlight::Percent(1..=100) | MaxInFlight::Keys(1..) => {}
            other => return fail("max_in_flight", format!("is {other:?}; use 1 to 100 percent, or at least 1 key")),
        }
        let day = Duration::from_secs(24 * 3600);
        within("flush_time_limit", self.flush_time_limit, Duration::from_millis(1), day)?;
        within("call_time_limit", self.call_time_limit, Duration::from_millis(1), day)?;
        if let Some(stop_timeout) = self.stop_timeout {
            within("stop_timeout", stop_timeout, self.lease, day)?;
        }
        within("step_after", self.step_after, Duration::ZERO, day * 365)?;
        match self.quarantine {
            Some(Quarantine { suspect, deaths, .. }) if suspect < 1 || deaths < 1 => {
                fail("quarantine", format!("is {suspect} and {deaths} deaths; each must be at least 1"))
            }
            Some(quarantine) => within("quarantine.within", quarantine.within, Duration::ZERO, day),
            None => Ok(()),
        }
    }
}

fn within(field: &'static str, value: Duration, min: Duration, max: Duration) -> Result<(), ConfigError> {
    if value < min || value > max {
        let problem = format!("is {value:?}; it must be between {min:?} and {max:?}");
        return Err(ConfigError::new(field, problem));
    }
    Ok(())
}
