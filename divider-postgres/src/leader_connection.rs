//! The node's dedicated connection: it holds the lock of leadership, and listens.
//!
//! # Why
//! A lock of a session lives and dies with its connection, and so does a subscription. Both on one connection means that a
//! node which has lost it knows both at once: it hears nothing more, and it leads no more.
//!
//! # How
//! A task owns the connection. It waits for notifications and for commands at the same time; each command has a time
//! limit, and a connection on which anything failed is cut, which also frees whatever it held. Then it connects again, and
//! tells every listener that there is a gap.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use divider_core::{PollReply, SessionId, StoreError, Term};
use sqlx::{
    Acquire, Row,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};

use crate::{
    connector::Connector,
    error::store_error,
    line::{Line, channel, cut, poll, release, resign},
    pool::Lanes,
    seen::Seen,
    sql::Sql,
};

/// The shortest pause between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(50);

/// What is sent to a session that has ended; to all others a number is.
const OVER: &str = "end";

/// How often something has happened to a subscription. Numbers instead of a queue: a slow reader costs nothing, and finds
/// out about everything by one look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signal {
    /// There is something new to read.
    pub(crate) wakes: u64,
    /// Something may have been missed.
    pub(crate) gaps: u64,
    /// Leadership has become free.
    pub(crate) frees: u64,
}

