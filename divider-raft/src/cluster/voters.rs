//! What the leader does for the membership: who votes, and whom not to count on any more.
//!
//! # Rules
//! - **A dead voter is replaced before any place is filled.** A newcomer beside it makes the majority larger without making
//!   it easier to reach: three that are replaced one after the other, and not counted out, would take the quorum with them.
//! - **Odd counts.** An even number of voters survives no more losses than one less; so newcomers are promoted when their
//!   number makes the count odd.
//! - **A newer format is written once all have been able to read it for long enough** ([`format`](crate::format)): voters and
//!   learners, heard of or not.
//! - **Whoever lost its vote stays** as a learner. It may have been away only, and then it is the next to be promoted.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{cluster::member::Member, config::RaftConfig, consensus::raft::View, protocol::peer::Peer};

const TARGET: &str = "divider::raft";
/// How often a leader looks after its members while one of them waits for a vote,
const ROUND: Duration = Duration::from_millis(100);
/// and while none does.
const SELDOM: Duration = Duration::from_millis(500);
/// A learner that is at most this many entries behind has caught up.
const NEAR: u64 = 100;
/// While a voter has been silent for this long, no place beside it is filled.
const SUSPECT: Duration = Duration::from_secs(1);
/// A voter that has been silent for this long is dead, where the configuration does not say otherwise.
const DEAD: Duration = Duration::from_secs(10);
/// One that has been silent for this long is warned of where no more may be lost.
const WARN: Duration = Duration::from_secs(3);

/// What is to become of the voters.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// More of them.
    Promote(BTreeSet<u64>),
    /// One in the place of a dead one.
    Replace { dead: u64, new: u64 },
}

/// What the leader knows of a member.
#[derive(Clone, Debug)]
struct MemberHealth {
    id: u64,
    wants_vote: bool,
    votes: bool,
    /// For how long nothing was heard of it.
    silent: Duration,
    /// It has all but the newest entries.
    near: bool,
}

/// While this member leads, looks after the voters.
pub(crate) async fn maintain(member: Arc<Member>) {
    let mut since: Option<Instant> = None;
    let mut warned = None;
    let mut newer = None;
    loop {
        let changed = member.raft.changes();
        let view = member.raft.view();
        if !view.leads {
            (since, warned, newer) = (None, None, None);
            changed.await;
            continue;
        }
        let members = look(&member, &view, *since.get_or_insert_with(Instant::now));
        warn(&member, &members, &mut warned);
        if let Some(change) = plan(&members, &member.config) {
            carry_out(&member, &members, change).await;
        }
        newer = newer_format(view.reads(), member.machine.written(), newer, Instant::now());
        if newer.is_some_and(|(_, since)| since.elapsed() >= member.config.step_after) {
            // Looked at again in the next round, if nothing comes of it.
            let stepped = tokio::time::timeout(member.config.call_time_limit, member.step_up()).await;
            tracing::debug!(target: TARGET, ?stepped, "was to step up");
        }
        let waits = members.iter().any(|seen| seen.wants_vote && !seen.votes);
        tokio::time::sleep(if waits { ROUND } else { SELDOM }).await;
    }
}

/// Which newer format all members read, and since when they have.
fn newer_format(reads: u8, written: u8, last: Option<(u8, Instant)>, now: Instant) -> Option<(u8, Instant)> {
    // Before the first entry there is nothing to step up from.
    let newer = (written > 0 && reads > written).then_some(reads)?;
    last.filter(|(format, _)| *format == newer).or(Some((newer, now)))
}

fn look(member: &Member, view: &View, since: Instant) -> Vec<MemberHealth> {
    let last = member.raft.last_log_index();
    let replicated = member.raft.replicated().unwrap_or_default();
    let near = |id: &u64| replicated.get(id).copied().flatten().is_some_and(|index| index + NEAR >= last);
    let silent = |id: u64| match id == member.me.id {
        true => Duration::ZERO,
        false => member.raft.answered(id).map_or(since, |answered| answered.max(since)).elapsed(),
    };
    let seen = |(id, (peer, votes)): (&u64, &(Peer, bool))| MemberHealth {
        id: *id,
        wants_vote: peer.wants_vote,
        votes: *votes,
        silent: silent(*id),
        near: near(id),
    };
    view.members.iter().map(seen).collect()
}

fn plan(members: &[MemberHealth], config: &RaftConfig) -> Option<Change> {
    let voters = members.iter().filter(|seen| seen.votes);
    let ready = |seen: &&MemberHealth| !seen.votes && seen.near && seen.silent < SUSPECT;
    let candidates: Vec<u64> =
        members.iter().filter(ready).filter(|seen| seen.wants_vote).map(|seen| seen.id).collect();
    let spares = members.iter().filter(ready).filter(|_| config.replace_dead_after.is_some()).map(|seen| seen.id);
    let limit = config.replace_dead_after.unwrap_or(DEAD);
    let longest = voters.clone().max_by_key(|seen| seen.silent)?;
    if longest.silent >= limit
        && let Some(new) = candidates.iter().copied().chain(spares).next()
    {
        return Some(Change::Replace { dead: longest.id, new });
    }
    if longest.silent >= SUSPECT {
        return None;
    }
    let votes = voters.count();
    let mut more = candidates.len().min(config.voters.saturating_sub(votes));
    more -= usize::from(more > 0 && (votes + more).is_multiple_of(2));
    (more > 0).then(|| Change::Promote(candidates.into_iter().take(more).collect()))
}

