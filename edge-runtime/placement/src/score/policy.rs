//! The trained network as a scorer.

use std::sync::Arc;

use super::{Fast, Score, Scorer};
use crate::features::{
    FIT_LEN, Features, FitSlot, NODE, NodeSlot, PAIR, PairSlot, Summary, encode_request,
};
use crate::filter::Candidate;
use crate::model::Request;
use crate::policy::Network;
use crate::policy::network::{EMBED, Prepared, PreparedKind};

/// Weight of the term `packing` beside a network, whose scores are logarithms of odds.
pub const PACKING: f64 = 4.0;

/// Scores by a network in full precision.
#[derive(Debug, Clone)]
pub struct PolicyScorer {
    name: String,
    network: Arc<Network>,
}

impl PolicyScorer {
    /// A scorer with the name `ppo`.
    #[must_use]
    pub fn new(network: Arc<Network>) -> Self {
        Self::named("ppo", network)
    }

    /// A scorer with another name.
    #[must_use]
    pub fn named(name: &str, network: Arc<Network>) -> Self {
        Self {
            name: name.to_owned(),
            network,
        }
    }

    /// The network.
    #[must_use]
    pub const fn network(&self) -> &Arc<Network> {
        &self.network
    }
}

impl Scorer for PolicyScorer {
    fn name(&self) -> &str {
        &self.name
    }

    /// As in a fleet of which nothing is known; [`Scorer::for_request`] takes what is known.
    fn score(&self, request: &Request, candidate: &Candidate<'_>, features: &Features) -> Score {
        ReadyPolicy::new(&self.name, &self.network, request, &Summary::default())
            .score(request, candidate, features)
    }

    fn total(&self, request: &Request, candidate: &Candidate<'_>, features: &Features) -> f64 {
        ReadyPolicy::new(&self.name, &self.network, request, &Summary::default())
            .total(request, candidate, features)
    }

    fn for_request<'a>(
        &'a self,
        request: &Request,
        summary: &Summary,
    ) -> Option<Box<dyn Scorer + 'a>> {
        Some(Box::new(ReadyPolicy::new(
            &self.name,
            &self.network,
            request,
            summary,
        )))
    }

    fn packing_weight(&self) -> f64 {
        PACKING
    }

    fn fast(&self) -> Fast<'_> {
        Fast::Network(&self.network)
    }
}

/// A network that has read a request.
#[derive(Debug, Clone, Copy)]
pub struct ReadyPolicy<'a> {
    name: &'a str,
    network: &'a Network,
    pub(crate) prepared: Prepared,
}

impl<'a> ReadyPolicy<'a> {
    /// Reads the request and the state of the fleet.
    #[must_use]
    pub fn new(name: &'a str, network: &'a Network, request: &Request, summary: &Summary) -> Self {
        Self {
            name,
            network,
            prepared: network.prepare(&encode_request(request, summary)),
        }
    }

    fn of(&self, features: &Features) -> f64 {
        let kind = self.network.prepare_kind(&self.prepared, &features.pair);
        let embedding = self.network.embed(&features.node);
        f64::from(
            self.network
                .score(&self.prepared, &kind, &embedding, &features.fit),
        )
    }
}

impl Scorer for ReadyPolicy<'_> {
    fn name(&self) -> &str {
        self.name
    }

    /// A network has no terms of its own. What a group of slots contributes is taken to be what
    /// the score loses when they are set to what says nothing, after the groups before it were;
    /// `base` is what stays when all are. So the terms add up to the score.
    fn score(&self, _: &Request, _: &Candidate<'_>, features: &Features) -> Score {
        let mut left = features.clone();
        let mut kind = self.network.prepare_kind(&self.prepared, &left.pair);
        let mut embedding = self.network.embed(&left.node);
        let score = |kind: &PreparedKind, embedding: &[f32; EMBED], fit: &[f32; FIT_LEN]| {
            f64::from(self.network.score(&self.prepared, kind, embedding, fit))
        };
        let mut before = score(&kind, &embedding, &left.fit);
        let mut terms = Vec::with_capacity(GROUPS.len() + 1);
        for (name, silence) in GROUPS {
            let (node, pair) = (left.node, left.pair);
            silence(&mut left);
            if left.node != node {
                embedding = self.network.embed(&left.node);
            }
            if left.pair != pair {
                kind = self.network.prepare_kind(&self.prepared, &left.pair);
            }
            let after = score(&kind, &embedding, &left.fit);
            terms.push((*name, before - after));
            before = after;
        }
        terms.push(("base", before));
        Score { terms }
    }

    fn total(&self, _: &Request, _: &Candidate<'_>, features: &Features) -> f64 {
        self.of(features)
    }

    fn packing_weight(&self) -> f64 {
        PACKING
    }
}

type Silence = fn(&mut Features);

/// Groups of slots, in the order in which they are silenced.
const GROUPS: &[(&str, Silence)] = &[
    ("cost", |f| {
        node(f, &[NodeSlot::Price, NodeSlot::PriceKnown]);
        pair(
            f,
            &[PairSlot::Cost, PairSlot::CostKnown, PairSlot::CostTerm],
        );
        // The slot holds both terms of the reward: the other one stays.
        let slot = PairSlot::LatencyTerm as usize;
        let latency = libm::expm1f(f.pair[slot] * PAIR[slot].scale);
        let reward = PairSlot::Reward as usize;
        f.pair[reward] = f.pair[reward].min(latency.min(20.0) / PAIR[reward].scale);
    }),
    ("latency", |f| {
        node(f, &[NodeSlot::CpuUse]);
        pair(
            f,
            &[
                PairSlot::P99,
                PairSlot::P99Known,
                PairSlot::LatencyTerm,
                PairSlot::Target,
                PairSlot::Reward,
            ],
        );
        fit(f, &[FitSlot::P99, FitSlot::Target, FitSlot::LatencyLost]);
    }),
    ("risk", |f| {
        node(
            f,
            &[
                NodeSlot::Spot,
                NodeSlot::Reclaim,
                NodeSlot::Reclaims,
                NodeSlot::Startup,
            ],
        );
        // What is not known to be scarce is taken to be had.
        let slot = NodeSlot::Obtainable as usize;
        f.node[slot] = 1.0 / NODE[slot].scale;
        pair(
            f,
            &[PairSlot::SpotWanted, PairSlot::WorkLost, PairSlot::TimeLost],
        );
    }),
    ("room", |f| {
        node(
            f,
            &[
                NodeSlot::FreeCpu,
                NodeSlot::FreeMemory,
                NodeSlot::FreeGpu,
                NodeSlot::PartGpus,
                NodeSlot::Used,
            ],
        );
        fit(
            f,
            &[
                FitSlot::CpuAfter,
                FitSlot::MemoryAfter,
                FitSlot::GpuAfter,
                FitSlot::GpuExact,
                FitSlot::Sibling,
            ],
        );
    }),
    ("data", |f| {
        pair(
            f,
            &[PairSlot::DataRtt, PairSlot::DataKnown, PairSlot::Egress],
        );
        fit(f, &[FitSlot::Images]);
    }),
    ("move", |f| fit(f, &[FitSlot::Here])),
];

fn node(features: &mut Features, slots: &[NodeSlot]) {
    for slot in slots {
        features.node[*slot as usize] = 0.0;
    }
}

fn pair(features: &mut Features, slots: &[PairSlot]) {
    for slot in slots {
        features.pair[*slot as usize] = 0.0;
    }
}

fn fit(features: &mut Features, slots: &[FitSlot]) {
    for slot in slots {
        features.fit[*slot as usize] = 0.0;
    }
}
