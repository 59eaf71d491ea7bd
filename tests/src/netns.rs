//! Private networks whose parts can be cut off from each other: namespaces joined to a bridge in one more, the hub.
//! Nothing is added to the machine's own network.

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What the fixture needs, for whoever lacks it.
const NEEDS: &str = "the tests of partitions need root, `ip` and `iptables` (Debian and Ubuntu: apt-get install iproute2 iptables), \
     and a kernel that lets them make network namespaces";

/// Namespaces `0..len`, and the hub that joins them, which is a place like the others and has the number `len`. Each has
/// an address of its own, and reaches all others. Dropping it removes them, and so does the end of this process.
///
/// What is cut is dropped where it would arrive, in silence: connections neither break nor are refused, they hang.
#[derive(Debug)]
pub struct Netns {
    names: Vec<String>,
    /// Removes the namespaces when its input is closed.
    guard: Child,
}

impl Netns {
    /// Makes so many namespaces, and the hub.
    ///
    /// # Panics
    /// With one line that says what is missing, where they cannot be made.
    pub fn new(len: u8) -> Self {
        Self::try_new(len).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`new`](Self::new), for whoever can do without.
    ///
    /// # Errors
    /// One line that says what is missing, where they cannot be made.
    pub fn try_new(len: u8) -> io::Result<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let network = format!("divider-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let names: Vec<_> = (0..len).map(|at| format!("{network}-{at}")).chain([format!("{network}-hub")]).collect();
        // Before there is anything to be left behind. In a group of its own, so that it outlives the signal with which a
        // runner ends a test and all that belongs to it.
        let mut guard = Command::new("sh");
        guard.args(["-c", "read _; for name; do ip netns del \"$name\"; done", "guard"]).args(&names).process_group(0);
        guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let made = Self { names, guard: guard.spawn()? };
        made.build().map_err(|error| io::Error::other(format!("{NEEDS}: {error}")))?;
        Ok(made)
    }

    fn build(&self) -> io::Result<()> {
        let hub = &self.names[self.hub()];
        for (at, name) in self.names.iter().enumerate() {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            // The first look at a table of rules loads it: not at the moment of the first cut.
            self.filter(at, &["-L"])?;
        }
        ip(&["-n", hub, "link", "add", "net", "type", "bridge"])?;
        ip(&["-n", hub, "link", "set", "net", "up"])?;
        for (at, name) in self.names[..self.hub()].iter().enumerate() {
            let port = format!("port{at}");
            ip(&["-n", hub, "link", "add", &port, "type", "veth", "peer", "name", "net", "netns", name])?;
            ip(&["-n", hub, "link", "set", &port, "master", "net", "up"])?;
            ip(&["-n", name, "link", "set", "net", "up"])?;
        }
        for (at, name) in self.names.iter().enumerate() {
            ip(&["-n", name, "addr", "add", &format!("{}/24", self.address(at)), "dev", "net"])?;
        }
        Ok(())
    }

    /// The number of the hub.
    pub fn hub(&self) -> usize {
        self.names.len() - 1
    }

    /// The address of a place.
    ///
    /// # Panics
    /// Where there is no such place.
    pub fn address(&self, at: usize) -> Ipv4Addr {
        assert!(at < self.names.len(), "there is no place {at}");
        Ipv4Addr::new(10, 77, 0, u8::try_from(at + 1).expect("the number of namespaces is a byte"))
    }

    /// What runs a program in a place: the program and its arguments are to be added. The process is the program itself, no
    /// parent of it.
    pub fn command(&self, at: usize) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[at]]);
        command
    }

    /// Does something on a thread that is in a place. Sockets that it makes stay there.
    ///
    /// # Panics
    /// Where the work does.
    pub fn within<T: Send>(&self, at: usize, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.names[at])).expect("the namespace is there");
        let enter = || move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
        let done = thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter().unwrap_or_else(|error| panic!("{NEEDS}: {error}"));
                work()
            });
            inside.join()
        });
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// From now on nothing arrives at `to` that `from` sends. What goes the other way still does.
    ///
    /// # Panics
    /// Where `iptables` fails.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        self.drop_all(&[(from, to)]);
    }

    /// From now on these two do not reach each other.
    ///
    /// # Panics
    /// Where `iptables` fails.
    pub fn cut(&self, one: usize, other: usize) {
        self.drop_all(&[(one, other), (other, one)]);
    }

    /// From now on this place reaches nobody, and nobody reaches it.
    ///
    /// # Panics
    /// Where `iptables` fails.
    pub fn isolate(&self, at: usize) {
        let others = (0..self.names.len()).filter(|other| *other != at);
        self.drop_all(&others.flat_map(|other| [(other, at), (at, other)]).collect::<Vec<_>>());
    }

    /// From now on everything arrives again.
    ///
    /// # Panics
    /// Where `iptables` fails.
    pub fn heal(&self) {
        self.each_at_once((0..self.names.len()).map(|at| (at, vec!["-F".to_owned()])));
    }

    /// How many packets were dropped since the last cut.
    ///
    /// # Panics
    /// Where `iptables` fails.
    pub fn dropped(&self) -> u64 {
        let of = |at: usize| {
            let mut command = self.command(at);
            let output = command.args(["iptables", "--wait", "-L", "INPUT", "-v", "-x", "-n"]).output();
            let rules = String::from_utf8_lossy(&output.expect("iptables can be run").stdout).into_owned();
            let packets = rules.lines().filter(|line| line.contains("DROP"));
            packets.filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok()).sum::<u64>()
        };
        (0..self.names.len()).map(of).sum()
    }

    fn drop_all(&self, ways: &[(usize, usize)]) {
        self.each_at_once(ways.iter().map(|(from, to)| {
            let source = self.address(*from).to_string();
            (*to, ["-A", "INPUT", "-s", &source, "-j", "DROP"].map(str::to_owned).to_vec())
        }));
    }

    /// Changes the rules of several places, as nearly at once as processes can.
    fn each_at_once(&self, changes: impl Iterator<Item = (usize, Vec<String>)> + Clone) {
        thread::scope(|scope| {
            let running: Vec<_> = changes.map(|(at, rule)| scope.spawn(move || self.filter(at, &rule))).collect();
            for done in running {
                done.join().expect("it does not panic").unwrap_or_else(|error| panic!("{error}"));
            }
        });
    }

    fn filter<S: AsRef<std::ffi::OsStr>>(&self, at: usize, rule: &[S]) -> io::Result<()> {
        let mut command = self.command(at);
        command.args(["iptables", "--wait"]).args(rule);
        run(command)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        // What it could not remove was never made.
        _ = self.guard.wait();
    }
}

fn ip(args: &[&str]) -> io::Result<()> {
    let mut command = Command::new("ip");
    command.args(args);
    run(command)
}

fn run(mut command: Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
