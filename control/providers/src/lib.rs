//! What is known of the providers without asking them: geographies of regions, shapes of instance
//! types, a table of published prices, and measured round trips between regions. And what they say
//! when they are asked: [`feeds`] of live prices.

#[cfg(feature = "feeds")]
pub mod feeds;
pub mod geography;
pub mod prices;
#[cfg(feature = "feeds")]
pub mod prometheus;
pub mod rtt;
pub mod shapes;

use hyperion_placement::model::{CapacityType, Geography, LatencyMatrix, Place, Provider};

pub use geography::geography;

/// US dollars per hour for the whole instance; none where the table has no such row.
#[must_use]
pub fn price(
    provider: Provider,
    region: &str,
    instance_type: &str,
    capacity: CapacityType,
) -> Option<f64> {
    let row = prices::PRICES
        .iter()
        .find(|row| row.0 == provider && row.1 == region && row.2 == instance_type)?;
    match capacity {
        CapacityType::OnDemand => Some(row.3),
        CapacityType::Spot => row.4,
        CapacityType::Owned => None,
    }
}

/// Round trip of a client to the nearest region of its geography, milliseconds: a typical fixed
/// access network's last mile. An assumption, not a measurement.
const LAST_MILE_MS: f32 = 15.0;

/// The region that stands for a geography's clients.
const CLIENT_REGION: &[(Geography, &str)] = &[
    (Geography::Us, "aws:us-east-1"),
    (Geography::Ca, "aws:ca-central-1"),
    (Geography::Sa, "aws:sa-east-1"),
    (Geography::Eu, "aws:eu-central-1"),
    (Geography::Uk, "aws:eu-west-2"),
    (Geography::Ch, "aws:eu-central-1"),
    (Geography::No, "azure:northeurope"),
    (Geography::Me, "aws:me-south-1"),
    (Geography::Af, "aws:af-south-1"),
    (Geography::In, "aws:ap-south-1"),
    (Geography::Ap, "aws:ap-northeast-1"),
    (Geography::Au, "aws:ap-southeast-2"),
];

/// Measured round trips between regions, and from each geography's clients, as [`with_clients`]
/// derives them.
#[must_use]
pub fn latency_matrix() -> LatencyMatrix {
    let mut matrix = LatencyMatrix::default();
    for (a, b, ms) in rtt::RTT_MS {
        matrix.insert(&place(a), &place(b), *ms);
    }
    with_clients(&matrix)
}

/// Adds to round trips between regions those of each geography's clients (`geo:EU`) to regions and
/// to each other: the round trip from the geography's main region plus the last mile.
#[must_use]
pub fn with_clients(between: &LatencyMatrix) -> LatencyMatrix {
    let mut matrix = between.clone();
    let mut regions: Vec<Place> = between
        .rtt_ms
        .keys()
        .flat_map(|(a, b)| [a.clone(), b.clone()])
        .collect();
    regions.sort();
    regions.dedup();
    for (geography, home) in CLIENT_REGION {
        let clients = place(&format!("geo:{geography}"));
        for region in &regions {
            if let Some(ms) = between.rtt(&place(home), region) {
                matrix.insert(&clients, region, ms as f32 + LAST_MILE_MS);
            }
        }
        for (other, other_home) in CLIENT_REGION {
            if let Some(ms) = between.rtt(&place(home), &place(other_home)) {
                let there = place(&format!("geo:{other}"));
                matrix.insert(&clients, &there, ms as f32 + 2.0 * LAST_MILE_MS);
            }
        }
    }
    matrix
}

fn place(name: &str) -> Place {
    Place(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_sane_and_spot_is_cheaper() {
        for row in prices::PRICES {
            assert!(row.3 > 0.0 && row.3 < 1000.0, "{row:?}");
            assert!(
                row.4.is_none_or(|spot| spot > 0.0 && spot <= row.3),
                "{row:?}"
            );
            assert!(geography(row.0, row.1).is_some(), "{row:?}");
        }
    }

    #[test]
    fn an_unknown_row_has_no_price() {
        let no = price(Provider::Aws, "us-east-1", "x99.huge", CapacityType::Spot);
        assert_eq!(no, None);
    }

    #[test]
    fn clients_are_nearer_to_their_own_continent() {
        let m = latency_matrix();
        let eu = place("geo:EU");
        let far = m.rtt(&eu, &place("aws:us-east-1"));
        let near = m.rtt(&eu, &place("gcp:europe-west1"));
        assert!(near < far && near.is_some(), "{near:?} {far:?}");
    }
}
