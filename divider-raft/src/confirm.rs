//! Confirmations of leadership by a quorum, one round for all who wait.
//!
//! A renewal and a linearizable read both need to know that this member still led after they had come in. A round takes
//! a quorum's answers; whoever comes while one is under way goes with the next, because the answers to the one before may
//! be older than the question. A renewal is in no hurry, so it waits a little for others to share its round: they make up
//! most of what an idle cluster does.

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use crate::{
    raft::{Raft, Refused},
    wire::Fault,
};

/// A round whose calls were lost is tried again, for callers still have time.
const TRIES: usize = 3;

/// To the task that confirms. Clones feed the same task; it ends with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Confirmer(mpsc::Sender<Asking>);

#[derive(Debug)]
struct Asking {
    /// When its round is to begin at the latest.
    by: Instant,
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
        self.confirm_within(Duration::ZERO).await
    }

    /// The same, in a round that may begin so much later.
    pub(crate) async fn confirm_within(&self, patience: Duration) -> Result<u64, Fault> {
        let (reply, answer) = oneshot::channel();
        let stopped = || Fault::Busy("this member is stopping".into());
        self.0.send(Asking { by: Instant::now() + patience, reply }).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

async fn run(raft: Raft, mut asking: mpsc::Receiver<Asking>) {
    let mut waiting = Vec::new();
    while asking.recv_many(&mut waiting, 4096).await > 0 {
        // The first to be impatient takes all along.
        while let Some(by) = waiting.iter().map(|asking| asking.by).min()
            && by > Instant::now()
            && let Ok(1..) = timeout_at(by, asking.recv_many(&mut waiting, 4096)).await
        {}
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
