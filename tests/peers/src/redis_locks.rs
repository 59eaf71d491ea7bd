//! `SET key node NX PX`, renewed by a script that looks whose it is.

use redis::{AsyncCommands, Client, aio::MultiplexedConnection};

use crate::locks::{LEASE, Locks, LocksNode};

const KEYS: &str = "peers:keys";

pub struct Redis(Client);

pub struct Node {
    connection: MultiplexedConnection,
    name: String,
}

impl Redis {
    pub fn new(url: &str) -> Self {
        Self(Client::open(url).unwrap())
    }

    async fn connect(&self) -> MultiplexedConnection {
        self.0.get_multiplexed_async_connection().await.unwrap()
    }
}

impl Locks for Redis {
    type Node = Node;

    async fn node(&self, name: usize) -> Node {
        Node { connection: self.connect().await, name: format!("node-{name}") }
    }

    async fn add(&self, keys: Vec<String>) {
        let _: () = self.connect().await.sadd(KEYS, keys).await.unwrap();
    }

    async fn asked(&self) -> f64 {
        let info: String = redis::cmd("INFO").arg("stats").query_async(&mut self.connect().await).await.unwrap();
        info.lines().find_map(|line| line.strip_prefix("total_commands_processed:")?.trim().parse().ok()).unwrap()
    }
}

impl LocksNode for Node {
    async fn look(&mut self, held: &[String], share: usize) -> Vec<String> {
        let lease = LEASE.as_millis() as u64;
        let lock = |key: &String| format!("peers:lock:{key}");
        let renew = redis::Script::new(
            "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0",
        );
        for some in held.chunks(500) {
            let mut pipe = redis::pipe();
            pipe.load_script(&renew).ignore();
            some.iter().for_each(|key| _ = pipe.invoke_script(renew.key(lock(key)).arg(&self.name).arg(lease)));
            let _: Vec<i64> = pipe.query_async(&mut self.connection).await.unwrap();
        }
        let all: Vec<String> = self.connection.smembers(KEYS).await.unwrap();
        let mine: std::collections::HashSet<&String> = held.iter().collect();
        let wanted: Vec<String> = all.into_iter().filter(|key| !mine.contains(key)).collect();
        let mut taken = Vec::new();
        for some in wanted.chunks(500) {
            let room = share.saturating_sub(held.len() + taken.len());
            if room == 0 {
                break;
            }
            let locks: Vec<String> = some.iter().map(lock).collect();
            let owners: Vec<Option<String>> = self.connection.mget(locks).await.unwrap();
            let free: Vec<_> = some.iter().zip(owners).filter(|(_, owner)| owner.is_none()).take(room).collect();
            if free.is_empty() {
                continue;
            }
            let mut pipe = redis::pipe();
            for (key, _) in &free {
                pipe.cmd("SET").arg(lock(key)).arg(&self.name).arg("NX").arg("PX").arg(lease);
            }
            let got: Vec<Option<String>> = pipe.query_async(&mut self.connection).await.unwrap();
            taken.extend(free.iter().zip(got).filter(|(_, got)| got.is_some()).map(|((key, _), _)| (*key).clone()));
        }
        taken
    }
}
