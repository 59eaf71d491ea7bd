//! What single calls cost on a server, and what whole nodes of this process ask of it.

use std::time::{Duration, Instant};

use divider_core::{Group, Key, Op, Outcome, SessionId, Token, Topic, Work};
use divider_postgres::PostgresStore;
use divider_redis::RedisStore;
use divider_support::{
    ops::{add, joining, leading},
    seeds::number,
    wait::PATIENCE,
};
use divider_tests::{
    bed::Bed,
    postgres::{PostgresServer, prepared},
    redis::RedisServer,
};

use crate::{
    Run,
    memory::{Nodes, on_a_runtime},
    report::{Report, Store, Unit},
};

const KEYS: usize = 100_000;
const NODES: usize = 10;

fn group() -> Group {
    Group::new("/figures/").unwrap()
}

/// How often a server was asked since it was last asked this, and how long it worked on that, where it knows.
type Busy<'a> = &'a dyn Fn() -> Option<(u32, Duration)>;

struct Caller<'a, S> {
    store: S,
    /// Ops in a batch.
    batch: usize,
    busy: Busy<'a>,
    report: &'a mut Report,
    of: Store,
    case: String,
}

impl<S: divider_core::Store> Caller<'_, S> {
    fn add(&mut self, what: &str, value: f64, unit: Unit) {
        self.report.add(&self.case, self.of, what, value, unit, None);
    }

    fn time(&mut self, what: &str, time: Duration) {
        self.add(what, time.as_secs_f64(), Unit::Seconds);
    }

    /// Applies ops in batches: how many that were in a second.
    async fn measure(&mut self, what: &str, ops: &[Op]) -> Vec<Outcome> {
        (self.busy)();
        let since = Instant::now();
        let mut outcomes = Vec::new();
        for batch in ops.chunks(self.batch) {
            outcomes.extend(self.store.apply(batch).await.unwrap().outcomes);
        }
        let took = since.elapsed();
        assert!(!outcomes.iter().any(|outcome| matches!(outcome, Outcome::Refused(_))));
        let per_second = |time: Duration| ops.len() as f64 / time.as_secs_f64();
        let busy = (self.busy)();
        self.add(what, per_second(took), Unit::PerSecond);
        if let Some((_, busy)) = busy {
            self.add(&format!("{what}, the server alone"), per_second(busy), Unit::PerSecond);
        }
        outcomes
    }

    /// Everything that a group of many keys goes through, and then calls one by one.
    async fn run(&mut self, calls: u32) {
        let (leader, term) = leading(&self.store).await;
        let mut sessions = vec![leader];
        while sessions.len() < NODES {
            let session = SessionId::fresh();
            let join = joining(&self.store, session).await;
            self.store.apply(&[join]).await.unwrap();
            sessions.push(session);
        }
        let _listener = self.store.hints(Topic::Group).await.unwrap();

        let keys: Vec<Key> = (0..KEYS).map(|i| Key::new(format!("tenant-{i:08}")).unwrap()).collect();
        let of = |i: usize| sessions[i % NODES];
        let ops =
            |make: &dyn Fn(usize, &Key) -> Op| keys.iter().enumerate().map(|(i, key)| make(i, key)).collect::<Vec<_>>();
        self.measure("added", &ops(&|_, key| add(key))).await;
        let assign = ops(&|i, key| Op::Assign { term, key: key.clone(), session: of(i) });
        let granted = self.measure("assigned", &assign).await;
        let token = |outcome: &Outcome| if let Outcome::Granted(token) = outcome { *token } else { Token(0) };
        let tokens: Vec<Token> = granted.iter().map(token).collect();
        let revoke = ops(&|i, key| Op::Revoke { term, key: key.clone(), token: tokens[i] });
        self.measure("asked to stop", &revoke).await;
        let confirm = ops(&|i, key| Op::Confirm { session: of(i), key: key.clone(), token: tokens[i], started: true });
        self.measure("confirmed", &confirm).await;
        self.measure("removed", &ops(&|_, key| Op::Remove { key: key.clone() })).await;
        let large = ops(&|_, key| Op::Add(Work::from(key.clone()).payload([7; 200])));
        self.measure("added with 200 B of payload", &large).await;
        self.measure("assigned with 200 B of payload", &assign).await;
        let twice =
            |key: &Key| [add(format!("{key}/more")), Op::Remove { key: Key::new(format!("{key}/more")).unwrap() }];
        self.measure("added and removed in turn", &keys[..2048].iter().flat_map(twice).collect::<Vec<_>>()).await;

        let since = Instant::now();
        let (mut cursor, mut read) = (None, 0);
        loop {
            let page = self.store.scan(cursor.take()).await.unwrap();
            read += page.keys.len();
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(read, KEYS);
        self.time("a scan of all keys", since.elapsed());
        let since = Instant::now();
        let held = self.store.holdings(of(0)).await.unwrap().holdings.len();
        assert_eq!(held, KEYS / NODES);
        self.time("the holdings of a tenth, with payloads", since.elapsed());

        for what in ["renew", "poll", "empty batch", "stats", "batch of one"] {
            (self.busy)();
            let since = Instant::now();
            for i in 0..calls {
                match what {
                    "renew" => _ = self.store.renew(leader).await.unwrap(),
                    "poll" => _ = self.store.poll(leader, divider_core::Claim::Lead { term }).await.unwrap(),
                    "empty batch" => _ = self.store.apply(&[]).await.unwrap(),
                    "stats" => _ = self.store.stats().await.unwrap(),
                    _ => _ = self.store.apply(&[add(format!("one-{i}"))]).await.unwrap(),
                }
            }
            let took = since.elapsed() / calls;
            let busy = (self.busy)();
            self.time(what, took);
            if let Some((count, busy)) = busy {
                self.time(&format!("{what}, on the server"), busy / count);
            }
        }
    }
}

