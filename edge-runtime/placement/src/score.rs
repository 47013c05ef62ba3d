//! Scorers. A candidate's score does not depend on the other candidates.

use crate::features::Features;
use crate::filter::{Candidate, is_owned};
use crate::model::{CapacityType, Goal, Request};

/// A score and where it comes from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Score {
    /// Named contributions; the total is their sum.
    pub terms: Vec<(&'static str, f64)>,
}

impl Score {
    /// Sum of the terms.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.terms.iter().map(|(_, v)| v).sum()
    }
}

/// Ranks candidates that passed the filter.
pub trait Scorer {
    /// Name written into placements: `rules`, or a policy's.
    fn name(&self) -> &str;

    /// Score of one candidate; higher is better. A score that is not finite loses.
    fn score(&self, request: &Request, candidate: &Candidate<'_>, features: &Features) -> Score;
}

/// The hand-written scorer.
///
/// Terms are between 0 and 1 times a weight by goal. `cost` is `1 / (1 + USD/h)` and `latency` is
/// `1 / (1 + p99 / 50 ms)`: the reward's `w1 / cost + w2 / p99` with its poles at zero taken out,
/// so that free edge hardware does not outweigh everything. An unknown price or latency earns
/// nothing, so that what is known to be good goes first.
#[derive(Debug, Clone, Copy, Default)]
pub struct RulesScorer;

/// p99 at which the latency term has half its weight, milliseconds.
const HALF_P99_MS: f64 = 50.0;

struct Weights {
    cost: f64,
    latency: f64,
}

const fn weights(goal: Goal) -> Weights {
    match goal {
        Goal::Cost => Weights {
            cost: 10.0,
            latency: 1.0,
        },
        Goal::Latency => Weights {
            cost: 1.0,
            latency: 10.0,
        },
        Goal::Default => Weights {
            cost: 5.0,
            latency: 5.0,
        },
    }
}

impl Scorer for RulesScorer {
    fn name(&self) -> &str {
        "rules"
    }

    fn score(&self, request: &Request, candidate: &Candidate<'_>, features: &Features) -> Score {
        let w = weights(request.goal);
        let mut terms = Vec::with_capacity(8);
        terms.push((
            "cost",
            features.hourly_cost.map_or(0.0, |c| w.cost / (1.0 + c)),
        ));
        terms.push((
            "latency",
            features
                .p99_ms
                .map_or(0.0, |p| w.latency / (1.0 + p / HALF_P99_MS)),
        ));
        if let (Some(p99), Some(target)) = (features.p99_ms, request.latency_target_ms)
            && p99 > target
        {
            terms.push(("latencyTarget", -w.latency * 0.5));
        }
        if request.prefer_spot && candidate.capacity_type == CapacityType::Spot {
            terms.push(("preferSpot", 1.0));
        }
        if let Some(rtt) = features.data_rtt_ms {
            terms.push(("dataLocality", 1.0 / (1.0 + rtt / HALF_P99_MS)));
        }
        if features.holds_sibling() {
            terms.push(("spread", -1.0));
        }
        terms.push(("room", 0.5 * features.free_after()));
        terms.push(("images", 0.2 * features.images_present()));
        if is_owned(candidate) {
            terms.push(("owned", 0.1));
        }
        Score { terms }
    }
}
