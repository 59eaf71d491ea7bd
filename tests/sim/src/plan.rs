//! What a seed comes to.

use std::time::Duration;

use divider_conformance::Dice;

use crate::net::Weather;

/// Whether the rules of evidence are asserted: that nothing healthy is set aside, that what kills its processes is, and that
/// nobody's help is needed for either.
pub const EVIDENCE: bool = true;

/// Deaths in a row of which each may have been the key's doing: fewer are no evidence.
pub const DEATHS: u64 = 5;

/// See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: u64,
    pub(crate) keys: u64,
    pub(crate) passing: u64,
    /// How many of the keys kill their processes.
    pub(crate) killers: u64,
    pub(crate) lease: Duration,
    pub(crate) resync: Duration,
    /// How long faults go on, in leases.
    pub(crate) storm: u64,
    pub(crate) weather: Weather,
    pub(crate) call_limit: Duration,
    /// Kinds of faults that this seed has, and how often, relatively.
    pub(crate) kinds: Vec<(Trouble, u64)>,
    pub(crate) drift: u64,
    /// Keys on a page, and batches in the feed.
    pub(crate) reading: (usize, u64),
    pub(crate) slow_stop: u64,
    pub(crate) slow_reader: u64,
    pub(crate) wind_up: u64,
    pub(crate) stubborn: bool,
    pub(crate) abort: u64,
    pub(crate) give_up: u64,
    pub(crate) complete: u64,
    pub(crate) quarantine: bool,
    /// Work is declared without a break until every key runs, this often in microseconds; 0 for not at all.
    pub(crate) busy: u64,
    /// One process hears nothing any more, even after all else is well; if 2, it cannot read either.
    pub(crate) deaf: u64,
}

/// What is done to the nodes and the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    Crash,
    CrashSoon,
    Suspend,
    Block,
    CutOff,
    ServerDown,
    /// The store stands still, and then does all that it was asked for meanwhile.
    Stall,
    /// The store goes away again and again.
    Outages,
    NewLineage,
    Backup,
    Restored,
    Flushed,
    CutFeeds,
    /// Feeds are cut whenever a leader reads the group.
    CutReading,
    /// The store refuses calls, or answers what nobody can read.
    Mood,
    /// The store refuses subscriptions alone.
    Deaf,
    /// A task of a node panics.
    Panic,
    /// A call of a node to the store panics.
    PanicInCall,
    /// The runtime ends, and somebody keeps a handle.
    EndRuntime,
    /// The readers are dropped, and taken anew.
    DropReaders,
    /// One more reader is taken.
    DoubleReaders,
    Depose,
    WallJump,
    Affinity,
    AddWork,
    /// The same work is ordered again.
    Order,
    RemoveWork,
    Leave,
    Rebalance,
    Newcomer,
}

impl Trouble {
    const ALL: [(Self, u64); 30] = [
        (Self::Crash, 6),
        (Self::CrashSoon, 6),
        (Self::Suspend, 8),
        (Self::Block, 3),
        (Self::CutOff, 8),
        (Self::ServerDown, 4),
        (Self::Stall, 3),
        (Self::Outages, 2),
        (Self::NewLineage, 2),
        (Self::Backup, 2),
        (Self::Restored, 1),
        (Self::Flushed, 1),
        (Self::CutFeeds, 4),
        (Self::CutReading, 3),
        (Self::Mood, 8),
        (Self::Deaf, 4),
        (Self::Panic, 3),
        (Self::PanicInCall, 3),
        (Self::EndRuntime, 2),
        (Self::DropReaders, 3),
        (Self::DoubleReaders, 2),
        (Self::Depose, 5),
        (Self::WallJump, 2),
        (Self::Affinity, 5),
        (Self::AddWork, 4),
        (Self::Order, 8),
        (Self::RemoveWork, 4),
        (Self::Leave, 4),
        (Self::Rebalance, 3),
        (Self::Newcomer, 8),
    ];
}

