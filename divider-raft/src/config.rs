//! Every setting of the Raft backend, its default, and the relations between them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use divider_core::{ConfigError, NodeId};

use crate::{
    environment::{Environment, ThisMachine},
    format::{NEWEST, OLDEST},
    net::security::Security,
};

/// Settings of a [`RaftStore`](crate::RaftStore). The fields are public; [`validate`](Self::validate) is called before
/// anything starts.
///
/// | field | default |
/// | --- | --- |
/// | `cluster` | `divider` |
/// | `name` | the one in the data directory, else a random one |
/// | `role` | [`Role::Voter`] |
/// | `data` | [`Data::Unset`]: must be chosen, except by a client |
/// | `listen`, `advertise` | none: a member on its own |
/// | `seeds`, `seed_names` | none |
/// | `security` | unset: must be chosen where `listen` or seeds are |
/// | `members` | none: must be given to a member with TLS |
/// | `administrators` | none but the members |
/// | `heartbeat` | 100 ms |
/// | `election` | 250 to 300 ms, after a leader's own lease of 300 ms |
/// | `call_time_limit` | 1 s |
/// | `open_time_limit` | 10 s |
/// | `snapshot_every` | 20,000 entries |
/// | `snapshot_time_limit` | 30 s |
/// | `voters` | 5 |
/// | `voters_to_found` | as many as `seeds`; must be given with `seed_names` |
/// | `replace_dead_after` | 10 s, by a member that is to vote |
/// | `first_life` | no |
/// | `leave_on_close` | if there is no `name` |
/// | `step_after` | a day |
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RaftConfig {
    /// The name of the cluster: members and clients with another one are refused. 1 to 256 bytes.
    pub cluster: String,
    /// The name of this process among the others; with TLS, one of the names in its certificate.
    pub name: Option<NodeId>,
    /// What this process is to the cluster.
    pub role: Role,
    /// Where the log and the snapshots are kept.
    pub data: Data,
    /// Where a member listens for the others, such as `0.0.0.0:7400`; port 0 takes a free one. A member without it is a
    /// cluster of its own.
    pub listen: Option<String>,
    /// How the others reach this member, `host:port`, where that differs from `listen`.
    pub advertise: Option<String>,
    /// Addresses of members, `host:port`, this one perhaps among them. All members are given the same list: the one whose
    /// own address comes first founds the cluster, once all others of the list have said that there is none.
    pub seeds: Vec<String>,
    /// Names, `host:port`, that are looked up in the DNS again at each try; every address they have is a seed. With TLS the
    /// members there must show a certificate with the name's host.
    pub seed_names: Vec<String>,
    /// How many voters found the cluster together, exactly: it is founded once so many have found each other, all seeds have
    /// answered, and none of them belongs to a cluster. Must be given with `seed_names`, which may leave out anybody at any
    /// moment; else the list of `seeds` says it.
    pub voters_to_found: Option<usize>,
    /// How connections are protected.
    pub security: Security,
    /// With TLS: who may be a member, by the names of members; `*.example` stands for all names that end so, and `*` for
    /// every certificate of the authority. Members decide over everything together, so name no more than there are. Raft's
    /// calls are taken from these alone.
    pub members: Vec<String>,
    /// With TLS: names in certificates whose holders may remove, promote and replace members, as members may.
    pub administrators: Vec<String>,
    /// How often a leader makes itself heard; 10 ms to 10 s.
    pub heartbeat: Duration,
    /// A follower that has not heard of the leader for the second and then for a random time between both stands for
    /// election. At least twice the heartbeat. Where a leader's process has died, and its machine says so by refusing
    /// connections, the second alone is waited for.
    pub election: (Duration, Duration),
    /// How long a call to the store may take; choose it well below the lease.
    pub call_time_limit: Duration,
    /// How long [`open`](divider_core::Store::open) waits for a leader before it says that there is none yet.
    pub open_time_limit: Duration,
    /// How many entries go between two snapshots; at least 100.
    pub snapshot_every: u64,
    /// How long one chunk of a snapshot may take to be sent, and the whole to be installed at its end.
    pub snapshot_time_limit: Duration,
    /// Most voters: members that join with [`Role::Voter`] beyond that stay learners until one is needed. An odd number.
    pub voters: usize,
    /// A voter that the leader has not heard of for this long loses its vote to a member that has caught up: to one that is
    /// to vote where there is one, else to any learner. By default 10 s, and only to a member that is to vote. Whoever was
    /// only away goes on as a learner, and votes again when there is a place.
    pub replace_dead_after: Option<Duration>,
    /// Whether there was no cluster before this one in its place. Where all disks of a cluster are lost and another one is
    /// founded, nodes in other processes may believe in their keys for a lease. So whoever leads a new group grants nothing
    /// for a lease, unless this says that there can be nobody. For tests: whoever leaves it set says so of every later life.
    pub first_life: bool,
    /// Whether this member leaves the cluster when its last handle is closed, so that the others do not count on it. By
    /// default if it has no `name`: then whoever starts in its place is another one. One with a name is waited for.
    pub leave_on_close: Option<bool>,
    /// How long all members of the cluster must have been able to read a newer format of the log and the snapshots before it is
    /// written in it, so that a deploy can be rolled back meanwhile; at most a year. Counts on the member that leads. See
    /// [`RaftStore::step_up`](crate::RaftStore::step_up).
    pub step_after: Duration,
    /// The newest format that this process says it reads, for tests of an old program beside a new one.
    #[doc(hidden)]
    pub reads: u8,
    /// What it all stands on. For the simulation of this repository; **outside of semantic versioning**.
    #[cfg(feature = "unstable-sim")]
    pub environment: Arc<dyn Environment>,
    #[cfg(not(feature = "unstable-sim"))]
    pub(crate) environment: Arc<dyn Environment>,
}

