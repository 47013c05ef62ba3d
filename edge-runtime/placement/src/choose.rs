//! One decision, end to end.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::explain::{self, Explanation, Ranked, TOP};
use crate::features::{self, Features, Kind, Summary};
use crate::filter::{Candidate, Constraint, first_rejection};
use crate::model::{Request, Snapshot};
use crate::packing::{self, Packed, Prices};
use crate::score::Scorer;

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CandidateRef {
    /// A node, by id.
    Node(String),
    /// An offer, by id.
    Offer(String),
}

impl CandidateRef {
    /// The id of the node or the offer.
    #[must_use]
    pub fn id(&self) -> &str {
        let (Self::Node(id) | Self::Offer(id)) = self;
        id
    }
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

/// Scores are compared after rounding to this many steps per unit, and ties go to the smaller id:
/// a difference in the last bits between two machines rarely changes a decision.
const STEPS: f64 = 1e6;

pub(crate) fn rounded(total: f64) -> f64 {
    if total.is_finite() {
        (total * STEPS).round() / STEPS
    } else {
        f64::NEG_INFINITY
    }
}

/// What candidates are ordered by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rank<'a> {
    pub(crate) id: &'a str,
    pub(crate) offer: bool,
    /// After [`rounded`].
    pub(crate) total: f64,
}

impl Rank<'_> {
    pub(crate) fn goes_before(&self, other: &Rank<'_>) -> bool {
        let order = other
            .total
            .total_cmp(&self.total)
            .then_with(|| self.id.cmp(other.id))
            .then_with(|| self.offer.cmp(&other.offer));
        order == Ordering::Less
    }
}

/// A candidate among the best.
#[derive(Debug, Clone)]
pub(crate) struct Best<'a> {
    pub(crate) candidate: Candidate<'a>,
    pub(crate) total: f64,
}

impl<'a> Best<'a> {
    fn rank(&self) -> Rank<'a> {
        Rank {
            id: self.candidate.id,
            offer: self.candidate.node.is_none(),
            total: self.total,
        }
    }
}

/// Filters, scores and chooses. The order of nodes and offers in the snapshot does not matter.
#[must_use]
pub fn decide(snapshot: &Snapshot, request: &Request, scorer: &dyn Scorer) -> Decision {
    let ready = scorer.for_request(request, &Summary::of(snapshot));
    let scorer = ready.as_deref().unwrap_or(scorer);
    let scorer = &Packed::new(&snapshot.packing, request, scorer);
    let mut rejected = BTreeMap::new();
    let mut candidates = 0;
    let mut top: Vec<Best<'_>> = Vec::with_capacity(TOP + 1);
    for candidate in all(snapshot) {
        if let Some(constraint) = first_rejection(request, &candidate) {
            *rejected.entry(constraint).or_insert(0) += 1;
            continue;
        }
        candidates += 1;
        let features = features::encode(&snapshot.latency, request, &candidate);
        let total = rounded(scorer.total(request, &candidate, &features));
        let challenger = Best { candidate, total };
        let rank = challenger.rank();
        let place = top.partition_point(|b| !rank.goes_before(&b.rank()));
        if place < TOP {
            top.insert(place, challenger);
            top.truncate(TOP);
        }
    }
    let features = top
        .first()
        .map(|b| features::encode(&snapshot.latency, request, &b.candidate));
    let prices = &snapshot.packing;
    conclude(
        request, scorer, prices, candidates, rejected, &top, features,
    )
}

/// Writes up a decision. `features` are the winner's; `scorer` has read the request.
pub(crate) fn conclude(
    request: &Request,
    scorer: &dyn Scorer,
    prices: &Prices,
    candidates: usize,
    rejected: BTreeMap<Constraint, usize>,
    top: &[Best<'_>],
    features: Option<Features>,
) -> Decision {
    let best = top.first().zip(features);
    let explanation = Explanation {
        scorer: scorer.name().to_owned(),
        candidates,
        rejected,
        terms: best.as_ref().map_or_else(Vec::new, |(b, features)| {
            scorer.score(request, &b.candidate, features).named()
        }),
        runner_up: top.get(1).map(|b| (b.candidate.id.to_owned(), b.total)),
        top: top
            .iter()
            .map(|b| Ranked {
                candidate: reference(&b.candidate),
                score: b.total,
                terms: Vec::new(),
            })
            .collect(),
        flips: Vec::new(),
    };
    Decision {
        choice: best.and_then(|(b, f)| choice_of(prices, request, &b.candidate, &f, b.total)),
        explanation,
    }
}

fn reference(candidate: &Candidate<'_>) -> CandidateRef {
    let id = candidate.id.to_owned();
    if candidate.node.is_some() {
        CandidateRef::Node(id)
    } else {
        CandidateRef::Offer(id)
    }
}

/// Fills in what [`decide`] leaves out because few read it: the terms of the best candidates, and
/// what would have to change for the second to win.
pub fn explain(
    snapshot: &Snapshot,
    request: &Request,
    scorer: &dyn Scorer,
    explanation: &mut Explanation,
) {
    let ready = scorer.for_request(request, &Summary::of(snapshot));
    let top: Vec<(Candidate<'_>, Kind)> = explanation
        .top
        .iter()
        .map_while(|ranked| {
            let candidate = match &ranked.candidate {
                CandidateRef::Node(id) => snapshot.node(id).map(Candidate::from),
                CandidateRef::Offer(id) => snapshot.offer(id).map(Candidate::from),
            }?;
            Some((
                candidate,
                features::kind(&snapshot.latency, request, &candidate),
            ))
        })
        .collect();
    let scorer = ready.as_deref().unwrap_or(scorer);
    let packed = Packed::new(&snapshot.packing, request, scorer);
    explain::fill(&packed, request, &top, explanation);
}

/// The choice of `candidate`, with devices assigned, by prices where they are known; none where the
/// GPUs asked for are not there.
#[must_use]
pub fn choice_of(
    prices: &Prices,
    request: &Request,
    candidate: &Candidate<'_>,
    features: &Features,
    score: f64,
) -> Option<Choice> {
    Some(Choice {
        candidate: reference(candidate),
        gpus: packing::assign(prices, &request.gpu, candidate)?,
        hourly_cost: features.hourly_cost.unwrap_or(0.0),
        p99_latency_ms: features.p99_ms,
        score,
    })
}
