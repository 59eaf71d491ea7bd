//! A private Redis server for a test.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use divider_support::wait::eventually;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::way::Way;

/// How long a server may take to start.
const START: Duration = Duration::from_secs(60);

/// The URL of a server by a way to it.
pub fn url_by(way: &Way) -> String {
    format!("redis://127.0.0.1:{}", way.port())
}

/// A `redis-server` process on a free port with a directory of its own. Dropping it ends the process and removes the
/// directory.
#[derive(Debug)]
pub struct RedisServer {
    port: u16,
    dir: TempDir,
    options: Vec<String>,
    process: Option<Child>,
    /// Ends the server when this process ends without dropping it: killed, or holding it in a static.
    guard: Option<Child>,
}

impl RedisServer {
    /// A server that keeps nothing on disk.
    ///
    /// # Panics
    /// With one line that says what is missing, if no server can be started.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// A server with further options as on the command line (`&["--appendonly", "yes"]`).
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn with(options: &[&str]) -> Self {
        Self::with_in(&std::env::temp_dir(), options)
    }

    /// As [`with`](Self::with), with its directory in this one.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn with_in(place: &Path, options: &[&str]) -> Self {
        let dir = tempfile::tempdir_in(place).expect("a temporary directory is needed for redis-server");
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut server = Self { port: 0, dir, options, process: None, guard: None };
        // Somebody else may take the port between our look and the server's.
        for _ in 0..5 {
            server.port = free_port();
            if server.launch() {
                return server;
            }
            server.kill9();
        }
        panic!("redis-server does not start; its log says: {}", server.log());
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL without a user.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The URL with a user.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("redis://{user}:{password}@127.0.0.1:{}", self.port)
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Panics
    /// If it does not run.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        if let Some(process) = &mut self.process {
            _ = process.wait();
        }
        self.kill9();
    }

    /// Whether it runs and answers.
    pub fn is_up(&self) -> bool {
        self.process.is_some() && answers(self.port)
    }

    /// Ends the process at once; it writes nothing more.
    pub fn kill9(&mut self) {
        // The guard first: it knows the server by its id, which is free for others once the server has ended.
        for mut process in self.guard.take().into_iter().chain(self.process.take()) {
            // It may have ended by itself; that is just as well.
            _ = process.kill();
            _ = process.wait();
        }
    }

    /// Removes what it has written, so that it starts with nothing.
    ///
    /// # Panics
    /// If it still runs.
    pub fn erase(&self) {
        assert!(self.process.is_none(), "it writes");
        // Without it there is nothing to be removed.
        _ = std::fs::remove_dir_all(self.dir.path().join("appendonlydir"));
    }

    /// Starts it again on the same port and directory, after ending it if it still runs.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        self.kill9();
        assert!(self.launch(), "redis-server does not start again; its log says: {}", self.log());
    }

    /// Stops the process in its tracks, as a stalled machine does.
    ///
    /// # Panics
    /// If it does not run.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// If it does not run.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Runs `redis-cli` with these arguments and returns what it prints.
    ///
    /// # Panics
    /// If it cannot be run, or reports an error.
    pub fn cli(&self, args: &[&str]) -> String {
        let output = self.try_cli(args);
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(output.status.success(), "redis-cli {args:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// As [`cli`](Self::cli), whatever comes of it.
    ///
    /// # Panics
    /// If it cannot be run.
    pub fn try_cli(&self, args: &[&str]) -> Output {
        let output = Command::new("redis-cli").arg("-p").arg(self.port.to_string()).arg("-e").args(args).output();
        output.expect("redis-cli is not installed (Debian and Ubuntu: apt-get install redis-tools)")
    }

    /// A field of `INFO`, such as `master_replid:`; empty where there is none.
    ///
    /// # Panics
    /// As [`cli`](Self::cli).
    pub fn info(&self, name: &str) -> String {
        let info = self.cli(&["INFO", "everything"]);
        info.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
    }

    /// Becomes a replica of this one, and waits until it is connected.
    ///
    /// # Panics
    /// If it does not get there.
    pub async fn follow(&self, primary: &Self) {
        self.cli(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
        eventually("the replica follows", async || self.info("master_link_status:") == "up").await;
    }

    /// Waits until it has all that this one has written.
    ///
    /// # Panics
    /// If it does not get there.
    pub async fn catch_up(&self, primary: &Self) {
        let caught_up = async || self.info("slave_repl_offset:") == primary.info("master_repl_offset:");
        eventually("the replica catches up", caught_up).await;
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("the server runs");
        kill_process(Pid::from_child(process), signal).expect("the server runs");
    }

    /// Starts the process and waits until it answers; false where it ended instead.
    fn launch(&mut self) -> bool {
        let mut command = Command::new("redis-server");
        command
            .current_dir(self.dir.path())
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--logfile", "log"])
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = command.spawn();
        let process = process.expect("redis-server is not installed (Debian and Ubuntu: apt-get install redis-server)");
        self.guard = guard(&process, self.dir.path());
        let process = self.process.insert(process);
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if answers(self.port) {
                return true;
            }
            if !matches!(process.try_wait(), Ok(None)) {
                return false;
            }
            sleep(Duration::from_millis(10));
        }
        false
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().rev().take(3).collect::<Vec<_>>().join(" / ")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// A shell that waits until its input is closed, which the system does when this process ends, and then ends the server
/// and removes its directory.
fn guard(server: &Child, dir: &Path) -> Option<Child> {
    let mut command = Command::new("sh");
    command.args(["-c", "read _; kill -9 \"$1\"; rm -rf \"$2\"", "guard", &server.id().to_string()]).arg(dir);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
}

/// Three servers that are one Redis Cluster, without replicas.
#[derive(Debug)]
pub struct RedisCluster {
    /// The nodes.
    pub nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts them and waits until all agree that the cluster works.
    ///
    /// # Panics
    /// As [`RedisServer::start`], or where the cluster does not form.
    pub fn start() -> Self {
        let nodes: Vec<(RedisServer, u16)> = (0..3)
            .map(|_| {
                let bus = free_port();
                let bus_port = bus.to_string();
                let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus_port];
                // What two nodes have is served while the third is gone.
                let options = [&cluster[..], &["--cluster-require-full-coverage", "no"]].concat();
                (RedisServer::with(&options), bus)
            })
            .collect();
        let (first, _) = &nodes[0];
        for (i, (node, bus)) in nodes.iter().enumerate() {
            let (from, to) = (i * 16384 / 3, (i + 1) * 16384 / 3 - 1);
            node.cli(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]);
            first.cli(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), &bus.to_string()]);
        }
        let deadline = Instant::now() + START;
        // Without full coverage the state is ok although a node has not heard yet who has the slots of another.
        let formed = |(node, _): &(RedisServer, u16)| {
            let info = node.cli(&["CLUSTER", "INFO"]);
            ["cluster_state:ok", "cluster_known_nodes:3", "cluster_slots_ok:16384"]
                .iter()
                .all(|line| info.contains(line))
        };
        while !nodes.iter().all(formed) {
            assert!(Instant::now() < deadline, "the cluster does not form");
            sleep(Duration::from_millis(50));
        }
        Self { nodes: nodes.into_iter().map(|(node, _)| node).collect() }
    }

    /// The URLs of all nodes.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound port").port()
}

/// Whether the server takes commands: it has loaded its data, and perhaps wants a password first.
fn answers(port: u16) -> bool {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let ask = || -> std::io::Result<[u8; 5]> {
        let limit = Duration::from_millis(200);
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    matches!(ask(), Ok(answer) if &answer == b"+PONG" || &answer == b"-NOAU")
}
