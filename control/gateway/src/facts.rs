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
        None => hyperion_providers::price(provider, &region, &instance_type, capacity_type),
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
