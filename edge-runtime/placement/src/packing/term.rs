//! Prices in a decision: the score's term `packing`, and the choice of devices.

use super::prices::{self, Left, Pool};
use super::{Demand, Models, Prices};
use crate::features::Features;
use crate::filter::Candidate;
use crate::gpu::{self, WHOLE};
use crate::model::{GpuDevice, GpuRequest, Node, Request, Tier};
use crate::score::{Score, Scorer};

/// Name of the term.
pub const TERM: &str = "packing";
/// Loss beyond which nothing gets worse, in whole devices: more than any machine has.
const MOST_LOSS: f64 = 128.0;

/// The class of a node's devices, as a set of one: those who can use them at all are told apart by
/// tier, architecture, and whether a cluster gives them out, which it does as whole devices only.
#[must_use]
pub fn class(tier: Tier, arch: &str, in_cluster: bool) -> Models {
    let tier = match tier {
        Tier::Cloud => 0,
        Tier::Edge => 1,
    };
    let arch = match arch {
        "amd64" => 0,
        "arm64" => 1,
        _ => 2,
    };
    Models(1 << ((tier * 3 + arch) * 2 + u32::from(in_cluster)))
}

/// What the request asks for, and the classes of devices that will do.
#[must_use]
pub fn demand_of(request: &Request) -> Demand {
    let mut models = 0;
    for tier in [Tier::Cloud, Tier::Edge] {
        for arch in ["amd64", "arm64", ""] {
            for in_cluster in [false, true] {
                let arch_will_do = request.archs.is_empty()
                    || request.archs.iter().any(|a| match arch {
                        "" => a != "amd64" && a != "arm64",
                        known => a == known,
                    });
                let will_do = (request.tiers.is_empty() || request.tiers.contains(&tier))
                    && arch_will_do
                    && (in_cluster || request.cluster_only_fields.is_empty())
                    && !(in_cluster && request.gpu.is_share());
                if will_do {
                    models |= class(tier, arch, in_cluster).0;
                }
            }
        }
    }
    Demand {
        models: Models(models),
        ..Demand::new(request.resources, request.gpu)
    }
}

/// A request on known prices.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packing<'a> {
    prices: &'a Prices,
    demand: Demand,
    weight: f64,
}

impl<'a> Packing<'a> {
    /// None where nothing is known, and where the replica runs already: what is to be placed is
    /// packed, and nothing is moved for it.
    pub(crate) fn new(prices: &'a Prices, request: &Request, scorer: &dyn Scorer) -> Option<Self> {
        let weight = scorer.packing_weight();
        (prices.known() && weight > 0.0 && request.current.is_none()).then(|| Self {
            prices,
            demand: demand_of(request),
            weight,
        })
    }

    pub(crate) fn pool(&self, class: Models) -> Option<&'a Pool> {
        self.prices.pool(class)
    }

    /// The term on what is left of a node, from -[`MOST_LOSS`] times the weight to 0.
    #[inline]
    pub(crate) fn on<D>(&self, pool: Option<&Pool>, left: &Left<D>) -> f64
    where
        D: Iterator<Item = u32> + Clone,
    {
        let loss = prices::loss(pool, left, &self.demand).unwrap_or(0.0);
        // What is no number never reaches a decision.
        let loss = if loss.is_finite() { loss } else { 0.0 };
        0.0 - self.weight * loss.clamp(0.0, MOST_LOSS)
    }

    /// The term on a candidate; none where it has no GPUs to pack.
    pub(crate) fn term(&self, candidate: &Candidate<'_>) -> Option<f64> {
        if candidate.gpus.is_empty() {
            return None;
        }
        let left = Left {
            cpu_millis: candidate.free.cpu_millis as f64,
            memory_bytes: candidate.free.memory_bytes as f64,
            devices: left_of(candidate.gpus),
        };
        Some(self.on(self.pool(class_of(candidate)), &left))
    }
}

pub(super) fn left_of(gpus: &[GpuDevice]) -> impl Iterator<Item = u32> + Clone {
    gpus.iter().map(|gpu| gpu.free_millis.min(WHOLE))
}

fn class_of(candidate: &Candidate<'_>) -> Models {
    let in_cluster = candidate.node.is_some_and(Node::in_cluster);
    class(candidate.location.tier, candidate.arch, in_cluster)
}

/// Devices for the request, as (uuid, thousandths): those that lose least by known prices, and
/// those of [`gpu::assign`] where nothing is known. None where they have no room.
pub(crate) fn assign(
    prices: &Prices,
    request: &GpuRequest,
    candidate: &Candidate<'_>,
) -> Option<Vec<(String, u32)>> {
    if request.count == 0 || !prices.known() {
        return gpu::assign(request, candidate.gpus);
    }
    let demand = Demand::new(Default::default(), *request);
    let pool = prices.pool(class_of(candidate));
    let devices = prices::devices(pool, left_of(candidate.gpus), &demand)?;
    let named = |device: usize| {
        let gpu = candidate.gpus.get(device)?;
        Some((gpu.uuid.clone(), demand.gpu_millis))
    };
    devices.into_iter().map(named).collect()
}

