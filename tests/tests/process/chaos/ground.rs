//! What chaos does to each store.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use divider_conformance::Dice;
use divider_tests::{
    disk::SmallDisk,
    netns::Netns,
    postgres::PostgresServer,
    process::Proxy,
    raft::{Voters, free_addresses},
    redis::RedisServer,
};

use super::kind::{Kind, Needs};
use crate::backend::{Server, TestBackend};

/// Places for nodes, beside the hub, where everything else is.
const PLACES: u8 = 5;
/// Proxies before a server.
const PROXIES: usize = 3;

/// What this machine lets us have.
pub(crate) struct Terrain {
    pub(crate) network: Option<Netns>,
    /// One for each part of the store, if there are any.
    pub(crate) disks: Vec<SmallDisk>,
    /// What there is not, and why.
    pub(crate) lacks: Vec<(Needs, String)>,
}

impl Terrain {
    pub(crate) fn new<B: Ground>() -> Self {
        let mut lacks = Vec::new();
        let mut lacking = |needs, error: String| lacks.push((needs, error));
        let network = Netns::try_new(PLACES).map_err(|error| lacking(Needs::Namespaces, error.to_string())).ok();
        let (count, megabytes) = B::DISKS;
        let disks = (0..count).map(|_| SmallDisk::new(megabytes)).collect::<Result<Vec<_>, _>>();
        let disks = disks.map_err(|error| lacking(Needs::Disk, error.to_string())).unwrap_or_default();
        Self { network, disks, lacks }
    }

    /// The address that all nodes reach.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.network.as_ref().map_or(Ipv4Addr::LOCALHOST, |network| network.address(network.hub()))
    }

    fn disk(&self, at: usize) -> PathBuf {
        self.disks.get(at).map_or_else(std::env::temp_dir, |disk| disk.path().to_owned())
    }
}

/// How a node reaches the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Direct,
    /// By a proxy.
    Proxy(usize),
    /// From a network namespace.
    Place(usize),
    /// It is a part of the store, behind the proxy of the same number, and in the namespace of the same number.
    Voter(usize),
}

/// What came of a fault.
pub(crate) enum Struck {
    Done,
    /// It lasts for so long, and is then to be mended.
    Lasts(Duration),
    /// Not at this moment.
    No,
}

impl From<bool> for Struck {
    fn from(done: bool) -> Self {
        if done { Self::Done } else { Self::No }
    }
}

/// A store that chaos can be done to. Everything is called on a thread in the hub of the network, if there is one.
pub(crate) trait Ground: TestBackend {
    /// What its kinds of fault may need.
    const HAS: &'static [Needs];
    /// How many of the nodes are the store.
    const VOTERS: usize = 0;
    /// How many disks it wants, and of how many megabytes.
    const DISKS: (usize, u32);

    /// How long a node may take to join that began to in the middle of a fault.
    const START: Duration = Duration::from_secs(20);

    /// One that keeps what it has acknowledged, unless it is to be made to forget, with the proxies before it.
    fn on(terrain: &Terrain) -> (Self, Vec<Proxy>);

    /// Where a node on this route finds it.
    fn url_for(&self, route: Route, terrain: &Terrain, proxies: &[Proxy]) -> String;

    /// Does something to the store itself.
    fn strike(&mut self, kind: Kind, dice: &mut Dice, terrain: &Terrain) -> Struck;

    /// Puts the store right again after such a fault, whatever state it is in.
    fn mend(&mut self, kind: Kind, terrain: &Terrain);
}

