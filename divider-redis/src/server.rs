//! What a server must be like, checked when the store is opened.

use divider_core::StoreError;

use crate::{
    error::store_error,
    link::{Commands, Repeat},
    reply::Reply,
};

/// Below this, scripts cannot read the lineage or be refused as a whole.
const OLDEST: u32 = 7;

/// Reads INFO, since that needs no permission to see the configuration.
pub(crate) async fn check(commands: &Commands) -> Result<(), StoreError> {
    let mut info = String::new();
    // One section at a time: servers before 7.0, which are to be told apart, take only one.
    for section in ["server", "memory", "replication"] {
        let mut cmd = redis::cmd("INFO");
        cmd.arg(section);
        let answer = commands.ask(cmd, Repeat::Idempotent).await?.map_err(store_error)?;
        info += &text(answer);
    }
    judge(&info)
}

/// A cluster answers INFO from each of its nodes; one is as good as another.
fn text(answer: redis::Value) -> String {
    match answer {
        redis::Value::Map(nodes) => nodes.into_iter().map(|(_, info)| text(info)).collect(),
        redis::Value::VerbatimString { text, .. } => text,
        other => Reply(other).bytes().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default(),
    }
}

fn judge(info: &str) -> Result<(), StoreError> {
    let all = |name: &'static str| {
        info.lines().filter_map(move |line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let version = all("redis_version").next().unwrap_or("unknown");
    if version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_none_or(|major| major < OLDEST) {
        return Err(StoreError::Misconfigured(format!(
            "the server is of version {version}; Redis {OLDEST}.0 or newer (or Valkey) is needed"
        )));
    }
    if let Some(policy) = all("maxmemory_policy").find(|policy| *policy != "noeviction") {
        return Err(StoreError::Misconfigured(format!(
            "maxmemory-policy is {policy}, with which Redis may silently drop what a group consists of; set it to \
             noeviction"
        )));
    }
    if all("run_id").next().is_none() || all("master_replid").next().is_none() {
        return Err(StoreError::Misconfigured(
            "INFO tells no run_id and master_replid here, so a restart with loss could not be noticed".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "redis_version:7.0.15\r\nrun_id:ab\r\nmaxmemory_policy:noeviction\r\nmaster_replid:cd\r\n";

    #[test]
    fn old_servers_and_evicting_servers_are_refused_with_what_to_change() {
        assert!(judge(GOOD).is_ok());
        let told = |info: &str| judge(info).unwrap_err().to_string();
        assert!(told(&GOOD.replace("7.0.15", "6.2.14")).contains("version 6.2.14; Redis 7.0 or newer"));
        assert!(told(&GOOD.replace("noeviction", "allkeys-lru")).contains("allkeys-lru"));
        assert!(told("").contains("unknown"));
        assert!(told(&GOOD.replace("run_id", "hidden")).contains("run_id"));
    }
}
