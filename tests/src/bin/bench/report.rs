//! The figures, and the table that is made of them.

use std::{fmt, time::Duration};

use divider_tests::history::quantile;
use serde_json::{Value, json};

/// Where a figure was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    None,
    Memory,
    Redis,
    Postgres,
    Raft,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "",
            Self::Memory => "memory",
            Self::Redis => "redis",
            Self::Postgres => "postgres",
            Self::Raft => "raft",
        })
    }
}

/// In what a figure is given. Times are kept in seconds, and shown in what suits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    PerSecond,
    Bytes,
    Ratio,
    Percent,
    Count,
}

/// What a figure is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Debug)]
struct Figure {
    case: String,
    store: Store,
    what: String,
    value: f64,
    unit: Unit,
    goal: Option<Goal>,
}

#[derive(Debug)]
pub(crate) struct Report {
    machine: Vec<(&'static str, String)>,
    figures: Vec<Figure>,
}

impl Report {
    pub(crate) fn new(machine: Vec<(&'static str, String)>) -> Self {
        Self { machine, figures: Vec::new() }
    }

    /// Takes a figure down, and shows it at once.
    pub(crate) fn add(&mut self, case: &str, store: Store, what: &str, value: f64, unit: Unit, goal: Option<Goal>) {
        let figure = Figure { case: case.to_owned(), store, what: what.to_owned(), value, unit, goal };
        eprintln!("    {what}: {}", figure.shown());
        self.figures.push(figure);
    }

    pub(crate) fn time(&mut self, case: &str, store: Store, what: &str, time: Duration, most: Option<Duration>) {
        let goal = most.map(|most| Goal::AtMost(most.as_secs_f64()));
        self.add(case, store, what, time.as_secs_f64(), Unit::Seconds, goal);
    }

    /// Quantiles of times: each with its name, its part and what it is to be at most.
    pub(crate) fn times(
        &mut self,
        case: &str,
        store: Store,
        times: &mut [Duration],
        wanted: &[(&str, f64, Option<Duration>)],
    ) {
        for (what, part, most) in wanted {
            self.time(case, store, what, quantile(times, *part), *most);
        }
    }

    /// For people, and for docs/BENCHMARKS.md.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for (what, is) in &self.machine {
            text += &format!("- {what}: {is}\n");
        }
        text += "\n| case | store | figure | measured | goal | |\n| --- | --- | --- | ---: | ---: | --- |\n";
        for figure in &self.figures {
            let Figure { case, store, what, .. } = figure;
            let (goal, verdict) = match (figure.goal, figure.met()) {
                (Some(Goal::AtMost(most)), met) => (format!("≤ {}", figure.unit.show(most)), verdict(met)),
                (Some(Goal::AtLeast(least)), met) => (format!("≥ {}", figure.unit.show(least)), verdict(met)),
                (None, _) => (String::new(), ""),
            };
            text += &format!("| {case} | {store} | {what} | {} | {goal} | {verdict} |\n", figure.shown());
        }
        let missed = self.figures.iter().filter(|figure| !figure.met()).count();
        let wanted = self.figures.iter().filter(|figure| figure.goal.is_some()).count();
        text + &format!("\n{} of {wanted} goals reached\n", wanted - missed)
    }

    /// For programs. Times in seconds.
    pub(crate) fn json(&self, quick: bool) -> String {
        let figures: Vec<Value> = self
            .figures
            .iter()
            .map(|figure| {
                let goal = figure.goal.map(|goal| match goal {
                    Goal::AtMost(most) => json!({ "at_most": most }),
                    Goal::AtLeast(least) => json!({ "at_least": least }),
                });
                json!({
                    "case": figure.case, "store": figure.store.to_string(), "figure": figure.what,
                    "value": figure.value, "unit": figure.unit.name(), "goal": goal, "met": figure.met(),
                })
            })
            .collect();
        let machine: serde_json::Map<_, _> =
            self.machine.iter().map(|(what, is)| ((*what).to_owned(), json!(is))).collect();
        format!("{:#}\n", json!({ "machine": machine, "quick": quick, "figures": figures }))
    }
}

fn verdict(met: bool) -> &'static str {
    if met { "reached" } else { "**missed**" }
}

impl Figure {
    fn shown(&self) -> String {
        self.unit.show(self.value)
    }

    fn met(&self) -> bool {
        match self.goal {
            Some(Goal::AtMost(most)) => self.value <= most,
            Some(Goal::AtLeast(least)) => self.value >= least,
            None => true,
        }
    }
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::PerSecond => "/s",
            Self::Bytes => "B",
            Self::Ratio => "ratio",
            Self::Percent => "%",
            Self::Count => "",
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Self::Seconds if value < 1e-6 => format!("{:.1} ns", value * 1e9),
            Self::Seconds if value < 1e-3 => format!("{:.1} µs", value * 1e6),
            Self::Seconds if value < 1.0 => format!("{:.2} ms", value * 1e3),
            Self::Seconds => format!("{value:.2} s"),
            Self::PerSecond if value < 1000.0 => format!("{value:.1}/s"),
            Self::PerSecond => format!("{value:.0}/s"),
            Self::Bytes => format!("{value:.0} B"),
            Self::Ratio => format!("{value:.3}"),
            Self::Percent => format!("{value:.2} %"),
            Self::Count => format!("{value:.0}"),
        }
    }
}
