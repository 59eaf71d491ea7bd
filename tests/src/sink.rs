//! Where the writes of all nodes arrive: one place that checks tokens, and one that does not, side by side.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use parking_lot::Mutex;

/// What arrived, and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// How many arrived.
    pub all: u64,
    /// How many of them came from an owner after a newer owner had written. Owners are told apart by when they had looked
    /// whether they may act, which has nothing to do with what their tokens say. A sink that takes everything took these.
    pub stale: u64,
    /// How many stale ones the sink took that refuses every token lower than the highest that it has seen. This must be 0.
    pub stale_accepted: u64,
    /// How many it refused that were not stale. This must be 0, too.
    pub current_refused: u64,
}

/// A sink on a socket, for lines `TOKEN AT_NS KEY`. Its threads end with the process.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    keys: HashMap<String, Kept>,
    writes: Writes,
}

/// What is known of a key.
#[derive(Debug)]
struct Kept {
    /// The owner that has looked last, of those whose writes arrived, and when it had.
    newest: (u64, u64),
    /// The highest token, which is all that a real sink has to keep.
    highest: u64,
}

impl Sink {
    /// One at a free port of this address.
    ///
    /// # Panics
    /// Where there is none.
    pub fn at(address: IpAddr) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound port");
        let state = Arc::<Mutex<State>>::default();
        thread::spawn({
            let state = state.clone();
            move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    thread::spawn(move || read(stream, &state));
                }
            }
        });
        Self { address, state }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What arrived so far.
    pub fn writes(&self) -> Writes {
        self.state.lock().writes
    }
}

fn read(stream: TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::with_capacity(1 << 16, stream);
    let mut text = String::new();
    // The last line of a killed process may be cut off; such a line says nothing.
    while lines.read_line(&mut text).is_ok_and(|read| read > 0) && text.ends_with('\n') {
        let mut parts = text.trim_end().splitn(3, ' ');
        let mut number = || parts.next().and_then(|part| part.parse().ok());
        let (token, at) = number().zip(number()).expect("a write begins with two numbers");
        state.lock().take(token, at, parts.next().expect("a write ends with a key"));
        text.clear();
    }
}

impl State {
    fn take(&mut self, token: u64, at: u64, key: &str) {
        self.writes.all += 1;
        let Some(kept) = self.keys.get_mut(key) else {
            self.keys.insert(key.to_owned(), Kept { newest: (token, at), highest: token });
            return;
        };
        let stale = token != kept.newest.0 && at < kept.newest.1;
        if !stale {
            kept.newest = (token, at.max(kept.newest.1));
        }
        let accepted = token >= kept.highest;
        kept.highest = kept.highest.max(token);
        self.writes.stale += u64::from(stale);
        self.writes.stale_accepted += u64::from(stale && accepted);
        self.writes.current_refused += u64::from(!stale && !accepted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(writes: &[(u64, u64)]) -> Writes {
        let mut state = State::default();
        writes.iter().for_each(|(token, at)| state.take(*token, *at, "k"));
        state.writes
    }

    #[test]
    fn a_write_that_comes_after_a_newer_owners_is_stale_and_is_refused() {
        let writes = after(&[(1, 10), (1, 20), (2, 40), (1, 30), (2, 50)]);
        assert_eq!(writes, Writes { all: 5, stale: 1, ..Writes::default() });
    }

    #[test]
    fn tokens_that_go_back_are_seen_by_both() {
        // The owner with the lower token is the newer one.
        let writes = after(&[(2, 10), (1, 20), (2, 15)]);
        assert_eq!(writes, Writes { all: 3, stale: 1, stale_accepted: 1, current_refused: 1 });
    }
}
