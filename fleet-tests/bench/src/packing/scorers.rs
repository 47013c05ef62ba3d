//! The scorers that are compared.
//!
//! The first four are written after the description in "Beware of Fragmentation" (USENIX ATC 2023)
//! and the simulator published with it. Scores there are whole numbers from 0 to 100 and the first
//! of equals wins; that is kept, because it changes what the scorers do.

use std::sync::Arc;

use hyperion_placement::packing::{Demand, Free, Prices, TypicalRequests, fragmentation_delta};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::production::Production;
use super::read::Pods;
use super::replay::{ByScore, NodeState, Placer};

/// Scores one run's candidates.
pub trait Scorer {
    /// A pod arrived; it is decided upon next.
    fn arrived(&mut self, _demand: &Demand, _nodes: &[NodeState]) {}

    /// Changes whenever scores may have changed without the node having changed; from 1. None
    /// where a score is never good for a second time.
    fn epoch(&self) -> Option<u32> {
        Some(1)
    }

    /// The score of a node where the demand fits; the highest wins.
    fn score(&mut self, free: &Free<'_>, demand: &Demand) -> f64;

    /// The devices of the chosen node.
    fn devices(&mut self, free: &Free<'_>, demand: &Demand, devices: &mut Vec<usize>) {
        fullest(free, demand, devices);
    }
}

/// Which scorer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any node, any device.
    Random,
    /// Least left over.
    BestFit,
    /// Least product of demand and what is free (Tetris, SIGCOMM 2014).
    DotProduct,
    /// Steepest descent of fragmentation.
    Fgd,
    /// The production decision by rules.
    Rules,
    /// The production decision by the built-in policy.
    Policy,
    /// The production decision by rules, with prices learned on the way.
    RulesPacking,
    /// The production decision by the built-in policy, with them.
    PolicyPacking,
    /// Least worth destroyed, by prices learned on the way.
    Hyperion,
}

impl Kind {
    /// All, the one that takes most time last.
    pub const ALL: [Self; 9] = [
        Self::Random,
        Self::BestFit,
        Self::DotProduct,
        Self::Rules,
        Self::Policy,
        Self::Fgd,
        Self::RulesPacking,
        Self::PolicyPacking,
        Self::Hyperion,
    ];

    /// As in the names of figures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::BestFit => "best_fit",
            Self::DotProduct => "dot_product",
            Self::Fgd => "fgd",
            Self::Rules => "rules",
            Self::Policy => "policy",
            Self::RulesPacking => "rules_packing",
            Self::PolicyPacking => "policy_packing",
            Self::Hyperion => "hyperion",
        }
    }

    /// A fresh one for one run.
    ///
    /// # Errors
    /// The built-in policy can't be read.
    pub fn placer(
        self,
        pods: &Pods,
        nodes: &[NodeState],
        seed: u64,
    ) -> anyhow::Result<Box<dyn Placer>> {
        let rules = || Production::rules(pods, nodes);
        let policy = || Production::policy(pods, nodes);
        let scorer: Box<dyn Scorer> = match self {
            // Not the stream that orders the arrivals.
            Self::Random => Box::new(Random(StdRng::seed_from_u64(!seed))),
            Self::BestFit => Box::new(BestFit),
            Self::DotProduct => Box::new(DotProduct),
            Self::Fgd => Box::new(Fgd::new(pods)),
            Self::Hyperion => Box::new(Hyperion::default()),
            Self::Rules => return Ok(Box::new(rules())),
            Self::Policy => return Ok(Box::new(policy()?)),
            Self::RulesPacking => return Ok(Box::new(rules().packing())),
            Self::PolicyPacking => return Ok(Box::new(policy()?.packing())),
        };
        Ok(Box::new(ByScore::new(
            scorer,
            pods.kinds.len(),
            nodes.len(),
        )))
    }
}

/// Capacity of the largest machine, by which the published scorers divide.
const MOST_CPU_MILLIS: f64 = 128_000.0;
const MOST_GPUS: f64 = 8.0;

struct Random(StdRng);

impl Scorer for Random {
    fn epoch(&self) -> Option<u32> {
        None
    }

    fn score(&mut self, _: &Free<'_>, _: &Demand) -> f64 {
        self.0.random_range(0.0..1.0)
    }

    fn devices(&mut self, free: &Free<'_>, demand: &Demand, devices: &mut Vec<usize>) {
        with_room(free, demand, devices);
        while devices.len() > demand.gpu_count as usize {
            let at = self.0.random_range(0..devices.len());
            devices.remove(at);
        }
    }
}

struct BestFit;

impl Scorer for BestFit {
    fn score(&mut self, free: &Free<'_>, demand: &Demand) -> f64 {
        let cpu = (free.cpu_millis - demand.cpu_millis) as f64 / MOST_CPU_MILLIS;
        let gpus = (gpus_free(free) - demand.gpus()) / MOST_GPUS;
        (100.0 * (1.0 - (cpu + gpus) / 2.0)).floor()
    }
}

