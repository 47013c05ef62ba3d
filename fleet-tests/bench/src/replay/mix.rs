//! The workloads of a day: services of all goals that stay, jobs that come and end.

use hyperion_images::DEMO_IMAGE;
use hyperion_scheduler::world::World;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

/// Jobs run this long, hours: so that a day sees them end.
const SHORTEST: f64 = 0.5;
const LONGEST: f64 = 6.0;

/// A workload, and when it is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub name: String,
    /// Its goal, or that it may not run where the static fleet is.
    pub group: &'static str,
    /// HyperionWorkload.
    pub object: Value,
    pub replicas: u64,
    /// Hour of the window.
    pub at: f64,
    /// Of a job: how long it runs, hours.
    pub runs: Option<f64>,
    /// Most US dollars per hour for each replica.
    pub limit: Option<f64>,
}

/// So many workloads within so many hours, by time: most services are there from the beginning, the
/// rest and the jobs come in the course of the day.
pub(super) fn items(world: &World, count: usize, hours: f64, seed: u64) -> Vec<Item> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut items: Vec<Item> = (0..count)
        .map(|n| item(world, n, hours, &mut rng))
        .collect();
    items.sort_by(|a, b| a.at.total_cmp(&b.at));
    items
}

fn item(world: &World, n: usize, hours: f64, rng: &mut StdRng) -> Item {
    let job = n % 3 == 2;
    let goal = ["cost", "latency", "default"][n / 3 % 3];
    let gpus = match rng.random_range(0..100) {
        0..70 => 0,
        70..97 => 1,
        _ => 2,
    };
    let mut policy = constraints(gpus, rng);
    policy["goal"] = json!(goal);
    policy["priority"] = json!([0, 0, 0, 5, 10][rng.random_range(0..5)]);
    if goal == "latency" && !job {
        let place = ["US", "EU"][rng.random_range(0..2)];
        policy["clients"] = json!([{ "geography": place }]);
    }
    let prefers_spot = job || rng.random_bool(0.5);
    if prefers_spot {
        policy["constraints"]["preferSpot"] = json!(true);
    }
    let mut limit = None;
    if gpus < 2 && rng.random_bool(0.25) {
        // Above what the cheapest machine costs on demand, so that there always is a place.
        let most = [1.0, 2.0, 4.0][rng.random_range(0..3)];
        policy["maxHourlyCost"] = json!(most);
        limit = Some(most);
    }
    let replicas = if job {
        1
    } else {
        [1, 1, 2, 3][rng.random_range(0..4)]
    };
    let (at, runs) = if job {
        let at = rng.random_range(0.0..1.0) * hours;
        let all = world.runtimes.len().max(1);
        let runs = world.runtimes.get(rng.random_range(0..all)).copied();
        (at, Some(runs.unwrap_or(1.0).clamp(SHORTEST, LONGEST)))
    } else if rng.random_bool(0.7) {
        (0.0, None)
    } else {
        (rng.random_range(0.0..1.0) * hours * 0.8, None)
    };
    let name = format!("{}-{n}", if job { "job" } else { "service" });
    let group = if elsewhere(&policy) {
        "elsewhere"
    } else {
        goal
    };
    let object = json!({
        "apiVersion": "hyperion.io/v1alpha1",
        "kind": "HyperionWorkload",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "type": if job { "job" } else { "service" },
            "replicas": replicas,
            "template": { "spec": pod(gpus, prefers_spot, rng) },
            "policy": policy,
        },
    });
    Item {
        name,
        group,
        object,
        replicas,
        at,
        runs,
        limit,
    }
}

/// May it not run at Amazon in the United States?
fn elsewhere(policy: &Value) -> bool {
    let excludes = |what: &str, word: &str| {
        let list = policy.pointer(&format!("/constraints/{what}"));
        let list = list.and_then(Value::as_array);
        list.is_some_and(|list| !list.iter().any(|w| w == word))
    };
    excludes("clouds", "aws") || excludes("geographies", "US")
}

