//! One run: one scorer, one order of arrival.

use hyperion_placement::packing::{Demand, Free, Models, fits};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::read::{Cluster, Pods};
use super::scorers::{Kind, Scorer};

/// Places one run's pods.
pub trait Placer {
    /// A pod of this kind arrived: the node that it goes on, by its place among `nodes`, and in
    /// `devices` its devices there; none where it fits nowhere.
    fn place(
        &mut self,
        kind: usize,
        demand: &Demand,
        nodes: &[NodeState],
        devices: &mut Vec<usize>,
    ) -> Option<usize>;
}

/// More arrivals than this in one run would take hours.
pub const MOST_ARRIVALS: f64 = 2e6;
/// Scores kept at most, so that odd files don't fill the memory.
const MOST_KEPT: usize = 1 << 24;

/// What is left of a node.
#[derive(Debug, Clone)]
pub struct NodeState {
    cpu_millis: u64,
    memory_bytes: u64,
    gpus: Vec<u32>,
    model: Models,
    /// Grows with every placement here.
    version: u32,
}

impl NodeState {
    /// As packing sees it.
    pub fn free(&self) -> Free<'_> {
        Free {
            cpu_millis: self.cpu_millis,
            memory_bytes: self.memory_bytes,
            gpus: &self.gpus,
            model: self.model,
        }
    }
}

/// How a run went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Share of the GPU capacity that nobody holds in the end.
    pub unallocated_percent: f64,
    /// Pods that arrived.
    pub arrived: usize,
    /// Pods that found a place.
    pub placed: usize,
    /// Share of the pods asking for several GPUs that were rejected; 0 where there were none.
    pub several_rejected_percent: f64,
}

/// Pods that have to arrive until their GPU demand reaches the capacity.
pub fn expected_arrivals(cluster: &Cluster, pods: &Pods) -> f64 {
    let asked: f64 = pods.kind_of.iter().map(|&k| pods.kinds[k].gpus()).sum();
    cluster.gpu_millis() as f64 / 1000.0 / asked * pods.kind_of.len() as f64
}

/// Replays the arrivals of this seed.
///
/// # Errors
/// The built-in policy can't be read.
pub fn run(cluster: &Cluster, pods: &Pods, kind: Kind, seed: u64) -> anyhow::Result<Outcome> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut nodes = nodes(cluster, &mut rng);
    let arrivals = arrivals(cluster, pods, &mut rng);
    let mut placer = kind.placer(pods, &nodes, seed)?;
    let mut devices = Vec::new();
    let (mut taken, mut placed) = (0_u64, 0_usize);
    let (mut several, mut several_rejected) = (0_usize, 0_usize);
    for &kind in &arrivals {
        let demand = pods.kinds[kind];
        let chosen = placer.place(kind, &demand, &nodes, &mut devices);
        if let Some(node) = chosen.and_then(|at| nodes.get_mut(at)) {
            taken += put(node, &demand, &devices);
            placed += 1;
        }
        let needs_several = demand.gpu_count > 1;
        several += usize::from(needs_several);
        several_rejected += usize::from(needs_several && chosen.is_none());
    }
    let capacity = cluster.gpu_millis() as f64;
    Ok(Outcome {
        unallocated_percent: 100.0 * (capacity - taken as f64) / capacity,
        arrived: arrivals.len(),
        placed,
        several_rejected_percent: 100.0 * several_rejected as f64 / several.max(1) as f64,
    })
}

/// Asks a scorer for every node, and takes the one with the highest score.
pub struct ByScore {
    scorer: Box<dyn Scorer>,
    scores: Scores,
}

impl ByScore {
    /// Before the first of so many kinds of pods arrives.
    pub fn new(scorer: Box<dyn Scorer>, kinds: usize, nodes: usize) -> Self {
        Self {
            scorer,
            scores: Scores::new(kinds, nodes),
        }
    }
}

