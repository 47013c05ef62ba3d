//! Guard rails: when a decision is left to the rules.
//!
//! A network says something of whatever it is shown. Where it was never shown the like, where what
//! it is shown is old, and where what it says is no number, rules decide that one decision, and it
//! is counted.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyperion_placement::features::{
    FIT, Features, NODE, PAIR, REQUEST, REQUEST_LEN, Slot, Summary, encode, encode_request,
};
use hyperion_placement::filter::{Candidate, first_rejection};
use hyperion_placement::model::{Request, Snapshot};
use hyperion_placement::score::{Fast, Score};
use hyperion_placement::{Decision, RulesScorer, Scorer, decide};

use crate::{Encoded, SlotStats, Statistics};

/// Why a decision was left to the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A score was NaN or infinite.
    NotFinite,
    /// The snapshot was older than the policy may decide on.
    Stale,
    /// The request or the candidates were far from those of training.
    Unfamiliar,
}

impl Reason {
    /// Every reason, in order.
    pub const ALL: [Self; 3] = [Self::NotFinite, Self::Stale, Self::Unfamiliar];

    /// The word for explanations and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFinite => "notFinite",
            Self::Stale => "stale",
            Self::Unfamiliar => "unfamiliar",
        }
    }

    /// The scorer's name in the explanation of such a decision: `rules (guard: stale)`.
    #[must_use]
    pub fn scorer_name(self) -> String {
        format!("rules (guard: {self})")
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a policy may decide on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Age of the snapshot at most.
    pub most_age: Duration,
    /// Share of the slots that may be out of range, 0 to 1: of the request's, and of the
    /// candidates' on average.
    pub most_out: f32,
    /// A value is out of range where it lies further than this many standard deviations outside of
    /// what was seen in training.
    pub slack: f32,
}

impl Default for Limits {
    /// Agents report every few seconds, so a snapshot of a minute has missed many reports. One in
    /// ten slots is more than one fact gone odd: a price in cents moves four slots of 43.
    fn default() -> Self {
        Self {
            most_age: Duration::from_secs(60),
            most_out: 0.1,
            slack: 1.0,
        }
    }
}

/// Candidates that [`sample`] looks at.
const SAMPLE: usize = 16;

/// Judges decisions by the statistics of training.
#[derive(Debug, Clone, PartialEq)]
pub struct Guard {
    limits: Limits,
    request: Vec<Range>,
    node: Vec<Range>,
    pair: Vec<Range>,
    fit: Vec<Range>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Range {
    low: f32,
    high: f32,
}

impl Range {
    fn holds(self, value: f32) -> bool {
        // False for NaN.
        (self.low..=self.high).contains(&value)
    }
}

/// Slots behind the table are always 0 and tell nothing.
fn ranges(stats: &[SlotStats], table: &[Slot], slack: f32) -> Vec<Range> {
    // What rounding of mean and deviation may cost.
    const EPSILON: f32 = 1e-5;
    let range = |s: &SlotStats| {
        let room = s.deviation * slack + EPSILON;
        Range {
            low: s.min - room,
            high: s.max + room,
        }
    };
    stats.iter().take(table.len()).map(range).collect()
}

fn out(ranges: &[Range], values: &[f32]) -> usize {
    let holds = |(range, value): &(&Range, &f32)| !range.holds(**value);
    ranges.iter().zip(values).filter(holds).count()
}

impl Guard {
    /// A guard for the policy that has these statistics.
    #[must_use]
    pub fn new(statistics: &Statistics, limits: Limits) -> Self {
        let slack = limits.slack;
        Self {
            limits,
            request: ranges(&statistics.request, REQUEST, slack),
            node: ranges(&statistics.node, NODE, slack),
            pair: ranges(&statistics.pair, PAIR, slack),
            fit: ranges(&statistics.fit, FIT, slack),
        }
    }

    /// May the policy decide? `candidates` are some that passed the filter, as [`sample`] takes
    /// them; none is no objection.
    ///
    /// # Errors
    /// Why the decision is to be left to the rules.
    pub fn admit(
        &self,
        request: &[f32; REQUEST_LEN],
        candidates: &[Encoded],
        age: Duration,
    ) -> Result<(), Reason> {
        if age > self.limits.most_age {
            return Err(Reason::Stale);
        }
        let of_request = share(out(&self.request, request), self.request.len());
        let odd = |c: &Encoded| {
            out(&self.node, &c.node) + out(&self.pair, &c.pair) + out(&self.fit, &c.fit)
        };
        let slots = self.node.len() + self.pair.len() + self.fit.len();
        let of_candidates = share(candidates.iter().map(odd).sum(), candidates.len() * slots);
        if of_request.max(of_candidates) > self.limits.most_out {
            return Err(Reason::Unfamiliar);
        }
        Ok(())
    }
}

fn share(part: usize, all: usize) -> f32 {
    if all == 0 {
        0.0
    } else {
        part as f32 / all as f32
    }
}

/// Up to 16 candidates that pass the filter, evenly over nodes and offers.
#[must_use]
pub fn sample(snapshot: &Snapshot, request: &Request) -> Vec<Encoded> {
    let all = snapshot.nodes.len() + snapshot.offers.len();
    let at = |i: usize| match i.checked_sub(snapshot.nodes.len()) {
        None => Candidate::from(&snapshot.nodes[i]),
        Some(i) => Candidate::from(&snapshot.offers[i]),
    };
    (0..SAMPLE.min(all))
        .filter_map(|part| {
            // The first that passes in each sixteenth.
            let parts = SAMPLE.min(all);
            let range = part * all / parts..(part + 1) * all / parts;
            range
                .map(at)
                .find(|candidate| first_rejection(request, candidate).is_none())
        })
        .map(|candidate| Encoded::from(&encode(&snapshot.latency, request, &candidate)))
        .collect()
}

/// How often the policy decided, and how often the rules did in its place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Decisions by the policy.
    pub policy: u64,
    /// Decisions by the rules, in the order of [`Reason::ALL`].
    pub rules: [u64; 3],
}

