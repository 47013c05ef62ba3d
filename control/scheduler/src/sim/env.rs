//! An episode as the learner sees it.

use std::sync::Arc;

use super::{SimConfig, Simulator};
use crate::ppo::{CandidateFeatures, Ending, Environment, Turn};
use crate::scenario::Scenario;
use hyperion_placement::features::{self, Summary};

/// Draws the episode of a seed.
pub type Worlds = Box<dyn Fn(u64) -> Arc<Scenario> + Send>;

/// A fleet to learn on: each workload is an actor.
pub struct FleetEnv {
    worlds: Worlds,
    config: SimConfig,
    simulator: Option<Simulator>,
    /// What each workload had earned at its last turn; none before its first.
    paid: Vec<Option<f64>>,
}

impl FleetEnv {
    /// Plays what `worlds` draws.
    #[must_use]
    pub fn new(worlds: Worlds, config: SimConfig) -> Self {
        Self {
            worlds,
            config,
            simulator: None,
            paid: Vec::new(),
        }
    }

    /// The episode in play.
    #[must_use]
    pub const fn simulator(&self) -> Option<&Simulator> {
        self.simulator.as_ref()
    }
}

impl Environment for FleetEnv {
    fn reset(&mut self, seed: u64) {
        let scenario = (self.worlds)(seed);
        self.paid = vec![None; scenario.workloads.len()];
        self.simulator = Some(Simulator::new(&scenario, self.config));
    }

    fn turn(&mut self) -> Option<Turn> {
        let simulator = self.simulator.as_mut()?;
        let point = simulator.next_decision()?;
        let actor = point.workload;
        let hour = point.hour;
        let candidates = point.candidates.iter().map(|c| CandidateFeatures {
            node: c.features.node,
            pair: c.features.pair,
            fit: c.features.fit,
        });
        let candidates = candidates.collect();
        let summary = Summary::of(point.snapshot);
        let request = features::encode_request(point.request, &summary);
        let (reward, team) = (simulator.earned(actor), simulator.team());
        let before = self.paid[actor].replace(reward);
        Some(Turn {
            actor: actor as u64,
            hour,
            earned: before.map_or(0.0, |b| reward - b),
            team,
            request,
            candidates,
        })
    }

    fn act(&mut self, choice: usize) {
        if let Some(simulator) = &mut self.simulator {
            simulator.act(Some(choice));
        }
    }

    fn endings(&mut self) -> Vec<Ending> {
        let Some(simulator) = &self.simulator else {
            return Vec::new();
        };
        let paid = self.paid.iter().enumerate();
        paid.filter_map(|(actor, paid)| {
            let before = (*paid)?;
            let over = simulator.over(actor);
            let (hour, team) = over.unwrap_or((simulator.now(), simulator.team()));
            Some(Ending {
                actor: actor as u64,
                hour,
                earned: simulator.earned(actor) - before,
                team,
                done: over.is_some(),
            })
        })
        .collect()
    }
}