struct DotProduct;

impl Scorer for DotProduct {
    fn score(&mut self, free: &Free<'_>, demand: &Demand) -> f64 {
        let cpu = free.cpu_millis as f64 * demand.cpu_millis as f64 / MOST_CPU_MILLIS.powi(2);
        let gpus = gpus_free(free) * demand.gpus() / MOST_GPUS.powi(2);
        (100.0 * (1.0 - (cpu + gpus) / 2.0)).floor()
    }
}

struct Fgd {
    typical: TypicalRequests,
}

impl Fgd {
    /// Knows the whole file, as published: the most frequent demands that make up 95 % of it.
    fn new(pods: &Pods) -> Self {
        let mut all = TypicalRequests::default();
        for &kind in &pods.kind_of {
            all.observe(pods.kinds[kind]);
        }
        Self {
            typical: all.popular(0.95),
        }
    }
}

impl Scorer for Fgd {
    fn score(&mut self, free: &Free<'_>, demand: &Demand) -> f64 {
        fragmentation_delta(free, demand, &self.typical)
            .map_or(0.0, |(delta, _)| (100.0 / (1.0 + delta.exp())).floor())
    }

    fn devices(&mut self, free: &Free<'_>, demand: &Demand, devices: &mut Vec<usize>) {
        match fragmentation_delta(free, demand, &self.typical) {
            Some((_, Some(device))) => {
                devices.clear();
                devices.push(device);
            }
            _ => fullest(free, demand, devices),
        }
    }
}

/// Prices are refreshed when the GPU demand that arrived since is this share of what was free.
const REFRESH: f64 = 0.05;
/// And at least when it is this share of what had arrived before.
const LEARNED: f64 = 0.15;

/// Prices learned from the pods that arrive.
#[derive(Default)]
pub struct Learning {
    typical: TypicalRequests,
    pub prices: Arc<Prices>,
    /// Refreshes so far.
    epoch: u32,
    /// GPUs asked for since the last refresh.
    asked: f64,
    /// GPUs that may be asked for until the next, by what was free.
    allowed: f64,
    /// The same, by what was seen: more often in the beginning, when a few pods say much.
    learned: f64,
    /// GPUs asked for in all.
    seen: f64,
}

impl Learning {
    /// True where the prices were refreshed.
    pub fn arrived<'a>(&mut self, demand: &Demand, fleet: impl FnOnce() -> Vec<Free<'a>>) -> bool {
        self.typical.observe(*demand);
        self.asked += demand.gpus();
        self.seen += demand.gpus();
        if self.asked < self.allowed.min(self.learned) {
            return false;
        }
        let fleet = fleet();
        self.prices = Arc::new(Prices::refresh(&self.typical, &fleet, &self.prices));
        self.epoch += 1;
        self.asked = 0.0;
        self.learned = LEARNED * self.seen;
        self.allowed = REFRESH * fleet.iter().map(gpus_free).sum::<f64>();
        true
    }
}

#[derive(Default)]
struct Hyperion(Learning);

impl Scorer for Hyperion {
    fn arrived(&mut self, demand: &Demand, nodes: &[NodeState]) {
        let fleet = || nodes.iter().map(NodeState::free).collect();
        self.0.arrived(demand, fleet);
    }

    fn epoch(&self) -> Option<u32> {
        Some(self.0.epoch)
    }

    fn score(&mut self, free: &Free<'_>, demand: &Demand) -> f64 {
        -self.0.prices.loss(free, demand).unwrap_or(f64::INFINITY)
    }

    fn devices(&mut self, free: &Free<'_>, demand: &Demand, devices: &mut Vec<usize>) {
        devices.clear();
        devices.extend(self.0.prices.assign(free, demand).unwrap_or_default());
    }
}

fn gpus_free(free: &Free<'_>) -> f64 {
    f64::from(free.gpus.iter().sum::<u32>()) / 1000.0
}

/// Devices with room, in their order; none where no device is asked for.
fn with_room(free: &Free<'_>, demand: &Demand, devices: &mut Vec<usize>) {
    devices.clear();
    if demand.gpu_count > 0 {
        let room = |(device, &left): (usize, &u32)| (left >= demand.gpu_millis).then_some(device);
        devices.extend(free.gpus.iter().enumerate().filter_map(room));
    }
}

/// The fullest devices with room, the first among equals.
fn fullest(free: &Free<'_>, demand: &Demand, devices: &mut Vec<usize>) {
    with_room(free, demand, devices);
    devices.sort_by_key(|&device| free.gpus[device]);
    devices.truncate(demand.gpu_count as usize);
}
