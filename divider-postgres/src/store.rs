//! The [`Store`] itself.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use divider_core::{
    Applied, Batch, Beat, Claim, ConfigError, Cursor, Group, HintStream, Holdings, Key, Op, Outcome, Page, PollReply,
    Record, Revision, SessionId, Stats, Store, StoreError, Term, Topic,
};
use parking_lot::Mutex;
use sqlx::Connection;
use tokio::time::timeout;

use crate::{
    PostgresBuilder, PostgresConfig,
    beat::Beater,
    check,
    codec::{self, unsigned},
    connector::Connector,
    hints,
    leader_connection::{Command, LeaderConnection},
    migrate,
    pool::Lanes,
    read::{Inner, apply, call},
    seen::Seen,
    sql::Sql,
    warm,
};

/// One group in a PostgreSQL database, for one node.
///
/// Besides its connections for batches and reads it keeps two: one that holds the lock of leadership and listens, and one
/// that renews. It must be [opened](Store::open) on the runtime on which it is then used, except for
/// [`renew`](Store::renew).
pub struct PostgresStore {
    config: PostgresConfig,
    phase: Mutex<Phase>,
    /// One opening at a time.
    opening: tokio::sync::Mutex<()>,
}

enum Phase {
    New,
    Open(Arc<Inner>),
    Closed,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("config", &self.config).finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Begins to build a store, by a URL such as `postgres://user:password@host:5432/database`.
    pub fn builder(url: impl AsRef<str>, group: Group) -> PostgresBuilder {
        PostgresBuilder::new(PostgresConfig::new(url.as_ref(), group))
    }

    /// Makes a store. Nothing is connected before it is opened.
    ///
    /// # Errors
    /// As [`PostgresConfig::validate`].
    pub fn new(config: PostgresConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self { config, phase: Mutex::new(Phase::New), opening: tokio::sync::Mutex::default() })
    }

    /// As [`migrate`](crate::migrate), for the schema of this store, in the way in which the store connects: with all its hosts
    /// and its credentials. It need not be open.
    ///
    /// # Errors
    /// As `migrate`. One try; the call may be repeated.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        migrate::over(&Connector::new(&self.config), &self.config.schema).await
    }

    fn inner(&self) -> Result<Arc<Inner>, StoreError> {
        match &*self.phase.lock() {
            Phase::Open(inner) => Ok(Arc::clone(inner)),
            Phase::New => Err(StoreError::Unavailable { message: "the store is not open".to_owned(), source: None }),
            Phase::Closed => Err(StoreError::Closed),
        }
    }
}

