//! Scorers. A candidate's score does not depend on the other candidates.
//!
//! - [`RulesScorer`]: written by hand;
//! - [`PolicyScorer`]: a trained network.

mod policy;

pub use policy::{PACKING, PolicyScorer, ReadyPolicy};

use std::sync::Arc;

use crate::features::{Features, Summary};
use crate::filter::{Candidate, is_owned};
use crate::model::{CapacityType, Goal, Request};
use crate::policy::Network;

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

    pub(crate) fn named(&self) -> Vec<(String, f64)> {
        let own = |(name, value): &(&'static str, f64)| ((*name).to_owned(), *value);
        self.terms.iter().map(own).collect()
    }
}

/// Ranks candidates that passed the filter.
pub trait Scorer {
    /// Name written into placements: `rules`, or a policy's.
    fn name(&self) -> &str;

    /// Score of one candidate; higher is better. A score that is not finite loses.
    fn score(&self, request: &Request, candidate: &Candidate<'_>, features: &Features) -> Score;

    /// What candidates are compared by: the sum of the terms of [`Self::score`], for those who can
    /// tell it without taking it apart.
    fn total(&self, request: &Request, candidate: &Candidate<'_>, features: &Features) -> f64 {
        self.score(request, candidate, features).total()
    }

    /// The scorer for one decision, having read the request and the state of the fleet once. None
    /// where it has nothing to prepare, and is used as it is.
    fn for_request<'a>(
        &'a self,
        request: &Request,
        summary: &Summary,
    ) -> Option<Box<dyn Scorer + 'a>> {
        let _ = (request, summary);
        None
    }

    /// By how much a GPU's worth of free capacity that a placement destroys lowers the score, where
    /// that is known ([`crate::packing`]); 0 for a scorer that is left alone with it. Each says it, so
    /// that one around another does not lose it.
    fn packing_weight(&self) -> f64;

    /// A form in which [`Fleet`](crate::fleet::Fleet) can score many candidates at once. It has to
    /// give the scores of [`Self::total`].
    fn fast(&self) -> Fast<'_> {
        Fast::No
    }
}

/// Scorers that [`Fleet`](crate::fleet::Fleet) knows from within.
#[derive(Debug, Clone, Copy)]
pub enum Fast<'a> {
    /// Asked for every candidate.
    No,
    /// [`RulesScorer`].
    Rules,
    /// A network in full precision, whose embeddings are kept if it is the fleet's.
    Network(&'a Arc<Network>),
}

/// The hand-written scorer.
///
/// Terms are between 0 and 1 times a weight by goal. `cost` is `1 / (1 + USD/h)` and `latency` is
/// `1 / (1 + p99 / 50 ms)`: the reward's `w1 / cost + w2 / p99` with its poles at zero taken out,
/// so that free edge hardware does not outweigh everything. An unknown price or latency earns
/// nothing, so that what is known to be good goes first.
#[derive(Debug, Clone, Copy, Default)]
pub struct RulesScorer;

/// Weight of the term `packing` for the rules.
const RULES_PACKING: f64 = 2.0;

/// p99 at which the latency term has half its weight, milliseconds.
pub(crate) const HALF_P99_MS: f64 = 50.0;

pub(crate) struct Weights {
    pub(crate) cost: f64,
    pub(crate) latency: f64,
}

pub(crate) const fn weights(goal: Goal) -> Weights {
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
        let mut terms = Vec::with_capacity(8);
        each_rule(request, candidate, features, |name, value| {
            terms.push((name, value));
        });
        Score { terms }
    }

    fn total(&self, request: &Request, candidate: &Candidate<'_>, features: &Features) -> f64 {
        // Starts where the sum of an iterator starts, so that not even a zero's sign differs.
        let mut total = -0.0;
        each_rule(request, candidate, features, |_, value| total += value);
        total
    }

    fn packing_weight(&self) -> f64 {
        RULES_PACKING
    }

    fn fast(&self) -> Fast<'_> {
        Fast::Rules
    }
}

fn each_rule(
    request: &Request,
    candidate: &Candidate<'_>,
    features: &Features,
    mut term: impl FnMut(&'static str, f64),
) {
    let w = weights(request.goal);
    term(
        "cost",
        features.hourly_cost.map_or(0.0, |c| w.cost / (1.0 + c)),
    );
    term(
        "latency",
        features
            .p99_ms
            .map_or(0.0, |p| w.latency / (1.0 + p / HALF_P99_MS)),
    );
    if let (Some(p99), Some(target)) = (features.p99_ms, request.latency_target_ms)
        && p99 > target
    {
        term("latencyTarget", -w.latency * 0.5);
    }
    if request.prefer_spot && candidate.capacity_type == CapacityType::Spot {
        term("preferSpot", 1.0);
    }
    if let Some(rtt) = features.data_rtt_ms {
        term("dataLocality", 1.0 / (1.0 + rtt / HALF_P99_MS));
    }
    if features.holds_sibling() {
        term("spread", -1.0);
    }
    term("room", 0.5 * features.free_after());
    term("images", 0.2 * features.images_present());
    if is_owned(candidate) {
        term("owned", 0.1);
    }
}
