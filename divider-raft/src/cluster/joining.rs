//! How a member comes into its cluster: it founds one, joins one, or finds the others again.
//!
//! # Founding happens once
//! A newcomer asks all seeds. If one belongs to a cluster it joins that one. Else a cluster is founded only once *all* seeds
//! have said that they have none, by one that all would choose: the first voter of the list, or where the DNS gives it, and so may
//! leave out anybody, the lowest id among as many founders as were said to be. And as they may not see the same, that one
//! asks all of them to leave it to it (see [`Founding`](crate::cluster::founding::Founding)). So two can never be founded side by
//! side, also not when the first one's disk was wiped.
//!
//! # Being found
//! A member is its id and its cluster's id; addresses change. Whoever hears of no leader asks the seeds, and all that it
//! knows, who is where, and by asking says where it is itself (see [`AddressBook`](crate::net::address_book::AddressBook)). So members that have all
//! moved find each other as long as their seeds lead from one to the other.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{sync::watch, task::JoinSet, time::Instant};
use uuid::Uuid;

use crate::{
    cluster::{
        member::{EndReason, Member},
        router::Router,
        seeds,
    },
    config::RaftConfig,
    consensus::{log::records::Identity, raft::Refused},
    net::pool::{Target, TrafficClass},
    protocol::{
        messages::{Answer, Call, Request, Status},
        peer::Peer,
    },
};

const TARGET: &str = "divider::raft";
/// How long a seed may take to say where it stands.
const STATUS: Duration = Duration::from_millis(400);
/// How often a newcomer asks.
const ROUND: Duration = Duration::from_millis(100);
/// After how long a newcomer that is not complete yet asks once more to be taken in.
const AGAIN: Duration = Duration::from_secs(2);
/// For how long a newcomer waits for those who found the cluster with it, and for its vote, before it works without.
const COMPANY: Duration = Duration::from_secs(4);
/// Who has not heard of a leader for this long looks for the others,
const LONELY: Duration = Duration::from_secs(1);
/// this often,
const SEEK: Duration = Duration::from_millis(300);
/// and is removed where a leader has not counted it as a member for this long.
const REMOVED: Duration = Duration::from_secs(2);

/// What a seed has said.
type SeedAnswer = (Target, Result<Status, String>);

