//! Settings of the learner.

use serde::{Deserialize, Serialize};

use super::Error;

/// A value that changes linearly over the iterations of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// In the first iteration.
    pub from: f64,
    /// In the last of [`Config::iterations`], and after it.
    pub to: f64,
}

impl Schedule {
    /// The same value all the time.
    #[must_use]
    pub const fn constant(value: f64) -> Self {
        Self {
            from: value,
            to: value,
        }
    }

    /// The value in an iteration, counted from 0.
    #[must_use]
    pub fn at(&self, iteration: u32, iterations: u32) -> f64 {
        let last = iterations.saturating_sub(1).max(1);
        let share = f64::from(iteration.min(last)) / f64::from(last);
        self.from + (self.to - self.from) * share
    }
}

/// What the policy prefers before it has learned anything: the reward that a candidate would give
/// now, less what load takes of it, and staying where one is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taste {
    /// A candidate that promises this much more reward is chosen e times as often. 0.1 is close
    /// to always taking the best; infinite means no taste.
    pub temperature: f64,
    /// Reward that staying is thought to be worth.
    pub stay_bonus: f64,
    /// Standard deviation of the part of the score that is random at the beginning.
    pub noise: f64,
}

/// Settings of the optimiser (Kingma and Ba, 2015).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adam {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub epsilon: f64,
}

/// Settings of the learner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Decides everything that is random.
    pub seed: u64,
    /// Length of the run, for the schedules.
    pub iterations: u32,
    /// Episodes an iteration; the environments take turns.
    pub episodes: u32,
    /// Threads. The result does not depend on it.
    pub threads: usize,
    /// What an actor counts of the others' rewards: 0 is selfish, 1 counts the team's as its own.
    pub kappa: f64,
    /// Discount of a reward that comes an hour later.
    pub gamma: f64,
    /// How far advantages are measured by the deviation of their own kind of request (goal, service
    /// or job), and not by that of all: 0 not at all, 1 alone.
    pub balance: f64,
    /// Share of the averaged policy that is kept an iteration; 0 is no average.
    pub averaging: f64,
    /// Trust in rewards against the critic, by turn: 1 uses rewards alone, 0 the next turn alone.
    pub lambda: f64,
    /// The probability of a choice is not pushed beyond 1 ± this times what it was.
    pub clip: f64,
    /// Passes over the turns of an iteration.
    pub epochs: u32,
    /// Turns a step of the optimiser.
    pub minibatch: usize,
    /// Learning rate of the policy.
    pub learning_rate: Schedule,
    /// Learning rate of the critic.
    pub critic_learning_rate: Schedule,
    /// Weight of the entropy bonus.
    pub entropy: Schedule,
    /// Learning from an iteration's turns stops when the policy has moved this far, in nats a
    /// turn.
    pub max_kl: f64,
    /// Gradients are scaled down to this norm, the policy's and the critic's each.
    pub max_gradient_norm: f64,
    /// Iterations at the beginning in which only the critic learns: of use after imitation.
    pub critic_warmup: u32,
    /// The critic's error shapes the embeddings too.
    pub share_trunk: bool,
    /// The optimiser.
    pub adam: Adam,
    /// The policy at the beginning.
    pub taste: Taste,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 1,
            iterations: 200,
            episodes: 8,
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            kappa: 0.5,
            gamma: 0.9,
            balance: 0.0,
            averaging: 0.0,
            lambda: 0.95,
            clip: 0.2,
            epochs: 3,
            minibatch: 1024,
            learning_rate: Schedule {
                from: 1e-3,
                to: 1e-4,
            },
            critic_learning_rate: Schedule {
                from: 2e-3,
                to: 3e-4,
            },
            entropy: Schedule {
                from: 0.01,
                to: 0.0,
            },
            max_kl: 0.03,
            max_gradient_norm: 0.5,
            critic_warmup: 0,
            share_trunk: false,
            adam: Adam {
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-5,
            },
            taste: Taste {
                temperature: 0.1,
                stay_bonus: 0.05,
                noise: 0.05,
            },
        }
    }
}

impl Config {
    /// Refuses settings that make no sense, by name.
    pub(super) fn check(&self) -> Result<(), Error> {
        let refuse = |field, problem: &str| {
            Err(Error::Config {
                field,
                problem: problem.to_owned(),
            })
        };
        let share = |v: f64| (0.0..=1.0).contains(&v);
        let positive = |v: f64| v.is_finite() && v > 0.0;
        let rate = |s: Schedule| [s.from, s.to].iter().all(|v| v.is_finite() && *v >= 0.0);
        for (field, ok) in [
            ("gamma", share(self.gamma)),
            ("lambda", share(self.lambda)),
            ("balance", share(self.balance)),
            ("averaging", share(self.averaging) && self.averaging < 1.0),
            (
                "adam.beta1",
                share(self.adam.beta1) && self.adam.beta1 < 1.0,
            ),
            (
                "adam.beta2",
                share(self.adam.beta2) && self.adam.beta2 < 1.0,
            ),
        ] {
            if !ok {
                return refuse(field, "is not between 0 and 1");
            }
        }
        for (field, ok) in [
            ("clip", positive(self.clip)),
            ("max_gradient_norm", positive(self.max_gradient_norm)),
            ("max_kl", self.max_kl > 0.0),
            ("adam.epsilon", positive(self.adam.epsilon)),
            ("taste.temperature", self.taste.temperature > 0.0),
            ("iterations", self.iterations > 0),
            ("episodes", self.episodes > 0),
            ("threads", self.threads > 0),
            ("epochs", self.epochs > 0),
            ("minibatch", self.minibatch > 0),
        ] {
            if !ok {
                return refuse(field, "must be more than 0");
            }
        }
        for (field, ok) in [
            ("kappa", self.kappa.is_finite()),
            ("taste.stay_bonus", self.taste.stay_bonus.is_finite()),
            ("taste.noise", self.taste.noise.is_finite()),
            ("learning_rate", rate(self.learning_rate)),
            ("critic_learning_rate", rate(self.critic_learning_rate)),
            ("entropy", rate(self.entropy)),
        ] {
            if !ok {
                return refuse(field, "must be finite, and rates and weights at least 0");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_go_from_the_first_iteration_to_the_last() {
        let schedule = Schedule { from: 2.0, to: 1.0 };
        assert_eq!(schedule.at(0, 11), 2.0);
        assert_eq!(schedule.at(5, 11), 1.5);
        assert_eq!(schedule.at(10, 11), 1.0);
        assert_eq!(schedule.at(99, 11), 1.0);
        assert_eq!(schedule.at(0, 1), 2.0);
    }

    #[test]
    fn senseless_settings_are_refused_by_name() {
        let bad = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(bad(|c| c.gamma = 1.5).contains("gamma"));
        assert!(bad(|c| c.taste.temperature = 0.0).contains("temperature"));
        assert!(bad(|c| c.learning_rate.to = f64::NAN).contains("learning_rate"));
        assert!(bad(|c| c.minibatch = 0).contains("minibatch"));
        Config::default().check().unwrap();
    }
}
