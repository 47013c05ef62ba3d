//! Episodes played by every scheduler on the same worlds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyperion_placement::choose::Considered;
use hyperion_placement::features::Summary;
use hyperion_placement::model::{Request, Snapshot};
use hyperion_placement::packing::{Packed, Prices};
use hyperion_placement::policy::Network;
use hyperion_placement::score::{ReadyPolicy, Scorer};

use crate::baselines;
use crate::bound::{Bound, Foresight, Optimum, foresee, optimum};
use crate::parallel::in_parallel;
use crate::scenario::{Path, Scenario, Size, Split};
use crate::sim::{Brain, Outcome, SimConfig, Truth, best, run};
use crate::world::World;

/// The policy in full precision.
pub const PPO: &str = "ppo";
/// The policy quantised.
pub const PPO_QUANTISED: &str = "ppo-quantised";

/// A scheduler that knows the future: what of the bound can be had.
pub const FORESIGHT: &str = "foresight";

/// Decides with a network, as the control plane does.
#[derive(Debug, Clone)]
pub struct PolicyBrain {
    name: &'static str,
    network: Network,
    /// Asked too, to count how often it agrees.
    other: Option<Network>,
    /// Decisions, and those in which the other's first choice was the same.
    pub agreed: (u64, u64),
}

impl PolicyBrain {
    /// Decides with `network`; counts how often the first choice of `other` is the same.
    #[must_use]
    pub const fn new(name: &'static str, network: Network, other: Option<Network>) -> Self {
        Self {
            name,
            network,
            other,
            agreed: (0, 0),
        }
    }
}