/// Founds a cluster or joins one, once.
pub(crate) async fn join_cluster(member: Arc<Member>, router: Arc<Router>, joining: watch::Sender<Result<(), String>>) {
    // A vote alone says nothing: it may come from a leader that was lost with the entry that took this member in.
    let known = member.raft.is_initialized().await && !member.raft.view().members.is_empty();
    while known && let Some(problem) = rival(&member).await {
        joining.send_modify(|joined| *joined = Err(problem));
        tokio::time::sleep(ROUND).await;
    }
    member.unrivalled.store(true, Ordering::Relaxed);
    let mut company = BTreeSet::new();
    let mut joined_at: Option<Instant> = None;
    let mut asked: Option<Instant> = None;
    loop {
        // The entry with which it was taken in may have been lost with the leader that wrote it.
        let again = !known && asked.is_some_and(|asked| asked.elapsed() >= AGAIN);
        let mut result = match joined_at {
            Some(_) if !again => Ok(()),
            _ => try_to_join(&member, &router, &mut company, again).await,
        };
        if result.is_ok() {
            asked = asked.filter(|_| !again).or_else(|| Some(Instant::now()));
            let patient = joined_at.get_or_insert_with(Instant::now).elapsed() < COMPANY;
            // Whoever comes back is not waited for; what it was before, it is again.
            result = if known { Ok(()) } else { complete(&member, &company, patient) };
        }
        match result {
            Ok(()) => {
                joining.send_modify(|joined| *joined = Ok(()));
                return;
            }
            Err(problem) => {
                tracing::debug!(target: TARGET, member = %member.me, problem, "not in the cluster yet");
                joining.send_modify(|joined| *joined = Err(problem));
            }
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// That another cluster is at the seeds of a member which is the only one of its own: the one that it was in before it was
/// recovered, or that of another survivor. Others who start are told so by those whom they ask.
async fn rival(member: &Member) -> Option<String> {
    if member.raft.view().members.len() != 1 {
        return None;
    }
    let targets = seeds::targets(&member.config).await;
    let asked = targets.into_iter().map(|target| async move {
        // As a client of none yet: a member of another cluster does not talk with a member of this one.
        let pool = member.pool.of_a_stranger();
        let status = Request::Call(Call::Status);
        (pool.call(&target, TrafficClass::Calls, &status, STATUS).await, target)
    });
    let mine = member.cluster_id();
    futures_util::future::join_all(asked).await.into_iter().find_map(|(answer, target)| match answer {
        Ok(Answer::Status(Status { cluster_id: Some(theirs), .. })) if Some(theirs) != mine => Some(format!(
            "the seed {} belongs to another cluster, {theirs}; where this one was recovered, end all that is left of the one \
             before",
            target.address
        )),
        _ => None,
    })
}

/// Whether this member is in, and for as long as it is `patient`, all that were there with it too, and it votes if it is to.
fn complete(member: &Member, company: &BTreeSet<u64>, patient: bool) -> Result<(), String> {
    let view = member.raft.view();
    let votes =
        |wanted: bool| view.members.values().filter(|(peer, votes)| peer.wants_vote && *votes == wanted).count();
    // A single newcomer beside an odd number of voters has to wait for another one.
    let alone = votes(false) == 1 && !votes(true).is_multiple_of(2);
    let full = alone || votes(true) >= member.config.voters;
    if !view.leads && member.raft.last_heard().elapsed() >= AGAIN {
        return Err("no leader is heard".into());
    }
    let missing = company.iter().filter(|id| !view.members.contains_key(id)).count();
    match view.members.get(&member.me.id) {
        None => Err("this member is not known yet".into()),
        Some(_) if !member.machine.is_member(member.me.id) => Err("it is not decided yet that this is a member".into()),
        Some(_) if !patient => Ok(()),
        Some(_) if missing > 0 => Err(format!("{missing} members are not in the cluster yet")),
        _ if view.leads && votes(false) > 0 && !full => Err(format!("{} members do not vote yet", votes(false))),
        Some((me, false)) if me.wants_vote && !full => Err("this member does not vote yet".into()),
        Some(_) => Ok(()),
    }
}

async fn try_to_join(
    member: &Arc<Member>,
    router: &Router,
    company: &mut BTreeSet<u64>,
    again: bool,
) -> Result<(), String> {
    if again && (member.raft.view().leads || !member.config.has_seeds()) {
        // It has founded the cluster, and nobody else takes it in.
        return Ok(());
    }
    if !again && member.raft.is_initialized().await {
        return rejoin(member, router).await;
    }
    if !member.config.has_seeds() {
        return found(member).await;
    }
    let answers = ask(member, seeds::targets(&member.config).await).await;
    let there = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok());
    company.extend(there.clone().map(|status| status.me.id));
    let within: Vec<&Status> = there.filter(|status| !status.members.is_empty()).collect();
    let clusters: BTreeSet<Uuid> = within.iter().filter_map(|status| status.cluster_id).collect();
    if clusters.len() > 1 {
        return Err(format!("the seeds belong to {} clusters; only those of one may be seeds", clusters.len()));
    }
    if let Some(cluster) = clusters.first() {
        adopt_cluster_id(member, *cluster).await?;
        let host = whom_to_ask(&within, member.me.id).ok_or("no other member of the cluster answers")?;
        return join(member, router, Some(Target::member(host))).await;
    }
    may_found(&member.config, &member.me, &answers)?;
    let (me, founding) = (member.me.id, &member.founding);
    founding.promise(me, me).map_err(|other| format!("it is left to {other:016x} to found the cluster"))?;
    let others: Vec<Target> = answers
        .into_iter()
        .filter(|(_, answer)| answer.as_ref().is_ok_and(|status| status.me.id != me && status.me.wants_vote))
        .map(|(target, _)| target)
        .collect();
    let promised = ask_to_found(member, &others, false).await;
    if promised.is_ok() && founding.keep(me) {
        return found(member).await;
    }
    founding.release(me);
    // Where one does not hear of it, its promise ends by itself.
    let _ = ask_to_found(member, &others, true).await;
    Err(promised.err().unwrap_or_else(|| "another one is to found the cluster".into()))
}

/// Has the others leave the founding to this member, or takes that back.
async fn ask_to_found(member: &Member, others: &[Target], taken_back: bool) -> Result<(), String> {
    let request = Request::Call(Call::Found { by: member.me.id, taken_back });
    let answers = others.iter().map(|target| member.pool.call(target, TrafficClass::Calls, &request, STATUS));
    let answers = futures_util::future::join_all(answers).await;
    answers.into_iter().zip(others).try_for_each(|(answer, target)| match answer {
        Ok(Answer::Done) => Ok(()),
        Ok(answer) => Err(format!("{}: {answer:?}", target.address)),
        Err(error) => Err(format!("{}: {error}", target.address)),
    })
}

/// Whom to ask to be taken in: who leads by its own word, or else by that of another one. What this member itself knows may
/// be of a leader that was lost.
fn whom_to_ask<'a>(within: &[&'a Status], me: u64) -> Option<&'a Peer> {
    let others = within.iter().filter(|status| status.cluster_id.is_some() && status.me.id != me);
    let best = others.max_by_key(|status| (leads(status), status.leader.is_some()))?;
    Some(best.leader.as_ref().unwrap_or(&best.me))
}

