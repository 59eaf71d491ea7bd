//! The [`Store`] itself: one script call for each of its methods, and for further pages of a scan the command itself before it.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use divider_core::{
    Applied, Batch, Beat, Claim, Cursor, Group, GroupView, HintStream, Holdings, Key, Op, Page, Record, Revision,
    SessionId, Sighting, Standing, Stats, Store, StoreError, Term, Token, Topic,
};
use redis::{Cmd, RedisError, RedisResult, Value};

use crate::{
    RedisBuilder, RedisConfig, codec,
    error::{elsewhere, unknown_script},
    hints,
    keys::Names,
    link::{Closed, Commands, Conn, Limits, Repeat},
    pace::Pace,
    reply::{Reply, records},
    script::{APPLY, APPLY_FREEING, POLL, READ, RENEW, Script},
    target::Target,
};

/// Keys of one page of a scan, and of a session's holdings.
const PAGE: usize = 4096;
/// Keys that are read at once by name.
const RECORDS: usize = 512;
/// How often a read of many holdings begins again because they changed meanwhile.
const HOLDINGS_TRIES: usize = 10;

/// One group on a Redis server or cluster, for one node.
///
/// It keeps three kinds of connections, each opened when it is first needed: one for the commands, one for the renewals
/// alone, and one for each subscription.
pub struct RedisStore {
    config: RedisConfig,
    names: Arc<Names>,
    target: Target,
    commands: Commands,
    /// Apart from the commands, so that no large batch stands before a renewal; opened on the runtime that renews.
    renewals: Commands,
    /// How often subscriptions are tried where they fail.
    hints: Mutex<Pace>,
    closed: Arc<Closed>,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("config", &self.config).field("target", &self.target).finish_non_exhaustive()
    }
}

impl RedisStore {
    /// Begins to build a store for a single server, or a primary with replicas behind one address.
    pub fn builder(url: impl Into<String>, group: Group) -> RedisBuilder {
        RedisBuilder::new(vec![url.into()], group, false)
    }

    /// Begins to build a store for a Redis Cluster, by the URLs of some of its nodes.
    #[cfg(feature = "cluster")]
    pub fn cluster<U: Into<String>>(urls: impl IntoIterator<Item = U>, group: Group) -> RedisBuilder {
        RedisBuilder::new(urls.into_iter().map(Into::into).collect(), group, true)
    }

    pub(crate) fn new(config: RedisConfig, target: Target, brought: Option<Conn>) -> Self {
        let limits: Limits = config.limits();
        let own = || Commands::own(target.clone(), limits);
        let commands = brought.map_or_else(own, |conn| Commands::Brought { conn, limits });
        let names = Arc::new(Names::new(&config.group));
        Self { names, renewals: own(), commands, target, config, hints: Mutex::default(), closed: Arc::default() }
    }

    /// Where a helper may open a connection of its own, and for which group.
    pub(crate) fn place(&self) -> (Target, Limits, Group) {
        (self.target.clone(), self.config.limits(), self.config.group.clone())
    }

    /// Runs a script, by its hash if the server knows it.
    async fn run(&self, over: &Commands, script: &Script, args: &[&[u8]], repeat: Repeat) -> Result<Reply, StoreError> {
        let keys = &self.names.keys;
        let answer = match self.ask(over, script.by_hash(keys, args), repeat).await? {
            Err(error) if unknown_script(&error) => self.ask(over, script.by_text(keys, args), repeat).await?,
            answer => answer,
        };
        answer.map(Reply).map_err(|error| self.error(error))
    }

    async fn ask(&self, over: &Commands, cmd: Cmd, repeat: Repeat) -> Result<RedisResult<Value>, StoreError> {
        self.closed.check()?;
        over.ask(cmd, repeat).await
    }

    /// What an answer of the server's means.
    fn error(&self, error: RedisError) -> StoreError {
        match elsewhere(&error) && !self.target.is_cluster() {
            true => StoreError::Misconfigured(format!(
                "Redis at {}: this server is part of a Redis Cluster ({error}); use the Cargo feature `cluster` and \
                 RedisStore::cluster",
                self.target.address()
            )),
            false => self.target.error(error),
        }
    }

    /// Runs the script that changes. A batch is never sent twice: its outcomes would be others the second time.
    async fn change(&self, ops: &[Op]) -> Result<(u64, Vec<u8>), StoreError> {
        let frees = !ops.is_empty() && ops.iter().all(only_frees);
        let script = if frees { &APPLY_FREEING } else { &APPLY };
        let args = [self.names.prefix.as_bytes(), &codec::ops(ops)];
        let [revision, outcomes] = self.run(&self.commands, script, &args, Repeat::Once).await?.fields()?;
        Ok((revision.number()?, outcomes.bytes()?))
    }

