//! The [`Store`] itself: one script call for each of its methods, and for further pages of a scan the command itself before it.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use divider_core::{
    Applied, Batch, Beat, Claim, Cursor, Group, GroupView, HintStream, Holdings, Key, LeaderView, Op, Outcome, Page,
    PollReply, Record, Revision, SessionId, Stats, Store, StoreError, Term, Token, Topic,
};
use redis::{Cmd, RedisError, RedisResult, Value};

use crate::{
    RedisBuilder, RedisConfig, codec,
    connection::{Closed, Commands, Conn, Limits, Repeat},
    error::{elsewhere, unknown_script},
    hints, holdings,
    keys::Names,
    pace::Pace,
    reply::{Reply, records},
    script::{APPLY, APPLY_FREEING, POLL, READ, RENEW, Script},
    target::Target,
};

/// Most keys of one page of a scan, and of a session's holdings.
pub(crate) const PAGE: usize = 4096;
/// Keys of a page whose names may all be as long as names can be.
const LEAST_PAGE: usize = 1024;
/// About how many bytes of names and views a page of a scan has, as `LARGEST_PAGE` in read.lua.
const PAGE_BYTES: usize = 1 << 20;
/// Keys that are read at once by name.
const RECORDS: usize = 512;

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
    /// The highest revision, token or term that this node was told. A server that knows of none as high has forgotten
    /// something, whether its lineage shows it or not: it may have been given older data, or it took over from another
    /// server, whose clock was ahead.
    told: AtomicU64,
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
        let (hints, closed, told) = Default::default();
        Self { names, renewals: own(), commands, target, config, hints, closed, told }
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
        let script = if ops.iter().all(only_frees) { &APPLY_FREEING } else { &APPLY };
        let told = self.told();
        let args = [self.names.prefix.as_bytes(), told.as_bytes(), &codec::ops(ops)];
        let [revision, outcomes] = self.run(&self.commands, script, &args, Repeat::Once).await?.fields()?;
        let revision = revision.number()?;
        self.note(revision);
        Ok((revision, outcomes.bytes()?))
    }

    /// As the scripts take it.
    fn told(&self) -> String {
        self.told.load(Ordering::Relaxed).min(Token::ABOVE_ALL.0).to_string()
    }

    fn note(&self, number: u64) {
        self.told.fetch_max(number, Ordering::Relaxed);
    }

    /// Runs a read. It finds out about a new lineage but cannot write it down, so that is done first then.
    pub(crate) async fn read(&self, args: &[&[u8]]) -> Result<Reply, StoreError> {
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
        let told = self.told();
        let args = [prefix, told.as_bytes(), session.0.as_bytes(), what.as_bytes(), term.as_bytes(), beat.as_bytes()];
        self.run(&self.commands, &POLL, &args, Repeat::Idempotent).await
    }

    /// The batches after a revision, the revision that the group was at, and, where a session is named and lives, the number
    /// of the last message to it at that moment. `None` where they are no longer kept.
    pub(crate) async fn changes_since(
        &self,
        since: Revision,
        of: Option<SessionId>,
    ) -> Result<Option<(Option<u64>, Revision, Vec<Batch>)>, StoreError> {
        let since = since.0.min(Token::ABOVE_ALL.0).to_string();
        let of = of.as_ref().map(|session| &session.0.as_bytes()[..]);
        let args: Vec<&[u8]> = [&b"changes"[..], since.as_bytes()].into_iter().chain(of).collect();
        let reply = self.read(&args).await?;
        if reply.0 == Value::Int(0) {
            return Ok(None);
        }
        let mut rows = reply.array()?.into_iter();
        let [seq, now] = Reply::take(&mut rows)?;
        let batches: Result<_, _> = rows.map(|entry| codec::batch(entry.slice()?)).collect();
        Ok(Some((seq.number().ok(), Revision(now.number()?), batches?)))
    }
}