/// What a process is to its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Keeps the log and votes. Three or five of them survive the loss of one or two.
    Voter,
    /// Keeps the log and does not vote, until it is made a voter.
    Learner,
    /// Keeps nothing and asks the members. Hundreds of clients share three to five voters.
    Client,
}

/// Where a member keeps what must survive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Data {
    /// Nothing was chosen.
    #[default]
    Unset,
    /// In this directory, which belongs to this member alone. It is made where there is none.
    Directory(PathBuf),
    /// In memory, for tests: what is acknowledged does not survive the process.
    Memory,
}

impl<P: Into<PathBuf>> From<P> for Data {
    fn from(directory: P) -> Self {
        Self::Directory(directory.into())
    }
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            cluster: "divider".into(),
            name: None,
            role: Role::Voter,
            data: Data::Unset,
            listen: None,
            advertise: None,
            seeds: Vec::new(),
            seed_names: Vec::new(),
            voters_to_found: None,
            security: Security::Unset,
            members: Vec::new(),
            administrators: Vec::new(),
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(250), Duration::from_millis(300)),
            call_time_limit: Duration::from_secs(1),
            open_time_limit: Duration::from_secs(10),
            snapshot_every: 20_000,
            snapshot_time_limit: Duration::from_secs(30),
            voters: 5,
            replace_dead_after: None,
            first_life: false,
            leave_on_close: None,
            step_after: Duration::from_secs(24 * 3600),
            reads: NEWEST,
            environment: Arc::new(ThisMachine),
        }
    }
}