/// A scorer with the term added, for those who choose themselves; [`crate::decide`] adds it.
pub struct Packed<'a> {
    pub(crate) scorer: &'a dyn Scorer,
    pub(crate) packing: Option<Packing<'a>>,
}

impl<'a> Packed<'a> {
    /// On a scorer that has read the request.
    pub fn new(prices: &'a Prices, request: &Request, scorer: &'a dyn Scorer) -> Self {
        Self {
            scorer,
            packing: Packing::new(prices, request, scorer),
        }
    }

    fn term(&self, candidate: &Candidate<'_>) -> Option<f64> {
        self.packing.as_ref()?.term(candidate)
    }
}

impl Scorer for Packed<'_> {
    fn name(&self) -> &str {
        self.scorer.name()
    }

    fn score(&self, request: &Request, candidate: &Candidate<'_>, features: &Features) -> Score {
        let mut score = self.scorer.score(request, candidate, features);
        score
            .terms
            .extend(self.term(candidate).map(|term| (TERM, term)));
        score
    }

    fn total(&self, request: &Request, candidate: &Candidate<'_>, features: &Features) -> f64 {
        let total = self.scorer.total(request, candidate, features);
        self.term(candidate).map_or(total, |term| total + term)
    }

    /// The term is in it.
    fn packing_weight(&self) -> f64 {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::choose::{Decision, decide, explain};
    use crate::fleet::{Fleet, Scratch};
    use crate::model::{
        CapacityType, Location, Offer, Provider, Resources, Snapshot, Supply, WorkloadType,
    };
    use crate::packing::{Lesson, TypicalRequests};
    use crate::score::RulesScorer;

    const GIB: u64 = 1 << 30;

    /// An owned node of 16 cores with so much left of its devices.
    fn node(id: &str, gpus: &[u32]) -> Node {
        let all = Resources {
            cpu_millis: 16_000,
            memory_bytes: 64 * GIB,
        };
        let offer = Offer {
            id: String::new(),
            location: Location {
                tier: Tier::Edge,
                provider: Provider::Edge,
                region: String::new(),
                zone: String::new(),
                site: "lab".to_owned(),
                geography: None,
            },
            arch: "amd64".to_owned(),
            capacity_type: CapacityType::Owned,
            instance_type: String::new(),
            allocatable: all,
            gpus: Vec::new(),
            price_per_hour: 0.0,
            supply: Supply::default(),
            startup_s: 0.0,
        };
        let device = |(device, left): (usize, &u32)| GpuDevice {
            uuid: format!("{id}-{device}"),
            model: "L4".to_owned(),
            memory_bytes: 24 * GIB,
            free_millis: *left,
        };
        Node {
            gpus: gpus.iter().enumerate().map(device).collect(),
            ..offer.node(id.to_owned())
        }
    }

    fn asks(cpu_millis: u64, count: u32, millis: u32) -> Request {
        Request {
            workload_type: WorkloadType::Job,
            resources: Resources {
                cpu_millis,
                memory_bytes: GIB,
            },
            gpu: GpuRequest { count, millis },
            ..Request::new("default/w/0")
        }
    }

    fn learned(typical: &[(Request, u32)], nodes: &[Node]) -> Arc<Prices> {
        let mut seen = TypicalRequests::default();
        for (request, times) in typical {
            seen.observe_many(demand_of(request), *times);
        }
        let lesson = Lesson::new(seen, nodes.iter(), Arc::default());
        Arc::new(lesson.prices())
    }

    /// By both ways, which agree.
    fn decided(nodes: &[Node], packing: &Arc<Prices>, request: &Request) -> Decision {
        let snapshot = Snapshot {
            nodes: nodes.to_vec(),
            packing: packing.clone(),
            ..Snapshot::default()
        };
        let fleet = Fleet::of(&snapshot);
        let mut decision = decide(&snapshot, request, &RulesScorer);
        let fast = fleet.decide(&mut Scratch::new(), request, &RulesScorer);
        assert_eq!(fast, decision);
        explain(&snapshot, request, &RulesScorer, &mut decision.explanation);
        decision
    }

    fn place(decision: &Decision) -> (&str, Vec<&str>) {
        let choice = decision.choice.as_ref().unwrap();
        let devices = choice.gpus.iter().map(|(uuid, _)| uuid.as_str());
        (choice.candidate.id(), devices.collect())
    }

    fn term_of(terms: &[(String, f64)]) -> Option<f64> {
        let found = terms.iter().find(|(name, _)| name == TERM);
        found.map(|(_, value)| *value)
    }

    #[test]
    fn a_share_goes_where_it_leaves_nothing_useless() {
        // 700 are wanted and 300, so what is left of 1000 after a 300 suits a 700, and of 600 none.
        let nodes = [node("a", &[600]), node("b", &[300]), node("c", &[1000])];
        let typical = [(asks(1000, 1, 700), 10), (asks(1000, 1, 300), 10)];
        let request = asks(1000, 1, 300);
        let unknown = decided(&nodes, &Arc::default(), &request);
        assert_eq!(place(&unknown), ("a", vec!["a-0"]));
        assert_eq!(term_of(&unknown.explanation.terms), None);

        let known = decided(&nodes, &learned(&typical, &nodes), &request);
        assert_eq!(place(&known), ("b", vec!["b-0"]));
        let terms = &known.explanation.terms;
        assert!(term_of(terms).unwrap() < 0.0, "{terms:?}");
        let sum: f64 = terms.iter().map(|(_, value)| value).sum();
        assert!((sum - known.choice.as_ref().unwrap().score).abs() < 1e-5);
        for ranked in &known.explanation.top {
            assert!(term_of(&ranked.terms).is_some(), "{ranked:?}");
        }
    }

    #[test]
    fn devices_are_chosen_by_what_is_lost() {
        let nodes = [node("a", &[500, 300, 600, 1000])];
        let typical = [(asks(1000, 1, 500), 10), (asks(1000, 1, 100), 1)];
        let request = asks(1000, 1, 100);
        let unknown = decided(&nodes, &Arc::default(), &request);
        assert_eq!(place(&unknown).1, ["a-1"]);
        // On 300, too: nobody else can use it. Whole halves stay.
        let known = decided(&nodes, &learned(&typical, &nodes), &request);
        assert!(["a-1", "a-2"].contains(&place(&known).1[0]), "{known:?}");
    }

    #[test]
    fn who_wants_no_gpu_leaves_the_cores_of_gpus_alone() {
        let nodes = [node("a", &[1000; 8]), node("b", &[])];
        let typical = [(asks(2000, 1, 1000), 10)];
        let packing = learned(&typical, &nodes);
        let request = asks(8000, 0, 0);
        assert_eq!(place(&decided(&nodes, &Arc::default(), &request)).0, "a");
        let known = decided(&nodes, &packing, &request);
        assert_eq!(place(&known).0, "b");
        assert_eq!(term_of(&known.explanation.terms), None, "it has no GPUs");
    }

    #[test]
    fn a_replica_that_runs_is_not_moved_for_it() {
        let nodes = [node("a", &[600]), node("b", &[300])];
        let typical = [(asks(1000, 1, 700), 10), (asks(1000, 1, 300), 10)];
        let mut request = asks(1000, 1, 300);
        request.current = Some("a".to_owned());
        let known = decided(&nodes, &learned(&typical, &nodes), &request);
        assert_eq!(place(&known).0, "a");
        assert_eq!(term_of(&known.explanation.terms), None);
    }

    #[test]
    fn classes_are_those_that_a_request_can_use() {
        let fits = |request: &Request, tier, arch, in_cluster| {
            demand_of(request)
                .models
                .overlaps(class(tier, arch, in_cluster))
        };
        let share = asks(1, 1, 300);
        assert!(fits(&share, Tier::Edge, "arm64", false));
        assert!(!fits(&share, Tier::Cloud, "amd64", true), "whole GPUs only");
        let mut whole = asks(1, 1, 1000);
        assert!(fits(&whole, Tier::Cloud, "amd64", true));
        whole.tiers = vec![Tier::Cloud];
        whole.archs = vec!["arm64".to_owned()];
        assert!(fits(&whole, Tier::Cloud, "arm64", true));
        assert!(!fits(&whole, Tier::Edge, "arm64", false));
        assert!(!fits(&whole, Tier::Cloud, "amd64", false));
        assert!(!fits(&whole, Tier::Cloud, "riscv64", false));
        whole.cluster_only_fields = vec!["spec.volumes".to_owned()];
        assert!(!fits(&whole, Tier::Cloud, "arm64", false));
    }

    #[test]
    fn absurd_demands_and_accounts_give_finite_terms() {
        let nodes = [node("a", &[1000; 8])];
        let mut typical = vec![(asks(u64::MAX, 1, 1000), u32::MAX), (asks(0, 8, 1000), 1)];
        typical.push((asks(1, u32::MAX, 1), 1));
        let prices = learned(&typical, &nodes);
        assert!(prices.known());
        for (cpu, count, millis) in [(u64::MAX, u32::MAX, 1000), (0, 8, 1000), (0, 0, 0)] {
            let request = asks(cpu, count, millis);
            let mut odd = nodes[0].clone();
            odd.free.cpu_millis = u64::MAX;
            odd.gpus[0].free_millis = u32::MAX;
            let packing = Packing::new(&prices, &request, &RulesScorer).unwrap();
            let term = packing.term(&(&odd).into()).unwrap();
            assert!(term.is_finite() && term <= 0.0, "{term}");
        }
    }
}
