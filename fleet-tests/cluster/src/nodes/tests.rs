use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn text<'a>(node: &'a Value, path: &str) -> &'a str {
    node.pointer(path).and_then(Value::as_str).unwrap_or("")
}

fn label<'a>(node: &'a Value, key: &str) -> Option<&'a str> {
    node.pointer("/metadata/labels")?.get(key)?.as_str()
}

#[test]
fn a_cluster_of_any_size_has_distinct_nodes_and_is_always_the_same() {
    for service in Service::ALL {
        let all = nodes(service, service.region(), 5000);
        assert_eq!(all.len(), 5000);
        for path in ["/metadata/name", "/spec/providerID"] {
            let different: BTreeSet<&str> = all.iter().map(|node| text(node, path)).collect();
            assert_eq!(different.len(), 5000, "{service:?} {path}");
        }
        assert_eq!(nodes(service, service.region(), 20), all[..20]);
        // Names of objects, and values of labels, have limits.
        for node in &all {
            assert!(text(node, "/metadata/name").len() <= 63, "{node}");
            let labels = node
                .pointer("/metadata/labels")
                .and_then(Value::as_object)
                .unwrap();
            assert!(
                labels.values().all(|v| v.as_str().unwrap().len() <= 63),
                "{node}"
            );
        }
    }
    assert!(nodes(Service::Eks, "moon-1", 3).is_empty());
}

#[test]
fn all_instance_types_of_the_region_are_there_in_three_zones_with_gpus_and_spot() {
    for service in Service::ALL {
        let all = nodes(service, service.region(), 300);
        let mut by_type: BTreeMap<&str, u32> = BTreeMap::new();
        let mut zones = BTreeSet::new();
        for node in &all {
            *by_type
                .entry(label(node, "node.kubernetes.io/instance-type").unwrap())
                .or_default() += 1;
            zones.insert(label(node, "topology.kubernetes.io/zone").unwrap());
        }
        let priced: BTreeSet<&str> = PRICES
            .iter()
            .filter(|row| row.0 == service.provider() && row.1 == service.region())
            .map(|row| row.2)
            .collect();
        assert_eq!(by_type.keys().copied().collect::<BTreeSet<_>>(), priced);
        assert_eq!(zones.len(), 3);
        let gpus = all.iter().filter(|node| {
            node.pointer("/status/allocatable/nvidia.com~1gpu")
                .is_some()
        });
        let gpus = gpus.count();
        assert!((60..240).contains(&gpus), "{service:?}: {gpus} with GPUs");
    }
}

#[test]
fn spot_and_gpus_are_told_in_each_services_own_way() {
    let spot = |service: Service, key: &str, value: &str| {
        let all = nodes(service, service.region(), 300);
        let count = all
            .iter()
            .filter(|node| label(node, key) == Some(value))
            .count();
        assert!(
            (50..250).contains(&count),
            "{service:?}: {count} spot nodes"
        );
    };
    spot(Service::Eks, "eks.amazonaws.com/capacityType", "SPOT");
    spot(Service::Gke, "cloud.google.com/gke-spot", "true");
    spot(
        Service::Aks,
        "kubernetes.azure.com/scalesetpriority",
        "spot",
    );
    for (service, scheme, key) in [
        (Service::Eks, "aws:///us-east-1", "nvidia.com/gpu.product"),
        (
            Service::Gke,
            "gce://hyperion-test/europe-west4-",
            "cloud.google.com/gke-accelerator",
        ),
        (
            Service::Aks,
            "azure:///subscriptions/",
            "nvidia.com/gpu.product",
        ),
    ] {
        for node in nodes(service, service.region(), 300) {
            assert!(
                text(&node, "/spec/providerID").starts_with(scheme),
                "{node}"
            );
            let has = node
                .pointer("/status/allocatable/nvidia.com~1gpu")
                .is_some();
            assert_eq!(label(&node, key).is_some(), has, "{node}");
        }
    }
}

#[test]
fn what_is_kept_from_pods_is_what_the_services_document() {
    // GKE's documentation gives these sums for 8 cores and for 32 GiB.
    assert_eq!(reserved_cpu(1), 60);
    assert_eq!(reserved_cpu(2), 70);
    assert_eq!(reserved_cpu(4), 80);
    assert_eq!(reserved_cpu(8), 90);
    assert_eq!(reserved_memory(32 * 1024), 1024 + 819 + 819 + 983);
    for service in Service::ALL {
        for node in nodes(service, service.region(), 300) {
            let read = |path: &str, unit: char| -> u64 {
                text(&node, path)
                    .trim_end_matches(unit)
                    .trim_end_matches('K')
                    .parse()
                    .unwrap()
            };
            for (name, unit) in [("cpu", 'm'), ("memory", 'i')] {
                let has = read(&format!("/status/capacity/{name}"), unit);
                let left = read(&format!("/status/allocatable/{name}"), unit);
                assert!(
                    left < has && left * 10 > has * 7,
                    "{name}: {left} of {has}: {node}"
                );
            }
        }
    }
}

#[test]
fn karpenter_may_launch_what_the_nodes_are() {
    for service in Service::ALL {
        let types = instance_types(service, service.region());
        let types = types.as_array().unwrap();
        assert!(types.len() >= 6, "{service:?}");
        let all = nodes(service, service.region(), 300);
        for node in &all {
            let name = label(node, "node.kubernetes.io/instance-type").unwrap();
            let found = types.iter().find(|t| t["name"] == name).unwrap();
            let zone = label(node, "topology.kubernetes.io/zone").unwrap();
            assert!(
                found.to_string().contains(&format!("[\"{zone}\"]")),
                "{zone}: {found}"
            );
            let gpus = node.pointer("/status/capacity/nvidia.com~1gpu");
            assert_eq!(found.pointer("/resources/nvidia.com~1gpu"), gpus);
        }
    }
}
