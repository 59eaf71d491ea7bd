//! cargo run --release -p divider-examples --example fencing
//!
//! Why every write should carry its token. A process may be stopped between looking whether a key is still its own and
//! writing, for longer than its lease: by the scheduler, the garbage collector of a neighbour, a laptop's lid. No lease
//! can prevent that. A sink that refuses tokens lower than the highest it has seen can.

#![allow(clippy::print_stdout, reason = "it shows something")]

use std::{collections::HashMap, sync::Mutex, time::Duration};

use divider::{Assignment, Divider, Fence, Key, MemoryStore, Node, Stale, Token, Work};
use tokio::time::sleep;

/// What `main` returns: a message for a person.
type AnyError = Box<dyn std::error::Error + Send + Sync>;

const LEASE: Duration = Duration::from_millis(500);

/// The sink. In a database the token is a column; `Fence` shows the SQL.
#[derive(Default)]
struct Table {
    fence: Fence,
    rows: Mutex<HashMap<Key, String>>,
}

impl Table {
    fn write(&self, key: &Key, token: Token, value: &str) -> Result<(), Stale> {
        // Taken first, so that nothing comes between the check and the write.
        let mut rows = self.rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.fence.check(key, token)?;
        rows.insert(key.clone(), value.to_owned());
        Ok(())
    }
}

async fn join(name: &str, store: &MemoryStore) -> Result<Node, AnyError> {
    let node = Node::builder(store.clone()).name(name)?.lease(LEASE).build()?;
    node.start().await?;
    Ok(node)
}

async fn next_start(node: &Node) -> Result<Assignment, AnyError> {
    Ok(node.start_processing().next().await.ok_or("the node was cancelled")?)
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    println!("Fencing: an old owner's write that comes too late");
    let (store, table) = (MemoryStore::new(), Table::default());

    let anna = join("anna", &store).await?;
    anna.add_work(vec![Work::new("account-7")?]).await?;
    let first = next_start(&anna).await?;
    table.write(&first.key, first.token, "anna was here")?;
    println!("\nanna starts {} with token {}, and writes", first.key, first.token);

    println!("\nanna looks once more whether the key is hers, and is about to write ...");
    println!("    is_current: {}", anna.is_current(&first.key, first.token));
    println!("    ... and at this point her machine stands still");
    drop(anna);

    let bert = join("bert", &store).await?;
    let second = next_start(&bert).await?;
    table.write(&second.key, second.token, "bert was here")?;
    println!("\nher lease has run out: bert starts {} with token {}, and writes", second.key, second.token);

    sleep(LEASE).await;
    println!("\nanna's machine goes on, and her write arrives");
    match table.write(&first.key, first.token, "anna was here again") {
        Ok(()) => println!("    it was taken: bert's work is lost"),
        Err(stale) => println!("    it is refused: {stale}"),
    }
    let row = table.rows.lock().map_err(|error| error.to_string())?.get(&first.key).cloned();
    println!("    the table says: {}", row.as_deref().unwrap_or("nothing"));
    bert.cancel().await?;
    Ok(())
}
