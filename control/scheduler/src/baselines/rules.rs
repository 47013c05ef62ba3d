//! Production's rules.

use hyperion_placement::choose::Considered;
use hyperion_placement::model::{Request, Snapshot};
use hyperion_placement::packing::Packed;
use hyperion_placement::score::{RulesScorer, Scorer};

use crate::sim::{Brain, Truth, best, rounded};

/// The rules scorer; a replica that runs stays unless the gain in score is worth a move. How much
/// that is was tried out on episodes of training (0 to 100).
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Gain in score that a move has to bring.
    pub gain: f64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { gain: 1.0 }
    }
}

impl Brain for Rules {
    fn name(&self) -> &str {
        "rules"
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
        let scorer = Packed::new(&snapshot.packing, request, &RulesScorer);
        let score = |c: &Considered<'_>| scorer.total(request, &c.candidate, &c.features);
        let index = best(candidates, score)?;
        let here = request.current.as_deref();
        let here = candidates.iter().find(|c| here == Some(c.candidate.id));
        here.is_none_or(|c| rounded(score(&candidates[index])) > rounded(score(c)) + self.gain)
            .then_some(index)
    }
}
