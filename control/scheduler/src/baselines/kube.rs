//! Kubernetes' default scheduler with a cluster autoscaler.

use hyperion_placement::choose::Considered;
use hyperion_placement::features::{FitSlot, PairSlot};
use hyperion_placement::latency::place_of;
use hyperion_placement::model::{CapacityType, Request, Snapshot};

use super::cheapest::price_rank;
use crate::sim::{Brain, Truth, best};

/// Kubernetes with its default plugins, over the nodes there are: least allocated, balanced
/// allocation, image locality, and spreading over nodes, with their default weights of 1, 1, 1 and
/// 2 (kube-scheduler configuration v1). Where no node fits, a cluster autoscaler with a node group
/// for each type buys the cheapest on demand in the home region: where the data is, or else nearest
/// to the clients, or else the cheapest. Running pods are never moved.
#[derive(Debug, Clone, Copy, Default)]
pub struct KubeDefault;

impl Brain for KubeDefault {
    fn name(&self) -> &str {
        "kube-default"
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
        let node = best(candidates, |c| {
            if c.candidate.node.is_some() {
                plugins(request, c)
            } else {
                f64::NEG_INFINITY
            }
        })?;
        if candidates[node].candidate.node.is_some() {
            return Some(node);
        }
        autoscale(request, candidates)
    }
}

/// Weighted sum of the default plugins' scores, each 0 to 1.
fn plugins(request: &Request, candidate: &Considered<'_>) -> f64 {
    let fit = &candidate.features.fit;
    let (cpu, memory) = (
        f64::from(fit[FitSlot::CpuAfter as usize]),
        f64::from(fit[FitSlot::MemoryAfter as usize]),
    );
    // With one GPU request the default profile still scores CPU and memory only.
    let least_allocated = f64::midpoint(cpu, memory);
    // Standard deviation of two shares is half their distance.
    let balanced = 1.0 - (cpu - memory).abs() / 2.0;
    let images = candidate.features.images_present();
    let spread = if request.siblings.contains(candidate.candidate.id) {
        0.0
    } else {
        1.0
    };
    least_allocated + balanced + images + 2.0 * spread
}

fn autoscale(request: &Request, candidates: &[Considered<'_>]) -> Option<usize> {
    let group = |c: &Considered<'_>| {
        c.candidate.node.is_none() && c.candidate.capacity_type == CapacityType::OnDemand
    };
    let groups: Vec<usize> = (0..candidates.len())
        .filter(|i| group(&candidates[*i]))
        .collect();
    let near = |i: &usize| {
        let pair = &candidates[*i].features.pair;
        (pair[PairSlot::P99Known as usize] > 0.5).then(|| pair[PairSlot::P99 as usize])
    };
    let data = request.data_locality.as_ref();
    let by_data = groups
        .iter()
        .copied()
        .find(|i| data == Some(&place_of(candidates[*i].candidate.location)));
    let by_clients = || {
        let distance = |i: &usize| near(i).unwrap_or(f32::INFINITY);
        let nearest = |a: &usize, b: &usize| distance(a).total_cmp(&distance(b));
        let known = groups.iter().copied().filter(|i| near(i).is_some());
        known.min_by(nearest)
    };
    let by_price = || {
        let rank = |i: &usize| price_rank(&candidates[*i]);
        groups
            .iter()
            .copied()
            .max_by(|a, b| rank(a).total_cmp(&rank(b)))
    };
    let home = by_data.or_else(by_clients).or_else(by_price)?;
    let home = candidates[home].candidate.location;
    let at_home = |c: &Considered<'_>| {
        let location = c.candidate.location;
        group(c) && location.provider == home.provider && location.region == home.region
    };
    best(candidates, |c| {
        if at_home(c) {
            price_rank(c)
        } else {
            f64::NEG_INFINITY
        }
    })
}
