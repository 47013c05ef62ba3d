//! The control group: one region, on demand.

use hyperion_placement::choose::Considered;
use hyperion_placement::model::{CapacityType, Provider, Request, Snapshot};

use super::cheapest::price_rank;
use crate::sim::{Brain, Truth, best};

/// AWS us-east-1 on demand, whatever the workload wants: the cheapest machine that fits, for ever.
/// Where none fits, or none is allowed, the workload stays pending.
#[derive(Debug, Clone, Copy, Default)]
pub struct Static;

impl Brain for Static {
    fn name(&self) -> &str {
        "static"
    }

    fn decide(
        &mut self,
        _: &Snapshot,
        request: &Request,
        candidates: &[Considered<'_>],
        _: &dyn Truth,
    ) -> Option<usize> {
        if request.current.is_some() {
            return None;
        }
        let home = |c: &Considered<'_>| {
            let location = c.candidate.location;
            location.provider == Provider::Aws
                && location.region == "us-east-1"
                && c.candidate.capacity_type == CapacityType::OnDemand
        };
        let index = best(candidates, |c| {
            if home(c) {
                price_rank(c)
            } else {
                f64::NEG_INFINITY
            }
        })?;
        home(&candidates[index]).then_some(index)
    }
}
