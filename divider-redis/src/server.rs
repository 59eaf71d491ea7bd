//! What a server must be like: checked when the store is opened, and at every connect, since an address may lead to another
//! server each time.

use divider_core::StoreError;
use redis::{ErrorKind, RedisError, ServerErrorKind, Value};

use crate::{
    connection::Conn,
    error::{NO_LINEAGE, elsewhere, unavailable},
    keys::Names,
    reply::Reply,
    script::CHECK,
    target::Target,
};

/// Below this, scripts cannot read the lineage or be refused as a whole.
const OLDEST: u32 = 7;

/// A server as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) run_id: String,
    /// The keys of the group that it has; `None` where it knows nothing of the group.
    keys: Option<u64>,
}

impl Seen {
    /// Tells people why every session is about to end.
    pub(crate) fn tell(&self, before: &Self, at: &str) {
        let data = match self.keys {
            Some(keys) => format!("it has the group's data, {keys} keys"),
            None => "it has no data of this group: keys that nobody declares again are gone".to_owned(),
        };
        tracing::warn!(
            target: "divider::redis",
            server = at,
            run_id = self.run_id,
            before = before.run_id,
            "Redis was started again or replaced by another server ({data}); every session ends, and nothing is granted for a lease"
        );
    }
}

/// Checks what a connection leads to, by a script that only reads, on the server that has the group.
pub(crate) async fn check(conn: &Conn, target: &Target, names: &Names) -> Result<Seen, StoreError> {
    let at = target.address();
    let answer = conn.send(CHECK.by_text(&names.keys, &[names.prefix.as_bytes()])).await;
    let answer = answer.map_err(|error| refused(error, target, &at))?;
    let [info, layout, keys] = Reply(answer).fields()?;
    let info = text(info.0);
    judge(&info, &at, target.is_cluster())?;
    let run_id = field(&info, "run_id").unwrap_or_default().to_owned();
    let knows = matches!(layout.0, Value::BulkString(_));
    Ok(Seen { run_id, keys: if knows { Some(keys.number()?) } else { None } })
}

/// Why the check itself failed. It only reads, so that nothing has happened.
fn refused(error: RedisError, target: &Target, at: &str) -> StoreError {
    let told = error.to_string();
    // No version lets a script do everything that a user may, so the words have to tell it.
    let words = |words: &str| told.contains(words);
    let remedy = if elsewhere(&error) && !target.is_cluster() {
        "this server is part of a Redis Cluster; use the Cargo feature `cluster` and RedisStore::cluster"
    } else if words("not allowed from script") {
        "this service does not allow INFO in scripts (Redis Cloud and Redis Enterprise do not), so a restart with loss \
         could not be noticed; the README of divider-redis lists what works, otherwise use the PostgreSQL or the Raft backend"
    } else if words("can't run this command") || words("ACL failure") {
        "this user lacks a permission; see the README of divider-redis for the least permissions"
    } else if matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ResponseError))
        && words("rror compiling script")
    {
        "Redis 7.0 or newer (or Valkey) is needed"
    } else {
        return target.error(error);
    };
    StoreError::Misconfigured(format!("Redis at {at}: {remedy} ({error})"))
}

/// The hosts and ports in an answer to `CLUSTER SLOTS`. What is not of that form is left out.
pub(crate) fn nodes(slots: &Value) -> Vec<(String, u16)> {
    let list = |value: &Value| if let Value::Array(values) = value { values.clone() } else { Vec::new() };
    let node = |value: Value| match &list(&value)[..] {
        [Value::BulkString(host), Value::Int(port), ..] if !host.is_empty() => {
            Some((String::from_utf8(host.clone()).ok()?, u16::try_from(*port).ok()?))
        }
        _ => None,
    };
    let mut nodes: Vec<_> =
        list(slots).iter().flat_map(|range| list(range).into_iter().skip(2)).filter_map(node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

fn text(answer: Value) -> String {
    match answer {
        Value::VerbatimString { text, .. } => text,
        other => Reply(other).bytes().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default(),
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn judge(info: &str, at: &str, cluster: bool) -> Result<(), StoreError> {
    let misconfigured = |text: String| Err(StoreError::Misconfigured(format!("Redis at {at}: {text}")));
    let version = field(info, "redis_version").unwrap_or("unknown");
    if version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_none_or(|major| major < OLDEST) {
        return misconfigured(format!(
            "the server is of version {version}; Redis {OLDEST}.0 or newer (or Valkey) is needed"
        ));
    }
    // The policies that begin with volatile- drop only keys with a time to live, and no key of ours has one.
    if let Some(policy) = field(info, "maxmemory_policy").filter(|policy| policy.starts_with("allkeys-")) {
        return misconfigured(format!(
            "maxmemory-policy is {policy}, with which Redis may silently drop what a group consists of; set it to \
             noeviction or to one that begins with volatile-"
        ));
    }
    if field(info, "run_id").is_none() || field(info, "master_replid").is_none() {
        return misconfigured(NO_LINEAGE.to_owned());
    }
    if !cluster && field(info, "role") == Some("slave") {
        return Err(unavailable(at, "it is a read only replica"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "redis_version:7.0.15\r\nrun_id:ab\r\nmaxmemory_policy:noeviction\r\nrole:master\r\nmaster_replid:cd\r\n";

    #[test]
    fn old_servers_and_evicting_servers_are_refused_with_what_to_change() {
        let judged = |info: &str| judge(info, "db:6379", false);
        assert!(judged(GOOD).is_ok());
        assert!(judged(&GOOD.replace("noeviction", "volatile-lru")).is_ok());
        let told = |info: &str| judged(info).unwrap_err().to_string();
        assert!(told(&GOOD.replace("7.0.15", "6.2.14")).contains("version 6.2.14; Redis 7.0 or newer"));
        assert!(told(&GOOD.replace("noeviction", "allkeys-lru")).contains("allkeys-lru"));
        assert!(told("").contains("unknown"));
        let hidden = told(&GOOD.replace("run_id", "hidden"));
        assert!(hidden.contains("run_id") && hidden.contains("db:6379") && hidden.contains("README"), "{hidden}");
        assert!(judged(&GOOD.replace("master\r", "slave\r")).unwrap_err().is_transient());
    }

    #[test]
    fn the_nodes_of_a_cluster_are_read_and_what_is_odd_is_left_out() {
        let node = |host: &str, port| Value::Array(vec![Value::BulkString(host.into()), Value::Int(port)]);
        let range = |nodes: Vec<Value>| Value::Array([vec![Value::Int(0), Value::Int(9)], nodes].concat());
        let slots = Value::Array(vec![
            range(vec![node("b", 2), node("", 3), Value::Nil]),
            range(vec![node("a", 1), node("b", 2)]),
        ]);
        assert_eq!(nodes(&slots), [("a".to_owned(), 1), ("b".to_owned(), 2)]);
        assert_eq!(nodes(&Value::Nil), []);
    }
}