    /// Runs a read. It finds out about a new lineage but cannot write it down, so that is done first then.
    async fn read(&self, args: &[&[u8]]) -> Result<Reply, StoreError> {
        for _ in 0..3 {
            match self.run(&self.commands, &READ, args, Repeat::Idempotent).await? {
                Reply(Value::Int(-1)) => _ = self.change(&[]).await?,
                answer => return Ok(answer),
            }
        }
        Err(StoreError::Unavailable { message: "the server keeps changing".to_owned(), source: None })
    }

    async fn poll_script(&self, session: SessionId, what: &str, term: Term, beat: Beat) -> Result<Reply, StoreError> {
        // What is above 2^53 is no term and no beat that was ever seen; see the codec.
        let (term, beat) = (term.0.min(Token::ABOVE_ALL.0).to_string(), beat.0.min(Token::ABOVE_ALL.0).to_string());
        let prefix = self.names.prefix.as_bytes();
        let args = [prefix, session.0.as_bytes(), what.as_bytes(), term.as_bytes(), beat.as_bytes()];
        self.run(&self.commands, &POLL, &args, Repeat::Idempotent).await
    }

    /// One try to read all that a session holds, page by page; `None` where it changed meanwhile.
    async fn try_holdings(&self, session: SessionId) -> Result<Option<Holdings>, StoreError> {
        let (mut first, mut after, mut all) = (None, Vec::new(), Vec::new());
        let limit = PAGE.to_string();
        loop {
            let reply = self.read(&[b"holdings", session.0.as_bytes(), &after, limit.as_bytes()]).await?;
            if reply.0 == Value::Int(0) {
                return Err(StoreError::SessionEnded);
            }
            let mut rows = reply.array()?.into_iter();
            let [seq, holds, more] = Reply::take(&mut rows)?;
            // A session gains keys only with a message, and without one can only lose them: so if neither number has
            // moved, all pages are of the same holdings.
            let version = (seq.number()?, holds.number()?);
            if *first.get_or_insert(version) != version {
                return Ok(None);
            }
            let more = more.number()? == 1;
            let page = records(rows)?;
            if let Some((key, _)) = page.last() {
                after = key.as_str().as_bytes().to_vec();
            }
            if more && page.is_empty() {
                return Err(codec::corrupt("a page that goes on"));
            }
            all.extend(page.into_iter().filter_map(|(_, record)| codec::holding(record?)));
            if !more {
                return Ok(Some(Holdings { seq: version.0, holdings: all }));
            }
        }
    }
}

/// Whether an op makes the group smaller, or at least no larger, so that it may run while Redis is out of memory.
fn only_frees(op: &Op) -> bool {
    matches!(
        op,
        Op::Remove { .. }
            | Op::Drain { .. }
            | Op::End { .. }
            | Op::Confirm { .. }
            | Op::Complete { .. }
            | Op::Expire { .. }
            | Op::Force { .. }
            | Op::Clear { .. }
            | Op::Absolve { .. }
            | Op::Advance { .. }
            | Op::Step { .. }
    )
}

#[async_trait]
impl Store for RedisStore {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn open(&self) -> Result<(), StoreError> {
        self.closed.check()?;
        self.commands.check(&self.target).await?;
        // Every read finds the group's lineage written down from here on.
        self.change(&[]).await.map(drop)
    }

    async fn apply(&self, ops: &[Op]) -> Result<Applied, StoreError> {
        let (revision, packed) = self.change(ops).await?;
        Ok(Applied { outcomes: codec::outcomes(ops, &packed)?, revision: Revision(revision) })
    }

    async fn renew(&self, session: SessionId) -> Result<Beat, StoreError> {
        let reply = self.run(&self.renewals, &RENEW, &[session.0.as_bytes()], Repeat::Idempotent).await?;
        if reply.0 == Value::Int(-1) { Err(StoreError::SessionEnded) } else { reply.number().map(Beat) }
    }

    async fn poll(&self, session: SessionId, claim: Claim) -> Result<Standing, StoreError> {
        // No leadership has the term 0, so that stands for none.
        let (what, (term, beat)) = match claim {
            Claim::Follow => ("follow", Default::default()),
            Claim::Take { stale } => ("take", stale.unwrap_or_default()),
            Claim::Lead { term } => ("lead", (term, Beat(0))),
        };
        let reply = self.poll_script(session, what, term, beat).await?;
        if reply.0 == Value::Int(0) {
            return Err(StoreError::SessionEnded);
        }
        let [revision, token, seq, term, leader, leader_beat, session_beat] = reply.fields()?;
        let leader = match codec::maybe_session(&leader.bytes()?)? {
            Some(session) => Some(Sighting {
                term: Term(term.number()?),
                session,
                beat: Beat(leader_beat.number()?),
                session_beat: session_beat.number().ok().map(Beat),
                watched: false,
            }),
            None => None,
        };
        let token = Token(token.number()?);
        Ok(Standing { leader, revision: Revision(revision.number()?), token, seq: seq.number()? })
    }

