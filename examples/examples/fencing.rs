//! cargo run --release -p divider-examples --example fencing
//!
//! Why every write should carry its token. A process may be stopped between looking whether a key is still its own and
//! writing, for longer than its lease: by the scheduler, the garbage collector of a neighbour, a laptop's lid. No lease
//! can prevent that. A sink that refuses tokens lower than the highest it has seen can.

use std::{collections::HashMap, sync::Arc, time::Duration};

use divider_core::{Assignment, Divider, Key, MemoryStore, Node, NodeId, Token, Work};
use divider_examples::{AnyError, show::Show};
use parking_lot::Mutex;
use tokio::time::sleep;

const LEASE: Duration = Duration::from_millis(500);

/// The sink: a table with a column for the token. In SQL: `UPDATE … SET value = $1, token = $2 WHERE token <= $2`.
#[derive(Default)]
struct Table(Mutex<HashMap<Key, (Token, String)>>);

impl Table {
    fn write(&self, key: &Key, token: Token, value: &str) -> Result<(), String> {
        let mut rows = self.0.lock();
        match rows.get(key) {
            Some((seen, _)) if *seen > token => Err(format!("refused: token {token} is older than {seen}")),
            _ => {
                rows.insert(key.clone(), (token, value.to_owned()));
                Ok(())
            }
        }
    }
}

async fn join(name: &str, store: &MemoryStore) -> Result<Node, AnyError> {
    let id = NodeId::new(name)?;
    let node = Node::builder(store.clone()).configure(|config| (config.node, config.lease) = (id, LEASE)).build()?;
    node.start().await?;
    Ok(node)
}

async fn next_start(node: &Node) -> Result<Assignment, AnyError> {
    Ok(node.start_processing().next().await.ok_or("the node was cancelled")?)
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let show = Show::new("Fencing: an old owner's write that comes too late");
    let (store, table) = (MemoryStore::new(), Arc::new(Table::default()));

    let anna = join("anna", &store).await?;
    anna.add_work(vec![Work::new("account-7")?]).await?;
    let first = next_start(&anna).await?;
    table.write(&first.key, first.token, "anna was here")?;
    show.step(&format!("anna starts {} with token {}, and writes", first.key, first.token));

    show.step("anna looks once more whether the key is hers, and is about to write ...");
    show.note(&format!("is_current: {}", anna.is_current(&first.key, first.token)));
    show.note("... and at this point her machine stands still");
    drop(anna);

    let bert = join("bert", &store).await?;
    let second = next_start(&bert).await?;
    table.write(&second.key, second.token, "bert was here")?;
    show.step(&format!("her lease has run out: bert starts {} with token {}, and writes", second.key, second.token));

    sleep(LEASE).await;
    show.step("anna's machine goes on, and her write arrives");
    match table.write(&first.key, first.token, "anna was here again") {
        Ok(()) => show.note("it was taken: bert's work is lost"),
        Err(refusal) => show.note(&refusal),
    }
    let row = table.0.lock().get(&first.key).cloned();
    show.note(&format!("the table says: {}", row.map_or_else(|| "nothing".into(), |(_, value)| value)));
    bert.cancel().await?;
    Ok(())
}
