//! What a policy would have earned where another decided.

use hyperion_placement::policy::Network;
use serde::Serialize;

use super::Figure;
use super::lessons::{Error, Lesson};
use crate::eval::stats::mean;
use crate::ppo::{Actor, MOST_WEIGHT};

/// What one policy would have earned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// Reward per hour.
    pub reward: Figure,
    /// How many experiences with equal weights would tell as much (Kish, 1965).
    pub effective: f64,
    /// Mean weight: close to 1 where choices were drawn with the probabilities of the log.
    pub mean_weight: f64,
}

/// Two policies on the same held-out experiences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Replay {
    /// Held-out experiences.
    pub experiences: usize,
    /// What was really earned.
    pub earned: Figure,
    /// The running policy.
    pub running: Estimate,
    /// The new one.
    pub new: Estimate,
    /// The new one less the running one; the interval is that of the difference.
    pub gain: Figure,
}

impl Replay {
    /// Estimates both by self-normalised importance weights (Owen, "Monte Carlo theory, methods
    /// and examples", 2013, section 9.2), with the baseline as control variate: what counts is by
    /// how much outcomes were better than usual for their goal. Intervals by the delta method.
    ///
    /// # Errors
    /// [`Error::Score`].
    pub fn new(lessons: &[Lesson], running: &Network, new: &Network) -> Result<Self, Error> {
        let (running, running_pulls) = estimate(lessons, running)?;
        let (new, new_pulls) = estimate(lessons, new)?;
        let pulls = new_pulls.iter().zip(&running_pulls).map(|(n, r)| n - r);
        let earned = mean(lessons.iter().map(|l| l.reward)).unwrap_or_default();
        Ok(Self {
            experiences: lessons.len(),
            earned: earned.into(),
            gain: Figure {
                value: new.reward.value - running.reward.value,
                ci95: mean(pulls).unwrap_or_default().ci95,
            },
            running,
            new,
        })
    }
}

/// The estimate, and how each experience pulls at it (its influence).
fn estimate(lessons: &[Lesson], network: &Network) -> Result<(Estimate, Vec<f64>), Error> {
    let mut actor = Actor::new(network);
    let mut weights = Vec::with_capacity(lessons.len());
    for lesson in lessons {
        let log = lesson.log_probability_of(&mut actor)? - lesson.log_probability;
        weights.push(log.exp().min(MOST_WEIGHT));
    }
    let count = lessons.len().max(1) as f64;
    // Probabilities of 0 alone: nothing is known of such a policy.
    let sum: f64 = weights.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let squares: f64 = weights.iter().map(|w| w * w).sum();
    let gains = || lessons.iter().map(|l| l.reward - l.baseline);
    let gain = weights.iter().zip(gains()).map(|(w, g)| w * g).sum::<f64>() / sum;
    let usual = lessons.iter().map(|l| l.baseline).sum::<f64>() / count;
    let mean_weight = sum / count;
    let pulls: Vec<f64> = weights
        .iter()
        .zip(gains())
        .map(|(w, g)| w / mean_weight * (g - gain))
        .collect();
    let estimate = Estimate {
        reward: Figure {
            value: usual + gain,
            ci95: mean(pulls.iter().copied()).unwrap_or_default().ci95,
        },
        effective: sum / squares.max(f64::MIN_POSITIVE) * sum,
        mean_weight,
    };
    Ok((estimate, pulls))
}