/// Whether an op makes the group smaller, or larger by a session at most, so that it may run while Redis is out of memory.
fn only_frees(op: &Op) -> bool {
    matches!(
        op,
        Op::Join { .. }
            | Op::Remove { .. }
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

/// Where a scan goes on, and with how many keys, if the next ones are like these.
fn next_cursor(at: &[u8], rows: &[Reply]) -> Result<Cursor, StoreError> {
    let mut bytes = 0;
    for row in rows {
        bytes += row.slice()?.len();
    }
    let count = (PAGE_BYTES * rows.len() / 2).checked_div(bytes).unwrap_or(PAGE).clamp(LEAST_PAGE, PAGE);
    Ok(Cursor([at, format!(" {count}").as_bytes()].concat()))
}

/// The two parts of a cursor.
fn place(cursor: &[u8]) -> Option<(&str, &str)> {
    let (at, count) = std::str::from_utf8(cursor).ok()?.split_once(' ')?;
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    (number(at) && number(count)).then_some((at, count))
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
        let outcomes = codec::outcomes(ops, &packed)?;
        for outcome in &outcomes {
            if let Outcome::Granted(token) = outcome {
                self.note(token.0);
            }
        }
        Ok(Applied { outcomes, revision: Revision(revision) })
    }

    async fn renew(&self, session: SessionId) -> Result<Beat, StoreError> {
        let reply = self.run(&self.renewals, &RENEW, &[session.0.as_bytes()], Repeat::Idempotent).await?;
        if reply.0 == Value::Int(-1) { Err(StoreError::SessionEnded) } else { reply.number().map(Beat) }
    }

    async fn poll(&self, session: SessionId, claim: Claim) -> Result<PollReply, StoreError> {
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
            Some(session) => Some(LeaderView {
                term: Term(term.number()?),
                session,
                beat: Beat(leader_beat.number()?),
                session_beat: session_beat.number().ok().map(Beat),
                watched: false,
            }),
            None => None,
        };
        let token = Token(token.number()?);
        let term = leader.map_or(0, |leader: LeaderView| leader.term.0);
        let revision = Revision(revision.number()?);
        self.note(revision.0.max(token.0).max(term));
        Ok(PollReply { leader, revision, token, seq: seq.number()? })
    }

    async fn resign(&self, session: SessionId, term: Term) -> Result<(), StoreError> {
        self.poll_script(session, "resign", term, Beat(0)).await.map(drop)
    }

    async fn beats(&self) -> Result<Vec<(SessionId, Beat)>, StoreError> {
        let rows = self.read(&[b"beats"]).await?.array()?;
        rows.chunks_exact(2).map(|row| Ok((codec::session(row[0].slice()?)?, codec::beat(row[1].slice()?)?))).collect()
    }

    async fn holdings(&self, session: SessionId) -> Result<Holdings, StoreError> {
        holdings::read(self, session).await
    }

    async fn changes(&self, since: Revision) -> Result<Option<Vec<Batch>>, StoreError> {
        Ok(self.changes_since(since, None).await?.map(|(_, _, batches)| batches))
    }

    async fn scan(&self, cursor: Option<Cursor>) -> Result<Page, StoreError> {
        let (head, sessions, page) = match cursor {
            None => {
                let count = LEAST_PAGE.to_string();
                let [head, sessions, page] = self.read(&[b"scan", count.as_bytes()]).await?.fields()?;
                (head, sessions.array()?, page)
            }
            Some(Cursor(cursor)) => {
                let (at, count) = place(&cursor).ok_or_else(|| codec::corrupt("a cursor of this store"))?;
                let mut scan = redis::cmd("HSCAN");
                scan.arg(self.names.views()).arg(at).arg("COUNT").arg(count);
                let page = self.ask(&self.commands, scan, Repeat::Idempotent).await?.map_err(|e| self.error(e))?;
                // After the keys, so that none of them is newer than the revision that the page is said to have.
                (self.read(&[b"group"]).await?, Vec::new(), Reply(page))
            }
        };
        let ([revision, term, leader, grants_held, time, format], [next, keys]) = (head.fields()?, page.fields()?);
        let group = GroupView {
            term: Term(term.number()?),
            leader: codec::maybe_session(leader.slice()?)?,
            grants_held: grants_held.number()? == 1,
            time_ms: time.number()?,
            format: u16::try_from(format.number()?).map_err(|_| codec::corrupt("a format"))?,
        };
        let session = |row: &[Reply]| codec::session_view(codec::session(row[0].slice()?)?, row[1].slice()?);
        let key = |row: &[Reply]| codec::view(codec::key(row[0].slice()?)?, row[1].slice()?);
        let (keys, next) = (keys.array()?, next.bytes()?);
        let next = if next == b"0" { None } else { Some(next_cursor(&next, &keys)?) };
        Ok(Page {
            revision: Revision(revision.number()?),
            group,
            sessions: sessions.chunks_exact(2).map(session).collect::<Result<_, _>>()?,
            keys: keys.chunks_exact(2).map(key).collect::<Result<_, _>>()?,
            next,
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
        let mut all: Vec<Key> = Vec::new();
        while all.len() < limit {
            let page = LEAST_PAGE.min(limit - all.len());
            let (after, count) = (all.last().map_or("", Key::as_str), page.to_string());
            let keys = self.read(&[b"quarantined", after.as_bytes(), count.as_bytes()]).await?.array()?;
            let last = keys.len() < page;
            for key in keys {
                all.push(codec::key(key.slice()?)?);
            }
            if last {
                break;
            }
        }
        Ok(all)
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