/// Faults that any server can have.
fn strike<B: Server>(server: &mut B, kind: Kind, dice: &mut Dice) -> Struck {
    let ms = Duration::from_millis;
    match kind {
        Kind::ServerKill => {
            server.kill9();
            server.restart();
            Struck::Done
        }
        Kind::ServerGone => {
            server.kill9();
            Struck::Lasts(ms(dice.pick(&[1200, 1600, 2500])))
        }
        Kind::ServerStop => {
            server.stop();
            server.restart();
            Struck::Done
        }
        Kind::ServerFreezeBriefly => {
            server.freeze();
            Struck::Lasts(ms(dice.pick(&[50, 300, 700])))
        }
        Kind::ServerFreezeLong => {
            server.freeze();
            Struck::Lasts(ms(dice.pick(&[1000, 1200, 2500])))
        }
        Kind::CutHints => (server.cut_hints() > 0).into(),
        Kind::CutAll => (server.cut_all() > 0).into(),
        Kind::CutOne => server.cut_one(dice.below(1000)).into(),
        other => unreachable!("{other:?} is nothing that every server can have"),
    }
}

fn mend<B: Server>(server: &mut B, kind: Kind, terrain: &Terrain) {
    match kind {
        Kind::ServerGone => server.restart(),
        Kind::ServerFreezeBriefly | Kind::ServerFreezeLong => server.thaw(),
        _ => {
            terrain.disks.iter().for_each(SmallDisk::free);
            // It may have got over it.
            if !server.is_up() {
                server.restart();
            }
        }
    }
}

fn url_for<B: Server>(server: &B, route: Route, terrain: &Terrain, proxies: &[Proxy]) -> String {
    let here = Ipv4Addr::LOCALHOST.to_string();
    match route {
        Route::Proxy(at) => server.url_by(&here, proxies[at].port()),
        Route::Place(_) => server.url_by(&terrain.address().to_string(), server.port()),
        Route::Direct | Route::Voter(_) => server.url_by(&here, server.port()),
    }
}

fn proxies(port: u16) -> Vec<Proxy> {
    (0..PROXIES).map(|_| Proxy::before(port)).collect()
}

impl Ground for RedisServer {
    const HAS: &'static [Needs] = &[Needs::Server, Needs::Redis];
    const DISKS: (usize, u32) = (1, 256);

    fn on(terrain: &Terrain) -> (Self, Vec<Proxy>) {
        let lasting = ["--appendonly", "yes", "--appendfsync", "always"];
        let open = ["--bind", "0.0.0.0", "--protected-mode", "no"];
        let server = Self::with_in(&terrain.disk(0), &[lasting, open].concat());
        let proxies = proxies(server.port());
        (server, proxies)
    }

    fn url_for(&self, route: Route, terrain: &Terrain, proxies: &[Proxy]) -> String {
        url_for(self, route, terrain, proxies)
    }

    fn strike(&mut self, kind: Kind, dice: &mut Dice, terrain: &Terrain) -> Struck {
        match kind {
            Kind::ClientPause => {
                let ms = dice.pick(&["200", "700", "1300"]);
                self.cli(&["CLIENT", "PAUSE", ms, dice.pick(&["ALL", "WRITE"])]);
                Struck::Done
            }
            Kind::ScriptFlush => {
                self.cli(&["SCRIPT", "FLUSH"]);
                Struck::Done
            }
            Kind::BusyScript => {
                let busy = "local function now() local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 end \
                            local till = now() + ARGV[1] while now() < till do end return 1";
                let done = self.try_cli(&["EVAL", busy, "0", dice.pick(&["100", "400", "900"])]);
                done.status.success().into()
            }
            Kind::Emptied => {
                self.cli(&["FLUSHALL"]);
                Struck::Done
            }
            Kind::EmptiedByRestart => {
                self.kill9();
                self.erase();
                self.restart();
                Struck::Done
            }
            Kind::DiskFull => {
                let ballast = "x".repeat(10_000);
                let refuses = || (0..5).any(|_| !self.try_cli(&["SET", "ballast", &ballast]).status.success());
                fill_disk(refuses, dice, terrain)
            }
            other => strike(self, other, dice),
        }
    }

    fn mend(&mut self, kind: Kind, terrain: &Terrain) {
        mend(self, kind, terrain);
    }
}

/// Leaves the server's disk without room, if the server then refuses to write.
fn fill_disk(refuses: impl FnOnce() -> bool, dice: &mut Dice, terrain: &Terrain) -> Struck {
    terrain.disks[0].fill();
    if refuses() {
        return Struck::Lasts(Duration::from_millis(dice.pick(&[100, 500, 1500])));
    }
    terrain.disks[0].free();
    Struck::No
}

