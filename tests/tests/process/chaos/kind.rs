//! The kinds of fault.

/// What a kind asks of the store, the network and the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    /// A store that is a server of its own.
    Server,
    Redis,
    /// Redis, in a run that lets it forget.
    Forgetting,
    Postgres,
    /// A store that is made of nodes.
    Voters,
    Namespaces,
    Disk,
}

macro_rules! kinds {
    ($($kind:ident $weight:literal $needs:ident $name:literal)*) => {
        /// One kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Kind { $($kind),* }

        impl Kind {
            pub(crate) const ALL: &[Self] = &[$(Self::$kind),*];

            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$kind => $name),* }
            }

            /// How often it is drawn, in proportion to the others.
            pub(crate) fn weight(self) -> u64 {
                match self { $(Self::$kind => $weight),* }
            }

            pub(crate) fn needs(self) -> Needs {
                match self { $(Self::$kind => Needs::$needs),* }
            }
        }
    };
}

kinds! {
    KillLeader 4 Nothing "leader killed -9"
    KillNode 5 Nothing "other node killed -9"
    KillHalf 2 Nothing "half of the nodes killed -9 at once"
    KillAll 1 Nothing "all nodes killed -9 at once"
    KillDraining 3 Nothing "node killed -9 while it drains"
    CrashLoop 2 Nothing "node that is killed -9 soon after each start"
    FreezeBriefly 4 Nothing "node stopped (SIGSTOP) for less than the lease"
    FreezeLong 5 Nothing "node stopped (SIGSTOP) for longer than the lease"
    FreezeLeader 3 Nothing "leader stopped (SIGSTOP) for longer than the lease"
    DrainNode 3 Nothing "node drained (SIGTERM)"
    DrainLeader 2 Nothing "leader drained (SIGTERM)"
    RollingRestart 1 Nothing "rolling restart"
    Join 3 Nothing "newcomer"
    JoinSameName 3 Nothing "newcomer under a name in use"
    JoinSlow 2 Nothing "newcomer that confirms late"
    JoinPicky 2 Nothing "newcomer with limits and a balance of its own"
    BlockBriefly 2 Nothing "runtime blocked for less than the lease"
    BlockLong 3 Nothing "runtime blocked for longer than the lease"
    Affinity 4 Nothing "affinity changed"
    NoAffinity 3 Nothing "affinity 0"
    GiveUps 4 Nothing "keys given up"
    Completions 4 Nothing "keys completed"
    Removals 4 Nothing "keys removed"
    Additions 3 Nothing "keys added again, and balance asked for"
    ServerKill 3 Server "server killed -9 and started again"
    ServerGone 1 Server "server killed -9, gone for longer than the lease"
    ServerStop 2 Server "server stopped in order and started again"
    ServerFreezeBriefly 3 Server "server stopped (SIGSTOP) for less than the lease"
    ServerFreezeLong 2 Server "server stopped (SIGSTOP) for longer than the lease"
    CutHints 3 Server "subscriptions cut by the server"
    CutAll 3 Server "all connections cut by the server"
    CutOne 4 Server "one connection cut by the server"
    ClientPause 2 Redis "CLIENT PAUSE"
    ScriptFlush 3 Redis "SCRIPT FLUSH"
    BusyScript 2 Redis "a stranger's script that keeps Redis busy"
    Emptied 2 Forgetting "FLUSHALL"
    EmptiedByRestart 2 Forgetting "server killed -9 and started again without its data"
    CancelOne 3 Postgres "statement cancelled by the administrator"
    TablesLocked 2 Postgres "all tables locked by a stranger"
    VacuumFull 1 Postgres "VACUUM FULL"
    TwoVoters 2 Voters "two voters of three killed -9 at once"
    AllVoters 1 Voters "all voters killed -9 at once"
    TwoVotersFrozen 2 Voters "two voters of three stopped (SIGSTOP)"
    AllVotersFrozen 1 Voters "all voters stopped (SIGSTOP)"
    Silent 3 Nothing "network carries nothing, and all later"
    NoAnswers 3 Nothing "network carries no answers, and all later"
    NoRequests 3 Nothing "network carries no requests, and all later"
    Swallowing 3 Nothing "network swallows answers"
    Slow 2 Nothing "network slow"
    Cut 2 Nothing "network cut"
    DeadEnd 3 Nothing "half-open: accepts, and never answers"
    Torn 3 Nothing "connections cut in the middle of a message"
    Partition 3 Namespaces "partition, both ways"
    PartitionTo 3 Namespaces "partition, nothing arrives from the node"
    PartitionFrom 3 Namespaces "partition, nothing arrives at the node"
    DiskFull 1 Disk "disk full"
}
