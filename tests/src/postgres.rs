//! A private PostgreSQL server for a test.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Mutex,
    thread::sleep,
    time::{Duration, Instant},
};

use divider_core::Group;
use divider_postgres::{PostgresBuilder, PostgresStore, migrate};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::way::Way;

/// How long a server may take to start.
const START: Duration = Duration::from_secs(30);
/// PostgreSQL does not run as root, so a test that does runs it as nobody.
const NOBODY: u32 = 65_534;

/// A `postgres` process on a free port with a cluster of its own. Dropping it ends the process and removes the cluster.
///
/// The cluster is made in the temporary directory, or in the one that `DIVIDER_TEST_PGDATA` names (`/dev/shm` leaves out
/// the disk). Connections are trusted; `postgres` is the administrator.
#[derive(Debug)]
pub struct PostgresServer {
    port: u16,
    dir: TempDir,
    options: Vec<String>,
    process: Option<Child>,
    /// Processes that were stopped in their tracks.
    frozen: Mutex<Vec<Pid>>,
}

impl PostgresServer {
    /// A server with its usual settings: what is committed is on the disk.
    ///
    /// # Panics
    /// With one line that says what is missing, if no server can be started.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// A server with further settings (`&["max_connections=300"]`).
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn with(options: &[&str]) -> Self {
        Self::made_in(&base(), &[], options)
    }

    /// As [`with`](Self::with), with its cluster in this directory, and as little space as can be for what it is about to
    /// write.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn small_in(place: &Path, options: &[&str]) -> Self {
        let options = [&["min_wal_size=2MB", "max_wal_size=16MB"], options].concat();
        Self::made_in(place, &["--wal-segsize=1"], &options)
    }

    fn made_in(place: &Path, making: &[&str], options: &[&str]) -> Self {
        let mut server = Self::unmade(place, options.iter().map(|&option| option.to_owned()).collect());
        let data = server.data();
        run(tool("initdb")
            .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"])
            .args(making)
            .arg("-D")
            .arg(data));
        server.begin();
        server
    }

    /// A server without a cluster.
    fn unmade(place: &Path, options: Vec<String>) -> Self {
        let dir = tempfile::Builder::new().prefix("divider-pg").tempdir_in(place);
        let dir = dir.expect("a temporary directory is needed for postgres");
        if is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("the directory can be given to nobody");
        }
        Self { port: 0, dir, options, process: None, frozen: Mutex::default() }
    }

    /// Starts it for the first time.
    fn begin(&mut self) {
        // Somebody else may take the port between our look and the server's.
        for _ in 0..5 {
            self.port = free_port();
            if self.launch() {
                return;
            }
        }
        panic!("postgres does not start; its log says: {}", self.log());
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The administrator's URL.
    pub fn url(&self) -> String {
        self.url_as("postgres")
    }

    /// A role's URL.
    pub fn url_as(&self, role: &str) -> String {
        url_at(role, self.port)
    }

    /// A directory that the server may write, for programs that belong to it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Ends the main process at once. The others notice and end as well.
    pub fn kill9(&mut self) {
        self.end(Signal::KILL);
    }

    /// Stops it as `pg_ctl stop -m immediate` does: at once, without writing anything more.
    pub fn stop_immediate(&mut self) {
        self.end(Signal::QUIT);
    }

    /// Stops it as `pg_ctl stop -m fast` does: in order, but without waiting for those who are connected.
    pub fn stop(&mut self) {
        self.end(Signal::INT);
    }

    /// Whether it runs and takes connections.
    pub fn is_up(&self) -> bool {
        self.process.is_some() && is_ready(self.port)
    }

    /// Starts it again on the same port and cluster, after ending it if it still runs.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        self.end(Signal::QUIT);
        let deadline = Instant::now() + START;
        // After a kill, the last of the old processes keep a new one from starting.
        while !self.launch() {
            assert!(Instant::now() < deadline, "postgres does not start again; its log says: {}", self.log());
            sleep(Duration::from_millis(20));
        }
    }

    /// Stops all its processes in their tracks, as a stalled machine does.
    ///
    /// # Panics
    /// If it does not run.
    pub fn freeze(&self) {
        let main = Pid::from_child(self.process.as_ref().expect("the server runs"));
        let mut frozen = self.frozen.lock().expect("nobody has panicked");
        // The main process first, so that it starts no others meanwhile.
        kill_process(main, Signal::STOP).expect("the server runs");
        frozen.push(main);
        for child in children(main) {
            if kill_process(child, Signal::STOP).is_ok() {
                frozen.push(child);
            }
        }
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// If another test has panicked here.
    pub fn thaw(&self) {
        for process in self.frozen.lock().expect("nobody has panicked").drain(..) {
            // It may have been killed meanwhile.
            _ = kill_process(process, Signal::CONT);
        }
    }

    /// Runs SQL as the administrator with `psql`, and returns what it prints: one line for each row, `|` between values.
    ///
    /// # Panics
    /// If it cannot be run, or reports an error.
    pub fn psql(&self, sql: &str) -> String {
        let output = self.try_psql("postgres", sql);
        assert!(output.status.success(), "psql {sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// As [`psql`](Self::psql), for a role, whatever comes of it.
    ///
    /// # Panics
    /// If it cannot be run.
    pub fn try_psql(&self, role: &str, sql: &str) -> Output {
        let mut command = tool("psql");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.url_as(role), "-c", sql]);
        command.output().expect("psql can be run")
    }

    /// Writes a schema down as `pg_dump` does.
    ///
    /// # Panics
    /// If that fails.
    pub fn dump(&self, schema: &str) -> PathBuf {
        let dump = self.dir.path().join("dump");
        run(tool("pg_dump").args(["-d", &self.url(), "-n", schema, "-f"]).arg(&dump));
        dump
    }

    /// Runs a file as the administrator.
    ///
    /// # Panics
    /// If that fails.
    pub fn load(&self, file: &Path) {
        run(tool("psql").args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &self.url(), "-f"]).arg(file));
    }

    /// Takes connections from these addresses (`10.0.0.0/8`) as it does those of this machine.
    ///
    /// # Panics
    /// If it does not run.
    pub fn trust(&self, addresses: &str) {
        let rules = self.data().join("pg_hba.conf");
        let mut file = std::fs::OpenOptions::new().append(true).open(rules).expect("a cluster has rules");
        writeln!(file, "host all all {addresses} trust").expect("the rules can be written");
        self.psql("SELECT pg_reload_conf()");
    }

    /// A server that follows this one.
    ///
    /// # Panics
    /// If it does not start.
    pub fn replica(&self) -> Self {
        let mut replica = Self::unmade(&base(), self.options.clone());
        let port = self.port.to_string();
        let mut copy = tool("pg_basebackup");
        copy.args(["-h", "127.0.0.1", "-U", "postgres", "-R", "-c", "fast", "-p", &port, "-D"]).arg(replica.data());
        run(&mut copy);
        replica.begin();
        replica
    }

    /// Makes a replica a server of its own.
    ///
    /// # Panics
    /// If it is none.
    pub fn promote(&self) {
        assert_eq!(self.psql("SELECT pg_promote()"), "t", "only a replica can be promoted");
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts the process and waits until it answers; false where it ended instead.
    fn launch(&mut self) -> bool {
        let data = self.data();
        let log = std::fs::File::create(self.dir.path().join("log")).expect("a log file");
        let mut command = tool("postgres");
        command
            .arg("-D")
            .arg(data)
            .args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .args(self.options.iter().flat_map(|option| ["-c", option]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let process = self.process.insert(command.spawn().expect("postgres can be run"));
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if !matches!(process.try_wait(), Ok(None)) {
                self.process = None;
                return false;
            }
            if is_ready(self.port) {
                return true;
            }
            sleep(Duration::from_millis(10));
        }
        false
    }

    fn end(&mut self, signal: Signal) {
        self.thaw();
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself; that is just as well.
            _ = kill_process(Pid::from_child(&process), signal);
            _ = process.wait();
        }
    }

    fn log(&self) -> String {
        let mut log = String::new();
        let file = std::fs::File::open(self.dir.path().join("log"));
        _ = file.and_then(|mut file| file.read_to_string(&mut log));
        log.lines().rev().take(3).collect::<Vec<_>>().join(" / ")
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.end(Signal::QUIT);
    }
}

