//! What the examples share, and the scriptable node `worker` with the lines that it prints, which the tests of whole
//! processes read back.

pub mod line;
#[path = "../../divider/examples/support/show.rs"]
pub mod show;
pub mod worker;

/// Addresses on this machine at which nobody listens, for examples that stand for several machines.
///
/// # Errors
/// Where the system has none.
pub fn free_addresses<const N: usize>() -> std::io::Result<[String; N]> {
    let bound: Vec<_> = (0..N).map(|_| std::net::TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let ports: Vec<_> = bound.iter().map(std::net::TcpListener::local_addr).collect::<Result<_, _>>()?;
    Ok(std::array::from_fn(|at| ports[at].to_string()))
}

/// What an example's `main` returns: a message for a person.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;
