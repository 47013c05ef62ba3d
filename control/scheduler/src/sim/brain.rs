//! Who decides.

use std::cmp::Ordering;
use std::sync::Arc;

use hyperion_placement::choose::Considered;
use hyperion_placement::model::{Request, Snapshot};
use hyperion_placement::packing::Packed;
use hyperion_placement::score::Scorer;

use super::{Outcome, SimConfig, Simulator};
use crate::scenario::Scenario;

/// What is true now of the candidates of a decision, by index.
pub trait Truth {
    /// Reward of the replica until it is decided anew (half an hour), if it went there and nothing
    /// else changed.
    fn reward(&self, index: usize) -> f64;
    /// What the others who run there gain or lose by it in that time.
    fn others(&self, index: usize) -> f64;
}

/// Decides.
pub trait Brain {
    /// Name in tables.
    fn name(&self) -> &str;

    /// It is told what free GPU capacity is worth, as production's schedulers are.
    fn packs(&self) -> bool {
        false
    }

    /// The index of the chosen one of `candidates`, which is not empty. None lets a replica that
    /// waits wait on, and one that runs stay.
    fn decide(
        &mut self,
        snapshot: &Snapshot,
        request: &Request,
        candidates: &[Considered<'_>],
        truth: &dyn Truth,
    ) -> Option<usize>;
}

/// Plays an episode.
#[must_use]
pub fn run(scenario: &Arc<Scenario>, config: SimConfig, brain: &mut dyn Brain) -> Outcome {
    let mut simulator = Simulator::new(scenario, config);
    if brain.packs() {
        simulator = simulator.packing();
    }
    while let Some(point) = simulator.next_decision() {
        let choice = brain.decide(
            point.snapshot,
            point.request,
            &point.candidates,
            &point.truth(),
        );
        simulator.act(choice);
    }
    simulator.outcome()
}

/// The best score wins, as in `hyperion_placement::decide`.
#[derive(Debug, Clone, Default)]
pub struct ScorerBrain<S>(pub S);

impl<S: Scorer> Brain for ScorerBrain<S> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn packs(&self) -> bool {
        true
    }

    fn decide(
        &mut self,
        snapshot: &Snapshot,
        request: &Request,
        candidates: &[Considered<'_>],
        _: &dyn Truth,
    ) -> Option<usize> {
        let scorer = Packed::new(&snapshot.packing, request, &self.0);
        best(candidates, |c| {
            scorer.total(request, &c.candidate, &c.features)
        })
    }
}

/// Steps per unit to which scores are rounded before they are compared; as in
/// `hyperion_placement::choose`.
const STEPS: f64 = 1e6;

/// A score as it is compared.
#[must_use]
pub fn rounded(total: f64) -> f64 {
    if total.is_finite() {
        (total * STEPS).round() / STEPS
    } else {
        f64::NEG_INFINITY
    }
}

/// Index of the best score; ties go to the smaller id.
pub fn best<'a>(
    candidates: &[Considered<'a>],
    mut score: impl FnMut(&Considered<'a>) -> f64,
) -> Option<usize> {
    let mut found: Option<(usize, f64)> = None;
    for (index, candidate) in candidates.iter().enumerate() {
        let total = rounded(score(candidate));
        let ahead = found.is_none_or(|(first, most)| {
            let by_id = || candidate.candidate.id.cmp(candidates[first].candidate.id);
            most.total_cmp(&total).then_with(by_id) == Ordering::Less
        });
        if ahead {
            found = Some((index, total));
        }
    }
    found.map(|(index, _)| index)
}
