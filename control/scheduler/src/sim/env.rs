//! An episode as the learner sees it.

use std::sync::Arc;

use super::{SimConfig, Simulator};
use crate::bound::{CHARGED, RoomPrices};
use crate::ppo::{CandidateFeatures, Ending, Environment, Turn};
use crate::scenario::Scenario;
use hyperion_placement::features::{self, Summary};
use hyperion_placement::model::Request;

/// Draws the episode of a seed, and says what room on its devices is worth to others.
pub type Worlds = Box<dyn Fn(u64) -> (Arc<Scenario>, Option<Arc<RoomPrices>>) + Send>;

/// A fleet to learn on: each workload is an actor.
pub struct FleetEnv {
    worlds: Worlds,
    config: SimConfig,
    simulator: Option<Simulator>,
    prices: Option<Arc<RoomPrices>>,
    /// Share of the worth of room that is charged.
    share: f64,
    /// What the gain or loss of neighbours counts for.
    neighbours: f64,
    /// What each workload had earned at its last turn; none before its first.
    paid: Vec<Option<f64>>,
    /// What each workload had done to its neighbours by its last turn.
    done: Vec<f64>,
    /// Where each workload chose to be, and when.
    chosen: Vec<Option<(String, f64)>>,
    /// Ids of the candidates of the turn, and whose turn it is.
    turn: (usize, f64, Vec<String>),
    /// What all were charged.
    charged: f64,
}

impl FleetEnv {
    /// Plays what `worlds` draws.
    #[must_use]
    pub fn new(worlds: Worlds, config: SimConfig) -> Self {
        Self {
            worlds,
            config,
            simulator: None,
            prices: None,
            share: CHARGED,
            neighbours: 0.0,
            paid: Vec::new(),
            done: Vec::new(),
            chosen: Vec::new(),
            turn: (0, 0.0, Vec::new()),
            charged: 0.0,
        }
    }

    /// Charges this share of what room is worth to others, instead of [`CHARGED`].
    #[must_use]
    pub const fn charging(mut self, share: f64) -> Self {
        self.share = share;
        self
    }

    /// Counts this share of what a replica does to those on its machine as its own reward.
    #[must_use]
    pub const fn caring(mut self, share: f64) -> Self {
        self.neighbours = share;
        self
    }

    /// What is counted of what an actor did to its neighbours since its last turn.
    fn care(&mut self, actor: usize) -> f64 {
        let Some(simulator) = &self.simulator else {
            return 0.0;
        };
        let done = simulator.done_to_neighbours(actor);
        let before = std::mem::replace(&mut self.done[actor], done);
        self.neighbours * (done - before)
    }

    /// What the room that an actor has chosen was worth to others since then.
    fn charge(&mut self, actor: usize, hour: f64) -> f64 {
        let (Some(prices), Some(simulator)) = (&self.prices, &self.simulator) else {
            return 0.0;
        };
        let Some((node, since)) = &mut self.chosen[actor] else {
            return 0.0;
        };
        let request = simulator.request(actor);
        let rent = self.share * prices.rent(node, request, *since, hour);
        *since = hour;
        self.charged += rent;
        rent
    }

    /// The episode in play.
    #[must_use]
    pub const fn simulator(&self) -> Option<&Simulator> {
        self.simulator.as_ref()
    }
}

impl Environment for FleetEnv {
    fn reset(&mut self, seed: u64) {
        let (scenario, prices) = (self.worlds)(seed);
        self.prices = prices;
        self.paid = vec![None; scenario.workloads.len()];
        self.chosen = vec![None; scenario.workloads.len()];
        self.done = vec![0.0; scenario.workloads.len()];
        self.charged = 0.0;
        let mut simulator = Simulator::new(&scenario, self.config);
        if self.neighbours > 0.0 {
            simulator.count_neighbours();
        }
        self.simulator = Some(simulator);
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
        let ids = point.candidates.iter().map(|c| c.candidate.id.to_owned());
        self.turn = (actor, hour, ids.collect());
        let summary = Summary::of(point.snapshot);
        // Nobody tells the control plane how long a job will take.
        let known = Request {
            expected_hours: None,
            ..point.request.clone()
        };
        let request = features::encode_request(&known, &summary);
        let (reward, team) = (simulator.earned(actor), simulator.team());
        let before = self.paid[actor].replace(reward);
        let extra = self.care(actor) - self.charge(actor, hour);
        Some(Turn {
            actor: actor as u64,
            hour,
            earned: before.map_or(0.0, |b| reward - b + extra),
            team: team - self.charged,
            request,
            candidates,
        })
    }

    fn act(&mut self, choice: usize) {
        if let Some(simulator) = &mut self.simulator {
            let (actor, hour, ids) = &self.turn;
            if let (Some(chosen), Some(id)) = (self.chosen.get_mut(*actor), ids.get(choice)) {
                *chosen = Some((id.clone(), *hour));
            }
            simulator.act(Some(choice));
        }
    }

    fn endings(&mut self) -> Vec<Ending> {
        let mut endings = Vec::new();
        for actor in 0..self.paid.len() {
            let Some(simulator) = &self.simulator else {
                break;
            };
            let Some(before) = self.paid[actor] else {
                continue;
            };
            let over = simulator.over(actor);
            let (hour, team) = over.unwrap_or((simulator.now(), simulator.team()));
            let earned = simulator.earned(actor) - before;
            let extra = self.care(actor) - self.charge(actor, hour);
            endings.push(Ending {
                actor: actor as u64,
                hour,
                earned: earned + extra,
                team: team - self.charged,
                done: over.is_some(),
            });
        }
        endings
    }
}
