//! The least round trip.

use hyperion_placement::choose::Considered;
use hyperion_placement::features::PairSlot;
use hyperion_placement::model::{Request, Snapshot};

use super::cheapest::{Cheapest, price_rank};
use crate::sim::{Brain, Truth, best};

/// Where the clients' round trip is least; the cheapest room there. It moves where that is nearer.
/// Who has no clients goes where it is cheapest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nearest;

/// How near the clients are: the p99 of an idle machine there, scaled; none where unknown.
fn distance(candidate: &Considered<'_>) -> Option<f64> {
    let pair = &candidate.features.pair;
    (pair[PairSlot::P99Known as usize] > 0.5).then(|| f64::from(pair[PairSlot::P99 as usize]))
}

impl Brain for Nearest {
    fn name(&self) -> &str {
        "nearest"
    }

    fn decide(
        &mut self,
        snapshot: &Snapshot,
        request: &Request,
        candidates: &[Considered<'_>],
        truth: &dyn Truth,
    ) -> Option<usize> {
        let Some(least) = candidates.iter().filter_map(distance).reduce(f64::min) else {
            return Cheapest::default().decide(snapshot, request, candidates, truth);
        };
        let near = |c: &Considered<'_>| distance(c).is_some_and(|d| d <= least);
        let here = request.current.as_deref();
        if candidates
            .iter()
            .any(|c| here == Some(c.candidate.id) && near(c))
        {
            return None;
        }
        best(candidates, |c| {
            if near(c) {
                price_rank(c)
            } else {
                f64::NEG_INFINITY
            }
        })
    }
}
