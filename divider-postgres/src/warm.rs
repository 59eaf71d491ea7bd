//! Has the server plan every statement before it is needed.
//!
//! # Why
//! A server process plans a statement when it gets it for the first time, which takes several times as long as to carry it
//! out: some 20 ms for all of them together. Without this, that time would be spent at the worst moments, when a node
//! confirms its first stops or takes over leadership, in each of its connections anew.
//!
//! # How
//! By doing everything once, for a group that cannot exist, and taking it back.

use std::{sync::Weak, time::Duration};

use divider_core::{Key, NodeId, Op, Revision, SessionId, Term, Token, Work};
use sqlx::{Connection, PgConnection};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::{
    pool::Lane,
    read::{Inner, apply},
};

/// A node that starts has better things to do, and so has a server that a whole fleet comes to.
const LATER: Duration = Duration::from_millis(250);

/// How many connections are opened in advance: one that writes and one that reads.
const LANES: usize = 2;

/// Opens connections and makes them ready. It is no failure where it cannot: then the first calls do it.
pub(crate) async fn up(inner: Weak<Inner>) {
    sleep(LATER).await;
    // The store may have been dropped meanwhile.
    let Some(inner) = inner.upgrade() else { return };
    let mut lanes: Vec<Lane> = Vec::new();
    for _ in 0..inner.lanes.ahead(LANES) {
        let Ok(mut lane) = inner.lanes.take().await else { return };
        let Ok(connection) = lane.connection() else { return };
        let result = timeout(inner.lanes.limit(), ready(&inner, connection)).await;
        // All are kept until the last is ready, so that each is another one.
        if !matches!(result, Ok(Ok(()))) {
            return;
        }
        lanes.push(lane);
    }
    for lane in lanes {
        _ = lane.finish(Ok(Ok(())));
    }
}

async fn ready(inner: &Inner, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut all = connection.begin().await?;
    // Too long for a group's name, and another one each time, so that no two wait for each other.
    let nobody = format!("{:256}{}", "", Uuid::new_v4());
    apply(&inner.sql, &nobody, &everything(), 0).execute(&mut *all).await?;
    let sql = &inner.sql;
    for text in [&sql.beats, &sql.revision, &sql.stats] {
        sqlx::query(text.safe()).bind(&nobody).execute(&mut *all).await?;
    }
    for text in [&sql.seq, &sql.holdings] {
        sqlx::query(text.safe()).bind(&nobody).bind(Uuid::nil()).bind(0_i64).execute(&mut *all).await?;
    }
    sqlx::query(sql.changes.safe()).bind(&nobody).bind(0_i64).execute(&mut *all).await?;
    let messages = sqlx::query(sql.messages.safe()).bind(&nobody).bind(Uuid::nil()).bind(0_i64).bind(0_i64);
    messages.execute(&mut *all).await?;
    sqlx::query(sql.scan.safe()).bind(&nobody).bind(None::<String>).execute(&mut *all).await?;
    all.rollback().await
}

/// A batch that goes through every function.
fn everything() -> Vec<Op> {
    let (Ok(key), Ok(node)) = (Key::new("key"), NodeId::new("node")) else { return Vec::new() };
    let session = SessionId(Uuid::nil());
    let (term, token) = (Term(0), Token(1));
    vec![
        Op::Join {
            session,
            node,
            affinity: 1,
            capacity: None,
            lease_ms: 1000,
            seen: Revision(0),
            reads: divider_core::format::NEWEST,
        },
        Op::Add(Work::from(key.clone())),
        Op::Assign { term, key: key.clone(), session },
        Op::Confirm { session, key, token, started: true },
        Op::Drain { session },
        Op::End { session },
    ]
}