impl Ground for PostgresServer {
    const HAS: &'static [Needs] = &[Needs::Server, Needs::Postgres];
    const DISKS: (usize, u32) = (1, 320);
    /// A migration whose packets have vanished gives up after a minute, and is tried again.
    const START: Duration = Duration::from_secs(80);

    fn on(terrain: &Terrain) -> (Self, Vec<Proxy>) {
        let server = Self::small_in(&terrain.disk(0), &["listen_addresses=*"]);
        server.trust("10.0.0.0/8");
        let proxies = proxies(server.port());
        (server, proxies)
    }

    fn url_for(&self, route: Route, terrain: &Terrain, proxies: &[Proxy]) -> String {
        url_for(self, route, terrain, proxies)
    }

    fn strike(&mut self, kind: Kind, dice: &mut Dice, terrain: &Terrain) -> Struck {
        let done = |sql: &str| self.try_psql("postgres", sql).status.success();
        match kind {
            Kind::CancelOne => {
                let which = "FROM pg_stat_activity WHERE application_name LIKE 'divider%' AND state = 'active'";
                let one =
                    format!("SELECT pg_cancel_backend(pid) {which} ORDER BY md5(pid::text || '{}')", dice.below(1000));
                // Most are idle at most moments.
                let cancelled = (0..50).any(|_| {
                    let output = self.try_psql("postgres", &format!("{one} LIMIT 1"));
                    output.stdout.starts_with(b"t")
                });
                cancelled.into()
            }
            Kind::TablesLocked => {
                let tables = "divider.groups, divider.sessions, divider.beats, divider.keys, divider.changes, \
                              divider.messages";
                let seconds = dice.pick(&["0.2", "0.7", "1.3"]);
                done(&format!("BEGIN; LOCK TABLE {tables}; SELECT pg_sleep({seconds}); COMMIT")).into()
            }
            Kind::VacuumFull => done("VACUUM FULL").into(),
            Kind::DiskFull => {
                // More than any space for the log that was set aside before.
                let log = "SELECT pg_logical_emit_message(true, 'ballast', repeat('x', 900000)) \
                           FROM generate_series(1, 40)";
                fill_disk(|| !done(log), dice, terrain)
            }
            other => strike(self, other, dice),
        }
    }

    fn mend(&mut self, kind: Kind, terrain: &Terrain) {
        mend(self, kind, terrain);
    }
}

impl Ground for Voters {
    const HAS: &'static [Needs] = &[Needs::Voters];
    const VOTERS: usize = 3;
    const DISKS: (usize, u32) = (3, 64);

    fn on(terrain: &Terrain) -> (Self, Vec<Proxy>) {
        let addresses: Vec<SocketAddr> = match &terrain.network {
            Some(network) => (0..3).map(|at| SocketAddr::from((network.address(at), 7400))).collect(),
            None => free_addresses(3).iter().map(|address| address.parse().expect("an address")).collect(),
        };
        let here = IpAddr::from(terrain.address());
        let proxies: Vec<_> = addresses.iter().map(|address| Proxy::between(here, *address)).collect();
        let reached = proxies.iter().map(|proxy| format!("{here}:{}", proxy.port())).collect();
        let addresses = addresses.iter().map(SocketAddr::to_string).collect();
        (Self::behind(addresses, reached, &[0, 1, 2].map(|at| terrain.disk(at))), proxies)
    }

    fn url_for(&self, route: Route, _: &Terrain, _: &[Proxy]) -> String {
        match route {
            Route::Voter(at) => Self::url(self, at),
            _ => self.client_url(),
        }
    }

    /// Whatever happens to it happens to its nodes.
    fn strike(&mut self, kind: Kind, _: &mut Dice, _: &Terrain) -> Struck {
        unreachable!("{kind:?}: there is no server")
    }

    fn mend(&mut self, _: Kind, _: &Terrain) {}
}
