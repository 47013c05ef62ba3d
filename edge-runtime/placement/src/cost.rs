//! What a replica costs: its dominant share of the machine's price.

use crate::filter::{Candidate, is_owned};
use crate::latency::place_of;
use crate::model::{Location, Provider, Request, Resources};

/// US dollars per hour of the replica's share of the machine, or none where the price is unknown
/// (missing, negative or not finite).
///
/// The share is the largest of its shares of CPU, memory and GPUs (the dominant share of Ghodsi
/// et al., "Dominant Resource Fairness", NSDI 2011): whoever takes all GPUs of a machine pays for
/// all of it, since nobody else can use the rest for what it was bought for. An offer is bought
/// whole, so it costs its whole price.
#[must_use]
pub fn replica_share(request: &Request, candidate: &Candidate<'_>) -> Option<f64> {
    share_of(
        request,
        candidate.price_per_hour,
        is_owned(candidate),
        candidate.node.is_none(),
        candidate.allocatable,
        candidate.gpus.len(),
    )
}

/// [`replica_share`], by what it depends on.
pub(crate) fn share_of(
    request: &Request,
    price: f64,
    owned: bool,
    bought_whole: bool,
    allocatable: Resources,
    gpus: usize,
) -> Option<f64> {
    if !price.is_finite() || price < 0.0 {
        return None;
    }
    if price == 0.0 && !owned {
        return None;
    }
    if bought_whole {
        return Some(price);
    }
    let part = |asked: u64, all: u64| {
        if all == 0 {
            0.0
        } else {
            asked as f64 / all as f64
        }
    };
    let gpu_asked = u64::from(request.gpu.count) * u64::from(request.gpu.millis.clamp(1, 1000));
    let share = part(request.resources.cpu_millis, allocatable.cpu_millis)
        .max(part(
            request.resources.memory_bytes,
            allocatable.memory_bytes,
        ))
        .max(part(gpu_asked, gpus as u64 * 1000));
    Some(price * share.min(1.0))
}

/// US dollars per GiB between regions of one provider. Published prices of 2025 lie between 0.01
/// and 0.02 on each continent; the dearer one is taken.
const EGRESS_SAME_PROVIDER: f64 = 0.02;
/// US dollars per GiB out of a provider to the internet: the first tier of AWS and Azure is 0.09
/// and 0.087, GCP's 0.12 (published prices of 2025); the middle one is taken.
const EGRESS_INTERNET: f64 = 0.09;

/// US dollars to bring the request's data to `to` once. Nothing is paid within a region, and what
/// comes from a site pays nothing either.
#[must_use]
pub fn egress_usd(request: &Request, to: &Location) -> f64 {
    let same_place = || {
        request
            .data_locality
            .as_ref()
            .is_some_and(|from| *from == place_of(to))
    };
    egress_to(request, to.provider, same_place)
}

/// [`egress_usd`], by what it depends on.
pub(crate) fn egress_to(
    request: &Request,
    provider: Provider,
    same_place: impl FnOnce() -> bool,
) -> f64 {
    let (Some(from), true) = (&request.data_locality, request.data_gib > 0.0) else {
        return 0.0;
    };
    if from.0.starts_with("site:") || same_place() {
        return 0.0;
    }
    let same = provider != Provider::Edge
        && from
            .0
            .split_once(':')
            .is_some_and(|(p, _)| p == provider.as_str());
    let per_gib = if same {
        EGRESS_SAME_PROVIDER
    } else {
        EGRESS_INTERNET
    };
    per_gib * request.data_gib
}