fn pod(gpus: u32, tolerates_spot: bool, rng: &mut StdRng) -> Value {
    let mut tolerations = Vec::new();
    let resources = if gpus > 0 {
        tolerations.push(json!({ "key": "nvidia.com/gpu", "operator": "Exists" }));
        tolerations.push(
            json!({ "key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule" }),
        );
        json!({
            "requests": { "cpu": (2 * gpus).to_string(), "memory": format!("{}Gi", 8 * gpus) },
            "limits": { "nvidia.com/gpu": gpus.to_string() },
        })
    } else {
        let cpu = ["500m", "1", "2", "4"][rng.random_range(0..4)];
        let memory = ["1Gi", "2Gi", "4Gi", "8Gi"][rng.random_range(0..4)];
        json!({ "requests": { "cpu": cpu, "memory": memory } })
    };
    if tolerates_spot {
        tolerations.push(json!({
            "key": "kubernetes.azure.com/scalesetpriority", "operator": "Equal",
            "value": "spot", "effect": "NoSchedule",
        }));
    }
    json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main", "image": DEMO_IMAGE, "args": ["serve"], "resources": resources,
        }],
        "tolerations": tolerations,
    })
}

/// In clouds; some only in one of them, or in one part of the world.
fn constraints(gpus: u32, rng: &mut StdRng) -> Value {
    let mut constraints = json!({ "tiers": ["cloud"] });
    // Two GPUs are not sold together by everybody.
    let clouds: &[&str] = match rng.random_range(0..10) {
        0 if gpus < 2 => &["aws"],
        1 if gpus < 2 => &["gcp"],
        2 if gpus < 2 => &["azure"],
        3 if gpus < 2 => &["aws", "gcp"],
        _ => &[],
    };
    if !clouds.is_empty() {
        constraints["clouds"] = json!(clouds);
    }
    let home = match clouds {
        ["gcp"] => "EU",
        ["aws" | "azure"] => "US",
        _ => ["US", "EU"][rng.random_range(0..2)],
    };
    if gpus < 2 && rng.random_bool(0.25) {
        constraints["geographies"] = json!([home]);
    }
    json!({ "constraints": constraints })
}

#[cfg(test)]
mod tests {
    use hyperion_api::workload::HyperionWorkload;

    use super::*;

    #[test]
    fn a_day_is_always_the_same_and_has_everything() {
        let world = World::builtin();
        let all = items(&world, 300, 24.0, 1);
        assert_eq!(items(&world, 300, 24.0, 1), all);
        assert_ne!(items(&world, 300, 24.0, 2), all);
        let count = |what: &dyn Fn(&Item) -> bool| all.iter().filter(|i| what(i)).count();
        assert!((100..200).contains(&count(&|i| i.at == 0.0)));
        assert_eq!(count(&|i| i.runs.is_some()), 100);
        for word in [
            "geographies",
            "clouds",
            "maxHourlyCost",
            "preferSpot",
            "clients",
            "gpu\":\"",
        ] {
            let with = count(&|i| i.object.to_string().contains(word));
            assert!(with > 20, "{word}: {with}");
        }
        for group in ["cost", "latency", "default", "elsewhere"] {
            assert!(count(&|i| i.group == group) > 30, "{group}");
        }
        for item in &all {
            assert!(item.group == "elsewhere" || !item.object.to_string().contains("[\"EU\"]"));
            let read = serde_json::from_value::<HyperionWorkload>(item.object.clone());
            assert!(read.is_ok(), "{}", item.object);
            assert!((0.0..24.0).contains(&item.at), "{item:?}");
            let runs = item.runs.unwrap_or(SHORTEST);
            assert!((SHORTEST..=LONGEST).contains(&runs), "{item:?}");
        }
        assert!(all.windows(2).all(|w| w[0].at <= w[1].at));
    }
}
