//! The strongest baseline: it is told the truth of the moment.

use hyperion_placement::choose::Considered;
use hyperion_placement::model::{Request, Snapshot};

use crate::sim::{Brain, Truth, best};

/// The greatest true reward until the next decision: with the true load, the true price of getting
/// there and whether a pool gives instances now, but nothing of the future. The others' gain or
/// loss counts like its own.
#[derive(Debug, Clone, Copy)]
pub struct Greedy {
    /// What the gain or loss of the others who run there counts for.
    pub others: f64,
}

impl Default for Greedy {
    fn default() -> Self {
        Self { others: 1.0 }
    }
}

impl Brain for Greedy {
    fn name(&self) -> &str {
        "greedy"
    }

    fn decide(
        &mut self,
        _: &Snapshot,
        _: &Request,
        candidates: &[Considered<'_>],
        truth: &dyn Truth,
    ) -> Option<usize> {
        let mut at = 0;
        best(candidates, |_| {
            let index = at;
            at += 1;
            truth.reward(index) + self.others * truth.others(index)
        })
    }
}
