//! Where other members may be found.

use std::{collections::BTreeSet, time::Duration};

use crate::config::RaftConfig;

/// How long a look-up in the DNS may take.
const LOOK_UP: Duration = Duration::from_secs(1);

/// The seeds as they are written, and after them what their names in the DNS stand for at the moment.
pub(crate) async fn addresses(config: &RaftConfig) -> Vec<String> {
    let mut addresses = config.seeds.clone();
    let mut found = BTreeSet::new();
    for name in &config.seed_names {
        match tokio::time::timeout(LOOK_UP, config.ground.look_up(name)).await {
            Ok(Ok(hosts)) => found.extend(hosts.iter().map(ToString::to_string)),
            Ok(Err(error)) => tracing::debug!(target: "divider::raft", name, %error, "a seed name is not known"),
            Err(_) => tracing::debug!(target: "divider::raft", name, "a seed name was not looked up in time"),
        }
    }
    addresses.extend(found.into_iter().filter(|address| !config.seeds.contains(address)));
    addresses
}
