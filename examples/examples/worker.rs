//! cargo run --release -p divider-examples --example worker -- --node a --keys 5 --tick-ms 1000
//!
//! A node for the shell. Start several on one Redis, each with another `--node` and `--store redis://127.0.0.1`, kill one
//! with -9 and see where its keys go. `--help` lists the options, and the commands that it takes on standard input.

use clap::Parser;
use divider_examples::{
    AnyError,
    worker::{self, options::Options},
};

fn main() -> Result<(), AnyError> {
    let options = Options::parse();
    #[cfg(target_os = "linux")]
    if options.die_with_parent {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    }
    // A panic in any task ends the process at once: half a node would be worse than none, and its keys go to others.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(options.worker_threads).enable_all().build()?;
    // As a task, so that it runs on the runtime's own threads like everything else, and `block` can block it.
    let result = runtime.block_on(async { tokio::spawn(worker::run(options)).await })?;
    // Nothing is waited for: what still runs has nothing more to say.
    runtime.shutdown_background();
    result
}
