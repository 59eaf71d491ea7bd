//! On PostgreSQL: what holds everywhere, and what only a database does.

use std::time::Duration;

use divider_examples::line::Kind;
use divider_tests::{
    history::quantile,
    postgres::PostgresServer,
    process::{example, now},
};

use super::{Bed, deaths, figure, on_any_server, outages, pause};

on_any_server!(PostgresServer);

/// The backends of the nodes, apart from whoever asks.
const BACKENDS: &str = "FROM pg_stat_activity WHERE application_name = 'divider'";

#[test]
fn with_a_lock_delay_of_200_ms_the_keys_of_a_killed_node_run_elsewhere_within_700() {
    let args = ["--lock-delay-ms", "200"];
    deaths::kill::<PostgresServer>(Duration::from_secs(3), 500, Duration::from_millis(700), &args);
}

#[test]
fn leadership_moves_within_half_a_second_of_the_leaders_death() {
    let mut bed = Bed::<PostgresServer>::new(&[]);
    bed.nodes(3, &[]);
    let mut times = Vec::new();
    for _ in 0..10 {
        let leader = bed.fleet.wait_leader();
        let killed = bed.fleet.kill9(leader);
        bed.fleet.wait("another to lead", Duration::from_secs(5), |fleet, _| fleet.living().len() == 2);
        let led = |said: &divider_tests::process::Said| {
            let notes = said.notes.iter().flatten();
            notes.filter(|note| note.event == Kind::Leading && note.at_ns > killed).map(|note| note.at_ns).min()
        };
        bed.fleet.wait("another to lead", Duration::from_secs(5), |_, said| led(said).is_some());
        times.push(Duration::from_nanos(led(&bed.fleet.said()).expect("somebody leads") - killed));
        bed.spawn_ready(1, &[]);
    }
    figure("postgres: kill -9 of the leader until another one leads", &mut times);
    assert!(quantile(&mut times, 1.0) <= bed.fleet.allowing(Duration::from_millis(500)));
}

/// The administrator ends connections one by one, of whatever kind.
#[test]
fn any_connection_is_terminated_and_nothing_is_lost() {
    let mut bed = outages::bed(<PostgresServer as super::backend::TestBackend>::start);
    let starts = bed.fleet.said().history.starts();
    let mut kinds = std::collections::BTreeMap::new();
    for round in 0..60 {
        let one =
            format!("SELECT pid, substring(query for 60) {BACKENDS} ORDER BY md5(pid::text || '{round}') LIMIT 1");
        let row = bed.store.psql(&one);
        let (pid, query) = row.split_once('|').expect("the nodes have connections");
        *kinds.entry(query.split_whitespace().take(6).collect::<Vec<_>>().join(" ")).or_insert(0) += 1;
        bed.store.psql(&format!("SELECT pg_terminate_backend({pid})"));
        bed.fleet.call(round % 3, &format!("add more-{round}"));
        pause(50);
    }
    println!("figure: postgres: connections terminated, by their last statement: {kinds:#?}");
    bed.fleet.wait_all_run(outages::KEYS + 60, Duration::from_secs(5));
    assert_eq!(bed.fleet.said().history.starts(), starts + 60, "keys were moved");
}

#[test]
fn the_server_is_stopped_immediately_and_started_after_every_lease_has_run_out() {
    let mut bed = outages::bed(<PostgresServer as super::backend::TestBackend>::start);
    let gone = now();
    bed.store.stop_immediate();
    pause(3000);
    bed.store.restart();
    outages::wait_all_back(&bed, "stopped immediately, and started after more than a lease", gone, now());
}

#[test]
fn the_server_is_paused_for_half_a_minute() {
    let bed = outages::bed(<PostgresServer as super::backend::TestBackend>::start);
    let gone = now();
    bed.store.freeze();
    pause(30_000);
    bed.store.thaw();
    outages::wait_all_back(&bed, "frozen for 30 s", gone, now());
}

#[test]
fn the_example_divides_the_tenants_of_a_table() {
    let server = PostgresServer::start();
    let output = std::process::Command::new(example("tenants")).arg(server.url()).output().expect("it can be started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let parts: Vec<_> = said.split("\n\n").collect();
    let [_, found, changed, left] = parts[..] else { panic!("{said}") };
    let lines =
        |part: &str, name: &str| part.lines().filter(|line| line.contains(&format!("{name} serves tenant"))).count();
    assert_eq!((lines(found, "anna"), lines(found, "bert"), found.matches("tenant-").count()), (1, 1, 12), "{said}");
    assert!(changed.contains("tenant-new (4)") && !changed.contains("tenant-1 "), "{said}");
    assert_eq!((lines(left, "anna"), lines(left, "bert"), left.matches("tenant-").count()), (1, 0, 12), "{said}");
}