#[async_trait]
impl Store for PostgresStore {
    fn name(&self) -> &'static str {
        "postgres"
    }

    async fn open(&self) -> Result<(), StoreError> {
        let _one = self.opening.lock().await;
        let known = match &*self.phase.lock() {
            Phase::Closed => return Err(StoreError::Closed),
            Phase::Open(inner) => Some(Arc::clone(inner)),
            Phase::New => None,
        };
        if let Some(inner) = known {
            return check::attach(&inner).await;
        }
        let sql = Arc::new(Sql::new(&self.config.schema, self.config.call_time_limit));
        let group: Arc<str> = self.config.group.as_str().into();
        let connector = Connector::new(&self.config);
        let lanes = Lanes::new(&self.config, &connector);
        check::way(&connector, self.config.pool.is_some()).await?;
        if let Some(pool) = &self.config.pool {
            check::pool(&lanes, pool.options()).await?;
        }
        if self.config.migrates {
            migrate::over(&connector, &self.config.schema).await?;
        }
        check::schema(&lanes, &sql, &self.config.schema).await?;
        let seen = Seen::default();
        let leader_connection = LeaderConnection::spawn(
            connector.clone(),
            lanes.clone(),
            Arc::clone(&sql),
            Arc::clone(&group),
            seen.clone(),
        );
        let beater = Beater::new(connector, Arc::clone(&sql), Arc::clone(&group));
        let inner = Arc::new(Inner { sql, group, lanes, leader_connection, beater, seen });
        check::attach(&inner).await?;
        tokio::spawn(warm::up(Arc::downgrade(&inner)));
        let mut phase = self.phase.lock();
        if matches!(*phase, Phase::Closed) {
            return Err(StoreError::Closed);
        }
        *phase = Phase::Open(inner);
        Ok(())
    }

    async fn apply(&self, ops: &[Op]) -> Result<Applied, StoreError> {
        let inner = self.inner()?;
        let release = async |who| inner.leader_connection.ask(|reply| Command::Release { who, reply }).await;
        // What follows a sender may be refused with it.
        let sure = ops.iter().position(|op| matches!(op, Op::Sender { .. })).unwrap_or(ops.len());
        for op in &ops[..sure] {
            // A leader that ends its session lets go of the lock first, so that whoever hears of it finds it free.
            if let Op::End { session: who } = *op {
                release(who).await?;
            }
        }
        let query = apply(&inner.sql, &inner.group, ops, inner.seen.last());
        let row = call!(inner, query, fetch_one)?;
        let codes: Vec<i16> = inner.get(&row, 0)?;
        let values: Vec<Option<i64>> = inner.get(&row, 1)?;
        let outcomes = codec::outcomes(&codes, &values, ops.len())?;
        for (at, outcome) in outcomes.iter().enumerate() {
            match (&ops[at], outcome) {
                (_, Outcome::Granted(token)) => inner.seen.note(*token),
                // Done in any case: a lock that cannot be let go goes with its connection.
                (Op::End { session: who }, Outcome::Done) if at > sure => drop(release(*who).await),
                _ => {}
            }
        }
        Ok(Applied { outcomes, revision: Revision(unsigned(inner.get(&row, 2)?)?) })
    }

    async fn renew(&self, session: SessionId) -> Result<Beat, StoreError> {
        self.inner()?.beater.renew(session).await
    }

    async fn poll(&self, session: SessionId, claim: Claim) -> Result<PollReply, StoreError> {
        let (wants, stale) = match claim {
            Claim::Follow | Claim::Lead { .. } => (false, None),
            // A leadership here is never renewed: its beat is always 0.
            Claim::Take { stale } => (true, stale.filter(|(_, beat)| *beat == Beat(0)).map(|(term, _)| term)),
        };
        self.inner()?.leader_connection.ask(|reply| Command::Poll { who: session, wants, stale, reply }).await
    }

    async fn resign(&self, session: SessionId, term: Term) -> Result<(), StoreError> {
        self.inner()?.leader_connection.ask(|reply| Command::Resign { who: session, term, reply }).await
    }

    async fn beats(&self) -> Result<Vec<(SessionId, Beat)>, StoreError> {
        self.inner()?.beats().await
    }

    async fn gone(&self) -> Result<Vec<SessionId>, StoreError> {
        self.inner()?.gone().await
    }

    async fn holdings(&self, session: SessionId) -> Result<Holdings, StoreError> {
        self.inner()?.holdings(session).await
    }

    async fn changes(&self, since: Revision) -> Result<Option<Vec<Batch>>, StoreError> {
        Ok(self.inner()?.changes(since).await?.map(|(batches, _)| batches))
    }

    async fn scan(&self, cursor: Option<Cursor>) -> Result<Page, StoreError> {
        self.inner()?.scan(cursor).await
    }

    async fn records(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        self.inner()?.records(keys).await
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        self.inner()?.stats().await
    }

    async fn quarantined(&self, limit: usize) -> Result<Vec<Key>, StoreError> {
        self.inner()?.quarantined(limit).await
    }

    async fn hints(&self, topic: Topic) -> Result<HintStream, StoreError> {
        let inner = self.inner()?;
        let who = match topic {
            Topic::Session(session) => Some(session),
            Topic::Group => None,
        };
        let signal = inner.leader_connection.ask(|reply| Command::Listen { who, reply }).await?;
        hints::subscribe(inner, topic, signal).await
    }

    async fn close(&self) {
        let phase = std::mem::replace(&mut *self.phase.lock(), Phase::Closed);
        if let Phase::Open(inner) = phase {
            // Whether it answers or not, it ends with the last handle to it.
            _ = timeout(inner.lanes.limit(), inner.leader_connection.ask(|reply| Command::Close { reply })).await;
            inner.beater.close().await;
            inner.lanes.close().await;
        }
    }
}
