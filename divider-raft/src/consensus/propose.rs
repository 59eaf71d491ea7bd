//! The way of ops into the log: what many callers want goes into one entry.
//!
//! Where nothing is on its way a request goes at once; while entries are on their way, what comes in gathers for the
//! next. So a lone caller waits for no timer, and a crowd shares the price of an entry.

use std::{mem, sync::Arc};

use divider_core::{Op, Outcome, limits};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::{
    consensus::{
        confirm::Confirmer,
        raft::{Raft, Refused},
        state_machine::StateMachine,
    },
    format::NEWEST,
    protocol::{
        command::{Body, Command, Done, Step},
        messages::Fault,
    },
};

/// Entries on their way at a time: one is being decided while the next is being written.
const AT_ONCE: usize = 4;
/// Most requests in an entry.
const MOST: usize = 4096;

/// To the task that makes entries. Clones feed the same task; it ends with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Proposer(mpsc::Sender<Proposal>);

#[derive(Debug)]
struct Proposal {
    step: Step,
    reply: oneshot::Sender<Result<Done, Fault>>,
}

impl Proposer {
    /// `holds` says whether there may have been a cluster before this one, in which a group that is new here had nodes.
    pub(crate) fn spawn(raft: Raft, machine: Arc<StateMachine>, confirmer: Confirmer, holds: bool) -> Self {
        let (sender, requests) = mpsc::channel(MOST);
        tokio::spawn(run(raft, machine, confirmer, holds, requests));
        Self(sender)
    }

    /// Has a step decided. A dropped future leaves it unknown whether it will be.
    pub(crate) async fn propose(&self, step: Step) -> Result<Done, Fault> {
        let (reply, answer) = oneshot::channel();
        let stopped = || Fault::Busy("this member is stopping".into());
        self.0.send(Proposal { step, reply }).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(Fault::Unknown("this member stopped".into())))
    }
}

async fn run(
    raft: Raft,
    machine: Arc<StateMachine>,
    confirmer: Confirmer,
    holds: bool,
    mut requests: mpsc::Receiver<Proposal>,
) {
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut next = None;
    loop {
        let Ok(place) = at_once.clone().acquire_owned().await else { return };
        let first = match next.take() {
            Some(request) => request,
            None => match requests.recv().await {
                Some(request) => request,
                None => return,
            },
        };
        let mut bytes = first.step.bytes();
        let mut batch = vec![first];
        while batch.len() < MOST
            && let Ok(request) = requests.try_recv()
        {
            bytes += request.step.bytes();
            if bytes > limits::MAX_BATCH_BYTES {
                next = Some(request);
                break;
            }
            batch.push(request);
        }
        // Whoever has given up is told that nobody knows, so it is kind not to do it after all.
        batch.retain(|request| !request.reply.is_closed());
        if batch.is_empty() {
            continue;
        }
        let (raft, machine, confirmer) = (raft.clone(), machine.clone(), confirmer.clone());
        tokio::spawn(async move {
            carry(&raft, &machine, &confirmer, holds, batch).await;
            drop(place);
        });
    }
}

/// Has one entry decided, and hands out what came of it.
async fn carry(raft: &Raft, machine: &StateMachine, confirmer: &Confirmer, holds: bool, mut batch: Vec<Proposal>) {
    let is_expiry = |op: &Op| matches!(op, Op::Expire { .. });
    let expires = |step: &Step| matches!(step, Step::Apply { ops, .. } if ops.iter().any(is_expiry));
    // An earlier leader may have let the cluster step up.
    let may_be_newer = machine.written() < NEWEST && !machine.entered(raft.view().term);
    if may_be_newer || batch.iter().any(|request| expires(&request.step)) {
        // Before beats are compared, all that was decided under earlier leaders must be known here.
        match confirmer.confirm().await {
            Ok(index) => machine.reached(index).await,
            Err(fault) => return answer(batch, &fault),
        }
    }
    let view = raft.view();
    if !view.leads {
        return answer(batch, &Fault::NotLeader(None));
    }
    let term = machine.beats.enter(view.term);
    let mut refused = Vec::with_capacity(batch.len());
    let mut expiring = Vec::new();
    for request in &mut batch {
        refused.push(match &mut request.step {
            Step::Apply { group, ops } if ops.iter().any(is_expiry) => {
                let known = machine.with(group, |ledger| {
                    ledger.sessions().filter(|view| view.ended.is_none()).map(|view| view.session).collect()
                });
                let Some(refusals) = machine.beats.begin_expiries(term, group, ops, &known) else {
                    // The term has just changed; in the new one its beats say something else.
                    end_expiries(machine, term, expiring);
                    return answer(batch, &Fault::Busy("the leader has just changed".into()));
                };
                let mut refusals = refusals.into_iter();
                let all = mem::take(ops);
                let refusals: Vec<_> = all.iter().map(|_| refusals.next().flatten()).collect();
                *ops = all.into_iter().zip(&refusals).filter(|(_, no)| no.is_none()).map(|(op, _)| op).collect();
                let expiries = ops.iter().filter(|op| is_expiry(op)).cloned().collect::<Vec<_>>();
                expiring.push((group.clone(), expiries));
                refusals
            }
            _ => Vec::new(),
        });
    }
    let steps: Vec<Step> = batch.iter().map(|request| request.step.clone()).collect();
    let clock = machine.data_dir().environment.clock();
    let format = machine.writes(view.reads());
    let holds = holds && machine.begins(&steps);
    let command = Command(Arc::new(Body::new(format, term, clock, holds, steps)));
    // The entry may still be decided long after its callers have given up; until then those sessions stay marked. Not beyond the
    // term: where a snapshot takes the place of a log that was never decided, Raft forgets who waits, and the places here
    // would be taken for good. In a later term nobody counts a renewal before this entry is applied or lost.
    let decided = tokio::select! {
        biased;
        decided = raft.propose(command) => Some(decided),
        () = raft.outlived(view.term) => None,
    };
    end_expiries(machine, term, expiring);
    match decided {
        Some(Ok(reply)) => {
            let answers = reply.0.into_iter().zip(refused);
            for (request, (mut done, refused)) in batch.into_iter().zip(answers) {
                if let Done::Applied(applied) = &mut done
                    && !refused.is_empty()
                {
                    let mut outcomes = mem::take(&mut applied.outcomes).into_iter();
                    let merged = refused.into_iter().map(|no| no.map(Outcome::Refused).or_else(|| outcomes.next()));
                    applied.outcomes = merged.flatten().collect();
                }
                // Whoever asked may have gone.
                let _ = request.reply.send(Ok(done));
            }
        }
        // An entry that was written before the leader changed may be decided by the next one.
        None | Some(Err(Refused::NotLeader)) => {
            answer(batch, &Fault::Unknown("the leader has changed meanwhile".into()));
        }
        Some(Err(Refused::Unavailable(problem))) => answer(batch, &Fault::Unknown(problem)),
    }
}

fn end_expiries(machine: &StateMachine, term: u64, expiring: Vec<(divider_core::Group, Vec<Op>)>) {
    for (group, ops) in expiring {
        machine.beats.end_expiries(term, &group, &ops);
    }
}

fn answer(batch: Vec<Proposal>, fault: &Fault) {
    for request in batch {
        // Whoever asked may have gone.
        let _ = request.reply.send(Err(fault.clone()));
    }
}
