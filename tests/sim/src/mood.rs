//! What the store answers while it is in a mood: refusals, and answers that nobody can read, to some calls of some processes.

use divider_conformance::Dice;
use divider_core::StoreError;

use crate::exec::Pid;

/// What a call is answered instead of what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The store is not set up for this, for a moment. Nothing was done.
    Misconfigured,
    /// The user may not do this, for a moment. Nothing was done.
    NoRight,
    /// The server takes no writes, for a moment. Nothing was done.
    ReadOnly,
    /// Something that cannot be read. Nothing was done.
    Corrupt,
    /// Something that cannot be read. All was done.
    CorruptAfter,
}

impl Answer {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Misconfigured, Self::NoRight, Self::ReadOnly, Self::Corrupt, Self::CorruptAfter];

    /// Whether the call takes effect nevertheless.
    pub fn is_done(self) -> bool {
        self == Self::CorruptAfter
    }

    /// Its name among the faults.
    pub fn name(self) -> &'static str {
        match self {
            Self::Misconfigured => "answered: misconfigured",
            Self::NoRight => "answered: no right",
            Self::ReadOnly => "answered: read only",
            Self::Corrupt => "answered: unreadable, not done",
            Self::CorruptAfter => "answered: unreadable, done",
        }
    }

    /// What the node is told.
    pub fn error(self) -> StoreError {
        match self {
            Self::Misconfigured => StoreError::Misconfigured("simulated: the table has gone".into()),
            Self::NoRight => StoreError::Misconfigured("simulated: the user has no right to do this".into()),
            Self::ReadOnly => StoreError::Misconfigured("simulated: the server is read only".into()),
            Self::Corrupt | Self::CorruptAfter => StoreError::Corrupt("simulated: half a message".into()),
        }
    }
}

/// Which calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// All.
    All,
    /// What changes something.
    Writes,
    /// Batches of ops, and joins.
    Batches,
    /// What reads.
    Reads,
    /// Renewals of sessions.
    Renewals,
    /// Looks at leadership.
    Polls,
    /// What a leader reads a group by.
    Scans,
    /// Subscriptions to the messages of a session.
    SessionHints,
    /// Subscriptions to the changes of the group.
    GroupHints,
    /// Both.
    Hints,
    /// Subscriptions to the messages of a session, and reading what it holds.
    Hearing,
}

impl Calls {
    /// Those that a mood may be about that says nothing of subscriptions alone.
    const MIXED: [Self; 7] =
        [Self::All, Self::Writes, Self::Batches, Self::Batches, Self::Reads, Self::Renewals, Self::Polls];

    /// Whether a call, by its name in the trace, is one of them.
    pub fn has(self, what: &str) -> bool {
        match self {
            Self::All => true,
            Self::Writes => matches!(what, "apply" | "join" | "renew" | "poll" | "resign"),
            Self::Batches => matches!(what, "apply" | "join"),
            Self::Reads => !Self::Writes.has(what) && !Self::Hints.has(what),
            Self::Renewals => what == "renew",
            Self::Polls => what == "poll",
            Self::Scans => matches!(what, "scan" | "changes"),
            Self::SessionHints => what == "subscribe",
            Self::GroupHints => what == "follow",
            Self::Hints => matches!(what, "subscribe" | "follow"),
            Self::Hearing => matches!(what, "subscribe" | "holdings"),
        }
    }

    fn is_of_hints(self) -> bool {
        matches!(self, Self::SessionHints | Self::GroupHints | Self::Hints | Self::Hearing)
    }
}

/// For a while, some calls are answered so.
#[derive(Clone, Copy, Debug)]
pub struct Mood {
    /// Whose calls; everybody's if nobody is named.
    pub whom: Option<Pid>,
    /// Which.
    pub calls: Calls,
    /// How.
    pub answer: Answer,
    /// How many of a thousand.
    pub often: u64,
}

impl Mood {
    /// One of any kind, for everybody or for one process.
    pub fn draw(dice: &mut Dice, pid: Pid) -> Self {
        let answer = dice.pick(&Answer::ALL);
        // A server that is read only still reads.
        let calls = if answer == Answer::ReadOnly { Calls::Writes } else { dice.pick(&Calls::MIXED) };
        Self { whom: dice.permille(600).then_some(pid), calls, answer, often: dice.pick(&[1000, 1000, 300]) }
    }

    /// One that refuses subscriptions, and nothing else.
    pub fn deaf(dice: &mut Dice, pid: Pid) -> Self {
        let calls = dice.pick(&[Calls::SessionHints, Calls::GroupHints, Calls::Hints]);
        Self { whom: dice.permille(600).then_some(pid), calls, answer: Answer::NoRight, often: 1000 }
    }

    /// Whether it is about this call.
    pub fn covers(&self, pid: Pid, what: &str) -> bool {
        self.whom.is_none_or(|whom| whom == pid) && self.calls.has(what)
    }

    /// Its name among the faults.
    pub fn name(&self, what: &str) -> &'static str {
        match what {
            "subscribe" if self.calls.is_of_hints() => "subscription to messages refused",
            "follow" if self.calls.is_of_hints() => "subscription to changes refused",
            _ => self.answer.name(),
        }
    }
}
