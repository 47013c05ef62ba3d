//! Which of a run's policies is best, by episodes that it does not learn from.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use hyperion_placement::policy::Network;
use hyperion_scheduler::baselines;
use hyperion_scheduler::eval::episodes::{PPO, PolicyBrain};
use hyperion_scheduler::parallel::in_parallel;
use hyperion_scheduler::scenario::{Scenario, Size, Split};
use hyperion_scheduler::sim::{Brain, SimConfig, run as play};
use hyperion_scheduler::world::World;

use super::{policy, say};

/// Validation plays the worlds of training with seeds that neither training nor evaluation uses.
const VALIDATION_SEED: u64 = 1 << 41;

/// Episodes that tell how good a policy is while it learns.
pub struct Validation {
    /// Of each size.
    scenarios: Vec<Vec<Arc<Scenario>>>,
    threads: usize,
}

impl Validation {
    /// Draws so many episodes of each size, one at least.
    pub fn new(world: &World, sizes: &[(Size, u64)], threads: usize) -> Self {
        let draw = |(size, episodes): &(Size, u64)| {
            (VALIDATION_SEED..VALIDATION_SEED + episodes.max(&1))
                .map(|s| Arc::new(Scenario::draw(world, s, Split::Train, size)))
                .collect()
        };
        Self {
            scenarios: sizes.iter().map(draw).collect(),
            threads: threads.max(1),
        }
    }

    /// What baselines earn on them.
    pub fn references(&self) -> Vec<(String, f64)> {
        ["static", "cheapest", "rules", "greedy"]
            .into_iter()
            .map(|name| {
                let rewards = self.means(|| baselines::by_name(name));
                (name.to_owned(), Self::overall(&rewards))
            })
            .collect()
    }

    /// What a policy earns on them.
    pub fn reward(&self, network: &Network) -> f64 {
        Self::overall(&self.rewards(network))
    }

    /// What a policy earns on those of each size.
    pub fn rewards(&self, network: &Network) -> Vec<f64> {
        self.means(|| {
            let brain = PolicyBrain::new(PPO, network.clone(), None);
            Some(Box::new(brain) as Box<dyn Brain + Send>)
        })
    }

    /// The mean over sizes: each counts as much as another, however many episodes it has.
    pub fn overall(rewards: &[f64]) -> f64 {
        rewards.iter().sum::<f64>() / rewards.len().max(1) as f64
    }

    /// Mean reward over the episodes of each size.
    fn means(&self, brain: impl Fn() -> Option<Box<dyn Brain + Send>> + Sync) -> Vec<f64> {
        let mean = |scenarios: &Vec<Arc<Scenario>>| {
            let rewards = in_parallel(self.threads, scenarios.len(), |i| {
                brain().map_or(0.0, |mut brain| {
                    play(&scenarios[i], SimConfig::default(), &mut *brain)
                        .all
                        .mean_reward()
                })
            });
            rewards.iter().sum::<f64>() / rewards.len() as f64
        };
        self.scenarios.iter().map(mean).collect()
    }
}

/// The policy that validated best.
pub struct Best {
    /// Mean reward on the validation episodes.
    pub reward: f64,
    /// The policy.
    pub network: Network,
    /// Decisions it took to get there.
    pub steps: u64,
}

impl Best {
    /// Takes the policy of a file, where there is one and it is better: what the run before left.
    pub fn recall(&mut self, path: &Path, validation: &Validation) -> Result<()> {
        if !path.exists() {
            return Ok(());
        }
        let file = policy(path)?;
        let reward = validation.reward(&file.network);
        say(&format!("validation: {} {reward:.4}", path.display()));
        if reward > self.reward {
            *self = Self {
                reward,
                network: file.network,
                steps: file.card.steps,
            };
        }
        Ok(())
    }
}
