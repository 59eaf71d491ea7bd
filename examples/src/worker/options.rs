//! The command line of the `worker` example.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use divider_core::{Balance, Group, MaxInFlight, NodeConfig, NodeId, Work};

use crate::AnyError;

/// A scriptable node: prints what happens to it as JSON lines, and takes commands on standard input.
#[derive(Clone, Debug, Parser)]
#[command(after_help = format!("Commands on standard input: {}", super::command::HELP))]
pub struct Options {
    /// Where the group is kept: redis://host:port, postgres://user@host/database, raft:/data/directory, or
    /// memory: for this process alone.
    #[arg(long, default_value = "memory:")]
    pub store: String,
    /// The group: nodes with the same one divide the same keys.
    #[arg(long, default_value = "/example/")]
    pub group: Group,
    /// The node's name. Default: a random one. The last one counts.
    #[arg(long, overrides_with = "node")]
    pub node: Option<NodeId>,
    /// How much work the node wants, in proportion to the others; 0 for none.
    #[arg(long, default_value_t = 1000)]
    pub affinity: u32,
    /// Most keys that the node holds at once.
    #[arg(long)]
    pub capacity: Option<u32>,
    /// How long the node may be out of touch before its keys go to others, in milliseconds.
    #[arg(long, default_value_t = 3000)]
    pub lease_ms: u64,
    /// How soon the keys of a node go to others once the store has seen its connection end, in milliseconds, if this node
    /// leads. Default: the lease.
    #[arg(long)]
    pub lock_delay_ms: Option<u64>,
    /// Most keys that are between two owners because of balance, if this node leads: a number, or per cent as in 10%.
    #[arg(long, value_parser = max_in_flight)]
    pub max_in_flight: Option<MaxInFlight>,
    /// Moves keys whenever a node is above its quota by more than this part of it (0.1 is ten per cent), if this node
    /// leads. Default: only when a node joins.
    #[arg(long)]
    pub tolerance: Option<f64>,
    /// Never sets a key aside because its owners keep dying, if this node leads.
    #[arg(long)]
    pub no_quarantine: bool,
    /// How long all nodes must have been able to read a newer format before the group is written in it, in milliseconds, if
    /// this node leads. Default: a day.
    #[arg(long)]
    pub step_after_ms: Option<u64>,
    /// Reads no newer format than this one, as a program of before would.
    #[arg(long, hide = true)]
    pub reads: Option<u16>,
    /// Adds key-0 to key-(N-1) at the start.
    #[arg(long)]
    pub keys: Option<u32>,
    /// Adds the keys in this file at the start, one on each line.
    #[arg(long)]
    pub keys_file: Option<PathBuf>,
    /// Prints a tick for every key that the node may act on, every so many milliseconds; 0 for none.
    #[arg(long, default_value_t = 0)]
    pub tick_ms: u64,
    /// Prints nothing of single keys; `running` says how many there are.
    #[arg(long)]
    pub quiet: bool,
    /// How long a stop takes to be confirmed, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub confirm_delay_ms: u64,
    /// Writes the token of every key that the node may act on to this address, as a program writes to its database.
    #[arg(long)]
    pub sink: Option<SocketAddr>,
    /// How often it writes, in milliseconds.
    #[arg(long, default_value_t = 50)]
    pub sink_ms: u64,
    /// How long a write takes from the look whether the node may act to its sending, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub sink_delay_ms: u64,
    /// A key whose work kills its process 200 ms after its start. May be given several times.
    #[arg(long)]
    pub killer: Vec<String>,
    /// Threads of the program's runtime.
    #[arg(long, default_value_t = 2)]
    pub worker_threads: usize,
    /// Dies with the thread that started it (Linux), so that a test that is killed leaves nothing behind.
    #[arg(long, hide = true)]
    pub die_with_parent: bool,
}

fn max_in_flight(text: &str) -> Result<MaxInFlight, String> {
    let wrong = |_| format!("{text:?} is neither a number of keys (20) nor per cent (10%)");
    match text.strip_suffix('%') {
        Some(percent) => percent.parse().map(MaxInFlight::Percent).map_err(wrong),
        None => text.parse().map(MaxInFlight::Keys).map_err(wrong),
    }
}

impl Options {
    /// The node's settings.
    pub fn config(&self) -> NodeConfig {
        let mut config = self.node.clone().map_or_else(NodeConfig::default, NodeConfig::new);
        config.affinity = self.affinity;
        config.capacity = self.capacity;
        config.lease = Duration::from_millis(self.lease_ms);
        config.lock_delay = self.lock_delay_ms.map(Duration::from_millis);
        if let Some(max_in_flight) = self.max_in_flight {
            config.max_in_flight = max_in_flight;
        }
        if let Some(tolerance) = self.tolerance {
            config.balance = Balance::Continuous { tolerance };
        }
        if self.no_quarantine {
            config.quarantine = None;
        }
        if let Some(ms) = self.step_after_ms {
            config.step_after = Duration::from_millis(ms);
        }
        if let Some(reads) = self.reads {
            config.reads = reads;
        }
        config
    }

    /// The work to add at the start.
    ///
    /// # Errors
    /// Where the file cannot be read, or a key is outside of its limits.
    pub fn work(&self) -> Result<Vec<Work>, AnyError> {
        let mut work: Vec<Work> =
            (0..self.keys.unwrap_or(0)).map(|k| Work::new(format!("key-{k}"))).collect::<Result<_, _>>()?;
        if let Some(path) = &self.keys_file {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            for (number, key) in text.lines().enumerate().filter(|(_, key)| !key.is_empty()) {
                let at = |error| format!("{}, line {}: {error}", path.display(), number + 1);
                work.push(Work::new(key).map_err(at)?);
            }
        }
        Ok(work)
    }
}
