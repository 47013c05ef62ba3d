//! The reward that policies learn from and that outcomes are judged by:
//! `w1 / cost_per_hour + w2 / p99_latency_ms - cost_per_hour / 10 USD`, weights by goal.
//!
//! The last term is ours: `1 / cost` is flat where costs are high, so that without it a policy pays
//! 40 USD an hour for what it could have at 4, and loses nothing.

use serde::{Deserialize, Serialize};

use crate::model::Goal;

/// Nothing is taken to cost less than this, US dollars per hour: the pole of `1 / cost` at zero
/// would make one free device outweigh a fleet. It is about what a small Jetson costs over three
/// years with its power.
pub const LEAST_COST: f64 = 0.02;
/// Reward lost for each US dollar of the hourly cost: an hour at 10 USD is as bad as an hour of
/// waiting.
pub const PER_USD: f64 = 0.1;
/// Cost at which dollars beyond the hourly cost (egress, the second copy during a move) are
/// weighed, US dollars per hour: about that of a spot instance with one small GPU.
const USUAL_COST: f64 = 0.2;
/// Nothing is taken to answer faster than this, milliseconds.
pub const LEAST_P99_MS: f64 = 1.0;
/// p99 that stands for a job's latency, milliseconds, times how much longer it takes than it must.
pub const JOB_P99_MS: f64 = 50.0;
/// Reward of a placement that breaks a hard constraint.
pub const VIOLATION: f64 = -100.0;

/// The weights of one goal.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Weights {
    /// `w1`, US dollars per hour: at this cost the first term is 1.
    pub cost: f64,
    /// `w2`, milliseconds: at this p99 the second term is 1.
    pub latency: f64,
}

/// The weights of every goal.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RewardWeights {
    /// Of workloads with goal `cost`.
    pub cost: Weights,
    /// Of workloads with goal `latency`.
    pub latency: Weights,
    /// Of workloads with goal `default`.
    pub default: Weights,
}

impl Default for RewardWeights {
    /// 0.20 USD/h is what a spot instance with one small GPU costs, 50 ms a p99 across a
    /// continent: there each term is 1 where it is all that counts. Goals differ by ten to one, as
    /// in the rules.
    fn default() -> Self {
        let weights = |cost: f64, latency: f64| Weights {
            cost: 0.2 * cost,
            latency: 50.0 * latency,
        };
        Self {
            cost: weights(1.0, 0.1),
            latency: weights(0.1, 1.0),
            default: weights(0.5, 0.5),
        }
    }
}

impl RewardWeights {
    /// The weights of `goal`.
    #[must_use]
    pub const fn of(&self, goal: Goal) -> Weights {
        match goal {
            Goal::Cost => self.cost,
            Goal::Latency => self.latency,
            Goal::Default => self.default,
        }
    }
}

impl Weights {
    /// First and last term, for US dollars per hour; negative where that is much.
    #[must_use]
    pub fn cost_term(&self, usd_per_hour: f64) -> f64 {
        self.cost / usd_per_hour.max(LEAST_COST) - PER_USD * usd_per_hour
    }

    /// Reward lost for US dollars beyond the hourly cost: what they would have earned as the cost
    /// of hours at the usual price.
    #[must_use]
    pub fn extra_usd_term(&self, usd: f64) -> f64 {
        self.cost / USUAL_COST * usd / USUAL_COST
    }

    /// Second term, for milliseconds.
    #[must_use]
    pub fn latency_term(&self, p99_ms: f64) -> f64 {
        self.latency / p99_ms.max(LEAST_P99_MS)
    }
}