async fn carry_out(member: &Member, members: &[MemberHealth], change: Change) {
    let mut voters: BTreeSet<u64> = members.iter().filter(|seen| seen.votes).map(|seen| seen.id).collect();
    match &change {
        Change::Promote(more) => voters.extend(more),
        Change::Replace { dead, new } => {
            voters.remove(dead);
            voters.insert(*new);
        }
    }
    match (member.raft.set_voters(voters).await, change) {
        (Ok(()), Change::Promote(promoted)) => tracing::info!(target: TARGET, ?promoted, "vote from now on"),
        (Ok(()), Change::Replace { dead, new }) => {
            tracing::warn!(target: TARGET, dead, new, "a dead voter has lost its vote to another member");
        }
        (Err(refused), change) => {
            tracing::warn!(target: TARGET, ?change, ?refused, "the voters could not be changed yet")
        }
    }
}

/// Says it loudly, once, when one more loss would be the end of all decisions.
fn warn(member: &Member, members: &[MemberHealth], warned: &mut Option<BTreeSet<u64>>) {
    let silent: BTreeSet<u64> =
        members.iter().filter(|seen| seen.votes && seen.silent >= WARN).map(|seen| seen.id).collect();
    let voters = members.iter().filter(|seen| seen.votes).count();
    let critical = !silent.is_empty() && voters - silent.len() <= voters / 2 + 1;
    if critical && warned.as_ref() != Some(&silent) {
        let problem = "voters are silent: if one more is lost, nothing can be decided. Start them again, or others that \
                       take their places; do not stop another one before that";
        tracing::warn!(target: TARGET, member = %member.me, ?silent, voters, problem);
    }
    *warned = critical.then_some(silent);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(id: u64, votes: bool) -> MemberHealth {
        MemberHealth { id, wants_vote: true, votes, silent: Duration::ZERO, near: true }
    }

    fn silent(id: u64, votes: bool, silent: Duration) -> MemberHealth {
        MemberHealth { silent, ..seen(id, votes) }
    }

    fn voters(count: u64) -> Vec<MemberHealth> {
        (1..=count).map(|id| seen(id, true)).collect()
    }

    fn planned(members: &[MemberHealth]) -> Option<Change> {
        plan(members, &RaftConfig::default())
    }

    #[test]
    fn places_are_filled_so_that_the_count_is_odd() {
        let with = |count, more: &[u64]| [voters(count), more.iter().map(|id| seen(*id, false)).collect()].concat();
        let promote = |ids: &[u64]| Some(Change::Promote(ids.iter().copied().collect()));
        assert_eq!(planned(&with(1, &[8])), None);
        assert_eq!(planned(&with(1, &[8, 9])), promote(&[8, 9]));
        assert_eq!(planned(&with(2, &[8])), promote(&[8]));
        assert_eq!(planned(&with(3, &[8])), None);
        assert_eq!(planned(&with(4, &[8, 9])), promote(&[8]));
        assert_eq!(planned(&with(5, &[8, 9])), None, "there are five at most");
    }

    #[test]
    fn a_dead_voter_is_replaced_and_no_place_is_filled_beside_a_silent_one() {
        let members = |away| vec![seen(1, true), silent(2, true, away), seen(3, true), seen(8, false), seen(9, false)];
        assert_eq!(planned(&members(SUSPECT)), None);
        assert_eq!(planned(&members(DEAD)), Some(Change::Replace { dead: 2, new: 8 }));
        // Whoever has not caught up, or is silent itself, takes nobody's place.
        let late = MemberHealth { near: false, ..seen(8, false) };
        assert_eq!(planned(&[members(DEAD)[..3].to_vec(), vec![late, silent(9, false, SUSPECT)]].concat()), None);
    }

    #[test]
    fn all_must_read_a_newer_format_without_a_break() {
        let (first, later) = (Instant::now(), Instant::now() + SUSPECT);
        let since = newer_format(2, 1, None, first);
        assert_eq!(since, Some((2, first)));
        assert_eq!(newer_format(2, 1, since, later), since);
        // Somebody who reads less came, and went.
        assert_eq!(newer_format(1, 1, since, later), None);
        assert_eq!(newer_format(2, 1, None, later), Some((2, later)));
        assert_eq!(newer_format(3, 1, since, later), Some((3, later)), "another one than that");
        assert_eq!(newer_format(2, 2, since, later), None);
        assert_eq!(newer_format(2, 0, None, later), None);
    }

    #[test]
    fn one_that_was_not_to_vote_votes_only_where_the_user_says_so() {
        let spare = MemberHealth { wants_vote: false, ..seen(8, false) };
        let members = [seen(1, true), silent(2, true, DEAD), seen(3, true), spare];
        assert_eq!(planned(&members), None);
        let config = RaftConfig { replace_dead_after: Some(SUSPECT), ..RaftConfig::default() };
        assert_eq!(plan(&members, &config), Some(Change::Replace { dead: 2, new: 8 }));
    }
}
