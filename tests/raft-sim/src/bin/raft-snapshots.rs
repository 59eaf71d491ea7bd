//! Snapshots on this machine, with real files and sockets:
//!
//! ```text
//! raft-snapshots learners [200]     # join over a link of 25 ms, while entries flow and snapshots are made every 50 ms
//! raft-snapshots pause [1000000]    # how long callers wait while a snapshot of so many keys is made
//! ```

use std::{
    net::TcpListener as Reserve,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use divider_core::{Group, Key, Op, Revision, SessionId, Store, Work};
use divider_raft::RaftStore;
use divider_support::ops::join;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::mpsc,
    time::{sleep, sleep_until},
};

const DELAY: Duration = Duration::from_millis(25);
/// Learners at a time.
const BATCH: usize = 10;
const GROUP: &str = "/group/";

fn main() -> ExitCode {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_default_env() {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let args: Vec<String> = std::env::args().collect();
    let number = |or| args.get(2).and_then(|number| number.parse().ok()).unwrap_or(or);
    let directory = std::env::temp_dir().join(format!("raft-snapshots-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let well = runtime.block_on(async {
        match args.get(1).map(String::as_str) {
            Some("learners") => learners(&directory, number(200)).await,
            Some("pause") => pause(&directory, number(1_000_000) as u64).await,
            _ => panic!("learners or pause"),
        }
    });
    std::fs::remove_dir_all(&directory).expect("it is ours");
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A free address, and another one through which it is reached late.
async fn address() -> (String, String) {
    // Not one of those that are given to whoever asks for any.
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let free = loop {
        let address = format!("127.0.0.1:{}", NEXT.fetch_add(1, Ordering::Relaxed));
        if Reserve::bind(&address).is_ok() {
            break address;
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let late = listener.local_addr().expect("it is bound").to_string();
    let to = free.clone();
    tokio::spawn(async move {
        while let Ok((from, _)) = listener.accept().await {
            let to = to.clone();
            tokio::spawn(async move {
                let Ok(to) = TcpStream::connect(to).await else { return };
                let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
                tokio::join!(carry(from_read, to_write), carry(to_read, from_write));
            });
        }
    });
    (free, late)
}

/// Each byte takes as long.
async fn carry(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf) {
    let (sender, mut carried) = mpsc::channel::<(tokio::time::Instant, Vec<u8>)>(1024);
    let reading = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(many @ 1..) = from.read(&mut buffer).await {
            let due = tokio::time::Instant::now() + DELAY;
            if sender.send((due, buffer[..many].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, bytes)) = carried.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}

async fn learners(directory: &Path, many: usize) -> bool {
    let (listen, advertise) = address().await;
    let seed = advertise.clone();
    let builder = RaftStore::builder(directory.join("leader"), Group::new(GROUP).expect("a name"))
        .name("leader")
        .expect("a name")
        .listen(listen)
        .plaintext();
    let builder = builder.configure(|config| {
        config.advertise = Some(advertise);
        // A quarter of this many entries are kept behind a snapshot, or none would catch up.
        config.snapshot_every = 4000;
    });
    let leader = builder.build().expect("it is right");
    leader.open().await.expect("it opens");
    let flows = Arc::new(AtomicBool::new(true));
    let entries = Arc::new(AtomicU64::new(0));
    for writer in 0..4 {
        let (store, flows, entries) = (leader.clone(), flows.clone(), entries.clone());
        tokio::spawn(async move {
            for round in 0_u64.. {
                let key = format!("{writer}/{}", round % 500);
                let op = match round % 1000 {
                    0..500 => Op::Add(Work::new(key).expect("a key").payload(round.to_le_bytes().to_vec())),
                    _ => Op::Remove { key: Key::new(key).expect("a key") },
                };
                if flows.load(Ordering::Relaxed) && store.apply(&[op]).await.is_ok() {
                    entries.fetch_add(1, Ordering::Relaxed);
                }
                sleep(Duration::from_millis(2)).await;
            }
        });
    }
    let snapshots = leader.clone();
    tokio::spawn(async move {
        loop {
            snapshots.snapshot().await;
            sleep(Duration::from_millis(50)).await;
        }
    });
    let began = Instant::now();
    let (mut joined, mut same, mut differ) = (0, 0, 0);
    while joined < many {
        let batch = BATCH.min(many - joined);
        let learners = (joined..joined + batch).map(|at| learner(directory.join(at.to_string()), &seed));
        let learners = futures_util::future::join_all(learners).await;
        // While entries flow, the numbers over what was applied are compared.
        for learner in &learners {
            let (index, sum) =
                until("a number", || learner.sum().filter(|(index, _)| leader.sum_at(*index).is_some())).await;
            let well = leader.sum_at(index) == Some(sum);
            (same, differ) = (same + usize::from(well), differ + usize::from(!well));
        }
        // And when they rest, everything.
        flows.store(false, Ordering::Relaxed);
        for learner in &learners {
            let replicas = || Some((leader.replica()?, learner.replica()?)).filter(|(one, other)| one.0 == other.0);
            let (one, other) = until("the same index", replicas).await;
            differ += usize::from(one != other);
        }
        flows.store(true, Ordering::Relaxed);
        for learner in learners {
            let id = learner.me().expect("it is open").id;
            learner.close().await;
            leader.remove_member(id).await.expect("it is removed");
        }
        joined += batch;
        eprintln!("{joined} joined, {differ} differ, {:?}", began.elapsed());
    }
    println!(
        "{joined} learners joined in {:.1} s beside {} entries, over {DELAY:?} each way: {same} numbers the same, {differ} differ",
        began.elapsed().as_secs_f64(),
        entries.load(Ordering::Relaxed)
    );
    differ == 0 && same == many
}

async fn learner(directory: PathBuf, seed: &str) -> RaftStore {
    let (listen, advertise) = address().await;
    let builder = RaftStore::builder(directory, Group::new(GROUP).expect("a name"))
        .learner()
        .listen(listen)
        .seeds([seed])
        .plaintext();
    let builder = builder.configure(|config| config.advertise = Some(advertise));
    let store = builder.build().expect("it is right");
    while let Err(error) = store.open().await {
        eprintln!("not open yet: {error}");
    }
    store
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let limit = Instant::now() + Duration::from_secs(60);
    loop {
        match look() {
            Some(seen) => return seen,
            None => assert!(Instant::now() < limit, "{what} did not come up"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn pause(directory: &Path, keys: u64) -> bool {
    let builder = RaftStore::builder(directory, Group::new(GROUP).expect("a name")).name("alone").expect("a name");
    let store = builder.build().expect("it is right");
    store.open().await.expect("it opens");
    let session = SessionId::fresh();
    store.apply(&[join(session, Revision(0))]).await.expect("it joins");
    let began = Instant::now();
    for from in (0..keys).step_by(512) {
        let add = |key: u64| Op::Add(Work::new(format!("tenant/{key:09}/stream")).expect("a key"));
        store.apply(&(from..(from + 512).min(keys)).map(add).collect::<Vec<_>>()).await.expect("they are added");
    }
    println!("{keys} keys in {:?}", began.elapsed());
    sleep(Duration::from_secs(3)).await;
    println!("slowest write where nothing is written: {:?}", slowest(&store, Duration::from_secs(3), async {}).await);
    let began = Instant::now();
    store.replica();
    println!("written while entries wait: {:?}", began.elapsed());
    let snapshots = async {
        for _ in 0..3 {
            store.snapshot().await;
            sleep(Duration::from_secs(4)).await;
        }
    };
    println!("slowest write beside three snapshots: {:?}", slowest(&store, Duration::ZERO, snapshots).await);
    let length = |name: &str| std::fs::metadata(directory.join(name)).map_or(0, |file| file.len() >> 10);
    println!("snapshot {} KiB, log {} KiB", length("snapshot"), length("log.redb"));
    store.close().await;
    true
}

/// The slowest write beside some work, and for so long at least.
async fn slowest(store: &RaftStore, least: Duration, beside: impl Future<Output = ()>) -> Duration {
    let over = AtomicBool::new(false);
    let writing = async {
        let mut slowest = Duration::ZERO;
        for key in 0_u64.. {
            if over.load(Ordering::Relaxed) {
                break;
            }
            let began = Instant::now();
            let add = Op::Add(Work::new(format!("w/{}", key % 100)).expect("a key"));
            if store.apply(&[add]).await.is_ok() {
                slowest = slowest.max(began.elapsed());
            } else {
                println!("a write took longer than its limit");
            }
            sleep(Duration::from_millis(5)).await;
        }
        slowest
    };
    let ends = async {
        tokio::join!(beside, sleep(least));
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(writing, ends).0
}