/// Whether this is the word of one who leads.
fn leads(status: &Status) -> bool {
    status.leader.as_ref().is_some_and(|leader| leader.id == status.me.id)
}

/// Whether this member is to found a cluster, by what all seeds have said.
fn may_found(config: &RaftConfig, me: &Peer, answers: &[SeedAnswer]) -> Result<(), String> {
    if answers.is_empty() {
        return Err("no seed name is known".into());
    }
    let mut founders = BTreeSet::from([me.id]);
    for (target, answer) in answers {
        let status =
            answer.as_ref().map_err(|problem| format!("the seed {} does not answer: {problem}", target.address))?;
        if status.me.id != me.id && status.cluster_id.is_some() {
            return Err(format!("{} is about to join a cluster", status.me));
        }
        if status.me.wants_vote {
            founders.insert(status.me.id);
        }
    }
    match config.voters_to_found {
        Some(wanted) if founders.len() != wanted => {
            return Err(format!("{} voters are there, and `voters_to_found` is {wanted}", founders.len()));
        }
        _ => {}
    }
    let first = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()).find(|status| status.me.wants_vote);
    let founder = match config.seeds.is_empty() {
        true => founders.first().copied(),
        false => first.map(|status| status.me.id),
    };
    if !me.wants_vote || founder != Some(me.id) {
        return Err(format!("waiting for {:016x} to found the cluster", founder.unwrap_or_default()));
    }
    Ok(())
}

/// A member that was in its cluster before, and may listen elsewhere now, or have been left out meanwhile.
async fn rejoin(member: &Arc<Member>, router: &Router) -> Result<(), String> {
    let known = member.raft.view().members.get(&member.me.id).map(|(peer, _)| peer.clone());
    let here = |known: &Peer| known.address == member.me.address || member.me.address.is_empty();
    // Another version of the program may read more, or less after a way back.
    let same = known.as_ref().is_none_or(|known| known.reads == member.me.reads);
    if same && (known.as_ref().is_some_and(here) || !member.config.has_seeds()) {
        return Ok(());
    }
    join(member, router, None).await
}

/// Asks each where it stands, and notes who is where. This member's own address counts as well, and is not dialled: it may be
/// one that only others can reach.
async fn ask(member: &Arc<Member>, targets: Vec<Target>) -> Vec<SeedAnswer> {
    let mut asking = JoinSet::new();
    for (at, target) in targets.iter().enumerate() {
        let (pool, target) = (member.pool.clone(), target.clone());
        let own = (target.address == member.me.address).then(|| member.status());
        asking.spawn(async move {
            if let Some(own) = own {
                return (at, Ok(Answer::Status(own)));
            }
            let status = Request::Call(Call::Status);
            (at, pool.call(&target, TrafficClass::Calls, &status, STATUS).await)
        });
    }
    let mut answers: Vec<SeedAnswer> =
        targets.into_iter().map(|target| (target, Err("it was not asked".to_owned()))).collect();
    while let Some(answer) = asking.join_next().await {
        let Ok((at, answer)) = answer else { continue };
        answers[at].1 = match answer {
            Ok(Answer::Status(status)) => Ok(status),
            Ok(_) => Err("an answer to another question".into()),
            Err(error) => Err(error.to_string()),
        };
    }
    let (mine, address_book) = (member.cluster_id(), member.pool.address_book());
    for status in answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()) {
        address_book.met(&status.me);
        if mine.is_some() && status.cluster_id == mine {
            status
                .members
                .iter()
                .filter(|(peer, _)| peer.id != member.me.id)
                .for_each(|(peer, _)| address_book.heard_of(peer));
        }
    }
    answers
}

