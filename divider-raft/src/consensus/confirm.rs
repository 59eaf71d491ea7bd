//! Confirmations of leadership by a quorum, one round for all who wait.
//!
//! A renewal and a linearizable read both need to know that this member still led after they had come in. A round takes
//! a quorum's answers; whoever comes while one is under way goes with the next, because the answers to the one before may
//! be older than the question.
//!
//! A renewal is in no hurry. What it needs to know is also said by the answers to the next heartbeat, which is sent anyway, so
//! it waits for these a little, and for others to share its round where they do not come.

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use crate::{
    consensus::raft::{Raft, Refused},
    protocol::messages::Fault,
};

/// A round whose calls were lost is tried again, for callers still have time.
const TRIES: usize = 3;

/// To the task that confirms. Clones feed the same task; it ends with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Confirmer(mpsc::Sender<Waiter>);

#[derive(Debug)]
struct Waiter {
    asked: Instant,
    /// When its round is to begin at the latest.
    by: Instant,
    /// Where it is enough to know that this member led in this term when it was asked, whatever has been decided since.
    term: Option<u64>,
    reply: oneshot::Sender<Result<u64, Fault>>,
}

impl Confirmer {
    pub(crate) fn spawn(raft: Raft) -> Self {
        let (sender, asking) = mpsc::channel(4096);
        tokio::spawn(run(raft, asking));
        Self(sender)
    }

    /// Confirms that this member leads after this call was made, and says up to where a reader must have applied. Cancel
    /// safe.
    pub(crate) async fn confirm(&self) -> Result<u64, Fault> {
        self.ask(Duration::ZERO, None).await
    }

    /// Confirms that this member led in `term` after this call was made, in a round of its own only where that is not known
    /// within `patience`. The caller has applied all that was decided before that term. Cancel safe.
    pub(crate) async fn confirm_term(&self, term: u64, patience: Duration) -> Result<u64, Fault> {
        self.ask(patience, Some(term)).await
    }

    async fn ask(&self, patience: Duration, term: Option<u64>) -> Result<u64, Fault> {
        let (reply, answer) = oneshot::channel();
        let stopped = || Fault::Busy("this member is stopping".into());
        let asked = Instant::now();
        self.0.send(Waiter { asked, by: asked + patience, term, reply }).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

/// Answers those who have waited for no more than what is known by now.
fn answer_known(raft: &Raft, waiting: &mut Vec<Waiter>) {
    let known = |asking: &mut Waiter| asking.term.is_some_and(|term| raft.led(term, asking.asked));
    for asking in waiting.extract_if(.., known) {
        // Whoever asked may have gone. All that this term has decided so far is applied before it is told.
        let _ = asking.reply.send(Ok(0));
    }
}

async fn run(raft: Raft, mut asking: mpsc::Receiver<Waiter>) {
    let mut waiting = Vec::new();
    while asking.recv_many(&mut waiting, 4096).await > 0 {
        // The first to be impatient takes all along.
        loop {
            answer_known(&raft, &mut waiting);
            let Some(by) = waiting.iter().map(|asking| asking.by).min() else { break };
            tokio::select! {
                biased;
                () = sleep_until(by) => break,
                () = raft.answers() => {}
                1.. = asking.recv_many(&mut waiting, 4096) => {}
                else => break,
            }
        }
        if waiting.is_empty() {
            continue;
        }
        let mut result = Err(Fault::NotLeader(None));
        for _ in 0..TRIES {
            // The calls of a round have their own time limits; this one guards against a core that hangs.
            let round = tokio::time::timeout(Duration::from_secs(2), raft.confirm()).await;
            result = match round {
                Ok(Ok(index)) => Ok(index),
                Ok(Err(Refused::NotLeader)) => Err(Fault::NotLeader(None)),
                Ok(Err(Refused::Unavailable(problem))) => Err(Fault::Busy(problem)),
                Err(_) => Err(Fault::Busy("the leader could not be confirmed in time".into())),
            };
            if !matches!(result, Err(Fault::Busy(_))) {
                break;
            }
        }
        for asking in waiting.drain(..) {
            // Whoever asked may have gone.
            let _ = asking.reply.send(result.clone());
        }
    }
}