impl Plan {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let special = dice.below(1000);
        let plan = Self::of_all_kinds(dice);
        match special {
            0..10 => plan.of_a_busy_group(),
            10..30 => plan.of_outages(),
            30..36 if EVIDENCE => plan.with_killers(1),
            36..42 if EVIDENCE => plan.with_killers(2),
            _ => plan,
        }
    }

    fn of_all_kinds(dice: &mut Dice) -> Self {
        let long = dice.permille(20);
        let lease_ms = dice.pick(&[300, 1000, 1000, 3000]);
        let lease_us = lease_ms * 1000;
        let often = |dice: &mut Dice, rates: &[u64]| dice.pick(rates);
        let weather = Weather {
            latency: dice.pick(&[0, 500, 2000, lease_us / 30]),
            late: often(dice, &[0, 0, 10, 50, 200]),
            lateness: dice.pick(&[lease_us / 4, lease_us, lease_us * 3]),
            lost_requests: often(dice, &[0, 0, 10, 100]),
            lost_answers: often(dice, &[0, 0, 10, 100]),
            doubled: often(dice, &[0, 0, 50, 200]),
            lost_hints: often(dice, &[0, 0, 50, 500]),
            doubled_hints: often(dice, &[0, 0, 100]),
            late_hints: often(dice, &[0, 0, 100, 400]),
        };
        // A part of the kinds only, so that each is also seen without the others.
        let share = dice.pick(&[100, 200, 400, 700]);
        let mut kinds: Vec<_> = Trouble::ALL.into_iter().filter(|_| dice.permille(share)).collect();
        kinds.push((Trouble::Newcomer, 3));
        let stubborn = dice.permille(50);
        Self {
            nodes: dice.pick(&[2, 2, 2, 3, 3, 4, 5]),
            keys: if long { dice.between(10, 40) } else { dice.between(1, 6) },
            passing: dice.pick(&[0, 0, 1, 3]),
            killers: 0,
            lease: Duration::from_millis(lease_ms),
            resync: Duration::from_millis(dice.pick(&[lease_ms / 5, lease_ms / 2, lease_ms])),
            storm: if long { dice.between(10, 40) } else { dice.between(2, 6) },
            weather,
            call_limit: Duration::from_micros(dice.pick(&[lease_us / 3, lease_us, lease_us * 2])),
            kinds,
            drift: dice.pick(&[0, 0, 24_000]),
            reading: (dice.pick(&[0, 0, 1, 3]), dice.pick(&[0, 0, 10, 40])),
            slow_stop: dice.pick(&[0, 5, 50, 200]),
            slow_reader: dice.pick(&[0, 0, 20, 150]),
            wind_up: dice.pick(&[0, 0, 20, 100]),
            stubborn,
            abort: dice.pick(&[0, 0, 50, 300]),
            give_up: dice.pick(&[0, 0, 50, 200]),
            complete: dice.pick(&[0, 100, 400]),
            quarantine: dice.permille(500),
            busy: 0,
            deaf: if stubborn { 0 } else { dice.pick(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 2]) },
        }
    }

    /// Reading the whole group takes longer than the feed reaches back.
    fn of_a_busy_group(self) -> Self {
        Self { keys: 60, lease: Duration::from_secs(1), storm: 2, reading: (1, 40), busy: 500, ..self }
    }

    /// Nothing happens but that the store goes away again and again.
    fn of_outages(self) -> Self {
        let weather = Weather { latency: 1000, ..Weather::default() };
        Self { weather, kinds: vec![(Trouble::Outages, 1)], quarantine: true, ..self }
    }

    /// Nothing happens but that some of a hundred keys kill their processes.
    fn with_killers(self, killers: u64) -> Self {
        Self {
            nodes: 3,
            keys: 100,
            passing: 0,
            killers,
            weather: Weather { latency: 1000, ..Weather::default() },
            kinds: vec![(Trouble::Rebalance, 1)],
            slow_stop: 0,
            slow_reader: 0,
            wind_up: 0,
            stubborn: false,
            abort: 0,
            give_up: 0,
            complete: 0,
            quarantine: true,
            deaf: 0,
            ..self
        }
    }
}
