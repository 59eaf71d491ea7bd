//! What is done to nodes and to their networks.

use std::time::{Duration, Instant};

use divider_conformance::Dice;
use divider_tests::{history::ProcessId, process::Network};

use super::{
    Active, COME, Chaos, Kind, NODES, What,
    ground::{Ground, Route, Struck},
};
use crate::pause;

impl<B: Ground> Chaos<'_, B> {
    /// Does it, if it can be done now, and counts it.
    pub(super) fn step(&mut self, kind: Kind) {
        self.note(&format!("now: {}", kind.name()));
        let done = match kind {
            Kind::KillLeader => self.leader().is_some_and(|leader| self.kill(kind, &[leader])),
            Kind::KillNode => self.other().is_some_and(|id| self.kill(kind, &[id])),
            Kind::KillHalf => {
                let mut living = self.living();
                self.dice.shuffle(&mut living);
                self.kill(kind, &living[..living.len() / 2])
            }
            Kind::KillAll => self.kill(kind, &self.living()),
            Kind::KillDraining => self.kill_draining(),
            Kind::CrashLoop => self.crash_loop(),
            Kind::FreezeBriefly => self.other().is_some_and(|id| self.freeze(kind, &[id], &[100, 500, 760, 900])),
            Kind::FreezeLong => self.other().is_some_and(|id| self.freeze(kind, &[id], &[1010, 1100, 1500, 2500])),
            Kind::FreezeLeader => {
                self.leader().is_some_and(|leader| self.freeze(kind, &[leader], &[1010, 1100, 1500, 2500]))
            }
            Kind::DrainNode => {
                let leader = self.leader();
                self.drain(|id| Some(id) != leader)
            }
            Kind::DrainLeader => {
                let leader = self.leader();
                self.drain(|id| Some(id) == leader)
            }
            Kind::RollingRestart => self.rolling_restart(),
            Kind::Join => self.join(&[]),
            Kind::JoinSameName => {
                let living = self.living();
                let name = self.dice.one_of(&living).map(|id| self.names[&id].clone());
                name.is_some_and(|name| self.join(&["--node", &name]))
            }
            Kind::JoinSlow => {
                let delay = self.dice.pick(&["5", "300", "1200"]);
                self.join(&["--confirm-delay-ms", delay])
            }
            Kind::JoinPicky => {
                let balance = self.dice.pick(&[["--tolerance", "0.1"], ["--max-in-flight", "100%"]]);
                let limit = self.dice.pick(&[["--capacity", "60"], ["--worker-threads", "1"]]);
                self.join(&[balance, limit].concat())
            }
            Kind::BlockBriefly => self.tell(|dice| format!("block {}", dice.pick(&[100, 400, 700]))),
            Kind::BlockLong => self.tell(|dice| format!("block {}", dice.pick(&[1500, 2500]))),
            Kind::Affinity => self.tell(|dice| format!("affinity {}", dice.pick(&[300, 500, 1000, 3000]))),
            Kind::NoAffinity => self.tell(|_| "affinity 0".into()),
            Kind::GiveUps => self.say_of_running("giveup", ""),
            Kind::Completions => self.say_of_running("complete", "come-"),
            Kind::Removals => (0..10).all(|_| self.tell(|dice| format!("remove come-{}", dice.below(COME as u64)))),
            Kind::Additions => self.tell(|_| format!("keys {COME} come-")) && self.tell(|_| "rebalance".into()),
            Kind::TwoVoters | Kind::AllVoters => {
                let voters = self.some_voters(kind == Kind::AllVoters);
                !voters.is_empty() && self.kill(kind, &voters)
            }
            Kind::TwoVotersFrozen | Kind::AllVotersFrozen => {
                let voters = self.some_voters(kind == Kind::AllVotersFrozen);
                !voters.is_empty() && self.freeze(kind, &voters, &[300, 900, 1500])
            }
            Kind::Silent => self.wire(kind, Network::Silent, &[200, 900, 1600, 2500]),
            Kind::NoAnswers => self.wire(kind, Network::NoAnswers, &[200, 900, 1600, 2500]),
            Kind::NoRequests => self.wire(kind, Network::NoRequests, &[200, 900, 1600, 2500]),
            Kind::Swallowing => self.wire(kind, Network::Swallowing, &[200, 900, 1600]),
            Kind::Slow => {
                let by = self.dice.pick(&[5, 30, 100]);
                self.wire(kind, Network::Slow(Duration::from_millis(by)), &[1000, 2500])
            }
            Kind::Cut => self.wire(kind, Network::Cut, &[100, 900, 1600]),
            Kind::DeadEnd => self.wire(kind, Network::DeadEnd, &[200, 900, 1600, 2500]),
            Kind::Torn => self.wire(kind, Network::Torn, &[100, 300, 900]),
            Kind::Partition | Kind::PartitionTo | Kind::PartitionFrom => self.partition(kind),
            Kind::DiskFull if B::VOTERS > 0 => self.fill_disk(),
            _ => self.strike_store(kind),
        };
        if done {
            self.count(kind);
        }
    }

    fn begin(&mut self, active: Active) {
        self.note(&format!("{:?} for {:?}", active.what, active.until - Instant::now()));
        self.active.push(active);
    }

    fn lasts(&mut self, kind: Kind, time: Duration, what: What) {
        self.begin(Active { kind, until: Instant::now() + time, what, counts: true });
    }

    /// One that does not lead, and can be told something.
    fn other(&mut self) -> Option<ProcessId> {
        let leader = self.fleet.leader();
        let others: Vec<_> = self.awake().into_iter().filter(|id| Some(*id) != leader).collect();
        self.dice.one_of(&others)
    }

    fn some_voters(&mut self, all: bool) -> Vec<ProcessId> {
        let mut voters: Vec<_> = (0..B::VOTERS).filter_map(|at| self.on_route(Route::Voter(at))).collect();
        if voters.len() < B::VOTERS {
            return Vec::new();
        }
        self.dice.shuffle(&mut voters);
        voters.truncate(if all { B::VOTERS } else { 2 });
        voters
    }

    // ---- processes

    fn kill(&mut self, kind: Kind, ids: &[ProcessId]) -> bool {
        for id in ids {
            let at = self.fleet.kill9(*id);
            self.note(&format!("{id}: killed -9"));
            self.active.retain(|active| active.what != What::Frozen(*id));
            self.losses.push((kind, *id, at));
        }
        !ids.is_empty()
    }

    fn kill_draining(&mut self) -> bool {
        let awake = self.awake();
        let Some(id) = self.dice.one_of(&awake) else { return false };
        self.note(&format!("{id}: SIGTERM"));
        self.fleet.begin_to_end(id);
        let wait = self.dice.pick(&[0, 1, 3, 10, 40]);
        pause(wait);
        self.kill(Kind::KillDraining, &[id])
    }

    fn crash_loop(&mut self) -> bool {
        for _ in 0..4 {
            let route = self.a_route();
            let id = self.spawn(route, &["--node", "crasher"]);
            let wait = self.dice.pick(&[50, 100, 250, 400]);
            pause(wait);
            self.kill(Kind::CrashLoop, &[id]);
        }
        true
    }

    fn freeze(&mut self, kind: Kind, ids: &[ProcessId], ms: &[u64]) -> bool {
        let until = Instant::now() + Duration::from_millis(self.dice.pick(ms));
        let mut counts = true;
        for id in ids.iter().filter(|id| !self.is_frozen(**id)).copied().collect::<Vec<_>>() {
            self.fleet.pause(id);
            self.begin(Active { kind, until, what: What::Frozen(id), counts });
            counts = false;
        }
        false
    }

    /// One of which this holds, and that nothing keeps from draining.
    fn drain(&mut self, which: impl Fn(ProcessId) -> bool) -> bool {
        let ids: Vec<_> = self.unharmed().into_iter().filter(|id| which(*id)).collect();
        let Some(id) = self.dice.one_of(&ids) else { return false };
        self.note(&format!("{id}: SIGTERM"));
        self.fleet.terminate(id);
        true
    }

    /// As a deployment does: one after the other, and the next when the last one is ready.
    fn rolling_restart(&mut self) -> bool {
        self.lift_all();
        for id in self.living() {
            self.note(&format!("{id}: restarts"));
            self.fleet.terminate(id);
            let new = self.spawn(self.routes[&id], &[]);
            self.fleet.within(Duration::from_secs(5), |_, said| {
                said.notes[new].iter().any(|note| note.event == divider_examples::line::Kind::Ready)
            });
        }
        true
    }

    fn join(&mut self, args: &[&str]) -> bool {
        let voters = B::VOTERS;
        let clients: Vec<_> =
            self.living().into_iter().filter(|id| !matches!(self.routes[id], Route::Voter(_))).collect();
        if clients.len() + voters > NODES.1 {
            // Somebody makes room.
            let id = self.dice.pick(&clients);
            self.kill(Kind::KillNode, &[id]);
            self.count(Kind::KillNode);
        }
        let route = self.a_route();
        self.spawn(route, args);
        true
    }

    fn tell(&mut self, command: impl Fn(&mut Dice) -> String) -> bool {
        let awake = self.awake();
        let Some(id) = self.dice.one_of(&awake) else { return false };
        let command = command(&mut self.dice);
        self.note(&format!("{id}: {command}"));
        self.fleet.send(id, &command);
        true
    }

    /// Says something about some of the keys that a node runs.
    fn say_of_running(&mut self, word: &str, prefix: &str) -> bool {
        let awake = self.awake();
        let Some(id) = self.dice.one_of(&awake) else { return false };
        let said = self.fleet.said();
        let running = said.history.running(|other| other == id);
        let mut keys: Vec<_> = running
            .into_iter()
            .filter(|(key, owners)| !owners.is_empty() && key.starts_with(prefix))
            .map(|(key, _)| key.to_owned())
            .collect();
        drop(said);
        keys.sort_unstable();
        self.dice.shuffle(&mut keys);
        keys.truncate(20);
        self.note(&format!("{id}: {word} {keys:?}"));
        for key in &keys {
            self.fleet.send(id, &format!("{word} {key}"));
        }
        !keys.is_empty()
    }

    // ---- networks

    fn wire(&mut self, kind: Kind, network: Network, ms: &[u64]) -> bool {
        let route = if B::VOTERS > 0 { Route::Voter } else { Route::Proxy };
        let fine: Vec<_> = (0..self.proxies.len()).filter(|at| !self.is_wire_harmed(*at)).collect();
        let used: Vec<_> = fine.iter().filter(|at| self.on_route(route(**at)).is_some()).copied().collect();
        let Some(at) = self.dice.one_of(&used) else {
            // So that there is one for the next time.
            if let Some(at) = fine.first().filter(|_| B::VOTERS == 0) {
                self.spawn(Route::Proxy(*at), &[]);
            }
            return false;
        };
        let (before, ms) = (self.proxies[at].harmed(), self.dice.pick(ms));
        self.proxies[at].set(network);
        self.lasts(kind, Duration::from_millis(ms), What::Wire(at, before));
        false
    }

    fn partition(&mut self, kind: Kind) -> bool {
        let network = self.terrain.network.as_ref().expect("it is listed only where there are networks");
        let hub = network.hub();
        // A heal heals everything.
        if (0..hub).any(|at| self.is_cut_off(at)) {
            return false;
        }
        let taken: Vec<_> = self
            .living()
            .into_iter()
            .filter_map(|id| match self.routes[&id] {
                Route::Place(at) | Route::Voter(at) => Some(at),
                Route::Direct | Route::Proxy(_) => None,
            })
            .collect();
        let Some(at) = self.dice.one_of(&taken) else {
            self.spawn(Route::Place(B::VOTERS), &[]);
            return false;
        };
        match kind {
            Kind::PartitionTo => network.cut_one_way(at, hub),
            Kind::PartitionFrom => network.cut_one_way(hub, at),
            _ => network.cut(at, hub),
        }
        let ms = self.dice.pick(&[300, 900, 1600, 3000]);
        self.lasts(kind, Duration::from_millis(ms), What::Partition(at));
        false
    }

    // ---- the store

    /// One voter's.
    fn fill_disk(&mut self) -> bool {
        let voters: Vec<_> =
            (0..B::VOTERS).filter(|at| !self.is_disk_full(*at) && self.on_route(Route::Voter(*at)).is_some()).collect();
        let Some(at) = self.dice.one_of(&voters) else { return false };
        self.terrain.disks[at].fill();
        // So that there is something to be written.
        self.tell(|_| format!("keys {COME} come-"));
        let ms = self.dice.pick(&[500, 1500, 2500]);
        self.lasts(Kind::DiskFull, Duration::from_millis(ms), What::Disk(at));
        false
    }

    fn strike_store(&mut self, kind: Kind) -> bool {
        // One thing at a time.
        if self.active.iter().any(|active| active.what == What::Store) {
            return false;
        }
        match self.store.strike(kind, &mut self.dice, self.terrain) {
            Struck::Done => {
                if matches!(kind, Kind::Emptied | Kind::EmptiedByRestart) {
                    self.forgot = true;
                    self.tell(|_| format!("keys {} keep-", super::KEEP));
                    self.tell(|_| format!("keys {COME} come-"));
                }
                true
            }
            Struck::Lasts(time) => {
                self.lasts(kind, time, What::Store);
                false
            }
            Struck::No => false,
        }
    }
}