async fn found(member: &Arc<Member>) -> Result<(), String> {
    let cluster = member.cluster_id().unwrap_or_else(|| Uuid::from_u128(member.data_dir.environment.draw()));
    adopt_cluster_id(member, cluster).await?;
    match member.raft.found(member.me.clone()).await {
        Ok(()) => {
            tracing::info!(target: TARGET, member = %member.me, %cluster, "founded the cluster");
            Ok(())
        }
        Err(Refused::Unavailable(problem)) => Err(problem),
        Err(Refused::NotLeader) => Err("another one was faster".into()),
    }
}

/// Remembers the cluster for good.
async fn adopt_cluster_id(member: &Arc<Member>, cluster: Uuid) -> Result<(), String> {
    let identity = {
        let identity = member.identity.lock().clone();
        match identity.cluster_id {
            Some(known) if known == cluster => return Ok(()),
            Some(known) => return Err(format!("this data directory belongs to the cluster {known}, not to {cluster}")),
            None => Identity { cluster_id: Some(cluster), ..identity },
        }
    };
    member.log.identify(&identity).await.map_err(|error| error.to_string())?;
    *member.identity.lock() = identity;
    *member.cluster_id.write() = Some(cluster);
    Ok(())
}

async fn join(member: &Arc<Member>, router: &Router, leader: Option<Target>) -> Result<(), String> {
    let call = Call::Join { peer: member.me.clone(), votes: member.me.wants_vote };
    let Some(leader) = leader else {
        return router.call(call, TrafficClass::Calls, true).await.map(drop).map_err(|error| error.to_string());
    };
    let limit = member.config.call_time_limit;
    match member.pool.call(&leader, TrafficClass::Calls, &Request::Call(call), limit).await {
        Ok(Answer::Done) => {
            tracing::info!(target: TARGET, member = %member.me, "joined the cluster");
            Ok(())
        }
        Ok(Answer::Fault(fault)) => Err(format!("{}: {fault:?}", leader.address)),
        Ok(_) => Err("an answer to another question".into()),
        Err(error) => Err(format!("{}: {error}", leader.address)),
    }
}

/// Looks for the others while no leader is heard of, and finds out whether this member still is one of them. Ends where it
/// is not.
pub(crate) async fn seek(
    member: Arc<Member>,
    router: Arc<Router>,
    joined: watch::Receiver<Result<(), String>>,
    ended: watch::Sender<Option<EndReason>>,
) {
    let began = member.raft.last_heard();
    let mut left_out: Option<Instant> = None;
    // Only who was a member by a decision can have been removed: what stands in the log may be lost with its leader.
    let mut decided = false;
    loop {
        tokio::time::sleep(SEEK).await;
        decided |= member.machine.is_member(member.me.id);
        let heard = member.raft.last_heard();
        let view = member.raft.view();
        if view.leads || heard.elapsed() < LONELY || !member.raft.is_initialized().await {
            left_out = None;
            continue;
        }
        let mut targets = seeds::targets(&member.config).await;
        let others = view.members.values().filter(|(peer, _)| peer.id != member.me.id);
        targets.extend(others.map(|(peer, _)| Target::member(peer)));
        let answers = ask(&member, targets).await;
        let without = |status: &&Status| leads_without(status, member.me.id, member.cluster_id());
        let leader = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()).find(without);
        match leader {
            None => left_out = None,
            // Whoever starts wants to be a member, and may have been left out while it was away. Where it is not in yet, the
            // leader that took it in may have been lost before that was decided.
            Some(leader) if heard == began || !decided || joined.borrow().is_err() => {
                let joined = join(&member, &router, Some(Target::member(&leader.me))).await;
                tracing::info!(target: TARGET, member = %member.me, ?joined, "was left out, and joins again");
            }
            Some(_) if left_out.get_or_insert_with(Instant::now).elapsed() < REMOVED => {}
            Some(leader) => {
                tracing::warn!(target: TARGET, member = %member.me, leader = %leader.me, "was removed from the cluster");
                ended.send_modify(|ended| _ = ended.get_or_insert(EndReason::Removed));
                return;
            }
        }
    }
}

