//! A group with a million keys: what it costs while nothing happens, how much memory it takes, and how soon another node
//! can lead it.

use std::time::{Duration, Instant};

use divider_examples::line::Kind;
use divider_tests::{
    backend::TestBackend,
    bed::Bed,
    history::ProcessId,
    process::{Usage, now},
};

use crate::{
    Run,
    fleets::{quiet, wait_running},
    report::{Goal, Store, Unit},
};

const NODES: usize = 10;
const KEYS: usize = 1_000_000;
const CASE: &str = "10 nodes, 1,000,000 keys";
const IDLE: Duration = Duration::from_secs(20);
/// How long what a burst leaves to be done takes. PostgreSQL's processes tell of their transactions up to ten seconds after
/// they have become idle.
const SETTLED: Duration = Duration::from_secs(12);

/// What nothing costs, in a second.
struct Idle {
    /// Requests, as the store counts them.
    asked: Option<f64>,
    /// Of one core, for one node.
    cpu: Vec<f64>,
}

fn idle<B: TestBackend>(bed: &Bed<B>, ids: &[ProcessId]) -> Idle {
    std::thread::sleep(SETTLED);
    let cpu = |id: &ProcessId| bed.fleet.usage(*id).cpu;
    let (asked, before, began) = (bed.store.asked(), ids.iter().map(cpu).collect::<Vec<_>>(), Instant::now());
    std::thread::sleep(IDLE);
    let seconds = began.elapsed().as_secs_f64();
    let asked = bed.store.asked().zip(asked).map(|(after, before)| (after - before) / seconds);
    Idle {
        asked,
        cpu: ids.iter().map(cpu).zip(before).map(|(after, before)| (after - before).as_secs_f64() / seconds).collect(),
    }
}

pub(crate) fn run<B: TestBackend>(run: &mut Run<'_>, store: Store) {
    let (mut bed, ids) = quiet::<B>(NODES, &[]);
    bed.fleet.call(ids[0], "keys 10 few/");
    wait_running(&mut bed, 11, Duration::from_secs(10));
    let few = idle(&bed, &ids);
    let base: Vec<Usage> = ids.iter().map(|id| bed.fleet.usage(*id)).collect();

    let began = bed.fleet.call_for(ids[0], &format!("keys {KEYS} key-"), Duration::from_secs(600)).at_ns;
    wait_running(&mut bed, KEYS + 11, Duration::from_secs(600));
    let rate = KEYS as f64 / Duration::from_nanos(now() - began).as_secs_f64();
    run.report.add(CASE, store, "keys added and started", rate, Unit::PerSecond, None);

    let many = idle(&bed, &ids);
    if let Some((few, many)) = few.asked.zip(many.asked) {
        run.report.add(CASE, store, "requests while idle, 10 keys", few, Unit::PerSecond, None);
        run.report.add(CASE, store, "requests while idle", many, Unit::PerSecond, None);
        let more = (many / few - 1.0) * 100.0;
        run.report.add(CASE, store, "that many more", more.abs(), Unit::Percent, Some(Goal::AtMost(5.0)));
    }
    let leader = bed.fleet.wait_leader();
    let of_leader = ids.iter().position(|id| *id == leader).expect("one of them");
    let cpu = many.cpu.iter().sum::<f64>() / NODES as f64;
    run.report.add(CASE, store, "processor while idle, a node", cpu * 100.0, Unit::Percent, Some(Goal::AtMost(0.2)));
    run.report.add(CASE, store, "the same, of the leader", many.cpu[of_leader] * 100.0, Unit::Percent, None);

    // What the program itself keeps of its own keys is in all of these.
    let grown = |at: usize| (bed.fleet.usage(ids[at]).resident.saturating_sub(base[at].resident)) as f64;
    // On Raft the first three hold the group's state themselves.
    let voters = if store == Store::Raft { 3 } else { 0 };
    let others: Vec<f64> = (voters..NODES).filter(|at| *at != of_leader).map(grown).collect();
    let other = others.iter().sum::<f64>() / others.len() as f64;
    let text = format!("key-{}", KEYS - 1).len() as f64;
    let share = KEYS as f64 / NODES as f64;
    run.report.add(
        CASE,
        store,
        "memory of a node that does not lead, for each of its keys",
        other / share,
        Unit::Bytes,
        None,
    );
    if store == Store::Raft {
        let voters: Vec<f64> = (0..3).filter(|at| *at != of_leader).map(grown).collect();
        let voter = voters.iter().sum::<f64>() / voters.len() as f64;
        let each = (voter - other) / KEYS as f64 - text;
        run.report.add(
            CASE,
            store,
            "memory of a voter's replica, for each key beyond its text",
            each,
            Unit::Bytes,
            None,
        );
    }
    let each = (grown(of_leader) - other) / KEYS as f64 - text;
    let goal = Some(Goal::AtMost(250.0));
    run.report.add(CASE, store, "memory of the leader, for each key beyond its text", each, Unit::Bytes, goal);

    let killed = bed.fleet.kill9(leader);
    let left = bed.fleet.running();
    bed.fleet.wait("another node to lead", Duration::from_secs(30), |fleet, said| {
        fleet
            .living()
            .iter()
            .any(|id| said.notes[*id].iter().any(|note| note.event == Kind::Leading && note.at_ns > killed))
    });
    let new = bed.fleet.wait_leader();
    let leads =
        bed.fleet.said().notes[new].iter().rev().find(|note| note.event == Kind::Leading).map(|note| note.at_ns);
    let leads = leads.expect("it has said so");
    let elect = Duration::from_nanos(leads.saturating_sub(killed));
    run.report.time(CASE, store, "kill -9 of the leader until another one leads, lease 3 s", elect, None);
    let asked = bed.fleet.living().into_iter().find(|id| *id != new).expect("there are nine");
    bed.fleet.call(asked, "keys 100 later/");
    while bed.fleet.running() <= left {
        std::thread::sleep(Duration::from_millis(5));
    }
    let first = Duration::from_nanos(now() - leads);
    run.report.time(CASE, store, "from then to its first decision", first, Some(Duration::from_secs(3)));
    wait_running(&mut bed, KEYS + 111, Duration::from_secs(120));
    let all = Duration::from_nanos(now() - killed);
    run.report.time(CASE, store, "kill -9 of the leader until all its keys run", all, None);
}
