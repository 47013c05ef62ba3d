//! The cheapest room there is.

use hyperion_placement::choose::Considered;
use hyperion_placement::model::{Request, Snapshot};

use crate::sim::{Brain, Truth, best};

/// The cheapest room that fits, spot included. When it is refused or reclaimed the next cheapest is
/// taken, most often the next zone. It moves where that saves enough to pay for moving; how much
/// that is was tried out on episodes of training (0 to 100 %).
#[derive(Debug, Clone, Copy)]
pub struct Cheapest {
    /// Share of the cost that a move has to save.
    pub gain: f64,
}

impl Default for Cheapest {
    fn default() -> Self {
        Self { gain: 0.7 }
    }
}

/// Ranks by US dollars per hour of the replica's share, the whole price for what has to be bought.
/// An unknown price goes last.
pub(super) fn price_rank(candidate: &Considered<'_>) -> f64 {
    candidate.features.hourly_cost.map_or(-1e9, |usd| -usd)
}

impl Brain for Cheapest {
    fn name(&self) -> &str {
        "cheapest"
    }

    fn decide(
        &mut self,
        _: &Snapshot,
        request: &Request,
        candidates: &[Considered<'_>],
        _: &dyn Truth,
    ) -> Option<usize> {
        let index = best(candidates, price_rank)?;
        let here = request.current.as_deref();
        let here = candidates
            .iter()
            .find(|c| here == Some(c.candidate.id))
            .and_then(|c| c.features.hourly_cost);
        let saves = |old: f64| {
            let new = candidates[index].features.hourly_cost;
            new.is_some_and(|new| new < (1.0 - self.gain) * old)
        };
        here.is_none_or(saves).then_some(index)
    }
}