impl Placer for ByScore {
    fn place(
        &mut self,
        kind: usize,
        demand: &Demand,
        nodes: &[NodeState],
        devices: &mut Vec<usize>,
    ) -> Option<usize> {
        let scorer = self.scorer.as_mut();
        scorer.arrived(demand, nodes);
        let chosen = choose(scorer, &mut self.scores, nodes, kind, demand)?;
        scorer.devices(&nodes.get(chosen)?.free(), demand, devices);
        Some(chosen)
    }
}

/// In random order, as the first of equals is chosen.
fn nodes(cluster: &Cluster, rng: &mut StdRng) -> Vec<NodeState> {
    let mut nodes: Vec<NodeState> = cluster
        .nodes
        .iter()
        .map(|node| NodeState {
            cpu_millis: node.cpu_millis,
            memory_bytes: node.memory_bytes,
            gpus: vec![1000; node.gpus],
            model: node.model,
            version: 0,
        })
        .collect();
    nodes.shuffle(rng);
    nodes
}

/// Kinds in order of arrival, up to the one whose demand reaches the capacity.
fn arrivals(cluster: &Cluster, pods: &Pods, rng: &mut StdRng) -> Vec<usize> {
    let mut order = pods.kind_of.clone();
    order.shuffle(rng);
    let capacity = cluster.gpu_millis();
    let mut arrived = 0;
    let mut arrivals = Vec::new();
    let mut next = order.into_iter();
    while arrived < capacity {
        let kind = next
            .next()
            .unwrap_or_else(|| pods.kind_of[rng.random_range(0..pods.kind_of.len())]);
        let demand = &pods.kinds[kind];
        arrived += u64::from(demand.gpu_count) * u64::from(demand.gpu_millis);
        arrivals.push(kind);
    }
    arrivals
}

/// The node with the highest score, the first among equals; none where the demand fits nowhere.
fn choose(
    scorer: &mut dyn Scorer,
    scores: &mut Scores,
    nodes: &[NodeState],
    kind: usize,
    demand: &Demand,
) -> Option<usize> {
    let epoch = scorer.epoch();
    let mut best: Option<(f64, usize)> = None;
    for (at, node) in nodes.iter().enumerate() {
        let free = node.free();
        if !fits(&free, demand) {
            continue;
        }
        let score = match (epoch, scores.at(kind, at)) {
            (Some(epoch), Some(kept)) => {
                if (kept.epoch, kept.version) != (epoch, node.version) {
                    *kept = Kept {
                        epoch,
                        version: node.version,
                        score: scorer.score(&free, demand),
                    };
                }
                kept.score
            }
            _ => scorer.score(&free, demand),
        };
        if best.is_none_or(|(highest, _)| score > highest) {
            best = Some((score, at));
        }
    }
    best.map(|(_, at)| at)
}

/// Takes what the demand asks for; returns the GPU thousandths taken.
fn put(node: &mut NodeState, demand: &Demand, devices: &[usize]) -> u64 {
    node.cpu_millis -= demand.cpu_millis;
    node.memory_bytes -= demand.memory_bytes;
    node.version += 1;
    for &device in devices {
        node.gpus[device] -= demand.gpu_millis;
    }
    devices.len() as u64 * u64::from(demand.gpu_millis)
}

/// Scores by kind and node, good while neither node nor scorer changes.
struct Scores {
    nodes: usize,
    kept: Vec<Kept>,
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    /// 0 is before the first.
    epoch: u32,
    version: u32,
    score: f64,
}

impl Scores {
    fn new(kinds: usize, nodes: usize) -> Self {
        let size = kinds.saturating_mul(nodes);
        let none = Kept {
            epoch: 0,
            version: 0,
            score: 0.0,
        };
        Self {
            nodes,
            kept: vec![none; if size <= MOST_KEPT { size } else { 0 }],
        }
    }

    fn at(&mut self, kind: usize, node: usize) -> Option<&mut Kept> {
        self.kept.get_mut(kind * self.nodes + node)
    }
}
