//! Latency between places, and the p99 that a replica's clients would see.

use crate::filter::Candidate;
use crate::model::{LatencyMatrix, Location, Place, Provider, Request};

/// Added by queueing on a machine at full measured CPU use, milliseconds: the M/M/1 form
/// `u / (1 - u)` times [`SERVICE_MS`], capped here.
const MAX_QUEUE_MS: f64 = 200.0;
/// Assumed service time of one request, milliseconds, until it is measured.
const SERVICE_MS: f64 = 5.0;
/// p99 over mean of wide-area round trips is taken as this factor.
const P99_FACTOR: f64 = 1.3;

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

/// Estimated p99 latency seen by the request's clients on this candidate, milliseconds: the
/// weighted mean round trip from the clients, times [`P99_FACTOR`], plus queueing at the machine's
/// measured CPU use. None where nobody said where the clients are, or no round trip is known.
#[must_use]
pub fn p99_ms(matrix: &LatencyMatrix, request: &Request, candidate: &Candidate<'_>) -> Option<f64> {
    let here = place_of(candidate.location);
    let (mut sum, mut weights) = (0.0, 0.0);
    for client in &request.clients {
        let weight = f64::from(client.weight);
        if !weight.is_finite() || weight <= 0.0 {
            continue;
        }
        let from_edge = candidate
            .location
            .geography
            .map(|g| Place(format!("geo:{g}")));
        // An edge site stands among the clients of its geography.
        let rtt = matrix.rtt(&client.place, &here).or_else(|| {
            let near = from_edge.as_ref()?;
            if candidate.location.provider != Provider::Edge {
                return None;
            }
            if *near == client.place {
                Some(10.0)
            } else {
                matrix.rtt(near, &client.place)
            }
        })?;
        sum += weight * rtt;
        weights += weight;
    }
    if weights == 0.0 {
        return None;
    }
    Some(sum / weights * P99_FACTOR + SERVICE_MS + queue_ms(candidate))
}

fn queue_ms(candidate: &Candidate<'_>) -> f64 {
    let used = candidate.node.map_or(0.0, |n| f64::from(n.cpu_utilization));
    let used = if used.is_finite() {
        used.clamp(0.0, 0.999)
    } else {
        0.999
    };
    (SERVICE_MS * used / (1.0 - used)).min(MAX_QUEUE_MS)
}
