//! One `worker` process.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use divider_examples::line::{Kind, Line};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::{Said, Usage, binary};
use crate::history::ProcessId;

/// How many lines are kept of what a process complains of.
const COMPLAINTS: usize = 200;

/// Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    stdin: ChildStdin,
    /// Set before the process is made to end, so that its reader knows that this is no accident, and when it has ended.
    ended: Arc<AtomicBool>,
    /// How often each command was given.
    asked: HashMap<String, usize>,
    /// Ends with the process's output.
    reader: Option<JoinHandle<()>>,
}

impl Process {
    /// Through what comes before the program in its command line, where something does.
    pub(super) fn spawn<'a>(
        id: ProcessId,
        through: Option<Command>,
        args: impl Iterator<Item = &'a str>,
        said: &Arc<Mutex<Said>>,
    ) -> Self {
        let worker = binary::worker();
        let mut command = through.map_or_else(
            || Command::new(worker),
            |mut through| {
                through.arg(worker);
                through
            },
        );
        let args: Vec<_> = args.collect();
        // Its work may kill it.
        let mortal = args.contains(&"--killer");
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the worker can be started");
        let (stdin, stdout) = child.stdin.take().zip(child.stdout.take()).expect("both are pipes");
        let (said, errors) = (said.clone(), child.stderr.take().expect("it is a pipe"));
        thread::spawn({
            let said = said.clone();
            // It ends with the process's output, like the reader.
            move || pass_on(id, errors, &said)
        });
        let ended = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let ended = ended.clone();
            move || {
                read(id, stdout, &said);
                if !ended.swap(true, Ordering::SeqCst) && !mortal {
                    said.lock().accidents.push(format!("process {id} ended by itself; see its standard error"));
                }
            }
        });
        Self { child, stdin, ended, asked: HashMap::new(), reader: Some(reader) }
    }

    pub(super) fn lives(&self) -> bool {
        !self.ended.load(Ordering::SeqCst)
    }

    /// How often a command was given so far.
    pub(super) fn asked(&self, word: &str) -> usize {
        self.asked.get(word).copied().unwrap_or(0)
    }

    pub(super) fn send(&mut self, command: &str) {
        let word = command.split(' ').next().unwrap_or_default();
        *self.asked.entry(word.to_owned()).or_default() += 1;
        writeln!(self.stdin, "{command}").expect("the process reads commands as long as it lives");
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process is there until it is waited for");
    }

    /// Suspends it, and waits until the last of its threads stands still: they do so one after the other.
    pub(super) fn stop(&self) {
        self.signal(Signal::STOP);
        let which = WaitId::Pid(Pid::from_child(&self.child));
        let what = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::io::retry_on_intr(|| waitid(which.clone(), what)).expect("the process is a child of this one");
    }

    pub(super) fn usage(&self) -> Usage {
        let read = |file: &str| {
            let path = format!("/proc/{}/{file}", self.child.id());
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        // In ticks of a hundredth of a second, as Linux has them everywhere; the name before may hold anything.
        let stat = read("stat");
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let ticks: u64 = after_name.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let rollup = read("smaps_rollup");
        let anonymous = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:"));
        let kib = anonymous.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<usize>().ok());
        Usage { cpu: Duration::from_millis(ticks * 10), resident: kib.expect("a number of kB") * 1024 }
    }

    /// Returns when the process is gone and all that it said has been taken in.
    pub(super) fn kill9(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // It may have ended by itself; that is just as well.
        _ = self.child.kill();
        _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            _ = reader.join();
        }
    }

    /// Asks it to end.
    pub(super) fn begin_to_end(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        self.signal(Signal::TERM);
    }

    /// Whether it is gone from the machine.
    pub(super) fn is_gone(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end and waits until it has.
    pub(super) fn terminate(&mut self, limit: Duration) {
        self.begin_to_end();
        let deadline = Instant::now() + limit;
        while !self.is_gone() {
            assert!(Instant::now() < deadline, "the process does not end within {limit:?}");
            thread::sleep(Duration::from_millis(5));
        }
        self.kill9();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Passes on what the process complains of, and keeps the end of it.
fn pass_on(id: ProcessId, stderr: ChildStderr, said: &Mutex<Said>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        eprintln!("{line}");
        let mut said = said.lock();
        // Also where it was about to end anyway.
        if line.contains("panicked at") {
            said.accidents.push(format!("process {id}: {line}"));
        }
        let complaints = &mut said.complaints[id];
        complaints.push_back(line);
        if complaints.len() > COMPLAINTS {
            complaints.pop_front();
        }
    }
}

fn read(id: ProcessId, stdout: ChildStdout, said: &Mutex<Said>) {
    let mut lines = BufReader::with_capacity(1 << 16, stdout);
    let mut text = String::new();
    // The last line of a killed process may be cut off; such a line says nothing.
    while lines.read_line(&mut text).is_ok_and(|read| read > 0) && text.ends_with('\n') {
        match serde_json::from_str::<Line<'_>>(&text) {
            Ok(line) => {
                let mut said = said.lock();
                match line.event {
                    Kind::Start | Kind::Stop | Kind::Confirm | Kind::Tick | Kind::Complete => {
                        said.history.take_in(id, &line);
                        if let Some(recorded) = said.recorded.get_mut(&id) {
                            recorded.push(line.into_owned());
                        }
                    }
                    _ => said.notes[id].push(line.into_owned()),
                }
            }
            Err(error) => panic!("process {id} printed {text:?}, which is no line: {error}"),
        }
        text.clear();
    }
}
