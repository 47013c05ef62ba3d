//! Workloads as a fleet has them: all goals, sizes and constraints, and always a place where they may
//! run.

use hyperion_images::DEMO_IMAGE;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

/// The workloads `mix-0` and so on.
pub(super) fn workloads(count: usize, seed: u64) -> Vec<Value> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..count).map(|n| workload(n, &mut rng)).collect()
}

fn workload(n: usize, rng: &mut StdRng) -> Value {
    let goal = ["cost", "latency", "default"][n % 3];
    // What runs on devices is small: all of them are one machine.
    let kind = rng.random_range(0..100);
    let (resources, mut policy) = match kind {
        0..8 => (small(), edge_only()),
        8..16 => (small(), anywhere(rng)),
        16..40 => (with_gpus(rng), in_clouds(rng)),
        _ => (usual(rng), in_clouds(rng)),
    };
    policy["goal"] = json!(goal);
    if goal == "latency" {
        let place = ["US", "EU"][rng.random_range(0..2)];
        policy["clients"] = json!([{ "geography": place }]);
    }
    if rng.random_bool(0.4) {
        policy["constraints"]["preferSpot"] = json!(true);
    }
    if rng.random_bool(0.2) {
        // Each cloud has a machine on which as many GPUs cost less, and is not only sold as spot.
        let gpus = resources.pointer("/limits/nvidia.com~1gpu");
        let gpus = gpus
            .and_then(Value::as_str)
            .and_then(|gpus| gpus.parse().ok());
        let most = [4.0, 8.0, 16.0][rng.random_range(0..3)] * gpus.unwrap_or(1.0);
        policy["maxHourlyCost"] = json!(most);
    }
    let mut pod = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main",
            "image": DEMO_IMAGE,
            "args": ["serve"],
            "resources": resources,
        }],
        "tolerations": [],
    });
    let mut tolerations = Vec::new();
    if resources.pointer("/limits/nvidia.com~1gpu").is_some() {
        tolerations.push(json!({ "key": "nvidia.com/gpu", "operator": "Exists" }));
        tolerations.push(
            json!({ "key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule" }),
        );
    }
    if rng.random_bool(0.6) {
        tolerations.push(json!({
            "key": "kubernetes.azure.com/scalesetpriority", "operator": "Equal",
            "value": "spot", "effect": "NoSchedule",
        }));
    }
    pod["tolerations"] = json!(tolerations);
    if rng.random_bool(0.05) {
        pod["nodeSelector"] = json!({ "kubernetes.io/arch": "amd64" });
    }
    json!({
        "apiVersion": "hyperion.io/v1alpha1",
        "kind": "HyperionWorkload",
        "metadata": { "name": format!("mix-{n}") },
        "spec": { "replicas": 1, "template": { "spec": pod }, "policy": policy },
    })
}

fn small() -> Value {
    json!({ "requests": { "cpu": "10m", "memory": "16Mi" } })
}

fn usual(rng: &mut StdRng) -> Value {
    let cpu = ["250m", "500m", "1", "2", "4"][rng.random_range(0..5)];
    let memory = ["512Mi", "1Gi", "2Gi", "4Gi", "8Gi"][rng.random_range(0..5)];
    json!({ "requests": { "cpu": cpu, "memory": memory } })
}

fn with_gpus(rng: &mut StdRng) -> Value {
    let gpus = [1, 1, 1, 1, 1, 1, 1, 2, 2, 4][rng.random_range(0..10)];
    json!({
        "requests": { "cpu": gpus.to_string(), "memory": format!("{}Gi", 4 * gpus) },
        "limits": { "nvidia.com/gpu": gpus.to_string() },
    })
}

fn edge_only() -> Value {
    json!({ "constraints": { "tiers": ["edge"] } })
}

fn anywhere(rng: &mut StdRng) -> Value {
    let mut policy = json!({ "constraints": {} });
    if rng.random_bool(0.5) {
        policy["clients"] = json!([{ "site": "lab" }]);
    }
    policy
}

/// In some clouds, and in a part of the world that one of them is in.
fn in_clouds(rng: &mut StdRng) -> Value {
    let clouds: &[&str] = match rng.random_range(0..10) {
        0..6 => &[],
        6 => &["aws"],
        7 => &["gcp"],
        8 => &["azure"],
        _ => &["aws", "gcp"],
    };
    let mut constraints = json!({ "tiers": ["cloud"] });
    if !clouds.is_empty() {
        constraints["clouds"] = json!(clouds);
    }
    let home = match clouds {
        ["gcp", ..] => "EU",
        ["aws" | "azure", ..] => "US",
        _ => ["US", "EU"][rng.random_range(0..2)],
    };
    match rng.random_range(0..4) {
        0 => constraints["geographies"] = json!([home]),
        1 => constraints["geographies"] = json!(["US", "EU"]),
        _ => {}
    }
    json!({ "constraints": constraints })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_is_always_the_same_and_has_everything() {
        let all = workloads(1000, 1);
        assert_eq!(workloads(1000, 1), all);
        assert_ne!(workloads(1000, 2), all);
        let count = |what: &dyn Fn(&Value) -> bool| all.iter().filter(|w| what(w)).count();
        let gpus = count(&|w| w.to_string().contains("nvidia.com/gpu\":\""));
        assert!((150..350).contains(&gpus), "{gpus}");
        for word in [
            "geographies",
            "clouds",
            "maxHourlyCost",
            "preferSpot",
            "edge",
            "clients",
            "nodeSelector",
        ] {
            let with = count(&|w| w.to_string().contains(word));
            assert!(with > 20, "{word}: {with}");
        }
        for object in all {
            let read =
                serde_json::from_value::<hyperion_api::workload::HyperionWorkload>(object.clone());
            assert!(read.is_ok(), "{object}");
        }
    }
}