impl Counts {
    /// Decisions by the rules for `reason`.
    #[must_use]
    pub const fn of(&self, reason: Reason) -> u64 {
        self.rules[reason as usize]
    }
}

/// A policy that leaves to the rules what it can't be trusted with.
#[derive(Debug)]
pub struct Guarded<S> {
    policy: S,
    guard: Guard,
    decided: AtomicU64,
    left: [AtomicU64; 3],
}

impl<S: Scorer> Guarded<S> {
    /// Puts `guard` before `policy`.
    #[must_use]
    pub fn new(policy: S, guard: Guard) -> Self {
        Self {
            policy,
            guard,
            decided: AtomicU64::new(0),
            left: Default::default(),
        }
    }

    /// The policy, for those who only want its scores.
    #[must_use]
    pub const fn policy(&self) -> &S {
        &self.policy
    }

    /// The guard.
    #[must_use]
    pub const fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Decisions since the beginning.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            policy: self.decided.load(Ordering::Relaxed),
            rules: self.left.each_ref().map(|n| n.load(Ordering::Relaxed)),
        }
    }

    /// Decides on a snapshot of this age.
    #[must_use]
    pub fn decide(&self, snapshot: &Snapshot, request: &Request, age: Duration) -> Decision {
        let encoded = encode_request(request, &Summary::of(snapshot));
        let candidates = sample(snapshot, request);
        self.decide_with(&encoded, &candidates, age, |scorer| {
            decide(snapshot, request, scorer)
        })
    }

    /// The same for those who keep their fleet in another form: `by` decides with the scorer that
    /// it is given, and is called again with the rules where a score of the policy is no number.
    #[must_use]
    pub fn decide_with(
        &self,
        request: &[f32; REQUEST_LEN],
        candidates: &[Encoded],
        age: Duration,
        by: impl Fn(&dyn Scorer) -> Decision,
    ) -> Decision {
        let reason = match self.guard.admit(request, candidates, age) {
            Err(reason) => reason,
            Ok(()) => {
                let seen = Cell::new(false);
                let decision = by(&Watch {
                    inner: &self.policy,
                    seen: &seen,
                });
                if !seen.get() && is_finite(&decision) {
                    self.decided.fetch_add(1, Ordering::Relaxed);
                    return decision;
                }
                Reason::NotFinite
            }
        };
        self.left[reason as usize].fetch_add(1, Ordering::Relaxed);
        let mut decision = by(&RulesScorer);
        decision.explanation.scorer = reason.scorer_name();
        decision
    }
}

/// Scores of the best candidates; one that was no number became minus infinity.
fn is_finite(decision: &Decision) -> bool {
    let top = &decision.explanation.top;
    top.iter().all(|ranked| ranked.score.is_finite())
        && decision.choice.as_ref().is_none_or(|c| c.score.is_finite())
}

/// Notes whether a score was no number, of any candidate.
struct Watch<'a> {
    inner: &'a dyn Scorer,
    seen: &'a Cell<bool>,
}

impl Watch<'_> {
    fn note(&self, total: f64) -> f64 {
        if !total.is_finite() {
            self.seen.set(true);
        }
        total
    }
}

impl Scorer for Watch<'_> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn score(&self, request: &Request, candidate: &Candidate<'_>, features: &Features) -> Score {
        let score = self.inner.score(request, candidate, features);
        self.note(score.total());
        score
    }

    fn total(&self, request: &Request, candidate: &Candidate<'_>, features: &Features) -> f64 {
        self.note(self.inner.total(request, candidate, features))
    }

    fn for_request<'a>(
        &'a self,
        request: &Request,
        summary: &Summary,
    ) -> Option<Box<dyn Scorer + 'a>> {
        let inner = self.inner.for_request(request, summary)?;
        Some(Box::new(Ready {
            inner,
            seen: self.seen,
        }))
    }

    fn packing_weight(&self) -> f64 {
        self.inner.packing_weight()
    }

    fn fast(&self) -> Fast<'_> {
        self.inner.fast()
    }
}

/// [`Watch`] over a scorer that has read a request.
struct Ready<'a> {
    inner: Box<dyn Scorer + 'a>,
    seen: &'a Cell<bool>,
}

impl Ready<'_> {
    fn watch(&self) -> Watch<'_> {
        Watch {
            inner: self.inner.as_ref(),
            seen: self.seen,
        }
    }
}

impl Scorer for Ready<'_> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn score(&self, request: &Request, candidate: &Candidate<'_>, features: &Features) -> Score {
        self.watch().score(request, candidate, features)
    }

    fn total(&self, request: &Request, candidate: &Candidate<'_>, features: &Features) -> f64 {
        self.watch().total(request, candidate, features)
    }

    fn packing_weight(&self) -> f64 {
        self.inner.packing_weight()
    }

    fn fast(&self) -> Fast<'_> {
        self.inner.fast()
    }
}
