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
    scenarios: Vec<Arc<Scenario>>,
    threads: usize,
}

impl Validation {
    /// Draws them.
    pub fn new(world: &World, size: &Size, episodes: u64, threads: usize) -> Self {
        let seeds = VALIDATION_SEED..VALIDATION_SEED + episodes.max(1);
        Self {
            scenarios: seeds
                .map(|s| Arc::new(Scenario::draw(world, s, Split::Train, size)))
                .collect(),
            threads: threads.max(1),
        }
    }

    /// What baselines earn on them.
    pub fn references(&self) -> Vec<(String, f64)> {
        ["static", "cheapest", "rules", "greedy"]
            .into_iter()
            .map(|name| (name.to_owned(), self.mean(|| baselines::by_name(name))))
            .collect()
    }

    /// What a policy earns on them.
    pub fn reward(&self, network: &Network) -> f64 {
        self.mean(|| {
            let brain = PolicyBrain::new(PPO, network.clone(), None);
            Some(Box::new(brain) as Box<dyn Brain + Send>)
        })
    }

    /// Mean reward over the episodes.
    fn mean(&self, brain: impl Fn() -> Option<Box<dyn Brain + Send>> + Sync) -> f64 {
        let rewards = in_parallel(self.threads, self.scenarios.len(), |i| {
            brain().map_or(0.0, |mut brain| {
                play(&self.scenarios[i], SimConfig::default(), &mut *brain)
                    .all
                    .mean_reward()
            })
        });
        rewards.iter().sum::<f64>() / rewards.len() as f64
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