pub(crate) fn redis(run: &mut Run<'_>) {
    const BATCH: usize = 256;
    on_a_runtime(async {
        let server = RedisServer::start();
        let store = RedisStore::builder(server.url(), group()).call_time_limit(PATIENCE).build().unwrap();
        // How often scripts were called by hash, and how long that took in all.
        let busy = || {
            let stats = server.info("cmdstat_evalsha:");
            server.cli(&["CONFIG", "RESETSTAT"]);
            let field = |name: &str| stats.split(',').find_map(|field| field.strip_prefix(name)?.parse::<u64>().ok());
            let (calls, micros): (u32, u64) = (field("calls=")? as u32, field("usec=")?);
            Some((calls, Duration::from_micros(micros)))
        };
        let case = format!("calls, batches of {BATCH}");
        let mut caller = Caller { store, batch: BATCH, busy: &busy, report: run.report, of: Store::Redis, case };
        caller.run(5000).await;
        let used = server.info("used_memory:").parse().unwrap();
        caller.add("memory of the server", used, Unit::Bytes);
    });
}

pub(crate) fn postgres(run: &mut Run<'_>) {
    const BATCH: usize = 512;
    on_a_runtime(async {
        let server = prepared(&["max_connections=200"]).await;
        let case = format!("calls, batches of {BATCH}");
        let store = PostgresStore::builder(server.url(), group()).call_time_limit(PATIENCE).build().unwrap();
        let mut caller = Caller { store, batch: BATCH, busy: &|| None, report: run.report, of: Store::Postgres, case };
        caller.run(2000).await;
        let size = server.psql("SELECT pg_database_size('postgres')").parse().unwrap();
        caller.add("size of the database", size, Unit::Bytes);
    });
}

async fn nodes(server: &PostgresServer, count: usize) -> Nodes {
    Nodes::start(count, || PostgresStore::builder(server.url(), group()).build().unwrap()).await
}

/// From the call that adds a key to its start on one of five nodes of this process; and the same for many keys.
pub(crate) fn postgres_nodes(run: &mut Run<'_>) {
    let (mut times, bulk) = on_a_runtime(async {
        let server = prepared(&["max_connections=200"]).await;
        let mut nodes = nodes(&server, 5).await;
        (nodes.add_to_start(500).await, nodes.add(0, KEYS, "many").await)
    });
    let wanted = [("p50", 0.5, None), ("p99", 0.99, None)];
    run.report.times("add → start, 5 nodes of one process", Store::Postgres, &mut times, &wanted);
    let rate = KEYS as f64 / bulk.as_secs_f64();
    let case = "100,000 keys added and started, 5 nodes of one process";
    run.report.add(case, Store::Postgres, "keys", rate, Unit::PerSecond, None);
}

/// What ten idle nodes ask of the server, with few keys and with many.
pub(crate) fn postgres_idle(run: &mut Run<'_>) {
    let rates = on_a_runtime(async {
        let server = prepared(&["max_connections=200"]).await;
        let mut nodes = nodes(&server, NODES).await;
        let count = "SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'";
        let transactions = || server.psql(count).parse::<f64>().unwrap();
        let mut rates = Vec::new();
        for keys in [0, 10_000] {
            nodes.add(0, keys, "idle").await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let (before, since) = (transactions(), Instant::now());
            tokio::time::sleep(Duration::from_secs(20)).await;
            rates.push((keys, (transactions() - before) / since.elapsed().as_secs_f64()));
        }
        rates
    });
    for (keys, rate) in rates {
        let what = format!("transactions, {keys} keys");
        run.report.add("10 idle nodes of one process", Store::Postgres, &what, rate, Unit::PerSecond, None);
    }
}

/// What ten idle nodes leave to be cleaned up; `DIVIDER_IDLE_SECONDS` says after how long, if not a minute.
pub(crate) fn postgres_vacuum(run: &mut Run<'_>) {
    let seconds = number("DIVIDER_IDLE_SECONDS").unwrap_or(60);
    let mut bed = Bed::<PostgresServer>::new(&[]);
    let ids = bed.nodes(NODES, &[]);
    bed.add(ids[0], 10_000, Duration::from_secs(60));
    bed.store.psql("VACUUM ANALYZE");
    let tables = || {
        bed.store.psql(
            "SELECT relname, n_live_tup, n_dead_tup, n_tup_upd, n_tup_hot_upd, autovacuum_count, \
             pg_total_relation_size(relid) FROM pg_stat_user_tables WHERE schemaname = 'divider' ORDER BY relname",
        )
    };
    eprintln!("table|live|dead|updates|hot|autovacuums|bytes\n{}", tables());
    std::thread::sleep(Duration::from_secs(seconds));
    let after = tables();
    eprintln!("after {seconds} s of idling\n{after}");
    let sum = |at: usize| {
        let numbers = after.lines().map(|line| line.split('|').nth(at).unwrap().parse::<f64>().unwrap());
        numbers.sum::<f64>()
    };
    let case = format!("10 nodes, 10,000 keys, idle for {seconds} s");
    let figures = [("dead rows", sum(2)), ("updates", sum(3)), ("of these on their page", sum(4))];
    for (what, value) in figures {
        run.report.add(&case, Store::Postgres, what, value, Unit::Count, None);
    }
    let locks = bed.store.psql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted");
    run.report.add(&case, Store::Postgres, "advisory locks", locks.parse().unwrap(), Unit::Count, None);
}
