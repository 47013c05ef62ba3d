//! Decisions on the fleet.

use std::collections::BTreeMap;

use super::pass::{Found, KindState, Marks, Rough, walk};
use super::places::Reach;
use super::rough::{ClassPart, Layout};
use super::{Fleet, Machine};
use crate::choose::{Best, CandidateRef, Considered, Decision, conclude, rounded};
use crate::explain::{self, Explanation, TOP};
use crate::features::{self, Features, Kind, NODE_LEN, PAIR_LEN, encode_fit, encode_pair};
use crate::filter::{Candidate, Constraint};
use crate::model::{Request, Resources};
use crate::packing::{Packed, Packing};
use crate::policy::Network;
use crate::policy::network::PreparedKind;
use crate::reward::{RewardWeights, Weights};
use crate::score::{Fast, ReadyPolicy, RulesScorer, Scorer};

/// What decisions need for themselves. One serves any number of decisions, one after another, and
/// keeps its memory in between.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    pub(super) reach: Vec<Reach>,
    /// By class, with a network, once one of its kinds has a candidate.
    pub(super) classes: Vec<Option<ClassPart>>,
    /// By kind.
    pub(super) states: Vec<Option<KindState>>,
    pub(super) roughs: Vec<Rough>,
    /// Lanes with candidates that are not scored yet, by block.
    pub(super) live: Vec<u16>,
    pub(super) work: Work,
    pub(super) images: Vec<f32>,
    pub(super) selected: Marks,
    pub(super) avoided: Marks,
    pub(super) siblings: Marks,
    /// Machines that a request names, so that they differ from their kind.
    pub(super) singled: Marks,
    pub(super) found: Vec<Found>,
    pub(super) rejected: [usize; Constraint::ALL.len()],
    pub(super) kinds: KindCache,
    pub(super) top: Vec<Placed>,
}

/// How much of the fleet the last decision looked at closely.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Machines whose score was told roughly, sixteen at a time.
    pub rough: usize,
    /// Machines that were scored exactly.
    pub exact: usize,
}

impl Scratch {
    /// What the last [`Fleet::decide`] looked at.
    #[must_use]
    pub const fn work(&self) -> Work {
        self.work
    }

    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn rejections(&self) -> BTreeMap<Constraint, usize> {
        Constraint::ALL
            .into_iter()
            .zip(self.rejected)
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

/// Kinds prepared for the decision with this stamp.
#[derive(Debug, Clone, Default)]
pub(super) struct KindCache {
    stamp: u64,
    kinds: Vec<Option<(u64, PreparedKind)>>,
}

/// A candidate with its exact score.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) handle: u32,
    pub(super) order: u64,
    /// After rounding.
    pub(super) total: f64,
}

impl Placed {
    pub(super) fn goes_before(&self, other: &Self) -> bool {
        let order = other.total.total_cmp(&self.total);
        order.then(self.order.cmp(&other.order)).is_lt()
    }
}

/// How candidates are scored.
#[expect(
    clippy::large_enum_variant,
    reason = "one lives on the stack of a decision, and a box would be an allocation"
)]
pub(super) enum Mode<'a> {
    /// One by one, by a scorer that has read the request.
    One(&'a dyn Scorer),
    Rules,
    Network {
        layout: &'a Layout,
        network: &'a Network,
        ready: ReadyPolicy<'a>,
    },
}

impl<'a> Mode<'a> {
    /// None where the scorer is not one that the fleet knows from within.
    pub(super) fn of(fleet: &'a Fleet, request: &Request, scorer: &'a dyn Scorer) -> Option<Self> {
        match scorer.fast() {
            Fast::Rules => Some(Self::Rules),
            Fast::Network(network) => {
                let own = fleet.embedder.as_ref()?;
                std::sync::Arc::ptr_eq(&own.network, network).then(|| Self::Network {
                    layout: &own.layout,
                    network: &own.network,
                    ready: ReadyPolicy::new(scorer.name(), &own.network, request, &fleet.summary),
                })
            }
            Fast::No => None,
        }
    }