/// A server with the schema in it, with further settings.
///
/// # Panics
/// As [`PostgresServer::start`].
pub async fn prepared(options: &[&str]) -> PostgresServer {
    let server = PostgresServer::with(options);
    migrate(&server.url().parse().expect("a URL"), "divider").await.expect("the schema is made");
    server
}

/// A role's URL at a port.
fn url_at(role: &str, port: u16) -> String {
    format!("postgres://{role}@127.0.0.1:{port}/postgres?sslmode=disable")
}

/// The administrator's URL by a way to a server.
pub fn url_by(way: &Way) -> String {
    url_at("postgres", way.port())
}

/// The group of [`builder`].
///
/// # Panics
/// Never.
pub fn group() -> Group {
    Group::new("/test/").expect("a name")
}

/// The builder of a store in a group whose leader keeps its leadership, however long it is silent.
pub fn builder(url: impl AsRef<str>) -> PostgresBuilder {
    let leads_on = Some(Duration::from_secs(600));
    PostgresStore::builder(url, group()).configure(|config| config.leader_timeout = leads_on)
}

/// A store of [`builder`].
///
/// # Panics
/// Never.
pub fn store(server: &PostgresServer) -> PostgresStore {
    builder(server.url()).build().expect("a valid configuration")
}

fn is_ready(port: u16) -> bool {
    let ready = tool("pg_isready").args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]).status();
    ready.is_ok_and(|status| status.success())
}

/// Where clusters are made.
fn base() -> PathBuf {
    std::env::var_os("DIVIDER_TEST_PGDATA").map_or_else(std::env::temp_dir, PathBuf::from)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What prints the version that is used.
///
/// # Panics
/// Where PostgreSQL is not installed.
pub fn version() -> Command {
    let mut command = tool("postgres");
    command.arg("--version");
    command
}

/// One of PostgreSQL's programs, of the newest version that is installed.
fn tool(name: &str) -> Command {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let newest = versions
        .filter(|path| path.join("bin/initdb").exists())
        .max_by_key(|path| path.file_name().and_then(|v| v.to_string_lossy().parse::<u32>().ok()));
    let elsewhere = || {
        let dirs = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&dirs).find(|dir| dir.join("initdb").exists())
    };
    let bin = newest.map(|path| path.join("bin")).or_else(elsewhere);
    let bin = bin.expect("PostgreSQL is not installed (Debian and Ubuntu: apt-get install postgresql)");
    let mut command = Command::new(bin.join(name));
    // Its messages are compared, and it complains of a directory that it may not read.
    command.env("LC_ALL", "C").current_dir("/");
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Runs a program that must succeed.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A port that nobody uses at the moment.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound port").port()
}

fn children(of: Pid) -> Vec<Pid> {
    let of = of.as_raw_nonzero().to_string();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name may hold anything; what follows its last parenthesis is state and parent.
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)) == Some(of.as_str())
    };
    let pids = processes.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    pids.filter(is_child).filter_map(Pid::from_raw).collect()
}
