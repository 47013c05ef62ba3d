//! Many seeds, on all cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{Counts, Outcome, Scenario, run};

/// What came of many seeds.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Seeds that were played.
    pub runs: u64,
    /// Seeds that broke an invariant, with what they broke; by seed.
    pub failed: Vec<(u64, Outcome)>,
    /// Faults injected.
    pub faults: Counts,
    /// Containers started, requests of clients and those unanswered, decisions of sites and of the
    /// control plane, stale orders, events.
    pub starts: u64,
    /// Requests of clients.
    pub requests: u64,
    /// Requests that nobody answered.
    pub unanswered: u64,
    /// Decisions that sites made.
    pub site_decisions: u64,
    /// Decisions of the control plane.
    pub decisions: u64,
    /// Orders that had been overtaken and arrived again.
    pub stale_orders: u64,
    /// Events of all queues.
    pub events: u64,
    /// Virtual time.
    pub virtual_time: Duration,
    /// Wall time.
    pub took: Duration,
}

impl Summary {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.runs += 1;
        for (kind, count) in &outcome.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        self.starts += outcome.starts;
        self.requests += outcome.requests.0;
        self.unanswered += outcome.requests.1;
        self.site_decisions += outcome.site_decisions;
        self.decisions += outcome.decisions;
        self.stale_orders += outcome.stale_orders;
        self.events += outcome.events;
        self.virtual_time += outcome.time;
        if !outcome.violations.is_empty() {
            self.failed.push((seed, outcome));
        }
    }

    /// Broken invariants, in all.
    #[must_use]
    pub fn violations(&self) -> u64 {
        let each = self.failed.iter().map(|(_, o)| o.violations.len() as u64);
        each.sum()
    }
}

/// Plays `count` seeds from `first` on, each like `scenario`. Stops early when `enough` seeds have
/// failed; `failed` is told of each at once.
#[must_use]
pub fn seeds(
    scenario: &Scenario,
    first: u64,
    count: u64,
    enough: usize,
    failed: impl Fn(u64, &Outcome) + Sync,
) -> Summary {
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let summary = Mutex::new(Summary::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(count as usize).max(1) {
            scope.spawn(|| {
                // Thirty agents log a lot, and nobody reads it.
                let quiet = tracing::subscriber::NoSubscriber::default();
                tracing::subscriber::with_default(quiet, || {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= count {
                            return;
                        }
                        let seed = first.wrapping_add(n);
                        let outcome = run(&Scenario {
                            seed,
                            ..scenario.clone()
                        });
                        if !outcome.violations.is_empty() {
                            failed(seed, &outcome);
                        }
                        let Ok(mut summary) = summary.lock() else {
                            return;
                        };
                        summary.add(seed, outcome);
                        if summary.failed.len() >= enough {
                            return;
                        }
                    }
                });
            });
        }
    });
    let mut summary = summary.into_inner().unwrap_or_default();
    summary.failed.sort_by_key(|(seed, _)| *seed);
    summary.took = began.elapsed();
    summary
}
