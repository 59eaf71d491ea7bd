//! Whatever goes wrong for a while: once it is over, every key runs again.

use divider_conformance::{Call, Fault};

use super::*;

const KEYS: usize = 24;

async fn all_runs(what: &str, programs: &[Program]) {
    let running = async || programs.iter().map(Program::running).sum::<usize>() == KEYS;
    until(&format!("all keys to run {what}"), running).await;
}

/// Three nodes. One of them, or all, meet a fault in some calls, or in all, for a lease and a half.
async fn everything_runs_after(fault: Fault, name: &str, when: fn(&Call<'_>) -> bool) {
    for all in [false, true] {
        let store = MemoryStore::new();
        let (mut programs, mut orders) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let (node, faults) = faulty(&store, |config| config.lease = Duration::from_millis(300));
            node.start().await.unwrap();
            programs.push(Program::over(node));
            orders.push(faults);
        }
        let keys = work((0..KEYS).map(|key| format!("k{key}")));
        programs[0].node.add_work(keys).await.unwrap();
        let what = format!("with {fault:?} in {name} on {}", if all { "all" } else { "one" });
        all_runs("before", &programs).await;
        // Work changes hands meanwhile: it is confirmed as it ends, completed as it runs, and given up.
        for program in &programs {
            program.winds_up(true);
            let running: Vec<Assignment> = program.running.lock().values().take(6).cloned().collect();
            for start in &running[..2] {
                program.node.send_stop_processing(&start.key, start.token).await.unwrap();
            }
            until("the stops", async || *program.stops.lock() >= 2).await;
        }
        for faults in orders.iter().skip(if all { 0 } else { 2 }) {
            faults.always(fault, when);
            faults.cut_hints();
        }
        for program in &programs {
            program.winds_up(false);
            let running: Vec<Assignment> = program.running.lock().values().take(4).cloned().collect();
            for (nth, start) in running.into_iter().enumerate() {
                let node = program.node.clone();
                tokio::spawn(async move {
                    match nth % 2 {
                        0 => node.send_stop_processing(&start.key, start.token).await,
                        _ => node.complete(&start.key, start.token).await,
                    }
                });
            }
        }
        tokio::time::sleep(Duration::from_millis(450)).await;
        orders.iter().for_each(Faults::lift);
        // What was completed is work again.
        let again = async || programs[0].node.add_work(work((0..KEYS).map(|key| format!("k{key}")))).await.is_ok();
        let all = async || again().await && programs.iter().map(Program::running).sum::<usize>() == KEYS;
        until(&format!("all keys to run {what}"), all).await;
        all_runs(&what, &programs).await;
    }
}

fn everything(_: &Call<'_>) -> bool {
    true
}

fn all_but_renewals(call: &Call<'_>) -> bool {
    *call != Call::Renew
}

fn writing(call: &Call<'_>) -> bool {
    matches!(call, Call::Apply(_))
}

fn reading(call: &Call<'_>) -> bool {
    matches!(call, Call::Holdings | Call::Scan | Call::Changes | Call::Beats)
}

fn subscribing(call: &Call<'_>) -> bool {
    matches!(call, Call::Hints(_))
}

fn polling(call: &Call<'_>) -> bool {
    matches!(call, Call::Poll(_))
}

async fn everything_runs_after_any(fault: Fault) {
    everything_runs_after(fault, "everything", everything).await;
    everything_runs_after(fault, "all but renewals", all_but_renewals).await;
    everything_runs_after(fault, "writing", writing).await;
    everything_runs_after(fault, "reading", reading).await;
    everything_runs_after(fault, "subscribing", subscribing).await;
    everything_runs_after(fault, "polling", polling).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_runs_again_after_calls_were_answered_as_not_allowed() {
    everything_runs_after_any(Fault::Misconfigured).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_runs_again_after_answers_could_not_be_read() {
    everything_runs_after_any(Fault::Corrupt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_runs_again_after_calls_were_refused() {
    everything_runs_after_any(Fault::Refuse).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_runs_again_after_answers_were_lost() {
    everything_runs_after_any(Fault::LoseReply).await;
}

/// A store answers each call within its own time limit, so none hangs for ever; this one is later than the lease.
#[tokio::test(flavor = "multi_thread")]
async fn everything_runs_again_after_calls_hung_for_longer_than_a_lease() {
    everything_runs_after_any(Fault::DelayCall(Duration::from_millis(400))).await;
}
