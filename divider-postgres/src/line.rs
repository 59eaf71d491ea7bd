//! The connection that leads and listens, and what is asked of it.

use divider_core::{Beat, LeaderView, PollReply, Revision, SessionId, StoreError, Term, Token};
use sqlx::{
    Row,
    postgres::{PgListener, PgPool},
};
use uuid::Uuid;

use crate::{
    codec::{number, unsigned},
    sql::Sql,
};

/// A connection that stands.
pub(crate) struct Line {
    pub(crate) listener: PgListener,
    /// Has this one connection and serves to cut it.
    pub(crate) pool: PgPool,
    pub(crate) secret: Uuid,
    pub(crate) group_channel: String,
    pub(crate) leader_channel: String,
    pub(crate) lock: i64,
    /// The session for which the lock of leadership is held here.
    pub(crate) holder: Option<SessionId>,
}

/// The channel of a subscription.
pub(crate) async fn channel(line: &mut Line, sql: &Sql, who: Option<SessionId>) -> Result<String, sqlx::Error> {
    let Some(SessionId(who)) = who else { return Ok(line.group_channel.clone()) };
    sqlx::query_scalar(sql.channel.safe()).bind(line.secret).bind(who.to_string()).fetch_one(&mut line.listener).await
}

/// Cuts a connection without waiting for anything that it may be in the middle of.
pub(crate) fn cut(line: Option<Line>) {
    if let Some(Line { listener, pool, .. }) = line {
        drop(listener);
        tokio::spawn(async move { pool.close().await });
    }
}

pub(crate) async fn poll(
    line: &mut Line,
    sql: &Sql,
    group: &str,
    who: SessionId,
    wants: bool,
    stale: Option<Term>,
    seen: i64,
) -> Result<Result<PollReply, StoreError>, sqlx::Error> {
    let row = sqlx::query(sql.poll.safe())
        .bind(group)
        .bind(who.0)
        .bind(line.lock)
        .bind(line.holder.map(|holder| holder.0))
        .bind(wants)
        .bind(stale.map(|term| number(term.0)))
        .bind(seen)
        .fetch_one(&mut line.listener)
        .await?;
    // Of a group that was made anew, nothing would be heard on the channels of the one before.
    if row.try_get::<Uuid, _>(8)? != line.secret {
        return Err(sqlx::Error::Protocol("the group has been made anew".to_owned()));
    }
    line.holder = row.try_get::<Option<Uuid>, _>(7)?.map(SessionId);
    if !row.try_get::<bool, _>(0)? {
        return Ok(Err(StoreError::SessionEnded));
    }
    let seq: i64 = row.try_get(1)?;
    let revision: i64 = row.try_get(2)?;
    let token: i64 = row.try_get(3)?;
    let term: i64 = row.try_get(4)?;
    let leader: Option<Uuid> = row.try_get(5)?;
    let leader_beat: Option<i64> = row.try_get(6)?;
    let reply = || {
        let leader = leader.map(|leader| {
            Ok::<_, StoreError>(LeaderView {
                term: Term(unsigned(term)?),
                session: SessionId(leader),
                // The lock says by itself when a leader is gone, so a leadership is never renewed.
                beat: Beat(0),
                session_beat: leader_beat.map(unsigned).transpose()?.map(Beat),
                // It is gone in silence.
                watched: false,
            })
        });
        Ok(PollReply {
            leader: leader.transpose()?,
            revision: Revision(unsigned(revision)?),
            token: Token(unsigned(token)?),
            seq: unsigned(seq)?,
        })
    };
    Ok(reply())
}

pub(crate) async fn resign(
    line: &mut Line,
    sql: &Sql,
    group: &str,
    who: SessionId,
    term: Term,
) -> Result<Result<(), StoreError>, sqlx::Error> {
    let holder: Option<Uuid> = sqlx::query_scalar(sql.resign.safe())
        .bind(group)
        .bind(who.0)
        .bind(number(term.0))
        .bind(line.lock)
        .bind(line.holder.map(|holder| holder.0))
        .fetch_one(&mut line.listener)
        .await?;
    line.holder = holder.map(SessionId);
    Ok(Ok(()))
}

pub(crate) async fn release(line: &mut Line) -> Result<Result<(), StoreError>, sqlx::Error> {
    sqlx::query("SELECT pg_advisory_unlock($1)").bind(line.lock).execute(&mut line.listener).await?;
    line.holder = None;
    Ok(Ok(()))
}