/// What the task is asked for.
pub(crate) enum Command {
    Poll {
        who: SessionId,
        wants: bool,
        stale: Option<Term>,
        reply: oneshot::Sender<Result<PollReply, StoreError>>,
    },
    Resign {
        who: SessionId,
        term: Term,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
    /// Frees the lock, if it is held for this session.
    Release {
        who: SessionId,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
    /// `None` for the changes of the group.
    Listen {
        who: Option<SessionId>,
        reply: oneshot::Sender<Result<watch::Receiver<Signal>, StoreError>>,
    },
    /// Cuts the connection and ends the task.
    Close {
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
}

/// The task's end that the store holds. The task ends when this is dropped.
#[derive(Clone)]
pub(crate) struct LeaderConnection {
    commands: mpsc::Sender<Command>,
    limit: Duration,
}

impl LeaderConnection {
    /// Starts the task.
    pub(crate) fn spawn(connector: Connector, lanes: Lanes, sql: Arc<Sql>, group: Arc<str>, seen: Seen) -> Self {
        let (commands, inbox) = mpsc::channel(16);
        let limit = connector.limit;
        let task = Task { connector, lanes, sql, group, seen, inbox, subscriptions: Vec::new(), failing: false };
        tokio::spawn(task.run());
        Self { commands, limit }
    }

    /// Asks the task. The effect does not depend on whether the answer is waited for.
    pub(crate) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Command,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let limit = self.limit;
        let asked = async {
            self.commands.send(command(reply)).await.map_err(|_| StoreError::Closed)?;
            // Whether the task had begun with it when it ended, nobody knows.
            let ended =
                |_| StoreError::Unavailable { message: "the connection's task has ended".to_owned(), source: None };
            answer.await.map_err(ended)?
        };
        timeout(limit, asked).await.unwrap_or(Err(StoreError::Timeout { limit }))
    }
}

/// One channel set that somebody reads.
struct Subscription {
    who: Option<SessionId>,
    channel: String,
    /// Ends when nobody reads any more.
    signal: watch::Sender<Signal>,
}

struct Task {
    connector: Connector,
    /// Told when this connection broke.
    lanes: Lanes,
    sql: Arc<Sql>,
    group: Arc<str>,
    seen: Seen,
    inbox: mpsc::Receiver<Command>,
    subscriptions: Vec<Subscription>,
    /// The last attempt to connect failed, which has been logged.
    failing: bool,
}

impl Task {
    async fn run(mut self) {
        let mut line = None;
        loop {
            let Some(open) = &mut line else {
                // A command that waits is what the connection is needed for; without one it is still needed to listen.
                match self.connect().await {
                    Ok(connected) => line = Some(connected),
                    Err(error) => {
                        if self.refuse(&error).await {
                            return;
                        }
                    }
                }
                continue;
            };
            tokio::select! {
                command = self.inbox.recv() => match command {
                    None => return cut(line.take()),
                    Some(Command::Close { reply }) => {
                        cut(line.take());
                        _ = reply.send(Ok(()));
                        return;
                    }
                    Some(command) => {
                        if !self.obey(open, command).await {
                            self.broke_off(line.take());
                        }
                    }
                },
                heard = open.listener.try_recv() => match heard {
                    Ok(Some(heard)) => self.wake(open, heard.channel(), heard.payload()),
                    // Whatever it was, it may have swallowed something; and the lock is gone.
                    Ok(None) | Err(_) => {
                        tracing::warn!(target: "divider::postgres", "the connection for locks and notifications broke off");
                        self.broke_off(line.take());
                    }
                },
            }
        }
    }

    async fn connect(&mut self) -> Result<Line, StoreError> {
        let limit = self.connector.limit;
        let until = Instant::now() + limit;
        let mut line = self.connector.open(until, |options| self.line(options)).await?;
        self.subscriptions.retain(|subscription| subscription.signal.receiver_count() > 0);
        let listening = timeout(limit, async {
            line.listener.listen(&line.leader_channel).await?;
            for subscription in &mut self.subscriptions {
                // The secret may be another one: the group may have been made anew.
                subscription.channel = channel(&mut line, &self.sql, subscription.who).await?;
                line.listener.listen(&subscription.channel).await?;
            }
            Ok::<_, sqlx::Error>(())
        });
        let listening = listening.await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        listening.map_err(|error| store_error(error, limit))?;
        self.failing = false;
        self.signal(|signal| signal.gaps += 1);
        Ok(line)
    }

    /// A connection that knows the group's names.
    async fn line(&self, options: PgConnectOptions) -> Result<Line, StoreError> {
        let limit = self.connector.limit;
        let failed = |error| store_error(error, limit);
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(limit)
            .test_before_acquire(false)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_lazy_with(options);
        let mut listener = PgListener::connect_with(&pool).await.map_err(failed)?;
        listener.eager_reconnect(false);
        self.connector.settle(listener.acquire().await.map_err(failed)?, true).await?;
        let attach = sqlx::query(self.sql.attach.safe()).bind(&*self.group).bind(self.seen.last());
        let names = attach.fetch_one(&mut listener).await.map_err(failed)?;
        let text = |at| names.try_get::<String, _>(at).map_err(failed);
        Ok(Line {
            group_channel: text(0)?,
            leader_channel: text(1)?,
            lock: names.try_get(2).map_err(failed)?,
            secret: names.try_get(3).map_err(failed)?,
            listener,
            pool,
            holder: None,
        })
    }

    /// However that was noticed: the others of this node are probably no better, and something may have been missed.
    fn broke_off(&self, line: Option<Line>) {
        cut(line);
        self.lanes.distrust();
        self.signal(|signal| signal.gaps += 1);
    }

    /// After a failed attempt: answers whoever waits, and pauses. True where the task is to end.
    async fn refuse(&mut self, error: &StoreError) -> bool {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(target: "divider::postgres", %error, "no connection for locks and notifications");
        }
        let pause = sleep(self.connector.pause().max(AGAIN));
        tokio::pin!(pause);
        loop {
            let command = tokio::select! {
                () = &mut pause => return false,
                command = self.inbox.recv() => command,
            };
            match command {
                None => return true,
                Some(Command::Close { reply }) => {
                    _ = reply.send(Ok(()));
                    return true;
                }
                Some(Command::Poll { reply, .. }) => _ = reply.send(Err(error.clone())),
                Some(Command::Resign { reply, .. } | Command::Release { reply, .. }) => {
                    // Without the connection there is no lock.
                    _ = reply.send(Ok(()));
                }
                Some(Command::Listen { reply, .. }) => _ = reply.send(Err(error.clone())),
            }
        }
    }

    /// Carries out a command; false where the connection is not to be trusted any more.
    async fn obey(&mut self, line: &mut Line, command: Command) -> bool {
        let limit = self.connector.limit;
        match command {
            Command::Poll { who, wants, stale, reply } => {
                let polled = poll(line, &self.sql, &self.group, who, wants, stale, self.seen.last());
                let polled = timeout(limit, polled).await;
                if let Ok(Ok(Ok(reply))) = &polled {
                    self.seen.note(reply.token);
                }
                answer(reply, limit, polled)
            }
            Command::Resign { who, term, reply } => {
                answer(reply, limit, timeout(limit, resign(line, &self.sql, &self.group, who, term)).await)
            }
            Command::Release { who, reply } if line.holder == Some(who) => {
                answer(reply, limit, timeout(limit, release(line)).await)
            }
            Command::Release { reply, .. } | Command::Close { reply } => {
                _ = reply.send(Ok(()));
                true
            }
            Command::Listen { who, reply } => {
                let heard = timeout(limit, self.listen(line, who)).await;
                answer(reply, limit, heard)
            }
        }
    }

    async fn listen(
        &mut self,
        line: &mut Line,
        who: Option<SessionId>,
    ) -> Result<Result<watch::Receiver<Signal>, StoreError>, sqlx::Error> {
        let unread = |subscription: &Subscription| subscription.signal.receiver_count() == 0 && subscription.who != who;
        for gone in self.subscriptions.iter().filter(|subscription| unread(subscription)) {
            line.listener.unlisten(&gone.channel).await?;
        }
        self.subscriptions.retain(|subscription| !unread(subscription));
        if let Some(known) = self.subscriptions.iter().find(|subscription| subscription.who == who) {
            return Ok(Ok(known.signal.subscribe()));
        }
        let channel = channel(line, &self.sql, who).await?;
        line.listener.listen(&channel).await?;
        let (signal, receiver) = watch::channel(Signal::default());
        self.subscriptions.push(Subscription { who, channel, signal });
        Ok(Ok(receiver))
    }

    fn wake(&self, line: &Line, channel: &str, payload: &str) {
        for subscription in &self.subscriptions {
            if subscription.channel == channel {
                // The messages of a session that is over may be gone with it, so it is told to read what is left.
                let over = u64::from(payload == OVER);
                subscription.signal.send_modify(|signal| {
                    signal.wakes += 1;
                    signal.gaps += over;
                });
            }
        }
        if channel == line.leader_channel {
            self.signal(|signal| signal.frees += 1);
        }
    }

    fn signal(&self, happened: impl Fn(&mut Signal)) {
        for subscription in &self.subscriptions {
            subscription.signal.send_modify(&happened);
        }
    }
}

/// Answers a command; false where the connection failed with it.
fn answer<T>(
    reply: oneshot::Sender<Result<T, StoreError>>,
    limit: Duration,
    result: Result<Result<Result<T, StoreError>, sqlx::Error>, tokio::time::error::Elapsed>,
) -> bool {
    let result = result.unwrap_or(Err(sqlx::Error::PoolTimedOut));
    // After an error nobody knows which locks this connection has, so it is cut: then it has none.
    let good = result.is_ok();
    _ = reply.send(result.unwrap_or_else(|error| Err(store_error(error, limit))));
    good
}
