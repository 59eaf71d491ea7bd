//! for me in sink a b c; do cargo run -q -p divider --example service -- $me & done; wait
//!
//! A whole service, in four processes: three that poll feeds, and one that what they find is written to. It has what a
//! real one needs: a name and a store from its flags, a source of work, a checkpoint for the next owner, a sink that
//! refuses old owners, a line of health for a probe, and a drain on SIGTERM. Try:
//!
//! - `curl localhost:8081` asks a how it is (8082 asks b, 8083 asks c);
//! - `pkill -f 'service a$'` drains a, `pkill -9 -f 'service a$'` kills it: the others take its feeds over, and the
//!   sink's lines go on under higher tokens. Two of the three must be there for anything to be decided;
//! - `echo alpha beta > feeds.txt` says what there is to poll. Without the file there are 30 feeds.
//!
//! A URL after the name is the store in place of Raft: `service a postgres://user:password@host/database`, with the
//! feature `postgres`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it shows something")]

use std::{future::Future, time::Duration};

use divider::{
    Balance, Fence, Job, Key, Next, Node, SourceError, StopSignal, TaskError, Token, Work, Worker, shutdown_signal,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    time::{interval, timeout},
};

const NAMES: [&str; 3] = ["a", "b", "c"];
const SINK: &str = "127.0.0.1:7500";

/// What `main` returns: a message for a person.
type AnyError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    // Before anything else: as process 1 of a container, a program that does not listen for the signal never hears it.
    let shutdown = shutdown_signal();
    let mut flags = std::env::args().skip(1);
    let me = flags.next().unwrap_or_default();
    if me == "sink" {
        return sink(shutdown).await;
    }
    let at = NAMES.iter().position(|name| *name == me).ok_or("who is this? Say sink, a, b or c")?;
    let url = flags.next().unwrap_or_else(|| raft(at));

    let group = divider::open(&url, "/service/")?;
    group.prepare().await?; // A real program does it when it is deployed.
    let node = group.node()?.name(&me)?.work_from(Duration::from_secs(2), feeds).configure(|config| {
        config.balance = Balance::Continuous { tolerance: 0.1 };
    });
    let node = node.build()?;
    tokio::spawn(tell_health(node.clone(), 8081 + at));

    let flushed = Worker::new(node).run_until(shutdown, poll).await?;
    if !flushed.is_clean() {
        return Err(format!("{me} has left, and not everything was handed over: {flushed:?}").into());
    }
    println!("{me} has left, and handed everything over");
    Ok(())
}

/// One of three members of a cluster. On three machines each has an address of its own, and a better directory.
fn raft(at: usize) -> String {
    let address = |at: usize| format!("127.0.0.1:{}", 7401 + at);
    let (name, seeds) = (NAMES[at], [0, 1, 2].map(address).join(","));
    let directory = std::env::temp_dir().join("divider-service").join(name);
    format!("raft:{}?name={name}&listen={}&seeds={seeds}&plaintext", directory.display(), address(at))
}

/// What there is to do. The node that leads asks; what is not named any more ends.
async fn feeds() -> Result<Vec<Work>, SourceError> {
    let named = std::fs::read_to_string("feeds.txt");
    let names = named.unwrap_or_else(|_| (0..30).map(|n| format!("feed-{n} ")).collect());
    Ok(names.split_whitespace().map(Work::new).collect::<Result<_, _>>()?)
}

/// The whole life of a feed on this node.
async fn poll(feed: Job, mut stop: StopSignal) -> Result<Next, TaskError> {
    let mut polls = u64::from_le_bytes(feed.checkpoint[..].try_into().unwrap_or_default());
    let sink = UdpSocket::bind("127.0.0.1:0").await?;
    sink.connect(SINK).await?;
    let mut tick = interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            biased;
            _ = stop.requested() => break,
            _ = tick.tick() => {}
        }
        write(&sink, &feed, polls + 1).await?; // An error gives the feed up, and it is tried again after a pause.
        polls += 1;
        if let Err(error) = feed.checkpoint(polls.to_le_bytes()).await {
            eprintln!("{}: the checkpoint was not kept: {error}", feed.key); // The next one says it all.
        }
    }
    feed.hand_over(polls.to_le_bytes()).await?; // The next owner starts when this is kept.
    Ok(Next::Release)
}

/// A write carries its token. Only the sink can refuse it: this process may have slept since it last looked.
async fn write(sink: &UdpSocket, feed: &Job, polls: u64) -> Result<(), TaskError> {
    sink.send(format!("{} {} {polls}", feed.key, feed.token).as_bytes()).await?;
    let mut answer = [0; 512];
    let length = timeout(Duration::from_secs(1), sink.recv(&mut answer)).await??;
    match &answer[..length] {
        b"ok" => Ok(()),
        refusal => Err(String::from_utf8_lossy(refusal).into()),
    }
}

/// What is written to, in the place of your database. One write after the other, so that nothing comes in between the
/// check of a token and the write.
async fn sink(shutdown: impl Future) -> Result<(), AnyError> {
    let (socket, fence) = (UdpSocket::bind(SINK).await?, Fence::default());
    let writes = async {
        let mut write = [0; 512];
        loop {
            let (length, from) = socket.recv_from(&mut write).await?;
            let answer = match take(&fence, &String::from_utf8_lossy(&write[..length])) {
                Ok(()) => "ok".to_owned(),
                Err(refusal) => refusal.to_string(),
            };
            socket.send_to(answer.as_bytes(), from).await?;
        }
    };
    tokio::select! {
        failed = writes => failed,
        _ = shutdown => Ok(()),
    }
}

fn take(fence: &Fence, write: &str) -> Result<(), AnyError> {
    let mut words = write.split(' ');
    let mut word = || words.next().ok_or("a write is a key, a token and a number");
    let (key, token, polls) = (Key::new(word()?)?, Token(word()?.parse()?), word()?);
    fence.check(&key, token)?;
    println!("{key} was polled {polls} times, now under token {token}");
    Ok(())
}

/// Answers a readiness probe: 200 while the node has a session, else 503, and a line that says more. `Health` is also
/// serde's.
async fn tell_health(node: Node, port: usize) -> Result<(), AnyError> {
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    loop {
        let (mut asks, _) = listener.accept().await?;
        let health = node.health();
        let status = if health.session.is_some() { "200 OK" } else { "503 Service Unavailable" };
        let line = format!("{health:?}\n");
        let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{line}", line.len());
        // What is asked for makes no difference, and who has gone needs no answer.
        let _ = timeout(Duration::from_secs(1), asks.read(&mut [0; 1024])).await;
        let _ = asks.write_all(answer.as_bytes()).await;
    }
}
