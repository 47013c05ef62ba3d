//! Now and then another choice than the best: from who always takes the best candidate nobody can
//! learn what the others would have been worth.

use hyperion_placement::choose::{self, CandidateRef};
use hyperion_placement::fleet::Fleet;
use hyperion_placement::model::Request;
use hyperion_policy::log_probability;
use rand::RngExt as _;

use super::{Decider, Policy, Verdict, part};

/// Whether a decision may be one that is left to chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chance {
    /// The best candidate.
    Never,
    /// Now and then another of the best, by [`Decider::explore`].
    Sometimes,
}

/// A choice that is not the best candidate, made to learn from what comes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tried {
    /// What would have been chosen.
    pub best: CandidateRef,
    /// Probability with which the other one was.
    pub probability: f64,
}

impl Decider {
    /// With probability [`Decider::explore`] the choice is drawn from the best candidates by their
    /// scores, as in training: one that is hardly worse comes often, one that is much worse hardly
    /// ever. Whatever is chosen, it is noted how probable that was.
    pub(super) fn leave_to_chance(
        &mut self,
        fleet: &Fleet,
        request: &Request,
        policy: &Policy,
        verdict: &mut Verdict,
    ) {
        let explanation = &mut verdict.decision.explanation;
        let (Some(best), Some(memory)) = (&mut verdict.decision.choice, &mut verdict.memory) else {
            return;
        };
        let scores: Vec<f32> = explanation.top.iter().map(|r| r.score as f32).collect();
        let Some(likelihoods) = likelihoods(&scores) else {
            return;
        };
        let chosen = if self.dice.random::<f64>() < self.explore {
            at(&likelihoods, self.dice.random())
        } else {
            0
        };
        let others = if chosen == 0 { 1.0 - self.explore } else { 0.0 };
        let probability = others + self.explore * likelihoods[chosen];
        if chosen > 0 {
            let ranked = &explanation.top[chosen];
            let CandidateRef::Node(id) = &ranked.candidate else {
                return;
            };
            let Some(node) = fleet.node(id) else {
                return;
            };
            // Which of its GPUs, and at what price.
            let there = choose::decide(&part(fleet, vec![node.clone()]), request, &policy.scorer);
            let Some(mut choice) = there.choice else {
                return;
            };
            choice.score = ranked.score;
            explanation.terms.clone_from(&ranked.terms);
            explanation.runner_up = Some((best.candidate.id().to_owned(), best.score));
            explanation.flips.clear();
            let was = std::mem::replace(best, choice);
            verdict.tried = Some(Tried {
                best: was.candidate,
                probability,
            });
            self.sums.tried += 1;
        }
        memory.chosen = chosen;
        memory.log_probability = probability.ln();
    }
}

/// Softmax; none where a score is no number.
fn likelihoods(scores: &[f32]) -> Option<Vec<f64>> {
    let likelihood = |i| log_probability(scores, i).map(f64::exp);
    (0..scores.len()).map(likelihood).collect()
}

/// The index at `point`, of 0 to 1, when the likelihoods lie one after another.
fn at(likelihoods: &[f64], point: f64) -> usize {
    let mut sum = 0.0;
    let within = likelihoods.iter().position(|likelihood| {
        sum += likelihood;
        point < sum
    });
    within.unwrap_or(0)
}