    /// What is added to the scores; none with a scorer that is asked for every candidate, and adds
    /// it itself.
    pub(super) fn packing<'f>(&self, fleet: &'f Fleet, request: &Request) -> Option<Packing<'f>> {
        match self {
            Self::One(_) => None,
            Self::Rules | Self::Network { .. } => {
                Packing::new(&fleet.packing, request, self.scorer())
            }
        }
    }

    /// The scorer that has read the request.
    pub(super) fn scorer(&self) -> &dyn Scorer {
        match self {
            Self::One(scorer) => *scorer,
            Self::Rules => &RulesScorer,
            Self::Network { ready, .. } => ready,
        }
    }
}

/// Scores candidates exactly as the reference does.
pub(super) struct Exact<'a, 's> {
    fleet: &'a Fleet,
    request: &'a Request,
    mode: &'a Mode<'a>,
    packing: Option<Packing<'a>>,
    weights: Weights,
    reach: &'s [Reach],
    singled: &'s Marks,
    siblings: &'s Marks,
    cache: &'s mut KindCache,
    last: Option<(u32, u32, f64)>,
}

impl<'a> Exact<'a, '_> {
    /// Begins a decision.
    pub(super) fn new<'s>(
        fleet: &'a Fleet,
        request: &'a Request,
        mode: &'a Mode<'a>,
        packing: Option<Packing<'a>>,
        reach: &'s [Reach],
        marks: (&'s Marks, &'s Marks),
        cache: &'s mut KindCache,
    ) -> Exact<'a, 's> {
        cache.stamp += 1;
        cache.kinds.resize(fleet.kinds.len(), None);
        Exact {
            fleet,
            request,
            mode,
            packing,
            weights: RewardWeights::default().of(request.goal),
            reach,
            singled: marks.0,
            siblings: marks.1,
            cache,
            last: None,
        }
    }

    /// The score, rounded.
    pub(super) fn total(&mut self, block: u32, lane: u32) -> f64 {
        if let Some((last_block, last_lane, total)) = self.last
            && self.same(last_block, last_lane, block, lane)
        {
            return total;
        }
        let handle = self.fleet.blocks[block as usize].handles[lane as usize];
        let candidate = self.fleet.machine(handle).candidate();
        let packing = self.packing.as_ref().and_then(|p| p.term(&candidate));
        let raw = self.raw(block, lane, &candidate);
        let total = rounded(packing.map_or(raw, |term| raw + term));
        self.last = Some((block, lane, total));
        total
    }

    /// Whether two machines can't have different scores: many are idle and alike.
    fn same(&self, a: u32, a_lane: u32, b: u32, b_lane: u32) -> bool {
        let (x, y) = (
            &self.fleet.blocks[a as usize],
            &self.fleet.blocks[b as usize],
        );
        let (i, j) = (a_lane as usize, b_lane as usize);
        let special = |block: u32, lane: usize| {
            let marks = self.singled.of(block) | self.siblings.of(block);
            (marks | self.fleet.blocks[block as usize].odd) >> lane & 1 == 1
        };
        !matches!(self.mode, Mode::One(_))
            && x.kind == y.kind
            && x.cpu_free[i] == y.cpu_free[j]
            && x.memory_free[i] == y.memory_free[j]
            && x.cpu_used[i] == y.cpu_used[j]
            && x.images[i] == y.images[j]
            && (x.gpu_free.iter().zip(&y.gpu_free)).all(|(x, y)| x[i] == y[j])
            && !self.fleet.kind(x.kind).is_wide()
            && !special(a, i)
            && !special(b, j)
    }

    /// What is looked up of a machine.
    pub(super) fn kind(&self, block: u32, lane: u32) -> Kind {
        let lanes = &self.fleet.blocks[block as usize];
        let kind = self.fleet.kind(lanes.kind);
        let cost = kind.hourly_cost(self.request);
        if self.singled.of(block) >> lane & 1 == 0 {
            return self.reach[kind.class as usize].kind(cost);
        }
        let entry = self.fleet.entry(lanes.handles[lane as usize]);
        let location = entry.machine.candidate().location;
        let reach = self
            .fleet
            .places
            .reach_at(self.request, entry.place, location);
        reach.kind(cost)
    }

    fn raw(&mut self, block: u32, lane: u32, candidate: &Candidate<'_>) -> f64 {
        let kind = self.kind(block, lane);
        match self.mode {
            Mode::One(scorer) => {
                let features = features::encode_of(&kind, self.request, candidate);
                scorer.total(self.request, candidate, &features)
            }
            Mode::Rules => {
                let (fit, p99_ms) = encode_fit(&kind, &self.weights, self.request, candidate);
                // The rules read nothing of the other groups.
                let features = Features {
                    node: [0.0; NODE_LEN],
                    pair: [0.0; PAIR_LEN],
                    fit,
                    hourly_cost: kind.hourly_cost,
                    p99_ms,
                    data_rtt_ms: kind.data_rtt_ms,
                };
                RulesScorer.total(self.request, candidate, &features)
            }
            Mode::Network { network, ready, .. } => {
                let (fit, _) = encode_fit(&kind, &self.weights, self.request, candidate);
                let prepared = self.prepared(network, ready, block, lane, &kind);
                let score = network.score(
                    &ready.prepared,
                    &prepared,
                    self.fleet.embeddings.get(block, lane as usize),
                    &fit,
                );
                f64::from(score)
            }
        }
    }

    fn prepared(
        &mut self,
        network: &Network,
        ready: &ReadyPolicy<'_>,
        block: u32,
        lane: u32,
        kind: &Kind,
    ) -> PreparedKind {
        let id = self.fleet.blocks[block as usize].kind;
        let singled = self.singled.of(block) >> lane & 1 == 1;
        if let Some((stamp, prepared)) = self.cache.kinds[id as usize]
            && stamp == self.cache.stamp
            && !singled
        {
            return prepared;
        }
        let typical = self.fleet.kind(id).typical();
        let pair: [f32; PAIR_LEN] = encode_pair(kind, &self.weights, self.request, &typical);
        let prepared = network.prepare_kind(&ready.prepared, &pair);
        if !singled {
            self.cache.kinds[id as usize] = Some((self.cache.stamp, prepared));
        }
        prepared
    }
}

