//! Where other members may be found.

use std::{collections::BTreeSet, time::Duration};

use crate::{config::RaftConfig, net::pool::Target};

/// How long a look-up in the DNS may take.
const LOOK_UP: Duration = Duration::from_secs(1);

/// The seeds as they are written, and after them what their names in the DNS stand for at the moment. Those are looked for
/// at an address, and still must show a certificate in the name.
pub(crate) async fn targets(config: &RaftConfig) -> Vec<Target> {
    let mut targets: Vec<Target> = config.seeds.iter().map(|seed| Target::seed(seed)).collect();
    let mut found = BTreeSet::new();
    for name in &config.seed_names {
        match tokio::time::timeout(LOOK_UP, config.environment.look_up(name)).await {
            Ok(Ok(hosts)) => found.extend(hosts.iter().map(|host| (host.to_string(), name))),
            Ok(Err(error)) => tracing::debug!(target: "divider::raft", name, %error, "a seed name is not known"),
            Err(_) => tracing::debug!(target: "divider::raft", name, "a seed name was not looked up in time"),
        }
    }
    found.retain(|(address, _)| !config.seeds.contains(address));
    targets.extend(found.into_iter().map(|(address, name)| Target::looked_up(&address, name)));
    targets
}
