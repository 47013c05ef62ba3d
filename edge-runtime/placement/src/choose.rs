//! One decision, end to end.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::explain::Explanation;
use crate::features::{self, Features};
use crate::filter::{Candidate, Constraint, first_rejection};
use crate::gpu;
use crate::model::{Request, Snapshot};
use crate::score::{Score, Scorer};

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CandidateRef {
    /// A node, by id.
    Node(String),
    /// An offer, by id.
    Offer(String),
}

/// The winner.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Node or offer.
    pub candidate: CandidateRef,
    /// GPUs given to the replica: uuid, thousandths.
    pub gpus: Vec<(String, u32)>,
    /// US dollars per hour of the replica's share; 0 where unknown.
    pub hourly_cost: f64,
    /// Estimated p99 seen by clients.
    pub p99_latency_ms: Option<f64>,
    /// Total score.
    pub score: f64,
}

/// A decision and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// None where nothing fits.
    pub choice: Option<Choice>,
    /// Always there.
    pub explanation: Explanation,
}

/// A candidate that passed the filter, encoded.
#[derive(Debug, Clone)]
pub struct Considered<'a> {
    /// The candidate.
    pub candidate: Candidate<'a>,
    /// What is known of the pair.
    pub features: Features,
}

/// Filters and encodes, in order of nodes and offers: for those who choose in another way than by
/// the highest score, as a policy that learns does. [`choice_of`] makes a choice of one of them.
#[must_use]
pub fn consider<'a>(
    snapshot: &'a Snapshot,
    request: &Request,
) -> (Vec<Considered<'a>>, BTreeMap<Constraint, usize>) {
    let mut rejected = BTreeMap::new();
    let mut candidates = Vec::new();
    for candidate in all(snapshot) {
        match first_rejection(request, &candidate) {
            Some(constraint) => *rejected.entry(constraint).or_insert(0) += 1,
            None => candidates.push(Considered {
                features: features::encode(&snapshot.latency, request, &candidate),
                candidate,
            }),
        }
    }
    (candidates, rejected)
}

fn all(snapshot: &Snapshot) -> impl Iterator<Item = Candidate<'_>> {
    snapshot
        .nodes
        .iter()
        .map(Candidate::from)
        .chain(snapshot.offers.iter().map(Candidate::from))
}

struct Best<'a> {
    candidate: Candidate<'a>,
    features: Features,
    score: Score,
    total: f64,
}

/// Scores are compared after rounding to this many steps per unit, and ties go to the smaller id:
/// a difference in the last bits between two machines rarely changes a decision.
const STEPS: f64 = 1e6;

/// Filters, scores and chooses. The order of nodes and offers in the snapshot does not matter.
#[must_use]
pub fn decide(snapshot: &Snapshot, request: &Request, scorer: &dyn Scorer) -> Decision {
    let mut rejected = BTreeMap::new();
    let mut candidates = 0;
    let mut best: Option<Best<'_>> = None;
    let mut second: Option<(String, f64)> = None;
    for candidate in all(snapshot) {
        if let Some(constraint) = first_rejection(request, &candidate) {
            *rejected.entry(constraint).or_insert(0) += 1;
            continue;
        }
        candidates += 1;
        let features = features::encode(&snapshot.latency, request, &candidate);
        let score = scorer.score(request, &candidate, &features);
        let total = rounded(score.total());
        let challenger = Best {
            candidate,
            features,
            score,
            total,
        };
        match &best {
            Some(b) if !beats(&challenger, b) => {
                let beaten = (challenger.candidate.id, challenger.total);
                if second
                    .as_ref()
                    .is_none_or(|(id, t)| ranks(beaten, (id, *t)) == Ordering::Less)
                {
                    second = Some((beaten.0.to_owned(), beaten.1));
                }
            }
            _ => {
                second = best.take().map(|b| (b.candidate.id.to_owned(), b.total));
                best = Some(challenger);
            }
        }
    }
    let terms = best.as_ref().map_or_else(Vec::new, |b| {
        b.score
            .terms
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect()
    });
    let explanation = Explanation {
        scorer: scorer.name().to_owned(),
        candidates,
        rejected,
        terms,
        runner_up: second,
    };
    Decision {
        choice: best.and_then(|b| choice_of(request, &b.candidate, &b.features, b.total)),
        explanation,
    }
}

fn rounded(total: f64) -> f64 {
    if total.is_finite() {
        (total * STEPS).round() / STEPS
    } else {
        f64::NEG_INFINITY
    }
}

fn beats(a: &Best<'_>, b: &Best<'_>) -> bool {
    ranks((a.candidate.id, a.total), (b.candidate.id, b.total)) == Ordering::Less
}

/// `Less` means a goes first.
fn ranks(a: (&str, f64), b: (&str, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then_with(|| a.0.cmp(b.0))
}

/// The choice of `candidate`, with devices assigned; none where the GPUs asked for are not there.
#[must_use]
pub fn choice_of(
    request: &Request,
    candidate: &Candidate<'_>,
    features: &Features,
    score: f64,
) -> Option<Choice> {
    let id = candidate.id.to_owned();
    Some(Choice {
        candidate: if candidate.node.is_some() {
            CandidateRef::Node(id)
        } else {
            CandidateRef::Offer(id)
        },
        gpus: gpu::assign(&request.gpu, candidate.gpus)?,
        hourly_cost: features.hourly_cost.unwrap_or(0.0),
        p99_latency_ms: features.p99_ms,
        score,
    })
}
