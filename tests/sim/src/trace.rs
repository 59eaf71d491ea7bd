//! What happened, as a hash that two runs of one seed must share, and as lines for people.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use parking_lot::Mutex;

/// See the [module](self). Clones are handles to the same trace.
#[derive(Clone, Debug)]
pub struct Trace(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    hash: u64,
    lines: Option<String>,
    faults: BTreeMap<&'static str, u64>,
    violation: Option<String>,
}

impl Trace {
    /// An empty one. Lines are kept only where they are wanted.
    pub fn new(lines: bool) -> Self {
        let lines = lines.then(String::new);
        Self(Arc::new(Mutex::new(Inner { hash: 0, lines, faults: BTreeMap::new(), violation: None })))
    }

    /// Something happened at `now`: a name and numbers go into the hash, the line goes to people.
    pub fn note(&self, now: u64, what: &'static str, numbers: &[u64], line: impl FnOnce() -> String) {
        let mut inner = self.0.lock();
        let mut mix = |number: u64| {
            inner.hash = (inner.hash.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        };
        mix(now);
        what.bytes().for_each(|byte| mix(byte.into()));
        numbers.iter().for_each(|number| mix(*number));
        if let Some(lines) = &mut inner.lines {
            let _ = writeln!(lines, "{:>10.3} ms  {what:<10} {}", now as f64 / 1e6, line());
        }
    }

    /// A fault was done.
    pub fn fault(&self, kind: &'static str) {
        *self.0.lock().faults.entry(kind).or_default() += 1;
    }

    /// A rule was broken. The first one counts.
    pub fn broken(&self, rule: impl Into<String>) {
        let mut inner = self.0.lock();
        if inner.violation.is_none() {
            let rule = rule.into();
            if let Some(lines) = &mut inner.lines {
                let _ = writeln!(lines, "VIOLATION  {rule}");
            }
            inner.violation = Some(rule);
        }
    }

    /// Whether a rule was broken.
    pub fn is_broken(&self) -> bool {
        self.0.lock().violation.is_some()
    }

    /// Hash, faults by kind, the violation, and the lines.
    pub fn end(&self) -> (u64, BTreeMap<&'static str, u64>, Option<String>, Option<String>) {
        let inner = self.0.lock();
        (inner.hash, inner.faults.clone(), inner.violation.clone(), inner.lines.clone())
    }
}
