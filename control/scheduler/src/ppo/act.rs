//! Choosing with a network, by the plain arithmetic that production uses too.

use hyperion_placement::policy::Network;

use super::Turn;
use super::random::Stream;

/// A network that answers turns.
pub struct Actor<'a> {
    network: &'a Network,
    scores: Vec<f32>,
}

impl<'a> Actor<'a> {
    /// Answers with this network.
    #[must_use]
    pub const fn new(network: &'a Network) -> Self {
        Self {
            network,
            scores: Vec::new(),
        }
    }

    /// The score of every candidate.
    pub fn scores(&mut self, turn: &Turn) -> &[f32] {
        let prepared = self.network.prepare(&turn.request);
        self.scores.clear();
        self.scores.extend(turn.candidates.iter().map(|candidate| {
            let kind = self.network.prepare_kind(&prepared, &candidate.pair);
            let embedding = self.network.embed(&candidate.node);
            self.network
                .score(&prepared, &kind, &embedding, &candidate.fit)
        }));
        &self.scores
    }

    /// The candidate with the highest score; of several, the first.
    pub fn best(&mut self, turn: &Turn) -> usize {
        let scores = self.scores(turn);
        let mut best = 0;
        for (i, score) in scores.iter().enumerate() {
            if *score > scores[best] {
                best = i;
            }
        }
        best
    }

    /// A candidate drawn with the probabilities that the scores stand for.
    pub(super) fn sample(&mut self, turn: &Turn, random: &mut Stream) -> usize {
        self.scores(turn);
        let highest = self.scores.iter().copied().fold(f32::MIN, f32::max);
        let mut sum = 0.0;
        for score in &mut self.scores {
            *score = (*score - highest).exp();
            sum += f64::from(*score);
        }
        let mut left = random.uniform() * sum;
        for (i, weight) in self.scores.iter().enumerate() {
            left -= f64::from(*weight);
            if left < 0.0 {
                return i;
            }
        }
        // Rounding left a rest: the last that has any weight.
        self.scores.iter().rposition(|w| *w > 0.0).unwrap_or(0)
    }
}
