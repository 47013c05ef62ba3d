//! Running statistics: of returns, for the critic, and of features, for the guard of a policy file.

use hyperion_placement::features::{FIT_LEN, NODE_LEN, PAIR_LEN, REQUEST_LEN};
use serde::{Deserialize, Serialize};

use super::Turn;

/// What an iteration's returns weigh an iteration later.
const DECAY: f64 = 0.9;

/// Running mean and deviation of returns. The critic learns returns less this mean, by this
/// deviation, so that its learning rate suits any scale of reward.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct ReturnStats {
    pub weight: f64,
    pub sum: f64,
    pub squares: f64,
}

impl ReturnStats {
    pub(super) fn add(&mut self, returns: impl Iterator<Item = f64>) {
        self.weight *= DECAY;
        self.sum *= DECAY;
        self.squares *= DECAY;
        for value in returns {
            self.weight += 1.0;
            self.sum += value;
            self.squares += value * value;
        }
    }

    pub(super) fn mean(&self) -> f64 {
        if self.weight > 0.0 {
            self.sum / self.weight
        } else {
            0.0
        }
    }

    pub(super) fn deviation(&self) -> f64 {
        if self.weight <= 0.0 {
            return 1.0;
        }
        let variance = self.squares / self.weight - self.mean() * self.mean();
        variance.max(1e-8).sqrt()
    }
}

/// What one slot was like.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SlotStats {
    /// Mean.
    pub mean: f32,
    /// Standard deviation.
    pub deviation: f32,
    /// Smallest value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
}

/// Sums over the values of one group of features.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Group {
    pub sums: Vec<f64>,
    pub squares: Vec<f64>,
    pub min: Vec<f32>,
    pub max: Vec<f32>,
}

impl Group {
    pub(super) fn new(length: usize) -> Self {
        Self {
            sums: vec![0.0; length],
            squares: vec![0.0; length],
            min: vec![f32::MAX; length],
            max: vec![f32::MIN; length],
        }
    }

    fn add(&mut self, values: &[f32]) {
        for (i, value) in values.iter().enumerate() {
            let wide = f64::from(*value);
            self.sums[i] += wide;
            self.squares[i] += wide * wide;
            self.min[i] = self.min[i].min(*value);
            self.max[i] = self.max[i].max(*value);
        }
    }

    fn merge(&mut self, other: &Self) {
        for i in 0..self.sums.len() {
            self.sums[i] += other.sums[i];
            self.squares[i] += other.squares[i];
            self.min[i] = self.min[i].min(other.min[i]);
            self.max[i] = self.max[i].max(other.max[i]);
        }
    }

    fn slots(&self, count: u64) -> Vec<SlotStats> {
        let count = count.max(1) as f64;
        (0..self.sums.len())
            .map(|i| {
                let mean = self.sums[i] / count;
                let variance = (self.squares[i] / count - mean * mean).max(0.0);
                let seen = self.min[i] <= self.max[i];
                SlotStats {
                    mean: mean as f32,
                    deviation: variance.sqrt() as f32,
                    min: if seen { self.min[i] } else { 0.0 },
                    max: if seen { self.max[i] } else { 0.0 },
                }
            })
            .collect()
    }
}

/// What the features of all turns since training began were like, slot by slot. Those of a
/// request count once a turn, the others once a candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureStats {
    pub(super) turns: u64,
    pub(super) candidates: u64,
    /// Request, node, pair, fit.
    pub(super) groups: [Group; 4],
}

impl Default for FeatureStats {
    fn default() -> Self {
        Self {
            turns: 0,
            candidates: 0,
            groups: [REQUEST_LEN, NODE_LEN, PAIR_LEN, FIT_LEN].map(Group::new),
        }
    }
}

impl FeatureStats {
    /// Counts turns.
    pub fn add(&mut self, turns: &[Turn]) {
        let [request, node, pair, fit] = &mut self.groups;
        for turn in turns {
            self.turns += 1;
            self.candidates += turn.candidates.len() as u64;
            request.add(&turn.request);
            for candidate in &turn.candidates {
                node.add(&candidate.node);
                pair.add(&candidate.pair);
                fit.add(&candidate.fit);
            }
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.turns += other.turns;
        self.candidates += other.candidates;
        for (group, other) in self.groups.iter_mut().zip(&other.groups) {
            group.merge(other);
        }
    }

    /// Turns counted.
    #[must_use]
    pub const fn turns(&self) -> u64 {
        self.turns
    }

    /// Candidates counted.
    #[must_use]
    pub const fn candidates(&self) -> u64 {
        self.candidates
    }

    /// By [`hyperion_placement::features::REQUEST`].
    #[must_use]
    pub fn request(&self) -> Vec<SlotStats> {
        self.groups[0].slots(self.turns)
    }

    /// By [`hyperion_placement::features::NODE`].
    #[must_use]
    pub fn node(&self) -> Vec<SlotStats> {
        self.groups[1].slots(self.candidates)
    }

    /// By [`hyperion_placement::features::PAIR`].
    #[must_use]
    pub fn pair(&self) -> Vec<SlotStats> {
        self.groups[2].slots(self.candidates)
    }

    /// By [`hyperion_placement::features::FIT`].
    #[must_use]
    pub fn fit(&self) -> Vec<SlotStats> {
        self.groups[3].slots(self.candidates)
    }
}

#[cfg(test)]
mod tests {
    use super::super::CandidateFeatures;
    use super::*;

    fn turn(values: &[f32]) -> Turn {
        Turn {
            actor: 0,
            hour: 0.0,
            earned: 0.0,
            team: 0.0,
            request: [values[0]; REQUEST_LEN],
            candidates: values
                .iter()
                .map(|v| CandidateFeatures {
                    node: [*v; NODE_LEN],
                    pair: [2.0 * v; PAIR_LEN],
                    fit: [-v; FIT_LEN],
                })
                .collect(),
        }
    }

    #[test]
    fn statistics_cover_every_turn_and_candidate() {
        let mut stats = FeatureStats::default();
        stats.add(&[turn(&[1.0, 3.0])]);
        let mut more = FeatureStats::default();
        more.add(&[turn(&[2.0, 2.0])]);
        stats.merge(&more);
        assert_eq!((stats.turns(), stats.candidates()), (2, 4));
        let slot = stats.node()[0];
        assert_eq!((slot.mean, slot.min, slot.max), (2.0, 1.0, 3.0));
        assert!((slot.deviation - 0.5_f32.sqrt()).abs() < 1e-6);
        assert_eq!(stats.pair()[5].max, 6.0);
        assert_eq!(stats.fit()[5].min, -3.0);
        assert_eq!(stats.request()[0].mean, 1.5);
        assert_eq!(FeatureStats::default().node()[0].max, 0.0);
    }

    #[test]
    fn newer_returns_weigh_more() {
        let mut stats = ReturnStats::default();
        assert_eq!((stats.mean(), stats.deviation()), (0.0, 1.0));
        stats.add([1.0, 3.0].into_iter());
        assert_eq!((stats.mean(), stats.deviation()), (2.0, 1.0));
        stats.add([12.0, 14.0].into_iter());
        assert!(stats.mean() > 7.5);
    }
}
