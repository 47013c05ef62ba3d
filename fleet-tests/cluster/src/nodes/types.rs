//! Instance types for Karpenter's kwok provider.

use hyperion_providers::prices::PRICES;
use hyperion_providers::shapes::shape;
use serde_json::{Value, json};

use super::Service;

/// What can be had in a region, in the form of the provider's `--instance-types-file-path`: each
/// instance type of the table of published prices in three zones, on demand and, where there is a
/// price, as spot.
#[must_use]
pub fn instance_types(service: Service, region: &str) -> Value {
    let rows = PRICES
        .iter()
        .filter(|row| row.0 == service.provider() && row.1 == region);
    let types = rows.filter_map(|row| {
        let shape = shape(row.0, row.2)?;
        let mut resources = json!({
            "cpu": shape.vcpus.to_string(),
            "memory": format!("{}Gi", shape.memory_gib),
            "ephemeral-storage": "80Gi",
            "pods": "110",
        });
        if shape.gpus > 0 {
            resources["nvidia.com/gpu"] = json!(shape.gpus.to_string());
        }
        let prices = [("on-demand", Some(row.3)), ("spot", row.4)];
        let offerings = (0..3).flat_map(|zone| {
            prices.into_iter().filter_map(move |(capacity, price)| {
                Some(json!({
                    "Price": price?,
                    "Available": true,
                    "Requirements": [
                        { "key": "karpenter.sh/capacity-type", "operator": "In", "values": [capacity] },
                        {
                            "key": "topology.kubernetes.io/zone", "operator": "In",
                            "values": [zone_name(service, region, zone)],
                        },
                    ],
                }))
            })
        });
        Some(json!({
            "name": row.2,
            "architecture": shape.arch(),
            "operatingSystems": ["linux"],
            "resources": resources,
            "offerings": offerings.collect::<Vec<_>>(),
        }))
    });
    types.collect()
}

/// Name of the first, second or third zone of a region, in the words of the service.
pub(super) fn zone_name(service: Service, region: &str, zone: u32) -> String {
    let letter = char::from(b'a' + u8::try_from(zone % 26).unwrap_or_default());
    match service {
        Service::Eks => format!("{region}{letter}"),
        Service::Gke => format!("{region}-{letter}"),
        Service::Aks => format!("{region}-{}", zone + 1),
    }
}