impl Fleet {
    /// What [`decide`](crate::decide) decides on [`Self::snapshot`], to the last bit: decision,
    /// score, rejections. Nothing is reserved.
    #[must_use]
    pub fn decide(
        &self,
        scratch: &mut Scratch,
        request: &Request,
        scorer: &dyn Scorer,
    ) -> Decision {
        if let Some(mode) = Mode::of(self, request, scorer) {
            return self.decide_in(scratch, request, &mode);
        }
        let ready = scorer.for_request(request, &self.summary);
        let scorer = ready.as_deref().unwrap_or(scorer);
        let packed = Packed::new(&self.packing, request, scorer);
        let mode = Mode::One(&packed);
        self.decide_in(scratch, request, &mode)
    }

    fn decide_in(&self, scratch: &mut Scratch, request: &Request, mode: &Mode<'_>) -> Decision {
        let packing = mode.packing(self, request);
        let candidates = walk(self, request, mode, packing, false, scratch);
        let mut exact = Exact::new(
            self,
            request,
            mode,
            packing,
            &scratch.reach,
            (&scratch.singled, &scratch.siblings),
            &mut scratch.kinds,
        );
        let top = &mut scratch.top;
        top.clear();
        scratch.work.exact = 0;
        for found in &scratch.found {
            let full = top.len() == TOP;
            if full && f64::from(found.upper) < top[TOP - 1].total {
                continue;
            }
            scratch.work.exact += 1;
            let placed = Placed {
                handle: found.handle,
                order: self.entry(found.handle).order,
                total: exact.total(found.block, found.lane),
            };
            debug_assert!(
                f64::from(found.lower) <= placed.total && placed.total <= f64::from(found.upper),
                "{found:?} does not hold {placed:?}"
            );
            let place = top.partition_point(|p| !placed.goes_before(p));
            if place < TOP {
                top.insert(place, placed);
                top.truncate(TOP);
            }
        }
        let features = top.first().map(|placed| {
            let entry = self.entry(placed.handle);
            let kind = exact.kind(entry.block, entry.lane);
            features::encode_of(&kind, request, &entry.machine.candidate())
        });
        let packed = Packed {
            scorer: mode.scorer(),
            packing,
        };
        self.write_up(scratch, request, &packed, candidates, features)
    }

