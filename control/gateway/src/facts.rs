//! What a node's labels and capabilities say about it, in the words of `HyperionNode`.

use std::collections::BTreeMap;

use hyperion_api::node::{HyperionNodeStatus, NodeGpu};
use hyperion_placement::model::{CapacityType, Geography, Provider, Tier};
use hyperion_proto::domain::Capabilities;

/// What a node's owner says that it costs, US dollars per hour; it counts before all tables and feeds.
pub const PRICE_LABEL: &str = "hyperion.io/price-per-hour";

/// Fills the static part of a node's status. Labels with a wrong word fall back to the cautious
/// reading (edge, owned, no geography) and are named in the second value.
#[must_use]
pub fn describe(capabilities: &Capabilities) -> (HyperionNodeStatus, Vec<String>) {
    let mut problems = Vec::new();
    let labels = &capabilities.labels;
    let get = |key: &str| labels.get(key).map_or("", String::as_str);
    let provider = word(
        labels,
        "hyperion.io/provider",
        Provider::Edge,
        &mut problems,
    );
    let tier = if provider == Provider::Edge {
        Tier::Edge
    } else {
        Tier::Cloud
    };
    let usual = if tier == Tier::Edge {
        CapacityType::Owned
    } else {
        CapacityType::OnDemand
    };
    let capacity_type = word(labels, "hyperion.io/capacity-type", usual, &mut problems);
    let region = get("topology.kubernetes.io/region").to_owned();
    let instance_type = get("node.kubernetes.io/instance-type").to_owned();
    let geography = hyperion_providers::geography(provider, &region).or_else(|| {
        let value = labels.get("hyperion.io/geography")?;
        value
            .parse::<Geography>()
            .map_err(|e| problems.push(e.to_string()))
            .ok()
    });
    let price = match labels.get(PRICE_LABEL).map(|v| v.parse::<f64>()) {
        Some(Ok(price)) if price.is_finite() && price >= 0.0 => Some(price),
        Some(_) => {
            problems.push(format!("label {PRICE_LABEL} is not a price"));
            None
        }
        None => {
            let of = |how| hyperion_providers::price(provider, &region, &instance_type, how);
            // Where no price of the spot machine is known, the most that it can be: nobody pays more
            // for spot than on demand, and 0 would look like a present.
            let most = (capacity_type == CapacityType::Spot).then_some(CapacityType::OnDemand);
            of(capacity_type).or_else(|| of(most?))
        }
    };
    let mut allocatable = BTreeMap::from([
        ("cpu".to_owned(), format!("{}m", capabilities.cpu_millis)),
        (
            "memory".to_owned(),
            format!("{}Ki", capabilities.memory_bytes / 1024),
        ),
    ]);
    if !capabilities.gpus.is_empty() {
        allocatable.insert(
            "nvidia.com/gpu".to_owned(),
            capabilities.gpus.len().to_string(),
        );
    }
    let status = HyperionNodeStatus {
        tier: Some(tier.into()),
        provider: Some(provider.into()),
        zone: get("topology.kubernetes.io/zone").to_owned(),
        region,
        geography: geography.map(Into::into),
        capacity_type: Some(capacity_type.into()),
        instance_type,
        price_per_hour: price.unwrap_or(0.0),
        arch: capabilities.arch.clone(),
        labels: labels.clone(),
        allocatable,
        gpus: capabilities
            .gpus
            .iter()
            .map(|g| NodeGpu {
                uuid: g.uuid.clone(),
                model: g.model.clone(),
                memory_bytes: i64::try_from(g.memory_bytes).unwrap_or(i64::MAX),
            })
            .collect(),
        gpu_count: i32::try_from(capabilities.gpus.len()).unwrap_or(i32::MAX),
        ..Default::default()
    };
    (status, problems)
}

fn word<T: std::str::FromStr>(
    labels: &BTreeMap<String, String>,
    key: &str,
    usual: T,
    problems: &mut Vec<String>,
) -> T
where
    T::Err: std::fmt::Display,
{
    match labels.get(key).map(|v| v.parse::<T>()) {
        None => usual,
        Some(Ok(value)) => value,
        Some(Err(e)) => {
            problems.push(format!("label {key}: {e}"));
            usual
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spot_machine_without_a_known_price_costs_no_more_than_on_demand() {
        let price = |kind: &str| {
            let labels = [
                ("hyperion.io/provider", "aws"),
                ("hyperion.io/capacity-type", kind),
                ("topology.kubernetes.io/region", "us-east-1"),
                ("node.kubernetes.io/instance-type", "g4dn.xlarge"),
            ];
            let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
            let capabilities = Capabilities {
                arch: "amd64".to_owned(),
                cpu_millis: 4000,
                memory_bytes: 16 << 30,
                disk_bytes: 0,
                gpus: Vec::new(),
                labels: labels.into_iter().map(own).collect(),
            };
            describe(&capabilities).0.price_per_hour
        };
        let spot = hyperion_providers::price(
            Provider::Aws,
            "us-east-1",
            "g4dn.xlarge",
            CapacityType::Spot,
        );
        assert!(spot.is_none(), "the table has it now: take another type");
        assert!(price("on-demand") > 0.0);
        assert_eq!(price("spot"), price("on-demand"));
    }
}