    async fn resign(&self, session: SessionId, term: Term) -> Result<(), StoreError> {
        self.poll_script(session, "resign", term, Beat(0)).await.map(drop)
    }

    async fn beats(&self) -> Result<Vec<(SessionId, Beat)>, StoreError> {
        let rows = self.read(&[b"beats"]).await?.array()?;
        rows.chunks_exact(2).map(|row| Ok((codec::session(row[0].slice()?)?, codec::beat(row[1].slice()?)?))).collect()
    }

    async fn holdings(&self, session: SessionId) -> Result<Holdings, StoreError> {
        for _ in 0..HOLDINGS_TRIES {
            if let Some(holdings) = self.try_holdings(session).await? {
                return Ok(holdings);
            }
        }
        Err(StoreError::Unavailable { message: "the session's keys keep changing".to_owned(), source: None })
    }

    async fn changes(&self, since: Revision) -> Result<Option<Vec<Batch>>, StoreError> {
        let since = since.0.min(Token::ABOVE_ALL.0).to_string();
        let reply = self.read(&[b"changes", since.as_bytes()]).await?;
        if reply.0 == Value::Int(0) {
            return Ok(None);
        }
        let batches: Result<_, _> = reply.array()?.iter().map(|entry| codec::batch(entry.slice()?)).collect();
        batches.map(Some)
    }

    async fn scan(&self, cursor: Option<Cursor>) -> Result<Page, StoreError> {
        let limit = PAGE.to_string();
        let (head, sessions, page) = match cursor {
            None => {
                let [head, sessions, page] = self.read(&[b"scan", limit.as_bytes()]).await?.fields()?;
                (head, sessions.array()?, page)
            }
            Some(Cursor(at)) if at.iter().all(u8::is_ascii_digit) => {
                let mut scan = redis::cmd("HSCAN");
                scan.arg(self.names.views()).arg(at).arg("COUNT").arg(limit);
                let page = self.ask(&self.commands, scan, Repeat::Idempotent).await?.map_err(|e| self.error(e))?;
                // After the keys, so that none of them is newer than the revision that the page is said to have.
                (self.read(&[b"group"]).await?, Vec::new(), Reply(page))
            }
            Some(_) => return Err(codec::corrupt("a cursor of this store")),
        };
        let ([revision, term, leader, hold, time, format], [next, keys]) = (head.fields()?, page.fields()?);
        let group = GroupView {
            term: Term(term.number()?),
            leader: codec::maybe_session(leader.slice()?)?,
            hold: hold.number()? == 1,
            time_ms: time.number()?,
            format: u16::try_from(format.number()?).map_err(|_| codec::corrupt("a format"))?,
        };
        let session = |row: &[Reply]| codec::session_view(codec::session(row[0].slice()?)?, row[1].slice()?);
        let key = |row: &[Reply]| codec::view(codec::key(row[0].slice()?)?, row[1].slice()?);
        Ok(Page {
            revision: Revision(revision.number()?),
            group,
            sessions: sessions.chunks_exact(2).map(session).collect::<Result<_, _>>()?,
            keys: keys.array()?.chunks_exact(2).map(key).collect::<Result<_, _>>()?,
            next: Some(next.bytes()?).filter(|at| at != b"0").map(Cursor),
        })
    }

    async fn records(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        let mut all = Vec::with_capacity(keys.len());
        // An answer may stop early where the records are large.
        while let Some(rest) = keys.get(all.len()..).filter(|rest| !rest.is_empty()) {
            let names = rest.iter().take(RECORDS).map(|key| key.as_str().as_bytes());
            let args: Vec<&[u8]> = [&b"records"[..]].into_iter().chain(names).collect();
            let page = records(self.read(&args).await?.array()?.into_iter())?;
            if page.is_empty() {
                return Err(codec::corrupt("at least one record"));
            }
            all.extend(page.into_iter().map(|(_, record)| record));
        }
        Ok(all)
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        let [sessions, registered, held, stopping, quarantined] = self.read(&[b"stats"]).await?.fields()?;
        let (registered, held, stopping) = (registered.number()?, held.number()?, stopping.number()?);
        let quarantined = quarantined.number()?;
        Ok(Stats {
            sessions: sessions.number()?,
            registered,
            assigned: held.saturating_sub(stopping),
            pending: registered.saturating_sub(held).saturating_sub(quarantined),
            stopping,
            quarantined,
        })
    }

    async fn quarantined(&self, limit: usize) -> Result<Vec<Key>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let last = (limit - 1).to_string();
        let keys = self.read(&[b"quarantined", last.as_bytes()]).await?.array()?;
        keys.iter().map(|key| codec::key(key.slice()?)).collect()
    }

    async fn hints(&self, topic: Topic) -> Result<HintStream, StoreError> {
        self.closed.check()?;
        hints::subscribe(&self.target, &self.config, &self.names, topic, &self.hints, &self.closed).await
    }

    async fn close(&self) {
        self.closed.set();
        self.commands.close();
        self.renewals.close();
    }
}