fn first_choice(
    network: &Network,
    known: &Request,
    summary: &Summary,
    prices: &Prices,
    candidates: &[Considered<'_>],
) -> Option<usize> {
    let policy = ReadyPolicy::new(PPO, network, known, summary);
    let policy = Packed::new(prices, known, &policy);
    best(candidates, |c| {
        policy.total(known, &c.candidate, &c.features)
    })
}

impl Brain for PolicyBrain {
    fn name(&self) -> &str {
        self.name
    }

    fn packs(&self) -> bool {
        true
    }

    fn decide(
        &mut self,
        snapshot: &Snapshot,
        request: &Request,
        candidates: &[Considered<'_>],
        _: &dyn Truth,
    ) -> Option<usize> {
        // Nobody tells the control plane how long a job will take.
        let known = Request {
            expected_hours: None,
            ..request.clone()
        };
        let summary = Summary::of(snapshot);
        let first =
            |network| first_choice(network, &known, &summary, &snapshot.packing, candidates);
        let choice = first(&self.network);
        if let Some(other) = &self.other {
            self.agreed.0 += 1;
            self.agreed.1 += u64::from(first(other) == choice);
        }
        choice
    }
}

/// What is played.
pub struct Plan<'a> {
    /// Where episodes are drawn from.
    pub world: &'a World,
    /// How large they are.
    pub size: Size,
    /// Rules.
    pub config: SimConfig,
    /// The policy, and the same quantised.
    pub policy: Option<(Network, Network)>,
    /// Rounds of the bound; 0 leaves it out.
    pub bound_rounds: u32,
    /// Rounds of the sharper bound of small worlds; 0 leaves it and the search out.
    pub optimum_rounds: u32,
    /// Threads.
    pub threads: usize,
}

/// One episode played by every scheduler.
#[derive(Debug, Clone)]
pub struct Played {
    /// Seed.
    pub seed: u64,
    /// Scheduler, outcome.
    pub outcomes: Vec<(&'static str, Outcome)>,
    /// What no scheduler exceeds.
    pub bound: Option<Bound>,
    /// Between what its optimum lies.
    pub optimum: Option<Optimum>,
    /// Decisions of the policy, and those in which the quantised one agreed.
    pub agreed: (u64, u64),
    /// The control group and the policy where every price is a published quote and stays.
    pub list_prices: Option<(Outcome, Outcome)>,
}

impl Played {
    /// The outcome of a scheduler.
    #[must_use]
    pub fn of(&self, scheduler: &str) -> Option<&Outcome> {
        self.outcomes
            .iter()
            .find(|(name, _)| *name == scheduler)
            .map(|(_, outcome)| outcome)
    }
}

impl Plan<'_> {
    /// Names of the schedulers, in the order of tables.
    #[must_use]
    pub fn schedulers(&self) -> Vec<&'static str> {
        let policy = self.policy.is_some();
        let policies = [PPO, PPO_QUANTISED].into_iter().filter(|_| policy);
        let foresight = [FORESIGHT].into_iter().filter(|_| self.bound_rounds > 0);
        let names = baselines::NAMES.into_iter().chain(policies);
        names.chain(foresight).collect()
    }

    /// Plays the episodes of `seeds`, in the order of the seeds; `done` is told how many are.
    #[must_use]
    pub fn play(&self, split: Split, seeds: &[u64], done: &(dyn Fn(usize) + Sync)) -> Vec<Played> {
        let finished = AtomicUsize::new(0);
        in_parallel(self.threads, seeds.len(), |at| {
            let played = self.episode(split, seeds[at]);
            done(finished.fetch_add(1, Ordering::Relaxed) + 1);
            played
        })
    }

    fn episode(&self, split: Split, seed: u64) -> Played {
        let scenario = Arc::new(Scenario::draw(self.world, seed, split, &self.size));
        let mut outcomes = Vec::new();
        for name in baselines::NAMES {
            if let Some(mut brain) = baselines::by_name(name) {
                outcomes.push((name, run(&scenario, self.config, &mut *brain)));
            }
        }
        let (mut agreed, mut list_prices) = ((0, 0), None);
        if let Some((full, quantised)) = &self.policy {
            let mut brain = PolicyBrain::new(PPO, full.clone(), Some(quantised.clone()));
            outcomes.push((PPO, run(&scenario, self.config, &mut brain)));
            agreed = brain.agreed;
            let mut brain = PolicyBrain::new(PPO_QUANTISED, quantised.clone(), None);
            outcomes.push((PPO_QUANTISED, run(&scenario, self.config, &mut brain)));
            let listed = Arc::new(list_prices_only(&scenario));
            let mut brain = PolicyBrain::new(PPO, full.clone(), None);
            let ours = run(&listed, self.config, &mut brain);
            list_prices = Some((run(&listed, self.config, &mut baselines::Static), ours));
        }
        let foresight = (self.bound_rounds > 0).then(|| {
            let foresight = Foresight::new(&scenario, &self.config, self.bound_rounds);
            let outcome = foresee(&scenario, self.config, &foresight);
            outcomes.push((FORESIGHT, outcome));
            foresight
        });
        let known = foresight.as_ref().filter(|_| self.optimum_rounds > 0);
        let optimum = known.and_then(|foresight| {
            let mut brains: Vec<Box<dyn Brain + Send>> = Vec::new();
            brains.extend(baselines::by_name("greedy"));
            if let Some((full, _)) = &self.policy {
                brains.push(Box::new(PolicyBrain::new(PPO, full.clone(), None)));
            }
            let rounds = self.optimum_rounds;
            optimum(&scenario, self.config, foresight, &mut brains, rounds)
        });
        let bound = foresight.map(|f| f.bound);
        Played {
            seed,
            outcomes,
            bound,
            optimum,
            agreed,
            list_prices,
        }
    }
}

/// The same episode with only those pools whose prices are published quotes, at the quote.
fn list_prices_only(scenario: &Scenario) -> Scenario {
    let mut listed = scenario.clone();
    listed.pools.retain(|p| p.published);
    for pool in &mut listed.pools {
        pool.price = Path::constant(pool.quote);
    }
    listed
}
