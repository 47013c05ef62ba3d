//! One episode played with a scheduler: event-driven, in virtual time; the seed decides everything
//! and no clock is read. The rules are in `docs/simulator.md`.
//!
//! - [`Simulator`] plays to the next decision ([`Simulator::next_decision`]) and takes the answer
//!   ([`Simulator::act`]); filter, features and check are those of production;
//! - [`run`] plays a whole episode with a [`Brain`];
//! - [`FleetEnv`] is the same for the learner;
//! - [`Outcome`]: the figures;
//! - [`queue_check`]: the model of latency under load, held against a real server.

mod act;
mod brain;
mod env;
mod event;
mod handle;
mod host;
mod neighbours;
mod outcome;
mod packing;
mod queue;
pub(crate) mod random;
mod rates;
mod replica;
mod simulator;
mod truth;
mod view;

pub use brain::{Brain, ScorerBrain, Truth, best, rounded, run};
pub use env::FleetEnv;
pub use outcome::{Figures, Outcome, Record, Tail};
pub use queue::{QueueCheck, QueueLoad, queue_check};
pub use replica::Account;
pub use simulator::{Counts, DecisionPoint, Simulator};
pub use truth::Now;

use hyperion_placement::latency;
use hyperion_placement::model::{Location, Request};
use hyperion_placement::reward::RewardWeights;

use crate::scenario::Scenario;

/// Reward per hour in the system without serving or working.
pub const WAIT_PENALTY: f64 = -1.0;
/// A launch that is refused is known to be after this, hours.
pub(crate) const REFUSAL_HOURS: f64 = 1.0 / 60.0;
/// A pool that refused is not offered for this long, hours.
pub(crate) const COOL_DOWN_HOURS: f64 = 10.0 / 60.0;
/// Spot instances die this long after their notice, hours.
pub(crate) const NOTICE_HOURS: f64 = 2.0 / 60.0;
/// An instance without promises is given back after this, hours.
const GIVE_BACK_HOURS: f64 = 5.0 / 60.0;
/// Who waits is decided anew after this at the latest, hours.
const PATIENCE_HOURS: f64 = 5.0 / 60.0;
/// Gigabits in a GiB.
const GBIT_PER_GIB: f64 = 8.589_934_592;

/// Settings of the simulator that are not the world's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimConfig {
    /// Weights of the reward.
    pub weights: RewardWeights,
    /// Hours between two decisions of a replica that runs; 0 for never.
    pub reconsider_hours: f64,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            weights: RewardWeights::default(),
            reconsider_hours: 0.5,
        }
    }
}

/// Hours to transfer data.
pub(crate) fn transfer_hours(gib: f64, gbps: f64) -> f64 {
    gib.max(0.0) * GBIT_PER_GIB / gbps.max(1e-3) / 3600.0
}

/// Hours to bring a workload's data to a location.
pub(crate) fn data_hours(scenario: &Scenario, request: &Request, location: &Location) -> f64 {
    let Some(from) = &request.data_locality else {
        return 0.0;
    };
    let here = latency::place_of(location);
    if *from == here || request.data_gib <= 0.0 {
        return 0.0;
    }
    let pair = if *from < here {
        (from.clone(), here)
    } else {
        (here, from.clone())
    };
    let gbps = scenario.throughput.get(&pair).copied().unwrap_or(1.0);
    transfer_hours(request.data_gib, gbps)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::support as tests_support;
