//! Whether a policy is worse than another in the simulator.

use std::sync::Arc;

use hyperion_placement::policy::Network;
use hyperion_placement::reward::RewardWeights;
use serde::Serialize;

use super::{Error, Figure};
use crate::eval::episodes::{PPO, PolicyBrain};
use crate::eval::stats::mean;
use crate::scenario::{Scenario, Size, Split};
use crate::sim::{SimConfig, run};
use crate::world::World;

/// First seed of the episodes. Training, validation and evaluation use seeds below 2^42.
const FIRST_SEED: u64 = 1 << 42;

/// Where policies are rehearsed.
pub struct Stage<'a> {
    /// Where episodes are drawn from.
    pub world: &'a World,
    /// How large they are.
    pub size: Size,
    /// How many; always the same ones.
    pub episodes: u64,
    /// Weights of the reward.
    pub weights: RewardWeights,
    /// Threads.
    pub threads: usize,
}

/// Two policies in the same episodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Rehearsal {
    /// Episodes.
    pub episodes: usize,
    /// Mean reward of the running policy, per hour asked for.
    pub running: Figure,
    /// That of the new one.
    pub new: Figure,
    /// The new one less the running one, episode by episode.
    pub difference: Figure,
    /// Hard constraints that the new one broke.
    pub violations: u64,
}

impl Rehearsal {
    /// Why it speaks against the new policy, if it does.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.violations > 0 {
            let violations = self.violations;
            faults.push(format!(
                "it broke hard constraints in the simulator: {violations}"
            ));
        }
        let difference = self.difference;
        if difference.value + difference.ci95 < 0.0 {
            faults.push(format!(
                "it is worse in the simulator: {difference} reward per hour (95 %)"
            ));
        }
        faults
    }
}

impl Stage<'_> {
    /// Plays every episode with both.
    ///
    /// # Errors
    /// [`Error::Rehearsal`].
    pub fn play(&self, running: &Network, new: &Network) -> Result<Rehearsal, Error> {
        let seeds: Vec<u64> = (FIRST_SEED..FIRST_SEED + self.episodes).collect();
        let share = seeds.len().div_ceil(self.threads.max(1)).max(1);
        let played: Vec<(f64, f64, u64)> = std::thread::scope(|scope| {
            let play = |seeds: &[u64]| -> Vec<_> {
                let episode = |seed: &u64| self.episode(*seed, running, new);
                seeds.iter().map(episode).collect()
            };
            let threads: Vec<_> = seeds
                .chunks(share)
                .map(|seeds| scope.spawn(move || play(seeds)))
                .collect();
            let results = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
            results.collect::<Result<Vec<_>, _>>()
        })
        .map_err(|_| Error::Rehearsal)?
        .concat();
        let figure = |of: fn(&(f64, f64, u64)) -> f64| -> Figure {
            mean(played.iter().map(of)).unwrap_or_default().into()
        };
        Ok(Rehearsal {
            episodes: played.len(),
            running: figure(|p| p.0),
            new: figure(|p| p.1),
            difference: figure(|p| p.1 - p.0),
            violations: played.iter().map(|p| p.2).sum(),
        })
    }

    fn episode(&self, seed: u64, running: &Network, new: &Network) -> (f64, f64, u64) {
        let scenario = Arc::new(Scenario::draw(self.world, seed, Split::Train, &self.size));
        let config = SimConfig {
            weights: self.weights,
            ..SimConfig::default()
        };
        let play = |network: &Network| {
            let mut brain = PolicyBrain::new(PPO, network.clone(), None);
            run(&scenario, config, &mut brain).all
        };
        let (running, new) = (play(running), play(new));
        (running.mean_reward(), new.mean_reward(), new.violations)
    }
}