/// Whether this is the word of one who leads the cluster, and does not count the member among the others.
fn leads_without(status: &Status, id: u64, cluster: Option<Uuid>) -> bool {
    leads(status) && status.cluster_id == cluster && !status.members.iter().any(|(peer, _)| peer.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: u64) -> Peer {
        Peer { id, name: format!("node-{id}"), address: format!("h:{id}"), wants_vote: true, reads: 2 }
    }

    fn says(id: u64, cluster_id: Option<u128>) -> SeedAnswer {
        let status =
            Status { me: peer(id), cluster_id: cluster_id.map(Uuid::from_u128), leader: None, members: Vec::new() };
        (Target::seed(&format!("h:{id}")), Ok(status))
    }

    fn by_dns(voters: usize) -> RaftConfig {
        RaftConfig { seed_names: vec!["h:1".into()], voters_to_found: Some(voters), ..RaftConfig::default() }
    }

    #[test]
    fn the_word_of_the_dns_alone_founds_nothing() {
        let config = by_dns(3);
        // It knows each of two of nobody but itself, for a moment.
        for id in [1, 2] {
            assert!(may_found(&config, &peer(id), &[says(id, None)]).is_err());
        }
        assert!(may_found(&config, &peer(1), &[says(1, None), says(2, None)]).is_err());
        let all = || vec![says(3, None), says(2, None), says(1, None)];
        may_found(&config, &peer(1), &all()).unwrap();
        for id in [2, 3] {
            assert!(may_found(&config, &peer(id), &all()).unwrap_err().contains("waiting"));
        }
        let more = [all(), vec![says(4, None)]].concat();
        assert!(may_found(&config, &peer(1), &more).is_err(), "it was said that there are three");
    }

    #[test]
    fn nothing_is_founded_where_any_seed_is_silent_or_knows_a_cluster() {
        let config = by_dns(3);
        let all = vec![says(1, None), says(2, None), says(3, None)];
        let silent = (Target::seed("h:4"), Err("connection refused".to_owned()));
        let problem = may_found(&config, &peer(1), &[all.clone(), vec![silent]].concat()).unwrap_err();
        assert!(problem.contains("h:4") && problem.contains("refused"), "{problem}");
        let knows = vec![says(1, None), says(2, Some(7)), says(3, None)];
        assert!(may_found(&config, &peer(1), &knows).is_err());
        // Its own id was drawn before a crash, and belongs to nobody else.
        may_found(&config, &peer(1), &[says(1, Some(7)), says(2, None), says(3, None)]).unwrap();
        assert!(may_found(&config, &peer(1), &[]).is_err());
    }

    #[test]
    fn a_newcomer_asks_who_leads_and_does_not_believe_what_it_knew_itself() {
        let within = |id: u64, leader: Option<u64>| Status {
            me: peer(id),
            cluster_id: Some(Uuid::from_u128(7)),
            leader: leader.map(peer),
            members: vec![(peer(1), true)],
        };
        let (leads, follows, behind, me) =
            (within(2, Some(2)), within(1, Some(2)), within(4, None), within(3, Some(1)));
        assert_eq!(whom_to_ask(&[&follows, &leads, &behind, &me], 3), Some(&peer(2)));
        assert_eq!(whom_to_ask(&[&behind, &follows, &me], 3), Some(&peer(2)));
        assert_eq!(whom_to_ask(&[&behind, &me], 3), Some(&peer(4)));
        assert_eq!(whom_to_ask(&[&me], 3), None);
    }

    #[test]
    fn a_list_that_begins_with_one_that_is_not_to_vote_says_who_founds_as_well() {
        let config = RaftConfig { seeds: vec!["h:3".into(), "h:2".into(), "h:1".into()], ..RaftConfig::default() };
        let (target, learner) = says(3, None);
        let learner = learner.map(|status| Status { me: Peer { wants_vote: false, ..status.me.clone() }, ..status });
        let all = vec![(target, learner), says(2, None), says(1, None)];
        may_found(&config, &peer(2), &all).unwrap();
        assert!(may_found(&config, &peer(1), &all).is_err());
    }

    #[test]
    fn a_list_says_who_founds() {
        let config = RaftConfig { seeds: vec!["h:2".into(), "h:1".into()], ..RaftConfig::default() };
        let all = vec![says(2, None), says(1, None)];
        may_found(&config, &peer(2), &all).unwrap();
        assert!(may_found(&config, &peer(1), &all).is_err());
    }
}
