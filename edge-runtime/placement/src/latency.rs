//! Latency between places, and the p99 that a replica's clients would see.

use crate::filter::Candidate;
use crate::model::{Client, LatencyMatrix, Location, Place, Provider, Request};

/// Most that queueing is taken to add, milliseconds: what waits longer is shed.
pub(crate) const MAX_WAIT_MS: f64 = 2000.0;
/// Assumed service time of one request, milliseconds, until it is measured.
pub const SERVICE_MS: f64 = 5.0;
/// Squared coefficient of variation of service times; inference takes nearly the same each time.
pub(crate) const SERVICE_CV2: f64 = 0.2;
/// p99 over mean of wide-area round trips is taken as this factor.
pub const P99_FACTOR: f64 = 1.3;
/// A replica is taken to keep this share of what it asks for busy, until it is measured.
pub(crate) const TYPICAL_USE: f64 = 0.5;

impl LatencyMatrix {
    /// Records a round trip; both directions are one entry.
    pub fn insert(&mut self, a: &Place, b: &Place, ms: f32) {
        self.rtt_ms.insert(ordered(a, b), ms);
    }

    /// Round-trip time between two places, milliseconds; none where unknown or not a sane number.
    #[must_use]
    pub fn rtt(&self, a: &Place, b: &Place) -> Option<f64> {
        if a == b {
            return Some(1.0);
        }
        let ms = f64::from(*self.rtt_ms.get(&ordered(a, b))?);
        (ms.is_finite() && ms >= 0.0).then_some(ms)
    }
}

fn ordered(a: &Place, b: &Place) -> (Place, Place) {
    if a <= b {
        (a.clone(), b.clone())
    } else {
        (b.clone(), a.clone())
    }
}

/// The place of a node or offer: `site:lab` at the edge, `aws:us-east-1` in a cloud.
#[must_use]
pub fn place_of(location: &Location) -> Place {
    if location.provider == Provider::Edge {
        Place(format!("site:{}", location.site))
    } else {
        Place(format!("{}:{}", location.provider, location.region))
    }
}

/// Weighted mean round trip from the request's clients to `location`, milliseconds. None where
/// nobody said where the clients are, or the round trip from one of them is not known.
#[must_use]
pub fn client_rtt_ms(
    matrix: &LatencyMatrix,
    request: &Request,
    location: &Location,
) -> Option<f64> {
    let here = place_of(location);
    weighted_rtt(request, |client| {
        let client = &client.place;
        // An edge site stands among the clients of its geography.
        matrix.rtt(client, &here).or_else(|| {
            if location.provider != Provider::Edge {
                return None;
            }
            let near = Place(format!("geo:{}", location.geography?));
            if near == *client {
                Some(NEAR_MS)
            } else {
                matrix.rtt(&near, client)
            }
        })
    })
}

/// Round trip between an edge site and the clients of its geography, milliseconds.
pub(crate) const NEAR_MS: f64 = 10.0;

/// Mean of the clients' round trips by their weights; none where one of them is not known.
pub(crate) fn weighted_rtt(
    request: &Request,
    mut rtt: impl FnMut(&Client) -> Option<f64>,
) -> Option<f64> {
    let (mut sum, mut weights) = (0.0, 0.0);
    for client in &request.clients {
        let weight = f64::from(client.weight);
        if !weight.is_finite() || weight <= 0.0 {
            continue;
        }
        sum += weight * rtt(client)?;
        weights += weight;
    }
    (weights > 0.0).then(|| sum / weights)
}

/// p99 of the time a request spends at a replica, milliseconds: its service and its wait on a
/// machine whose share `utilization` is busy.
///
/// The wait's tail is exponential in heavy traffic (Kingman's approximation of G/G/1, "The single
/// server queue in heavy traffic", 1961): mean `(1 + cv²) / 2 × S / (1 - ρ)` for those that wait,
/// a share ρ of all, so that the 99th percentile is `ln(100 ρ)` means.
#[must_use]
pub fn sojourn_p99_ms(service_ms: f64, utilization: f64) -> f64 {
    let busy = if utilization.is_finite() {
        utilization.clamp(0.0, 0.999)
    } else {
        0.999
    };
    let tail = libm::log((100.0 * busy).max(1.0));
    let wait = tail * (1.0 + SERVICE_CV2) / 2.0 * service_ms / (1.0 - busy);
    service_ms + wait.min(MAX_WAIT_MS)
}

/// Share of the machine that is busy when the request runs there: what is measured, and what the
/// replica will add unless it is there already.
#[must_use]
pub fn utilization_with(request: &Request, candidate: &Candidate<'_>) -> f64 {
    let measured = candidate.node.map_or(0.0, |n| f64::from(n.cpu_utilization));
    if request.current.as_deref() == Some(candidate.id) {
        return measured;
    }
    let all = candidate.allocatable.cpu_millis.max(1) as f64;
    measured + TYPICAL_USE * request.resources.cpu_millis as f64 / all
}

/// Estimated p99 latency seen by the request's clients on this candidate, milliseconds: the
/// weighted mean round trip from the clients, times [`P99_FACTOR`], plus [`sojourn_p99_ms`]. None
/// where the round trip is not known.
#[must_use]
pub fn p99_ms(matrix: &LatencyMatrix, request: &Request, candidate: &Candidate<'_>) -> Option<f64> {
    let rtt = client_rtt_ms(matrix, request, candidate.location)?;
    let service = service_ms(request);
    Some(rtt * P99_FACTOR + sojourn_p99_ms(service, utilization_with(request, candidate)))
}

/// The request's service time, or what is assumed of it, milliseconds.
#[must_use]
pub fn service_ms(request: &Request) -> f64 {
    request
        .service_ms
        .filter(|ms| ms.is_finite() && *ms > 0.0)
        .unwrap_or(SERVICE_MS)
}
