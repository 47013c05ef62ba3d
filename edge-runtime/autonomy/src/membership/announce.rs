//! Calling those that belong to the site and are not alive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use foca::Message;
use rand::RngExt as _;
use rand::rngs::ChaCha8Rng;

use super::wire::Identity;
use super::{MAX_MEMBERS, Membership, Seen};

/// Nodes that are called at once: by a node that knows nobody alive, and of those just found.
const CALLS: usize = 3;

/// Between two calls of a node that knows others alive, in probe periods.
const PERIODS: u32 = 5;

/// About so many live nodes call a dead one within [`PERIODS`]: together they find it soon, and it
/// costs each of them little.
const CALLERS: f64 = 3.0;

/// Who has been dead for so many periods is called a quarter as often: with QUIC a call that nobody
/// answers costs ten packets of 1,200 bytes, and who comes back calls by itself. Where anybody came
/// back within as many periods, others may have, too (halves of a site find each other), and all are
/// called as often as at first.
const LONG_DEAD: u32 = 60;
const LONG_DEAD_CALLED: f64 = 0.25;

/// A node that was never seen is called every period for this many: it may be alive, known to all
/// others, and missed by this one alone.
const UNSEEN: u32 = 120;

/// Who is to be called.
pub(super) struct Calls {
    period: Duration,
    next: Duration,
    /// Nodes of the site, as far as known, without this one, and since when.
    known: BTreeMap<Arc<str>, Duration>,
    /// Found and not called yet.
    fresh: BTreeSet<Arc<str>>,
    /// When a dead node was last seen alive again.
    returned: Option<Duration>,
}

impl Calls {
    pub(super) fn new(period: Duration, now: Duration) -> Self {
        Self {
            period,
            next: now,
            known: BTreeMap::new(),
            fresh: BTreeSet::new(),
            returned: None,
        }
    }

    /// A node that was dead is alive.
    pub(super) fn returned(&mut self, now: Duration) {
        self.returned = Some(now);
    }

    pub(super) fn found(
        &mut self,
        node: Arc<str>,
        live: bool,
        now: Duration,
        rng: &mut ChaCha8Rng,
    ) {
        // Nodes that start together do not call together.
        let soon = now + self.period.mul_f64(rng.random_range(0.0..0.25));
        if self.known.is_empty() {
            self.next = soon;
        } else if !live {
            self.next = self.next.min(soon);
        }
        if self.known.len() >= MAX_MEMBERS && !self.known.contains_key(&node) {
            return;
        }
        if !live {
            self.fresh.insert(Arc::clone(&node));
        }
        self.known.entry(node).or_insert(now);
    }

    pub(super) fn forget(&mut self, node: &str) {
        self.known.remove(node);
        self.fresh.remove(node);
    }

    pub(super) fn knows(&self, node: &str) -> bool {
        self.known.contains_key(node)
    }

    pub(super) fn next_wake(&self) -> Option<Duration> {
        (!self.known.is_empty()).then_some(self.next)
    }
}

impl Membership {
    /// Calls whom it is time to call.
    pub(super) fn call(&mut self, now: Duration) {
        if self.calls.next > now || self.calls.known.is_empty() {
            return;
        }
        let is_live = |node: &Arc<str>| self.seen.get(node).is_some_and(Seen::is_live);
        let fresh = std::mem::take(&mut self.calls.fresh);
        let mut chosen: Vec<Arc<str>> = fresh.into_iter().filter(|node| !is_live(node)).collect();
        let live = self.seen.values().filter(|seen| seen.is_live()).count();
        let mut missing: Vec<Arc<str>> = self
            .calls
            .known
            .keys()
            .filter(|node| !is_live(node))
            .cloned()
            .collect();
        let young = |node: &Arc<str>| {
            let until = |since: &Duration| *since + self.calls.period * UNSEEN;
            self.calls
                .known
                .get(node)
                .is_some_and(|since| now < until(since))
        };
        let unseen = missing
            .iter()
            .filter(|node| !self.seen.contains_key(*node) && young(node));
        let unseen: Vec<Arc<str>> = unseen.cloned().collect();
        let hurry = live == 0 || !unseen.is_empty();
        if chosen.is_empty() {
            let wanted = if live == 0 {
                CALLS
            } else if !unseen.is_empty() {
                missing = unseen;
                1
            } else {
                let long = self.calls.period * LONG_DEAD;
                let hopeful = self.calls.returned.is_some_and(|at| at + long > now);
                missing.retain(|node| {
                    let since = self.seen.get(node).map(|seen| seen.since);
                    hopeful
                        || since.is_none_or(|since| since + long > now)
                        || self.rng.random_bool(LONG_DEAD_CALLED)
                });
                let odds = CALLERS * missing.len() as f64 / (live + 1) as f64;
                usize::from(self.rng.random_bool(odds.min(1.0)))
            };
            while missing.len() > wanted {
                missing.swap_remove(self.rng.random_range(0..missing.len()));
            }
            chosen = missing;
        } else {
            // A site that starts is many. Those who answer say who else is there; whoever is missing
            // still is called later, by some and not by all.
            while chosen.len() > CALLS {
                chosen.swap_remove(self.rng.random_range(0..chosen.len()));
            }
        }
        let pause = if hurry {
            self.calls.period
        } else {
            self.calls.period * PERIODS
        };
        self.calls.next = now + pause.mul_f64(self.rng.random_range(0.75..1.25));
        for node in chosen {
            let number = self.seen.get(&node).map_or(0, |seen| seen.id.number);
            self.send(Identity { node, number }, Message::Announce, &[]);
        }
    }
}
