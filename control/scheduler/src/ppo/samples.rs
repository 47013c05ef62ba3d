//! Turns to learn from, with advantages and targets on one scale.

use hyperion_placement::features::RequestSlot;

use super::loss::{Judged, Sample};
use super::returns::Outcome;
use super::stats::ReturnStats;
use super::{Episode, Turn};

/// Turns with normalised advantages and targets. A turn without a choice teaches the critic only,
/// and does not count for the advantages' mean and deviation.
pub(super) fn samples<'a>(
    episodes: &'a [Episode],
    judged: &[Judged],
    outcomes: &[Outcome],
    returns: &ReturnStats,
    balance: f64,
) -> Vec<Sample<'a>> {
    let turns = episodes.iter().flat_map(|e| e.turns.iter().zip(&e.choices));
    let scales = Scales::of(turns.clone().map(|(turn, _)| turn), outcomes, balance);
    let (return_mean, return_deviation) = (returns.mean(), returns.deviation());
    turns
        .zip(judged)
        .zip(outcomes)
        .map(|(((turn, choice), judged), outcome)| Sample {
            turn,
            choice: *choice as u32,
            log_probability: judged.log_probability,
            advantage: if turn.candidates.len() > 1 {
                scales.normalised(turn, outcome.advantage)
            } else {
                0.0
            },
            target: ((outcome.target - return_mean) / return_deviation) as f32,
        })
        .collect()
}

/// Kinds of requests: goal, and service or job.
const KINDS: usize = 6;

/// Goal, and service or job.
fn kind(turn: &Turn) -> usize {
    let is = |slot: RequestSlot| turn.request[slot as usize] > 0.5;
    let goal = if is(RequestSlot::GoalCost) {
        0
    } else if is(RequestSlot::GoalLatency) {
        1
    } else {
        2
    };
    2 * goal + usize::from(is(RequestSlot::Service))
}

/// Means and deviations that advantages are normalised by.
struct Scales {
    /// Of all where nothing is balanced, else of each kind.
    means: [f64; KINDS],
    deviations: [f64; KINDS],
}

impl Scales {
    /// What earns ten times as much than others has ten times their advantages, and others learn
    /// slower: `balance` says how far each kind of request is measured by its own deviation.
    fn of<'a>(
        turns: impl Iterator<Item = &'a Turn> + Clone,
        outcomes: &[Outcome],
        balance: f64,
    ) -> Self {
        let chose = turns
            .zip(outcomes)
            .filter(|(turn, _)| turn.candidates.len() > 1);
        let advantage = |(_, outcome): (&Turn, &Outcome)| outcome.advantage;
        let (mean, deviation) = mean_and_deviation(chose.clone().map(advantage));
        let mut scales = Self {
            means: [mean; KINDS],
            deviations: [deviation; KINDS],
        };
        if balance > 0.0 {
            for of in 0..KINDS {
                let own = chose.clone().filter(|(turn, _)| kind(turn) == of);
                let (own_mean, own) = mean_and_deviation(own.map(advantage));
                scales.means[of] = own_mean;
                scales.deviations[of] = deviation.powf(1.0 - balance) * own.powf(balance);
            }
        }
        scales
    }

    fn normalised(&self, turn: &Turn, advantage: f64) -> f32 {
        let kind = kind(turn);
        ((advantage - self.means[kind]) / (self.deviations[kind] + 1e-8)) as f32
    }
}

pub(super) fn mean_and_deviation(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    let variance = values.map(|v| (v - mean) * (v - mean)).sum::<f64>() / count;
    (mean, variance.sqrt())
}

#[cfg(test)]
mod tests {
    use hyperion_placement::features::REQUEST_LEN;

    use super::super::CandidateFeatures;
    use super::*;

    fn turn(slot: RequestSlot) -> Turn {
        let mut request = [0.0; REQUEST_LEN];
        request[slot as usize] = 1.0;
        let candidate = CandidateFeatures {
            node: [0.0; 32],
            pair: [0.0; 32],
            fit: [0.0; 16],
        };
        Turn {
            actor: 0,
            hour: 0.0,
            earned: 0.0,
            team: 0.0,
            request,
            candidates: vec![candidate; 2],
        }
    }

    /// Two kinds of requests, of which one earns ten times as much.
    fn normalised(balance: f64) -> Vec<f32> {
        let turns = [
            turn(RequestSlot::GoalCost),
            turn(RequestSlot::GoalCost),
            turn(RequestSlot::GoalLatency),
            turn(RequestSlot::GoalLatency),
        ];
        let outcomes: Vec<Outcome> = [10.0, -10.0, 1.0, -1.0]
            .map(|advantage| Outcome {
                advantage,
                target: 0.0,
            })
            .into();
        let scales = Scales::of(turns.iter(), &outcomes, balance);
        let of = turns.iter().zip(&outcomes);
        of.map(|(turn, o)| scales.normalised(turn, o.advantage))
            .collect()
    }

    #[test]
    fn advantages_of_a_kind_are_measured_by_their_own_deviation() {
        let close = |found: Vec<f32>, expected: [f32; 4]| {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-3, "{found} {expected}");
            }
        };
        let all = 50.5_f32.sqrt();
        close(normalised(0.0), [10.0, -10.0, 1.0, -1.0].map(|a| a / all));
        close(normalised(1.0), [1.0, -1.0, 1.0, -1.0]);
        let half = normalised(0.5);
        assert!(half[2] > 1.0 / all && half[2] < 1.0);
    }
}