    /// The decision for `scratch.top`.
    pub(super) fn write_up(
        &self,
        scratch: &Scratch,
        request: &Request,
        scorer: &dyn Scorer,
        candidates: usize,
        features: Option<Features>,
    ) -> Decision {
        let best = |placed: &Placed| Best {
            candidate: self.machine(placed.handle).candidate(),
            total: placed.total,
        };
        let top: Vec<Best<'_>> = scratch.top.iter().map(best).collect();
        let rejected = scratch.rejections();
        let prices = &self.packing;
        conclude(
            request, scorer, prices, candidates, rejected, &top, features,
        )
    }

    /// What [`consider`](crate::consider) finds on [`Self::snapshot`]: all candidates with their
    /// features, nodes before offers, by id.
    #[must_use]
    pub fn consider<'a>(
        &'a self,
        scratch: &mut Scratch,
        request: &Request,
    ) -> (Vec<Considered<'a>>, BTreeMap<Constraint, usize>) {
        let mode = Mode::One(&RulesScorer);
        walk(self, request, &mode, None, true, scratch);
        let offer_and_order = |f: &Found| {
            let entry = self.entry(f.handle);
            (entry.machine.is_offer(), entry.order)
        };
        scratch.found.sort_unstable_by_key(offer_and_order);
        let exact = Exact::new(
            self,
            request,
            &mode,
            None,
            &scratch.reach,
            (&scratch.singled, &scratch.siblings),
            &mut scratch.kinds,
        );
        let considered = |found: &Found| {
            let candidate = self.machine(found.handle).candidate();
            let kind = exact.kind(found.block, found.lane);
            Considered {
                features: features::encode_of(&kind, request, &candidate),
                candidate,
            }
        };
        let candidates = scratch.found.iter().map(considered).collect();
        (candidates, scratch.rejections())
    }

    /// What [`explain`](crate::choose::explain) fills in, for a decision that was made on the
    /// fleet as it is.
    pub fn explain(&self, request: &Request, scorer: &dyn Scorer, explanation: &mut Explanation) {
        let ready = scorer.for_request(request, &self.summary);
        let top: Vec<(Candidate<'_>, Kind)> = explanation
            .top
            .iter()
            .map_while(|ranked| {
                let handle = *match &ranked.candidate {
                    CandidateRef::Node(id) => self.nodes.get(id.as_str()),
                    CandidateRef::Offer(id) => self.offers.get(id.as_str()),
                }?;
                let candidate = self.machine(handle).candidate();
                Some((
                    candidate,
                    features::kind(&self.latency, request, &candidate),
                ))
            })
            .collect();
        let scorer = ready.as_deref().unwrap_or(scorer);
        let packed = Packed::new(&self.packing, request, scorer);
        explain::fill(&packed, request, &top, explanation);
    }

    /// What is left of a machine.
    pub(super) fn free(&self, handle: u32) -> Resources {
        match self.machine(handle) {
            Machine::Node(node) => node.free,
            Machine::Offer(offer) => offer.allocatable,
        }
    }
}
