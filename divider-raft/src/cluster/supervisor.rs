//! What becomes of a process whose member has ended although nobody has closed it.
//!
//! The cluster is well without it, and so should the process be: it goes on as a client of the others. Where the member has
//! stopped, for example because its disk was full for a moment, it is opened again, with pauses that grow, beside the client, which
//! it replaces once it is in its cluster and has caught up; where it was removed, that was somebody's wish, and only a new start
//! joins again.

use std::{
    sync::{Arc, Weak, atomic::AtomicUsize},
    time::Duration,
};

use parking_lot::{Mutex, RwLock};

use crate::{
    cluster::{member::EndReason, running::Running},
    config::RaftConfig,
};

const TARGET: &str = "divider::raft";
/// Before the first try to open a member again; twice as long before each later one,
const FIRST: Duration = Duration::from_millis(500);
/// but no longer than this.
const LONGEST: Duration = Duration::from_secs(60);

/// How often one that waits looks whether its process has closed the store.
const LOOK: Duration = Duration::from_millis(100);

/// What all handles share.
pub(crate) struct Cluster {
    pub(crate) config: Arc<RaftConfig>,
    /// Held while starting, so that it happens once.
    pub(crate) starting: tokio::sync::Mutex<()>,
    pub(crate) running: RwLock<Option<Arc<Running>>>,
    /// Why its member is none at the moment, where that is so. Written with `running` locked.
    pub(crate) ended: Mutex<Option<EndReason>>,
    /// Handles that have not been closed.
    pub(crate) open: AtomicUsize,
}

impl Cluster {
    pub(crate) fn current(&self) -> Option<Arc<Running>> {
        self.running.read().clone()
    }

    /// Puts another one in the place of what runs; false where that was closed meanwhile.
    pub(crate) fn replace(&self, old: &Arc<Running>, new: Arc<Running>, ended: Option<EndReason>) -> bool {
        let mut running = self.running.write();
        let same = running.as_ref().is_some_and(|running| Arc::ptr_eq(running, old));
        if same {
            *running = Some(new);
            *self.ended.lock() = ended;
        }
        same
    }
}

/// Looks after what runs, until it is closed.
pub(crate) async fn supervise(cluster: Weak<Cluster>) {
    let mut pause = FIRST;
    loop {
        let Some(ends) = cluster.upgrade().and_then(|cluster| cluster.current()).map(|running| running.ends()) else {
            return;
        };
        let began = tokio::time::Instant::now();
        let Some(end) = ends.await else { return };
        if began.elapsed() > LONGEST {
            pause = FIRST;
        }
        if !become_client(&cluster, &end).await || end == EndReason::Removed {
            return;
        }
        while !reopen(&cluster, pause).await {
            if cluster.upgrade().and_then(|cluster| cluster.current()).is_none() {
                return;
            }
            pause = (pause * 2).min(LONGEST);
        }
        pause = (pause * 2).min(LONGEST);
    }
}

/// Ends the member, and puts a client in its place. False where it was closed.
async fn become_client(cluster: &Weak<Cluster>, end: &EndReason) -> bool {
    let Some(running) = cluster.upgrade().and_then(|cluster| cluster.current()) else { return false };
    let Some(member) = running.router.member.clone() else { return false };
    let note = match end {
        EndReason::Removed => "this process was removed from the cluster, and goes on as a client".to_owned(),
        EndReason::Stopped(why) => format!("the member of this process has stopped, and is opened again soon: {why}"),
    };
    tracing::warn!(target: TARGET, member = %member.me, note, "goes on as a client");
    let client = Running::instead_of(&member, note, running.threads.clone());
    let replaced = cluster.upgrade().is_some_and(|cluster| cluster.replace(&running, client, Some(end.clone())));
    running.give_up().await;
    replaced
}

/// Opens the member again after a pause. False where it could not be.
async fn reopen(cluster: &Weak<Cluster>, pause: Duration) -> bool {
    tokio::time::sleep(pause).await;
    let Some((config, client)) =
        cluster.upgrade().and_then(|cluster| Some((cluster.config.clone(), cluster.current()?)))
    else {
        return false;
    };
    match Running::start(config, client.threads.clone()).await {
        Ok(running) => {
            let ready = is_ready(cluster, &client, &running).await;
            match cluster.upgrade() {
                Some(cluster) if ready && cluster.replace(&client, running.clone(), None) => {
                    tracing::info!(target: TARGET, "the member was opened again");
                    true
                }
                _ => {
                    running.give_up().await;
                    false
                }
            }
        }
        Err(error) => {
            tracing::warn!(target: TARGET, %error, "the member cannot be opened again yet");
            false
        }
    }
}

/// Waits until a member that was opened again is in its cluster, and has caught up: until then the client is of more use. It votes
/// meanwhile, where it is known. False where it has ended, or the client was closed.
async fn is_ready(cluster: &Weak<Cluster>, client: &Arc<Running>, running: &Running) -> bool {
    let is_current =
        || cluster.upgrade().and_then(|cluster| cluster.current()).is_some_and(|now| Arc::ptr_eq(&now, client));
    let closed = async {
        while is_current() {
            tokio::time::sleep(LOOK).await;
        }
    };
    let ready = async {
        while running.ready().await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        () = ready => true,
        _ = running.ends() => false,
        () = closed => false,
    }
}