impl RaftConfig {
    /// Checks each field and the relations between them.
    ///
    /// # Errors
    /// The first contradiction, with what would be right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fail = |field, problem: &str| Err(ConfigError::new(field, problem));
        let ms = Duration::from_millis;
        if self.cluster.is_empty() || self.cluster.len() > 256 {
            return fail("cluster", "must have 1 to 256 bytes");
        }
        let has_seeds = self.has_seeds();
        match self.role {
            Role::Client if !has_seeds => return fail("seeds", "are empty; a client needs the address of a member"),
            Role::Client => {}
            _ if self.data == Data::Unset => {
                return fail("data", "is not set; give it a directory of its own");
            }
            _ if has_seeds && self.listen.is_none() => {
                return fail("listen", "is not set; a member of a cluster must be reachable, such as at 0.0.0.0:7400");
            }
            Role::Learner if !has_seeds => return fail("seeds", "are empty; a learner joins a cluster"),
            _ => {}
        }
        if (has_seeds || self.listen.is_some()) && matches!(self.security, Security::Unset) {
            return fail(
                "security",
                "is not set; use tls(..), secret(..), or plaintext() where the network is closed to others",
            );
        }
        if let Some(problem) = self.security.problem(self.role != Role::Client) {
            return fail("security", problem);
        }
        if self.role != Role::Client && self.listen.is_some() && self.members.is_empty() && self.security.proves_names()
        {
            return fail(
                "members",
                "are empty; say whose certificates are those of members, by name or as *.example: all others are clients",
            );
        }
        if self.role == Role::Voter && !self.seed_names.is_empty() && self.voters_to_found.is_none() {
            return fail(
                "voters_to_found",
                "is not set; say how many voters found the cluster, for at any moment the DNS may know fewer of them",
            );
        }
        if self.voters_to_found == Some(0) {
            return fail("voters_to_found", "must be at least 1");
        }
        if let Some(problem) = self.unreachable_address() {
            return fail("advertise", problem);
        }
        if self.seeds.iter().chain(&self.seed_names).any(|seed| !seed.contains(':')) {
            return fail("seeds", "must be host:port each");
        }
        if !(ms(10)..=ms(10_000)).contains(&self.heartbeat) {
            return fail("heartbeat", "must be between 10 ms and 10 s");
        }
        if self.election.0 < 2 * self.heartbeat || self.election.1 <= self.election.0 {
            return fail("election", "must be a range that begins at twice the heartbeat or later");
        }
        if self.call_time_limit < self.heartbeat || self.call_time_limit > ms(60_000) {
            return fail("call_time_limit", "must be between the heartbeat and a minute");
        }
        if self.snapshot_every < 100 {
            return fail("snapshot_every", "must be at least 100");
        }
        if self.step_after > Duration::from_secs(365 * 24 * 3600) {
            return fail("step_after", "must be at most a year");
        }
        if !(OLDEST..=NEWEST).contains(&self.reads) {
            return fail("reads", "must be a format that there is");
        }
        if self.voters == 0 || self.voters.is_multiple_of(2) {
            return fail("voters", "must be odd: an even number survives no more losses than one less");
        }
        Ok(())
    }

    pub(crate) fn has_seeds(&self) -> bool {
        !self.seeds.is_empty() || !self.seed_names.is_empty()
    }

    /// Whether a graceful end takes this member out of the cluster.
    pub(crate) fn leaves(&self) -> bool {
        self.leave_on_close.unwrap_or(self.name.is_none())
    }

    /// Whether nodes of an earlier life, of which nothing is left here, may believe in their keys. Those of a member on its
    /// own were in its process.
    pub(crate) fn may_be_reborn(&self) -> bool {
        self.listen.is_some() && !self.first_life
    }

    /// Why nobody could reach this member at what it tells the others.
    fn unreachable_address(&self) -> Option<&'static str> {
        let everywhere = |address: &String| {
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host.is_empty() || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_unspecified())
        };
        match (&self.listen, &self.advertise) {
            (_, Some(address)) if everywhere(address) => {
                Some("is no address of one machine; say how the others reach it")
            }
            (Some(listen), None) if everywhere(listen) => {
                Some("is not set, and `listen` is no address of one machine; say how the others reach this member")
            }
            _ => None,
        }
    }
}
